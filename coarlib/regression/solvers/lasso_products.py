"""Lasso and elastic-net paths of many targets at once, by steps that are matrix products.

The same problem as :mod:`~coarlib.regression.solvers.lasso_kernel`, for the same path, in another
way: all targets of a block take a step together, each at its own λ, and the block's product with R
is one matrix product. Nothing is compiled, it runs on any device, and where many weights are not
zero a product does far more operations a second than coordinate descent does.

A step is ``w ← S(w + g/α, λ/α)`` with S the soft threshold, g = c - Rw and α the curvature along
the last step (Barzilai and Borwein, 1988; SpaRSA: Wright, Nowak and Figueiredo, 2009). Where an
objective rises above its last few, α is raised until it falls. Products are of changes of w, in
float32 unless the tolerance asks for more; the gradient is corrected from float64 every few λ.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["PathBlock", "Rules", "duality_gaps", "product_paths"]

WEIGHTS = 2**19  # of the targets that step together: their arrays stay near the cores
MOST_STEPS = 1000  # at one λ; a design that needs more is better left to coordinate descent
# λ after which the gradient is taken anew: float32 products leave little in a gap of this size.
CORRECTED, SELDOM, LITTLE = 8, 32, 1e-5
RECENT = 5  # objectives that a step's is compared with
LEAST_LAMBDA = 1e-20  # of a standard deviation: steps divide by it
POWER_STEPS = 30


@dataclass(frozen=True)
class Rules:
    """What a path minimises, to which gap, and when it ends, as :class:`Lasso` has it."""

    l1_ratio: float
    positive: bool
    tol: float
    patience: int


@dataclass
class PathBlock:
    """The paths of some targets, and what is found of them.

    Attributes
    ----------
    yy : float64 [t]
    c : float64 torch [t, M]
    lams : float64 [t, L]
        Descending along the path.
    start : float64 [t, M]
        Weights to start from.
    val_c, val_yy : float64 [t, M], [t]
        Moments of the validation rows in the fit's units; [t, 0] where there are none, and the
        last λ is chosen.
    logs : float64 [t, 4, L]
        Gap / (½ yy), weights that are not zero, validation error and sweeps; NaN after the end.
    weights : float64 [t, M], best : int64 [t]
        At the chosen λ, and its index.
    """

    yy: NDArray[np.float64]
    c: torch.Tensor
    lams: NDArray[np.float64]
    start: NDArray[np.float64]
    val_c: NDArray[np.float64]
    val_yy: NDArray[np.float64]
    logs: NDArray[np.float64]
    weights: NDArray[np.float64]
    best: NDArray[np.int64]

    def some(self, which: NDArray[np.int64]) -> PathBlock:
        """Return some of the targets, by themselves."""
        there = {f.name: getattr(self, f.name) for f in fields(self)}
        return PathBlock(**{name: values[which] for name, values in there.items()})

    def chosen(self) -> PathBlock:
        """Return the problem at each target's chosen λ alone, starting from what was found."""
        nothing = np.full((len(self.best), self.logs.shape[1], 1), np.nan)
        return replace(
            self,
            lams=self.lam[:, None],
            start=self.weights,
            val_c=self.val_c[:, :0],
            logs=nothing,
            weights=np.zeros_like(self.weights),
            best=np.zeros_like(self.best),
        )

    def improve(self, which: NDArray[np.int64], last: PathBlock) -> None:
        """Take over better weights at the chosen λ of some targets."""
        self.weights[which], found = last.weights, last.logs[:, :, 0].T
        for log, value in ((0, found[0]), (1, found[1])):
            self.logs[which, log, self.best[which]] = value
        self.logs[which, 3, self.best[which]] += found[3]

    def put(self, which: NDArray[np.int64], other: PathBlock) -> None:
        """Take over what was found of some targets by themselves."""
        for name in ("logs", "weights", "best"):
            getattr(self, name)[which] = getattr(other, name)

    @property
    def lam(self) -> NDArray[np.float64]:
        """The chosen λ of each target."""
        return np.take_along_axis(self.lams, self.best[:, None], 1)[:, 0]


