"""Coordinate descent for one target's lasso or elastic-net path on a Gram matrix (compiled).

Minimises ``½ yy - c'w + ½ w'Rw + λ₁ ‖w‖₁ + ½ λ₂ ‖w‖²``. All targets share R, so targets are
spread over threads. For each λ a working set, grown by the sequential strong rule (features with
|g_j| ≥ 2λ - λ_previous) and by violations of the optimality conditions, is solved on a compact
copy of its part of R; the gradient of the other features is then refreshed and the duality gap
checked on all of them. Nothing is discarded unsafely: a path point ends only on its certified gap
(or, flagged by the gap in the log, when sweeps run out).
"""

# Compiled functions take arrays one by one.
# ruff: noqa: PLR0917
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.compiled import njit

__all__ = ["solve_paths"]

MAX_ROUNDS = 60
# Of the variance, with R in float64 and float32: a gap further below zero is no gap.
ROUNDING, NARROW_ROUNDING = 1e-9, 1e-7
_FAST = {"contract", "reassoc", "nsz"}


@njit(fastmath=_FAST)
def _gap(
    w: NDArray[Any],
    g: NDArray[Any],
    c: NDArray[Any],
    k: int,
    yy: float,
    l1: float,
    l2: float,
    positive: bool,
) -> float:  # pragma: no cover - compiled
    """Duality gap from moments: the l2 part is carried as extra rows √λ₂ I of the design.

    With r the (extended) residual and rr = ‖r‖², s r is dual feasible where s Z'r stays within
    ±λ₁ (below λ₁ for weights ≥ 0), and the gap is ½ rr + λ₁‖w‖₁ - (s y'r - ½ s² rr). The best s is
    clipped from both sides: after a step that overshoots, y'r is negative and so is the best s.
    """
    norm, wc, wg, top, bottom = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(k):
        e = g[i] - l2 * w[i]
        norm += abs(w[i])
        wc += w[i] * c[i]
        wg += w[i] * e
        top, bottom = max(top, e), max(bottom, -e)
    rr = max(yy - wc - wg, 0.0)
    ry = yy - wc
    if not positive:
        top = bottom = max(top, bottom)
    s = ry / rr if rr > 0.0 else 0.0
    if s > 0.0 and s * top > l1:
        s = l1 / top
    elif s < 0.0 and -s * bottom > l1:
        s = -l1 / bottom
    return 0.5 * rr + l1 * norm - (s * ry - 0.5 * s * s * rr)


@njit(fastmath=_FAST)
def _sweep(
    gram: NDArray[Any],
    u: NDArray[Any],
    h: NDArray[Any],
    k: int,
    l1: float,
    l2: float,
    positive: bool,
    only_active: bool,
) -> float:  # pragma: no cover - compiled
    """One cyclic pass over the working set; returns the largest decrease of the objective."""
    largest = 0.0
    for i in range(k):
        if only_active and u[i] == 0.0:
            continue
        d = gram[i, i]
        z = h[i] + d * u[i]
        if z > l1:
            new = (z - l1) / (d + l2)
        elif z < -l1 and not positive:
            new = (z + l1) / (d + l2)
        else:
            new = 0.0
        step = new - u[i]
        if step != 0.0:
            u[i] = new
            row = gram[i]
            for q in range(k):
                h[q] -= step * row[q]
            largest = max(largest, step * step * (d + l2))
    return largest


@njit()
def _grown(gram: NDArray[Any], k: int) -> NDArray[Any]:  # pragma: no cover - compiled
    """Return a buffer of twice the side with the leading k × k part of ``gram``."""
    bigger = np.empty((2 * gram.shape[0], 2 * gram.shape[0]), gram.dtype)
    for i in range(k):  # loops: assigning slices compiles for seconds
        for j in range(k):
            bigger[i, j] = gram[i, j]
    return bigger


@njit()
def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:  # pragma: no cover - compiled
    for i in range(len(source)):
        target[i] = source[i]


@njit(fastmath=_FAST)
def _validation_error(
    gram: NDArray[Any], c: NDArray[Any], yy: float, u: NDArray[Any], k: int
) -> float:  # pragma: no cover - compiled
    """Mean squared error on rows whose moments have been copied for the working set."""
    error = yy
    for a in range(k):
        if u[a] != 0.0:
            row, dot = gram[a], 0.0
            for b in range(k):
                dot += row[b] * u[b]
            error += u[a] * (dot - 2.0 * c[a])
    return max(error, 0.0)


