"""Is training smooth enough? Predicted against measured changes when a few samples are left out.

A derivative says what an infinitesimal change of a weight does; leaving a sample out is a change
of 1. Where training is rough (ReLU with large steps), the two have little in common. So a handful
of small removals is predicted and then done: the same initialisation, batches and hyperparameters,
with the removed samples' losses times 0.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import grad, vmap

from coarlib.errors import HistoryError
from coarlib.files import whole_file
from coarlib.history import RecordedRun
from coarlib.history.clipping import NORM_EPS
from coarlib.history.gradients import SampleGradients, differentiable_attention
from coarlib.history.optimizers import HYPER, INACTIVE, coefficients_of
from coarlib.history.parameters import Tensors
from coarlib.history.queries import Queries
from coarlib.history.walk import Update
from coarlib.loading import load_json

SMOOTH = 0.8
"""A correlation below this is warned of."""


@dataclass(frozen=True)
class Smoothness:
    """Removals, predicted and done.

    Attributes
    ----------
    removed : int64 [R, k]
        Samples left out together.
    predicted, measured : float64 [R, T]
        Changes of the outputs.
    """

    removed: NDArray[np.int64]
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]

    @property
    def correlation(self) -> float:
        """Pearson's correlation of predicted and measured changes, over removals and targets."""
        predicted, measured = self.predicted.ravel(), self.measured.ravel()
        if not (predicted.std() > 0 and measured.std() > 0):
            return float("nan")
        return float(np.corrcoef(predicted, measured)[0, 1])

    @property
    def smooth(self) -> bool:
        """Whether removals are predicted well."""
        return self.correlation >= SMOOTH

    def __str__(self) -> str:
        head = (
            f"{len(self.removed)} removals of {self.removed.shape[1]} samples are predicted with a "
            f"correlation of {self.correlation:.2f}"
        )
        if self.smooth:
            return head
        return (
            f"{head}, below {SMOOTH}: training is not smooth enough for single derivatives; "
            "average over more seeds, or train with smaller steps, warm-up, larger batches or a "
            "smooth activation (GELU for ReLU)"
        )

    def warn(self) -> None:
        """Warn (RuntimeWarning) if training is rough."""
        if not self.smooth:
            warnings.warn(str(self), RuntimeWarning, stacklevel=3)


def draw_removals(trained: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw ``count`` sets of 1% of the samples that were trained on, ``[count, k]``."""
    random = np.random.default_rng([seed, len(trained)])
    size = max(1, len(trained) // 100)
    return np.stack([np.sort(random.choice(trained, size, replace=False)) for _ in range(count)])


def reweighted(run: RecordedRun, factors: torch.Tensor) -> Tensors:
    """Train a recorded run again with other weights of its samples.

    Parameters
    ----------
    run : RecordedRun
    factors : float [R, D]
        On each sample's loss, wherever it is in a batch; what else is in it keeps its weight. R
        runs are trained side by side. Clipping by norm goes on where it was active.

    Returns
    -------
    {name: [R, *shape]}
        Trained parameters.
    """
    walk, count = run.walk, len(factors)
    kind = walk.history.settings.kind
    theta = {
        n: v.expand(count, *v.shape).clone() for n, v in walk.theta(walk.history.first).items()
    }
    momentum = {n: torch.zeros_like(v) for n, v in theta.items()}
    prior = walk.prior_momentum() or {}
    momentum.update({n: v.expand(count, *v.shape).clone() for n, v in prior.items()})
    second = {n: torch.zeros_like(v) for n, v in theta.items()}
    for number in walk.numbers:
        update = walk.update(number)
        gradient = _gradients(run, update, theta, factors)
        for place, name in enumerate(theta):
            steps, group = int(update.record.counts[place]), update.groups[place]
            if steps == INACTIVE:
                continue
            own = coefficients_of(kind, group, update.record.hyper, steps, second[name])
            u = gradient[name] + own.couple * theta[name]
            if kind.adaptive:
                beta2 = float(update.record.hyper[group, HYPER.index("beta2")])
                second[name] = beta2 * second[name] + (1 - beta2) * u.square()
                own = coefficients_of(kind, group, update.record.hyper, steps, second[name])
            momentum[name] = own.keep * momentum[name] + own.take * u
            moved = own.through * momentum[name] + own.direct * u + own.shrink * theta[name]
            theta[name] = theta[name] - moved
    return theta


def _gradients(run: RecordedRun, update: Update, theta: Tensors, factors: torch.Tensor) -> Tensors:
    """Return the clipped gradients of all runs, ``{name: [R, *shape]}``."""
    numbers, loss = update.record.samples, run.loss
    gradients = SampleGradients(run.model, loss)
    inputs, targets = run.samples.take(numbers, run.walk.device)
    inputs = run.put(inputs)
    weights = torch.as_tensor(update.record.weights).to(factors)
    weights = weights * factors[:, torch.as_tensor(numbers).to(factors.device)]

    def total(part: Tensors, own: torch.Tensor) -> torch.Tensor:
        each = gradients.losses(part, inputs, targets)
        value = (each * own).sum()
        return value if loss.regulariser is None else value + loss.regulariser(part)

    with differentiable_attention():
        found: Tensors = vmap(grad(total))(theta, weights)
        plain = torch.as_tensor(update.record.weights).to(factors)
        clipped = {factor for factor in update.clip.values() if factor != 1.0}
        recorded: Tensors = grad(total)(update.theta, plain) if clipped else {}
    for factor in clipped:
        names = [name for name, own in update.clip.items() if own == factor]
        norm = torch.sqrt(torch.stack([recorded[n].square().sum() for n in names]).sum())
        largest = factor * (norm + NORM_EPS)
        norms = torch.sqrt(sum(found[n].flatten(1).square().sum(1) for n in names))  # type: ignore[arg-type]
        shares = (largest / (norms + NORM_EPS)).clamp(max=1.0)
        for name in names:
            found[name] = found[name] * shares.reshape(-1, *[1] * (found[name].dim() - 1))
    return found


def smoothness_of(
    run: RecordedRun,
    queries: Queries,
    found: tuple[NDArray[Any], NDArray[np.float64]],
    removed: NDArray[np.int64],
    file: Path | None,
) -> Smoothness:
    """Predict and do some removals, or read what was done from ``file``.

    Parameters
    ----------
    run, queries
    found : effects [T, D] and outputs [T] of the run
    removed : int64 [R, k]
    file : Path, optional
        Where the result is kept.
    """
    (effects, outputs), walk = found, run.walk
    if file is not None and file.exists():
        content = load_json(file, HistoryError)
        if content.get("removed") == removed.tolist():
            kept = (np.asarray(content[key], np.float64) for key in ("predicted", "measured"))
            return Smoothness(removed, *kept)
    factors = torch.ones(len(removed), walk.history.settings.num_samples, dtype=walk.dtype)
    factors.scatter_(1, torch.from_numpy(removed), 0.0)
    theta = reweighted(run, factors.to(walk.device))
    every = torch.arange(len(queries), device=walk.device)
    rows = []
    for place in range(len(removed)):
        own = {name: values[place] for name, values in theta.items()}
        rows.append(queries.values(own, every).reshape(-1).double().cpu().numpy() - outputs)
    predicted = -np.stack([effects[:, out].sum(1, dtype=np.float64) for out in removed])
    smoothness = Smoothness(removed, predicted, np.stack(rows))
    if file is not None:
        content = {
            "removed": removed.tolist(),
            "predicted": predicted.tolist(),
            "measured": smoothness.measured.tolist(),
        }
        with whole_file(file, "w") as stream:
            json.dump(content, stream)
    return smoothness
