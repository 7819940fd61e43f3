"""Modules on datamodels' published pattern parse fastargs inside ``main``; they run as they are."""

import json
import sys

import numpy as np
import pytest
from fastargs import get_current_config
from paths import ROOT

from coarlib.commands.__main__ import main as coar
from coarlib.store import Store

PUBLISHED = ROOT / "tests" / "zoo" / "datamodels_published.py"
SPEC = {
    "num_models": 4,
    "schema": {
        "masks": {"dtype": "bool_", "shape": [10]},
        "margins": {"dtype": "float32", "shape": [3]},
    },
}


@pytest.fixture
def store(tmp_path):
    get_current_config().content.clear()  # fastargs keeps what an earlier run was given
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    coar(["initialize_store", str(tmp_path / "s"), "--spec", str(tmp_path / "spec.json")])
    return tmp_path / "s"


def refused(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        coar([str(word) for word in words])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_unknown_sections_are_the_modules_own(store, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["coar", "make_dataset", "ours"])
    words = ["make_dataset", store, "--task", PUBLISHED, "--training.epochs", 7, "--training.lr=2"]
    coar([str(w) for w in [*words, "--training.lr_tta", "--data.train_dataset", "mine.beton"]])
    assert sys.argv == ["coar", "make_dataset", "ours"]
    found = Store.open(store)
    masks = np.stack([np.random.default_rng(i).random(10) > 0.5 for i in range(4)])
    np.testing.assert_array_equal(found.array("masks"), masks)
    np.testing.assert_array_equal(found.array("margins"), masks[:, :3] * 2 + 107)


def test_a_module_that_refuses_its_arguments_is_one_sentence_of_ours(store, capsys):
    given = "--data.train_dataset", "mine.beton"
    error = refused(capsys, "make_dataset", store, "--task", PUBLISHED, *given)
    assert error.splitlines()[-1].startswith("error: the task's own code ended the program")
    assert not Store.open(store).completed_rows().size
    wrong = "--training.epochs", "many", *given
    assert "ended the program" in refused(
        capsys, "make_dataset", store, "--task", PUBLISHED, *wrong
    )


def test_what_nobody_reads_is_unknown(store, capsys):
    error = refused(capsys, "make_dataset", store, "--task", PUBLISHED, "--expt.base_dri", store)
    assert "unknown argument --expt.base_dri" in error
    assert "unknown argument --epochs" in refused(capsys, "make_dataset", store, "--epochs", 3)
    error = refused(capsys, "make_dataset", store, "--task", "digits", "--training.epochs", 3)
    assert "digits parses no arguments of its own, so --training.epochs is unknown" in error
    assert "unknown argument --training.lr" in refused(capsys, "status", store, "--training.lr", 1)
