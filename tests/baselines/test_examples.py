"""Baseline attributions against literal gradients, and their use on a problem with an answer."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.baselines.components import random_scores
from coarlib.baselines.examples import (
    LabelledData,
    example_gradients,
    gradient_similarity,
    trak_scores,
    traker_scores,
)
from coarlib.errors import TaskError
from coarlib.outputs import margin_log_sum_exp
from coarlib.retraining import Trainer, train_many
from coarlib.retraining.trainer import cross_entropy
from coarlib.scoring import lds

TOLERANCE = 1e-5
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(70, 1, 4, 4, generator=GENERATOR)
LABELS = (INPUTS.flatten(1) @ torch.randn(16, 3, generator=GENERATOR)).argmax(1)
TRAIN, TEST = LabelledData(INPUTS[:60], LABELS[:60]), LabelledData(INPUTS[60:], LABELS[60:])


def model():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    )


def trainer():
    return Trainer(model, TRAIN.inputs, TRAIN.targets, 15, 20, options={"lr": 0.1})


@pytest.mark.parametrize("function", [cross_entropy, margin_log_sum_exp])
def test_gradients_are_those_of_each_example_alone(function, monkeypatch):
    monkeypatch.setattr("coarlib.baselines.examples._EXAMPLES_AT_ONCE", 7)
    network = trainer().train(np.arange(60), 0)
    found = example_gradients(network, function, TEST)
    for row, single, label in zip(found, TEST.inputs, TEST.targets, strict=True):
        network.zero_grad()
        function(network(single[None]), label[None]).sum().backward()
        alone = torch.cat([p.grad.flatten() for p in network.parameters()])
        torch.testing.assert_close(row, alone, atol=TOLERANCE, rtol=1e-4)


def test_scores_predict_retraining_and_random_ones_do_not():
    recipe, rng = trainer(), np.random.default_rng(0)
    masks = rng.random((80, 60)) < 0.6
    subsets = [np.flatnonzero(mask) for mask in masks]
    recipe = replace(recipe, drop_last=True)
    retrained = train_many(recipe, subsets, range(80))
    with torch.no_grad():
        outputs = torch.stack([margin_log_sum_exp(m(TEST.inputs), TEST.targets) for m in retrained])
    models = [recipe.train(np.arange(60), 1000 + seed) for seed in range(5)]
    similarity = gradient_similarity(models, TRAIN, TEST, cross_entropy, margin_log_sum_exp)
    trak = trak_scores(models, TRAIN, TEST, margin_log_sum_exp)
    assert similarity.shape == trak.shape == (60, 10)
    for scores in (similarity, trak):
        assert lds(scores, masks, outputs).interval.low > 0.1
    chance = lds(random_scores(60, 10), masks, outputs).interval
    assert chance.low < 0.05
    assert chance.high < 0.15


def test_trak_is_the_closed_form_in_parameter_space():
    network = trainer().train(np.arange(60), 0)
    features = example_gradients(network, margin_log_sum_exp, TRAIN).double()
    wanted = example_gradients(network, margin_log_sum_exp, TEST).double()
    damping = 0.5 * (features**2).sum(1).mean()
    kernel = features.T @ features + damping * torch.eye(features.shape[1], dtype=torch.double)
    with torch.no_grad():
        odds = margin_log_sum_exp(network(TRAIN.inputs), TRAIN.targets)
    expected = torch.linalg.solve(kernel, wanted.T)
    expected = (features @ expected) * (1 - odds.sigmoid())[:, None]
    found = trak_scores([network], TRAIN, TEST, margin_log_sum_exp, damping=0.5)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_random_scores_are_seeded_and_models_are_needed():
    np.testing.assert_array_equal(random_scores(5, 3, 1), random_scores(5, 3, 1))
    assert (random_scores(5, 3, 1) != random_scores(5, 3, 2)).all()
    with pytest.raises(TaskError, match="at least one trained model"):
        trak_scores([], TRAIN, TEST, margin_log_sum_exp)


def test_traker_is_asked_for_in_one_sentence_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trak", None)
    with pytest.raises(TaskError, match="pip install traker"):
        traker_scores([torch.nn.Linear(2, 2)], TWO, TWO, tmp_path)


def test_traks_own_package_agrees_with_trak_without_projection(tmp_path):
    pytest.importorskip("trak", reason="traker is not installed")
    model = torch.nn.Linear(4, 3)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    examples = LabelledData(inputs, (inputs @ torch.randn(4, 3, generator=generator)).argmax(1))
    test = LabelledData(examples.inputs[:7], examples.targets[:7])
    options = {"proj_dim": 2000, "lambda_reg": 0.01}
    theirs = traker_scores([model], examples, test, tmp_path, **options)
    ours = trak_scores([model], examples, test, margin_log_sum_exp, damping=0.1)
    assert theirs.shape == ours.shape
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.99


TWO = LabelledData(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))
