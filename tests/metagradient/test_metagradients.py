"""Many seeds, stores of results, removals."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from zoo.recorded_runs import Run, tiny_data, tiny_model

from coarlib.errors import CoarlibError, HistoryError
from coarlib.history import TrainingLoss, open_run, record
from coarlib.history.queries import Queries
from coarlib.metagradient import (
    Metagradients,
    memory,
    metagradients,
    metagradients_of_seeds,
    trained,
)
from coarlib.metagradient.smoothness import reweighted
from coarlib.metagradient.trained import recorded_run
from coarlib.path_kernel import explain
from coarlib.retraining import Trainer

RUN = Run("AdamW", {"lr": 0.02, "weight_decay": 0.5})


def small(width=8, activation=nn.GELU, dropout=0.0, **options):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    targets = (inputs[:, :2].sum(1) > 0).long() + (inputs[:, 2] > 0.5).long()

    def model():
        layers = [nn.Linear(6, width), activation(), nn.Dropout(dropout), nn.Linear(width, 3)]
        return nn.Sequential(*layers).double()

    options = {"epochs": 4, "batch_size": 20, "options": {"lr": 0.2, "momentum": 0.9}, **options}
    return Trainer(model, inputs[:50], targets[:50], **options), (inputs[50:], targets[50:])


def loss_of(logits, target):
    return F.cross_entropy(logits, target)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cosine", "warmup": 3, "clip_norm": 0.5},
        {"optimizer": torch.optim.AdamW, "options": {"lr": 0.02}, "drop_last": True},
    ],
)
def test_a_recorded_run_is_the_trainers_own(options):
    trainer, (inputs, _) = small(**options)
    model = trainer.train(np.arange(50), 3)
    run = recorded_run(trainer, np.arange(50), 3)
    last = run.walk.theta(run.walk.history.last)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(last[name], parameter.detach(), rtol=0, atol=0)
    assert torch.isfinite(model(inputs)).all()


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_retraining_by_hand_is_the_optimizers(name, tmp_path):
    """With factors of 1 the recorded run comes out, also with clipping; with 0, another."""
    run = Run(name, {"lr": 0.05, "weight_decay": 0.1}, clip=0.3, schedule=True)
    model = run.record(tmp_path / "h")
    opened = open_run(tmp_path / "h", model, run.loss(), tiny_data()[0])
    factors = torch.ones(2, 10, dtype=torch.float64)
    factors[1, 3] = 0.0
    theta = reweighted(opened, factors)
    for name_, parameter in model.named_parameters():
        torch.testing.assert_close(theta[name_][0], parameter.detach(), rtol=0, atol=1e-12)
    assert (theta["0.weight"][1] - theta["0.weight"][0]).abs().max() > 1e-3


def test_removals_of_a_smooth_run_are_predicted():
    trainer, points = small()
    found = metagradients_of_seeds(trainer, *points, [1], removals=8, quiet=True)
    assert found.smoothness.correlation > 0.95
    assert found.effects.shape == (1, 10, 50)
    slope = np.polyfit(found.smoothness.predicted.ravel(), found.smoothness.measured.ravel(), 1)[0]
    assert 0.7 < slope < 1.3


def test_a_rough_run_is_warned_of():
    trainer, points = small(64, nn.ReLU, options={"lr": 3.0, "momentum": 0.9}, epochs=12)
    with pytest.warns(RuntimeWarning, match="not smooth enough"):
        metagradients_of_seeds(trainer, *points, [1], removals=8, quiet=True)


def test_a_store_goes_on_where_it_stopped(tmp_path, monkeypatch):
    trainer, points = small()
    options = {"output": loss_of, "removals": 0, "quiet": True}
    wanted = metagradients_of_seeds(trainer, *points, [1, 2], **options)
    calls = []
    original = recorded_run

    def counted(*args, **more):
        calls.append(args[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **more)

    monkeypatch.setattr("coarlib.metagradient.derivatives.recorded_run", counted)
    with pytest.raises(KeyboardInterrupt):
        metagradients_of_seeds(trainer, *points, [1, 2], out=tmp_path / "m", **options)
    found = metagradients_of_seeds(trainer, *points, [1, 2], out=tmp_path / "m", **options)
    assert calls == [1, 2, 1, 2]
    np.testing.assert_allclose(found.effects, wanted.effects, rtol=0, atol=1e-12)
    weights = found.seed_weights[..., None]
    np.testing.assert_allclose(found.scores, ((weights * found.effects).sum(0) / weights.sum(0)).T)
    assert found.attributions().weight.shape == (50, 10)
    other = small(width=9)[0]
    with pytest.raises(HistoryError, match=r"another explanation \(training"):
        metagradients_of_seeds(other, *points, [1, 2], out=tmp_path / "m", **options)


def test_shares_cover_all_samples_equally():
    trainer, points = small()
    found = metagradients_of_seeds(
        trainer, *points, range(4), kept=0.5, output=loss_of, removals=0, quiet=True
    )
    assert (found.trained.sum(0) == 2).all()
    assert (found.trained.sum(1) == 25).all()
    assert not (found.trained[0] & found.trained[1]).any()
    assert not found.effects.transpose(0, 2, 1)[~found.trained].any()
    for sample in (0, 17):
        own = found.trained[:, sample]
        weights = found.seed_weights[own]
        wanted = (weights * found.effects[own][:, :, sample]).sum(0) / weights.sum(0)
        np.testing.assert_allclose(found.scores[sample], wanted)
    with pytest.raises(HistoryError, match="kept must be above 0"):
        metagradients_of_seeds(trainer, *points, [1], kept=0.0)


def test_a_seed_whose_derivatives_explode_counts_little():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((3, 400))
    effects = truth + 0.5 * rng.standard_normal((8, 3, 400))
    effects[2] *= 300
    found = Metagradients(effects, np.zeros((8, 3)), np.ones((8, 400), bool), None, {})
    assert found.seed_weights[2].max() < 1e-4
    assert (np.sort(found.seed_weights, 0)[4:] == 1).all()
    for output in range(3):
        assert np.corrcoef(found.scores[:, output], truth[output])[0, 1] > 0.95
        assert np.corrcoef(effects.mean(0)[output], truth[output])[0, 1] < 0.93
    same = Metagradients(effects[:2], np.zeros((2, 3)), np.ones((2, 400), bool), None, {})
    weights = same.seed_weights[..., None]
    np.testing.assert_allclose(same.scores, ((weights * effects[:2]).sum(0) / weights.sum(0)).T)
    still = Metagradients(np.zeros((2, 3, 5)), np.zeros((2, 3)), np.ones((2, 5), bool), None, {})
    assert not still.scores.any()


def test_the_forecast_counts_activations_but_no_views_of_weights():
    trainer, (inputs, targets) = small(width=500)
    run = trained.recorded_run(trainer, np.arange(50), 0)
    queries = Queries(run.model, inputs, targets, "margin")
    queries.count_outputs(run.walk.theta(0))
    found = memory.forecast(run, queries, 10**9, 10)
    parameters, hidden = 500 * 10 + 3, 500 * 20
    assert 8 * (8 * parameters + 3 * hidden) < found.point < 8 * (8 * parameters + 12 * hidden)
    assert found.at_once == 10 and found.total == found.states + 10 * found.point


def test_what_does_not_fit_is_refused_before_it_starts(monkeypatch):
    trainer, points = small()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10_000)
    with pytest.raises(HistoryError, match=r"need about .* are free; record with fewer states"):
        metagradients_of_seeds(trainer, *points, [1], quiet=True)


def test_memory_changes_nothing(monkeypatch):
    trainer, points = small(optimizer=torch.optim.AdamW, options={"lr": 0.02})
    options = {"removals": 0, "quiet": True}
    wanted = metagradients_of_seeds(trainer, *points, [1], **options)
    monkeypatch.setattr(trained, "STATES_BYTES", 0)
    monkeypatch.setattr(memory, "SAMPLES", 7)  # of batches of 20
    again = metagradients_of_seeds(trainer, *points, [1], memory=1, **options)
    np.testing.assert_allclose(again.effects, wanted.effects, rtol=0, atol=1e-10)


def test_one_recorded_run_gives_both_explanations(tmp_path):
    model = RUN.record(tmp_path / "h", model=tiny_model())
    run = open_run(tmp_path / "h", model, RUN.loss(), tiny_data()[0])
    found = metagradients(run, *tiny_data()[1], output="all", out=tmp_path / "m", quiet=True)
    assert found.effects.shape == (1, 10, 10)
    again = metagradients(run, *tiny_data()[1], output="all", out=tmp_path / "m", quiet=True)
    np.testing.assert_array_equal(again.effects, found.effects)
    np.testing.assert_array_equal(again.smoothness.measured, found.smoothness.measured)


def test_what_has_no_exact_derivative_is_refused_in_one_sentence():
    with pytest.raises(HistoryError, match="Dropout"):
        recorded_run(small(dropout=0.5)[0], np.arange(50), 0)
    with pytest.raises(HistoryError, match="without augment"):
        recorded_run(small(augment=lambda x: x + 1)[0], np.arange(50), 0)
    with pytest.raises(HistoryError, match="RMSprop"):
        recorded_run(small(optimizer=torch.optim.RMSprop, options={})[0], np.arange(50), 0)
    with pytest.raises(HistoryError, match="no seeds"):
        metagradients_of_seeds(small()[0], *small()[1], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 3}, "seeds are a list of whole numbers, not 3"),
        ({"seeds": [-1]}, "a seed must be at least 0"),
        ({"seeds": "ab"}, "a seed must be a whole number, not 'a'"),
        ({"kept": "half"}, "kept must be above 0 and at most 1, not 'half'"),
        ({"removals": -1}, "removals must be at least 0, not -1"),
        ({"removals": 0.5}, "removals must be a whole number"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    trainer, points = small()
    with pytest.raises(CoarlibError, match=message):
        metagradients_of_seeds(trainer, *points, **{"seeds": [0], "quiet": True, **options})


def test_training_that_diverged_is_refused_and_numpys_seeds_are_seeds():
    trainer, points = small(options={"lr": 1e200})
    with pytest.raises(HistoryError, match="training diverged"):
        metagradients_of_seeds(trainer, *points, [0], removals=0, quiet=True)
    trainer, points = small(epochs=1)
    found = [
        metagradients_of_seeds(trainer, *points, seeds, removals=0, quiet=True).scores
        for seeds in (np.arange(2), [0, 1])
    ]
    np.testing.assert_array_equal(*found)


def test_what_numpy_cannot_keep_is_refused():
    trainer = Trainer(
        lambda: nn.Linear(6, 3, dtype=torch.bfloat16),
        torch.randn(20, 6, dtype=torch.bfloat16),
        torch.arange(20) % 3,
        epochs=1,
    )
    with pytest.raises(HistoryError, match="no bfloat16 to keep derivatives in"):
        metagradients_of_seeds(trainer, trainer.inputs, trainer.targets, [0], quiet=True)


def half_precision(autocast="bf16"):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator)
    targets = (inputs[:, :2].sum(1) > 0).long() + (inputs[:, 2] > 0.5).long()

    def model():
        return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))

    options = {"epochs": 3, "batch_size": 25, "options": {"lr": 0.2, "momentum": 0.9}}
    made = Trainer(model, inputs[:50], targets[:50], autocast=autocast, **options)
    return made, (inputs[50:], targets[50:])


@pytest.mark.parametrize("every", [1, 3])
def test_training_by_autocast_is_differentiated_as_it_was(every, monkeypatch):
    """Against the graph of the whole training under autocast, kept in memory."""
    monkeypatch.setattr(trained, "STATES_BYTES", 2**40 if every == 1 else 0)
    trainer, (inputs, targets) = half_precision()
    options = {"output": "logit", "removals": 0, "quiet": True}
    found = metagradients_of_seeds(trainer, inputs, targets, [3], **options)
    model = trainer.train(np.arange(50), 3)
    right = model(inputs).gather(1, targets[:, None])[:, 0]
    np.testing.assert_allclose(found.outputs[0], right.detach(), rtol=0, atol=1e-5)
    weights = torch.ones(50, requires_grad=True)
    theta = {k: v.detach() for k, v in trainer.new_model(3).named_parameters()}
    theta = {k: v.requires_grad_() for k, v in theta.items()}
    momentum = {k: torch.zeros_like(v) for k, v in theta.items()}
    for batch in map(torch.from_numpy, trainer.batches(np.arange(50), 3)):
        with trainer.forward("cpu"):
            outputs = functional_call(model, theta, (trainer.inputs[batch],))
            losses = F.cross_entropy(outputs, trainer.targets[batch], reduction="none")
            total = (losses * weights[batch]).mean()
        gradients = torch.autograd.grad(total, list(theta.values()), create_graph=True)
        for (key, value), gradient in zip(theta.items(), gradients, strict=True):
            momentum[key] = 0.9 * momentum[key] + gradient
            theta[key] = value - 0.2 * momentum[key]
    outputs = functional_call(model, theta, (inputs,)).gather(1, targets[:, None])[:, 0]
    wanted = torch.stack([torch.autograd.grad(o, weights, retain_graph=True)[0] for o in outputs])
    off = np.linalg.norm(found.effects[0] - wanted.numpy()) / wanted.norm()
    assert off < 0.02  # both round to 8 bits at every product, not in the same places


def test_a_path_kernel_of_autocast_adds_up():
    trainer, (inputs, targets) = half_precision()
    run = recorded_run(trainer, np.arange(50), 3)
    found = explain(run, inputs, targets, output="logit").verdict()
    assert found.sound and found.share < 0.003  # rounding to 8 bits, a sample and a batch alike
    plain = replace(run, loss=replace(run.loss, autocast=None))
    assert plain.identity()["loss"] != run.identity()["loss"]


def test_recording_knows_a_loss_under_autocast(tmp_path):
    trainer, _ = half_precision()
    for autocast in (torch.bfloat16, None):
        model, loss = trainer.new_model(0), TrainingLoss(F.cross_entropy, autocast=autocast)
        optimizer, data = (
            torch.optim.SGD(model.parameters(), 0.2),
            (trainer.inputs, trainer.targets),
        )
        options = {"samples": data, "loss": loss, "num_steps": 3, "max_batch": 25, "quiet": True}
        refused = pytest.raises(HistoryError, match="declared loss")
        with (
            nullcontext() if autocast else refused,
            record(model, optimizer, tmp_path / str(autocast), **options) as history,
        ):
            for batch in np.arange(75).reshape(3, 25) % 50:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    value = loss.function(model(data[0][batch]), data[1][batch])
                value.backward()
                history.batch(batch)
                optimizer.step()


def test_functional_dropout_is_refused_in_one_sentence():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(F.dropout(x, 0.1, self.training))

    trainer, (inputs, targets) = half_precision()
    trainer = replace(trainer, model=Network, autocast="none")
    with pytest.raises(HistoryError, match="the model draws random numbers"):
        metagradients_of_seeds(trainer, inputs, targets, [0], quiet=True)


def of_noisy_seeds(seeds, noise, away, samples=400, outputs=6):
    """Effects around a line through a prior, seen by seeds with noise: (found, prior, effects)."""
    rng = np.random.default_rng(0)
    prior = rng.normal(size=(samples, outputs))
    real = 3 + 2 * prior + away * rng.normal(size=prior.shape)
    trained = rng.random((seeds, samples)) < 0.5
    seen = real.T + noise * rng.normal(size=(seeds, outputs, samples))
    effects = seen * trained[:, None]
    return Metagradients(effects, np.zeros((seeds, outputs)), trained, None, {}), prior, real


def missed(found, real):
    return float(np.square(found - real).mean())


@pytest.mark.parametrize("noise", [1.0, 3.0])
@pytest.mark.parametrize("away", [0.3, 1.0, 3.0])
def test_a_prior_helps_where_seeds_are_noisy_and_never_hurts_much(noise, away):
    found, prior, real = of_noisy_seeds(16, noise, away)
    line, ones = 3 + 2 * prior, found.trained.sum(0) > 0
    best = min(missed(found.scores[ones], real[ones]), missed(line[ones], real[ones]))
    # Of normal effects and normal noise, the posterior mean is the best there is.
    variance = noise**2 / found.trained.sum(0)[ones, None]
    ideal = line[ones] + (found.scores - line)[ones] * away**2 / (away**2 + variance)
    posterior = missed(found.toward(-5 * prior)[ones], real[ones])
    assert posterior < 1.05 * best and posterior < 1.15 * missed(ideal, real[ones])


def test_a_prior_counts_nothing_without_noise_and_all_without_signal():
    found, prior, real = of_noisy_seeds(16, 0.0, 1.0)
    ones = found.trained.sum(0) > 0
    np.testing.assert_allclose(found.toward(prior)[ones], real[ones], rtol=0, atol=1e-9)
    found, prior, real = of_noisy_seeds(400, 3.0, 0.0)
    assert missed(found.toward(prior), real) < 0.2 * missed(found.scores, real)
    np.testing.assert_allclose(found.toward(np.zeros_like(prior)), found.scores, rtol=0, atol=0.5)


def test_a_prior_that_says_nothing_counts_alike_in_any_unit():
    found, prior, _ = of_noisy_seeds(16, 1.0, 1.0)
    alike = found.toward(np.zeros_like(prior))
    for value in (0.1, -1e9, 1e-30):
        np.testing.assert_array_equal(found.toward(np.full_like(prior, value)), alike)


def test_priors_that_do_not_fit_are_refused():
    found, prior, _ = of_noisy_seeds(4, 1.0, 1.0)
    with pytest.raises(HistoryError, match=r"the prior is \(6, 400\), not \(400, 6\)"):
        found.toward(prior.T)
    prior[7, 2] = np.nan
    with pytest.raises(HistoryError, match="first at sample 7, output 2"):
        found.toward(prior)
    prior[7, 2] = 0
    one = replace(found, effects=found.effects[:1], trained=found.trained[:1])
    with pytest.raises(HistoryError, match="give more seeds"):
        one.toward(prior)
