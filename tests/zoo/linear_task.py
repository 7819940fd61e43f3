"""A model whose true attributions are known (outputs linear in the mask), and broken variants."""

import time

import numpy as np

from coarlib.task import Task

NUM_TARGETS = 3


def true_weights(num_features, num_targets=NUM_TARGETS):
    """The attributions that a fit must find, float64 [N, T]."""
    return np.random.default_rng(11).normal(size=(num_features, num_targets))


class LinearTask(Task):
    """margins = masks @ weights + 1; ``seconds`` a batch makes it slow enough to be killed."""

    rows_per_batch = 4

    def __init__(self, seconds: float = 0.0, dtype: str = "float64") -> None:
        self.seconds, self.dtype = seconds, dtype

    def identity(self):
        return "linear-11"

    def rows(self, indices, masks):
        time.sleep(self.seconds)
        values = masks @ true_weights(masks.shape[1]) + 1
        return {"margins": values.astype(self.dtype)}
