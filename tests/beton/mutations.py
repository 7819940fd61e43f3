"""Mutated ``.beton`` files, and what the reader must make of each: one BetonError or right rows.

A file is changed in place, opened through the library, read completely, and restored, so that
100,000 mutations take seconds. Every array that comes out is compared with the bytes that a
few lines of independent parsing find under its pointer.
"""

import os
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coarlib import beton
from coarlib.beton.layout import TABLE_ENTRY
from coarlib.errors import BetonError

INTERESTING = [0, 1, 2, 3, 7, 24, 255, 256, 1 << 16, 1 << 21, 1 << 22, 1 << 23, 1 << 31]
INTERESTING += [(1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 24, (1 << 64) - 1]
FIELDS = {
    "two arrays": {
        "mask": beton.NDArray(bool, (37,)),
        "targets": beton.NDArray(np.float32, (5,)),
        "idx": beton.Int(),
    },
    "scalars": {"idx": beton.Int(), "loss": beton.Float()},
    "scattered": {
        "x": beton.NDArray(np.uint16, (3, 21)),
        "loss": beton.Float(),
        "y": beton.NDArray("S3", (2,)),
    },
}
PAGE_SIZE = 1 << 21


@dataclass
class Outcome:
    """What became of the mutated files."""

    files: int = 0
    refused: int = 0
    opened: int = 0
    slowest: float = 0.0
    messages: set[str] = field(default_factory=set)


def seeds(folder: Path) -> list[Path]:
    """Write the files that are mutated."""
    paths = []
    for name, fields in FIELDS.items():
        rng = np.random.default_rng(0)
        source = {
            key: (rng.random((20, *one.shape)) * 100).astype(one.dtype)
            for key, one in fields.items()
        }
        path = folder / f"{name}.beton"
        paths.append(beton.write(path, fields, source, page_size=PAGE_SIZE, quiet=True))
    scatter(paths[-1], rng)
    return paths


def scatter(path: Path, rng: np.random.Generator) -> None:
    """Move the rows of a packed file to random places on three pages, the table in random order.

    The format leaves row order, gaps and the order of the table free.
    """
    with beton.open(path) as file:
        layout, rows = file.layout, len(file)
    old = path.read_bytes()
    start, end = layout.packed_table_start, layout.data_start + 3 * PAGE_SIZE
    new = bytearray(old[: layout.data_start] + bytes(3 * PAGE_SIZE))
    table = np.frombuffer(old[start:], TABLE_ENTRY).reshape(rows, -1).copy()
    columns = [k for k, name in enumerate(layout.fields) if name in layout.array_sizes]
    for row, slot in enumerate(rng.permutation(3 * rows)[:rows].tolist()):
        place = layout.data_start + slot % 3 * PAGE_SIZE + slot * 2 * layout.row_bytes
        for entry, column in zip(table[row], columns, strict=True):
            nbytes = int(entry["nbytes"])
            new[place : place + nbytes] = old[int(entry["offset"]) :][:nbytes]
            entry["offset"] = place
            record = layout.metadata_start + row * layout.record_bytes + 8 * column
            struct.pack_into("<Q", new, record, place)
            place += nbytes + 5
    struct.pack_into("<Q", new, 16, end)
    path.write_bytes(bytes(new) + rng.permutation(table.reshape(-1)).tobytes())


def hot_regions(path: Path) -> list[tuple[int, int]]:
    """Return the byte ranges that say where things are: all but the pages and their padding."""
    with beton.open(path) as file:
        layout = file.layout
    size = path.stat().st_size
    descriptors = [(24 + 1041 * k, 24 + 1041 * k + 340) for k in range(len(layout.fields))]
    metadata = (layout.metadata_start, layout.metadata_end)
    table = (size - layout.table_bytes, size)
    regions = [(0, 24), (24, layout.metadata_start), *descriptors, metadata, metadata]
    return [*regions, table, table] if layout.array_sizes else regions


def mutate(descriptor: int, size: int, regions: list, rng: np.random.Generator) -> list:
    """Change the file at random; returns what restores it."""
    undo = []
    for _ in range(rng.integers(1, 5)):
        first, last = regions[rng.integers(len(regions))]
        place = int(rng.integers(first, last))
        width = int(rng.choice([1, 2, 4, 8]))
        if rng.random() < 0.6:
            place -= (place - first) % width  # most numbers are aligned in their region
        old = os.pread(descriptor, width, place)
        width = len(old)
        number = int.from_bytes(old, "little")
        kind = rng.integers(4)
        if kind == 0:
            number ^= 1 << int(rng.integers(8 * width))
        elif kind == 1:
            number = INTERESTING[rng.integers(len(INTERESTING))]
        elif kind == 2:
            number += int(rng.integers(-64, 65))
        else:
            other = int(rng.integers(first, last))
            number = int.from_bytes(os.pread(descriptor, width, other), "little")
        new = (number % (1 << (8 * width))).to_bytes(width, "little")
        undo.append((place, old))
        os.pwrite(descriptor, new, place)
    if rng.random() < 0.02:
        os.ftruncate(descriptor, int(rng.integers(0, size + 4096)))
    return undo


def parse(content: bytes) -> dict[str, list[bytes]]:
    """Read all values of a valid file by the format's description alone."""
    data = memoryview(content)
    _, fields, _, rows, _ = struct.unpack_from("<HHIQQ", data)
    values: dict[str, list[bytes]] = {}
    start = 24 + 1041 * fields
    for number in range(fields):
        place = 24 + 1041 * number
        name = bytes(data[place + 1 : place + 17]).split(b"\0")[0].decode()
        items = [bytes(data[start + 8 * (fields * r + number) :][:8]) for r in range(rows)]
        if data[place] in (4, 6):
            shape = [size for size in struct.unpack_from("<32Q", data, place + 17) if size]
            (length,) = struct.unpack_from("<Q", data, place + 17 + 256)
            word = bytes(data[place + 17 + 264 :][:length]).decode()
            size = int(np.prod(shape)) * np.dtype(word.split('"')[3]).itemsize
            items = [bytes(data[struct.unpack("<Q", item)[0] :][:size]) for item in items]
        values[name] = items
    return values


def read_everything(path: Path) -> dict[str, list[bytes]]:
    """Read all values through the library, in three ways that must agree."""
    with beton.open(path) as file:
        rows = file.rows(slice(None))
        backwards = file.rows(np.arange(len(file))[::-1])
        seen = {name: [] for name in file.fields}
        for _, views in file.views():
            for name, view in views.items():
                seen[name] += [value.tobytes() for value in view]
    for name, values in rows.items():
        assert [value.tobytes() for value in values] == seen[name]
        assert [value.tobytes() for value in backwards[name][::-1]] == seen[name]
    return seen


def run(path: Path, count: int, seed: int) -> Outcome:
    """Try ``count`` mutations of a file; AssertionError if the reader gets one wrong."""
    rng = np.random.default_rng(seed)
    regions, size = hot_regions(path), path.stat().st_size
    with beton.open(path) as file:
        data_start, table = file.layout.data_start, size - file.layout.table_bytes
    outcome = Outcome()
    descriptor = os.open(path, os.O_RDWR)
    pages = os.pread(descriptor, table - data_start, data_start)
    tail = os.pread(descriptor, size - table, table)
    head = os.pread(descriptor, data_start, 0)
    try:
        for _ in range(count):
            undo = mutate(descriptor, size, regions, rng)
            started = time.perf_counter()
            try:
                got = read_everything(path)
            except BetonError as error:
                text = str(error)
                assert "\n" not in text and len(text) < 400, text
                outcome.refused += 1
                outcome.messages.add(text)
            else:
                outcome.opened += 1
                assert got == parse(os.pread(descriptor, size + 4096, 0))
            outcome.slowest = max(outcome.slowest, time.perf_counter() - started)
            outcome.files += 1
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
                os.pwrite(descriptor, head + pages + tail, 0)
            for place, old in reversed(undo):
                os.pwrite(descriptor, old, place)
    finally:
        os.close(descriptor)
    return outcome
