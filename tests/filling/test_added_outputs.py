"""Another output of rows that are there: measured from checkpoints, tied to its rows, resumable."""

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.errors import StoreError, TaskError
from coarlib.filling.added_outputs import add_output
from coarlib.filling.worker import FillOptions, fill
from coarlib.masks import MaskDesign
from coarlib.outputs import cross_entropy
from coarlib.regression.rows import open_rows
from coarlib.retraining import ReevaluateTask, RetrainTask, Trainer
from coarlib.store import Store, initialize
from coarlib.store.added import added_path, store_of_output
from coarlib.store.grow import grow
from coarlib.store.merge import merge
from coarlib.store.spec import ArraySpec, StoreSpec
from coarlib.store.verify import verify

EXAMPLES, TARGETS, ROWS = 30, 7, 6
GENERATOR = torch.Generator().manual_seed(1)
INPUTS = torch.randn(EXAMPLES + TARGETS, 5, generator=GENERATOR)
LABELS = torch.randint(0, 3, (EXAMPLES + TARGETS,), generator=GENERATOR)
CPU, QUIET = torch.device("cpu"), FillOptions(quiet=True)


def model():
    return nn.Linear(5, 3)


def logit_of_class_0(network, device):
    return network(INPUTS[EXAMPLES:])[:, 0]


def losses(network, device):
    return cross_entropy(network(INPUTS[EXAMPLES:]), LABELS[EXAMPLES:])


@pytest.fixture
def trained(tmp_path):
    """A store of retrained models with checkpoints, and what the losses of each row are."""
    schema = {
        "masks": ArraySpec(np.dtype(bool), (EXAMPLES,)),
        "test_margins": ArraySpec(np.dtype("f4"), (TARGETS,)),
    }
    design = MaskDesign(kind="fixed_size", size=15, seed=4)
    initialize(tmp_path / "store", StoreSpec(ROWS, schema, design))
    store = Store.open(tmp_path / "store")
    trainer = Trainer(model, INPUTS[:EXAMPLES], LABELS[:EXAMPLES], epochs=1, batch_size=5)

    def task(evaluate=logit_of_class_0):
        kept = tmp_path / "checkpoints"
        return RetrainTask(trainer, evaluate, seed=3, checkpoints=kept, at_once=1)

    fill(store, task(), np.arange(ROWS), CPU, QUIET)
    indices = np.arange(ROWS)
    expected = task(losses).rows(indices, store.array("masks"))["test_margins"]
    return store, expected.astype("f4"), task


def reevaluate(folder, **changed):
    options = {"output": "losses", "seed": 3, **changed}
    return ReevaluateTask(model, losses, EXAMPLES, folder / "checkpoints", **options)


def test_it_equals_what_retraining_measures_and_leaves_the_store_alone(tmp_path, trained):
    store, expected, _ = trained
    before = {file.name: file.read_bytes() for file in store.path.glob("*.*")}
    task = reevaluate(tmp_path)
    assert add_output(store, "losses", task, np.array([1, 3]), CPU, options=QUIET).written == 2
    report = add_output(store, "losses", task, np.arange(ROWS), CPU, options=QUIET)
    assert (report.written, report.skipped) == (ROWS - 2, 2)
    held = store_of_output(store, "losses")
    np.testing.assert_array_equal(held.array("losses"), expected)
    np.testing.assert_array_equal(held.array("masks"), store.array("masks"))
    assert verify(held).sound
    assert verify(store).sound
    assert {file.name: file.read_bytes() for file in store.path.glob("*.*")} == before
    rows = open_rows(store.path, output_key="losses")
    np.testing.assert_array_equal(rows.read(np.arange(ROWS))[1], expected)


def test_a_missing_or_foreign_checkpoint_is_an_error_and_nothing_is_written(tmp_path, trained):
    store, _, _ = trained
    with pytest.raises(TaskError, match="stale: its seed"):
        add_output(
            store, "losses", reevaluate(tmp_path, seed=4), np.arange(ROWS), CPU, options=QUIET
        )
    assert not added_path(store, "losses").exists()
    (tmp_path / "checkpoints" / "row_000002_run_0.safetensors").unlink()
    with pytest.raises(TaskError, match="there is no checkpoint"):
        add_output(store, "losses", reevaluate(tmp_path), np.arange(ROWS), CPU, options=QUIET)
    assert store_of_output(store, "losses").completed_rows().tolist() == [0, 1]


def test_a_row_that_is_written_anew_makes_its_output_stale(tmp_path, trained):
    store, _, retrain = trained
    add_output(store, "losses", reevaluate(tmp_path), np.arange(ROWS), CPU, options=QUIET)
    rerun = FillOptions(quiet=True, rerun=True, allow_other_task=True)
    fill(store, retrain(losses), np.array([4]), CPU, rerun)  # other outputs in row 4
    with pytest.raises(StoreError, match=r"losses of 1 rows .* is stale"):
        store_of_output(store, "losses")
    with pytest.raises(StoreError, match=r"the first is 4\); rerun"):
        add_output(store, "losses", reevaluate(tmp_path), np.arange(ROWS), CPU, options=QUIET)
    add_output(store, "losses", reevaluate(tmp_path), np.array([4]), CPU, options=rerun)
    assert len(store_of_output(store, "losses").completed_rows()) == ROWS


def test_only_the_same_measurement_goes_on_and_nothing_trains(tmp_path, trained):
    store, _, retrain = trained
    rows = np.arange(ROWS)

    def made_by(**settings):
        return FillOptions(quiet=True, origin={"task": "mine:Losses", "settings": settings})

    task = reevaluate(tmp_path)
    add_output(store, "losses", task, rows[:2], CPU, options=made_by(size=1, checkpoints="a"))
    with pytest.raises(StoreError, match="holds another output of that name"):
        add_output(store, "losses", task, rows, CPU, options=made_by(size=2))
    add_output(store, "losses", task, rows, CPU, options=made_by(size=1, checkpoints="moved"))
    with pytest.raises(TaskError, match="trains models"):
        add_output(store, "more", retrain(), rows, CPU, options=QUIET)
    with pytest.raises(StoreError, match="has an array test_margins already"):
        again = reevaluate(tmp_path, output="test_margins")
        add_output(store, "test_margins", again, rows, CPU, options=QUIET)
    with pytest.raises(TaskError, match="returns losses, not other"):
        add_output(store, "other", task, rows, CPU, options=QUIET)


def test_rows_that_are_not_there_are_left_out_and_growth_goes_on(tmp_path, trained):
    store, _, retrain = trained
    larger = grow(store, ROWS + 3)
    fill(larger, retrain(), np.array([ROWS]), CPU, QUIET)
    with pytest.raises(StoreError, match="none of the rows"):
        add_output(larger, "losses", reevaluate(tmp_path), np.array([ROWS + 1]), CPU, options=QUIET)
    add_output(store, "losses", reevaluate(tmp_path), np.arange(ROWS), CPU, options=QUIET)
    found = add_output(
        larger, "losses", reevaluate(tmp_path), np.arange(ROWS + 3), CPU, options=QUIET
    )
    assert (found.written, found.skipped) == (1, ROWS)


def test_added_outputs_go_with_a_merge(tmp_path, trained):
    store, expected, _ = trained
    add_output(store, "losses", reevaluate(tmp_path), np.arange(ROWS), CPU, options=QUIET)
    report = merge(tmp_path / "joined", [store])
    assert (report.copied, report.copied_added) == (ROWS, ROWS)
    joined = Store.open(tmp_path / "joined")
    np.testing.assert_array_equal(store_of_output(joined, "losses").array("losses"), expected)
