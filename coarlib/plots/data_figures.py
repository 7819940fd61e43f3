"""Figures of the rows themselves and of the linear datamodeling score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coarlib.display import number
from coarlib.plots.style import COLOURS, HELPS, INK, drawn_on, line_style
from coarlib.scoring.scoreboard import Scoreboard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["lds_distribution", "mask_balance", "outputs_under_masks", "scoreboard"]


def mask_balance(
    kept_share: NDArray[Any], expected: float | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw how often each feature is kept.

    Parameters
    ----------
    kept_share : float [N]
        Share of rows that keep each feature.
    expected : float, optional
        What the design says.
    """
    with drawn_on(axes, (5, 2.6)) as (figure, panel):
        panel.hist(kept_share, 40, color=HELPS, alpha=0.7)
        if expected is not None:
            panel.axvline(expected, color=COLOURS[5], ls="--", label=f"design: {expected:g}")
            panel.legend()
        panel.set(xlabel="share of rows that keep a feature", ylabel="number of features")
        return figure


def outputs_under_masks(
    share_positive: NDArray[Any], label: str = "share of examples", *, axes: Axes | None = None
) -> Figure:
    """Draw the distribution over rows of the share of positive outputs.

    For margins that is the accuracy of the ablated (or retrained) model.

    Parameters
    ----------
    share_positive : float [K]
    label : str
    """
    with drawn_on(axes, (5, 2.6)) as (figure, panel):
        panel.hist(share_positive, 40, color=HELPS, alpha=0.7)
        mean = float(np.mean(share_positive))
        panel.axvline(mean, color=INK, lw=0.8, label=f"mean {mean:.1%}")
        panel.set(xlabel=label, ylabel="number of rows")
        panel.legend()
        return figure


def lds_distribution(
    correlations: Mapping[str, NDArray[Any]],
    ceiling: float | None = None,
    *,
    axes: Axes | None = None,
) -> Figure:
    """Draw the distribution over targets of each method's LDS as a curve of shares.

    Parameters
    ----------
    correlations : mapping of method to float [T]
        NaN where undefined.
    ceiling : float, optional
        Noise ceiling, marked.
    """
    with drawn_on(axes, (7, 3.2)) as (figure, panel):
        for at, (method, values) in enumerate(correlations.items()):
            defined = np.sort(np.asarray(values)[np.isfinite(values)])
            if not defined.size:
                continue
            share = np.arange(1, len(defined) + 1) / len(defined)
            label = f"{method} (mean {number(float(defined.mean()))})"
            panel.step(defined, share, where="post", label=label, **line_style(at))
        if ceiling is not None and np.isfinite(ceiling):
            panel.axvline(ceiling, color=INK, lw=1, ls=":", label=f"noise ceiling {ceiling:.3f}")
        panel.axvline(0, color=INK, lw=0.5)
        panel.set(xlabel="LDS of a target", ylabel="share of targets below", ylim=(0, 1))
        panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        return figure


def scoreboard(board: Scoreboard, *, axes: Axes | None = None) -> Figure:
    """Draw each method's mean LDS with its interval, and the noise ceiling.

    Parameters
    ----------
    board : Scoreboard
    """
    with drawn_on(axes, (7, 0.8 + 0.35 * len(board.lines))) as (figure, panel):
        for place, line in enumerate(reversed(board.lines)):
            record = line.record
            mean = np.nan if record["mean"] is None else record["mean"]
            ends = record.get("interval") or {}
            if ends.get("low") is not None:
                panel.plot([ends["low"], ends["high"]], [place, place], color=HELPS, lw=2)
            panel.plot(mean, place, "o", color=HELPS)
        ceiling = board.lines[0].record.get("noise_ceiling")
        if ceiling is not None:
            panel.axvline(ceiling, color=INK, lw=1, ls=":", label=f"noise ceiling {ceiling:.3f}")
            panel.legend()
        panel.axvline(0, color=INK, lw=0.5)
        names = [line.method for line in reversed(board.lines)]
        panel.set(xlabel="LDS, 95% interval over subsets", yticks=range(len(names)))
        panel.set_yticklabels(names)
        return figure
