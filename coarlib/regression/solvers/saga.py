"""SAGA for the lasso: mini-batches, a table of residuals, and no Gram matrix.

The method of fast_l1 (Defazio, Bach and Lacoste-Julien, 2014, with the residuals of a linear model
stored in place of gradients), on any device, with its target-wise stopping. Differences: the step
size may be found automatically, λ = 0 is solved only where it is asked for, and the duality gap
is reported, because a small step does not mean that the optimum is near.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from coarlib.errors import RegressionError
from coarlib.regression.problem import Solution
from coarlib.regression.stream import StreamProblem, lasso_gap

__all__ = ["Batch", "Saga", "safe_step", "solve_saga", "standardise"]

TOLERANCE = 1e-4
BATCH_SIZE = 512
MAX_EPOCHS = 500
FIRST_CHECK = 10  # epochs before the first look at the gap

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # masks [B, M], outputs [B, T], idx [B]
POWER_STEPS = 12
BATCHES_MEASURED = 4


def standardise(masks: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return (masks - mean) / scale, zero where a feature never varies, float32."""
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (masks.float() - mean) / safe * (scale > 0)


def safe_step(batches: Iterator[Batch], mean: torch.Tensor, scale: torch.Tensor) -> float:
    """Step size 1 / (3 L), L the largest curvature of a mini-batch (measured on a few)."""
    largest = 1.0
    generator = torch.Generator().manual_seed(0)
    for number, (masks, _, _) in enumerate(batches):
        z = standardise(masks, mean, scale)
        vector = torch.randn(z.shape[1], generator=generator).to(z.device)
        size = 0.0
        for _ in range(POWER_STEPS):
            vector = z.T @ (z @ (vector / vector.norm().clamp_min(1e-30))) / len(z)
            size = float(vector.norm())
        largest = max(largest, size)
        if number + 1 >= BATCHES_MEASURED:
            break
    return 1 / (3 * 1.1 * largest)


