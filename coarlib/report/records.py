"""Results of other commands that a report can show: LDS, evaluations, explained histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ReportError
from coarlib.loading import load_json, load_npz
from coarlib.store import Store

__all__ = [
    "Evaluation",
    "LDSRecord",
    "StepContributions",
    "find_lds",
    "read_evaluation",
    "read_lds",
    "read_steps",
]

LDS_KEYS = {"mean", "kind", "num_rows", "num_targets", "share_p_below_05"}
EXPLANATION = "explanation.json"
STEP_SOURCES = ("data", "weight_decay", "regulariser", "prior_momentum")


@dataclass(frozen=True)
class LDSRecord:
    """A result of score_lds.

    Attributes
    ----------
    name : str
    summary : dict
        The JSON file.
    correlation : float64 [T] or None
        From the .npz beside it.
    """

    name: str
    summary: dict[str, Any]
    correlation: NDArray[np.float64] | None


def read_lds(path: str | Path, name: str | None = None) -> LDSRecord:
    """Read what score_lds wrote; ReportError if it is something else."""
    path = Path(path)
    summary = _json(path)
    if not isinstance(summary, dict) or not LDS_KEYS.issubset(summary):
        raise ReportError(f"{path} is not a result of score_lds")
    arrays = path.with_suffix(".npz")
    correlation = None
    if arrays.is_file():
        try:
            correlation = np.asarray(load_npz(arrays, ReportError)["correlation"], np.float64)
        except (ValueError, KeyError) as error:
            raise ReportError(f"{arrays} is damaged: {error}") from error
    return LDSRecord(name or path.stem, summary, correlation)


def find_lds(directory: Path) -> list[LDSRecord]:
    """Return every result of score_lds that lies in a directory."""
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            found.append(read_lds(path))
        except ReportError:  # another JSON file
            continue
    return found


@dataclass(frozen=True)
class Evaluation:
    """Mean correlation of methods at several ablated fractions.

    Attributes
    ----------
    fractions : sequence of float
    means : mapping of method to one number a fraction
    intervals : mapping of method to one (low, high) a fraction
    trained_at : float or None
    passes : mapping of method to str
        What each cost in forward passes over the examples, a backward pass counting as two.
    """

    fractions: Sequence[float]
    means: Mapping[str, Sequence[float]]
    intervals: Mapping[str, Sequence[tuple[float, float]]]
    trained_at: float | None
    passes: Mapping[str, str] = field(default_factory=dict)


def read_evaluation(path: str | Path) -> Evaluation:
    """Read the ``evaluation.json`` of ``coar evaluate``; ReportError if it is something else."""
    content = _json(Path(path))
    means: dict[str, list[float]] = {}
    intervals: dict[str, list[tuple[float, float]]] = {}
    fractions: dict[str, list[float]] = {}
    passes: dict[str, str] = {}
    try:
        for line in content["lines"]:
            name = str(line["method"])
            fractions.setdefault(name, []).append(float(line["fraction"]))
            means.setdefault(name, []).append(_number(line["pearson"]))
            pair = _number(line["pearson_low"]), _number(line["pearson_high"])
            intervals.setdefault(name, []).append(pair)
            if "forward_passes" in line:
                cost = float(line["forward_passes"])
                passes[name] = f"{'≥ ' if line.get('at_least') else ''}{cost:,.10g}"
    except (KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{path} is not a result of evaluate: {error!r}") from error
    different = {tuple(values) for values in fractions.values()}
    if len(different) != 1:
        raise ReportError(f"{path} must hold every method at the same fractions")
    trained = content.get("trained_at")
    known = None if trained is None else float(trained)
    return Evaluation(list(different.pop()), means, intervals, known, passes)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


@dataclass(frozen=True)
class StepContributions:
    """What ranges of training steps contributed to explained outputs.

    Attributes
    ----------
    steps : int64 [S]
        First update of each entry.
    by_source : mapping of source to float [N, S]
        For each test point, its output's contributions (the first output).
    checks : mapping of name to float
        Largest residuals.
    """

    steps: NDArray[np.int64]
    by_source: Mapping[str, NDArray[Any]]
    checks: Mapping[str, float]


def read_steps(path: str | Path) -> StepContributions:
    """Read contributions over steps from the directory of an explained training history.

    Raises
    ------
    ReportError
        If it holds none, or was not accumulated by step.
    """
    path = Path(path)
    about = _json(path / EXPLANATION)
    store = Store.open(path)
    rows = store.completed_rows()
    keys = {source: f"{source}_by_step" for source in STEP_SOURCES}
    found = {
        source: np.asarray(store.array(key)[rows][:, 0], np.float64)
        for source, key in keys.items()
        if key in store.spec.schema
    }
    if not found or len(rows) == 0:
        raise ReportError(
            f"{path} holds no contributions by step; explain with step among what to accumulate by"
        )
    count = next(iter(found.values())).shape[1]
    steps = int(about.get("first", 0)) + int(about.get("window", 1)) * np.arange(count)
    residuals = ("quadrature_residual", "untracked", "update_residual")
    checks = {
        name: float(np.abs(store.array(name)[rows]).max())
        for name in residuals
        if name in store.spec.schema
    }
    return StepContributions(steps.astype(np.int64), found, checks)


def _json(path: Path) -> Any:
    return load_json(path, ReportError)
