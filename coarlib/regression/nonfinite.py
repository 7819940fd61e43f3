"""Fits where some outputs are NaN or infinite: leave out rows, targets, or rows for one target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.regression.attributions import Attributions
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.heldout import HeldOut
from coarlib.regression.moments.sums import NO_ROWS
from coarlib.regression.rows import RowSource, SomeTargets
from coarlib.regression.rows.blocks import read_blocks
from coarlib.regression.solvers import Solver, solver_of
from coarlib.regression.split import Split
from coarlib.scoring.nonfinite import targets_by_rows
from coarlib.scoring.rows import named

__all__ = ["NONFINITE_ROWS", "fit_finite"]

NONFINITE_ROWS = ("rows", "targets", "alone")
OF_TARGETS = ("weight", "bias", "lam", "gap")
Part = tuple[NDArray[np.int64], Attributions]


def fit_finite(
    source: RowSource, split: Split, solver: str | Solver, how: FitOptions, nonfinite: str = "rows"
) -> Attributions:
    """Fit and score rows, of which some have outputs that are NaN or infinite.

    Parameters
    ----------
    source, split, solver, how
        As for :func:`~coarlib.regression.fit_and_score.fit_and_score`.
    nonfinite : "rows", "targets" or "alone"
        ``"rows"``: a row with such an output is left out for every target. ``"targets"``: a target
        with such an output in some row is left out, and its weights are NaN. ``"alone"``: the rows
        are left out for that target alone; the targets that lack the same rows are fitted together.

    Returns
    -------
    Attributions
        For all T targets. Mean and interval of ``held_out`` are those of the targets that have
        every row.

    Raises
    ------
    RegressionError
        If ``nonfinite`` is none of these, or nothing is left to fit.
    """
    if nonfinite not in NONFINITE_ROWS:
        raise RegressionError(f"nonfinite must be {', '.join(NONFINITE_ROWS)}, not {nonfinite!r}")
    solver, positions = solver_of(solver), np.union1d(split.train, split.validation)
    if nonfinite == "rows":
        return _without_rows(source, split, solver, how, positions)
    if not (holed := _holed(source, positions)).any():
        return fit_and_score(source, split, solver, how)
    how.say(f"targets with NaN or infinite outputs: {_those(holed)}")
    parts: list[Part] = []
    if not holed.all():
        targets = np.flatnonzero(~holed)
        some = SomeTargets(source, targets), split, solver.of_targets(targets)
        parts.append((targets, fit_and_score(*some, how)))
    if nonfinite == "alone":
        parts += _alone(source, split, solver, how, positions, np.flatnonzero(holed))
    if not parts:
        raise RegressionError("nothing to fit: every target has NaN or infinite outputs")
    return _joined(parts, source.num_targets, split, nonfinite)


def _without_rows(
    source: RowSource,
    split: Split,
    solver: Solver,
    how: FitOptions,
    positions: NDArray[np.int64],
) -> Attributions:
    """Leave out rows for every target, and say which targets were the reason."""
    try:
        result = fit_and_score(source, split, solver, how)
    except RegressionError as error:
        if not str(error).startswith(NO_ROWS):
            raise
        raise RegressionError(f"{error}; these are {_those(_holed(source, positions))}") from error
    if result.summary.get("num_excluded"):
        how.say(f"rows were left out because of {_those(_holed(source, positions))}")
    return result


def _holed(source: RowSource, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which targets have outputs that are not finite, bool [T]."""
    holed = np.zeros(source.num_targets, dtype=bool)
    for finite in _finite(source, positions):
        holed |= ~finite.all(0)
    return holed


def _those(holed: NDArray[np.bool_]) -> str:
    return f"{int(holed.sum())} of {holed.size} targets (target {named(np.flatnonzero(holed))})"


def _finite(source: RowSource, positions: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    """Yield which outputs are finite, block by block, bool [B, T]."""
    for _, _, outputs in read_blocks(source, positions):
        yield np.isfinite(outputs)


def _alone(  # noqa: PLR0917
    source: RowSource,
    split: Split,
    solver: Solver,
    how: FitOptions,
    positions: NDArray[np.int64],
    holed: NDArray[np.int64],
) -> Iterator[Part]:
    """Fit targets on the rows that each has, those with the same rows together."""
    finite = np.concatenate([x[:, holed] for x in _finite(source, positions)])
    outputs = np.where(finite, 0.0, np.nan).astype(np.float16)
    quiet = replace(how, partial_dir=None, with_curve=False, quiet=True, say=_silent)
    for members, rows in targets_by_rows(np.ones(len(holed), dtype=bool), outputs):
        there, targets = positions[rows], holed[members]
        own = replace(
            split,
            train=np.intersect1d(split.train, there),
            validation=np.intersect1d(split.validation, there),
        )
        if not len(own.train):
            continue
        how.say(f"fitting {len(targets)} of them on the {len(there)} rows that they have")
        some = SomeTargets(source, targets), own, solver.of_targets(targets)
        yield targets, fit_and_score(*some, quiet)


def _joined(parts: list[Part], count: int, split: Split, nonfinite: str) -> Attributions:
    """Put parts together; NaN for targets that none has."""
    first, found = parts[0][1], [part for _, part in parts]

    def spread(values: list[Any]) -> Any:
        shape = (*values[0].shape[:-1], count)
        whole = np.full(shape, np.nan, np.result_type(*values))
        for (targets, _), some in zip(parts, values, strict=True):
            whole[..., targets] = some
        return whole

    left = np.setdiff1d(np.arange(count), np.concatenate([targets for targets, _ in parts]))
    errors = [part.standard_error for part in found]
    digests = [part.fitted for part in found if part.fitted is not None]
    held = [part.held_out for part in found]
    return replace(
        first,
        **{key: spread([getattr(x, key) for x in found]) for key in OF_TARGETS},
        error_feature=None if any(x is None for x in errors) else spread(errors),
        error_target=None,
        draws=None,
        held_out=None if any(x is None for x in held) else _joined_scores(held, spread),
        summary={**first.summary, "num_targets": count, "nonfinite": nonfinite,
                 "targets_left_out": left.tolist()},
        path={},
        fitted=np.unique(np.concatenate(digests)) if digests else None,
        split=split if first.split is None else first.split,
    )  # fmt: skip


def _joined_scores(held: list[Any], spread: Any) -> HeldOut:
    """Scores of all targets; summary scores are those of the first part."""
    arrays = {
        item.name: spread([getattr(x, item.name) for x in held])
        for item in fields(HeldOut)
        if item.name not in ("influence",) and isinstance(getattr(held[0], item.name), np.ndarray)
    }
    return replace(held[0], **arrays)


def _silent(line: str) -> None:
    """Say nothing."""
