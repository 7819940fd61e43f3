"""Rows that COAR's and datamodels' own writers made are kept, once they prove to be whole."""

import json
from dataclasses import replace

import numpy as np
import pytest

from coarlib.commands.store import verify as verify_command
from coarlib.errors import StoreError
from coarlib.store import RowWriter, Store, initialize
from coarlib.store.adopt import adopt
from coarlib.store.spec import parse_spec
from coarlib.store.verify import verify


def upstream_write(path, row, **arrays):
    """Write one row as both upstreams do: maps opened r+, the flag last."""
    for key, value in {**arrays, "_completed": True}.items():
        mapped = np.lib.format.open_memmap(path / f"{key}.npy", mode="r+")
        mapped[row] = value
        mapped.flush()


def rows_of(store, rows):
    """Rows with the masks of the store's design, and margins that tell them apart."""
    masks = store.draw_masks(store.design, rows)
    return {"masks": masks, "margins": (masks[:, :3] + rows[:, None] + 1).astype(np.float16)}


def test_rows_of_their_writers_in_our_store_are_adopted_or_refused_by_name(store, capsys):
    ours, theirs = np.arange(4), np.arange(4, 20)
    with RowWriter(store) as writer:
        writer.write(ours, rows_of(store, ours))
    arrays = rows_of(store, theirs)
    for position, row in enumerate(theirs):
        upstream_write(store.path, row, **{key: value[position] for key, value in arrays.items()})
    upstream_write(store.path, 20, masks=arrays["masks"][0], margins=1)  # another row's mask
    upstream_write(store.path, 21, masks=store.draw_masks(store.design, np.array([21]))[0])
    bad = rows_of(store, np.array([22]))
    upstream_write(store.path, 22, masks=bad["masks"][0], margins=np.array([1, np.nan, 1]))

    report = verify(store)
    assert report.unfounded == list(range(4, 23)) and report.adoptable == theirs.tolist()
    kept = {key: np.array(store.array(key)[:20]) for key in arrays}
    assert not verify(store, repair=True).repaired  # what can be adopted is left for that
    assert verify(store).unfounded == theirs.tolist()
    for row in (20, 21, 22):  # as before the repair
        np.lib.format.open_memmap(store.path / "_completed.npy", mode="r+")[row] = True

    with pytest.raises(SystemExit):
        verify_command.main([str(store.path), "--adopt"])
    shown = capsys.readouterr().out
    assert "16 rows of another program adopted" in shown
    assert "row 20 is not: masks is not what the store's design draws" in shown
    assert "row 21 is not: margins is all zero, as never written" in shown
    assert "row 22 is not: margins holds NaN or inf" in shown
    assert store.completed_rows().tolist() == list(range(20))
    assert verify(store, repair=True).repaired and verify(store).sound
    for key, value in kept.items():
        np.testing.assert_array_equal(store.array(key)[:20], value)


def test_only_when_told_are_such_rows_dropped(store):
    row = rows_of(store, np.array([3]))
    upstream_write(store.path, 3, **{key: value[0] for key, value in row.items()})
    assert verify(store, repair=True, drop_adoptable=True).repaired
    assert not store.flags().any()
    assert not adopt(store.path).good


def test_a_directory_of_theirs_becomes_a_store(tmp_path):
    path, rng = tmp_path / "coar", np.random.default_rng(0)
    path.mkdir()
    masks, margins = rng.random((30, 8)) < 0.9, rng.normal(size=(30, 5)).astype(np.float32)
    np.save(path / "masks.npy", np.zeros((30, 8), bool))
    np.save(path / "val_margins.npy", np.zeros((30, 5), np.float32))
    np.save(path / "_completed.npy", np.zeros(30, bool))
    for row in range(25):
        upstream_write(path, row, masks=masks[row], val_margins=margins[row])
    assert not Store.open(path).has_checksums
    found = adopt(path)
    assert sorted(found.good) == list(range(25)) and not found.refused
    store = Store.open(path)
    assert store.has_checksums and store.completed_rows().tolist() == list(range(25))
    assert verify(store).checked == 25 and verify(store).sound
    assert (store.mask_key, store.spec.output_key) == ("masks", "val_margins")
    with RowWriter(store) as writer:
        rows = np.arange(25, 30)
        writer.write(rows, {"masks": masks[rows], "val_margins": margins[rows]})
    np.testing.assert_array_equal(store.array("val_margins"), margins)
    assert not adopt(path).good  # again: nothing is left


def test_an_adoption_that_was_cut_is_finished(tmp_path, monkeypatch):
    path = tmp_path / "coar"
    path.mkdir()
    np.save(path / "margins.npy", np.arange(1, 7.0).reshape(6, 1))
    np.save(path / "_completed.npy", np.ones(6, bool))

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("coarlib.store.adopt.create_array", fail)
        with pytest.raises(StoreError, match="No space left"):
            adopt(path)
    assert sorted(adopt(path).good) == list(range(6))
    assert {file.name for file in path.iterdir()} == {
        *("margins.npy", "_completed.npy", "_checksums.npy", "spec.json"),
    }


def test_a_lost_spec_is_damage_and_no_lower_standard(store, tmp_path, make_rows):
    rows = np.arange(24)
    with RowWriter(store) as writer:
        writer.write(rows, make_rows(store, rows))
    spec = (store.path / "spec.json").read_bytes()
    (store.path / "spec.json").unlink()
    for use in (Store.open, adopt, lambda path: initialize(path, store.spec)):
        with pytest.raises(StoreError, match=r"spec\.json"):
            use(store.path)
    (store.path / "spec.json").write_bytes(spec.replace(b'"seed": 1', b'"seed": 3'))
    with pytest.raises(StoreError, match="does not match its digest"):
        Store.open(store.path)


def test_another_seed_shows_when_masks_are_drawn_again(tmp_path, spec_content):
    spec = parse_spec(json.dumps(spec_content))
    initialize(tmp_path / "s", spec)
    store = Store.open(tmp_path / "s")
    rows = np.arange(24)
    with RowWriter(store) as writer:
        writer.write(rows, rows_of(store, rows))
    assert verify(store).sound
    other = replace(store, spec=replace(spec, design=replace(spec.design, seed=2)))
    report = verify(other)
    assert len(report.other_masks) > 15 and not report.sound
    assert not verify(other, repair=True).torn
    assert len(store.completed_rows()) == 24  # nothing is withdrawn for that
