"""Truncated, damaged and foreign files: one BetonError with one sentence, never a wrong row."""

import os
import struct
import tempfile
from pathlib import Path

import mutations
import numpy as np
import pytest

from coarlib import beton
from coarlib.beton.layout import HEADER, MIN_PAGE_SIZE, TABLE_ENTRY
from coarlib.errors import BetonError

CUTS = 1000
MUTATIONS_A_FILE = 3000


def refused(path):
    """The one sentence with which a file is refused."""
    with pytest.raises(BetonError) as caught:
        beton.open(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.fixture
def damaged(coar_file, tmp_path):
    """Write a copy of the file with some bytes changed: ``damaged(offset, bytes)``."""
    content = coar_file[0].read_bytes()

    def make(offset, new):
        path = tmp_path / "damaged.beton"
        path.write_bytes(content[:offset] + new + content[offset + len(new) :])
        return path

    return make


@pytest.fixture
def layout(coar_file):
    with beton.open(coar_file[0]) as file:
        return file.layout


def test_a_file_cut_at_each_of_1000_random_lengths_is_refused(coar_file):
    path, _ = coar_file
    size = path.stat().st_size
    lengths = np.random.default_rng(0).choice(size, CUTS, replace=False)
    lengths[:4] = [0, 1, 23, 24]
    for length in sorted(lengths.tolist(), reverse=True):
        os.truncate(path, length)
        refused(path)


def test_a_longer_file_is_refused(coar_file):
    with coar_file[0].open("ab") as file:
        file.write(b"\0")
    assert "damaged" in refused(coar_file[0])


HEADER_FIELDS = {"version": (0, 2), "num_fields": (2, 2), "page_size": (4, 4)}
HEADER_FIELDS |= {"num_rows": (8, 8), "table": (16, 8)}


@pytest.mark.parametrize("name", HEADER_FIELDS)
def test_every_header_field_is_checked(coar_file, damaged, name):
    offset, width = HEADER_FIELDS[name]
    content = coar_file[0].read_bytes()
    true = int.from_bytes(content[offset : offset + width], "little")
    wrong = {true ^ (1 << bit) for bit in range(8 * width)}
    wrong |= {true + 1, true - 1, 2 * true, true // 2, 0, (1 << (8 * width)) - 1}
    for value in wrong - {true}:
        if 0 <= value < 1 << (8 * width):
            refused(damaged(offset, value.to_bytes(width, "little")))


@pytest.mark.parametrize(
    ("offset", "new", "message"),
    [
        (0, b"\x09", "field 'mask' has unknown type 9"),
        (0, b"\x01", "descriptor of field 'mask' is damaged"),
        (0, b"\x02", "field 'mask' is an RGB image field; only NDArray, Int and Float"),
        (0, b"\x03", "a Bytes field"),
        (0, b"\x05", "a JSON field"),
        (0, b"\xff", "a custom field"),
        (1, b"\0", "field name is damaged"),
        (1, b"\xe9", "field name is damaged"),
        (5, b"\0a", "field name is damaged"),
        (1, b"targets\0", "two fields are called 'targets'"),
        (17, struct.pack("<Q", 335), "damaged"),
        (17, struct.pack("<Q", 0), "damaged"),
        (17, struct.pack("<2Q", 1 << 40, 1 << 40), "damaged"),
        (17, struct.pack("<3Q", 336, 0, 2), "shape or dtype of field 'mask' is damaged"),
        (17 + 256, struct.pack("<Q", 12), "shape or dtype of field 'mask' is damaged"),
        (17 + 256, struct.pack("<Q", 1 << 63), "shape or dtype of field 'mask' is damaged"),
        (17 + 264, b'[["", "|O1"]]', "shape or dtype of field 'mask' is damaged"),
        (17 + 264, b'[["", "|b0"]]', "shape or dtype of field 'mask' is damaged"),
        (17 + 264, b"[[[[[[[[[[[[[", "shape or dtype of field 'mask' is damaged"),
        (17 + 264, b'["", "|b1"]  ', "shape or dtype of field 'mask' is damaged"),
        (17 + 264, b"\xff" * 13, "shape or dtype of field 'mask' is damaged"),
        (17 + 300, b"\x01", "shape or dtype of field 'mask' is damaged"),
        (2 * 1041 + 17, b"\x01", "descriptor of field 'idx' is damaged"),
    ],
)
def test_every_part_of_a_descriptor_is_checked(damaged, offset, new, message):
    assert message in refused(damaged(HEADER.size + offset, new))


def pointer(layout, row, column):
    return layout.metadata_start + row * layout.record_bytes + 8 * column


@pytest.mark.parametrize("value", [0, 24, 1 << 63, (1 << 64) - 1, (1 << 64) - 336])
def test_pointers_outside_the_pages_are_refused(damaged, layout, value):
    path = damaged(pointer(layout, 5, 0), struct.pack("<Q", value))
    assert "outside the pages" in refused(path)


def test_pointers_are_checked_against_table_page_and_each_other(coar_file, damaged, layout):
    content = coar_file[0].read_bytes()
    table_start = layout.packed_table_start
    (true,) = struct.unpack_from("<Q", content, pointer(layout, 5, 0))
    end = layout.data_start + layout.page_size
    last = struct.pack("<Q", end - 335)  # one byte too far
    assert "outside the pages" in refused(damaged(pointer(layout, 5, 0), last))
    moved = damaged(pointer(layout, 5, 0), struct.pack("<Q", true + 1))
    assert "table and metadata disagree" in refused(moved)
    for column, key in enumerate(TABLE_ENTRY.names):
        place = table_start + 24 * 10 + 8 * column
        (value,) = struct.unpack_from("<Q", content, place)
        assert "disagree" in refused(damaged(place, struct.pack("<Q", value + 1))), key
    both = bytearray(content)  # metadata and table agree on two arrays in one place
    struct.pack_into("<Q", both, pointer(layout, 5, 0), true + 1)
    struct.pack_into("<Q", both, table_start + 24 * 10 + 8, true + 1)
    assert "overlap" in refused(damaged(0, bytes(both)))


def test_arrays_of_a_row_must_share_a_page(tmp_path):
    fields = {"a": beton.NDArray(np.uint8, (1 << 20,)), "b": beton.NDArray(np.uint8, (8,))}
    source = {"a": np.zeros((4, 1 << 20), np.uint8), "b": np.zeros((4, 8), np.uint8)}
    path = beton.write(tmp_path / "x.beton", fields, source, page_size=MIN_PAGE_SIZE, quiet=True)
    content = bytearray(path.read_bytes())
    with beton.open(path) as file:
        layout = file.layout
    # Row 0 keeps its first array on page 0; its second moves to the free tail of page 1.
    elsewhere = layout.data_start + 2 * MIN_PAGE_SIZE - 8
    struct.pack_into("<Q", content, pointer(layout, 0, 1), elsewhere)
    struct.pack_into("<Q", content, layout.packed_table_start + 24 + 8, elsewhere)
    path.write_bytes(content)
    assert "share a page" in refused(path)


def test_a_table_in_any_order_is_read(coar_file, layout):
    path, source = coar_file
    content = bytearray(path.read_bytes())
    start = layout.packed_table_start
    table = np.frombuffer(bytes(content[start:]), TABLE_ENTRY)
    content[start:] = np.random.default_rng(0).permutation(table).tobytes()
    path.write_bytes(content)
    with beton.open(path) as file:
        assert (file.rows(slice(None))["targets"] == source["targets"]).all()


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x93NUMPY" + b"\0" * 500, os.urandom(9000)])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "foreign.beton"
    path.write_bytes(content)
    refused(path)


def test_what_is_no_file_is_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "missing.beton")
    assert "not a file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.beton")
    assert "not a file" in refused(tmp_path / "pipe.beton")


@pytest.fixture
def memory_dir(tmp_path):
    """A folder in memory where there is one: a file changed in place waits for no disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


def test_scattered_rows_are_read(tmp_path):
    path = mutations.seeds(tmp_path)[-1]
    assert mutations.read_everything(path) == mutations.parse(path.read_bytes())
    with beton.open(path) as file:
        assert len(list(file.views())) == len(file)


@pytest.mark.parametrize("number", range(len(mutations.FIELDS)))
def test_mutated_files_are_refused_or_read_right(memory_dir, number):
    path = mutations.seeds(memory_dir)[number]
    outcome = mutations.run(path, MUTATIONS_A_FILE, seed=number)
    assert outcome.files == MUTATIONS_A_FILE
    assert outcome.refused > MUTATIONS_A_FILE // 10
    assert outcome.opened > 0
    print(f"{path.name}: {outcome.files} mutated files, {outcome.refused} refused")
