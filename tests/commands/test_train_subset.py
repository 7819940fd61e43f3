"""One row by its index: the same as in a range, and refusals."""

import json

import numpy as np
import pytest

from coarlib.commands.judge.train_subset import main
from coarlib.commands.store.make_dataset import main as make_dataset
from coarlib.errors import ArgumentError, RowRangeError
from coarlib.store import Store, initialize
from coarlib.store.spec import parse_spec

TASK = """
import numpy as np
from torch import nn, randn, Generator
from coarlib.retraining import RetrainTask, Trainer

X = randn(20, 3, generator=Generator().manual_seed(0))

class Tiny(RetrainTask):
    def __init__(self):
        trainer = Trainer(lambda: nn.Linear(3, 2), X[:16], (X[:16].sum(1) > 0).long(), 1, 4)
        super().__init__(trainer, lambda model, device: model(X[16:])[:, 0], at_once=1)
"""


@pytest.fixture
def case(tmp_path):
    (tmp_path / "tiny.py").write_text(TASK)
    spec = {
        "num_models": 5,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [16]},
            "test_margins": {"dtype": "float32", "shape": [4]},
        },
        "design": {"kind": "fixed_size", "size": 8, "seed": 0},
    }

    def make(name):
        initialize(tmp_path / name, parse_spec(json.dumps(spec)))
        config = {"expt": {"base_dir": str(tmp_path / name), "task": f"{tmp_path}/tiny.py:Tiny"}}
        config["expt"] |= {"device": "cpu"}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        return str(tmp_path / f"{name}.json"), Store.open(tmp_path / name)

    return make


def test_rows_by_index_equal_the_range(case):
    config, by_index = case("one")
    for number in ("3", "0", "4", "3"):
        main(["--config", config, "--idx", number])
    assert by_index.completed_rows().tolist() == [0, 3, 4]
    main(["--idx=1", "--config", config])
    main(["--idx", "2", "--config", config])
    config, by_range = case("range")
    make_dataset(["--config", config])
    for key in ("masks", "test_margins"):
        np.testing.assert_array_equal(by_index.array(key), by_range.array(key))


def test_indices_that_are_none_are_refused(case):
    config, store = case("one")
    with pytest.raises(ArgumentError, match="--idx is required"):
        main(["--config", config])
    with pytest.raises(ArgumentError, match="whole number of at least 0, not '-1'"):
        main(["--config", config, "--idx", "-1"])
    with pytest.raises(RowRangeError, match="lies outside the store"):
        main(["--config", config, "--idx", "5"])
    assert not len(store.completed_rows())
