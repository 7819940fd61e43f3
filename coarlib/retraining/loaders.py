"""Which examples a DataLoader draws, and loaders like it over some of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

__all__ = ["sampled_examples", "subset_loader"]


def sampled_examples(loader: DataLoader[Any]) -> NDArray[np.int64]:
    """Return which examples of the dataset a loader draws, int64 [N].

    A sampler with ``indices`` (SubsetRandomSampler) restricts the dataset; others draw all of it.
    """
    indices = getattr(loader.sampler, "indices", None)
    if indices is not None:
        return np.asarray([int(index) for index in indices], dtype=np.int64)
    return np.arange(len(loader.sampler), dtype=np.int64)  # type: ignore[arg-type]


def subset_loader(
    loader: DataLoader[Any], examples: Any, *, shuffle: bool = False
) -> DataLoader[Any]:
    """Return a loader like ``loader`` over ``examples`` of its dataset only.

    Shuffled by torch's global generator, as dattri's loaders are, or in the order given.
    """
    return DataLoader(
        Subset(loader.dataset, [int(index) for index in examples]),
        batch_size=loader.batch_size,
        shuffle=shuffle,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
    )
