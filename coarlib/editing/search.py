"""Which components to ablate: edits built up one component at a time, each step measured.

Attributions say where to look; what an edit does is measured. Every candidate is ablated alone,
then candidates are added, those first that did most for the targets at the least harm to the
references, leaving out each that would cost more than allowed (greedy forward selection).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        Mean of the value over each group of examples after the edit.
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
    if not len(counts):
        raise ComponentError("counts names no size of edit to measure")
    masks = np.ones((len(counts), len(order)), dtype=np.bool_)
    for row, count in enumerate(counts):
        if not 0 <= count <= len(order):
            raise ComponentError(f"{count} components cannot be ablated: there are {len(order)}")
        masks[row, order[:count]] = False
    rows = value(np.asarray(measure(masks)))
    return [_effect(count, row, groups) for count, row in zip(counts, rows, strict=True)]


def _effect(count: int, values: NDArray[Any], groups: Groups) -> Effect:
    target, reference, rest = (float(np.mean(values[group], dtype=np.float64)) for group in groups)
    return Effect(count, target, reference, rest)


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
        If the intact model is not among them, or the allowed loss is no number.
    """
    intact = next((effect for effect in found if effect.count == 0), None)
    if intact is None:
        raise ComponentError("choosing an edit needs the intact model (count 0) to compare with")
    fit = [effect for effect in found if _allowed(effect, intact, raise_target, allowed_loss)]
    sign = 1 if raise_target else -1
    return max(fit, key=lambda effect: (sign * effect.target, -effect.count))


def _allowed(effect: Effect, intact: Effect, raise_target: bool, allowed_loss: float) -> bool:
    if not allowed_loss >= 0:
        raise ComponentError(f"allowed_loss must be a number of at least 0, not {allowed_loss}")
    kept = effect.rest >= intact.rest - allowed_loss
    return kept and (not raise_target or effect.reference >= intact.reference - allowed_loss)


@dataclass(frozen=True)
class EditPlan:
    """An edit and what it does.

    Attributes
    ----------
    ablated : int64 [k]
        The components to ablate, in the order in which they were added.
    validation : tuple of Effect
        The edit at every size from none to the last component added, on the validation examples:
        what the targets gain against what the others lose.
    before, after : Effect
        The intact and the edited model on the test examples.
    measured : int
        Rows that the search took.
    """

    ablated: NDArray[np.int64]
    validation: tuple[Effect, ...]
    before: Effect
    after: Effect
    measured: int


def plan_edit(
    weight: NDArray[Any],
    measure: Measure,
    validation: Groups,
    test: Groups,
    *,
    raise_target: bool,
    allowed_loss: float,
    largest: int = 20,
    tries: int | None = None,
    statistic: str = "t_like",
    value: Value = lambda outputs: outputs,
) -> EditPlan:
    """Build an edit on validation examples; judge it on test examples.

    Parameters
    ----------
    weight : float [N, T]
        Attributions.
    measure : callable
        See :data:`Measure`.
    validation, test : Groups
        Examples that choose the edit, and examples that it is judged by. Attributions of the
        validation examples alone are used.
    raise_target : bool
        Whether the targets' outputs should rise (mend an error) or fall (forget).
    allowed_loss : float
        What the other examples may lose, in units of ``value``; a standard error of the loss on
        the validation examples counts as lost.
    largest : int
        Components to ablate at most.
    tries : int, optional
        Components to consider, those that the attributions name first; four times ``largest`` by
        default. The search measures at most twice as many rows, and two more.
    statistic : str
        Key of :data:`coarlib.editing.STATISTICS`.
    value : callable
        As in :func:`effects`. Steps are compared by the outputs themselves, which say more than
        a count of right answers; the allowed loss and the final choice go by the value.

    Raises
    ------
    ComponentError
        If a group is empty, the statistic unknown, or a number out of range.
    """
    if any(_is_empty(group) for group in (*validation, *test)):
        raise ComponentError("target, reference and rest need an example each, in both halves")
    if not 1 <= largest <= len(weight):
        raise ComponentError(f"largest must be from 1 to {len(weight)} components, not {largest}")
    scores = score_components(weight, validation[0], validation[1], statistic)
    order = rank_components(scores, raise_target)[: 4 * largest if tries is None else tries]
    steps = _Steps(measure, validation, value, raise_target, len(weight))
    intact, *alone = steps.measure([(), *((int(one),) for one in order)])
    steps_of = dict(zip(order.tolist(), alone, strict=True))
    guarded = validation[1:] if raise_target else validation[2:]
    path = [intact]
    for one in _most_for_least(steps_of, intact):
        if len(path) > largest:
            break
        added = (*path[-1].ablated, one)
        step = steps.measure([added])[0] if len(added) > 1 else steps_of[one]
        surely = _surely_allowed(step, intact, guarded, allowed_loss)
        if surely and step.gain > path[-1].gain:
            path.append(step)
    tried = [step.effect for step in path]
    chosen = path[choose(tried, raise_target, allowed_loss).count]
    before, after = (_effect(len(s.ablated), s.values, test) for s in (intact, chosen))
    ablated = np.array(chosen.ablated, dtype=np.int64)
    return EditPlan(ablated, tuple(tried), before, after, steps.rows)


