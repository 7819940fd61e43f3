"""EK-FAC's scores by kronfluence itself where it is installed, and by a stand-in everywhere."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from coarlib.baselines.ekfac import ekfac_scores
from coarlib.baselines.examples import LabelledData, example_gradients, gradient_similarity
from coarlib.errors import TaskError
from coarlib.outputs import margin_log_sum_exp
from coarlib.retraining.trainer import cross_entropy


def data():
    torch.manual_seed(0)
    inputs, targets = torch.randn(50, 4), torch.arange(50) % 3
    return LabelledData(inputs, targets), LabelledData(inputs[:6], targets[:6])


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3, bias=False))


def test_it_is_the_damped_inverse_of_the_fisher_matrix():
    pytest.importorskip("kronfluence")
    (train, test), model = data(), linear()
    found = ekfac_scores([model], train, test, cross_entropy, margin_log_sum_exp, damping=1.0)
    fisher, chances = torch.zeros(12, 12), model(train.inputs).softmax(-1).detach()
    for x, p in zip(train.inputs, chances, strict=True):
        for label in range(3):
            own = torch.outer(p - F.one_hot(torch.tensor(label), 3), x).flatten()
            fisher += p[label] * torch.outer(own, own) / len(chances)
    steps = example_gradients(model, cross_entropy, train)
    outputs = example_gradients(model, margin_log_sum_exp, test)
    wanted = -(steps @ torch.linalg.solve(fisher + torch.eye(12), outputs.T)).numpy()
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99
    assert (found * wanted).sum() / np.square(wanted).sum() == pytest.approx(1, abs=0.05)


class Analyzer:
    """In place of kronfluence's: the task is called as it calls it; its curvature is 1."""

    def __init__(self, name, model, task, **options):
        assert options["cpu"]
        self.model, self.task = model, task

    def fit_all_factors(self, name, dataset, *, per_device_batch_size, factor_args):
        assert factor_args == "ekfac"
        losses = [
            self.task.compute_train_loss(next(iter(DataLoader(dataset, 50))), self.model, sample)
            for sample in (False, True)
        ]
        assert losses[0].shape == () and losses[0] != losses[1]

    def compute_pairwise_scores(self, name, factors, *, query_dataset, train_dataset, **options):
        assert options["score_args"] == {"damping_factor": None}
        measured = self._gradients(query_dataset, self.task.compute_measurement)
        self.found = measured @ self._gradients(train_dataset, self.task.compute_train_loss).T

    def load_pairwise_scores(self, name):
        return {"all_modules": self.found}

    def _gradients(self, dataset, value):
        rows = []
        for batch in DataLoader(dataset, 1):
            found = torch.autograd.grad(value(batch, self.model), list(self.model.parameters()))
            rows.append(torch.cat([part.flatten() for part in found]))
        return torch.stack(rows)


def prepare_model(model, task):
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise ValueError("No supported modules")
    return model


@pytest.fixture
def stand_in(monkeypatch):
    package, arguments, task = (ModuleType(f"kronfluence{end}") for end in ("", ".a", ".t"))
    package.Analyzer, package.prepare_model, task.Task = Analyzer, prepare_model, object
    arguments.FactorArguments, arguments.ScoreArguments = lambda kind: kind, dict
    for name, module in (("", package), (".arguments", arguments), (".task", task)):
        monkeypatch.setitem(sys.modules, f"kronfluence{name}", module)
    return SimpleNamespace(package=package)


def test_signs_shapes_and_the_mean_over_models_are_ours(stand_in):
    (train, test), models = data(), [linear(1), linear(2)]
    given = train, test, cross_entropy, margin_log_sum_exp
    found = ekfac_scores(models, *given)
    wanted = gradient_similarity(models, *given)
    assert found.shape == (50, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_models_that_it_cannot_take_are_named(stand_in):
    train, test = data()
    with pytest.raises(TaskError, match="cannot take this model: No supported"):
        ekfac_scores([nn.Flatten()], train, test, cross_entropy, margin_log_sum_exp)
    with pytest.raises(TaskError, match="at least one"):
        ekfac_scores([], train, test, cross_entropy, margin_log_sum_exp)


def test_without_the_package_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "kronfluence", None)
    with pytest.raises(TaskError, match=r"^EK-FAC needs .* pip install 'coarlib\[kronfluence\]'$"):
        ekfac_scores([linear()], *data(), cross_entropy, margin_log_sum_exp)
