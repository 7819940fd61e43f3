"""Set-ups and tasks are found by name, and what cannot be found is said in one sentence."""

import re
import sys
from pathlib import Path

import pytest
from paths import ROOT

from coarlib import setups
from coarlib.errors import SetupError, TaskError
from coarlib.history.setups import HistorySetup
from coarlib.setups import build, find, load, names, shipped_file
from coarlib.task import ModuleTask

ZOO = Path(__file__).parent / "zoo"
TEXTS = (".py", ".md", ".yaml", ".sh", ".sbatch", ".ipynb")
TASK = """
from helper import WIDTH
from coarlib.task import Task
class {name}(Task):
    def __init__(self, width=WIDTH, **more):
        self.width = width
    def rows(self, indices, masks):
        return {{}}
{rest}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "helper.py").write_text("WIDTH = 7\n")

    def write(rest="", name="Mine", as_file="mine_here.py"):
        path = tmp_path / as_file
        path.write_text(TASK.format(name=name, rest=rest))
        return str(path)

    yield write
    for name in ("helper", "mine_here"):
        sys.modules.pop(name, None)


def test_set_ups_are_found_without_importing_them():
    before = set(sys.modules)
    assert {"digits", "cifar_resnet", "gpt2_tinystories"} <= set(names())
    assert {"digits_path", "modular_addition"} <= set(names(setups.HISTORY_FILE))
    assert not {name for name in set(sys.modules) - before if name.startswith("estimate.")}


def test_every_spec_is_named_somewhere():
    places = [ROOT / "README.md", ROOT / "Makefile"]
    for folder in ("coarlib", "estimate", "docs", "slurm", "notebooks", "tests", "benchmarks"):
        places += [file for file in (ROOT / folder).rglob("*.*") if file.suffix in TEXTS]
    text = "".join(file.read_text(encoding="utf-8") for file in places)
    specs = [file.stem.removesuffix("_test") for file in (ROOT / "specs").iterdir()]
    assert [name for name in specs if not re.search(rf"(?<!\w){name}(?!\w)", text)] == []


def test_a_set_up_by_its_name():
    task = load("digits", {"batch_size": 10})
    assert type(task).__name__ == "DigitsTask" and task.batch_size == 10
    assert type(load("estimate.digits.task:DigitsTask")).__name__ == "DigitsTask"
    assert load("digits:DigitsTask").rows_per_batch == 50


@pytest.mark.parametrize("name", ["digits", "digits_path", "cifar2", "modular_addition"])
def test_set_ups_for_histories(name):
    assert issubclass(find(name, HistorySetup, setups.HISTORY_FILE), HistorySetup)


def test_a_file_finds_its_neighbours_while_it_loads(file):
    before = list(sys.path)
    assert load(file()).width == 7
    assert load(f"{file()}:Mine", {"width": 3, "extra": 1}).width == 3
    assert sys.path == before


@pytest.mark.parametrize(
    ("rest", "name", "settings", "width"),
    [
        ("made = Mine(5)", ":made", {}, 5),
        ("def make(width=2): return Mine(width)", ":make", {"width": 4}, 4),
        ("def make(): return Mine(6)", ":make", {}, 6),
    ],
)
def test_a_task_or_a_function_that_returns_one(file, rest, name, settings, width):
    assert load(file(rest) + name, settings).width == width


def test_the_only_candidate_needs_no_name(tmp_path):
    base = f"import sys; sys.path.insert(0, {str(ZOO)!r})\nimport linear_task\n"
    for rest in ("task = linear_task.LinearTask()", "def task(): return linear_task.LinearTask()"):
        path = tmp_path / "only.py"
        path.write_text(base + rest)
        assert type(load(str(path))).__name__ == "LinearTask"


def test_a_datamodels_main():
    assert isinstance(load(str(ZOO / "datamodels_style.py"), {}, "logs"), ModuleTask)


def test_a_file_hides_no_module(tmp_path):
    path = tmp_path / "json.py"
    path.write_text("from coarlib.task import Task\nclass J(Task):\n    def rows(s, i, m): pass\n")
    load(str(path))
    import json

    assert json.loads("1") == 1 and "J" not in vars(sys.modules["json"])


BAD = [
    ("nowhere.tasks:Task", {}, "cannot import nowhere.tasks"),
    ("digit", {}, "did you mean 'digits'"),
    ("missing.py", {}, "there is no file missing.py"),
    (f"{ZOO}/linear_task.py:Nope", {}, "defines no Nope"),
    (f"{ZOO}/linear_task.py:LinearTsk", {}, "did you mean 'LinearTask'"),
    (f"{ZOO}/broken_tasks.py", {}, "say which one"),
    (f"{ZOO}/linear_task.py", {"second": 1}, "has no setting second"),
    ("digits", {"batch_sise": 1}, "did you mean 'batch_size'"),
    (f"{ZOO}/linear_task.py:LinearTask.x", {}, "defines no LinearTask.x"),
    ("", {}, "names nothing"),
    (f"{ROOT}/setup.py", {}, "cannot be loaded"),
    ("coarlib.errors", {}, "defines no Task"),
    ("math:pi", {}, "is no Task"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD, ids=[b[2] for b in BAD])
def test_what_cannot_be_loaded(name, settings, message):
    with pytest.raises(TaskError) as caught:
        load(name, settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_files_hold_by_mistake(file):
    for rest, name, message in (
        ("made = Mine()", ":made", "takes no settings"),
        ("def make(**_): return 3", ":make", "returns int, not a Task"),
        ("def make(width): raise TypeError('no')", ":make", "cannot be built"),
    ):
        with pytest.raises(TaskError, match=message):
            load(file(rest) + name, {"width": 1})
    with pytest.raises(TaskError, match=r"cannot be loaded \(ZeroDivisionError"):
        load(file("1 / 0"))


def test_build_names_what_is_missing():
    with pytest.raises(SetupError, match="x has no setting b"):
        build(lambda a: a, {"a": 1, "b": 2}, "x", SetupError)


@pytest.mark.parametrize(
    "asked", ["specs/digits_test.json", "digits_test", "anywhere/digits/spec_test.json"]
)
def test_specs_travel_with_coarlib(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_file(asked).read_bytes() == (ROOT / "specs/digits_test.json").read_bytes()


def test_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_test.json").write_text("{}")
    assert shipped_file("digits_test.json").read_text() == "{}"
    assert shipped_file("nowhere.json") == Path("nowhere.json")
