"""Several updates in one pass: the same numbers as one by one."""

import numpy as np
import pytest
import torch
from torch import nn
from zoo.recorded_runs import Run, tiny_data, tiny_model

from coarlib.history import open_run
from coarlib.history.queries import Queries
from coarlib.path_kernel import predict
from coarlib.path_kernel.segments import Segments

EXACT = 1e-12
"""Largest difference between batched and single passes in float64."""


@pytest.fixture(scope="module")
def kinked(tmp_path_factory):
    """A run with ReLU and large updates, so that most need refinement."""
    path = tmp_path_factory.mktemp("run") / "h"
    run = Run("AdamW", {"lr": 0.2, "weight_decay": 0.5})
    model = run.record(path, tiny_model(activation=nn.ReLU))
    return open_run(path, model, run.loss(), tiny_data()[0])


@pytest.mark.parametrize("output", ["all", "log_probability"])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-9])
def test_memory_changes_no_prediction(kinked, output, tolerance):
    asked = {"output": output, "tolerance": tolerance, "decay_apart": True, "quiet": True}
    together = predict(kinked, *tiny_data()[1], **asked)
    alone = predict(kinked, *tiny_data()[1], memory=1, **asked)
    for name, values in together.arrays.items():
        np.testing.assert_allclose(alone[name], values, atol=EXACT, err_msg=name)
    assert together["largest_step_residual"].max() <= tolerance
    assert np.abs(together["weight_decay"]).max() > 1e-3


@pytest.mark.parametrize("at_once", [1, 100])
def test_single_pairs_and_whole_grids_agree(kinked, at_once):
    points = tiny_data()[1]
    queries = Queries(kinked.model, *points)
    walk = kinked.walk
    path = torch.stack([walk.flat(number) for number in range(7)])
    segments = Segments.of_path(queries, walk.history.settings.table, path, at_once)
    assert len(segments) == 6
    grid = segments.slopes(0.3, torch.arange(2))
    which, column = torch.tensor([4, 0, 2]), torch.tensor([1, 0, 0])  # half of a 3 x 2 grid
    few = torch.tensor([5]), torch.tensor([1])
    for chosen in ((which, column), few):
        found = segments.slopes_of(*chosen, 0.3)
        torch.testing.assert_close(found, grid[chosen], rtol=0, atol=EXACT)
        place = torch.full((len(chosen[0]),), 0.3, dtype=torch.float64)
        torch.testing.assert_close(
            segments.slopes_at(*chosen, place), grid[chosen], rtol=0, atol=EXACT
        )
    ends = segments.values_at(which, column, torch.ones(3, dtype=torch.float64))
    for k, step in enumerate(which.tolist()):
        expected = queries.values(walk.theta(step + 1), column[k : k + 1])[0]
        torch.testing.assert_close(ends[k], expected, rtol=0, atol=EXACT)
