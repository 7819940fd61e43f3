"""What the metrics accept as arrays, and how work is spread over threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ScoringError

__all__ = ["as_array", "as_masks", "blocks", "clean_booleans", "in_threads", "masks_from_indices"]

BLOCK_BYTES = 128 * 2**20


def as_array(values: Any, name: str = "array") -> NDArray[Any]:
    """Return a real NumPy array without copying where that is possible.

    Parameters
    ----------
    values : array, memmap, torch tensor, scipy sparse matrix, or nested sequence
        Tensors may be on any device, sparse, or carry a gradient; bfloat16 becomes float32, which
        is exact. What a NumPy masked array hides becomes NaN. Booleans whose bytes are neither 0
        nor 1 become True.
    name : str
        Used in error messages.

    Raises
    ------
    ScoringError
        If the values are not a rectangular array of real numbers, or if booleans are hidden.
    """
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        values = _from_tensor(values, name)
    elif hasattr(values, "toarray"):
        values = values.toarray()
    try:
        array = np.asanyarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # torch's, of tensors in a list
        raise ScoringError(f"{name} is not a rectangular array: {error}") from error
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ScoringError(f"{name} must hold real numbers of at most 64 bits, not {array.dtype}")
    if isinstance(array, np.ma.MaskedArray):
        array = _without_hidden(array, name)
    if array.dtype == bool and not isinstance(array, np.memmap):
        array = clean_booleans(array)
    return array


def clean_booleans(array: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return booleans whose bytes are 0 or 1; other bytes, as files may hold them, are True."""
    if not array.size or int(array.view(np.uint8).max()) <= 1:
        return array
    return np.asarray(array.view(np.uint8) != 0)


def _from_tensor(tensor: Any, name: str) -> NDArray[Any]:
    """Copy a torch tensor to NumPy; torch itself is not needed."""
    tensor = tensor.detach()
    if tensor.device.type == "meta":
        raise ScoringError(f"{name} is a tensor without values (on the meta device)")
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    tensor = tensor.cpu()
    try:
        return np.asarray(tensor.numpy())
    except TypeError:  # a dtype that NumPy lacks
        if not tensor.is_floating_point():
            raise ScoringError(f"{name} must hold real numbers, not {tensor.dtype}") from None
        return np.asarray(tensor.float().numpy())


def _without_hidden(array: np.ma.MaskedArray[Any, Any], name: str) -> NDArray[Any]:
    hidden = int(np.ma.count_masked(array))
    if not hidden:
        return np.asarray(array.data)
    if array.dtype == bool:
        raise ScoringError(f"{name} hides {hidden} booleans under a mask; say what they are")
    dtype = array.dtype if array.dtype.kind == "f" else np.float64
    return np.where(np.ma.getmaskarray(array), np.nan, array.data).astype(dtype)


def masks_from_indices(indices: Sequence[Any] | NDArray[Any], num_examples: int) -> NDArray[Any]:
    """Turn index lists into masks.

    Parameters
    ----------
    indices : sequence of M integer arrays, or int [M, k]
        The kept examples of each subset; the lists may have different lengths. Whole numbers
        stored as floats are accepted.
    num_examples : int
        N, the width of the masks.

    Returns
    -------
    bool [M, N]

    Raises
    ------
    ScoringError
        If an index is outside ``[0, N)``, occurs twice in one subset, or is not an integer.
    """
    masks = np.zeros((len(indices), num_examples), dtype=bool)
    for row, subset in enumerate(indices):
        kept = as_array(subset, f"subset {row}")
        if kept.size == 0:
            continue
        if kept.dtype.kind == "f" and (kept == np.floor(kept)).all():  # NaN is not
            kept = kept.astype(np.int64)
        if kept.ndim != 1 or kept.dtype.kind not in "iu":
            raise ScoringError(
                f"subset {row} must be a list of integer indices, not {kept.dtype} {kept.shape}"
            )
        if kept.min() < 0 or kept.max() >= num_examples:
            raise ScoringError(
                f"subset {row} names example {int(kept.max() if kept.min() >= 0 else kept.min())}, "
                f"but there are only {num_examples} examples"
            )
        masks[row, kept] = True
        if masks[row].sum() != kept.size:
            raise ScoringError(f"subset {row} names an example twice")
    return masks


def as_masks(masks: Any, num_examples: int) -> NDArray[Any]:
    """Return masks [M, N] from masks or from a list of index lists (dtype is kept for arrays).

    An array (or tensor) is read as masks, True or 1 meaning *kept*; a list or tuple is read as one
    index array a subset, unless its entries are boolean. :func:`masks_from_indices` converts an
    integer index array.

    Raises
    ------
    ScoringError
        If the shape or the values cannot be masks over ``num_examples`` examples.
    """
    if isinstance(masks, np.ndarray) and masks.dtype == object:
        masks = list(masks)
    if isinstance(masks, list | tuple):
        if not masks:
            raise ScoringError("there are no masks to score on")
        if as_array(masks[0], "mask 0").dtype != bool:
            return masks_from_indices(masks, num_examples)
    array = as_array(masks, "masks")
    if array.ndim != 2 or array.shape[1] != num_examples:
        hint = ""
        if array.ndim == 2 and array.dtype.kind in "iu":
            hint = "; index arrays go through masks_from_indices(indices, num_examples)"
        raise ScoringError(
            f"masks have shape {list(array.shape)}, but the scores are of {num_examples} "
            f"examples, so [M, {num_examples}] is needed{hint}"
        )
    return array


def blocks(total: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``range(total)`` in order."""
    for start in range(0, total, max(1, size)):
        yield slice(start, min(total, start + max(1, size)))


def in_threads(
    work: Callable[[slice], None], total: int, size: int, threads: int | None = None
) -> None:
    """Call ``work`` on each block of ``range(total)``, on as many threads as there are cores.

    The blocks must be independent; the result then does not depend on the number of ``threads``.
    """
    pieces = list(blocks(total, size))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(len(pieces), threads or cores or 1)
    if workers <= 1:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, pieces):
            pass
