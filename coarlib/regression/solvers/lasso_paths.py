"""Which way the lasso's paths are followed: matrix products, or compiled coordinate descent.

Coordinate descent (:mod:`~coarlib.regression.solvers.lasso_kernel`) touches little more than the
weights that are not zero, and takes seconds to compile. Steps of all targets together
(:mod:`~coarlib.regression.solvers.lasso_products`) touch all of R at many times the speed, on any
device. So products are taken where the kernel is not compiled and would not pay within the run, on
an accelerator, and where the first targets turn out to have many weights that are not zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.compiled import worth_compiling
from coarlib.errors import RegressionError
from coarlib.regression.moments import Moments
from coarlib.regression.problem import Problem
from coarlib.regression.solvers.lasso_kernel import solve_paths
from coarlib.regression.solvers.lasso_products import PathBlock, Rules, duality_gaps, product_paths
from coarlib.statistics.arrays import in_threads

__all__ = ["Paths"]

CHUNK = 4  # targets a thread takes at a time; paths differ in length
PILOT = 16  # targets by which the others' way is chosen
DENSE = 0.08  # mean share of weights that are not zero: at .03 kernels were faster, at .12 products
SMALL = 2e11  # operations of products in the time that the kernel takes to compile
STEPS = 5  # products a λ, about; twice as many where R is uneven
LARGE, MANY = 1000, 128  # features and targets from which products reach their speed
EVEN = 4  # rows a feature; with fewer, R is uneven: compiled kernels win however dense weights are
NARROW = 5e-7  # tolerances that float32 reaches


class Paths:
    """Follows the paths of a problem's targets, in the way that suits them.

    Parameters
    ----------
    problem : Problem
    rules : Rules
        For the λ that is kept.
    path_tol : float
        Largest gap at other λ: they only choose.
    validation : Moments, optional
        Other rows, which choose λ.
    start : float [N, T], optional
        Raw-unit weights to start from.
    """

    def __init__(
        self,
        problem: Problem,
        rules: Rules,
        path_tol: float,
        validation: Moments | None,
        start: NDArray[Any] | None,
    ) -> None:
        self._problem, self._rules, self._raw_start = problem, rules, start
        self._path_rules = replace(rules, tol=max(rules.tol, path_tol))
        self._validation = _Validation(problem, validation)
        self._grams: dict[torch.dtype, NDArray[Any]] = {}
        self._products: bool | None = None  # whether products are faster, once that is known

    def solve(
        self, targets: slice, lams: NDArray[np.float64], logs: NDArray[np.float64]
    ) -> PathBlock:
        """Solve a block of t targets along their ``lams`` [t, L], filling ``logs`` [t, 4, L]."""
        c = self._problem.covariance(targets).T.contiguous()
        block = PathBlock(
            self._problem.variance[targets],
            c,
            lams,
            self._start(targets, tuple(c.shape)),
            *self._validation.targets(targets),
            logs,
            np.zeros(c.shape),
            np.zeros(len(c), np.int64),
        )
        first = 0
        if self._products is None:
            self._products = self._must_multiply(block)
        if self._products is None:
            first = min(PILOT, len(c))
            self._descend(block, np.arange(first))
            used = np.nanmean(logs[:first, 1]) if np.isfinite(logs[:first, 1]).any() else 0.0
            large = c.shape[1] >= LARGE and self._problem.num_targets >= MANY
            self._products = bool(large and used > DENSE * c.shape[1])
        rest = np.arange(first, len(c))
        if self._products:
            rest = rest[~self._multiply(block, rest)]
        self._descend(block, rest)
        return block

    def _must_multiply(self, block: PathBlock) -> bool | None:
        """Whether products are to be taken, or not; None where the density decides."""
        if self._problem.device.type != "cpu":
            return True
        uneven = self._problem.num_rows < EVEN * block.c.shape[1]
        steps = (2 if uneven else 1) * STEPS * block.lams.shape[1]
        operations = 2.0 * steps * block.c.numel() * block.c.shape[1]
        if not (worth_compiling(operations, SMALL) or solve_paths.is_ready):
            return True
        return False if uneven or self._rules.tol < NARROW else None

    def _multiply(self, block: PathBlock, which: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Take products; returns which targets are certified by float64 at their chosen λ."""
        some, gram, tol = block.some(which), self._problem.gram, self._rules.tol
        val_gram = torch.from_numpy(self._validation.gram).to(gram.device)
        narrow = torch.float32 if tol >= NARROW else torch.float64
        path, last = (replace(r, tol=0.8 * r.tol) for r in (self._path_rules, self._rules))
        solved = product_paths(gram, some, val_gram, path, narrow)
        gaps = self._certify(some)
        for dtype in (narrow, torch.float64):  # the last one solves what float32 leaves
            again = np.flatnonzero(solved & (gaps > tol))
            if len(again):
                chosen = some.some(again).chosen()
                product_paths(gram, chosen, val_gram[:0, :0], last, dtype)
                some.improve(again, chosen)
                gaps = self._certify(some)
        block.put(which, some)
        return solved & (gaps <= tol)

    def _certify(self, block: PathBlock) -> NDArray[np.float64]:
        """Log the gaps of the chosen weights, in float64 with R itself; and return them."""
        gram = self._problem.gram
        w, yy, lam = (
            torch.as_tensor(values, device=gram.device)
            for values in (block.weights, block.yy, block.lam)
        )
        gap, _ = duality_gaps((w, block.c - w @ gram), block.c, yy, lam, self._rules)
        relative = (2 * gap / yy.clamp_min(torch.finfo(yy.dtype).tiny)).cpu().numpy()
        relative[block.yy <= 0] = 0
        varies = np.flatnonzero(block.yy > 0)
        block.logs[varies, 0, block.best[varies]] = relative[varies]
        return np.asarray(relative)

    def _descend(self, block: PathBlock, which: NDArray[np.int64]) -> None:
        """Follow the paths of some targets by coordinate descent."""
        if not len(which):
            return
        some, tol = block.some(which), self._rules.tol
        some.logs[:], some.weights[:], some.best[:] = np.nan, 0, 0
        narrow = tol >= NARROW
        self._run_kernel(some, self._path_rules, self._validation.gram, narrow)
        varies = np.flatnonzero(some.yy > 0)
        again = varies if self._path_rules.tol > tol else self._missed(some, narrow)
        for in_float32 in (True, False)[not narrow :]:
            if len(again):
                chosen = some.some(again).chosen()
                self._run_kernel(chosen, self._rules, self._validation.gram[:0, :0], in_float32)
                some.improve(again, chosen)
            again = self._missed(some, in_float32)
        block.put(which, some)

    def _missed(self, block: PathBlock, narrow: bool) -> NDArray[np.int64]:
        """Certify what was solved with R in float32; return the targets that missed tolerance."""
        if not narrow:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self._certify(block) > self._rules.tol)

    def _run_kernel(
        self, block: PathBlock, rules: Rules, val_gram: NDArray[np.float32], narrow: bool
    ) -> None:
        arrays = (
            self._gram_in(torch.float32 if narrow else torch.float64),
            block.c.cpu().numpy(),
            block.yy,
            np.ascontiguousarray(block.lams),
            rules.l1_ratio,
            rules.positive,
            rules.tol,
            block.start,
            val_gram,
            np.ascontiguousarray(block.val_c),
            block.val_yy,
            rules.patience,
            block.weights,
            block.logs,
            block.best,
        )

        def solve_some(part: slice) -> None:
            solve_paths((part.start, part.stop), *arrays)

        in_threads(solve_some, len(block.yy), CHUNK, torch.get_num_threads())

    def _gram_in(self, dtype: torch.dtype) -> NDArray[Any]:
        """R, kept between calls: half the memory is read in half the time."""
        if dtype not in self._grams:
            self._grams[dtype] = self._problem.gram.cpu().to(dtype).contiguous().numpy()
        return self._grams[dtype]

    def _start(self, targets: slice, shape: tuple[int, ...]) -> NDArray[np.float64]:
        if self._raw_start is None:
            return np.zeros(shape)
        p = self._problem
        scaled = self._raw_start[p.active, targets] * p.scale[:, None]
        return np.ascontiguousarray(scaled.T, dtype=np.float64)


