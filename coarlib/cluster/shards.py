"""Fits cut into jobs: moments by shards of rows, solutions by shards of targets.

Moments are sums over rows, so shards computed anywhere, in any number and order, add up to those
of one pass; ``run_regression`` then finds the sum where it would have left its own and solves.
Targets do not know of each other, so blocks of them are fitted apart and put side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import ClusterError
from coarlib.regression import Attributions, HeldOut, Moments
from coarlib.regression.moments.checkpoint import load_moments, save_moments
from coarlib.regression.rows import RowSource

__all__ = ["add_shards", "join_targets", "sum_shard", "target_shard", "write_shard"]


def sum_shard(
    source: RowSource,
    positions: NDArray[np.int64],
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> Moments:
    """Sum rows of a source in float64, so that how rows are cut into shards does not show.

    Parameters
    ----------
    source : RowSource
    positions : int64 [K]
        Ascending positions in the source.
    """
    options: dict[str, Any] = {"device": device, "dtype": torch.float64, "quiet": quiet}
    return Moments.from_rows(source, positions, **options)


def write_shard(
    source: RowSource,
    positions: NDArray[np.int64],
    path: Path,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> bool:
    """Sum a shard into ``path``; returns False if it is there already, for the same rows."""
    rows = source.row_ids[positions]
    found = load_moments(path)
    if found is not None and np.array_equal(found[1], rows) and found[2] == source.identity(rows):
        return False
    save_moments(path, sum_shard(source, positions, device, quiet), rows, source.identity(rows))
    return True


def add_shards(source: RowSource, positions: NDArray[np.int64], paths: Sequence[Path]) -> Moments:
    """Add up shards that together hold exactly the rows at ``positions``, each once.

    They are added in the order of their rows, so the order of ``paths`` does not matter.

    Raises
    ------
    ClusterError
        If a shard is missing or damaged, its rows have changed since, or rows are missing or
        doubled.
    """
    found = []
    for path in paths:
        loaded = load_moments(path)
        if loaded is None:
            raise ClusterError(f"the moments {path} are missing or damaged; sum that shard again")
        moments, rows, identity = loaded
        if not np.isin(rows, source.row_ids).all() or source.identity(rows) != identity:
            raise ClusterError(f"the rows behind {path} have changed; delete it and sum it again")
        found.append((int(rows[0]), moments, rows))
    found.sort(key=lambda item: item[0])
    rows, wanted = np.sort(np.concatenate([item[2] for item in found])), source.row_ids[positions]
    if not np.array_equal(rows, wanted):
        doubled = len(rows) - len(np.unique(rows))
        lacking = int((~np.isin(wanted, rows)).sum())
        raise ClusterError(
            f"the {len(paths)} shards do not hold the rows of the fit once each ({lacking} are "
            f"missing, {doubled} doubled); use the same data arguments for all of them"
        )
    total = found[0][1]
    for _, moments, _ in found[1:]:
        total = total + moments
    return total


def target_shard(num_targets: int, index: int, count: int) -> tuple[int, int]:
    """Return the targets [start, stop) of shard ``index`` of ``count``; ClusterError if empty."""
    start, stop = index * num_targets // count, (index + 1) * num_targets // count
    if not 0 <= index < count or start == stop:
        raise ClusterError(f"there is no shard {index} of {count} for {num_targets} targets")
    return start, stop


def join_targets(parts: Sequence[Attributions]) -> Attributions:
    """Put attributions of consecutive blocks of targets side by side.

    Held-out scores are per target and carry over; the interval of their mean does not (NaN).

    Raises
    ------
    ClusterError
        If the parts were not fitted to the same rows.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.num_features != first.num_features or not np.array_equal(
            part.mean_mask, first.mean_mask, equal_nan=True
        ):
            raise ClusterError("these blocks of targets were not fitted to the same rows")
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=-1)
        for name in ("weight", "bias", "lam", "gap")
    }
    errors = _joined_errors(parts)
    summary = {
        **first.summary,
        "num_targets": sum(part.num_targets for part in parts),
        "target_shards": len(parts),
        "largest_gap": float(np.nanmax(joined["gap"], initial=0.0)),
    }
    held = [part.held_out for part in parts if part.held_out is not None]
    return replace(
        first,
        **joined,
        **errors,
        held_out=_joined_scores(held) if len(held) == len(parts) else None,
        summary=summary,
        path={},
        fitted=_every_mask(parts),
    )


def _every_mask(parts: Sequence[Attributions]) -> NDArray[np.uint64] | None:
    """Digests of the masks that any of the parts was fitted on."""
    known = [part.fitted for part in parts if part.fitted is not None]
    return np.unique(np.concatenate(known)) if known else None


def _joined_errors(parts: Sequence[Attributions]) -> dict[str, Any]:
    """Standard errors side by side, in the factored form where the feature factor is shared."""
    features = [part.error_feature for part in parts if part.error_feature is not None]
    targets = [part.error_target for part in parts if part.error_target is not None]
    if len(features) < len(parts):
        return {"error_feature": None, "error_target": None}
    shared = all(item.ndim == 1 and np.array_equal(item, features[0]) for item in features)
    if shared and len(targets) == len(parts):
        return {"error_feature": features[0], "error_target": np.concatenate(targets)}
    full = [error for part in parts if (error := part.standard_error) is not None]
    drawn = [part.draws for part in parts if part.draws is not None]
    together = np.concatenate(drawn, axis=2) if len(drawn) == len(parts) else None
    return {
        "error_feature": np.concatenate(full, axis=1),
        "error_target": None,
        "draws": together,
    }


def _joined_scores(parts: Sequence[HeldOut]) -> HeldOut:
    arrays: dict[str, Any] = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(HeldOut)
        if item.name in ("pearson", "spearman", "slope", "r_squared", "low", "high")
    }
    scored = arrays["pearson"][~np.isnan(arrays["pearson"])]
    mean = float(scored.mean()) if len(scored) else float("nan")
    nan = float("nan")
    return HeldOut(parts[0].num_rows, **arrays, mean=mean, mean_low=nan, mean_high=nan)
