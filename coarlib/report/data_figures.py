"""Figures of the rows themselves and of the linear datamodeling score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.report.style import COLOURS, HELPS, INK, line_style, styled
from coarlib.scoring.scoreboard import Scoreboard

__all__ = ["lds_distribution", "mask_balance", "outputs_under_masks", "scoreboard"]


def mask_balance(kept_share: NDArray[Any], expected: float | None = None) -> Any:
    """Draw how often each feature is kept.

    Parameters
    ----------
    kept_share : float [N]
        Share of rows that keep each feature.
    expected : float, optional
        What the design says.

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(5, 2.6))
        axes.hist(kept_share, 40, color=HELPS, alpha=0.7)
        if expected is not None:
            axes.axvline(expected, color=COLOURS[5], ls="--", label=f"design: {expected:g}")
            axes.legend()
        axes.set(xlabel="share of rows that keep a feature", ylabel="number of features")
        return figure


def outputs_under_masks(share_positive: NDArray[Any], label: str = "share of examples") -> Any:
    """Draw the distribution over rows of the share of positive outputs.

    For margins that is the accuracy of the ablated (or retrained) model.

    Parameters
    ----------
    share_positive : float [K]
    label : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(5, 2.6))
        axes.hist(share_positive, 40, color=HELPS, alpha=0.7)
        mean = float(np.mean(share_positive))
        axes.axvline(mean, color=INK, lw=0.8, label=f"mean {mean:.1%}")
        axes.set(xlabel=label, ylabel="number of rows")
        axes.legend()
        return figure


def lds_distribution(correlations: Mapping[str, NDArray[Any]], ceiling: float | None = None) -> Any:
    """Draw the distribution over targets of each method's LDS as a curve of shares.

    Parameters
    ----------
    correlations : mapping of method to float [T]
        NaN where undefined.
    ceiling : float, optional
        Noise ceiling, marked.

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(7, 3.2))
        for at, (method, values) in enumerate(correlations.items()):
            defined = np.sort(np.asarray(values)[np.isfinite(values)])
            if not defined.size:
                continue
            share = np.arange(1, len(defined) + 1) / len(defined)
            label = f"{method} (mean {defined.mean():.3f})"
            axes.step(defined, share, where="post", label=label, **line_style(at))
        if ceiling is not None and np.isfinite(ceiling):
            axes.axvline(ceiling, color=INK, lw=1, ls=":", label=f"noise ceiling {ceiling:.3f}")
        axes.axvline(0, color=INK, lw=0.5)
        axes.set(xlabel="LDS of a target", ylabel="share of targets below", ylim=(0, 1))
        axes.legend(loc="upper left")
        return figure


def scoreboard(board: Scoreboard) -> Any:
    """Draw each method's mean LDS with its interval, and the noise ceiling.

    Parameters
    ----------
    board : Scoreboard

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(7, 0.8 + 0.35 * len(board.lines)))
        for place, line in enumerate(reversed(board.lines)):
            record = line.record
            mean = np.nan if record["mean"] is None else record["mean"]
            ends = record.get("interval") or {}
            if ends.get("low") is not None:
                axes.plot([ends["low"], ends["high"]], [place, place], color=HELPS, lw=2)
            axes.plot(mean, place, "o", color=HELPS)
        ceiling = board.lines[0].record.get("noise_ceiling")
        if ceiling is not None:
            axes.axvline(ceiling, color=INK, lw=1, ls=":", label=f"noise ceiling {ceiling:.3f}")
            axes.legend()
        axes.axvline(0, color=INK, lw=0.5)
        names = [line.method for line in reversed(board.lines)]
        axes.set(xlabel="LDS, 95% interval over subsets", yticks=range(len(names)))
        axes.set_yticklabels(names)
        return figure
