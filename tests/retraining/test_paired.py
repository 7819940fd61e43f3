"""Differences between rows are of the examples, not of the seeds."""

import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coarlib.interop import dattri as ours
from coarlib.outputs import cross_entropy
from coarlib.retraining import RetrainTask, Trainer
from coarlib.retraining.randomness import batch_order

EXAMPLES, TARGETS, EPOCHS, BATCH = 40, 12, 4, 8
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(EXAMPLES + TARGETS, 5, generator=GENERATOR)
NOISE = torch.randn(EXAMPLES + TARGETS, 3, generator=GENERATOR)
LABELS = (INPUTS @ torch.randn(5, 3, generator=GENERATOR) + NOISE).argmax(1)
EVERY = np.vstack([~np.eye(EXAMPLES, dtype=bool), np.ones(EXAMPLES, bool)])  # the last is whole


def model():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def losses(network, device):
    return cross_entropy(network(INPUTS[EXAMPLES:]), LABELS[EXAMPLES:])


def effects(seed, **options):
    """What leaving out each example does to each loss, [N, T]."""
    trainer = Trainer(
        model, INPUTS[:EXAMPLES], LABELS[:EXAMPLES], EPOCHS, BATCH, options={"lr": 0.1}
    )
    task = RetrainTask(trainer, losses, seed=seed, **options)
    rows = task.rows(np.arange(EXAMPLES + 1), EVERY)["test_margins"]
    return rows[:-1] - rows[-1]


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_pairs_share_their_seeds_by_default_and_their_noise_cancels():
    default, paired = effects(1), effects(1, paired=True)
    np.testing.assert_allclose(default, paired, atol=1e-5)
    mine, own = ([effects(s, paired=p) for s in (1, 2, 3)] for p in (None, False))
    variances = [np.var(found, axis=0).mean() for found in (mine, own)]
    assert variances[0] < 0.2 * variances[1]
    several = effects(1, runs=3)
    between = [correlation(a, b) for a, b in ((mine[1], mine[2]), (own[1], own[2]))]
    assert between[0] > 0.5 > between[1]
    assert correlation(several, mine[1]) > between[1]


def test_the_remaining_examples_keep_their_order():
    whole, without = np.arange(EXAMPLES), np.delete(np.arange(EXAMPLES), 17)
    for epoch in range(3):
        order = batch_order(whole, 5, epoch, EXAMPLES)
        kept = batch_order(without, 5, epoch, EXAMPLES)
        assert kept.tolist() == [i for i in order.tolist() if i != 17]
    assert not np.array_equal(order, batch_order(whole, 6, 2, EXAMPLES))


def test_effects_agree_with_dattris_truth_which_uses_one_seed(tmp_path):
    pytest.importorskip("dattri", reason="dattri is not installed")
    stub = types.ModuleType("pretty_midi")
    stub.__spec__ = ModuleSpec("pretty_midi", None)  # others ask whether it is there
    sys.modules.setdefault("pretty_midi", stub)
    theirs = pytest.importorskip("dattri.model_util.retrain")

    def train(loader, seed=None):
        torch.manual_seed(seed)
        network = model()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(EPOCHS):
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs), labels).backward()
                optimizer.step()
        return network

    def target(network, loader):
        with torch.no_grad():
            return losses(network, None)

    data = TensorDataset(INPUTS[:EXAMPLES], LABELS[:EXAMPLES])
    test = DataLoader(TensorDataset(INPUTS[EXAMPLES:], LABELS[EXAMPLES:]))
    loader = DataLoader(data, batch_size=BATCH)
    theirs.retrain_loo(train, loader, str(tmp_path), seed=3)
    truth, _ = ours.calculate_loo_ground_truth(target, tmp_path, test, allow_pickle=True)
    truth = truth.numpy() - truth.numpy().mean(axis=0)
    paired, unpaired = (effects(1, paired=p) for p in (None, False))
    assert correlation(paired - paired.mean(0), truth) > 0.6
    assert correlation(unpaired - unpaired.mean(0), truth) < 0.45
