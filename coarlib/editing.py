"""COAR-Edit: change what a model does by ablating the components that attributions name.

Given attributions, components are scored by how much more they matter for target examples than
for reference examples; ablating the highest-scored ones lowers the targets' outputs, ablating the
lowest-scored ones raises them, and the rest of the examples should hardly notice (Shah, Ilyas,
Madry 2024, §6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.ablation import ComponentSet, WeightAblation
from coarlib.commandline import nearest
from coarlib.errors import ComponentError

Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def t_like(target: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the difference of means over its standard error, as upstream (Welch, divisor n).

    Parameters
    ----------
    target, reference : float [N, T], float [N, R]
        Attributions of the two groups of examples.

    Returns
    -------
    float64 [N]
        A component whose attributions do not vary at all scores 0 if the means agree, else ±inf.
    """
    error = np.sqrt(
        target.var(axis=1) / target.shape[1] + reference.var(axis=1) / reference.shape[1]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        score = mean_difference(target, reference) / error
    return np.nan_to_num(score, nan=0.0, posinf=np.inf, neginf=-np.inf)


def mean_difference(
    target: NDArray[np.float64], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return mean over targets minus mean over references, [N]."""
    return np.asarray(target.mean(axis=1) - reference.mean(axis=1))


def target_mean(target: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over targets alone, [N]."""
    return np.asarray(target.mean(axis=1))


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {"t_like": t_like, "mean_difference": mean_difference, "target_mean": target_mean}
)


def score_components(
    weight: NDArray[Any],
    target: Sequence[int] | NDArray[Any],
    reference: Sequence[int] | NDArray[Any],
    statistic: str = "t_like",
) -> NDArray[np.float64]:
    """Score components by what they do for the targets and not for the references.

    Parameters
    ----------
    weight : float [N, examples]
        Attributions: effect of keeping a component on each example's output.
    target, reference : indices or bool masks of examples
    statistic : str
        Key of :data:`STATISTICS`.

    Returns
    -------
    float64 [N]
        High: keeping the component raises the targets' outputs.

    Raises
    ------
    ComponentError
        If the statistic is unknown or a group of examples is empty.
    """
    if statistic not in STATISTICS:
        raise ComponentError(f"unknown statistic {statistic}{nearest(statistic, STATISTICS)}")
    every = np.arange(np.shape(weight)[1])
    groups = [
        np.asarray(weight, np.float64)[:, every[group] if len(group) else every[:0]]
        for group in (target, reference)
    ]
    if not groups[0].shape[1] or not groups[1].shape[1]:
        raise ComponentError("target and reference examples must be at least one each")
    return STATISTICS[statistic](*groups)


def rank_components(scores: NDArray[np.float64], raise_target: bool) -> NDArray[np.int64]:
    """Return the order in which to ablate: lowest scores first to raise the targets' outputs."""
    return np.argsort(scores if raise_target else -scores, kind="stable")


@dataclass(frozen=True)
class Effect:
    """What ablating ``count`` components did.

    Attributes
    ----------
    count : int
    target, reference, rest : float
        Mean measured value over each group of examples after the edit.
    """

    count: int
    target: float
    reference: float
    rest: float


def effects(
    measure: Callable[[NDArray[np.bool_]], NDArray[Any]],
    order: NDArray[np.int64],
    counts: Sequence[int],
    groups: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    value: Callable[[NDArray[Any]], NDArray[Any]] = lambda outputs: outputs,
) -> list[Effect]:
    """Measure edits of growing size.

    Parameters
    ----------
    measure : callable
        Masks bool [B, N] (True = kept) to outputs [B, T], such as a task's rows.
    order : int [N]
        Components in the order of ablation.
    counts : sequence of int
        How many to ablate; 0 is the intact model.
    groups : three arrays of example indices
        Target, reference, and the rest.
    value : callable
        Applied to outputs before averaging; ``lambda m: m > 0`` turns margins into accuracy.

    Raises
    ------
    ComponentError
        If a count exceeds the number of components.
    """
    masks = np.ones((len(counts), len(order)), dtype=np.bool_)
    for row, count in enumerate(counts):
        if not 0 <= count <= len(order):
            raise ComponentError(f"{count} components cannot be ablated: there are {len(order)}")
        masks[row, order[:count]] = False
    values = value(np.asarray(measure(masks))).astype(float)
    means = [[float(row[group].mean()) for group in groups] for row in values]
    return [Effect(count, *mean) for count, mean in zip(counts, means, strict=True)]


def choose(found: Sequence[Effect], raise_target: bool, allowed_loss: float) -> Effect:
    """Return the edit that moves the targets most while the rest loses at most ``allowed_loss``.

    Parameters
    ----------
    found : sequence of Effect
        Measured on validation examples; must hold the intact model (count 0).
    raise_target : bool
    allowed_loss : float
        In units of the measured value, for the references as for the rest.

    Raises
    ------
    ComponentError
        If the intact model is not among them.
    """
    intact = next((effect for effect in found if effect.count == 0), None)
    if intact is None:
        raise ComponentError("choosing an edit needs the intact model (count 0) to compare with")
    sign = 1 if raise_target else -1
    fit = [
        effect
        for effect in found
        if effect.rest >= intact.rest - allowed_loss
        and (not raise_target or effect.reference >= intact.reference - allowed_loss)
    ]
    return max(fit, key=lambda effect: (sign * effect.target, -effect.count))


class Edit:
    """An ablation that stays until it is undone.

    Parameters
    ----------
    model : nn.Module
        Changed in place while the edit holds.
    components : ComponentSet
    ablated : sequence of int
        Indices of the components to ablate.

    Use :meth:`undo`, or as a context manager that undoes on leaving; ``model.state_dict()`` is
    what to save.
    """

    def __init__(
        self, model: nn.Module, components: ComponentSet, ablated: Sequence[int] | NDArray[Any]
    ) -> None:
        mask = torch.ones(len(components), dtype=torch.bool)
        for index in np.asarray(ablated, dtype=np.int64).tolist():
            components.locate(index)  # refuses what does not exist
            mask[index] = False
        self._ablation = WeightAblation(model, components)
        self._ablation.__enter__()
        self._ablation.apply(mask)

    def undo(self) -> None:
        """Give the model back the bits it had before."""
        self._ablation.__exit__(None, None, None)

    def __enter__(self) -> Edit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()