class _Validation:
    """Second moments of other rows about the fit's means, in the fit's units.

    ``gram`` [M, M] is Σ zz' / n with z the masks standardised as in the fit, float32; empty without
    such rows.
    """

    def __init__(self, problem: Problem, moments: Moments | None) -> None:
        self._problem, self._part = problem, None
        self.gram = np.zeros((0, 0), np.float32)
        if moments is None:
            return
        if moments.pairs is None:
            raise RegressionError("choosing λ from moments needs X'X of the validation rows")
        n, active = moments.num_rows, problem.active
        mean, scale = problem.mean, problem.scale
        kept = moments.kept[active] / n
        gram = moments.pairs[np.ix_(active, active)] / n
        gram += np.outer(mean, mean) - np.outer(kept, mean) - np.outer(mean, kept)
        gram /= np.outer(scale, scale)
        self.gram = gram.astype(np.float32)
        self._part = moments.with_offset(problem.moments.mean_output)

    def targets(self, targets: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return c [t, M] and yy [t] of some targets."""
        width = len(range(*targets.indices(self._problem.num_targets)))
        if self._part is None:
            return np.zeros((width, 0)), np.zeros(width)
        p, part = self._problem, self._part
        n = part.num_rows
        c = part.cross[p.active, targets] - np.outer(p.mean, part.total[targets])
        c /= n * p.scale[:, None]
        return np.ascontiguousarray(c.T), part.square[targets] / n