@njit()
def _copied(
    gram: NDArray[Any], local: NDArray[Any], index: NDArray[np.int64], before: int, k: int
) -> NDArray[Any]:  # pragma: no cover - compiled
    """Add the features ``before`` to ``k`` of a working set to a copy of its part of ``gram``."""
    while k > local.shape[0]:
        local = _grown(local, before)
    for a in range(before, k):
        row = gram[index[a]]
        for q in range(a + 1):
            local[a, q] = local[q, a] = row[index[q]]
    return local


@njit()
def _extended(
    gram: NDArray[Any],
    local: NDArray[Any],
    index: NDArray[np.int64],
    inside: NDArray[np.bool_],
    k: int,
    w: NDArray[Any],
    g: NDArray[Any],
    level: float,
    positive: bool,
) -> tuple[NDArray[Any], int]:  # pragma: no cover - compiled
    """Add the features whose gradient reaches ``level`` to the working set."""
    for j in range(len(g)):
        if inside[j] or (w[j] == 0.0 and (g[j] if positive else abs(g[j])) < level):
            continue
        if k == local.shape[0]:
            local = _grown(local, k)
        row = gram[j]
        for q in range(k):
            local[k, q] = row[index[q]]
            local[q, k] = row[index[q]]
        local[k, k] = row[j]
        index[k], inside[j] = j, True
        k += 1
    return local, k


@njit()
def _solve_working_set(
    local: NDArray[Any],
    u: NDArray[Any],
    h: NDArray[Any],
    cw: NDArray[Any],
    k: int,
    yy: float,
    l1: float,
    l2: float,
    positive: bool,
    wanted: float,
) -> int:  # pragma: no cover - compiled
    """Descend until the working set's own duality gap is at most ``wanted``; returns sweeps."""
    sweeps = 0
    for _ in range(200):
        _sweep(local, u, h, k, l1, l2, positive, False)
        sweeps += 1
        if -ROUNDING * yy <= _gap(u, h, cw, k, yy, l1, l2, positive) <= wanted:
            break
        for _ in range(8):
            sweeps += 1
            if _sweep(local, u, h, k, l1, l2, positive, True) <= 0.01 * wanted / k:
                break
    return sweeps


@njit(fastmath=_FAST)
def _refresh(
    gram: NDArray[Any],
    index: NDArray[np.int64],
    u: NDArray[Any],
    k: int,
    w: NDArray[Any],
    g: NDArray[Any],
) -> None:  # pragma: no cover - compiled
    """Carry the working set's weights ``u`` over to ``w`` and to the whole gradient."""
    changes, places, count = np.zeros(4), np.zeros(4, np.int64), 0
    for a in range(k):
        change = u[a] - w[index[a]]
        if change != 0.0:
            w[index[a]] = u[a]
            changes[count], places[count] = change, index[a]
            count += 1
        if count == 4 or (count > 0 and a == k - 1):
            first, second = gram[places[0]], gram[places[1]]
            third, fourth = gram[places[2]], gram[places[3]]
            one, two, three, four = changes[0], changes[1], changes[2], changes[3]
            for q in range(len(g)):
                half = one * first[q] + two * second[q]
                g[q] -= half + (three * third[q] + four * fourth[q])
            changes[:] = 0.0
            count = 0


@njit(fastmath=_FAST)
def _extrapolate(
    values: NDArray[Any], previous: NDArray[Any], ratio: float
) -> None:  # pragma: no cover - compiled
    """Go on along the line through the last two values by ``ratio`` of their distance."""
    for j in range(len(values)):
        now = values[j]
        values[j] = now + ratio * (now - previous[j])
        previous[j] = now


@njit(fastmath=_FAST)
def _begin(
    gram: NDArray[Any],
    c: NDArray[Any],
    start: NDArray[Any],
    l1: float,
    l2: float,
    index: NDArray[np.int64],
    w: NDArray[Any],
    g: NDArray[Any],
) -> None:  # pragma: no cover - compiled
    """Fill weights and gradient from a start; one that is worse than zeros is none."""
    m, objective = len(c), 0.0
    for j in range(m):
        index[j], g[j] = j, c[j]
    _refresh(gram, index, start, m, w, g)
    for j in range(m):
        objective += l1 * abs(w[j]) + 0.5 * w[j] * (l2 * w[j] - c[j] - g[j])
    if not objective <= 0.0:
        for j in range(m):
            w[j], g[j] = 0.0, c[j]


@njit()
def _nonzero(values: NDArray[Any], k: int) -> int:  # pragma: no cover - compiled
    count = 0
    for a in range(k):
        count += values[a] != 0.0
    return count


