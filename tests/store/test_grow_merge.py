"""Growing in place and joining stores filled apart."""

import json
import multiprocessing
import threading
from dataclasses import replace

import numpy as np
import pytest

from coarlib.errors import SpecError, StoreError, TornRowError
from coarlib.store import RowWriter, Store, initialize
from coarlib.store.grow import _only_one, at_least, grow
from coarlib.store.layout import ArrayFile, array_path
from coarlib.store.merge import merge
from coarlib.store.spec import parse_spec
from coarlib.store.verify import verify


def write(store, rows, make_rows):
    with RowWriter(store) as writer:
        for row in rows:
            writer.write(np.array([row]), make_rows(store, np.array([row])))


def assert_rows(store, rows, make_rows):
    assert store.completed_rows().tolist() == list(rows)
    assert verify(store).sound
    for key, value in make_rows(store, np.array(rows)).items():
        assert (store.array(key)[list(rows)] == value).all()


def test_growing_keeps_rows_and_adds_empty_ones(store, make_rows):
    write(store, range(24), make_rows)
    larger = grow(store, 10**6)
    assert larger.num_models == 10**6
    assert_rows(larger, range(24), make_rows)
    for key in store.spec.schema:
        array = np.load(store.path / f"{key}.npy", mmap_mode="r")
        assert len(array) == 10**6
        assert not array[24:1000].any()
    write(larger, [999_999], make_rows)
    assert grow(larger, 10**6).num_models == 10**6


def test_growing_can_be_interrupted_anywhere(store, make_rows, monkeypatch):
    import coarlib.store.grow as module

    write(store, range(24), make_rows)
    real, steps = module.os.pwrite, []

    for fails_at in range(8):

        def fail(*arguments, at=fails_at):
            steps.append(at)
            if len(steps) > at:
                raise OSError(5, "Input/output error")
            return real(*arguments)

        steps.clear()
        monkeypatch.setattr(module.os, "pwrite", fail)
        with pytest.raises(StoreError, match="nothing is lost"):
            grow(store, 40 + fails_at)
        monkeypatch.setattr(module.os, "pwrite", real)
        assert_rows(Store.open(store.path), range(24), make_rows)
        grown = grow(store, 40 + fails_at)
        assert grown.num_models == 40 + fails_at
        assert_rows(grown, range(24), make_rows)


def _write_slowly(path, first, make_rows, started):
    store = Store.open(path)
    with RowWriter(store) as writer:
        for row in range(first, 24, 2):
            writer.write(np.array([row]), make_rows(store, np.array([row])))
            started.set()


def test_growing_while_two_workers_write_loses_nothing(store, make_rows):
    context = multiprocessing.get_context("fork")
    started = [context.Event() for _ in range(2)]
    workers = [
        context.Process(target=_write_slowly, args=(store.path, first, make_rows, started[first]))
        for first in range(2)
    ]
    for worker in workers:
        worker.start()
    started[0].wait(20)
    for size in (30, 300, 3000):
        grow(store, size)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert_rows(Store.open(store.path), range(24), make_rows)
    assert Store.open(store.path).num_models == 3000


def test_what_cannot_be_grown(store, tmp_path, spec_content):
    with pytest.raises(StoreError, match="would lose some"):
        grow(store, 23)
    spec_content.update(num_models=11, design={"kind": "leave_one_out"})
    initialize(tmp_path / "loo", parse_spec(json.dumps(spec_content)))
    with pytest.raises(SpecError, match="at most 11 rows"):
        grow(Store.open(tmp_path / "loo"), 12)
    assert Store.open(tmp_path / "loo").num_models == 11


