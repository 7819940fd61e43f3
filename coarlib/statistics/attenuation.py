"""How correlations of few rows, and of ranks, relate to the correlation of normal variables.

With correlation ρ, normal variables have the expected correlations over M rows

pearson    ρ (1 - (1 - ρ²) / 2M), to first order (Hotelling 1953)
spearman   ((M - 2) (6/π) arcsin(ρ/2) + 3 (2/π) arcsin ρ) / (M + 1) (Moran 1948)
kendall    (2/π) arcsin ρ

What is known of ρ, as the Spearman-Brown formula, is carried over to the three by these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.statistics.correlation import Kind

__all__ = ["expected_correlation", "normal_correlation"]

_GRID = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 4001))  # denser where arcsin is steep


def expected_correlation(rho: Any, kind: Kind, count: int) -> NDArray[np.float64]:
    """Expected correlation over ``count`` rows of normal variables with correlation ``rho``."""
    rho = np.clip(np.asarray(rho, dtype=np.float64), -1, 1)
    if kind == "pearson":
        return np.asarray(rho * (1 - (1 - rho**2) / (2 * count)))
    tau = 2 / np.pi * np.arcsin(rho)
    if kind == "kendall":
        return np.asarray(tau)
    r = ((count - 2) * 6 / np.pi * np.arcsin(rho / 2) + 3 * tau) / (count + 1)
    return np.asarray(np.clip(r, -1, 1))


def normal_correlation(r: Any, kind: Kind, count: int) -> NDArray[np.float64]:
    """Which ``rho`` has the expected correlation ``r``, by interpolation; NaN stays NaN."""
    return np.asarray(np.interp(r, expected_correlation(_GRID, kind, count), _GRID))
