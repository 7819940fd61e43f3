"""write_dataset: only finished rows, upstream's fields, nothing silent."""

import numpy as np
import pytest

from coarlib import beton
from coarlib.beton.dataset import parse_slice
from coarlib.errors import BetonError
from coarlib.store import RowWriter

ROWS, FEATURES, TARGETS = 50, 21, 9
DONE = [3, 4, 5, 17, 18, 40, 49]


@pytest.fixture
def directory(tmp_path):
    """A store as COAR's scripts make it, seven rows finished and the others zero."""
    rng = np.random.default_rng(0)
    path = tmp_path / "store"
    path.mkdir()
    arrays = {}
    for key, dtype, shape in [
        ("masks", np.bool_, (ROWS, FEATURES)),
        ("test_margins", np.float16, (ROWS, TARGETS)),
        ("_completed", np.bool_, (ROWS,)),
        ("done_too", np.bool_, (ROWS,)),
    ]:
        array = np.lib.format.open_memmap(path / f"{key}.npy", mode="w+", dtype=dtype, shape=shape)
        arrays[key] = array
    arrays["masks"][DONE] = rng.random((len(DONE), FEATURES)) < 0.7
    arrays["test_margins"][DONE] = rng.standard_normal((len(DONE), TARGETS))
    arrays["_completed"][DONE] = True
    arrays["done_too"][DONE[:2]] = True
    return path, arrays


def run(command, directory, out, *more):
    names = {"--cfg.x_name": "masks", "--cfg.y_name": "test_margins"}
    more = [w for key in names.keys() - set(more) for w in (key, names[key])] + list(more)
    return command(
        "coarlib.commands.store.write_dataset",
        *("--cfg.data_dir", directory, "--cfg.out_path", out, *more),
    )


def check(out, arrays, rows, targets=slice(None), dtype=np.float32):
    with beton.open(out) as file:
        got = file.rows(slice(None))
        assert list(file.fields) == ["mask", "targets", "idx"]
    assert got["idx"].tolist() == list(rows)
    assert (got["mask"] == arrays["masks"][rows]).all()
    assert got["targets"].dtype == dtype
    assert (got["targets"] == arrays["test_margins"][rows][:, targets].astype(dtype)).all()


def test_completed_rows_are_written_all_of_them_and_no_others(command, directory, tmp_path):
    path, arrays = directory
    result = run(command, path, tmp_path / "x.beton")
    assert result.returncode == 0, result.stderr
    assert "wrote 7 rows" in result.stdout
    check(tmp_path / "x.beton", arrays, DONE)
    files = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert files == {"x.beton", "x.arguments.yaml"}


def test_ignore_completed_writes_everything_and_says_so_loudly(command, directory, tmp_path):
    path, arrays = directory
    result = run(command, path, tmp_path / "x.beton", "--cfg.ignore_completed")
    assert result.returncode == 0, result.stderr
    assert "43 of 50 rows are UNFINISHED" in result.stderr
    check(tmp_path / "x.beton", arrays, list(range(ROWS)))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--cfg.y_slice", "2:5"], {"targets": slice(2, 5)}),
        (["--cfg.y_slice", "4"], {"targets": slice(4, 5)}),
        (["--cfg.y_dtype", "float64"], {"dtype": np.float64}),
        (["--cfg.y_dtype", "float16"], {"dtype": np.float16}),
    ],
)
def test_targets_can_be_chosen_and_typed(command, directory, tmp_path, more, expected):
    path, arrays = directory
    result = run(command, path, tmp_path / "x.beton", *more)
    assert result.returncode == 0, result.stderr
    assert ("ffcv's Loader hangs on float16" in result.stderr) == ("float16" in more)
    check(tmp_path / "x.beton", arrays, DONE, **expected)


def test_another_completed_array_can_be_named(command, directory, tmp_path):
    path, arrays = directory
    result = run(command, path, tmp_path / "x.beton", "--cfg.completed_name", "done_too")
    assert result.returncode == 0, result.stderr
    check(tmp_path / "x.beton", arrays, DONE[:2])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cfg.y_slice", "2:10"], "goes beyond, 9 targets"),
        (["--cfg.y_slice", "9"], "goes beyond, 9 targets"),
        (["--cfg.y_slice", "a"], "'a:b' or a single index"),
        (["--cfg.y_dtype", "int8"], "y_dtype must be"),
        (["--cfg.y_name", "test_margin"], "did you mean 'test_margins'"),
        (["--cfg.x_name", "test_margins"], "does not fit field 'mask' of dtype bool"),
        (["--cfg.y_name", "masks"], "outputs are numbers"),
        (["--cfg.completed_name", "masks"], "not one flag a row"),
        (["--cfg.ignore_complete"], "did you mean '--cfg.ignore_completed'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(command, directory, tmp_path, more, message):
    result = run(command, directory[0], tmp_path / "x.beton", *more)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x.beton").exists()


def test_masks_of_zeros_and_ones_become_bool(command, directory, tmp_path):
    path, arrays = directory
    np.save(path / "masks.npy", arrays["masks"].astype(np.int8))
    result = run(command, path, tmp_path / "x.beton")
    assert result.returncode == 0, result.stderr
    check(tmp_path / "x.beton", arrays, DONE)


def test_a_torn_row_is_never_written(command, store, make_rows, tmp_path):
    rows = np.array([1, 2, 9])
    with RowWriter(store) as writer:
        writer.write(rows, make_rows(store, rows))
    arguments = ("--cfg.data_dir", store.path, "--cfg.out_path", tmp_path / "x.beton")
    arguments += ("--cfg.y_name", "margins")
    result = command("coarlib.commands.store.write_dataset", *arguments)
    assert result.returncode == 0, result.stderr
    with beton.open(tmp_path / "x.beton") as file:
        before = file.rows(slice(None))
    assert before["idx"].tolist() == rows.tolist()
    margins = np.load(store.path / "margins.npy", mmap_mode="r+")
    margins[9, 1] += 1
    margins.flush()
    result = command("coarlib.commands.store.write_dataset", *arguments)
    assert result.returncode == 2
    assert "do not match their checksums (the first is 9)" in result.stderr
    with beton.open(tmp_path / "x.beton") as file:
        assert (file.rows(slice(None))["targets"] == before["targets"]).all()


def test_nothing_completed_is_an_error(command, directory, tmp_path):
    path, arrays = directory
    arrays["_completed"][:] = False
    result = run(command, path, tmp_path / "x.beton")
    assert result.returncode == 2
    assert "no row" in result.stderr


def test_an_array_of_the_store_is_never_overwritten(command, directory):
    path, _ = directory
    before = (path / "masks.npy").read_bytes()
    result = run(command, path, path / "masks.npy")
    assert result.returncode == 2
    assert "is not a .beton" in result.stderr
    assert (path / "masks.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3", (3, 4)),
        ("-1", (8, 9)),
        ("2:", (2, 9)),
        (":4", (0, 4)),
        (":", (0, 9)),
        ("-3:-1", (6, 8)),
    ],
)
def test_slices_read_as_in_python(text, wanted):
    chosen = parse_slice(text, TARGETS)
    assert (chosen.start, chosen.stop) == wanted


@pytest.mark.parametrize("text", ["", "1:2:3", "5:5", "5:2", "-10", "0:10", "1.5", "1 2"])
def test_slices_that_select_nothing_or_too_much_are_refused(text):
    with pytest.raises(BetonError):
        parse_slice(text, TARGETS)
