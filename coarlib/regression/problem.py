"""The standardised problem that the solvers share, and the way back to raw mask units.

With features centred and scaled to variance 1, R the correlation matrix of the features and
``c = X'y / n`` their covariance with a target, every solver minimises

    1/(2n) ‖y - Xw‖² + penalty(w)  =  ½ yy - c'w + ½ w'Rw + penalty(w),

so that a penalty λ means the same here, in fast_l1 and in glmnet. R has a unit diagonal and is
formed from exact counts in float64: its Cholesky factor is safe to condition 1e12 and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.moments import Moments
from coarlib.regression.rows import RowSource
from coarlib.regression.rows.blocks import finite_blocks

__all__ = [
    "Problem",
    "Solution",
    "certificate",
    "positive",
    "quadratic_certificate",
    "standardisation",
    "target_blocks",
]

TARGET_BLOCK = 2048
ROUNDING = 1e-9  # certificates this far below zero are zero


@dataclass(frozen=True)
class Problem:
    """Standardised moments of the features that vary.

    Attributes
    ----------
    moments : Moments
    active : int64 [M]
        Indices of the features that vary; the others get a zero weight.
    mean, scale : float64 [M]
        Mean and standard deviation (divisor n) of the active features.
    gram : float64 torch [M, M]
        Correlation matrix R.
    source, positions : RowSource, int64 [K], optional
        The rows that the moments sum (those with bad outputs are skipped again), where a solver
        may read them once more.
    validation : Moments, optional
        Other rows, for solvers that choose λ by them.
    folds : tuple of Moments
        Disjoint parts that add up to the moments.

    Products with R and its eigenvectors go through methods, so that
    :class:`~coarlib.regression.dual.DualProblem` can do without the matrix.
    """

    moments: Moments
    active: NDArray[np.int64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    gram: torch.Tensor
    source: RowSource | None = field(default=None, kw_only=True)
    positions: NDArray[np.int64] | None = field(default=None, kw_only=True)
    validation: Moments | None = field(default=None, kw_only=True)
    folds: tuple[Moments, ...] = field(default=(), kw_only=True)
    _memory: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_moments(cls, moments: Moments, device: torch.device | str = "cpu") -> Problem:
        """Standardise ``moments``; R lives on ``device``."""
        if moments.pairs is None:
            raise RegressionError("these moments were taken without X'X; use the dual form")
        active, mean, scale = standardisation(moments)
        every = len(active) == moments.num_features
        pairs = moments.pairs if every else moments.pairs[np.ix_(active, active)]
        gram = torch.from_numpy(np.ascontiguousarray(pairs)).to(device).double()
        mean_t = torch.as_tensor(mean, device=device)
        scale_t = torch.as_tensor(scale, device=device)
        gram.addr_(mean_t, mean_t, alpha=-moments.num_rows)
        gram /= scale_t[:, None] * moments.num_rows
        gram /= scale_t[None, :]
        gram.fill_diagonal_(1.0)
        return cls(moments, active, mean, scale, gram)

    def remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what ``make`` gives, made once for all solvers of this problem."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def blocks(
        self, dtype: torch.dtype = torch.float32
    ) -> Iterator[tuple[torch.Tensor, NDArray[Any]]]:
        """Read the rows again: standardised masks [B, M] and outputs [B, T], all finite."""
        if self.source is None:
            raise RegressionError("this solver reads the rows again: fit rows, not their moments")
        every = len(self.active) == self.moments.num_features
        mean = torch.as_tensor(self.mean, device=self.device).to(dtype)
        scale = torch.as_tensor(self.scale, device=self.device).to(dtype)
        for masks, outputs in finite_blocks(self.source, self.positions):
            columns = masks if every else masks[:, self.active]
            z = torch.from_numpy(np.ascontiguousarray(columns)).to(self.device).to(dtype)
            yield z.sub_(mean).div_(scale), outputs

    def reweighted(self, size: NDArray[np.float64]) -> Problem:
        """Return the problem with feature j multiplied by ``size[j]``, float64 [M].

        Ridge on it is ridge with prior variances proportional to ``size²``.
        """
        size_t = torch.as_tensor(size, device=self.device)
        gram = self.gram * size_t[:, None] * size_t[None, :]
        return replace(self, scale=self.scale / size, gram=gram)

    def less(self, weight: torch.Tensor) -> Problem:
        """Return the problem of what standardised weights [M, T] leave unexplained, y - ZW.

        Its solutions are what has to be added to ``weight``.
        """
        m, n = self.moments, self.num_rows
        cross, square = m.cross.copy(), m.square.copy()
        scale = torch.as_tensor(self.scale * n, device=weight.device)[:, None]
        for targets in target_blocks(self.num_targets):
            w, c = weight[:, targets], self.covariance(targets)
            product = self.times_gram(w)
            # Z is centred, so Σy stays, Σy² loses 2n c'w - n w'Rw and X'y loses n D R w.
            cross[self.active, targets] -= (scale * product).cpu().numpy()
            square[targets] -= n * (w * (2 * c - product)).sum(0).cpu().numpy()
        return replace(self, moments=replace(m, cross=cross, square=square))

    def times_gram(self, weight: torch.Tensor) -> torch.Tensor:
        """Return R W, float64 [M, t]."""
        return self.gram @ weight

    def exact_times_gram(self, weight: torch.Tensor) -> torch.Tensor:
        """Return R W in float64 throughout, where :meth:`times_gram` is allowed less."""
        return self.times_gram(weight)

    def eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positive eigenvalues [K], ascending, and eigenvectors [M, K] of R."""
        values, vectors = torch.linalg.eigh(self.gram)
        used = positive(values)
        limit = self.num_rows - 1
        if int(used.sum()) > limit:  # rounding noise: centred rows span at most n - 1 dimensions
            used[: len(values) - limit] = False
        return values[used], vectors[:, used]

    def posterior(
        self, variance: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Posterior under independent priors, in units of each target's noise variance.

        Parameters
        ----------
        variance : float64 [M]
            Prior variances τ.
        c : float64 [M, t]
            Covariances of some targets.

        Returns
        -------
        mean : [M, t], marginal variance : [M], log det(I + n R diag(τ)) : float
        """
        n, root = self.num_rows, variance.sqrt()
        inner = self.gram * (n * root)[:, None] * root[None, :]
        inner.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(inner)
        inverse = torch.cholesky_inverse(factor)
        mean = root[:, None] * (inverse @ ((n * root)[:, None] * c))
        logdet = 2 * float(factor.diagonal().log().sum())
        return mean, variance * inverse.diagonal(), logdet

    @property
    def num_rows(self) -> int:
        """Rows n."""
        return self.moments.num_rows

    @property
    def num_active(self) -> int:
        """Features that vary, M."""
        return len(self.active)

    @property
    def num_targets(self) -> int:
        """Targets T."""
        return self.moments.num_targets

    @property
    def device(self) -> torch.device:
        """Where products are formed."""
        return self.gram.device

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance yy of each target, float64 [T]."""
        return self.moments.output_variance

    def covariance(self, targets: slice | NDArray[np.int64] = slice(None)) -> torch.Tensor:
        """Return c = X'y/n of some targets, float64 [M, t] on the problem's device.

        Zero for targets that never vary, so that every solver gives them zero weights.
        """
        m = self.moments
        cross = m.cross[:, targets]
        if len(self.active) != m.num_features:
            cross = cross[self.active]
        c = torch.as_tensor(cross, device=self.device).double() / m.num_rows
        mean_y = torch.as_tensor(m.total[targets] / m.num_rows, device=self.device)
        c.addr_(torch.as_tensor(self.mean, device=self.device), mean_y, alpha=-1)
        c /= torch.as_tensor(self.scale, device=self.device)[:, None]
        c[:, torch.from_numpy(m.constant_targets[targets])] = 0
        return c

    def raw_weight(self, weight: torch.Tensor) -> NDArray[np.float64]:
        """Convert standardised weights [M, t] to raw mask units of all features, [N, t]."""
        varying = weight.double().cpu().numpy() / self.scale[:, None]
        if len(self.active) == self.moments.num_features:
            return np.asarray(varying)
        raw = np.zeros((self.moments.num_features, weight.shape[1]))
        raw[self.active] = varying
        return raw


def standardisation(
    moments: Moments,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the features that vary, and their means and standard deviations."""
    active = np.flatnonzero(~moments.constant_features)
    mean = moments.mean_mask[active]
    return active, mean, np.sqrt(mean * (1 - mean))


def positive(values: torch.Tensor) -> torch.Tensor:
    """Eigenvalues (ascending) that are above rounding, bool."""
    top = float(values[-1]) if len(values) else 0.0
    return values > max(top * len(values) * 1e-13, 1e-300)


def certificate(excess: NDArray[Any], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bounds on (objective - optimum), relative to ½ yy; 0 for targets that never vary.

    Parameters
    ----------
    excess, variance : float64 [t]

    Raises
    ------
    RegressionError
        If a bound is no bound: not finite, or below zero by more than rounding.
    """
    relative = np.divide(2 * excess, variance, out=np.zeros(len(variance)), where=variance > 0)
    wrong = ~(np.isfinite(relative) & (relative >= -ROUNDING))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise RegressionError(
            f"the certificate of target {first} is {relative[first]:.3g}, which is no bound: its "
            "outputs are too large or too uneven; scale them or leave the target out"
        )
    return np.maximum(relative, 0)


def quadratic_certificate(
    squares: NDArray[Any],
    least: float | NDArray[np.float64],
    most: float,
    lost: NDArray[np.float64],
    variance: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Certificate of ``½ w'Aw - c'w``: float32 weights near w, whose gradient is g.

    ``½ g'A⁻¹g ≤ ½ ‖g‖² / least`` is w's distance to the optimum in the norm of A, and rounding
    moves w by at most ``most ‖lost‖²`` in it.

    Parameters
    ----------
    squares : float64 [t]
        ‖g‖².
    least, most : float (``least`` also [t])
        Bounds of A's eigenvalues (``least`` on the space that g lies in).
    lost : float64 [t]
        What :meth:`Solution.fill` returned.
    variance : float64 [t]
    """
    return certificate(0.5 * (np.sqrt(squares / least) + np.sqrt(most * lost)) ** 2, variance)


@dataclass
class Solution:
    """What a solver returns: raw-unit weights and what is known about them.

    Attributes
    ----------
    weight : float32 [N, T]
    bias : float64 [T]
    lam : float64 [T]
        The penalty of each target, in standardised units (see the module).
    status : str
        How it was solved, in words for people.
    iterations : int
        Steps of an iterative solver; 0 for a direct one.
    gap : float64 [T]
        Certificate: an upper bound on (objective - optimum) relative to ½ yy.
    error_feature : float64 [N] or [N, T] or None
        Standard error of each weight, in units of ``error_target`` where that is given.
    error_target : float64 [T] or None
        Residual standard deviation of each target.
    draws : float16 [K, N] or [K, N, T] or None
        Weights less their mean, drawn together, in units of their standard errors.
    details : dict
        Numbers particular to the solver (condition number, degrees of freedom …).
    path : dict
        What happened along a path of λ, arrays [T, L], where there was one.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float64]
    lam: NDArray[np.float64]
    status: str
    iterations: int
    gap: NDArray[np.float64]
    error_feature: NDArray[np.float64] | None = None
    error_target: NDArray[np.float64] | None = None
    draws: NDArray[np.float16] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    path: dict[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def empty(cls, problem: Problem, status: str) -> Solution:
        """Return a solution of zeros that a solver fills target block by target block."""
        features, targets = problem.moments.num_features, problem.num_targets
        return cls(
            weight=np.zeros((features, targets), np.float32),
            bias=problem.moments.mean_output.copy(),
            lam=np.zeros(targets),
            status=status,
            iterations=0,
            gap=np.zeros(targets),
        )

    def fill(self, problem: Problem, targets: slice, weight: torch.Tensor) -> NDArray[np.float64]:
        """Store standardised weights [M, t] of some targets, with their intercepts.

        Returns
        -------
        float64 [t]
            What float32 costs: ‖rounding‖² of each target's standardised weights.
        """
        scale = torch.as_tensor(problem.scale, device=weight.device)[:, None]
        mean = torch.as_tensor(problem.moments.mean_mask[problem.active], device=weight.device)
        raw = weight.double() / scale
        narrow = raw.float()  # beyond float32 it is infinite, which is refused at the end
        where = slice(None) if len(problem.active) == len(self.weight) else problem.active
        self.weight[where, targets] = narrow.cpu().numpy()
        self.bias[targets] = problem.moments.mean_output[targets] - (mean @ raw).cpu().numpy()
        return np.asarray((narrow.double().sub_(raw).mul_(scale)).square_().sum(0).cpu().numpy())


def target_blocks(num_targets: int, size: int = TARGET_BLOCK) -> list[slice]:
    """Split the targets into slices that bound the memory of a step."""
    return [slice(i, min(i + size, num_targets)) for i in range(0, num_targets, size)]
