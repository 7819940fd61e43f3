"""Results of other commands that a report can show: LDS, evaluations, explained histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ReportError, ScoringError
from coarlib.loading import load_json, load_npz
from coarlib.path_kernel import Decomposition
from coarlib.scoring.regime import Regime
from coarlib.scoring.scoreboard import Line, Scoreboard
from coarlib.store import Store

__all__ = [
    "Evaluation",
    "LDSRecord",
    "StepContributions",
    "find_lds",
    "read_evaluation",
    "read_lds",
    "read_steps",
    "scoreboard_of",
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


def scoreboard_of(records: Sequence[LDSRecord]) -> Scoreboard | None:
    """Return a scoreboard of results that were measured in one regime; None without such."""
    lines, regimes = [], []
    for record in records:
        try:
            regimes.append(Regime.from_json(record.summary["regime"]))
        except (KeyError, TypeError, ValueError, ScoringError):
            return None
        lines.append(Line(record.name, record.summary))
    if len(lines) < 2 or any(regimes[0].difference(other) for other in regimes):
        return None
    ordered = sorted(lines, key=lambda line: -(line.record["mean"] or -2))
    return Scoreboard(tuple(ordered), regimes[0])


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
        For each test point, its output's contributions (the first output); empty where nothing
        was accumulated by step.
    checks : mapping of name to float
        Largest residuals.
    by_sample : float [N, D] or None
        What each training sample gave each test point's output.
    output : str
        What was explained.
    verdict : str
        Whether the parts add up; empty where that is not known.
    sound : bool
    """

    steps: NDArray[np.int64]
    by_source: Mapping[str, NDArray[Any]]
    checks: Mapping[str, float]
    by_sample: NDArray[Any] | None = None
    output: str = "output"
    verdict: str = ""
    sound: bool = True

    @property
    def num_points(self) -> int:
        """Test points that were explained."""
        parts = [*self.by_source.values(), *([] if self.by_sample is None else [self.by_sample])]
        return len(parts[0])


def read_steps(path: str | Path) -> StepContributions:
    """Read an explained training history: contributions over steps, and of samples.

    Raises
    ------
    ReportError
        If it holds neither.
    """
    path = Path(path)
    about = _json(path / EXPLANATION)
    store = Store.open(path)
    rows = store.completed_rows()
    keys = store.spec.schema

    def read(name: str) -> NDArray[np.float64]:
        return np.asarray(store.array(name)[rows][:, 0], np.float64)

    found = {}
    for source in STEP_SOURCES:
        if f"{source}_by_step" in keys:
            found[source] = read(f"{source}_by_step")
        elif f"{source}_by_tensor_step" in keys:
            found[source] = read(f"{source}_by_tensor_step").sum(1)
    samples = read("data_by_sample") if "data_by_sample" in keys else None
    if (not found and samples is None) or len(rows) == 0:
        raise ReportError(
            f"{path} holds no contributions by step or sample; explain with step or sample among "
            "what to accumulate by"
        )
    count = next(iter(found.values())).shape[1] if found else 0
    steps = int(about.get("first", 0)) + int(about.get("window", 1)) * np.arange(count)
    residuals = ("quadrature_residual", "untracked", "update_residual")
    checks = {
        name: float(np.abs(store.array(name)[rows]).max()) for name in residuals if name in keys
    }
    said, sound = "", True
    if {"initial", "final", "part_error"} <= set(keys) and len(rows) == store.num_models:
        judged = Decomposition.open(path).verdict()
        said, sound = str(judged), judged.sound
    output = str(about.get("output", "output"))
    return StepContributions(steps.astype(np.int64), found, checks, samples, output, said, sound)


def _json(path: Path) -> Any:
    return load_json(path, ReportError)
