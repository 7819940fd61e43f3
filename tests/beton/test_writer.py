"""Writing: geometry, what is refused, and that a failure leaves nothing behind."""

import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest
from beton_schemas import SCHEMAS, random_values
from hypothesis import given
from hypothesis import strategies as st

from coarlib import beton
from coarlib.beton import writer
from coarlib.beton.layout import (
    ACCEPTABLE_WASTE,
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    choose_page_size,
    plan,
)
from coarlib.errors import BetonError

X = {"x": beton.NDArray(np.float32, (4,))}
VALUES = {"x": np.arange(40, dtype=np.float32).reshape(10, 4)}


@given(st.integers(1, MAX_PAGE_SIZE))
def test_a_page_holds_a_row_and_wastes_little(row_bytes):
    size = choose_page_size(row_bytes)
    assert row_bytes <= size <= MAX_PAGE_SIZE
    assert size >= DEFAULT_PAGE_SIZE
    assert size & (size - 1) == 0
    assert size % row_bytes / size <= (ACCEPTABLE_WASTE if row_bytes < MAX_PAGE_SIZE // 8 else 0.5)


def test_a_row_larger_than_the_largest_page_is_refused():
    with pytest.raises(BetonError, match="more than the largest page"):
        plan({"x": beton.NDArray(np.float64, (1 << 29,))}, 1, None)


@pytest.mark.parametrize("page_size", [0, 4096, (1 << 21) + 1, 3 << 21, 1 << 32])
def test_page_sizes_that_ffcv_refuses_are_refused(tmp_path, page_size):
    with pytest.raises(BetonError, match="power of two"):
        beton.write(tmp_path / "x.beton", X, VALUES, page_size=page_size)


def test_a_row_must_fit_the_page_that_is_asked_for():
    with pytest.raises(BetonError, match="too small"):
        plan({"x": beton.NDArray(np.uint8, ((1 << 21) + 1,))}, 1, 1 << 21)


@pytest.mark.parametrize(
    ("fields", "source", "message"),
    [
        ({}, {}, "1 to 65535 fields"),
        (X, {"y": VALUES["x"]}, "the source has"),
        ({"x" * 17: X["x"]}, {"x" * 17: VALUES["x"]}, "1 to 16 printable ASCII"),
        ({"é": X["x"]}, {"é": VALUES["x"]}, "1 to 16 printable ASCII"),
        (X, {"x": VALUES["x"][:, :3]}, "has shape"),
        (X, {"x": VALUES["x"].astype(complex)}, "has dtype"),
        (X, {"x": VALUES["x"][:0]}, "at least one row"),
        (X | {"i": beton.Int()}, VALUES | {"i": np.arange(3)}, "different numbers of rows"),
        (X | {"i": beton.Int()}, VALUES | {"i": np.arange(10.0)}, "has dtype"),
        (X | {"i": beton.Int()}, VALUES | {"i": np.full(10, 2**63, np.uint64)}, "does not fit"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, fields, source, message):
    with pytest.raises(BetonError, match=message):
        beton.write(tmp_path / "x.beton", fields, source)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *((dtype, (2,)) for dtype in (object, "f4,f4", "S0", "(2,)f4", "nonsense")),
        *((np.float32, shape) for shape in ((), (2, 0), (1,) * 33, (-1,), 3, (1 << 62, 4))),
    ],
)
def test_arrays_that_the_format_cannot_hold_are_refused(dtype, shape):
    with pytest.raises(BetonError, match="NDArray"):
        beton.NDArray(dtype, shape)


def test_chosen_rows_are_written_in_their_order(tmp_path):
    fields = SCHEMAS["odd sizes"]
    source = random_values(fields, 400)
    rows = np.random.default_rng(0).integers(0, 400, 555)
    path = beton.write(tmp_path / "x.beton", fields, source, rows=rows, quiet=True)
    with beton.open(path) as file:
        for name, values in file.rows(slice(None)).items():
            assert values.tobytes() == source[name][rows].tobytes()
    for bad in ([400], [-1], [1.0], [[0]], []):
        with pytest.raises(BetonError, match="row"):
            beton.write(path, fields, source, rows=np.array(bad), quiet=True)


def test_strided_and_mapped_sources_are_written(tmp_path):
    whole = np.random.default_rng(0).standard_normal((500, 60)).astype(np.float16)
    np.save(tmp_path / "whole.npy", whole)
    mapped = np.load(tmp_path / "whole.npy", mmap_mode="r")
    fields = {"x": beton.NDArray(np.float32, (7,))}
    for source in (whole[:, 3:10], mapped[:, 3:10], whole[::-1, 20:6:-2]):
        path = beton.write(tmp_path / "x.beton", fields, {"x": source}, quiet=True)
        with beton.open(path) as file:
            assert (file.rows(slice(None))["x"] == source.astype(np.float32)).all()


def test_a_full_disk_a_file_for_a_folder_and_foreign_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BetonError, match=r"cannot write .*x\.beton\.partial"):
        beton.write(tmp_path / "notes.txt" / "x.beton", X, VALUES)
    with pytest.raises(BetonError, match=r"is not a \.beton"):
        beton.write(tmp_path / "notes.txt", X, VALUES)
    with pytest.raises(BetonError, match=r"is not a \.beton"):
        beton.write(tmp_path, X, VALUES)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(BetonError, match="1000 left"):
        beton.write(tmp_path / "x.beton", X, VALUES)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_keeps_the_old_file(tmp_path, monkeypatch, error):
    path = beton.write(tmp_path / "x.beton", X, VALUES, quiet=True)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(writer, "_take", fail)
    with pytest.raises((BetonError, KeyboardInterrupt)):
        beton.write(path, X, VALUES, quiet=True)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.beton"]


def test_a_killed_write_starts_over_and_says_so(tmp_path, capsys):
    path = tmp_path / "x.beton"
    (tmp_path / "x.beton.partial").write_bytes(b"rubbish" * 1000)
    beton.write(path, X, VALUES, quiet=True)
    assert "starting over" in capsys.readouterr().err
    with beton.open(path) as file:
        assert (file.rows(slice(None))["x"] == VALUES["x"]).all()
    assert [file.name for file in tmp_path.iterdir()] == ["x.beton"]


def test_two_processes_do_not_write_one_file(tmp_path):
    with (tmp_path / "x.beton.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BetonError, match="another process is writing"):
            beton.write(tmp_path / "x.beton", X, VALUES)
    assert (tmp_path / "x.beton.partial").exists()


def test_reading_and_writing_need_neither_torch_nor_ffcv_nor_numba():
    code = (
        "import sys; from coarlib import beton; import coarlib.commands.store.write_dataset; "
        "print([name for name in ('torch', 'ffcv', 'numba', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


MEMORY_SCRIPT = """
import re, sys
import numpy as np
from coarlib import beton
rows = np.load(sys.argv[1], mmap_mode="r")
beton.write(sys.argv[2], {"x": beton.NDArray(np.float32, rows.shape[1:])}, {"x": rows}, quiet=True)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("shape", [(3000, 50_000), (2, 75_000_000)])
def test_memory_does_not_grow_with_the_file(tmp_path, shape):
    source = np.lib.format.open_memmap(tmp_path / "s.npy", "w+", np.float16, shape)
    source[-1, -1] = 7
    source.flush()
    out = tmp_path / "x.beton"
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, tmp_path / "s.npy", out],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) * 1024 < 200e6 < out.stat().st_size
    with beton.open(out) as file:
        assert file.rows([shape[0] - 1])["x"][0, -1] == 7
