"""Reading: only committed rows, foreign directories too, damage named."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from coarlib.errors import StoreError
from coarlib.store import RowWriter, Store, initialize, settle_design
from coarlib.store.spec import parse_spec


@pytest.fixture
def upstream(tmp_path):
    """A directory made as COAR's and datamodels' scripts make it."""
    path = tmp_path / "upstream"
    path.mkdir()
    for key, dtype, shape in [
        ("masks", np.bool_, (6, 4)),
        ("test_margins", np.float16, (6, 3)),
        ("_completed", np.bool_, (6,)),
    ]:
        array = np.lib.format.open_memmap(path / f"{key}.npy", mode="w+", dtype=dtype, shape=shape)
        array[2:5] = 1
        array.flush()
    return path


def test_a_folder_that_holds_a_store_names_it(store):
    with pytest.raises(StoreError, match=f"give {store.path}$"):
        Store.open(store.path.parent)


def test_only_committed_rows_are_seen_and_new_ones_are_picked_up(store, make_rows):
    rows = np.array([2, 3, 4, 9])
    arrays = make_rows(store, rows)
    assert len(store.completed_rows()) == 0
    with RowWriter(store) as writer:
        writer.write(rows, arrays)
        assert store.completed_rows().tolist() == [2, 3, 4, 9]
        writer.write(rows + 10, make_rows(store, rows + 10))
    assert store.completed_rows().tolist() == [2, 3, 4, 9, 12, 13, 14, 19]
    assert (store.array("margins")[rows] == arrays["margins"]).all()


def test_arrays_are_read_only(store):
    with pytest.raises(ValueError, match="read-only"):
        store.array("margins")[0] = 1


def test_blocks_respect_the_budget_and_cover_the_rows(store, make_rows):
    rows = np.array([0, 1, 2, 5, 6, 11, 12, 13])
    with RowWriter(store) as writer:
        writer.write(rows, make_rows(store, rows))
    row_bytes = store.spec.schema["margins"].row_bytes
    blocks = list(store.blocks(["margins"], max_bytes=3 * row_bytes))
    assert [len(block) for block, _ in blocks] == [3, 3, 2]
    assert np.concatenate([block for block, _ in blocks]).tolist() == rows.tolist()
    joined = np.concatenate([arrays["margins"] for _, arrays in blocks])
    assert (joined == make_rows(store, rows)["margins"]).all()
    assert len(list(store.blocks(["margins", "masks"], max_bytes=1))) == 8


def test_a_directory_made_by_upstream_opens_unverified(upstream):
    store = Store.open(upstream)
    assert not store.has_checksums
    assert store.num_models == 6
    assert store.completed_rows().tolist() == [2, 3, 4]
    assert store.array("test_margins").shape == (6, 3)
    with pytest.raises(StoreError, match="was not made by coarlib"):
        RowWriter(store)


def test_upstreams_arrays_must_agree_on_rows(upstream):
    np.save(upstream / "extra.npy", np.zeros((5, 2)))
    with pytest.raises(StoreError, match=r"extra\.npy has 5 rows.*6"):
        Store.open(upstream)


def test_an_unknown_key_names_the_nearest(store):
    with pytest.raises(StoreError, match="did you mean 'margins'"):
        store.array("margin")


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_what_is_not_a_store(tmp_path, what):
    path = tmp_path / "x"
    if what == "file":
        path.write_text("hello")
    if what == "empty":
        path.mkdir()
    with pytest.raises(StoreError, match="is not a"):
        Store.open(path)


def test_a_pickled_array_is_refused(upstream):
    np.save(upstream / "evil.npy", np.array([{"a": 1}] * 6, dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match=r"evil\.npy"):
        Store.open(upstream)


def test_truncated_missing_and_altered_arrays_are_named(store):
    file = store.path / "margins.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match=r"margins\.npy is truncated"):
        Store.open(store.path)
    file.write_bytes(b"not an array")
    with pytest.raises(StoreError, match=r"margins\.npy is not a \.npy array"):
        Store.open(store.path)
    np.save(file, np.zeros((24, 4), np.float16))
    with pytest.raises(StoreError, match=r"which is not what .*spec\.json describes"):
        Store.open(store.path)
    file.unlink()
    with pytest.raises(StoreError, match=r"there is no file .*margins\.npy"):
        Store.open(store.path)


def test_the_spec_says_which_arrays_hold_masks_and_outputs(tmp_path, spec_content):
    spec_content["schema"] = {
        "kept": {"dtype": "bool_", "shape": [10]},
        "other": {"dtype": "bool_", "shape": [4]},
        "margins": {"dtype": "float16", "shape": [3]},
        "classes": {"dtype": "int64", "shape": [3]},
    }
    spec_content["design"]["array"] = "kept"
    spec = parse_spec(json.dumps(spec_content))
    assert (spec.mask_key, spec.output_key) == ("kept", "margins")
    assert replace(spec, design=None).mask_key is None  # kept or other?
    initialize(tmp_path / "undecided", replace(spec, design=None))
    store = Store.open(tmp_path / "undecided")
    with pytest.raises(StoreError, match="leave open which one holds the masks"):
        store.masks_name()
    settle_design(store.path, store.spec, spec.design)
    assert (store.masks_name(), store.masks_name("other")) == ("kept", "other")
    assert (store.outputs_name(), store.outputs_name("classes")) == ("margins", "classes")
    with pytest.raises(StoreError, match="did you mean 'margins'"):
        store.outputs_name("margin")


@pytest.mark.parametrize("name", ["margins", "_checksums", "_completed", "masks"])
def test_a_pipe_in_place_of_an_array_is_refused_at_once(store, name):
    (store.path / f"{name}.npy").unlink()
    os.mkfifo(store.path / f"{name}.npy")
    with pytest.raises(StoreError, match=f"{name}.npy is not a file"):
        Store.open(store.path)
