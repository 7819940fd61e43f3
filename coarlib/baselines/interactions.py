"""Interactions measured: pairs of components ablated alone, together and not at all.

A surrogate's interactions are predictions. Each is measured by four ablations in the same random
context (everything else as under the design): both kept, one, the other, neither. The second
difference varies from context to context; its mean and interval are over contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from coarlib.ablation.task import ComponentTask
from coarlib.baselines.evaluation import FRESH_SEED, measure
from coarlib.display import text_table
from coarlib.errors import ScoringError, whole_number
from coarlib.masks import MaskDesign, draw
from coarlib.regression.surrogate import Interactions

__all__ = ["MeasuredInteractions", "confirm"]

CORNERS = np.array([[True, True], [True, False], [False, True], [False, False]])
SIGNS = np.array([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True, repr=False)
class MeasuredInteractions:
    """Pairs whose interactions were measured.

    Attributes
    ----------
    predicted : Interactions
    effect : float64 [K]
        y(both kept) - y(one) - y(the other) + y(neither), mean over contexts.
    low, high : float64 [K]
        Its 95% interval over contexts.
    rows : int
        Ablations that were measured.
    """

    predicted: Interactions
    effect: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    rows: int

    @property
    def confirmed(self) -> NDArray[np.bool_]:
        """Which have the predicted sign, and an interval without 0; bool [K]."""
        sure = (self.low > 0) | (self.high < 0)
        return np.asarray(sure & (np.sign(self.effect) == np.sign(self.predicted.effect)))

    def __len__(self) -> int:
        return len(self.effect)

    def __repr__(self) -> str:
        pairs = self.predicted
        head = [f"target {pairs.target}", "with", "predicted", "measured", "95% interval"]
        rows = [
            [f"{pairs.first[at]}", f"{pairs.second[at]}", f"{pairs.effect[at]:+.4f}",
             f"{self.effect[at]:+.4f}", f"[{self.low[at]:+.4f}, {self.high[at]:+.4f}]"]
            for at in range(len(self))
        ]  # fmt: skip
        count = int(self.confirmed.sum())
        return text_table(head, rows) + f"\n{count} of {len(self)} confirmed by {self.rows} rows"


def confirm(
    predicted: Interactions,
    task: ComponentTask,
    keep_prob: float,
    *,
    contexts: int = 8,
    output: str | None = None,
    seed: int = 0,
) -> MeasuredInteractions:
    """Measure predicted interactions by four ablations a pair and context.

    Parameters
    ----------
    predicted : Interactions
        Of :meth:`coarlib.regression.surrogate.Surrogate.interactions`.
    task : ComponentTask
        Prepared.
    keep_prob : float
        With which probability the other components are kept: as in the rows of the surrogate.
    contexts : int
        In how many random contexts; all pairs share them.
    output : str, optional
        Which of the task's outputs; needed if there are several.
    seed : int
        Of the contexts.

    Raises
    ------
    ScoringError
        If there are fewer than two contexts, or pairs and task do not fit.
    """
    if whole_number(contexts, "contexts") < 2:
        raise ScoringError(f"an interval needs at least 2 contexts, not {contexts}")
    if output is None and len(task.outputs) > 1:
        raise ScoringError(f"name one of the outputs: {', '.join(task.outputs)}")
    count, pairs = len(task.component_set), np.stack([predicted.first, predicted.second], 1)
    if pairs.max(initial=0) >= count or not 0 <= predicted.target < task.num_examples:
        raise ScoringError(
            f"these interactions are of other components or targets than the task's {count} and "
            f"{task.num_examples}"
        )
    design = MaskDesign(keep_prob=keep_prob, seed=FRESH_SEED + seed)
    drawn = draw(design, np.arange(contexts), count)
    masks = np.tile(drawn, (len(pairs), len(CORNERS), 1, 1))  # [K, 4, contexts, N]
    for pair, part in zip(pairs, masks, strict=True):
        part[:, :, pair] = CORNERS[:, None, :]
    rows = masks.reshape(-1, count)
    outputs = measure(task, rows, output or next(iter(task.outputs)), "measuring interactions")
    values = outputs[:, predicted.target].reshape(masks.shape[:3]).astype(np.float64)
    differences = np.einsum("c,kcx->kx", SIGNS, values)
    mean, error = differences.mean(1), differences.std(1, ddof=1) / contexts**0.5
    width = float(special.stdtrit(contexts - 1, 0.975)) * error
    return MeasuredInteractions(predicted, mean, mean - width, mean + width, len(rows))