@dataclass(frozen=True)
class _Step:
    """One measured edit: its components, values [T], effect, and mean outputs of two groups.

    ``gain`` is the targets' (negated where they are to fall), ``others`` the references'.
    """

    ablated: tuple[int, ...]
    values: NDArray[Any]
    effect: Effect
    gain: float
    others: float


def _surely_allowed(
    step: _Step, intact: _Step, guarded: Sequence[NDArray[Any]], allowed_loss: float
) -> bool:
    """Whether the mean loss of each group, and a standard error of it, stay within the allowance.

    A search that takes the best of many edits finds those that happen to look harmless on the
    examples at hand; the standard error leaves room for that.
    """
    for group in guarded:
        losses = intact.values[group].astype(np.float64) - step.values[group]
        if losses.mean() + losses.std() / np.sqrt(losses.size) > allowed_loss:
            return False
    return True


def _most_for_least(alone: Mapping[int, _Step], intact: _Step) -> list[int]:
    """Components that help the targets, first those that harm the others least for it."""
    gains = {one: step.gain - intact.gain for one, step in alone.items()}
    floor = 0.01 * max(gains.values(), default=0.0)  # harms below this are noise
    helpful = [one for one, gain in gains.items() if gain > 0]

    def gain_for_harm(one: int) -> float:
        return gains[one] / (max(intact.others - alone[one].others, 0.0) + floor)

    return sorted(helpful, key=gain_for_harm, reverse=True)


class _Steps:
    """Measures edits and counts the rows that this takes."""

    def __init__(
        self,
        measure: Measure,
        groups: Groups,
        value: Value,
        raise_target: bool,
        components: int,
    ) -> None:
        self._measure, self._groups, self._value = measure, groups, value
        self._sign, self._components = (1.0 if raise_target else -1.0), components
        self.rows = 0

    def measure(self, edits: Sequence[tuple[int, ...]]) -> list[_Step]:
        masks = np.ones((len(edits), self._components), dtype=np.bool_)
        for row, ablated in enumerate(edits):
            masks[row, list(ablated)] = False
        outputs = np.asarray(self._measure(masks))
        self.rows += len(edits)
        values = self._value(outputs)
        return [
            _Step(
                ablated,
                values[row],
                _effect(len(ablated), values[row], self._groups),
                self._sign * float(np.mean(outputs[row][self._groups[0]], dtype=np.float64)),
                float(np.mean(outputs[row][self._groups[1]], dtype=np.float64)),
            )
            for row, ablated in enumerate(edits)
        ]


def _is_empty(group: NDArray[Any]) -> bool:
    group = np.asarray(group)
    return not (group.any() if group.dtype == np.bool_ else group.size)
