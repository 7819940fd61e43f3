"""Masks, outputs and scores on disk, larger than memory."""

import numpy as np

from coarlib.regression import fit
from coarlib.scoring import lds
from coarlib.scoring.metrics import METRICS, evaluate


def test_memory_mapped_files_are_their_arrays_whatever_bytes_a_boolean_has(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 5)).astype(np.float32)
    masks = rng.random((60, 30)) < 0.5
    margins = (masks @ scores + rng.normal(size=(60, 5))).astype(np.float32)
    bytes_of_true = rng.integers(1, 255, masks.shape).astype(np.uint8)
    for name, array in (("s", scores), ("m", masks * bytes_of_true), ("y", margins)):
        np.save(tmp_path / f"{name}.npy", array.view("?") if name == "m" else array)
    files = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "smy"]
    assert isinstance(files[1], np.memmap) and files[1].view(np.uint8).max() > 1
    for kind in ("spearman", "pearson"):
        expected = lds(scores, masks, margins, kind)
        found = lds(*files, kind)
        np.testing.assert_array_equal(found.correlation, expected.correlation)
        assert (found.interval, found.regime) == (expected.interval, expected.regime)
    for name in METRICS:
        np.testing.assert_array_equal(
            evaluate(name, *files), evaluate(name, scores, masks, margins)
        )
    a, b = fit((masks, margins), "ridge", held_out=10), fit(tuple(files[1:]), "ridge", held_out=10)
    np.testing.assert_array_equal(a.weight, b.weight)
    np.testing.assert_array_equal(a.fitted, b.fitted)
