"""Durable row writes: the order of writes, and what a failure leaves behind."""

import errno
import itertools
import os

import numpy as np
import pytest

from coarlib.errors import StoreError
from coarlib.store import RowWriter, Store
from coarlib.store.checksum import row_checksums
from coarlib.store.layout import contiguous_runs


def is_sound(path):
    """Whether every row that a reader accepts has the bytes its checksum promises."""
    store = Store.open(path)
    rows = store.completed_rows()
    arrays = {key: np.asarray(store.array(key)[rows]) for key in store.spec.schema}
    return bool((row_checksums(rows, arrays) == store.checksums()[rows]).all())


@pytest.fixture
def recorded(store, monkeypatch):
    """Record every positioned write as (descriptor's file, offset, bytes)."""
    writes = []
    real = os.pwrite

    def record(descriptor, data, offset):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        writes.append((name, offset, bytes(data)))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", record)
    return writes


def test_descriptors_are_synchronous_and_nothing_is_mapped_writable(store):
    with RowWriter(store) as writer:
        for descriptor in writer._descriptors.values():
            with open(f"/proc/self/fdinfo/{descriptor}") as info:
                flags = int(next(line for line in info if line.startswith("flags")).split()[1], 8)
            assert flags & os.O_DSYNC
        with open("/proc/self/maps") as maps:
            assert not [line for line in maps if str(store.path) in line and "rw-s" in line]


def test_bytes_then_checksum_then_flag_one_write_an_array(store, make_rows, recorded):
    rows = np.array([4, 5, 6])
    with RowWriter(store) as writer:
        writer.write(rows, make_rows(store, rows))
    names = [os.path.basename(name) for name, _, _ in recorded]
    assert set(names[:2]) == {"masks.npy", "margins.npy"}
    assert names[2:] == ["_checksums.npy", "_completed.npy"]


@pytest.mark.parametrize("rewrite", [False, True], ids=["new rows", "rows written before"])
def test_no_cut_in_any_order_that_the_syncs_allow_is_ever_accepted_wrongly(
    store, make_rows, recorded, tmp_path, rewrite
):
    """Every state that a power cut can leave.

    Each write is on an O_DSYNC descriptor, and a step (flags off, checksums off, bytes, checksums,
    flags) begins when all writes of the step before have returned, so they are on disk. Within the
    step that was cut nothing is ordered: any of its writes, and any pieces of each, may be there
    (prefixes and random subsets of bytes, which is more than sectors allow). All steps are needed:
    bytes before the checksum, or it would vouch for nothing; the checksum before the flag, and
    the flag's and the checksum's withdrawal before new bytes, or upstream's readers would take a
    row that is changing.
    """
    rows = np.array([1, 2, 7, 8, 9])
    versions, start = _write(store, make_rows, recorded, rows, rewrite)
    steps = _steps(recorded)
    assert [name for name, _ in steps] == (["_completed", "_checksums"] if rewrite else []) + [
        "bytes",
        "_checksums",
        "_completed",
    ]
    rng = np.random.default_rng(0)
    for count, (_, cut) in enumerate(steps):
        for _ in range(150):
            for file, content in start.items():
                file.write_bytes(content)
            for write in itertools.chain.from_iterable(writes for _, writes in steps[:count]):
                _land(write)
            for write in cut:
                _land(write, _part(write[2], rng))
            assert_accepted_rows_are_whole(store, rows, versions)
    for write in recorded:
        _land(write)
    assert is_sound(store.path)
    assert store.completed_rows().tolist() == rows.tolist()


def test_without_the_syncs_the_same_writes_would_be_accepted_wrongly(store, make_rows, recorded):
    """The test above can fail: were the writes merely cached, a cut could keep any of them."""
    rows = np.array([1, 2, 7, 8, 9])
    versions, start = _write(store, make_rows, recorded, rows, rewrite=False)
    sequence, wrong = list(recorded), 0
    for kept in itertools.product([False, True], repeat=len(sequence)):
        for file, content in start.items():
            file.write_bytes(content)
        for write in itertools.compress(sequence, kept):
            _land(write)
        try:
            assert_accepted_rows_are_whole(store, rows, versions)
        except AssertionError:
            wrong += 1
    assert wrong > 0


def _write(store, make_rows, recorded, rows, rewrite):
    """Write ``rows``, over other values if ``rewrite``; both versions and the files before."""
    versions = [make_rows(store, rows)]
    with RowWriter(store) as writer:
        if rewrite:
            versions.append({k: np.roll(v, 1, axis=-1) for k, v in versions[0].items()})
            writer.write(rows, versions[1])
        start = {file: file.read_bytes() for file in store.path.glob("*.npy")}
        recorded.clear()
        writer.write(rows, versions[0])
    return versions, start


