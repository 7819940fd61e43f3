"""What has been bought: gradient passes, trials, rows and leave-one-out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation.task import ComponentTask
from coarlib.errors import ComponentError
from coarlib.filling.worker import FillOptions, fill
from coarlib.gradient_passes import (
    PassSums,
    Trials,
    fill_passes,
    open_passes,
    read_passes,
    read_trials,
)
from coarlib.gradient_passes.filling import PASSES_DIR, TRIALS_DIR, plan_for, plan_of
from coarlib.gradient_passes.sums import PASS_COST
from coarlib.regression import RowSource, StoreRows
from coarlib.store import Store
from coarlib.store.create import initialize
from coarlib.store.grow import at_least
from coarlib.store.inside import stores_inside
from coarlib.store.layout import SPEC_FILE
from coarlib.store.spec import spec_of_layout
from coarlib.store.verify import refuse_torn

__all__ = ["Alone", "Amounts", "Holdings"]

TRIED = 16  # every so-many-th component is left out alone to learn what that tells


@dataclass(frozen=True)
class Amounts:
    """How much there is, or is to be: rows, passes, components left out alone, trials."""

    rows: int
    passes: int
    alone: int = 0
    trials: int = 0

    @property
    def cost(self) -> int:
        """Forward passes over the examples; leaving out needs the intact model once."""
        alone = self.alone + 1 if self.alone else 0
        return self.rows + PASS_COST * self.passes + alone + self.trials

    def at_least(self, other: Amounts) -> Amounts:
        """Return the larger of each."""
        return Amounts(*map(max, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Alone:
    """What leaving single components out does.

    Attributes
    ----------
    effect : float64 [N, T]
        Output of the intact model less that without the component; 0 where not measured.
    known : bool [N]
    """

    effect: NDArray[np.float64]
    known: NDArray[np.bool_]

    @property
    def cost(self) -> int:
        """Forward passes over the examples."""
        return Amounts(0, 0, int(self.known.sum())).cost


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
    origin : dict, optional
        What rebuilds the task, as of :class:`~coarlib.filling.worker.FillOptions`.

    Raises
    ------
    TornRowError
        If what is there does not match its checksums.
    """

    def __init__(
        self,
        store: Store,
        task: ComponentTask,
        device: torch.device,
        share: bool = False,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.store, self.task, self._device = store, task, device
        self._how = FillOptions(
            quiet=True, claim=share, prepared=True, ways_round=(), origin=origin or {}
        )
        self.no_passes: str | None = None
        for kept in (store, *stores_inside(store).values(), self._alone_store()):
            if kept is not None:
                refuse_torn(kept, kept.completed_rows())

    @property
    def components(self) -> int:
        """N."""
        return len(self.task.component_set)

    @property
    def amounts(self) -> Amounts:
        """What is there now: rows without a gap before them, all else whole."""
        done = self.store.completed()
        rows = len(done) if done.all() else int(np.argmin(done))
        alone = self._alone_store()
        left_out = 0 if alone is None else int(self._left_out(alone).sum())
        return Amounts(rows, self._there(PASSES_DIR), left_out, self._there(TRIALS_DIR))

    def _there(self, name: str) -> int:
        """How many passes, or trials, there are."""
        kept = open_passes(self.store, name)
        return 0 if kept is None else len(kept.completed_rows()) * plan_of(kept).passes

    def buy(self, wanted: Amounts) -> bool:
        """Compute what is missing; whether all of it was (False: a signal stopped it)."""
        self.store = at_least(self.store, wanted.rows)
        rows = np.arange(wanted.rows, dtype=np.int64)
        if fill(self.store, self.task, rows, self._device, self._how).stopped:
            return False
        if wanted.alone and not self._leave_out(wanted.alone):
            return False
        for count, trials in ((wanted.passes, False), (wanted.trials, True)):
            if not count or self.no_passes:
                continue
            plan = plan_for(self.store, self.task, trials=trials)
            try:
                report = fill_passes(
                    self.store, self.task, count, self._device, plan=plan, options=self._how
                )
            except ComponentError as error:  # rows alone go as well
                if self._there(PASSES_DIR):
                    raise
                self.no_passes = str(error)
                continue
            if report.stopped:
                return False
        return True

    def positions(self, rows: int) -> NDArray[np.int64]:
        """Return where in :meth:`rows` the first rows are."""
        return np.arange(rows, dtype=np.int64)

    def rows(self, targets: slice = slice(None)) -> RowSource:
        """Return the rows of some targets."""
        return StoreRows(self.store, targets=targets)

    def passes(self, count: int, targets: slice = slice(None)) -> PassSums | None:
        """Return the sums of the first passes, if any are wanted."""
        return read_passes(self.store, targets, count) if count else None

    def trials(self, count: int, targets: slice = slice(None)) -> Trials | None:
        """Return the first trials, if any are wanted."""
        return read_trials(self.store, targets, count) if count else None

    def alone(self, targets: slice = slice(None)) -> Alone | None:
        """Return what was learnt by leaving single components out, if that was bought."""
        kept = self._alone_store()
        if kept is None or not (known := self._left_out(kept)).any():
            return None
        outputs = kept.array(next(iter(self.task.outputs)))[:, targets].astype(np.float64)
        effect = np.where(known[:, None], outputs[-1] - outputs[:-1], 0.0)
        return Alone(effect, known)

    def tried(self) -> NDArray[np.int64]:
        """Return the components that are left out alone first."""
        return np.arange(0, self.components, TRIED, dtype=np.int64)

    def _alone_store(self) -> Store | None:
        path = self.store.path.parent / "leave_one_out"
        return Store.open(path) if (path / SPEC_FILE).is_file() else None

    def _left_out(self, kept: Store) -> NDArray[np.bool_]:
        done = kept.completed()
        return np.asarray(done[:-1] & done[-1])

    def _leave_out(self, count: int) -> bool:
        count_all = self.components
        path, design = self.store.path.parent / "leave_one_out", {"kind": "leave_one_out"}
        initialize(path, spec_of_layout(self.task.layout(), count_all + 1, design))
        chosen = self.tried() if count < count_all else np.arange(count_all, dtype=np.int64)
        rows = np.append(chosen, count_all)
        return not fill(path, self.task, rows, self._device, self._how).stopped
