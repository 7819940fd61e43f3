"""Half-way between the shared prior and plain ridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coarlib.regression.solvers.shared_prior import SharedPrior

__all__ = ["TemperedPrior"]


@dataclass(frozen=True)
class TemperedPrior(SharedPrior):
    """:class:`SharedPrior` with the root of the learnt variances, for doubtful cases."""

    name: ClassVar[str] = "tempered_prior"
    temper: float = 0.5
