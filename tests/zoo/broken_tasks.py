"""Tasks that do what a task must not do; each has to be refused in words."""

import numpy as np
import torch

from coarlib.task import Task


class WrongShape(Task):
    def rows(self, indices, masks):
        return {"margins": np.zeros((len(indices), 4))}


class WrongKey(Task):
    def rows(self, indices, masks):
        return {"margin": np.zeros((len(indices), 3))}


class ExtraKey(Task):
    def rows(self, indices, masks):
        return {"margins": np.zeros((len(indices), 3)), "losses": np.zeros((len(indices), 3))}


class WrongDtype(Task):
    def rows(self, indices, masks):
        return {"margins": np.zeros((len(indices), 3), np.complex64)}


class WrongWidth(Task):
    num_features = 11

    def rows(self, indices, masks):
        raise RuntimeError("must not be reached")


class SometimesBad(Task):
    """Row 5 has NaN, row 6 inf, row 7 a value that overflows float16."""

    rows_per_batch = 4

    def rows(self, indices, masks):
        values = torch.ones(len(indices), 3, dtype=torch.float64)
        for row, value in {5: float("nan"), 6: float("-inf"), 7: 70000.0}.items():
            values[torch.as_tensor(indices == row), 1] = value
        return {"margins": values}


class AlwaysBad(Task):
    calls = 0

    def rows(self, indices, masks):
        type(self).calls += 1
        return {"margins": np.full((len(indices), 3), np.nan)}


class OwnMasks(Task):
    """Draws its own masks, as upstream's workers do."""

    own_masks = True

    def rows(self, indices, masks):
        mine = np.random.default_rng(int(indices[0])).random((len(indices), 10)) < 0.5
        return {"masks": mine, "margins": mine[:, :3].astype(np.float16)}
