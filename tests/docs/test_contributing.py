"""The recipes of CONTRIBUTING.md word by word: files written, calls made, commands run."""

import importlib
import shlex
import sys

import pytest
from paths import ROOT
from test_docs_run import SHELLS, blocks

import coarlib.ablation.ways as ways
import coarlib.regression.solvers as solvers
import coarlib.scoring as scoring
from coarlib.ablation.ways import ABLATIONS
from coarlib.commands.__main__ import main
from coarlib.regression import SOLVERS, Attributions
from coarlib.scoring.metrics import METRICS
from coarlib.store import Store

PAGE = ROOT / "CONTRIBUTING.md"
RECIPES = ("A way of ablating", "A solver", "A metric", "A set-up", "A store array")
MADE = ("make ", "pip ")  # what a contributor does with the checkout, not a recipe


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty folder whose files are part of coarlib, and registries that forget afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    for package in (ways, solvers, scoring):
        place = tmp_path.joinpath(*package.__name__.split("."))
        place.mkdir(parents=True)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(place)])
    registries = (ABLATIONS, SOLVERS, METRICS)
    for registry in registries:
        for name in registry:
            monkeypatch.setitem(registry, name, registry[name])
    before = [set(known) for known in (sys.modules, *registries)]
    yield tmp_path
    for known, old in zip((sys.modules, *registries), before, strict=True):
        for name in set(known) - old:
            if known is not sys.modules or name in ("losses", "task") or "recipe" in name:
                del known[name]


def follow(checkout, title, body):
    """Write a new file; append to one that exists by running the lines in its module."""
    if not (ROOT / title).exists():
        (checkout / title).parent.mkdir(parents=True, exist_ok=True)
        (checkout / title).write_text(body, encoding="utf-8")
        return
    name = title.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    exec(compile(body, title, "exec"), vars(importlib.import_module(name)))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_recipe_works_as_written(checkout, capsys):
    for language, title, body, reason, _ in blocks(PAGE):
        assert reason is None
        if title:
            follow(checkout, title, body)
        elif language in SHELLS and not body.startswith(MADE):
            for line in body.splitlines():
                program, *words = shlex.split(line)
                assert program == "coar"
                main(words)
    assert "flip_weights" in ABLATIONS and "marginal" in SOLVERS
    assert "same_side: 0." in capsys.readouterr().out
    store = Store.open("out/flipped")
    assert len(store.completed_rows()) == 40
    for found in ("out/marginal", "out/losses"):
        assert Attributions.load(found).weight.shape == (240, 450)
    assert Attributions.load("out/marginal").summary["solver"] == "marginal"


def test_there_is_a_recipe_for_each():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"\n## {recipe}\n" in text for recipe in RECIPES)
