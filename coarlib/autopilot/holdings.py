"""What has been bought: rows and gradient passes of one store, some rows kept aside to judge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation.task import ComponentTask
from coarlib.errors import ComponentError
from coarlib.filling.worker import FillOptions, fill
from coarlib.gradient_passes import fill_passes, open_passes
from coarlib.gradient_passes.filling import plan_of
from coarlib.gradient_passes.sums import PASS_COST
from coarlib.store import Store
from coarlib.store.grow import at_least

__all__ = ["Amounts", "Holdings"]

JUDGING = 4  # every so-many-th row judges, so that whatever is bought, some of it judges


@dataclass(frozen=True)
class Amounts:
    """How many rows and gradient passes there are, or are to be."""

    rows: int
    passes: int

    @property
    def cost(self) -> int:
        """Forward passes over the examples."""
        return self.rows + PASS_COST * self.passes


class Holdings:
    """A store that grows by purchases; whatever is there already is not bought again.

    Parameters
    ----------
    store : Store
        With a random design; its rows are bought in order.
    task : ComponentTask
        Prepared.
    device : torch.device
    share : bool
        Share the work out by claims with others that do the same.
    """

    def __init__(
        self, store: Store, task: ComponentTask, device: torch.device, share: bool = False
    ) -> None:
        self.store, self.task, self._device = store, task, device
        self._how = FillOptions(quiet=True, claim=share)
        self.no_passes: str | None = None

    @property
    def amounts(self) -> Amounts:
        """What is there now: rows without a gap before them, and passes."""
        done = self.store.completed()
        rows = len(done) if done.all() else int(np.argmin(done))
        kept = open_passes(self.store)
        passes = 0 if kept is None else len(kept.completed_rows()) * plan_of(kept).passes
        return Amounts(rows, passes)

    def buy(self, wanted: Amounts) -> bool:
        """Compute what is missing; whether all of it was (False: a signal stopped it)."""
        self.store = at_least(self.store, wanted.rows)
        rows = np.arange(wanted.rows, dtype=np.int64)
        if fill(self.store, self.task, rows, self._device, self._how).stopped:
            return False
        if not wanted.passes or self.no_passes:
            return True
        try:
            report = fill_passes(
                self.store, self.task, wanted.passes, self._device, options=self._how
            )
        except ComponentError as error:  # rows alone go as well
            self.no_passes = str(error)
            return True
        return not report.stopped

    def judging(self, rows: int) -> NDArray[np.int64]:
        """Return which of the first rows judge."""
        return np.arange(0, rows, JUDGING, dtype=np.int64)

    def fitted(self, rows: int) -> NDArray[np.int64]:
        """Return which of the first rows are fitted."""
        return np.setdiff1d(np.arange(rows, dtype=np.int64), self.judging(rows))
