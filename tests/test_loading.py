"""One loader a format: whatever lies in a file, one sentence, and soon."""

import io
import json
import os
import re
import warnings
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from paths import ROOT

from coarlib.errors import ScoringError
from coarlib.loading import load_json, load_npy, load_npz, load_pt, load_text, load_yaml

LOADERS = {
    ".json": load_json,
    ".yaml": load_yaml,
    ".npy": load_npy,
    ".npz": load_npz,
    ".pt": load_pt,
    ".txt": load_text,
}


def good(tmp_path, suffix):
    """A small whole file of a format."""
    path = tmp_path / f"good{suffix}"
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".npz":
        np.savez_compressed(path, a=values, b=np.array(["x", "yz"]))
    elif suffix == ".pt":
        torch.save({"a": torch.from_numpy(values), "b": [1, "x"]}, path)
    else:
        content = {"a": [1, 2.5, {"b": "ü"}], "c": None}
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def as_plain(value):
    """A value that can be compared."""
    if isinstance(value, dict):
        return {key: as_plain(part) for key, part in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("suffix", LOADERS)
def test_pipes_directories_and_missing_files(tmp_path, suffix):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing", "/dev/zero"):
        with pytest.raises(ScoringError, match=r"not a file|no file|cannot read"):
            LOADERS[suffix](path, ScoringError)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_every_flipped_bit_of_an_archive_is_found_or_harmless(tmp_path, suffix):
    path = good(tmp_path, suffix)
    data, truth = path.read_bytes(), as_plain(LOADERS[suffix](path, ScoringError))
    for position in range(0, len(data), 3):
        spoilt = bytearray(data)
        spoilt[position] ^= 1 << position % 8
        path.write_bytes(spoilt)
        try:
            found = as_plain(LOADERS[suffix](path, ScoringError))
        except ScoringError as error:
            assert "\n" not in str(error)
        else:
            assert list(found.values()) == list(truth.values())


@pytest.mark.parametrize("suffix", LOADERS)
def test_mutations_are_one_sentence(tmp_path, suffix):
    path = good(tmp_path, suffix)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        spoilt = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 9)):
            spoilt[position] = rng.integers(256)
        cut = rng.integers(1, len(data)) if rng.random() < 0.3 else len(data)
        path.write_bytes(spoilt[:cut])
        try:
            LOADERS[suffix](path, ScoringError)
        except ScoringError as error:
            assert "\n" not in str(error)


HOSTILE_JSON = [
    "[" * 10**5,
    "[" * 10**5 + "]" * 10**5,
    '{"a":' * 500 + "1" + "}" * 500,
    "1" * 10**5,
    "[" + "9" * 30 + "]",
    '{"a": 1, "a": 2}',
    '"\\ud800"',
    "",
    "\x00",
]


@pytest.mark.parametrize("text", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_hostile_json(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ScoringError):
        load_json(tmp_path / "x.json", ScoringError)


HOSTILE_YAML = [
    "[" * 10**4,
    "a: &a [*a]",
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij")),
    "!!python/object/apply:os.system [echo]",
    "? [a]\n: 1",
    "- 9999-99-99",
    "a: !!int x",
    "\x00",
]


@pytest.mark.parametrize("text", HOSTILE_YAML, ids=range(len(HOSTILE_YAML)))
def test_hostile_yaml(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ScoringError):
        load_yaml(tmp_path / "x.yaml", ScoringError)


def test_archives_that_expand_and_headers_that_lie(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * 300_000_000)
    for load in (load_npz, load_pt):
        with pytest.raises(ScoringError, match="would expand to 300000000 bytes"):
            load(path, ScoringError)
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10)}
    np.lib.format.write_array_header_1_0(header, shape)
    (tmp_path / "lie.npy").write_bytes(header.getvalue() + b"\0" * 64)
    with pytest.raises(ScoringError, match="its header asks for"):
        load_npy(tmp_path / "lie.npy", ScoringError)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(ScoringError, match="cut short"):
        load_npz(path, ScoringError)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ScoringError, match="its values are object"):
        load_npy(tmp_path / "objects.npy", ScoringError)
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "wide.pt")
    with pytest.raises(ScoringError, match="a tensor of 1000000000 values"):
        load_pt(tmp_path / "wide.pt", ScoringError)


