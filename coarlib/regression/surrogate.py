"""A surrogate of all orders: predictions that interactions of components improve.

The linear model's prior variances v say how far two masks are apart, H = Σ_j v_j [x_j ≠ x'_j];
kernel ridge with exp(-θ H / m), m the mean kept variance, is a Gaussian process with effects of all
orders, whose share falls with the order as θ says. All targets share one eigendecomposition over
the rows. Its first-order part is a weight a component, the expected effect of keeping it under the
design; its second-order part an interaction a pair. Both are sums over rows, without sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.display import text_table
from coarlib.errors import RegressionError, whole_number
from coarlib.files import whole_file
from coarlib.gradient_passes import PassSums
from coarlib.loading import load_npz
from coarlib.masks import MaskDesign, draw
from coarlib.regression.fit import fit
from coarlib.regression.heldout import HeldOut, score_rows
from coarlib.regression.rows import RowSource
from coarlib.regression.rows.blocks import finite_blocks
from coarlib.regression.solvers import Bayes, SharedPrior
from coarlib.regression.split import Split
from coarlib.regression.tables import layers_of

__all__ = [
    "SURROGATE",
    "Interactions",
    "Surrogate",
    "fit_surrogate",
    "surrogate_and_score",
    "surrogate_of",
]

THETAS = (0.03, 0.1, 0.3, 1.0, 3.0)
PENALTIES = np.geomspace(1e-3, 100, 24)
LEAST_ROWS, MOST_ROWS = 8, 4000
SURROGATE = "surrogate.npz"
DRAWN = 2000  # masks that measure how much of the variance is not linear
NAMES = ("masks", "dual", "variance", "theta", "guess", "offset", "kept")


@dataclass(frozen=True, repr=False)
class Interactions:
    """The strongest pair interactions of one target.

    Attributes
    ----------
    target : int
    first, second : int64 [K]
        The components of each pair.
    effect : float64 [K]
        y(both kept) - y(one) - y(the other) + y(neither), on average under the design.
    """

    target: int
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    effect: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.effect)

    def __repr__(self) -> str:
        pairs = zip(self.first, self.second, self.effect, strict=True)
        rows = [[f"{one}", f"{other}", f"{effect:+.4f}"] for one, other, effect in pairs]
        return text_table([f"target {self.target}", "with", "interaction"], rows)


@dataclass(frozen=True)
class Surrogate:
    """A predictor of outputs under masks.

    Attributes
    ----------
    masks : bool [n, N]
        The rows that it was fitted on.
    dual : float64 [n, T]
        Coefficients of their kernels.
    variance : float64 [N]
        θ v / m.
    theta : float
    guess : float64 [N, T]
        Weights that the kernel corrects.
    offset : float64 [T]
    kept : float64 [N]
        Probability that a component is kept, in the rows.
    """

    masks: NDArray[np.bool_]
    dual: NDArray[np.float64]
    variance: NDArray[np.float64]
    theta: float
    guess: NDArray[np.float64]
    offset: NDArray[np.float64]
    kept: NDArray[np.float64]

    def predict(self, masks: NDArray[Any]) -> NDArray[np.float64]:
        """Predict outputs of masks bool [B, N] (True = kept): [B, T]."""
        x = np.asarray(masks)
        if x.ndim != 2 or x.shape[1] != self.masks.shape[1]:
            raise RegressionError(f"masks must be [B, {self.masks.shape[1]}], not {list(x.shape)}")
        kernel = np.exp(-_distance(x, self.masks, self.variance))
        return np.asarray(kernel @ self.dual + x.astype(np.float64) @ self.guess + self.offset)

    def _parts(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per row and component the relative finite difference, [n, N], and the product, [n]."""
        differ = np.exp(-self.variance)
        mean = np.where(
            self.masks, self.kept + (1 - self.kept) * differ, self.kept * differ + 1 - self.kept
        )
        sign = np.where(self.masks, 1.0, -1.0)
        return sign * (1 - differ) / mean, np.exp(np.log(mean).sum(1))

    @property
    def weight(self) -> NDArray[np.float64]:
        """The first-order part: expected effect of keeping each component, [N, T]."""
        part, product = self._parts()
        return np.asarray(self.guess + part.T @ (product[:, None] * self.dual))

    def interactions(self, target: int, top: int = 50) -> Interactions:
        """Return the pairs with the largest second differences, strongest first.

        They are predictions: measure the pairs that matter (four ablations each).

        Raises
        ------
        RegressionError
            If there is no such target, or no pair is asked for.
        """
        target, top = whole_number(target, "target"), whole_number(top, "top")
        if not 0 <= target < self.dual.shape[1] or top < 1:
            raise RegressionError(
                f"target {target} of {self.dual.shape[1]}, counted from 0, and top {top} name no "
                "interactions"
            )
        part, product = self._parts()
        pairs = part.T @ ((product * self.dual[:, target])[:, None] * part)
        first, second = np.triu_indices(len(pairs), 1)
        effect = pairs[first, second]
        order = np.argsort(-np.abs(effect), kind="stable")[:top]
        return Interactions(target, first[order], second[order], effect[order])

    def not_linear(self, seed: int = 0) -> NDArray[np.float64]:
        """Share of each target's predicted variance that the first-order part leaves, [T]."""
        share = float(np.clip(self.kept.mean(), 1e-6, 1))
        masks = draw(MaskDesign(keep_prob=share, seed=seed), np.arange(DRAWN), len(self.kept))
        found = self.predict(masks)
        left = found - masks.astype(np.float64) @ self.weight
        whole = found.var(0)
        return np.divide(left.var(0), whole, out=np.zeros_like(whole), where=whole > 0)

    def save(self, path: str | Path) -> None:
        """Write it to an .npz, whole or not at all."""
        with whole_file(Path(path)) as file:
            np.savez(file, **{name: getattr(self, name) for name in NAMES})

    @classmethod
    def load(cls, path: str | Path) -> Surrogate:
        """Read what :meth:`save` wrote; RegressionError if it is something else."""
        found = load_npz(path, RegressionError)
        if missing := set(NAMES) - set(found):
            raise RegressionError(f"{path} is no surrogate: it lacks {', '.join(sorted(missing))}")
        return cls(**{name: found[name] for name in NAMES if name != "theta"},
                   theta=float(found["theta"]))  # fmt: skip


