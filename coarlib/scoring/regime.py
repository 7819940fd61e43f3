"""Under which conditions an LDS was measured: numbers of different regimes are not comparable."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from coarlib.masks.digests import mask_digests
from coarlib.statistics.arrays import blocks
from coarlib.statistics.correlation import Kind

__all__ = ["Regime", "regime_of"]

_BLOCK_BYTES = 64 * 2**20
_ABOUT_THE_SAME = 0.005  # of the kept fraction: random masks of one design differ by less


@dataclass(frozen=True)
class Regime:
    """What an LDS depends on beside the scores.

    Attributes
    ----------
    kept : float
        Mean fraction of examples (or components) that a subset keeps.
    num_subsets, num_runs : int
    num_targets : int
    kind : "spearman", "pearson" or "kendall"
    output : str or None
        Name of the output, where it has one.
    seeds : str or None
        "same" or "fresh": whether the retrained models have the seed of the attributed one.
    digest : str
        Of the masks and outputs that were scored on, 16 hexadecimal digits.
    """

    kept: float
    num_subsets: int
    num_runs: int
    num_targets: int
    kind: Kind
    output: str | None
    seeds: str | None
    digest: str

    def __str__(self) -> str:
        runs = f" × {self.num_runs} runs" if self.num_runs > 1 else ""
        seeds = f", {self.seeds} seeds" if self.seeds else ""
        output = f", output {self.output}" if self.output else ""
        return (
            f"{self.kept:.0%} kept, {self.num_subsets} subsets{runs}{seeds}{output}, {self.kind}, "
            f"bank {self.digest[:8]}"
        )

    def difference(self, other: Regime) -> str | None:
        """Say in words the first thing in which another regime differs; None if nothing does."""
        for name, words in _WORDS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            same = mine == theirs
            if name == "kept":
                same = abs(mine - theirs) <= _ABOUT_THE_SAME
            elif name in ("output", "seeds"):
                same = same or None in (mine, theirs)
            if not same:
                shown = (f"{v:.1%}" if name == "kept" else str(v) for v in (mine, theirs))
                return f"{words} ({' and '.join(shown)})"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Regime:
        """Return the regime that :meth:`to_json` described."""
        return cls(**{item.name: values[item.name] for item in fields(cls)})


_WORDS = {
    "kept": "the fraction that is kept",
    "num_subsets": "the number of subsets",
    "num_runs": "the number of runs of a subset",
    "seeds": "the seeds of the retrained models",
    "output": "the output",
    "kind": "the correlation",
    "num_targets": "the number of targets",
    "digest": "the masks and outputs themselves",
}


def regime_of(
    masks: NDArray[Any],
    outputs: NDArray[Any],
    rows: NDArray[np.int64],
    *,
    kind: Kind,
    output: str | None = None,
    seeds: str | None = None,
) -> Regime:
    """Describe rows ``rows`` of masks [M, N] and outputs [M, T] or [M, R, T].

    The digest does not depend on dtypes, files or blocks, only on the rows' values and order.
    """
    digest = xxhash.xxh3_64()
    kept = 0
    row_bytes = 8 * max(masks.shape[1], int(np.prod(outputs.shape[1:])), 1)
    for piece in blocks(len(rows), max(1, _BLOCK_BYTES // row_bytes)):
        chosen = rows[piece]
        block = np.asarray(masks[chosen])
        kept += int(np.count_nonzero(block))
        for mask, values in zip(mask_digests(block), outputs[chosen], strict=True):
            digest.update(mask.astype("<u8").tobytes())
            digest.update(np.ascontiguousarray(values, dtype="<f8").data)
    return Regime(
        kept=kept / max(len(rows) * masks.shape[1], 1),
        num_subsets=len(rows),
        num_runs=outputs.shape[1] if outputs.ndim == 3 else 1,
        num_targets=outputs.shape[-1],
        kind=kind,
        output=output,
        seeds=seeds,
        digest=digest.hexdigest(),
    )