@dataclass
class Saga:
    """State of a SAGA run over T targets.

    Parameters
    ----------
    weight : float32 [M, T], bias : float32 [T]
        Standardised units; changed in place.
    num_rows : int
        n, the rows of an epoch.
    table_rows : int
        One more than the largest row index.
    mean, scale : float32 [M]
        Of the masks.
    lr : float
    update_bias : bool
    """

    weight: torch.Tensor
    bias: torch.Tensor
    num_rows: int
    table_rows: int
    mean: torch.Tensor
    scale: torch.Tensor
    lr: float
    update_bias: bool = True
    epochs: int = 0
    columns: torch.Tensor = field(init=False)
    table: torch.Tensor = field(init=False)
    slope: torch.Tensor = field(init=False)
    level: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        device, targets = self.weight.device, self.weight.shape[1]
        self.columns = torch.arange(targets, device=device)
        self.table = torch.zeros(self.table_rows, targets, device=device)
        self.slope = torch.zeros_like(self.weight)
        self.level = torch.zeros_like(self.bias)

    def epoch(
        self, batches: Iterator[Batch], lam: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass over the rows at λ [T]; returns each target's largest squared step and MSE."""
        before = self.weight.clone()
        squares = torch.zeros_like(self.bias)
        for masks, outputs, rows in batches:
            z = standardise(masks, self.mean, self.scale)
            y = outputs[:, self.columns].float()
            residual = z @ self.weight + self.bias - y
            change = residual - self.table[rows]
            step = z.T @ change
            size = len(z)
            self.weight -= self.lr * (step / size + self.slope)
            if self.update_bias:
                self.bias -= self.lr * (change.sum(0) / size + self.level)
            self.slope += step / self.num_rows
            self.level += change.sum(0) / self.num_rows
            self.table[rows] = residual
            threshold = self.lr * lam
            self.weight.copy_(self.weight.sign() * (self.weight.abs() - threshold).clamp_min(0))
            squares += residual.square().sum(0)
        self.epochs += 1
        return (self.weight - before).square().amax(0), squares / self.num_rows

    def drop(self, finished: torch.Tensor) -> None:
        """Go on without the targets that are finished, bool [T]."""
        keep = ~finished
        self.columns = self.columns[keep]
        for name in ("weight", "table", "slope"):
            setattr(self, name, getattr(self, name)[:, keep].contiguous())
        for name in ("bias", "level"):
            setattr(self, name, getattr(self, name)[keep].contiguous())

    def error(self, batches: Iterator[Batch]) -> torch.Tensor:
        """Mean squared error on other rows, [T]."""
        total, count = torch.zeros_like(self.bias), 0
        for masks, outputs, _ in batches:
            z = standardise(masks, self.mean, self.scale)
            predicted = z @ self.weight + self.bias
            total += (predicted - outputs[:, self.columns].float()).square().sum(0)
            count += len(z)
        return total / max(count, 1)


def solve_saga(
    problem: StreamProblem,
    lam: float | None = None,
    *,
    lr: float | None = None,
    tol: float = TOLERANCE,
    batch_size: int = BATCH_SIZE,
    max_epochs: int = MAX_EPOCHS,
) -> Solution:
    """Fit the lasso at λ by SAGA until its duality gap says that it is done.

    Parameters
    ----------
    problem : StreamProblem
    lam : float
        Penalty λ ‖w‖₁, standardised units; larger than 0 (least squares has conjugate gradients).
    lr : float, optional
        Step size; by default one that is safe for batches of this size.
    tol : float
        Largest duality gap relative to half a target's variance.
    batch_size, max_epochs : int
        The last batch may be smaller. Memory: n × T float32 for the residuals.

    Returns
    -------
    Solution
        ``gap`` is certified, whether or not ``tol`` was reached.
    """
    if lam is None or not lam > 0:
        raise RegressionError(
            "saga fits the lasso at one λ > 0 (--cfg.lam); for least squares or ridge use "
            "conjugate_gradients"
        )
    if batch_size < 1 or max_epochs < 1 or not tol > 0 or (lr is not None and not lr > 0):
        raise RegressionError("batch size, epochs, tolerance and step size must be positive")

    def batches() -> Iterator[Batch]:
        return _batches(problem, batch_size)

    ones = torch.ones(problem.num_active, device=problem.device)
    shape = (problem.num_active, problem.num_targets)
    step = safe_step(batches(), 0 * ones, ones) if lr is None else lr
    weight, bias = (torch.zeros(s, device=problem.device) for s in (shape, shape[1:]))
    run = Saga(weight, bias, problem.num_rows, problem.num_rows, 0 * ones, ones, step, False)
    lams = torch.full(shape[1:], lam, device=problem.device)
    gap = np.full(problem.num_targets, np.inf)
    check = FIRST_CHECK
    while run.epochs < max_epochs and gap.max(initial=0) > tol:
        run.epoch(batches(), lams)
        if run.epochs >= check or run.epochs == max_epochs:
            check = run.epochs + max(FIRST_CHECK, run.epochs // 4)
            gap = lasso_gap(problem, run.weight.double(), lams.double(), slice(None))
    solution = Solution.empty(problem, f"lasso by SAGA, {run.epochs} epochs at step {step:.3g}")
    solution.fill(problem, slice(None), run.weight)
    solution.lam[:], solution.gap, solution.iterations = lam, gap, run.epochs
    if gap.max(initial=0) > tol:
        solution.status += f"; stopped above the gap {tol:g}"
    return solution


def _batches(problem: StreamProblem, size: int) -> Iterator[Batch]:
    """Standardised masks, centred outputs and row numbers, batch by batch."""
    mean = torch.as_tensor(problem.moments.mean_output, device=problem.device)
    start = 0
    for z, outputs in problem.blocks():
        y = torch.as_tensor(outputs.astype(np.float64), device=problem.device) - mean
        rows = torch.arange(start, start + len(z), device=problem.device)
        start += len(z)
        for first in range(0, len(z), size):
            part = slice(first, first + size)
            yield z[part], y[part].float(), rows[part]
