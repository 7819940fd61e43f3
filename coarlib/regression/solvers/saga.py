"""SAGA for the lasso: mini-batches, a table of residuals, and no Gram matrix.

The method of fast_l1 (Defazio, Bach and Lacoste-Julien, 2014, with the residuals of a linear model
stored in place of gradients), on any device, with its target-wise stopping. Differences: the step
size may be found automatically, λ = 0 is solved only where it is asked for, and the duality gap
is reported, because a small step does not mean that the optimum is near.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from coarlib.errors import RegressionError
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.solvers.base import Size, Solver
from coarlib.regression.solvers.saga_run import Batch, SagaRun, safe_step
from coarlib.regression.stream import lasso_gap

__all__ = ["Saga"]

TOLERANCE = 1e-4
BATCH_SIZE = 512
MAX_EPOCHS = 500
FIRST_CHECK = 10  # epochs before the first look at the gap
DIVERGED = 10.0  # weights of zero have a gap of at most 1: a step this far off is too long


@dataclass(frozen=True)
class Saga(Solver):
    """The lasso at λ by SAGA, until its duality gap says that it is done.

    Parameters
    ----------
    lam : float
        Penalty λ ‖w‖₁, standardised units; larger than 0 (least squares has conjugate gradients).
    lr : float, optional
        Step size; by default one that is safe for batches of this size.
    tol : float
        Largest duality gap relative to half a target's variance.
    batch_size, max_epochs : int
        The last batch may be smaller. Memory: n × T float32 for the residuals.
    """

    name: ClassVar[str] = "saga"
    lam: float | None = None
    lr: float | None = None
    tol: float = TOLERANCE
    batch_size: int = BATCH_SIZE
    max_epochs: int = MAX_EPOCHS

    def __post_init__(self) -> None:
        if self.lam is None or not self.lam > 0:
            raise RegressionError(
                "saga fits the lasso at one λ > 0, which must be given; for least squares or ridge "
                "use conjugate_gradients"
            )
        positive = (self.tol, 1.0 if self.lr is None else self.lr)
        if self.batch_size < 1 or self.max_epochs < 1 or not all(v > 0 for v in positive):
            raise RegressionError("batch size, epochs, tolerance and step size must be positive")

    @property
    def needs(self) -> frozenset[str]:
        """The rows, once an epoch."""
        return frozenset({"rows"})

    def work(self, size: Size) -> float:
        """Some fifty epochs."""
        return 4.0 * 50 * size.features * size.targets * size.rows

    def memory(self, size: Size) -> float:
        """The table of residuals."""
        return 4.0 * size.total * size.targets

    def solve(self, problem: Problem) -> Solution:
        """Fit all targets; ``gap`` is certified, whether or not ``tol`` was reached."""

        def batches() -> Iterator[Batch]:
            return _batches(problem, self.batch_size)

        if problem.num_active == 0:
            return Solution.empty(problem, "no feature varies: the mean of each target")
        lam = float(self.lam or 0)
        ones = torch.ones(problem.num_active, device=problem.device)
        shape = (problem.num_active, problem.num_targets)
        step = safe_step(batches(), 0 * ones, ones) if self.lr is None else self.lr

        def start(step: float) -> SagaRun:
            weight, bias = (torch.zeros(s, device=problem.device) for s in (shape, shape[1:]))
            rows = problem.num_rows
            return SagaRun(weight, bias, rows, rows, 0 * ones, ones, step, False)

        run, past = start(step), 0
        lams = torch.full(shape[1:], lam, device=problem.device, dtype=torch.float64)
        gap = np.full(problem.num_targets, np.inf)
        check = FIRST_CHECK
        while past + run.epochs < self.max_epochs and gap.max(initial=0) > self.tol:
            run.epoch(batches(), lams.float())
            if run.epochs >= check or past + run.epochs == self.max_epochs:
                check = run.epochs + max(FIRST_CHECK, run.epochs // 4)
                diverged = not bool(run.weight.isfinite().all())
                if not diverged:
                    gap = lasso_gap(problem, run.weight.double(), lams, slice(None))
                if diverged or gap.max(initial=0) > DIVERGED:
                    step, past, check = step / 2, past + run.epochs, FIRST_CHECK
                    run, gap = start(step), np.full(problem.num_targets, np.inf)
        epochs = past + run.epochs
        solution = Solution.empty(problem, f"lasso by SAGA, {epochs} epochs at step {step:.3g}")
        solution.fill(problem, slice(None), run.weight)
        raw = solution.weight[problem.active].astype(np.float64) * problem.scale[:, None]
        gap = lasso_gap(problem, torch.as_tensor(raw, device=problem.device), lams, slice(None))
        solution.lam[:], solution.gap, solution.iterations = lam, gap, epochs
        if gap.max(initial=0) > self.tol:
            solution.status += f"; stopped above the gap {self.tol:g}"
        return solution


def _batches(problem: Problem, size: int) -> Iterator[Batch]:
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
