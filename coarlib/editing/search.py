"""How many components to ablate: edits of growing size, measured, and one of them chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.editing.scores import rank_components, score_components
from coarlib.errors import ComponentError


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


Groups = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Indices or bool masks of the target examples, the references, and the rest."""
Measure = Callable[[NDArray[np.bool_]], NDArray[Any]]
"""Masks bool [B, N] (True = kept) to outputs [B, T], such as a task's rows."""
Value = Callable[[NDArray[Any]], NDArray[Any]]


def effects(
    measure: Measure,
    order: NDArray[np.int64],
    counts: Sequence[int],
    groups: Groups,
    value: Value = lambda outputs: outputs,
) -> list[Effect]:
    """Measure edits of growing size.

    Parameters
    ----------
    measure : callable
        See :data:`Measure`.
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
    return _means(_values(measure, order, counts, value), counts, groups)


def _values(
    measure: Measure, order: NDArray[np.int64], counts: Sequence[int], value: Value
) -> NDArray[np.float64]:
    masks = np.ones((len(counts), len(order)), dtype=np.bool_)
    for row, count in enumerate(counts):
        if not 0 <= count <= len(order):
            raise ComponentError(f"{count} components cannot be ablated: there are {len(order)}")
        masks[row, order[:count]] = False
    return value(np.asarray(measure(masks))).astype(np.float64)


def _means(values: NDArray[np.float64], counts: Sequence[int], groups: Groups) -> list[Effect]:
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


@dataclass(frozen=True)
class Plan:
    """An edit and what it does.

    Attributes
    ----------
    ablated : int64 [k]
        The components to ablate.
    validation : tuple of Effect
        Every size that was tried, on the validation examples.
    before, after : Effect
        The intact and the edited model on the test examples.
    """

    ablated: NDArray[np.int64]
    validation: tuple[Effect, ...]
    before: Effect
    after: Effect


def plan_edit(
    weight: NDArray[Any],
    measure: Measure,
    validation: Groups,
    test: Groups,
    *,
    raise_target: bool,
    allowed_loss: float,
    largest: int = 20,
    statistic: str = "t_like",
    value: Value = lambda outputs: outputs,
) -> Plan:
    """Rank components and choose how many to ablate, on validation examples; judge on test ones.

    Parameters
    ----------
    weight : float [N, T]
        Attributions.
    measure : callable
        See :data:`Measure`; called once.
    validation, test : Groups
        Examples that choose the edit, and examples that it is judged by. Attributions of the
        validation examples alone are used.
    raise_target : bool
        Whether the targets' outputs should rise (mend an error) or fall (forget).
    allowed_loss : float
        What the other examples may lose, in units of ``value``.
    largest : int
        Components to ablate at most.
    statistic : str
        Key of :data:`coarlib.editing.STATISTICS`.
    value : callable
        As in :func:`effects`.

    Raises
    ------
    ComponentError
        If a group is empty, the statistic unknown, or there are fewer than ``largest`` components.
    """
    if any(_is_empty(group) for group in (*validation, *test)):
        raise ComponentError("target, reference and rest need an example each, in both halves")
    scores = score_components(weight, validation[0], validation[1], statistic)
    order, counts = rank_components(scores, raise_target), range(largest + 1)
    values = _values(measure, order, counts, value)
    tried = _means(values, counts, validation)
    chosen = choose(tried, raise_target, allowed_loss).count
    before, after = _means(values[[0, chosen]], [0, chosen], test)
    return Plan(order[:chosen], tuple(tried), before, after)


def _is_empty(group: NDArray[Any]) -> bool:
    group = np.asarray(group)
    return not (group.any() if group.dtype == np.bool_ else group.size)
