"""Derivatives through training against retraining with one weight changed a little."""

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from zoo.recorded_runs import NUM_SAMPLES, Run, tiny_data, tiny_model

from coarlib.errors import HistoryError
from coarlib.history import NormRegulariser, open_run
from coarlib.history.queries import Queries
from coarlib.metagradient.sweep import Sweep

SGD, ADAM = {"lr": 0.3, "momentum": 0.7}, {"lr": 0.05, "betas": (0.8, 0.95)}
RUNS = {
    "sgd": Run("SGD", {"lr": 0.5}),
    "momentum, L2": Run("SGD", {**SGD, "weight_decay": 0.1}),
    "dampening": Run("SGD", {**SGD, "dampening": 0.4, "weight_decay": 0.1}),
    "nesterov": Run("SGD", {**SGD, "nesterov": True, "weight_decay": 0.1}),
    "adam, L2": Run("Adam", {**ADAM, "weight_decay": 0.2}),
    "adamw": Run("AdamW", {**ADAM, "weight_decay": 0.2}),
    "groups": Run("AdamW", ADAM, groups=True),
    "schedule": Run("AdamW", ADAM, schedule=True),
    "clipping": Run("SGD", SGD, clip=0.5, regulariser=NormRegulariser(0.05)),
    "clipping of adamw": Run("AdamW", ADAM, clip=0.3),
    "clipping at times": Run("SGD", SGD, clip=1.1),
    "regulariser": Run("AdamW", ADAM, regulariser=NormRegulariser(0.03)),
    "sum": Run("SGD", {"lr": 0.1, "momentum": 0.5}, reduction="sum"),
}
STEP = 1e-5


def retrained(run, sample, factor):
    """Outputs after training with ``factor`` on one sample's loss, by torch.optim alone."""
    model = tiny_model()
    optimizer = run.build(model)
    (inputs, targets), points = tiny_data()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7) if run.schedule else None
    for batch in run.batches:
        optimizer.zero_grad()
        losses = F.cross_entropy(model(inputs[batch]), targets[batch], reduction="none")
        weights = torch.tensor([factor if i == sample else 1.0 for i in batch], dtype=torch.float64)
        total = (losses * weights).sum() / (1 if run.reduction == "sum" else len(batch))
        if run.regulariser is not None:
            total = total + run.regulariser(dict(model.named_parameters()))
        total.backward()
        if run.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model(points[0]).detach().numpy()


def derivatives(run, path, samples=None, **options):
    model = run.record(path, **options)
    opened = open_run(path, model, run.loss(), tiny_data()[0])
    queries = Queries(opened.model, *tiny_data()[1])
    queries.count_outputs(opened.walk.theta(opened.walk.history.first))
    sweep = Sweep(opened, queries, lambda: None, samples=samples)
    return sweep.of(torch.arange(2)).numpy()


@pytest.mark.parametrize("name", RUNS)
def test_derivatives_are_those_of_retraining(name, tmp_path):
    run = RUNS[name]
    found = derivatives(run, tmp_path / "h")
    for sample in range(NUM_SAMPLES):
        up, down = (retrained(run, sample, 1 + sign * STEP) for sign in (1, -1))
        np.testing.assert_allclose(found[..., sample], (up - down) / 2 / STEP, rtol=0, atol=1e-6)
    assert np.abs(found).max() > 1e-3


@pytest.mark.parametrize("name", ["nesterov", "clipping of adamw"])
def test_kept_or_replayed_states_give_the_same(name, tmp_path):
    plain = derivatives(RUNS[name], tmp_path / "a")
    for options in ({"every": 3}, {"keep_momentum": True}):
        again = derivatives(RUNS[name], tmp_path / next(iter(options)), **options)
        np.testing.assert_allclose(again, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["clipping", "regulariser", "sum"])
def test_batches_may_go_in_parts(name, tmp_path):
    whole = derivatives(RUNS[name], tmp_path / "a")
    for samples in (1, 3):
        parts = derivatives(RUNS[name], tmp_path / str(samples), samples=samples)
        np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-12)


def test_brute_force_differentiation_of_a_small_run(tmp_path):
    """The whole graph of training with Nesterov's momentum, kept in memory and differentiated."""
    run = Run("SGD", {"lr": 0.3, "momentum": 0.7, "nesterov": True})
    found = derivatives(run, tmp_path / "h")
    model, ((inputs, targets), points) = tiny_model(), tiny_data()
    weights = torch.ones(NUM_SAMPLES, dtype=torch.float64, requires_grad=True)
    theta = {k: v.detach().requires_grad_() for k, v in model.named_parameters()}
    buffers = {k: torch.zeros_like(v) for k, v in theta.items()}
    for batch in run.batches:
        losses = F.cross_entropy(
            functional_call(model, theta, (inputs[batch],)), targets[batch], reduction="none"
        )
        total = (losses * weights[batch]).mean()
        gradients = torch.autograd.grad(total, list(theta.values()), create_graph=True)
        for (key, value), gradient in zip(theta.items(), gradients, strict=True):
            buffers[key] = 0.7 * buffers[key] + gradient
            theta[key] = value - 0.3 * (gradient + 0.7 * buffers[key])
    outputs = functional_call(model, theta, (points[0],))
    wanted = [torch.autograd.grad(o, weights, retain_graph=True)[0] for o in outputs.flatten()]
    np.testing.assert_allclose(found.reshape(10, -1), torch.stack(wanted), rtol=0, atol=1e-12)


def test_windows_and_partial_histories_are_refused(tmp_path):
    for name, options, message in (
        ("w", {"window": (1, 3)}, "without window="),
        ("t", {"track": ["2.*"]}, "without track="),
    ):
        with pytest.raises(HistoryError, match=message):
            derivatives(RUNS["adamw"], tmp_path / name, **options)


def test_the_runs_differ():
    base = retrained(RUNS["sgd"], 0, 1.0)
    assert np.abs(base - retrained(RUNS["momentum, L2"], 0, 1.0)).max() > 1e-2