@njit()
def _one_path(
    gram: NDArray[Any],
    c: NDArray[Any],
    yy: float,
    lams: NDArray[Any],
    l1_ratio: float,
    positive: bool,
    tol: float,
    start: NDArray[Any],
    val_gram: NDArray[Any],
    val_c: NDArray[Any],
    val_yy: float,
    patience: int,
    best_w: NDArray[Any],
    log: NDArray[Any],
) -> int:  # pragma: no cover - compiled
    """Solve one target along ``lams``; returns the index of the chosen λ.

    ``log`` [4, L] receives gap / (½ yy), number of non-zero weights, validation error and sweeps.
    """
    m = len(c)
    w, g, u, h, cw = np.zeros(m), np.zeros(m), np.zeros(m), np.zeros(m), np.zeros(m)
    index, inside = np.zeros(m, np.int64), np.zeros(m, np.bool_)
    _begin(gram, c, start, lams[0] * l1_ratio, lams[0] * (1.0 - l1_ratio), index, w, g)
    # Half the memory traffic, which is what a sweep costs; each round starts from exact gradients.
    local = np.empty((min(m, 64), min(m, 64)), np.float32)
    last_w, last_g = np.zeros(m), np.zeros(m)
    _copy(w, last_w)
    _copy(g, last_g)
    held, held_c, copied = np.empty((64, 64), np.float32), np.zeros(m), 0
    rounding = NARROW_ROUNDING if gram.itemsize == 4 else ROUNDING
    k, best, worse, best_error = 0, 0, 0, np.inf
    for step in range(len(lams)):
        l1, l2 = lams[step] * l1_ratio, lams[step] * (1.0 - l1_ratio)
        if step > 0 and not positive:
            # Weights are piecewise linear in λ, and the gradient is linear in them.
            ratio = 0.0
            if step > 1:
                ratio = (lams[step - 1] - lams[step]) / (lams[step - 2] - lams[step - 1])
            _extrapolate(w, last_w, ratio)
            _extrapolate(g, last_g, ratio)
        level = max(2 * l1 - lams[max(step - 1, 0)] * l1_ratio, 0.5 * l1)
        wanted, sweeps = 0.5 * tol * yy, 0
        inner, gap = 0.3 * wanted, np.inf
        for _ in range(MAX_ROUNDS):
            before = k
            local, k = _extended(gram, local, index, inside, k, w, g, level, positive)
            for a in range(before, k):
                cw[a] = c[index[a]]
            for a in range(k):  # from the whole gradient: without the drift of many updates
                u[a], h[a] = w[index[a]], g[index[a]]
            sweeps += _solve_working_set(local, u, h, cw, k, yy, l1, l2, positive, inner)
            _refresh(gram, index, u, k, w, g)
            gap = _gap(w, g, c, m, yy, l1, l2, positive)
            if -rounding * yy <= gap <= wanted:
                break
            if k == before:
                inner *= 0.2
            level = l1
        log[0, step], log[1, step], log[3, step] = gap / (0.5 * yy), _nonzero(u, k), sweeps
        if len(val_c) == 0:
            best = step
            _copy(w, best_w)
            continue
        held = _copied(val_gram, held, index, copied, k)
        for a in range(copied, k):
            held_c[a] = val_c[index[a]]
        copied = k
        error = _validation_error(held, held_c, val_yy, u, k)
        log[2, step] = error
        worse += 1
        if error <= best_error:
            best_error, best, worse = error, step, 0
            _copy(w, best_w)
        if worse >= patience:
            break
    return best


@njit(nogil=True)
def solve_paths(
    targets: tuple[int, int],
    gram: NDArray[Any],
    c: NDArray[Any],
    yy: NDArray[Any],
    lams: NDArray[Any],
    l1_ratio: float,
    positive: bool,
    tol: float,
    start: NDArray[Any],
    val_gram: NDArray[Any],
    val_c: NDArray[Any],
    val_yy: NDArray[Any],
    patience: int,
    weights: NDArray[Any],
    logs: NDArray[Any],
    best: NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """Solve the paths of a range of the t targets; threads may take one each.

    Parameters
    ----------
    targets : (first, stop)
    gram : float64 or float32 [M, M]; c : [t, M]; yy : [t]
    lams : [t, L], descending along the path
    start : [t, M]
        Weights to start from.
    val_gram float32 [M, M], val_c [t, M] or [t, 0], val_yy [t]
        Moments of the validation rows in the fit's units; without them the last λ is chosen.
    weights : [t, M], logs : [t, 4, L], best : int64 [t]
        Filled; ``best`` with the index of the chosen λ.
    """
    for t in range(targets[0], targets[1]):
        if yy[t] > 0.0:
            best[t] = _one_path(
                gram, c[t], yy[t], lams[t], l1_ratio, positive, tol, start[t],
                val_gram, val_c[t], val_yy[t], patience, weights[t], logs[t],
            )  # fmt: skip
