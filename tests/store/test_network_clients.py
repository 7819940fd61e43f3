"""Two page-caching clients: upstream's ways of writing rows lose some, ours loses none.

What each writer does to a real file is recorded and replayed in the model, in random interleavings
of two machines with disjoint rows (even and odd, or two halves, whose border shares pages).
"""

import json
import os

import numpy as np
import pytest
from store.page_caching_clients import PAGE, Client, Server

from coarlib.store import RowWriter, Store, initialize
from coarlib.store.checksum import row_checksums
from coarlib.store.layout import ArrayFile
from coarlib.store.spec import parse_spec

ROWS = 40
SPLITS = {
    "even and odd rows": (range(0, ROWS, 2), range(1, ROWS, 2)),
    "two halves": (range(ROWS // 2), range(ROWS // 2, ROWS)),
}
KEYS = ("masks", "margins", "_completed")


@pytest.fixture
def small(tmp_path, spec_content):
    spec_content["num_models"] = ROWS
    spec_content["schema"]["masks"]["shape"] = [100]
    initialize(tmp_path / "small", parse_spec(json.dumps(spec_content)))
    return Store.open(tmp_path / "small")


class Recorder:
    """Records positioned writes, stores into maps, flushes, openings, advice and reads."""

    def __init__(self, store):
        self.store, self.operations = store, []

    def upstream_mapped(self, row, arrays):
        """COAR's update: each array reopened as a writable map, assigned, flushed, dropped."""
        for key, value in {**arrays, "_completed": np.ones(1, bool)}.items():
            self._note("open", key)
            self._store(key, row, value[0])
            self._note("flush", key)

    def cached_map(self, row, arrays):
        """datamodels' update: maps opened once and kept, assigned, flushed."""
        for key, value in {**arrays, "_completed": np.ones(1, bool)}.items():
            self._store(key, row, value[0])
            self._note("flush", key)

    def written_and_synced(self, row, arrays):
        """pwrite and fsync on descriptors that are kept."""
        for key, value in {**arrays, "_completed": np.ones(1, bool)}.items():
            file = self.store.array_file(key)
            data = np.ascontiguousarray(value[0]).tobytes()
            self._note("write", key, file.offset + row * file.row_bytes, data, False)
            self._note("flush", key)

    def _store(self, key, row, value):
        """Assign a row of a real writable map, and note which bytes that changes."""
        file = self.store.array_file(key)
        array = np.lib.format.open_memmap(file.path, mode="r+")
        array[row] = value
        array.flush()
        data = np.asarray(value, file.dtype).tobytes()
        assert bytes(array[row].tobytes()) == data
        self._note("write", key, file.offset + row * file.row_bytes, data, False)

    def _note(self, kind, key, *more):
        self.operations.append((kind, key, *more))

    def ours(self, row, arrays, monkeypatch):
        """What RowWriter really does, with the flags of the descriptors it really uses."""
        self.watch(monkeypatch)
        with RowWriter(self.store) as writer:
            start = len(self.operations)  # descriptors stay open from row to row
            writer.write(np.array([row]), arrays)
        del self.operations[:start]
        monkeypatch.undo()

    def watch(self, monkeypatch):
        """Record positioned reads and writes and advice on this store's files."""
        pwrite, preadv, advise = os.pwrite, os.preadv, os.posix_fadvise

        def name(descriptor):
            return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).split(".")[0]

        def record_write(descriptor, data, offset):
            with open(f"/proc/self/fdinfo/{descriptor}") as info:
                flags = int(next(line for line in info if line.startswith("flags")).split()[1], 8)
            synchronous = flags & os.O_DSYNC == os.O_DSYNC
            self._note("write", name(descriptor), offset, bytes(data), synchronous)
            return pwrite(descriptor, data, offset)

        def record_read(descriptor, buffers, offset):
            self._note("read", name(descriptor), offset, sum(len(b) for b in buffers))
            return preadv(descriptor, buffers, offset)

        def record_advice(descriptor, *more):
            self._note("drop", name(descriptor))
            return advise(descriptor, *more)

        monkeypatch.setattr("coarlib.store.page_cache.is_local", lambda descriptor: False)
        monkeypatch.setattr(os, "pwrite", record_write)
        monkeypatch.setattr(os, "preadv", record_read)
        monkeypatch.setattr(os, "posix_fadvise", record_advice)


def recorded(store, writer, make_rows, monkeypatch):
    """Return {row: operations} of one way of writing, and the rows' values."""
    values = make_rows(store, np.arange(ROWS))
    found = {}
    for row in range(ROWS):
        recorder = Recorder(store)
        arrays = {key: value[row : row + 1] for key, value in values.items()}
        more = (monkeypatch,) if writer == "ours" else ()
        getattr(recorder, writer)(row, arrays, *more)
        found[row] = recorder.operations
    return found, values


def contents(store):
    return {path.stem: path.read_bytes() for path in store.path.glob("*.npy")}


def replay(before, operations, split, rng):
    """Run two machines' operations in a random order; the server's files and both machines."""
    server = Server(before)
    clients = [Client(server) for _ in split]
    for client in clients:
        for name in before:
            client.read(name, 0, len(before[name]))  # both have looked at the store before
    queues = [[step for row in rows for step in operations[row]] for rows in split]
    positions = [0, 0]
    while any(position < len(queue) for position, queue in zip(positions, queues, strict=True)):
        turn = int(rng.integers(2))
        if positions[turn] == len(queues[turn]):
            turn = 1 - turn
        kind, key, *more = queues[turn][positions[turn]]
        positions[turn] += 1
        client = clients[turn]
        if kind == "open":
            client.reopen(key)
        else:
            getattr(client, kind)(key, *more)
    for client in clients:
        for name in before:
            client.flush(name)
    return server, clients


def lost_rows(store, server, values, checked):
    """Rows without their flag (or checksum), or whose bytes are not what was written."""
    lost = []
    for row in range(ROWS):
        good = True
        for key in ("_checksums" if checked else "_completed", *values):
            file = store.array_file(key)
            start = file.offset + row * file.row_bytes
            data = bytes(server.files[key][start : start + file.row_bytes])
            if key in values:
                good &= data == values[key][row].tobytes()
            else:
                good &= any(data)
        if not good:
            lost.append(row)
    return lost


def losses(store, writer, split, make_rows, monkeypatch, tries=20):
    before = contents(store)
    operations, values = recorded(store, writer, make_rows, monkeypatch)
    rng = np.random.default_rng(0)
    return [
        lost_rows(
            store, replay(before, operations, SPLITS[split], rng)[0], values, writer == "ours"
        )
        for _ in range(tries)
    ]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("writer", ["upstream_mapped", "cached_map", "written_and_synced"])
def test_upstreams_ways_lose_rows(small, writer, split, make_rows, monkeypatch):
    assert any(losses(small, writer, split, make_rows, monkeypatch))


@pytest.mark.parametrize("split", SPLITS)
def test_ours_loses_none(small, split, make_rows, monkeypatch):
    assert not any(losses(small, "ours", split, make_rows, monkeypatch))


def test_without_synchronous_descriptors_ours_would_lose_rows(small, make_rows, monkeypatch):
    """The model can fail us: it is the flag of the descriptor that saves the rows."""
    monkeypatch.setattr("coarlib.store.writer.WRITE_FLAGS", os.O_WRONLY | os.O_CLOEXEC)
    before = contents(small)
    values = make_rows(small, np.arange(ROWS))
    operations = {}
    for row in range(ROWS):
        recorder = Recorder(small)
        with monkeypatch.context() as patch:
            recorder.watch(patch)
            with RowWriter(small) as writer:
                writer.write(np.array([row]), {k: v[row : row + 1] for k, v in values.items()})
        operations[row] = recorder.operations
    rng = np.random.default_rng(0)
    found = replay(before, operations, SPLITS["even and odd rows"], rng)[0]
    assert lost_rows(small, found, values, checked=True)


def test_a_reader_that_drops_its_pages_sees_every_row(small, make_rows, monkeypatch):
    """One that does not sees the other machine's rows as zeros."""
    before = contents(small)
    operations, _ = recorded(small, "ours", make_rows, monkeypatch)
    rng = np.random.default_rng(0)
    server, clients = replay(before, operations, SPLITS["two halves"], rng)
    truth = bytes(server.files["_checksums"])
    idle = Client(server)
    idle.pages = {("_checksums", 0): bytearray(before["_checksums"][:PAGE])}
    assert idle.read("_checksums", 0, len(truth)) != truth
    recorder = Recorder(small)
    recorder.watch(monkeypatch)
    assert small.completed().all()
    assert small.completed_among(np.arange(5, 9)).all()
    monkeypatch.undo()
    kinds = [operation[0] for operation in recorder.operations]
    assert kinds == ["drop", "read", "drop", "read"]  # what our readers really do
    for client in (idle, *clients):
        client.drop("_checksums")
        assert client.read("_checksums", 0, len(truth)) == truth


def test_arrays_are_mapped_after_dropping_pages(small, monkeypatch):
    recorder = Recorder(small)
    recorder.watch(monkeypatch)
    small.array("margins")
    assert recorder.operations == [("drop", "margins")]


def test_the_rows_that_survive_in_the_model_pass_their_checksums(small, make_rows, monkeypatch):
    before = contents(small)
    operations, values = recorded(small, "ours", make_rows, monkeypatch)
    server, _ = replay(before, operations, SPLITS["two halves"], np.random.default_rng(1))
    file = ArrayFile.read(small.path / "_checksums.npy")
    stored = np.frombuffer(bytes(server.files["_checksums"][file.offset :]), np.uint64)
    assert (stored == row_checksums(np.arange(ROWS), values)).all()
