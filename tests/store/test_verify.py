"""verify finds every flipped bit in a completed row, and repairs by having rows filled again."""

import numpy as np
import pytest

from coarlib.errors import RowRangeError, StoreError
from coarlib.store import RowWriter, Store
from coarlib.store.layout import ArrayFile, array_path
from coarlib.store.verify import verify


@pytest.fixture
def filled(store, make_rows):
    """A store with rows 0..19 of 24 completed."""
    with RowWriter(store) as writer:
        writer.write(np.arange(20), make_rows(store, np.arange(20)))
    return store


def flip(path, byte, bit):
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ (1 << bit)]))


def test_a_sound_store_is_sound(filled):
    report = verify(filled)
    assert report.sound
    assert report.checked == 20
    assert report.bytes == 20 * filled.spec.row_bytes


def test_each_of_1000_random_bit_flips_is_found(filled, monkeypatch):
    monkeypatch.setattr("coarlib.store.verify.SECONDS_BEFORE_SECOND_LOOK", 0)
    rng = np.random.default_rng(5)
    keys = [*filled.spec.schema, "_checksums", "_completed"]
    for _ in range(1000):
        key = keys[rng.integers(len(keys))]
        file = ArrayFile.read(array_path(filled.path, key))
        row = int(rng.integers(20))
        byte = file.offset + row * file.row_bytes + int(rng.integers(file.row_bytes))
        bit = int(rng.integers(8))
        flip(file.path, byte, bit)
        report = verify(filled, threads=1)
        found = report.unflagged if key == "_completed" else report.torn
        assert found == [row], (key, row, byte, bit)
        flip(file.path, byte, bit)
    assert verify(filled).sound


def test_repair_withdraws_exactly_the_torn_rows(filled):
    file = ArrayFile.read(array_path(filled.path, "margins"))
    for row in (3, 4, 17):
        flip(file.path, file.offset + row * file.row_bytes, 2)
    flags = ArrayFile.read(array_path(filled.path, "_completed"))
    flip(flags.path, flags.offset + 9, 0)  # committed, flag lost
    flip(flags.path, flags.offset + 22, 0)  # flag without checksum
    report = verify(filled, repair=True)
    assert report.torn == [3, 4, 17]
    assert report.unflagged == [9]
    assert report.unfounded == [22]
    assert verify(filled).sound
    assert set(range(20)) - set(filled.completed_rows()) == {3, 4, 17}
    assert np.load(flags.path).nonzero()[0].tolist() == filled.completed_rows().tolist()


def test_a_row_range(filled):
    file = ArrayFile.read(array_path(filled.path, "masks"))
    flip(file.path, file.offset + 10 * file.row_bytes, 0)
    assert verify(filled, (0, 10)).sound
    assert verify(filled, (10, 24)).torn == [10]
    with pytest.raises(RowRangeError, match="0:24"):
        verify(filled, (0, 25))


def test_many_rows_on_several_threads_and_with_gaps(tmp_path, make_rows):
    from coarlib.store import initialize
    from coarlib.store.spec import parse_spec

    text = '{"num_models": 3000, "schema": {"x": {"dtype": "float32", "shape": [300]}}}'
    initialize(tmp_path / "s", parse_spec(text))
    store = Store.open(tmp_path / "s")
    rows = np.flatnonzero(np.random.default_rng(0).random(3000) < 0.7)
    with RowWriter(store) as writer:
        writer.write(rows, make_rows(store, rows))
    file = ArrayFile.read(array_path(store.path, "x"))
    altered = rows[[0, 700, 1500, len(rows) - 1]]
    for row in altered:
        flip(file.path, file.offset + int(row) * file.row_bytes + 77, 5)
    for threads in (1, 2, 5):
        assert verify(store, threads=threads).torn == altered.tolist()


def test_a_store_without_checksums_is_unverified(tmp_path):
    for key in ("_completed", "x"):
        np.save(tmp_path / f"{key}.npy", np.zeros(3, bool))
    with pytest.raises(StoreError, match="unverified"):
        verify(Store.open(tmp_path))


def test_the_command(filled, command):
    assert command("coarlib.commands.store.verify", filled.path).returncode == 0
    file = ArrayFile.read(array_path(filled.path, "margins"))
    flip(file.path, file.offset + 5 * file.row_bytes, 1)
    torn = command("estimate", "verify", filled.path)
    assert torn.returncode == 1
    assert "1 rows do not match their checksum: 5" in torn.stdout
    assert command("estimate", "verify", filled.path, "--rows", "0:5").returncode == 0
    repaired = command("estimate", "verify", "--repair", filled.path)
    assert repaired.returncode == 0
    assert "repaired" in repaired.stdout
    bad = command("estimate", "verify", filled.path, "--rows", "5:99")
    assert bad.returncode == 2
    assert "--rows must be A:B within 0:24, not '5:99'" in bad.stderr
