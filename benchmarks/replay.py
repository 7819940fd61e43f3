"""The autopilot over stored evidence: what it would have bought, without computing any of it."""

from types import SimpleNamespace

import numpy as np
from evidence import FITTED, KEY

from coarlib.ablation import ComponentSet
from coarlib.autopilot.holdings import Alone, Amounts, Holdings
from coarlib.gradient_passes import open_passes, read_passes, read_trials
from coarlib.gradient_passes.filling import TRIALS_DIR
from coarlib.regression import ArrayRows, StoreRows


class Exhausted(Exception):
    """More is wanted than is stored."""


class Replay(Holdings):
    """Holdings whose purchases are stored rows and blocks, in an order that a seed draws.

    Only every ``step``-th target is there.
    """

    no_passes = None

    def __init__(self, store, lone, step, seed=0):
        self.store, self.step, self.have = store, step, Amounts(0, 0)
        source = StoreRows(store, targets=slice(0, None, step))
        masks, outputs = source.read(np.arange(len(source.row_ids)))
        self.masks, self.outputs, self.lone = masks, outputs.astype(float), lone[:, ::step]
        parts = ComponentSet.from_json(source.components)
        self.task = SimpleNamespace(component_set=parts, num_examples=outputs.shape[1])
        self.seeded(seed)

    def seeded(self, seed):
        """Begin anew with another order."""
        self.have = Amounts(0, 0)
        self.order = np.random.default_rng(seed).permutation(FITTED)
        for name, kept in (
            ("blocks", open_passes(self.store)),
            ("trial_blocks", open_passes(self.store, TRIALS_DIR)),
        ):
            order = np.random.default_rng(100 + seed).permutation(len(kept.completed_rows()))
            setattr(self, name, order)
        return self

    @property
    def fresh(self):
        """Masks and outputs that nothing is fitted on."""
        return self.masks[FITTED:], self.outputs[FITTED:]

    def unused_trials(self):
        """Trials that were not bought; None if there are none."""
        left = np.sort(self.trial_blocks[self.have.trials // 8 :])
        chosen = slice(0, None, self.step)
        return read_trials(self.store, chosen, blocks=left) if len(left) else None

    @property
    def amounts(self):
        return self.have

    def buy(self, wanted):
        blocks = self.blocks, self.trial_blocks
        if wanted.rows > len(self.order) or any(
            count > 8 * len(there)
            for count, there in zip((wanted.passes, wanted.trials), blocks, strict=True)
        ):
            raise Exhausted
        self.have = wanted
        return True

    def positions(self, rows):
        return np.sort(self.order[:rows])

    def rows(self, targets=slice(None)):
        return ArrayRows(self.masks, self.outputs[:, targets])

    def passes(self, count, targets=slice(None)):
        return self._read(read_passes, count, targets, self.blocks)

    def trials(self, count, targets=slice(None)):
        return self._read(read_trials, count, targets, self.trial_blocks)

    def _read(self, read, count, targets, blocks):
        if not count:
            return None
        chosen = slice(0, None, self.step * (targets.step or 1))
        return read(self.store, chosen, blocks=np.sort(blocks[: count // 8]))

    def alone(self, targets=slice(None)):
        known = np.zeros(self.components, bool)
        known[self.tried() if self.have.alone < self.components else slice(None)] = True
        return Alone(np.where(known[:, None], self.lone[:, targets], 0), known)


__all__ = ["KEY", "Exhausted", "Replay"]
