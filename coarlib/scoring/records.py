"""An LDS as a file: JSON for people and tables, and beside it, as .npz, the numbers per target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from coarlib.files import whole_file
from coarlib.scoring.comparison import Comparison
from coarlib.scoring.lds import LDSResult
from coarlib.statistics.intervals import Interval

__all__ = ["comparison_record", "finite", "interval_record", "lds_record", "write_lds"]


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold: NaN and infinities become None."""
    return None if value is None or not np.isfinite(value) else float(value)


def interval_record(interval: Interval | None) -> dict[str, Any] | None:
    """Return an interval as JSON values."""
    if interval is None:
        return None
    return {
        "low": finite(interval.low),
        "high": finite(interval.high),
        "level": interval.level,
        "num_rows": interval.num_rows,
        "text": str(interval),
    }


def lds_record(result: LDSResult) -> dict[str, Any]:
    """Return an LDS with its regime as JSON values."""
    ceiling = result.ceiling
    return {
        "mean": finite(result.mean),
        "interval": interval_record(result.interval),
        "kind": result.kind,
        "regime": result.regime.to_json(),
        "num_rows": result.num_subsets,
        "num_targets": result.num_targets,
        "num_scored": result.num_scored,
        "num_constant": result.num_constant,
        "num_nan_scores": result.num_nan_scores,
        "num_nan_outputs": result.num_nan_outputs,
        "num_infinite": result.num_infinite,
        "failed_rows": result.failed_rows.tolist(),
        "num_fitted_rows_left_out": len(result.fitted_rows),
        "includes_fitted_rows": result.includes_fitted,
        "share_p_below_05": finite(result.share_significant()),
        "noise_ceiling": None if ceiling is None else finite(ceiling.mean),
        "ceiling_interval": interval_record(None if ceiling is None else ceiling.interval),
        "share_of_ceiling": finite(result.share_of_ceiling),
        "share_interval": interval_record(result.share_interval),
    }


def comparison_record(found: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    return {
        "difference": finite(found.difference),
        "interval": interval_record(found.interval),
        "p": finite(found.p),
    }


def write_lds(path: Path, result: LDSResult, also: dict[str, Any]) -> None:
    """Write ``path`` (.json) and the .npz beside it; ``also`` goes into the former."""
    with whole_file(path.with_suffix(".npz")) as file:
        np.savez(
            file,
            correlation=result.correlation,
            p_value=result.p_value,
            influence=result.influence,
            rows=result.rows,
        )
    with whole_file(path, "w") as file:
        file.write(json.dumps(lds_record(result) | also, indent=2) + "\n")
