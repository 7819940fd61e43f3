"""Resumable passes over the rows: partial moments on disk, checksummed, with the rows they hold.

Moments are sums, so an interrupted pass goes on with the rows that are not in the sum yet. A store
that grew in between just has more such rows; rows that are no longer wanted are subtracted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.files import for_file, whole_file
from coarlib.loading import load_npz
from coarlib.progress import Progress
from coarlib.regression.moments import Accumulator, Moments
from coarlib.regression.rows import RowSource
from coarlib.regression.rows.blocks import BLOCK_BYTES, read_blocks

__all__ = ["PARTIAL", "load_moments", "resumable_moments", "save_moments"]

PARTIAL = "partial"
SECONDS_BETWEEN_SAVES = 60.0
ARRAYS = ("kept", "offset", "cross", "total", "square", "digests")


def save_moments(path: Path, moments: Moments, done: NDArray[np.int64], identity: str) -> None:
    """Write moments and the rows they sum; the file appears whole or not at all.

    Parameters
    ----------
    path : Path
    moments : Moments
    done : int64 [K]
        Row ids that are in the sum (or were left out of it for bad outputs).
    identity : str
        What those rows are (see ``RowSource.identity``).
    """
    content: dict[str, Any] = {name: getattr(moments, name) for name in ARRAYS}
    if moments.pairs is not None:
        content["pairs"] = moments.pairs
    content |= {"rows": np.array([moments.num_rows, moments.num_excluded]), "done": done}
    content["identity"] = np.array(identity)
    content["checksum"] = np.array(_digest(content))
    with whole_file(for_file(path)) as file:
        np.savez(file, **content)


def load_moments(path: Path) -> tuple[Moments, NDArray[np.int64], str] | None:
    """Read what :func:`save_moments` wrote; None if it is absent or damaged."""
    try:
        content = load_npz(path, RegressionError)
        checksum = str(content.pop("checksum"))
        if checksum != _digest(content):
            return None
        rows, excluded = (int(v) for v in content["rows"])
        arrays = {name: content[name] for name in ARRAYS}
    except (RegressionError, ValueError, KeyError):
        return None
    moments = Moments(num_rows=rows, num_excluded=excluded, pairs=content.get("pairs"), **arrays)
    return moments, content["done"], str(content["identity"])


def _digest(content: dict[str, Any]) -> str:
    digest = xxhash.xxh3_128()
    for key in sorted(content):
        array = np.ascontiguousarray(content[key])
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def resumable_moments(
    source: RowSource,
    positions: NDArray[np.int64],
    path: Path,
    *,
    device: torch.device | str = "cpu",
    with_pairs: bool = True,
    block_bytes: int = BLOCK_BYTES,
    save_every: float = SECONDS_BETWEEN_SAVES,
    quiet: bool = True,
    say: Callable[[str], None] = print,
) -> Moments:
    """Sum rows, saving the sum now and then, and going on from a saved sum.

    Parameters
    ----------
    source, positions
        The rows wanted.
    path : Path
        The file of the partial sum.
    save_every : float
        Seconds between saves; a pass that is shorter writes nothing.
    with_pairs, device, block_bytes, quiet
        See :meth:`Moments.from_rows`.
    say : callable
        Receives a line where something is resumed or discarded.
    """
    wanted = source.row_ids[positions]
    start, done = _resume(source, wanted, path, with_pairs, say)
    left = positions[~np.isin(wanted, done)]
    if start is not None and len(left) == 0:
        return start
    shape = source.num_features, source.num_targets
    sums = Accumulator(*shape, device, with_pairs=with_pairs, expected_rows=len(positions))
    saved = time.monotonic()
    with Progress(len(positions), "moments", quiet=quiet) as progress:
        progress.advance(len(positions) - len(left))
        for block, masks, outputs in read_blocks(source, left, block_bytes):
            sums.add(masks, outputs)
            progress.advance(len(block))
            done = np.concatenate([done, source.row_ids[block]])
            if time.monotonic() - saved >= save_every and len(done) < len(wanted):
                save_moments(path, _joined(start, sums), np.sort(done), source.identity(done))
                saved = time.monotonic()
    return _joined(start, sums)


def _joined(start: Moments | None, sums: Accumulator) -> Moments:
    if sums.num_rows == 0 and start is not None:
        return start
    moments = sums.moments()
    return moments if start is None else start + moments


def _resume(
    source: RowSource,
    wanted: NDArray[np.int64],
    path: Path,
    with_pairs: bool,
    say: Callable[[str], None],
) -> tuple[Moments | None, NDArray[np.int64]]:
    """Return the saved sum restricted to wanted rows, and those rows' ids."""
    none = np.empty(0, np.int64)
    found = load_moments(path)
    if found is None:
        return None, none
    moments, done, identity = found
    shape = (moments.num_features, moments.num_targets)
    usable = (
        shape == (source.num_features, source.num_targets)
        and (moments.pairs is not None or not with_pairs)
        and np.isin(done, source.row_ids).all()
        and source.identity(done) == identity
    )
    extra = done[~np.isin(done, wanted)]
    if not usable or len(extra) > len(done) // 2:
        say(f"the rows behind {path} have changed: starting over")
        return None, none
    if len(extra):
        where = np.searchsorted(source.row_ids, extra)
        moments = moments - Moments.from_rows(source, where, with_pairs=with_pairs)
    say(f"resuming: {len(done) - len(extra)} of {len(wanted)} rows are in the sum already")
    return moments, np.setdiff1d(done, extra)


def discard_partial(out_dir: Path) -> None:
    """Remove what interrupted passes left in a result directory."""
    shutil.rmtree(out_dir / PARTIAL, ignore_errors=True)
