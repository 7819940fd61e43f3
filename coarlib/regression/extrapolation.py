"""What more rows would bring: the theory of how predictions improve, fitted to measured points.

With n rows of m independent features, a truth that explains the share ρ of an output's variance,
and predictions that correlate with it by r(n), r(∞) = √ρ:

least squares    r² = ρ / (1 + (1/ρ - 1) m / (n - m - 1)), n > m + 1 (the weights' own noise; it
                 goes to infinity as n falls to m, where the curve has its dip)
best ridge       r² = ρ - (1 - ρ) γ q, γ = m / n, λ = γ (1/ρ - 1), q the Stieltjes transform of the
                 Marchenko-Pastur law at -λ (Dobriban and Wager 2018, Theorem 2.1)

Both rise in n. For least squares m is the number of features, and only ρ is fitted, to points with
more rows than features. What shrinks (ridge, shared priors, lasso) needs fewer rows where few
features matter: m is fitted, too. The prediction is the last measured point plus the rise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["expected_correlation", "extrapolate"]

TOPS = np.linspace(0.005, 0.9995, 200)  # r(∞)
SIZES = 25  # effective numbers of features tried
MARGIN = 1.1  # least squares with fewer rows a feature is all noise
LEAST_POINTS = 3
FORM = 0.2  # of the rise: truths are neither dense nor the same for all targets

Predictions = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def expected_correlation(
    rows: NDArray[np.int64],
    top: NDArray[np.float64],
    size: NDArray[np.float64] | float,
    shrinks: bool = True,
) -> NDArray[np.float64]:
    """Correlation of predictions with outputs by the formulas above.

    Parameters
    ----------
    rows : int64 [P]
    top : float64 [G]
        r(∞).
    size : float64 [G] or float
        m.
    shrinks : bool
        Ridge, not least squares.

    Returns
    -------
    float64 [G, P]
    """
    n, rho = np.asarray(rows, float), np.asarray(top)[:, None] ** 2
    m = np.broadcast_to(np.asarray(size, float), np.shape(top))[:, None]
    if not shrinks:
        return np.sqrt(rho / (1 + (1 / rho - 1) * m / np.maximum(n - m - 1, 1e-9)))
    gamma = m / n
    lam = gamma * (1 / rho - 1)
    middle = 1 - gamma + lam
    # The root as 2 / (…), which does not cancel.
    stieltjes = 2 / (middle + np.sqrt(middle**2 + 4 * gamma * lam))
    return np.sqrt(np.maximum(rho - (1 - rho) * gamma * stieltjes, 0))


def extrapolate(
    rows: NDArray[np.int64],
    correlation: NDArray[np.float64],
    replicas: NDArray[np.float64],
    wanted: NDArray[np.int64],
    *,
    features: int,
    shrinks: bool = True,
) -> Predictions:
    """Extrapolate a learning curve.

    Parameters
    ----------
    rows : int64 [P], correlation : float64 [P]
        Measured.
    replicas : float64 [P, R]
        What ``correlation`` could have been on other held-out rows.
    wanted : int64 [Q]
    features : int
        Features that vary.
    shrinks : bool
        Whether the solver shrinks weights by what the rows say; least squares does not.

    Returns
    -------
    predicted, sd of its rise over the last point, sd of itself : float64 [Q]
        NaN where the points say nothing; empty with too few points, or without replicas.
    """
    none = np.full(len(wanted), np.nan)
    if len(rows) < LEAST_POINTS or not np.isfinite(replicas).any():
        return none[:0], none[:0], none[:0]
    used = np.ones(len(rows), bool) if shrinks else rows > MARGIN * features + 1
    if not used[-1]:
        return none, none, none
    rows, correlation, replicas = rows[used], correlation[used], replicas[used]
    rise = _rise(rows, correlation[:, None], wanted, features, shrinks)[:, 0]
    drawn = _rise(rows, replicas, wanted, features, shrinks)
    form = _missed(rows, correlation, features, shrinks) * np.log2(wanted / rows[-1])
    form = np.hypot(form, FORM * rise)
    if not shrinks:  # how noisy weights are depends on the masks drawn, most of all near the dip
        noisier = _noisier(rows[-1], features)
        form = np.hypot(
            form, _rise(rows, correlation[:, None], wanted, noisier, False)[:, 0] - rise
        )
    gain_sd = np.hypot(np.nanstd(drawn, axis=1), form)
    sd = np.hypot(np.nanstd(drawn + replicas[-1], axis=1), form)
    return np.minimum(correlation[-1] + rise, 1), gain_sd, sd


def _rise(
    rows: NDArray[np.int64],
    values: NDArray[np.float64],
    wanted: NDArray[np.int64],
    features: float,
    shrinks: bool,
) -> NDArray[np.float64]:
    """How far the best curve through ``values`` [P, R] rises after the last point, [Q, R]."""
    sizes = np.geomspace(max(1.0, 0.01 * features), features, SIZES) if shrinks else [features]
    top, size = (grid.ravel() for grid in np.meshgrid(TOPS, np.asarray(sizes, float)))
    curves = expected_correlation(rows, top, size, shrinks)  # [G, P]
    weight = rows / rows[-1]  # late points are less noisy and say more about what comes
    misfit = (weight * curves**2).sum(1)[:, None] - 2 * (weight * curves) @ values
    best = np.argmin(misfit, axis=0)
    ahead = expected_correlation(wanted, top[best], size[best], shrinks)
    return np.maximum(ahead - curves[best, -1:], 0).T


def _noisier(rows: int, features: int) -> float:
    """Features with which m / (n - m - 1) is one standard deviation of chi squared larger."""
    left = max(rows - features - 1, 1)
    ratio = features / left * (1 + np.sqrt(2 / left))
    return float(ratio * (rows - 1) / (1 + ratio))


def _missed(
    rows: NDArray[np.int64], correlation: NDArray[np.float64], features: int, shrinks: bool
) -> float:
    """How wrong the form was about the last point, told by the earlier ones."""
    if len(rows) < 2:
        return 0.0
    before = correlation[:-1, None]
    rise = _rise(rows[:-1], before, rows[-1:], features, shrinks)[0, 0]
    return float(correlation[-1] - correlation[-2] - rise)
