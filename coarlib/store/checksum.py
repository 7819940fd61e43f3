"""One 64-bit digest a row over all its arrays (XXH3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

# Zero in the file means "not committed", so a digest that happens to be zero is stored as this.
DIGEST_OF_ZERO = 1


def row_checksums(
    rows: Sequence[int] | NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]
) -> NDArray[np.uint64]:
    """Digest each row over all its arrays.

    Parameters
    ----------
    rows : int [B]
        Row indices; they seed the digest, so bytes that landed in another row do not pass.
    arrays : mapping of name to array [B, ...]
        C-order, in the stored dtypes; names are visited in sorted order.

    Returns
    -------
    uint64 [B]
        Never zero.
    """
    digests = np.empty(len(rows), dtype=np.uint64)
    if len(rows) == 0:
        return digests
    values = [arrays[key].reshape(len(rows), -1).view(np.uint8) for key in sorted(arrays)]
    for position, row in enumerate(rows):
        digest = xxhash.xxh3_64(seed=int(row))
        for value in values:
            digest.update(value[position])
        digests[position] = digest.intdigest() or DIGEST_OF_ZERO
    return digests


def checksum_of_bytes(row: int, data: memoryview) -> int:
    """Digest one row whose arrays lie one after another, in sorted order, in ``data``."""
    return xxhash.xxh3_64_intdigest(data, seed=row) or DIGEST_OF_ZERO
