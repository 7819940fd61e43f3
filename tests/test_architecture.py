"""The house of docs/architecture.md: which way imports point, how large modules are."""

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT

from coarlib.commands.store.initialize_store import main as initialize_store
from coarlib.store import RowWriter, Store

MODULES = sorted([*ROOT.glob("coarlib/**/*.py"), *ROOT.glob("estimate/**/*.py")])
# The floors of the house, lowest first: a room knows those below it, and never one beside or above.
FLOORS = [
    {"errors", "version"},
    {"tracking"},
    {
        "files",
        "loading",
        "progress",
        "devices",
        "identity",
        "display",
        "explorer",
        "compiled",
        "cuda_graphs",
    },
    {"statistics", "masks", "outputs", "task"},
    {"store", "setups"},
    {"history"},
    {"beton", "filling", "ablation", "retraining"},
    {"scoring", "inputs", "gradient_passes"},
    {"regression"},
    {"baselines", "editing", "path_kernel", "metagradient", "cluster"},
    {"plots"},
    {"interop", "report", "autopilot"},
    {"api"},
    {"commands"},
    {"__main__"},
]
FLOOR_OF = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
NO_TORCH = ["coarlib.store", "coarlib.store.spec", "coarlib.masks", "coarlib.beton"]


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_small_documented_and_check_input_without_assert(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(tree)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def imported(path):
    """The modules of the project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else node.module for name in names}
    return {name for name in found if name.split(".")[0] in ("coarlib", "estimate")}


NAMES = {name_of(path).removesuffix(".__init__"): path for path in MODULES}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("coarlib.")])
def test_a_room_knows_only_the_floors_below(name):
    room = name.split(".")[1]
    for other in imported(NAMES[name]):
        top, *rest = other.split(".")
        assert top != "estimate", f"{name} imports {other}"
        if top == "coarlib" and rest and rest[0] != room:
            assert FLOOR_OF[rest[0]] < FLOOR_OF[room], f"{name} imports {other}"


def test_the_page_of_the_architecture_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {room for floor in FLOORS for room in floor} - {"__main__"}
    assert sorted(r for r in rooms if f"`{r}`" not in page and f"`{r}/`" not in page) == []


def test_no_modules_import_each_other_in_a_circle():
    waiting = {name: imported(path) & set(NAMES) - {name} for name, path in NAMES.items()}
    while ready := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}
    assert not waiting, f"in or above a circle: {sorted(waiting)}"


@pytest.mark.parametrize("name", NO_TORCH)
def test_torch_is_not_needed_to_handle_stores(name):
    code = f"import {name}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        "initialize_store STORE --spec SPEC",
        "status STORE",
        "verify STORE",
        "write_dataset STORE --out STORE.beton",
        "--help",
    ],
)
def test_torch_is_not_needed_by_commands_of_stores(command, tmp_path):
    """Nor numba, nor scipy: they take longer to import than such a command to run."""
    spec, store = tmp_path / "spec.json", tmp_path / "store"
    arrays = {
        "masks": {"dtype": "bool_", "shape": [4]},
        "test_margins": {"dtype": "float32", "shape": [3]},
    }
    design = {"kind": "bernoulli", "keep_prob": 0.5, "seed": 0}
    spec.write_text(json.dumps({"num_models": 20, "schema": arrays, "design": design}))
    if "--spec" not in command:
        initialize_store([str(store), "--spec", str(spec)])
        rows, opened = np.arange(2), Store.open(store)
        masks = opened.draw_masks(opened.design, rows)
        found = {"masks": masks, "test_margins": np.ones((2, 3), np.float32)}
        with RowWriter(opened) as writer:
            writer.write(rows, found)
    words = command.replace("STORE", str(store)).replace("SPEC", str(spec)).split()
    code = (
        "import sys; from coarlib.commands.__main__ import main\n"
        f"try: main({words!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
        "loaded = {'torch', 'numba', 'scipy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
