"""Studies on decompositions: heat maps, balance of sources, similarity, pruning by attribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from coarlib.ablation import ComponentSet, WeightAblation
from coarlib.errors import HistoryError
from coarlib.history.inputs import call
from coarlib.history.run import RecordedRun
from coarlib.path_kernel.accumulate import SOURCES
from coarlib.path_kernel.decomposition import Decomposition


@dataclass(frozen=True)
class TrainingCurve:
    """Mean loss and accuracy of a classifier along a recorded run, at updates ``steps`` int [S]."""

    steps: NDArray[np.int64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def training_curve(
    run: RecordedRun, inputs: torch.Tensor, targets: torch.Tensor, points: int = 100
) -> TrainingCurve:
    """Evaluate a recorded classifier at the states that its history keeps.

    Parameters
    ----------
    run : RecordedRun
    inputs [T, ...], targets int64 [T]
    points : int
        At most so many states, evenly over the run.
    """
    walk = run.walk
    every = walk.history.settings.every
    kept = np.arange(walk.history.first, walk.history.last, every)
    chosen = np.linspace(0, len(kept) - 1, min(points, len(kept))).round().astype(np.int64)
    steps = np.append(kept[chosen], walk.history.last)
    inputs, targets = run.put(inputs), run.put(targets)
    rows = []
    with torch.no_grad():
        for step in steps.tolist():
            outputs = call(run.model, walk.theta(step), inputs)
            right = (outputs.argmax(-1) == targets).double().mean()
            each = torch.vmap(lambda o, t: run.loss.function(o[None], t[None]))(outputs, targets)
            rows.append((float(each.mean()), float(right)))
    loss, accuracy = np.array(rows).T
    return TrainingCurve(steps, loss, accuracy)


def layer_kernels(found: Decomposition, output: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return the kernel of each parameter tensor, ``[N, D]`` test points × training samples.

    Needs ``by=[("sample", "tensor")]``.
    """
    values = np.asarray(found.by("sample", "tensor"), np.float64)[:, output]
    return {name: values[:, :, k] for k, name in enumerate(found.about["tensors"])}


def influence_over_steps(found: Decomposition) -> NDArray[np.float64]:
    """Return how much each tensor moves outputs in each step window, ``[tensors, windows]``.

    The mean over test points and outputs of the absolute contribution of data and weight decay
    together. Needs ``by=[("tensor", "step")]``.
    """
    total = sum(found.by("tensor", "step", source=source) for source in SOURCES)
    return np.asarray(np.abs(np.asarray(total, np.float64)).mean((0, 1)))


@dataclass(frozen=True)
class Balance:
    """Cumulative contributions of each source over step windows, mean over test points.

    ``signed`` and ``absolute``: ``{source: [windows]}``; the latter sums absolute contributions.
    """

    signed: dict[str, NDArray[np.float64]]
    absolute: dict[str, NDArray[np.float64]]


def balance(found: Decomposition) -> Balance:
    """Compare what data and regularisation do over training; needs ``by=["step"]``.

    Where only ``("tensor", "step")`` is there, tensors are summed.
    """
    signed, absolute = {}, {}
    for source in SOURCES:
        if f"{source}_by_step" in found.arrays:
            steps = np.asarray(found.by("step", source=source), np.float64)
        else:
            steps = np.asarray(found.by("tensor", "step", source=source), np.float64).sum(2)
        signed[source] = steps.mean((0, 1)).cumsum()
        absolute[source] = np.abs(steps).mean((0, 1)).cumsum()
    return Balance(signed, absolute)


def similarity(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosines ``[N, N]`` between the attribution vectors ``[N, features]`` of N points.

    A point whose vector is zero is similar to none (NaN).
    """
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(vectors @ vectors.T / np.outer(norms, norms))


@dataclass(frozen=True)
class PruningCurve:
    """Accuracy and KL divergence from the whole model as components are removed.

    ``removed`` int [S], ``accuracy`` and ``divergence`` (nats, KL(whole ‖ pruned)) float64 [S].
    """

    removed: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    divergence: NDArray[np.float64]


def pruning_curves(
    model: nn.Module,
    components: ComponentSet,
    scores: Mapping[str, NDArray[np.floating]],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    points: int = 11,
    random_orders: int = 5,
    seed: int = 0,
) -> dict[str, PruningCurve]:
    """Remove components from the lowest score to the highest, and in random orders.

    Parameters
    ----------
    model : nn.Module
        A classifier; unchanged afterwards.
    components : ComponentSet
    scores : mapping of method name to float [components]
        Such as the path kernel's absolute contributions, or COAR's absolute attributions.
    inputs [T, ...], targets int64 [T]
    points : int
        How many shares of removed components, evenly from none to all.
    random_orders, seed : int
        Orders of the curve ``"random"``, which is their mean.

    Raises
    ------
    HistoryError
        If a method's scores do not fit the components.
    """
    count = len(components)
    for name, values in scores.items():
        if np.shape(values) != (count,):
            raise HistoryError(f"scores of {name} must be [{count}], not {list(np.shape(values))}")
    shares = np.linspace(0, count, points).round().astype(np.int64)
    device = next(model.parameters()).device
    inputs, targets = inputs.to(device), targets.to(device)
    with torch.no_grad(), WeightAblation(model, components) as ablation:
        whole = F.log_softmax(model(inputs), -1)

        def curve(order: NDArray[np.int64]) -> PruningCurve:
            rows = []
            for removed in shares:
                mask = torch.ones(count, dtype=torch.bool)
                mask[torch.from_numpy(order[:removed])] = False
                ablation.apply(mask)
                pruned = F.log_softmax(model(inputs), -1)
                divergence = F.kl_div(pruned, whole, log_target=True, reduction="batchmean")
                right = (pruned.argmax(-1) == targets).double().mean()
                rows.append((float(right), float(divergence)))
            accuracy, divergences = np.array(rows).T
            return PruningCurve(shares, accuracy, divergences)

        curves = {name: curve(np.argsort(values)) for name, values in scores.items()}
        generator = np.random.default_rng(seed)
        random = [curve(generator.permutation(count)) for _ in range(random_orders)]
    curves["random"] = PruningCurve(
        shares,
        np.mean([one.accuracy for one in random], axis=0),
        np.mean([one.divergence for one in random], axis=0),
    )
    return curves


def component_scores(
    found: Decomposition, sources: Sequence[str] = ("data", "weight_decay")
) -> NDArray[np.float64]:
    """Return the mean absolute contribution of each component, ``[components]``.

    Contributions of the sources are added before the absolute value is taken. Needs
    ``by=["component"]``.
    """
    total = sum(np.asarray(found.by("component", source=source), np.float64) for source in sources)
    return np.asarray(np.abs(total).mean((0, 1)))
