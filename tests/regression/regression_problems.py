"""Problems with known answers, and hand-made stores, for the regression tests."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Linear:
    masks: np.ndarray
    outputs: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def linear_rows(rows, features, targets, keep=0.9, noise=0.0, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    masks = rng.random((rows, features)) < keep
    weight = rng.normal(size=(features, targets))
    bias = rng.normal(size=targets) * 10
    outputs = masks @ weight + bias + noise * rng.normal(size=(rows, targets))
    return Linear(masks, outputs.astype(dtype), weight, bias)


def make_store(path, masks, outputs, completed=None, name="test_margins"):
    """Write a COAR-style store directory by hand."""
    path.mkdir(parents=True, exist_ok=True)
    np.save(path / "masks.npy", masks)
    np.save(path / f"{name}.npy", outputs)
    np.save(path / "_completed.npy", np.ones(len(masks), bool) if completed is None else completed)
    return path