def fit_surrogate(
    masks: NDArray[np.bool_],
    outputs: NDArray[Any],
    variance: NDArray[np.float64],
    guess: NDArray[Any] | None = None,
) -> Surrogate:
    """Fit kernel ridge of all orders; θ and the penalty by exact leave-one-out of all targets.

    Parameters
    ----------
    masks : bool [n, N]
    outputs : real [n, T]
    variance : float64 [N]
        Prior variances of the weights, up to a factor: of
        :func:`coarlib.regression.solvers.prior.learn_prior`, or squares of known weights.
    guess : float [N, T], optional
        Weights that are known without these rows (from gradient passes); zero by default.

    Raises
    ------
    RegressionError
        If there are fewer than 8 rows, or arrays do not fit.
    """
    masks, y = np.asarray(masks, np.bool_), np.asarray(outputs, np.float64)
    shape = masks.shape[1], y.shape[1]
    weights = np.zeros(shape) if guess is None else np.asarray(guess, np.float64)
    if len(masks) < LEAST_ROWS or len(y) != len(masks):
        raise RegressionError(
            f"a surrogate needs at least {LEAST_ROWS} rows with their outputs, not {len(masks)} "
            f"and {len(y)}"
        )
    if weights.shape != shape or variance.shape != shape[:1] or not (variance >= 0).all():
        raise RegressionError(
            f"variances must be [{shape[0]}] and not negative, and guesses {list(shape)}"
        )
    kept = masks.mean(0)
    left = y - masks.astype(np.float64) @ weights
    mean = left.mean(0)
    spread = y.var(0)
    scaled = variance / max(float((variance * (1 - kept)).sum()), 1e-300) / 2
    distance = _distance(masks, masks, scaled)
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for theta in THETAS:
        error, dual = _best_ridge(np.exp(-theta * distance), left - mean, spread)
        if best is None or error < best[0]:
            best = error, theta, dual
    if best is None or not np.isfinite(best[0]):
        raise RegressionError("no output varies, so there is nothing to predict")
    _, theta, dual = best
    found = Surrogate(masks, dual, theta * scaled, theta, weights, mean, kept)
    fitted = found.predict(masks)
    return Surrogate(
        masks, dual, theta * scaled, theta, weights, mean + y.mean(0) - fitted.mean(0), kept
    )


