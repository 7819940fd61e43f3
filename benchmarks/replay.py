"""The autopilot over stored evidence: what it would have bought, without computing any of it."""

from types import SimpleNamespace

import numpy as np
from evidence import HELD, KEY

from coarlib.ablation import ComponentSet
from coarlib.autopilot.holdings import Alone, Amounts, Holdings
from coarlib.gradient_passes import open_passes, read_passes
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
        self.order = np.random.default_rng(seed).permutation(len(self.masks) - HELD)
        blocks = len(open_passes(self.store).completed_rows())
        self.blocks = np.random.default_rng(100 + seed).permutation(blocks)
        return self

    @property
    def fresh(self):
        """Masks and outputs that nothing is fitted on."""
        return self.masks[-HELD:], self.outputs[-HELD:]

    @property
    def amounts(self):
        return self.have

    def buy(self, wanted):
        if wanted.rows > len(self.order) or wanted.passes > 8 * len(self.blocks):
            raise Exhausted
        self.have = wanted
        return True

    def judging(self, rows):
        return np.sort(self.order[super().judging(rows)])

    def fitted(self, rows):
        return np.setdiff1d(self.order[:rows], self.judging(rows))

    def rows(self, targets=slice(None)):
        return ArrayRows(self.masks, self.outputs[:, targets])

    def passes(self, count, targets=slice(None)):
        if not count:
            return None
        width = self.step * self.outputs.shape[1]
        chosen = slice(0, width, self.step * (targets.step or 1))
        return read_passes(self.store, chosen, blocks=np.sort(self.blocks[: count // 8]))

    def alone(self, targets=slice(None)):
        known = np.zeros(self.components, bool)
        known[self.tried() if self.have.alone < self.components else slice(None)] = True
        return Alone(np.where(known[:, None], self.lone[:, targets], 0), known)


__all__ = ["KEY", "Exhausted", "Replay"]
