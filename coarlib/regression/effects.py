"""Effects of sets of features: sums of weights, whose errors go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from coarlib.display import text_table
from coarlib.errors import ArgumentError
from coarlib.regression.heldout import HeldOut

__all__ = ["SLOPE_ERROR", "Effect", "error_of_sum", "precise_bias", "slope_error"]

SHOWN = 10
MOST_LOST = 1e-4  # of the largest weight: what float32 may round a prediction by
SLOPE_ERROR = "slope_error"


@dataclass(frozen=True, repr=False)
class Effect:
    """Predicted change of each output when all features of a set are kept rather than ablated.

    It is a sum of linear effects among ablations like those of the fit. Ablating a large set
    altogether is no such ablation: ``unexplained`` says how much even of those is not linear.

    Attributes
    ----------
    what : str
    index : int64 [k]
        The features of the set.
    value : float64 [T]
    error : float64 [T] or None
        Standard error; of sets it is known where draws from the posterior are, but not of all
        features together.
    freedom : float
        Its degrees of freedom: how many draws it is from.
    linear : float64 [T] or None
        Share of the variance of held-out outputs that the weights explain.
    """

    what: str
    index: NDArray[np.int64]
    value: NDArray[np.float64]
    error: NDArray[np.float64] | None
    freedom: float
    linear: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.value, dtype)

    def interval(self, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ends of an interval of each target, [T] both; NaN where no error is known.

        Raises
        ------
        ArgumentError
            If ``level``, its probability, is not between 0 and 1.
        """
        if not (isinstance(level, Real) and 0 < level < 1):
            raise ArgumentError(f"level must be a probability between 0 and 1, not {level!r}")
        if self.error is None:
            return np.full_like(self.value, np.nan), np.full_like(self.value, np.nan)
        width = float(special.stdtrit(self.freedom, 0.5 + level / 2)) * self.error
        return self.value - width, self.value + width

    @property
    def unexplained(self) -> float:
        """Mean share of the variance of held-out outputs that no sum of weights explains; or NaN.

        Noise of the weights is in it as well.
        """
        if self.linear is None or np.isnan(self.linear).all():
            return float("nan")
        return float(1 - np.nanmean(self.linear))

    def __repr__(self) -> str:
        low, high = self.interval()
        known = self.error is not None
        head = [f"keeping {self.what} ({len(self.index)})", "effect", *["95% interval"] * known]
        rows = []
        for at in range(min(len(self), SHOWN)):
            bounds = [f"[{low[at]:+.4f}, {high[at]:+.4f}]"] * known
            rows.append([f"target {at}", f"{self.value[at]:+.4f}", *bounds])
        more = f"\nand {len(self) - SHOWN} more targets" * (len(self) > SHOWN)
        return text_table(head, rows) + more + f"\n{self._caution()}"

    def _caution(self) -> str:
        share = self.unexplained
        if np.isnan(share):
            return "a sum of linear effects; how linear they are was not checked on held-out rows"
        return (
            f"a sum of linear effects: {share:.0%} of the variance of held-out outputs is not "
            "explained by weights"
        )


def precise_bias(bias: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    """Return what to add to predictions by weights [N, T], [T] in float32.

    In float64 where outputs lie so far from zero that float32 would round what varies.
    """
    narrow, largest = np.asarray(bias, np.float32), np.abs(weight).max(axis=0, initial=0)
    far = (largest > 0) & (np.spacing(np.abs(narrow)) > MOST_LOST * largest)
    return np.asarray(bias, np.float64) if far.any() else narrow


def slope_error(held_out: HeldOut | None, summary: Mapping[str, Any]) -> float:
    """By which factor predictions of held-out rows are off, of all targets that were fitted.

    Where scores are not kept, for they are of some targets only, the summary says it.
    """
    return float(summary.get(SLOPE_ERROR, 0.0)) if held_out is None else held_out.slope_error


def error_of_sum(
    value: NDArray[np.float64],
    index: NDArray[np.int64],
    error: NDArray[np.float64] | None,
    draws: NDArray[Any] | None,
    common: float,
) -> tuple[NDArray[np.float64] | None, float]:
    """Return the standard error of a sum of weights, [T] or None, and its degrees of freedom.

    Parameters
    ----------
    value : float64 [T]
        The sum.
    index : int64 [k]
        Of the weights.
    error : float64 [N, T] or None
        Standard errors of all weights.
    draws : float [K, N, T] or None
        Draws of all weights from their posterior, in units of ``error`` about the mean.
    common : float
        By which factor weights of a group may all be too large or too small: how far slopes of
        held-out outputs on predictions are from 1. Draws do not know it, for gradient passes see
        components that are ablated in part.
    """
    if error is not None and len(index) == 1:
        return error[index[0]], np.inf
    # Of all features together intervals were too short on real rows.
    if error is None or draws is None or len(index) == len(error):
        return None, np.inf
    drawn = np.einsum("knt,nt->kt", draws[:, index].astype(np.float64), error[index])
    return np.sqrt(np.square(drawn).mean(0) + np.square(common * value)), len(drawn)