def surrogate_of(
    masks: NDArray[np.bool_],
    outputs: NDArray[Any],
    passes: PassSums | None = None,
    groups: NDArray[np.int64] | None = None,
) -> Surrogate:
    """Fit a surrogate about what is known without the rows.

    Parameters
    ----------
    masks : bool [n, N]
    outputs : real [n, T]
    passes : PassSums, optional
        Gradient passes: their posterior is the guess, and its squares are the variances. Without
        them these come from the shared prior's weights.
    groups : int64 [N], optional
        Layer of each component.

    Raises
    ------
    RegressionError
        If there are fewer than 8 rows, or arrays do not fit.
    """
    few = slice(None) if passes is None else slice(0, LEAST_ROWS)
    solver = SharedPrior() if passes is None else Bayes(passes=passes, groups=groups)
    weight = fit((masks[few], outputs[few]), solver, held_out=0).weight.astype(np.float64)
    spread = np.where((size := outputs.std(0)) > 0, size, 1)
    variance = np.square(weight / spread).mean(1)
    variance += 1e-6 * max(variance.mean(), 1e-300)
    return fit_surrogate(masks, outputs, variance, None if passes is None else weight)


def surrogate_and_score(source: RowSource, split: Split) -> tuple[Surrogate, HeldOut | None]:
    """Fit a surrogate to rows, score it on the held-out ones, and fit both.

    Of more than 4,000 rows the first are taken. Gradient passes of a store are used.

    Parameters
    ----------
    source : RowSource
    split : Split
        Positions in the source.
    """
    read = getattr(source, "gradient_passes", None)
    passes = None if read is None else read()
    table = getattr(source, "components", None)
    groups = None if table is None else layers_of(table)

    def fitted(positions: NDArray[np.int64]) -> Surrogate:
        blocks = list(finite_blocks(source, positions[:MOST_ROWS]))
        masks, outputs = (np.concatenate(part) for part in zip(*blocks, strict=True))
        return surrogate_of(masks, outputs.astype(np.float64), passes, groups)

    if not len(split.validation):
        return fitted(split.train), None
    scores = score_rows(fitted(split.train).predict, source, split.validation)
    return fitted(np.union1d(split.train, split.validation)), scores


def _distance(
    one: NDArray[Any], other: NDArray[Any], variance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Σ v [x ≠ x'], [B, n]."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    mixed = (a * variance) @ b.T
    return np.maximum((a @ variance)[:, None] + b @ variance - 2 * mixed, 0)


def _best_ridge(
    kernel: NDArray[np.float64], y: NDArray[np.float64], spread: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return the smallest leave-one-out error relative to the outputs' variance, and its dual."""
    n = len(kernel)
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    values, vectors = (x.numpy() for x in torch.linalg.eigh(torch.from_numpy(centred)))
    size = float(values.clip(0).sum()) / n
    rotated, varying = vectors.T @ y, spread > 0
    best, found = np.inf, np.zeros_like(y)
    if not varying.any() or size <= 0:
        return best, found
    for penalty in PENALTIES * size:
        inverse = 1 / (values.clip(0) + penalty)
        dual = vectors @ (inverse[:, None] * rotated)
        # The mean is free: in its direction nothing is told from noise.
        leverage = np.square(vectors) @ inverse - 1 / (n * penalty)
        errors = np.square(dual / np.maximum(leverage, 1e-12)[:, None])
        error = float((errors.mean(0)[varying] / spread[varying]).mean())
        if error < best:
            best, found = error, dual
    return best, found
