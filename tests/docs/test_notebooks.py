"""The notebooks: kept with what they show, importing coarlib alone; two of them run here."""

import ast
import importlib.util
import json
import re

import pytest
from paths import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = ("components_of_your_cnn", "reading_explaind")  # the others: python notebooks/run.py
OTHERS = {
    *("numpy", "os", "pathlib", "sklearn", "subprocess", "sys", "tempfile", "time", "torch"),
    "transformers",
}
HOST = re.compile(r"/(tmp|home|root|work)/|vm-\d")


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code(book):
    cells = (cell for cell in book["cells"] if cell["cell_type"] == "code")
    return [(cell, "".join(cell["source"]).replace("%matplotlib inline", "")) for cell in cells]


def pictures(book):
    outputs = [output for cell, _ in code(book) for output in cell["outputs"]]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs(path):
    book = load(path)
    assert all(cell["execution_count"] for cell, _ in code(book))
    assert pictures(book) >= 1
    shown = json.dumps([cell["outputs"] for cell, _ in code(book)])
    assert not HOST.search(shown), "run notebooks/run.py, which leaves the machine out"
    assert "Traceback" not in shown and len(shown) < 10**6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_coarlib_as_cl_and_no_room_of_it(path):
    found = set()
    for _, text in code(load(path)):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {f"{alias.name} as {alias.asname}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
    assert "coarlib as cl" in found
    assert {name.split(".")[0].split(" ")[0] for name in found} <= {"coarlib", *OTHERS}
    assert not [name for name in found if name.startswith("coarlib.")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_named_where_people_look(path):
    assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
    page = f"notebooks/{path.stem}.md"
    assert page in (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", QUICK)
def test_a_notebook_runs(name, monkeypatch):
    pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # products this small lose by threads
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    path = FOLDER / f"{name}.ipynb"
    assert pictures(run.execute(path)) == pictures(load(path))


def test_there_are_five():
    assert len(NOTEBOOKS) == 5 and set(QUICK) <= {path.stem for path in NOTEBOOKS}
