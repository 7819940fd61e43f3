"""What attributions cost: the rows, and the passes that a prior of the weights took.

The unit is one forward pass over the examples, which is what a row of ablations takes; a pass with
its backward pass counts as three. (A row of a retraining store is a whole training.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coarlib.errors import RegressionError

__all__ = ["COST", "Cost", "check_passes"]

COST = "cost"  # its key in a summary


@dataclass(frozen=True)
class Cost:
    """The cost of a fit in forward passes over the examples.

    Attributes
    ----------
    rows : int
        Rows that were read to get the weights, held-out ones and those left out included.
    prior : float or None
        What the guesses of the weights took, in forward passes; None where nobody said.
    """

    rows: int
    prior: float | None = 0

    @property
    def passes(self) -> float:
        """Forward passes altogether; at least so many where the prior's are unknown."""
        return self.rows + (self.prior or 0)

    @property
    def complete(self) -> bool:
        """Whether the cost of everything is known."""
        return self.prior is not None

    def __str__(self) -> str:
        if not self.prior:
            return f"{self.rows:,} rows" + (", and a prior of unknown cost" * (self.prior is None))
        return (
            f"{self.rows:,} rows and {self.prior:,.10g} forward passes for a prior, "
            f"together {self.passes:,.10g}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return what a summary holds under ``cost``."""
        total = self.passes if self.complete else None
        return {"rows": self.rows, "prior_passes": self.prior, "forward_passes": total}

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Cost:
        """Read the cost from a result's summary; older ones know less."""
        if COST in summary:
            return cls(int(summary[COST]["rows"]), summary[COST]["prior_passes"])
        # Only a prior mean has slopes.
        known = "num_rows" in summary and "slopes" not in summary
        rows = int(summary.get("num_rows") or 0) + int(summary.get("num_excluded") or 0)
        return cls(rows, 0 if known else None)


def check_passes(passes: float | None) -> None:
    """RegressionError if this is no number of forward passes."""
    if passes is not None and not 0 <= passes < float("inf"):
        raise RegressionError(f"a cost in forward passes is a finite number ≥ 0, not {passes}")