def _steps(writes):
    """[(what, writes)] of the steps that a batch is written in, each synced before the next."""

    def what(write):
        name = os.path.basename(write[0]).removesuffix(".npy")
        return name if name.startswith("_") else "bytes"

    return [(name, list(group)) for name, group in itertools.groupby(writes, what)]


def _part(data, rng):
    """Which bytes of a write in the step that was cut are on disk: all, none, a prefix, a few."""
    size = len(data)
    kind = rng.integers(5)
    if kind < 3:
        return np.arange(size) < (0, size, rng.integers(size + 1))[kind]
    return rng.random(size) < rng.random()


def _land(write, kept=None):
    """Put a recorded write, or the bytes of it that are ``kept``, into its file."""
    name, offset, data = write
    with open(name, "r+b") as stream:
        stream.seek(offset)
        before = np.frombuffer(stream.read(len(data)), np.uint8)
        after = np.frombuffer(data, np.uint8)
        stream.seek(offset)
        stream.write((after if kept is None else np.where(kept, after, before)).tobytes())


def assert_accepted_rows_are_whole(store, rows, versions):
    """Accepted and flagged rows hold one version in full, or the digest tells (it was cut)."""
    digests, flags = store.checksums(), store.flags()
    for row in range(store.num_models):
        if not digests[row] and not flags[row]:
            continue
        position = int(np.flatnonzero(rows == row)[0])
        whole = [
            all((store.array(key)[row] == version[key][position]).all() for key in version)
            for version in versions
        ]
        assert any(whole), f"row {row} is a mixture"
        expected = {int(row_checksums(rows, version)[position]) for version in versions}
        if int(digests[row]) not in expected:
            assert 0 in digests[row : row + 1].view(np.uint8)
            assert not flags[row], "a flag on a row without its checksum"


def test_a_row_is_bound_to_its_place_and_its_arrays(store, make_rows):
    rows = np.array([3])
    arrays = make_rows(store, rows)
    digest = row_checksums(rows, arrays)[0]
    assert row_checksums(np.array([4]), arrays)[0] != digest
    for key, value in arrays.items():
        flat = value.reshape(-1).view(np.uint8)
        for bit in range(flat.size * 8):
            flat[bit // 8] ^= 1 << bit % 8
            assert row_checksums(rows, arrays)[0] != digest, (key, bit)
            flat[bit // 8] ^= 1 << bit % 8


def test_short_writes_are_continued(store, make_rows, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    rows = np.arange(5)
    with RowWriter(store) as writer:
        writer.write(rows, make_rows(store, rows))
    assert is_sound(store.path)
    assert (store.array("margins")[:5] == make_rows(store, rows)["margins"]).all()


@pytest.mark.parametrize("fails_at", range(4))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_write_is_one_sentence_and_loses_nothing(
    store, make_rows, monkeypatch, fails_at, code
):
    real, calls = os.pwrite, itertools.count()

    def fail(descriptor, data, offset):
        if next(calls) == fails_at:
            real(descriptor, data[: len(data) // 2], offset)
            raise OSError(code, os.strerror(code))
        return real(descriptor, data, offset)

    with RowWriter(store) as writer:
        writer.write(np.arange(3), make_rows(store, np.arange(3)))
        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(StoreError, match=os.strerror(code)):
            writer.write(np.arange(5, 9), make_rows(store, np.arange(5, 9)))
            writer.flush()  # a flag that fails shows in the next call, whichever it is
        monkeypatch.setattr(os, "pwrite", real)
        assert set(store.completed_rows()) >= {0, 1, 2}
        writer.write(np.arange(5, 9), make_rows(store, np.arange(5, 9)))
    assert is_sound(store.path)
    assert store.completed_rows().tolist() == [0, 1, 2, 5, 6, 7, 8]


def test_a_read_only_store_is_one_sentence(store, monkeypatch):
    def refuse(path, flags, *mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match="Read-only file system"):
        RowWriter(store)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([], []), ([4], [(0, 1)]), ([1, 2, 3], [(0, 3)]), ([1, 3, 4, 9], [(0, 1), (1, 3), (3, 4)])],
)
def test_contiguous_runs(rows, expected):
    found = [(run.start, run.stop) for run in contiguous_runs(np.array(rows, np.int64))]
    assert found == expected
