"""Reading rows block by block, the next one while the caller works on this one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.regression.rows import RowSource

__all__ = ["BLOCK_BYTES", "finite_blocks", "read_blocks", "rows_per_block"]

MAX_BLOCK_ROWS = 8192  # float32 sums of so many rows keep six digits
BLOCK_BYTES = 512 * 2**20


def rows_per_block(source: RowSource, block_bytes: int = BLOCK_BYTES) -> int:
    """How many rows a block may have within ``block_bytes`` (two blocks are held at a time)."""
    row_bytes = 6 * source.num_features + (2 * source.output_dtype.itemsize + 4) * (
        source.num_targets
    )
    return int(np.clip(block_bytes // max(1, row_bytes), 64, MAX_BLOCK_ROWS))


def read_blocks(
    source: RowSource,
    positions: NDArray[np.int64] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[Any]]]:
    """Iterate over blocks of rows, reading the next one while the caller works.

    Yields
    ------
    (int64 [B], bool [B, N], real [B, T])
        Positions, masks and outputs.
    """
    if positions is None:
        positions = np.arange(len(source.row_ids), dtype=np.int64)
    size = rows_per_block(source, block_bytes)
    blocks = [positions[start : start + size] for start in range(0, len(positions), size)]
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(source.read, blocks[0]) if blocks else None
        for index, block in enumerate(blocks):
            masks, outputs = ahead.result()  # type: ignore[union-attr]
            if index + 1 < len(blocks):
                ahead = pool.submit(source.read, blocks[index + 1])
            yield block, masks, outputs


def finite_blocks(
    source: RowSource, positions: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.bool_], NDArray[Any]]]:
    """Iterate over masks [B, N] and outputs [B, T], without rows that moments leave out."""
    for _, masks, outputs in read_blocks(source, positions):
        finite = np.isfinite(outputs).all(1)
        yield (masks, outputs) if finite.all() else (masks[finite], outputs[finite])
