"""What a Trainer takes, what it makes of it, and what it refuses, in one sentence."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from coarlib.errors import TaskError
from coarlib.retraining import Estimator, RetrainTask, Trainer, train_many
from coarlib.retraining.vectorised import train_stack

EXAMPLES, CPU = 40, torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(EXAMPLES, 5, generator=GENERATOR)
LABELS = torch.randint(0, 3, (EXAMPLES,), generator=GENERATOR)
HALF = np.arange(0, EXAMPLES, 2)


def model():
    return nn.Linear(5, 3)


def trainer(**changed):
    settings = {"epochs": 2, "batch_size": 8, "options": {"lr": 0.1}} | changed
    inputs, targets = settings.pop("inputs", INPUTS), settings.pop("targets", LABELS)
    return Trainer(settings.pop("model", model), inputs, targets, **settings)


def weights(network):
    return torch.cat([part.detach().flatten() for part in network.parameters()])


def alone_and_together(recipe):
    subsets = HALF, np.arange(19)
    alone = [recipe.train(subset, seed) for seed, subset in enumerate(subsets)]
    groups = {recipe.num_steps(len(subset)) for subset in subsets}
    assert len(groups) == 1
    together = train_stack(recipe, [np.asarray(s) for s in subsets], range(len(subsets)), CPU)
    return alone, together


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "shape"),
    [
        (nn.MSELoss(reduction="none"), 1, torch.randn(EXAMPLES, 1), r"\[8, 1\]"),
        (lambda o, t: (o[:, 0] - t).square(), 1, torch.randn(EXAMPLES, 1), r"\[8, 8\]"),
        (nn.functional.cross_entropy, 3, LABELS, r"\[\]"),
        (lambda o, t: nn.functional.cross_entropy(o, t).item(), 3, LABELS, "float"),
    ],
)
def test_a_loss_that_is_not_one_number_an_example_is_refused(loss, outputs, targets, shape):
    recipe = trainer(model=lambda: nn.Linear(5, outputs), targets=targets, loss=loss)
    for call in (
        lambda: recipe.train(HALF, 0),
        lambda: train_many(recipe, [HALF, HALF], [0, 1]),
        lambda: RetrainTask(recipe, weights).prepare(CPU),
    ):
        with pytest.raises(TaskError, match=f"the loss returned {shape} for 8 examples, not one"):
            call()


def test_masks_are_subsets_and_what_is_neither_is_refused():
    recipe, mask = trainer(), np.isin(np.arange(EXAMPLES), HALF)
    expected = weights(recipe.train(HALF, 1))
    for same in (mask, mask.tolist(), torch.from_numpy(mask), HALF.tolist(), HALF[::-1]):
        assert torch.equal(weights(recipe.train(same, 1)), expected)
    assert torch.equal(weights(train_many(recipe, [mask], [1])[0]), expected)
    for wrong, words in (
        (HALF.astype(float), r"whole numbers .* not float64"),
        (mask.astype(np.int64), "zeros and ones only"),
        (mask[:-1], r"mask of shape \[39\]"),
        ([40], "names example 40 of 40"),
        ([-1], "names example -1 of 40"),
        ([], "no example"),
        (np.zeros(EXAMPLES, bool), "no example|no batch"),
        ([[1, 2]], "whole numbers"),
    ):
        with pytest.raises(TaskError, match=words):
            recipe.train(wrong, 1)
        with pytest.raises(TaskError, match=words):
            train_many(recipe, [wrong, HALF], [1, 2])


class Pairs(Dataset):
    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, i):
        return INPUTS[i] + self.noise * torch.randn(5), int(LABELS[i])


@pytest.mark.parametrize("data", ["arrays", "doubles", "lists", "dataset", "tensor dataset"])
def test_arrays_lists_and_datasets_train_what_tensors_do(data):
    inputs, targets = {
        "arrays": (INPUTS.numpy(), LABELS.numpy()),
        "doubles": (INPUTS.double().numpy(), LABELS.numpy().astype(np.uint8)),
        "lists": (INPUTS.tolist(), LABELS.tolist()),
        "dataset": (Pairs(), None),
        "tensor dataset": (TensorDataset(INPUTS, LABELS), None),
    }[data]
    made = trainer(inputs=inputs, targets=targets)
    assert torch.equal(weights(made.train(HALF, 1)), weights(trainer().train(HALF, 1)))


def test_what_is_no_data_no_model_and_no_setting_is_named():
    for changed, words in (
        ({"inputs": Pairs(1.0), "targets": None}, "another example 0 each time"),
        ({"inputs": Pairs()}, "leave the argument targets out"),
        ({"inputs": [{}], "targets": [0]}, "inputs must be a tensor"),
        ({"targets": None}, "targets must be a tensor"),
        ({"inputs": INPUTS[:3]}, "3 inputs but 40 targets"),
        ({"model": model()}, "a function that makes a fresh model .* not Linear"),
        ({"optimizer": torch.optim.SGD(model().parameters())}, "optimizer must be a class"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"clip_norm": -1.0}, "clip_norm must be above 0"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": lambda o, s: None, "warmup": 3}, "warm-up into your own schedule"),
    ):
        with pytest.raises(TaskError, match=words):
            trainer(**changed)
    for changed, words in (
        ({"warmup": 6}, "warm-up of 6 steps is longer"),
        ({"schedule": lambda o, s: None}, "returned NoneType, not a scheduler"),
        ({"schedule": lambda o, s: torch.optim.lr_scheduler.ReduceLROnPlateau(o)}, "step only"),
    ):
        with pytest.raises(TaskError, match=words):
            trainer(**changed).train(HALF, 0)


def test_warm_up_schedule_and_clipping_are_torchs():
    recipe = trainer(warmup=2, schedule="cosine", clip_norm=0.05, options={"lr": 0.5})
    found = recipe.train(HALF, 3)
    expected = recipe.new_model(3)
    steps = recipe.num_steps(len(HALF))
    for step, batch in enumerate(recipe.batches(HALF, 3)):
        expected.zero_grad()
        outputs = expected(INPUTS[batch])
        nn.functional.cross_entropy(outputs, LABELS[batch]).backward()
        norm = nn.utils.clip_grad_norm_(expected.parameters(), 0.05)
        assert norm > 0.05
        done = (step - 2) / (steps - 2)
        factor = (step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * done)) / 2
        with torch.no_grad():
            for part in expected.parameters():
                part -= 0.5 * factor * part.grad
    torch.testing.assert_close(weights(found), weights(expected))


SCHEDULERS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    "changed",
    [
        {"warmup": 3, "schedule": "linear"},
        {"clip_norm": 0.05},
        {"augment": lambda x: x + 0.3 * torch.randn_like(x) * np.random.random()},  # noqa: NPY002
        {"schedule": lambda o, s: SCHEDULERS.OneCycleLR(o, 0.3, total_steps=s)},
        {"schedule": lambda o, s: SCHEDULERS.StepLR(o, 2, 0.5), "clip_norm": 0.1, "epochs": 4},
    ],
)
def test_what_is_set_is_the_same_alone_and_together(changed):
    recipe = trainer(**changed)
    plain = weights(trainer().train(HALF, 0))
    for one, other in zip(*alone_and_together(recipe), strict=True):
        torch.testing.assert_close(weights(one), weights(other))
    assert (weights(recipe.train(HALF, 0)) - plain).abs().max() > 1e-3


def test_any_optimizer_that_steps_on_a_closure_trains():
    recipe = trainer(optimizer=torch.optim.LBFGS, options={"lr": 0.5}, batch_size=20, epochs=1)
    assert torch.equal(weights(recipe.train(HALF, 1)), weights(recipe.train(HALF, 1)))
    before = nn.functional.cross_entropy(recipe.new_model(1)(INPUTS[HALF]), LABELS[HALF])
    after = nn.functional.cross_entropy(recipe.train(HALF, 1)(INPUTS[HALF]), LABELS[HALF])
    assert after < before - 0.1


def normed():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def test_one_subset_with_a_last_batch_of_one_does_not_take_the_others_along():
    recipe = replace(trainer(), model=normed)
    masks = np.zeros((3, EXAMPLES), bool)
    for mask, size in zip(masks, (20, 17, 22), strict=True):
        mask[:size] = True
    with pytest.raises(TaskError, match="a subset of 17 examples is a single one"):
        recipe.train(masks[1], 0)
    made = RetrainTask(recipe, lambda network, device: network(INPUTS)[:, 0])
    with pytest.warns(UserWarning, match="row 1: the last batch of a subset of 17 examples"):
        rows = made.rows(np.arange(3), masks)["test_margins"]
    assert np.isnan(rows[1]).all()
    assert np.isfinite(rows[[0, 2]]).all()
    without = replace(recipe, drop_last=True).train(masks[1], 0)
    assert torch.isfinite(weights(without)).all()


def test_an_estimator_of_scikit_learn_is_trained_with_the_seed():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    forest = RandomForestClassifier(n_estimators=5)
    estimator = make_pipeline(StandardScaler(), forest)

    def margins(fitted, device):
        return fitted.predict_proba(INPUTS.numpy())[:, 0]

    made = RetrainTask(Estimator(estimator, INPUTS.numpy(), LABELS.numpy()), margins)
    made.prepare(CPU)
    masks = np.random.default_rng(0).random((4, EXAMPLES)) < 0.7
    rows = made.rows(np.arange(4), masks)["test_margins"]
    again = made.rows(np.array([2]), masks[2:3])["test_margins"]
    np.testing.assert_array_equal(rows[2:3], again)
    assert rows.std(axis=0).max() > 0
    assert made.layout().outputs["test_margins"][1] == (EXAMPLES,)
    assert made.labels.tolist() == LABELS.tolist()
    other = RetrainTask(Estimator(RandomForestClassifier(3), INPUTS.numpy(), LABELS), margins)
    other.prepare(CPU)
    assert other.identity() != made.identity()
    for train, words in (
        (forest, "Estimator.* trains one of scikit-learn"),
        (lambda a: a, r"\(subset, seed\) or \(subset, seed, device\)"),
        (model(), "not Linear"),
    ):
        with pytest.raises(TaskError, match=words):
            RetrainTask(train, margins, EXAMPLES)
    with pytest.raises(TaskError, match="checkpoints keep torch models"):
        RetrainTask(Estimator(forest, INPUTS, LABELS), margins, checkpoints="kept")


class Tied(nn.Module):
    """As a language model that ties its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.out = nn.Linear(5, 3)
        self.head.weight = nn.Parameter(self.embedding.weight.data.T.contiguous())
        self.again = self.head

    def forward(self, x):
        return self.out(self.again(self.embedding(x)))


def test_tied_weights_are_kept_in_checkpoints(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from coarlib.retraining import ReevaluateTask

    def outputs(network, device):
        return network(INPUTS)[:, 1]

    made = RetrainTask(trainer(model=Tied), outputs, checkpoints=tmp_path)
    made.prepare(CPU)
    masks = np.random.default_rng(0).random((3, EXAMPLES)) < 0.5
    rows = made.rows(np.arange(3), masks)["test_margins"]
    again = ReevaluateTask(Tied, outputs, EXAMPLES, tmp_path).rows(np.arange(3), masks)
    np.testing.assert_allclose(again["test_margins"], rows, atol=1e-6)


class Extra(nn.Linear):
    def __init__(self):
        super().__init__(5, 3)

    def get_extra_state(self):
        return {"any": 1}

    def set_extra_state(self, state):
        return None


def test_what_a_checkpoint_cannot_hold_is_known_before_training(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    made = RetrainTask(trainer(model=Extra), weights, checkpoints=tmp_path)
    with pytest.raises(TaskError, match="_extra_state of the model's state is no tensor"):
        made.prepare(CPU)
