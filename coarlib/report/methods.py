"""Every method that was judged: the fit, and baselines on the same held-out rows, with costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.baselines.components import leave_one_out, random_scores
from coarlib.errors import CoarlibError, ScoringError
from coarlib.masks.digests import mask_digests
from coarlib.regression import Attributions
from coarlib.regression.result_files import fitted_masks
from coarlib.report.learning import Unseen
from coarlib.report.provenance import duration, read_run
from coarlib.scoring import correlate, correlation_interval
from coarlib.scoring.score_files import load_scores
from coarlib.store import Store

__all__ = ["Baseline", "Method", "find_baselines", "judge", "read_baseline"]

SINGLES = "leave_one_out"
RANDOM = "random scores"


@dataclass(frozen=True)
class Baseline:
    """Other scores [N, T], what they cost, in words ("" where nobody said), and what they saw.

    ``fitted`` holds digests of the masks that they were fitted on, uint64, where that is known.
    """

    scores: NDArray[Any]
    cost: str = ""
    fitted: NDArray[np.uint64] | None = None


@dataclass(frozen=True)
class Method:
    """How well one method predicts held-out rows.

    Attributes
    ----------
    name : str
    pearson : float64 [t]
        Of each target; NaN where undefined.
    mean, low, high : float
        Of the correlations, with the 95% interval over rows.
    cost : str
    """

    name: str
    pearson: NDArray[np.float64]
    mean: float
    low: float
    high: float
    cost: str

    @property
    def interval(self) -> str:
        """The interval as people write it."""
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            return "[too few for an interval]"
        return f"[{self.low:.3f}, {self.high:.3f}]".replace("-", "−")


def read_baseline(path: str | Path) -> Baseline:
    """Read scores [N, T] of a file, or the effects that a leave-one-out store holds."""
    if not (Path(path) / "_completed.npy").is_file():
        return Baseline(load_scores(path), fitted=fitted_masks(path))
    store = Store.open(path)
    rows = store.completed_rows()
    masks, values = (store.array(key)[rows] for key in (store.masks_name(), store.outputs_name()))
    effects = leave_one_out(np.asarray(masks), np.asarray(values))
    return Baseline(effects, cost_of_rows(len(rows), store))


def find_baselines(out: Path, shape: tuple[int, int]) -> dict[str, Baseline]:
    """Find a leave-one-out store that ``coar demo`` and others leave beside a result."""
    for place in (out / SINGLES, out.parent / SINGLES):
        if not (place / "_completed.npy").is_file():
            continue
        try:
            found = read_baseline(place)
        except CoarlibError:  # unfinished, or of something else
            continue
        if found.scores.shape == shape:
            return {"leave-one-out": found}
    return {}


def cost_of_rows(rows: int, store: Store | None) -> str:
    """Say what rows took: forward passes over the examples, and time, where it was recorded."""
    record = None if store is None else read_run(store)
    if record is None or not record.rows:
        return f"{rows:,} rows"
    return f"{rows:,} rows, {duration(record.seconds * rows / record.rows)}"


def cost_of_fit(found: Attributions, store: Store | None) -> str:
    """Say what attributions took, with the time of their rows."""
    cost = found.cost
    if cost.prior:
        return f"{cost} ({cost_of_rows(cost.rows, store)})"
    return cost_of_rows(cost.rows, store)


def judge(
    name: str,
    attributions: Attributions | None,
    baselines: Mapping[str, Baseline],
    curve: Unseen | None,
    store: Store | None,
) -> list[Method]:
    """Judge the fit, called ``name``, and baselines on the same held-out rows; the fit first.

    Raises
    ------
    ScoringError
        If a baseline was fitted on some of these rows, or is called as the fit or random scores.
    """
    if taken := sorted({name, RANDOM} & set(baselines)):
        raise ScoringError(f"a report has its own {taken[0]}; call that baseline something else")
    found: list[Method] = []
    held = None if attributions is None else attributions.held_out
    if attributions is not None and held is not None:
        cost = cost_of_fit(attributions, store)
        found.append(Method(name, held.pearson, held.mean, held.mean_low, held.mean_high, cost))
    if curve is None or attributions is None:
        return found
    random = Baseline(random_scores(attributions.num_features, attributions.num_targets), "nothing")
    for other, baseline in {**baselines, RANDOM: random}.items():
        if baseline.fitted is not None:
            seen = int(np.isin(mask_digests(curve.masks), baseline.fitted).sum())
            if seen:
                raise ScoringError(
                    f"{other} was fitted on {seen} of the {len(curve.masks)} rows that all are "
                    "judged on here; leave it out, or compare it by score_lds"
                )
        scores = np.asarray(baseline.scores[:, curve.targets], np.float64)
        predicted = curve.masks.astype(np.float64) @ scores
        interval = correlation_interval(predicted, curve.true, "pearson")
        r = correlate(predicted, curve.true, "pearson").r
        known = r[np.isfinite(r)]
        mean = float(known.mean()) if known.size else float("nan")
        found.append(Method(other, r, mean, interval.low, interval.high, baseline.cost))
    return found
