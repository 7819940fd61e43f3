"""Score matrices from every file format, and files that are not."""

import json
import os

import numpy as np
import pytest
import torch

from coarlib.errors import ScoringError
from coarlib.scoring.score_files import load_scores

SCORES = np.arange(12, dtype="f4").reshape(4, 3)


def test_npy_and_trak_files_stay_on_disk(tmp_path):
    np.save(tmp_path / "s.npy", SCORES)
    found = load_scores(tmp_path / "s.npy")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, SCORES)
    (tmp_path / "trak" / "scores").mkdir(parents=True)
    (tmp_path / "s.npy").rename(tmp_path / "trak" / "scores" / "quick.mmap")
    np.testing.assert_array_equal(load_scores(tmp_path / "trak"), SCORES)
    np.testing.assert_array_equal(load_scores(tmp_path / "trak", "quick"), SCORES)


@pytest.mark.parametrize("content", ["tensor", "one", "weight", "bfloat16"])
def test_torch_files(tmp_path, content):
    tensor = torch.tensor(SCORES)
    saved = {
        "tensor": tensor,
        "one": {"anything": tensor, "note": "x"},
        "weight": {"bias": tensor[0], "weight": tensor, "lam": tensor[0]},
        "bfloat16": tensor.bfloat16(),
    }[content]
    torch.save(saved, tmp_path / "s.pt")
    np.testing.assert_array_equal(load_scores(tmp_path / "s.pt"), SCORES)


def test_a_directory_of_attributions(tmp_path):
    torch.save({"weight": torch.tensor(SCORES), "bias": torch.ones(3)}, tmp_path / "datamodels.pt")
    np.testing.assert_array_equal(load_scores(tmp_path), SCORES)


def test_safetensors_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    file = tmp_path / "s.safetensors"
    safetensors.save_file({"a": torch.tensor(SCORES).bfloat16(), "b": torch.ones(2, 2)}, file)
    np.testing.assert_array_equal(load_scores(file, "a"), SCORES)
    with pytest.raises(ScoringError, match="say which"):
        load_scores(file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ScoringError, match="not a whole safetensors file"):
        load_scores(file, "a")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for name in ("evil.pt", "evil.npy"):
        with pytest.raises(ScoringError, match=name):
            load_scores(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_files_that_are_not_scores_are_named(tmp_path):
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(tmp_path / "cube.npy", np.ones((3, 2, 2)))
    torch.save({"x": torch.ones(2, 2), "y": torch.ones(2, 2)}, tmp_path / "two.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save([SCORES, os.system], tmp_path / "evil.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "s.txt").write_text("1 2")
    for name, key, words in (
        ("missing.npy", None, "there are no scores at"),
        ("cut.npy", None, "not a whole NumPy array file"),
        ("cube.npy", None, r"not scores \[N, T\]"),
        ("two.pt", None, "holds x, y; say which"),
        ("two.pt", "z", "no scores 'z'"),
        ("list.pt", None, "holds a list"),
        ("evil.pt", None, "posix.system, which may run code"),
        ("empty", None, "neither datamodels.pt nor TRAK scores"),
        ("s.txt", None, "is none of"),
    ):
        with pytest.raises(ScoringError, match=words):
            load_scores(tmp_path / name, key)


def bergson_folder(path, scores, written=True):
    """A folder as bergson's MemmapSequenceScoreWriter leaves it: (score, written) pairs."""
    pairs = [(f"score_{i}", f"written_{i}") for i in range(scores.shape[1])]
    layout = {
        "names": [name for pair in pairs for name in pair],
        "formats": ["float32", "bool"] * len(pairs),
        "offsets": [at for i in range(len(pairs)) for at in (8 * i, 8 * i + 4)],
        "itemsize": 8 * len(pairs),
    }
    path.mkdir()
    records = np.zeros(len(scores), np.dtype(layout))
    for i, (score, flag) in enumerate(pairs):
        records[score], records[flag] = scores[:, i], written
    records.tofile(path / "scores.bin")
    info = {"num_items": len(scores), "num_scores": scores.shape[1], "dtype": layout}
    (path / "info.json").write_text(json.dumps(info))
    return path


def test_bergsons_scores_are_read_and_must_be_whole(tmp_path):
    scores = np.random.default_rng(0).standard_normal((30, 3)).astype("f4")
    whole = bergson_folder(tmp_path / "whole", scores)
    np.testing.assert_array_equal(load_scores(whole), scores)
    with pytest.raises(ScoringError, match="not written yet"):
        load_scores(bergson_folder(tmp_path / "half", scores, written=False))
    (whole / "scores.bin").write_bytes((whole / "scores.bin").read_bytes()[:-8])
    with pytest.raises(ScoringError, match="not a whole folder of bergson's scores"):
        load_scores(whole)


def test_bergsons_bfloat16_is_read_bit_by_bit_and_scores_of_tokens_are_named(tmp_path):
    scores = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    layout = {
        "names": ["score_0", "written_0", "score_1", "written_1"],
        "formats": ["bfloat16", "bool", "bfloat16", "bool"],
        "offsets": [0, 2, 4, 6],
        "itemsize": 8,
    }
    raw = np.zeros((7, 8), np.uint8)
    for target in range(2):
        bits = scores[:, target].contiguous().view(torch.int16).numpy()
        raw[:, 4 * target : 4 * target + 2] = bits.view(np.uint8).reshape(7, 2)
        raw[:, 4 * target + 2] = 1
    (tmp_path / "half").mkdir()
    raw.tofile(tmp_path / "half" / "scores.bin")
    info = {"num_items": 7, "num_scores": 2, "dtype": layout}
    (tmp_path / "half" / "info.json").write_text(json.dumps(info))
    np.testing.assert_array_equal(load_scores(tmp_path / "half"), scores.float().numpy())
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "token_scores.bin").write_bytes(b"")
    with pytest.raises(ScoringError, match="scores of single tokens"):
        load_scores(tmp_path / "tokens")


def test_npz_and_pickled_arrays(tmp_path):
    np.savez(tmp_path / "s.npz", scores=SCORES, labels=np.arange(3))
    np.testing.assert_array_equal(load_scores(tmp_path / "s.npz"), SCORES)
    np.testing.assert_array_equal(load_scores(tmp_path / "s.npz", "labels")[:, 0], np.arange(3))
    torch.save(SCORES, tmp_path / "array.pt")
    np.testing.assert_array_equal(load_scores(tmp_path / "array.pt"), SCORES)


def test_scores_of_one_target_may_be_a_vector(tmp_path):
    np.save(tmp_path / "s.npy", np.arange(5.0))
    assert load_scores(tmp_path / "s.npy").shape == (5, 1)