def test_only_one_grows_at_a_time(store):
    errors = []

    def other():
        try:
            grow(store, 99)
        except StoreError as error:
            errors.append(str(error))

    with _only_one(store.path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another process is growing" in errors[0]


def test_workers_that_share_wait_for_one_that_grows(store):
    sizes = []

    def other():
        sizes.append(at_least(store, 99).num_models)

    with _only_one(store.path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not sizes
    thread.join()
    assert sizes == [99] == [at_least(store, 30).num_models]


@pytest.fixture
def parts(store, tmp_path, make_rows):
    """Two stores of one spec, the second larger; rows 4..7 in both."""
    initialize(tmp_path / "b", replace(store.spec, num_models=30))
    other = Store.open(tmp_path / "b")
    write(store, range(8), make_rows)
    write(other, range(4, 30), make_rows)
    return store, other


def test_merging_joins_rows_and_is_resumable(parts, tmp_path, make_rows):
    report = merge(tmp_path / "out", parts)
    assert (report.copied, report.present) == (30, 4)
    assert_rows(Store.open(tmp_path / "out"), range(30), make_rows)
    again = merge(tmp_path / "out", parts)
    assert (again.copied, again.present) == (0, 34)


def test_rows_that_differ_are_refused_before_anything_is_copied(parts, tmp_path, make_rows):
    changed = {key: value[::-1].copy() for key, value in make_rows(parts[1], np.arange(2)).items()}
    with RowWriter(parts[1]) as writer:
        writer.write(np.array([5, 6]), changed)
    with pytest.raises(StoreError, match="row 5 differs between"):
        merge(tmp_path / "out", parts)
    assert not (tmp_path / "out").exists()


def test_torn_rows_are_not_copied(parts, tmp_path):
    file = ArrayFile.read(array_path(parts[1].path, "margins"))
    with open(file.path, "r+b") as stream:
        stream.seek(file.offset + 20 * file.row_bytes)
        stream.write(b"\x77")
    with pytest.raises(TornRowError, match=r"row 20 of .*verify and repair it"):
        merge(tmp_path / "out", parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["schema"]["margins"].update(shape=[4]), r"schema\.margins\.shape"),
        (lambda c: c["design"].update(seed=2), "draw their masks differently"),
        (lambda c: c["design"].update(keep_prob=0.5), "draw their masks differently"),
    ],
)
def test_stores_that_do_not_fit(store, tmp_path, spec_content, change, message):
    change(spec_content)
    initialize(tmp_path / "other", parse_spec(json.dumps(spec_content)))
    with pytest.raises(StoreError, match=message):
        merge(tmp_path / "out", [store, Store.open(tmp_path / "other")])
    assert not (tmp_path / "out").exists()


def test_a_store_made_by_upstream_can_be_merged_in(store, tmp_path, make_rows):
    path = tmp_path / "upstream"
    path.mkdir()
    arrays = make_rows(store, np.arange(24))
    for key, value in {**arrays, "_completed": np.arange(24) % 2 == 0}.items():
        np.save(path / f"{key}.npy", value)
    report = merge(tmp_path / "out", [store, Store.open(path)])
    assert report.unverified == (str(path),)
    assert_rows(Store.open(tmp_path / "out"), range(0, 24, 2), make_rows)


def test_the_commands(parts, tmp_path, command):
    merged = command("estimate", "merge", tmp_path / "out", *[part.path for part in parts])
    assert merged.returncode == 0, merged.stderr
    assert "30 of 30 rows completed" in merged.stdout
    grown = command("estimate", "grow", tmp_path / "out", "--num_models", 31)
    assert "has 31 rows (before: 30)" in grown.stdout
    assert command("estimate", "grow", tmp_path / "out", "--num_models", 3).returncode == 2
    assert command("estimate", "merge", tmp_path / "out").returncode == 2


def test_labels_of_a_design_go_with_a_merge_and_must_agree(tmp_path, spec_content, make_rows):
    spec_content["design"] = {"kind": "class_balanced", "per_class": 2, "seed": 1}
    spec = parse_spec(json.dumps(spec_content))
    labels = np.arange(10) % 3
    for name, mine in (("a", labels), ("b", labels), ("c", labels[::-1])):
        initialize(tmp_path / name, spec, labels=mine)
    stores = [Store.open(tmp_path / name) for name in "abc"]
    write(stores[0], [0, 1], make_rows)
    write(stores[1], [2], make_rows)
    merge(tmp_path / "joined", stores[:2])
    joined = Store.open(tmp_path / "joined")
    assert_rows(joined, range(3), make_rows)
    assert (
        joined.draw_masks(joined.design, np.arange(24))
        == stores[0].draw_masks(stores[0].design, np.arange(24))
    ).all()
    with pytest.raises(StoreError, match="draw masks by differ"):
        merge(tmp_path / "joined", [stores[2]])
