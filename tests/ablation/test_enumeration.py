"""Attributions against exact truth: small sets of components of a real model, all enumerated."""

import itertools

import numpy as np
import pytest
import torch
from modular_addition import load_adder, sums

from coarlib.ablation import ComponentTask, Examples, find_components
from coarlib.regression.fit import fit
from coarlib.regression.moments import Moments
from coarlib.regression.rows import ArrayRows

TOLERANCE = 1e-3


class AdderTask(ComponentTask):
    def __init__(self, path, every=45):
        super().__init__(batch_size=5000, fuse=False)
        self.path, self.every = path, every

    def model(self):
        return load_adder(self.path)

    def components(self, model):
        return find_components(model, ["attention_head", "mlp_neuron"])

    def examples(self):
        tokens, answers = sums(self.every)
        return Examples((tokens,), answers)


@pytest.fixture
def task(data_dir):
    task = AdderTask(data_dir / "modadd113_no_wd.pt")
    task.prepare(torch.device("cpu"))
    return task


def enumerate_ablations(task, chosen):
    """Every subset of the chosen components ablated: masks [2^k, N] and outputs [2^k, T]."""
    subsets = np.array(list(itertools.product([True, False], repeat=len(chosen))))
    masks = np.ones((len(subsets), task.num_features), bool)
    masks[:, chosen] = subsets
    return subsets, task.rows(np.arange(len(masks)), masks)["test_margins"].numpy()


def fitted(subsets, outputs):
    return fit(Moments.from_rows(ArrayRows(subsets, outputs)), "least_squares")


def test_the_model_adds(task):
    assert task.component_set.sizes == [4, 512]
    rows = task.rows(np.arange(1), np.ones((1, 516), bool))["test_margins"]
    assert (rows > 0).all()


def test_all_subsets_of_the_heads(task):
    subsets, outputs = enumerate_ablations(task, [0, 1, 2, 3])
    assert len(subsets) == 16
    weight = fitted(subsets, outputs).weight
    # Over all subsets the least-squares weight is the mean effect of keeping a head, exactly.
    for head in range(4):
        kept = subsets[:, head]
        effect = outputs[kept].mean(0) - outputs[~kept].mean(0)
        np.testing.assert_allclose(weight[head], effect, atol=TOLERANCE * np.abs(outputs).max())
    assert np.abs(weight).max() > 1


def test_pairs_of_neurons(task):
    """Predictions for all pairs of the six strongest neurons, against their measured effect."""
    few = AdderTask(task.path, every=151)  # enough to find neurons that matter
    few.prepare(torch.device("cpu"))
    singles = few.rows(np.arange(512), ~np.eye(516, dtype=bool)[4:])["test_margins"]
    intact = few.rows(np.arange(1), np.ones((1, 516), bool))["test_margins"]
    strongest = 4 + (intact - singles).abs().mean(1).argsort(descending=True)[:6]
    subsets, outputs = enumerate_ablations(task, strongest.tolist())
    found = fitted(subsets, outputs)
    pairs = (~subsets).sum(1) == 2
    predicted, truth = found.predict(subsets[pairs]), outputs[pairs]
    varies = truth.std(0) > 0
    centred = [x[:, varies] - x[:, varies].mean(0) for x in (predicted, truth)]
    lengths = [np.linalg.norm(x, axis=0) for x in centred]
    correlation = (centred[0] * centred[1]).sum(0) / (lengths[0] * lengths[1])
    assert pairs.sum() == 15 and varies.mean() > 0.95 and correlation.mean() > 0.8
