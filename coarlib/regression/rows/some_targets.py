"""Chosen targets of another source of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from coarlib.gradient_passes import PassSums
from coarlib.regression.rows.sources import RowSource

__all__ = ["SomeTargets"]


@dataclass(frozen=True)
class SomeTargets:
    """A row source that shows chosen targets of another; all else is the other's.

    Parameters
    ----------
    source : RowSource
    chosen : int64 [t]
    """

    source: RowSource
    chosen: NDArray[np.int64]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    @property
    def num_targets(self) -> int:
        """How many targets are shown, t."""
        return len(self.chosen)

    def identity(self, row_ids: NDArray[np.int64]) -> str:
        """Digest of the rows and of what is shown of them."""
        shown = xxhash.xxh3_128_hexdigest(self.chosen.tobytes())
        return f"{self.source.identity(row_ids)}-{shown}"

    def read(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Read rows by position: bool [B, N] and outputs [B, t]."""
        masks, outputs = self.source.read(positions)
        return masks, outputs[:, self.chosen]

    def gradient_passes(self) -> PassSums | None:
        """Sums of the source's gradient passes for these targets; None if it has none."""
        read = getattr(self.source, "gradient_passes", None)
        passes = None if read is None else read()
        return None if passes is None else passes.of_targets(self.chosen)
