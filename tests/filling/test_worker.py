"""Workers: rows are functions of their index, bad rows are refused, good ones are kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from coarlib.errors import NonFiniteError, RowRangeError, StoreError, TaskError
from coarlib.filling.worker import FillOptions, fill, row_range
from coarlib.setups import load
from coarlib.store import RowWriter, Store, initialize
from coarlib.store.spec import parse_spec

ZOO = Path(__file__).parents[1] / "zoo"
CPU = torch.device("cpu")


def zoo(name, **settings):
    return load(f"{ZOO / name}", settings, "unused")


def linear(**settings):
    return zoo("linear_task.py:LinearTask", **settings)


def everything(store):
    return {key: np.array(store.array(key)) for key in store.spec.schema}


@pytest.mark.parametrize("size", [1, 3, 24, 100])
def test_batch_size_and_order_never_change_a_row(store, tmp_path, size):
    fill(store, linear(), np.arange(24), CPU, FillOptions(rows_per_batch=size))
    initialize(tmp_path / "other", store.spec)
    other = Store.open(tmp_path / "other")
    for rows in (np.arange(12, 24), np.arange(5), np.arange(3, 20)):
        fill(other, linear(), rows, CPU)
    assert len(store.completed_rows()) == len(other.completed_rows()) == 24
    for key, value in everything(store).items():
        assert (value == everything(other)[key]).all()


def test_completed_rows_are_skipped_and_rerun_computes_them(store):
    assert fill(store, linear(), np.arange(10), CPU).written == 10
    report = fill(store, linear(), np.arange(24), CPU)
    assert (report.written, report.skipped) == (14, 10)
    assert fill(store, linear(), np.arange(24), CPU, FillOptions(rerun=True)).written == 24


def test_masks_follow_the_design_and_margins_the_masks(store):
    fill(store, linear(), np.arange(24), CPU)
    masks = store.array("masks")
    assert (masks == store.draw_masks(store.design, np.arange(24))).all()
    from zoo.linear_task import true_weights

    expected = (masks @ true_weights(10) + 1).astype(np.float16)
    assert (store.array("margins") == expected).all()


def test_a_flag_lost_between_checksum_and_flag_is_restored(store, make_rows):
    with RowWriter(store) as writer:
        writer.write(np.arange(24), make_rows(store, np.arange(24)))
    with open(store.path / "_completed.npy", "r+b") as file:
        file.seek(-24, 2)
        file.write(bytes(24))
    assert fill(store, linear(), np.arange(24), CPU).written == 0
    assert np.load(store.path / "_completed.npy").all()


BROKEN = [
    ("WrongShape", r"'margins' with shape \[8, 4\] for 8 rows, the schema asks for \[8, 3\]"),
    ("WrongKey", r"returned no 'margins' \(it returned masks, margin\)"),
    ("ExtraKey", r"returned 'losses', which is not in the store's schema"),
    ("WrongDtype", r"complex64, which does not fit the schema's float16"),
    ("WrongWidth", r"has 10 features a row but the task has 11 components"),
]


@pytest.mark.parametrize(("name", "message"), BROKEN, ids=[name for name, _ in BROKEN])
def test_a_task_that_breaks_the_contract_changes_nothing(store, name, message):
    with pytest.raises(TaskError, match=message):
        fill(store, zoo(f"broken_tasks.py:{name}"), np.arange(24), CPU)
    assert len(store.completed_rows()) == 0


def test_rows_with_nan_inf_and_overflow_are_refused_and_the_others_kept(store):
    task = zoo("broken_tasks.py:SometimesBad")
    with pytest.raises(NonFiniteError) as caught:
        fill(store, task, np.arange(24), CPU)
    for words in ("row 5", "nan at target 1", "row 6", "-inf", "row 7", "overflows float16"):
        assert words in str(caught.value)
    assert set(range(24)) - set(store.completed_rows()) == {5, 6, 7}
    report = fill(store, task, np.arange(24), CPU, FillOptions(allow_nonfinite=True))
    assert (report.written, report.nonfinite_recorded) == (3, 3)
    assert np.isinf(store.array("margins")[7, 1])


def test_a_task_that_is_always_bad_stops_after_one_batch(store):
    task = zoo("broken_tasks.py:AlwaysBad")
    with pytest.raises(NonFiniteError, match="8 rows were refused and 0 written"):
        fill(store, task, np.arange(24), CPU)
    assert type(task).calls == 1


def test_a_spec_without_design(tmp_path, spec_content):
    del spec_content["design"]
    initialize(tmp_path / "s", parse_spec(json.dumps(spec_content)))
    store = Store.open(tmp_path / "s")
    with pytest.raises(TaskError, match=r"nothing says how masks"):
        fill(store, linear(), np.arange(24), CPU)
    assert fill(store, zoo("broken_tasks.py:OwnMasks"), np.arange(8), CPU).written == 8
    assert fill(store, zoo("datamodels_style.py"), np.arange(8, 24), CPU).written == 16
    margins = np.array(store.array("margins")[8:])
    assert (np.floor(margins[:, 0]) - margins[:, 0] == 0).all()


def test_each_batch_leaves_a_line_that_says_where_rows_came_from(store):
    fill(store, linear(), np.arange(6), CPU)
    (file,) = (store.path / "workers").glob("*.jsonl")
    head, *batches, end = [json.loads(line) for line in file.read_text().splitlines()]
    assert head["task"]["task"] == "linear_task:LinearTask"
    assert head["task"]["identity"] == "linear-11"
    assert {"python", "coarlib", "numpy", "torch"} <= set(head["versions"])
    assert [batch["rows"] for batch in batches] == [[[0, 4]], [[4, 6]]]
    assert set(end) == {"ended", "digest"}


@pytest.mark.parametrize("bounds", [(0, 25), (-1, 3), (24, 25), (5, 5), (6, 5)])
def test_row_ranges_outside_the_store(bounds):
    with pytest.raises(RowRangeError, match="rows 0 to 23"):
        row_range(*bounds, num_models=24)


def test_rows_of_another_program_are_not_computed_over_unless_told(store):
    mapped = {
        key: np.lib.format.open_memmap(store.path / f"{key}.npy", "r+")
        for key in ("masks", "margins", "_completed")
    }
    mapped["masks"][3] = store.draw_masks(store.design, np.array([3]))
    mapped["margins"][3], mapped["_completed"][3] = 5.0, True
    del mapped
    with pytest.raises(StoreError, match=r"1 rows .* by another program \(the first is 3\)"):
        fill(store, linear(), np.arange(6), CPU)
    with pytest.raises(StoreError, match=r"or drop them there$"):  # who calls it has no rerun
        fill(store, linear(), np.arange(6), CPU, FillOptions(ways_round=()))
    assert fill(store, linear(), np.arange(6), CPU, FillOptions(rerun=True)).written == 6