def test_an_archive_that_names_a_member_twice_is_refused(tmp_path):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        warnings.simplefilter("ignore")
        for value in (1.0, 2.0):
            with archive.open("a.npy", "w") as member:
                np.save(member, np.full(3, value))
    with pytest.raises(ScoringError, match="stands there twice"):
        load_npz(tmp_path / "x.npz", ScoringError)


@pytest.mark.parametrize("order", "CF")
def test_arrays_are_read_as_numpy_reads_them(tmp_path, order):
    values = np.asarray(np.random.default_rng(0).normal(size=(3, 4)).astype(">f4"), order=order)
    for array in (values, np.zeros((0, 3)), np.array(5)):
        np.save(tmp_path / "x.npy", array)
        np.testing.assert_array_equal(load_npy(tmp_path / "x.npy", ScoringError), array)
        np.savez(tmp_path / "x.npz", a=array)
        np.testing.assert_array_equal(load_npz(tmp_path / "x.npz", ScoringError)["a"], array)


# What opens files itself: the loaders; within load_pt, a pickled module as inert stand-ins, and
# one that the user allows by name.
OWN = {"coarlib/loading.py", "coarlib/inputs/checkpoints.py", "coarlib/interop/dattri.py"}
OPENING = re.compile(
    r"np\.load\(|torch\.load\(|yaml\.(safe_|full_|unsafe_)?load\(|json\.load\(|"
    r"json\.loads\((?!json\.dumps)"
)


def test_no_other_module_opens_such_files():
    modules = [*ROOT.glob("coarlib/**/*.py"), *ROOT.glob("estimate/**/*.py")]
    found = {
        str(path.relative_to(ROOT)): OPENING.search(path.read_text())[0]
        for path in modules
        if OPENING.search(path.read_text())
    }
    found.pop("coarlib/beton/fields.py")  # a word of a .beton's own table
    assert set(found) <= OWN, found


PLAIN = {
    "int8": np.array([[0, 1], [1, 0]], np.int8),
    "bool": np.array([True, False]),
    "swapped": np.arange(6, dtype=">f4").reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.empty((0, 4), np.float16),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_pickled_arrays_of_numbers_are_read(tmp_path, name, zipped):
    path = tmp_path / "x.pt"
    torch.save(PLAIN[name], path, _use_new_zipfile_serialization=zipped)
    found = load_pt(path, ScoringError)
    np.testing.assert_array_equal(found, PLAIN[name])
    assert found.dtype == PLAIN[name].dtype.newbyteorder("=")
    torch.save({"a": PLAIN[name], "b": torch.ones(1)}, path)
    np.testing.assert_array_equal(load_pt(path, ScoringError)["a"], PLAIN[name])


class Unpickled:
    """Leaves a file when something that was made of it is loaded."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return (open, (str(self.where), "w"))


@pytest.mark.parametrize("inside", [False, True])
def test_pickles_of_anything_else_run_nothing(tmp_path, inside):
    evil, path = Unpickled(tmp_path / "ran"), tmp_path / "x.pt"
    torch.save(np.array([evil, 1], object) if inside else [np.ones(2), evil], path)
    with pytest.raises(ScoringError, match=r"may run code|something else") as caught:
        load_pt(path, ScoringError)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    for other in (np.array(["text"]), np.ones(2, complex), np.ones(2, [("a", "i4")])):
        torch.save(other, path)
        with pytest.raises(ScoringError, match="something else than tensors and arrays"):
            load_pt(path, ScoringError)
