"""The house of docs/architecture.md: which way imports point, how large modules are."""

import ast
import subprocess
import sys

import pytest
from paths import ROOT

MODULES = sorted([*ROOT.glob("coarlib/**/*.py"), *ROOT.glob("estimate/**/*.py")])
COMMON = {"coarlib", "errors", "progress", "commandline", "devices", "files"}
# What each package or module of coarlib may import of coarlib, besides itself and COMMON.
MAY_IMPORT = {
    "errors": set(),
    "progress": set(),
    "commandline": set(),
    "devices": set(),
    "files": set(),
    "stopping": set(),
    "strata": set(),
    "masks": {"strata"},
    "spec": {"masks"},
    "outputs": set(),
    "store": {"spec", "masks"},
    "row_checks": {"spec"},
    "task": set(),
    "beton": {"store", "spec"},
    "regression": {"store", "spec", "beton", "scoring"},
    "scoring": {"store", "spec"},
    "ablation": {"task", "outputs", "masks", "scoring"},
    "retraining": {"task", "outputs", "masks"},
    "worker": {"store", "spec", "masks", "task", "row_checks", "stopping"},
    "added_outputs": {"worker", "task", "store", "spec"},
    "editing": {"ablation", "outputs", "regression"},
    "path_kernel": {"store", "spec", "task", "outputs", "ablation", "regression", "scoring"},
    "interop": {
        "path_kernel",
        "scoring",
        "retraining",
        "store",
        "spec",
        "masks",
        "regression",
        "beton",
    },
    "report": {"store", "spec", "regression", "scoring", "beton"},
    "cluster": {"store", "spec", "stopping", "regression"},
}
NO_TORCH = ["coarlib.store", "coarlib.spec", "coarlib.masks", "coarlib.beton"]


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_small_documented_and_check_input_without_assert(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(tree)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[-2] != ROOT.name], ids=name_of)
def test_imports_point_one_way(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "coarlib" or parts[1] == "__init__":
        return
    allowed = MAY_IMPORT[parts[1]] | COMMON | {parts[1]}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            first, *rest = name.split(".")
            assert first != "estimate", f"{name_of(path)} imports {name}"
            if first == "coarlib" and rest:
                assert rest[0] in allowed, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("name", NO_TORCH)
def test_torch_is_not_needed_to_handle_stores(name):
    code = f"import {name}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