def duality_gaps(
    weights: tuple[torch.Tensor, torch.Tensor],
    c: torch.Tensor,
    yy: torch.Tensor | float,
    lam: torch.Tensor,
    rules: Rules,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Duality gaps and objectives (less ½ yy) of weights w [t, M], given with g = c - Rw.

    The gap of :mod:`~coarlib.regression.solvers.lasso_kernel`: with rr = ‖r‖² and s in
    [0, λ/‖e‖∞] it is ½ (1 - s)² rr + (λ ‖w‖₁ - s w'e). Both parts are small where they should be,
    so that float32 is enough for them.
    """
    (w, g), l1, l2 = weights, lam * rules.l1_ratio, lam * (1 - rules.l1_ratio)
    e = g if rules.l1_ratio == 1 else g - l2[:, None] * w
    norm, we, wc = w.abs().sum(1), (w * e).sum(1), (w * c).sum(1)
    tiny = torch.finfo(w.dtype).tiny
    top = (e if rules.positive else e.abs()).amax(1).clamp_min(tiny)
    rr = (yy - wc - we).clamp_min(0)
    s = torch.minimum(1 + we / rr.clamp_min(tiny), l1 / top).clamp_min(0)
    gap = 0.5 * (1 - s).square() * rr + (l1 * norm - s * we)
    return gap, l1 * norm - 0.5 * (wc + we)


@dataclass
class _Live:
    """Targets that are not done yet: vectors [t], or arrays [t, M] or [t, L]."""

    index: torch.Tensor  # in the block
    c: torch.Tensor
    lams: torch.Tensor
    val_c: torch.Tensor
    val_yy: torch.Tensor
    w: torch.Tensor
    g: torch.Tensor
    last_w: torch.Tensor  # at the λ before
    last_g: torch.Tensor
    lam: torch.Tensor  # that they are at
    step: torch.Tensor  # its index
    steps: torch.Tensor  # taken at it
    alpha: torch.Tensor
    objectives: torch.Tensor  # the last ones at this λ
    best_error: torch.Tensor
    worse: torch.Tensor

    def keep(self, which: torch.Tensor) -> None:
        """Go on with some targets only."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[which])


@dataclass
class _Shared:
    """What all targets of a block share."""

    gram: torch.Tensor
    exact: torch.Tensor  # R in float64
    covariance: torch.Tensor  # c of the block in float64
    val_gram: torch.Tensor | None
    steepest: float
    rules: Rules


class _Block:
    """The paths of one block of targets, in units of each target's standard deviation."""

    def __init__(self, shared: _Shared, live: _Live) -> None:
        self.shared, self.live = shared, live
        t, length = live.lams.shape
        self.weights = torch.zeros_like(live.c)
        self.best = torch.zeros(t, dtype=torch.long, device=live.c.device)
        self.solved = torch.zeros(t, dtype=torch.bool, device=live.c.device)
        self.logs = torch.full((t, 4, length), torch.nan, dtype=live.c.dtype, device=live.c.device)

    def run(self) -> None:
        """Step until no target is left."""
        live = self.live
        point = live.w, live.g  # from which the next step goes
        while len(live.index):
            gap = self._step(*point)
            done = gap.abs() <= self.shared.rules.tol
            stuck = ~done & (live.steps >= MOST_STEPS)
            point = live.w, live.g
            if done.any() or stuck.any():
                point = self._advance(done, stuck, gap)

    def _step(self, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Take a step from w, where the gradient is g; returns relative gaps."""
        live, shared = self.live, self.shared
        l1, l2 = live.lam * shared.rules.l1_ratio, live.lam * (1 - shared.rules.l1_ratio)
        z = torch.addcmul(g, w, live.alpha[:, None]).div_(l1[:, None])
        if shared.rules.positive:
            new = z.sub_(1).clamp_min_(0)
        else:
            new = torch.nn.functional.softshrink(z, 1.0)
        new.mul_((l1 / (live.alpha + l2))[:, None])
        change = new - live.w
        product = change @ shared.gram
        live.w, live.g, live.steps = new, live.g - product, live.steps + 1
        squares = (change * change).sum(1)
        curvature = (change * product).sum(1) / squares.clamp_min(torch.finfo(z.dtype).tiny)
        moved = torch.where(squares > 0, curvature, live.alpha)
        live.alpha = moved.clamp(0.02 * shared.steepest, shared.steepest)
        gap, objective = duality_gaps((live.w, live.g), live.c, 1.0, live.lam, shared.rules)
        rises = objective > live.objectives.amax(1) + 1e-7
        steeper = (2 * live.alpha).clamp_min(shared.steepest)
        live.alpha = torch.where(rises, steeper, live.alpha)
        live.objectives = torch.cat([objective[:, None], live.objectives[:, :-1]], 1)
        return 2 * gap

    def _advance(
        self, done: torch.Tensor, stuck: torch.Tensor, gap: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log targets that have solved their λ and move them to the next; returns where from."""
        live, shared = self.live, self.shared
        rows = done.nonzero()[:, 0]
        index, step, w = (x.index_select(0, rows) for x in (live.index, live.step, live.w))
        gap, steps = gap[rows].clamp_min(0), live.steps[rows]
        nonzero = (w != 0).sum(1)
        error = torch.full_like(gap, -torch.inf)  # without other rows the last λ is chosen
        self.logs[index, :, step] = torch.stack([gap, nonzero, gap * torch.nan, steps], 1)
        if shared.val_gram is not None:
            residual = w @ shared.val_gram - 2 * live.val_c.index_select(0, rows)
            error = ((w * residual).sum(1) + live.val_yy[rows]).clamp_min_(0)
            self.logs[index, 2, step] = error
        better = error <= live.best_error[rows]
        chosen = index[better]
        self.weights.index_copy_(0, chosen, w[better])
        self.best[chosen] = step[better]
        live.best_error[rows] = torch.minimum(error, live.best_error[rows])
        live.worse[rows] = torch.where(better, 0, live.worse[rows] + 1)
        ends = (live.worse[rows] >= shared.rules.patience) | (step == live.lams.shape[1] - 1)
        self.solved[index[ends]] = True
        stuck[rows[ends]] = True
        live.step[rows] += (~ends).long()
        live.steps[rows], live.objectives[rows] = 0, torch.inf
        every = CORRECTED if shared.rules.tol < LITTLE else SELDOM
        self._correct(rows[~ends & (live.step[rows] % every == 0)])
        point = self._extrapolated(rows)
        live.lam = live.lams.gather(1, live.step[:, None])[:, 0]
        if stuck.any():
            live.keep(~stuck)
            point = point[0][~stuck], point[1][~stuck]
        return point

    def _correct(self, rows: torch.Tensor) -> None:
        """Take the gradients of some targets anew, in float64."""
        live, shared = self.live, self.shared
        if len(rows) and live.w.dtype != shared.exact.dtype:
            w = live.w[rows].to(shared.exact.dtype)
            exact = shared.covariance[live.index[rows]] - w @ shared.exact
            live.g[rows] = exact.to(live.g.dtype)

    def _extrapolated(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and gradients to step from: at a new λ, along the line through the last two.

        Weights are piecewise linear in λ, and the gradient is linear in them. Only the point that
        a step starts from is guessed: products go on from the last one that was computed.
        """
        live = self.live
        step, lams = live.step[rows], live.lams.index_select(0, rows)
        near, far, farther = (
            lams.gather(1, (step - back).clamp_min(0)[:, None]) for back in (0, 1, 2)
        )
        ratio = torch.where(step[:, None] > 1, (far - near) / (farther - far), 0.0)
        guess = live.w.clone(), live.g.clone()
        for now, last, ahead in ((live.w, live.last_w, guess[0]), (live.g, live.last_g, guess[1])):
            here = now.index_select(0, rows)
            move = here - last.index_select(0, rows)
            ahead.index_copy_(0, rows, torch.addcmul(here, move, ratio))
            last.index_copy_(0, rows, here)
        return guess


def product_paths(
    gram: torch.Tensor,
    block: PathBlock,
    val_gram: torch.Tensor,
    rules: Rules,
    dtype: torch.dtype = torch.float32,
) -> NDArray[np.bool_]:
    """Solve the paths of a block's targets.

    Parameters
    ----------
    gram : float64 [M, M], on the device of ``block.c``
    block : PathBlock
    val_gram : float32 [M, M]
        X'X of the validation rows; [0, 0] where there are none.
    rules : Rules
    dtype : torch.dtype
        Of products: float32 reaches gaps of about 1e-7.

    Returns
    -------
    bool [t]
        Which targets were solved along their paths, before steps ran out.
    """
    steepest = _largest_eigenvalue(gram)
    narrow, val = gram.to(dtype), val_gram.to(dtype) if len(val_gram) else None
    solved = np.array(block.yy <= 0)
    varying = np.flatnonzero(~solved)
    width = max(64, WEIGHTS // len(gram))
    for which in np.split(varying, range(width, len(varying), width)) if len(varying) else []:
        some = block.some(which)
        scale = np.sqrt(some.yy)[:, None]
        exact = some.c / torch.as_tensor(scale, device=gram.device)
        shared = _Shared(narrow, gram, exact, val, steepest, rules)
        stepping = _Block(shared, _begin(some, scale, shared))
        stepping.run()
        some.weights = stepping.weights.double().cpu().numpy() * scale
        some.best, some.logs = stepping.best.cpu().numpy(), stepping.logs.double().cpu().numpy()
        some.logs[:, 2] *= scale**2
        block.put(which, some)
        solved[which] = stepping.solved.cpu().numpy()
    return solved


def _begin(some: PathBlock, scale: NDArray[np.float64], shared: _Shared) -> _Live:
    """Targets in units of their standard deviations; a start that is worse than zeros is none."""
    c, gram, dtype = shared.covariance, shared.exact, shared.gram.dtype
    t, device = len(c), gram.device

    def each(value: float, *shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.full((t, *shape), value, dtype=kind, device=device)

    def there(values: NDArray[Any], kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.as_tensor(values, device=device).to(kind)

    lams = np.maximum(some.lams / scale, LEAST_LAMBDA)
    w = there(some.start / scale, torch.float64)
    g = c - w @ gram
    _, objective = duality_gaps((w, g), c, 1.0, there(lams[:, 0], torch.float64), shared.rules)
    worse = ~(objective <= 0)
    w[worse], g[worse] = 0, c[worse]
    w, g = w.to(dtype), g.to(dtype)
    return _Live(
        index=torch.arange(t, device=device),
        c=c.to(dtype),
        lams=there(lams),
        lam=there(lams[:, 0]),
        val_c=there(some.val_c / scale),
        val_yy=there(some.val_yy / some.yy),
        w=w,
        g=g,
        last_w=w.clone(),
        last_g=g.clone(),
        step=each(0, kind=torch.long),
        steps=each(0, kind=torch.long),
        alpha=each(1.0),
        objectives=each(torch.inf, RECENT),
        best_error=each(torch.inf),
        worse=each(0, kind=torch.long),
    )


def _largest_eigenvalue(gram: torch.Tensor) -> float:
    """A little more than the largest eigenvalue, by a few steps of the power method."""
    vector = torch.ones(len(gram), 1, dtype=gram.dtype, device=gram.device)
    vector[::2] *= -0.5
    size = 1.0
    for _ in range(POWER_STEPS):
        vector = gram @ vector
        size = float(torch.linalg.vector_norm(vector))
        vector /= max(size, 1e-300)
    return 1.05 * size
