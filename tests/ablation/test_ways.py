import numpy as np
import pytest
import torch
from tiny_models import TiedEmbedding, TinyResNet, images, randomised
from torch import nn

from coarlib.ablation import ABLATIONS, ComponentTask, Examples, find_components, register
from coarlib.ablation.ways import Context, Mean, Resample, ZeroActivation
from coarlib.ablation.ways.resample import derangement
from coarlib.errors import ComponentError, TaskError
from coarlib.outputs import margin, next_tokens, per_sequence

TOLERANCE = 1e-5


def model_and_mask():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return randomised(model), torch.tensor([True, False, True, False])


def run(model, inputs, components, mask, kind, **context):
    context = Context(model, components, run=lambda batch: model(*batch.inputs), **context)
    with torch.no_grad(), kind(context) as ablation:
        ablation.apply(mask)
        return model(inputs)


def examples_of(*batches):
    return lambda: [Examples((x,), torch.zeros(len(x))) for x in batches]


def test_replacements_are_what_they_say():
    model, mask = model_and_mask()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    components = find_components(model, ["linear_row"], include=["0"])
    with torch.no_grad():
        hidden = model[0](inputs)
        reference = model[0](inputs * 2 + 1).mean(0)
        expected = {
            ZeroActivation: torch.where(mask, hidden, 0),
            Mean: torch.where(mask, hidden, reference),
        }
        expected = {key: model[2](model[1](value)) for key, value in expected.items()}
    for kind, outputs in expected.items():
        found = run(model, inputs, components, mask, kind, batches=examples_of(inputs * 2 + 1))
        torch.testing.assert_close(found, outputs, atol=TOLERANCE, rtol=TOLERANCE)


def test_zero_takes_the_bias_too_and_leaves_the_model_alone():
    model, _ = model_and_mask()
    components = find_components(model, ["linear_row"], include=["2"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = run(model, torch.ones(1, 3), components, torch.tensor([False, False]), ZeroActivation)
    assert not found.any() and model[2].bias.abs().min() > 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_inputs_of_tokens_and_means_over_several_batches():
    model = randomised(TiedEmbedding())
    components = find_components(model, ["linear_input"], exclude=["head"])
    tokens = torch.arange(6).view(2, 3)

    with torch.no_grad():
        mean = model.embed(tokens).flatten(0, 1).mean(0)
        expected = model.head(torch.tanh(model.hidden(mean.expand(2, 3, 4))))
    mask = torch.zeros(4, dtype=torch.bool)
    found = run(model, tokens, components, mask, Mean, batches=examples_of(tokens[:1], tokens[1:]))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_misuse_is_refused():
    model, _ = model_and_mask()
    components = find_components(model, ["linear_row"])
    with pytest.raises(ComponentError, match=r"never reach 0.weight"):
        Mean(Context(model, components))
    with pytest.raises(ComponentError, match="at least two examples"):
        Resample(Context(model, components, num_examples=1))
    with pytest.raises(TaskError, match="a name of its own is needed"):
        register(type("Nameless", (ZeroActivation,), {"name": ""}))
    with pytest.raises(TaskError, match="a name of its own is needed"):
        register(type("Mine", (ZeroActivation,), {"name": "mean"}))


class SmallTask(ComponentTask):
    def model(self):
        return randomised(TinyResNet())

    def components(self, model):
        return find_components(model)

    def examples(self):
        return Examples((images(12),), torch.arange(12) % 5)


def test_a_task_ablates_as_asked_and_every_way_is_another():
    masks = np.ones((2, 16), bool)
    masks[1, [3, 9]] = False
    rows = {}
    for ablate in sorted(ABLATIONS, reverse=True):
        task = SmallTask(ablate=ablate)
        task.prepare(torch.device("cpu"))
        rows[ablate] = task.rows(np.arange(2), masks)["test_margins"]
        intact = rows["zero_weights"][0]
        torch.testing.assert_close(rows[ablate][0], intact, atol=TOLERANCE, rtol=TOLERANCE)
        assert (rows[ablate][1] - intact).abs().max() > 100 * TOLERANCE
    ablated = torch.stack([row[1] for row in rows.values()])
    distances = torch.cdist(ablated, ablated) + torch.eye(len(ablated))
    assert distances.min() > 100 * TOLERANCE
    with pytest.raises(TaskError, match=r"ablate must be mean, .*did you mean 'zero_weights'"):
        SmallTask(ablate="zero_weight")
    assert SmallTask(ablate="zero").ablate == "zero_activation"


def test_mean_ablation_does_not_depend_on_the_batch_size():
    masks = np.random.default_rng(0).random((3, 16)) < 0.7
    found = []
    for batch_size in (5, 12):
        task = SmallTask(batch_size, ablate="mean")
        task.prepare(torch.device("cpu"))
        found.append(task.rows(np.arange(3), masks)["test_margins"])
    torch.testing.assert_close(*found, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("count", [2, 3, 7, 501])
def test_derangements_have_no_fixed_points_and_no_favourites(count):
    drawn = np.stack([derangement(3, row, count) for row in range(600)])
    assert (np.sort(drawn, 1) == np.arange(count)).all()
    assert not (drawn == np.arange(count)).any()
    assert (derangement(3, 5, count) == drawn[5]).all()
    if count == 7:
        times = (drawn[:, :1] == np.arange(1, 7)).sum(0)
        assert ((times - 100) ** 2 / 100).sum() < 20.5  # chi-squared, 5 degrees: p = 0.001
        assert len(np.unique(np.stack([derangement(s, 0, 7) for s in range(20)]), axis=0)) > 15


class Perceptron(ComponentTask):
    """Linear, ReLU, linear; the hidden units are ablated."""

    count = 12

    def model(self):
        return randomised(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5)))

    def components(self, model):
        return find_components(model, ["linear_row"], exclude=["2"])

    def examples(self):
        inputs = torch.randn(self.count, 3, generator=torch.Generator().manual_seed(1))
        return Examples((inputs,), torch.arange(self.count) % 5)


def resampled(task, rows, masks):
    task.prepare(torch.device("cpu"))
    return task.rows(rows, masks)["test_margins"]


def test_resampled_rows_are_functions_of_seed_and_row_alone():
    masks = np.random.default_rng(0).random((5, 8)) < 0.5
    rows = np.arange(40, 45)
    expected = resampled(Perceptron(ablate="resample"), rows, masks)
    for batch_size in (1, 4, 11):
        task = Perceptron(batch_size, ablate="resample")
        found = resampled(task, rows[::-1].copy(), masks[::-1])
        torch.testing.assert_close(found.flip(0), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert (resampled(task, rows + 1, masks) - expected).abs().max() > 0.1
    task.seed = 1
    assert (resampled(task, rows, masks) - expected).abs().max() > 0.1


def test_resampling_takes_the_intact_activations_of_partners():
    task = Perceptron(ablate="resample")
    masks = np.random.default_rng(0).random((3, 8)) < 0.5
    found = resampled(task, np.arange(3), masks)
    model, examples = task.model(), task.examples()
    with torch.no_grad():
        hidden = model[0](examples.inputs[0])
        for row, mask in enumerate(torch.from_numpy(masks)):
            partners = hidden[derangement(0, row, 12)]
            logits = model[1:](torch.where(mask, hidden, partners))
            expected = task.outputs["test_margins"](logits, examples.targets)
            torch.testing.assert_close(found[row], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("count", [2, 7, 501])
def test_no_target_is_left_intact_by_resampling(count):
    task = Perceptron(ablate="resample")
    task.count = count
    masks = np.random.default_rng(0).random((20, 8)) < 0.5
    masks[0] = True
    rows = resampled(task, np.arange(20), masks)
    assert not (rows == rows[0]).all(0).any()


class SequenceFirst(Perceptron):
    """Activations lie [length, examples, channels]."""

    def model(self):
        return randomised(Transposed())

    def components(self, model):
        return find_components(model, ["linear_row"], exclude=["head"])

    def examples(self):
        inputs = torch.randn(self.count, 4, 3, generator=torch.Generator().manual_seed(1))
        return Examples((inputs,), torch.arange(self.count) % 5)


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x.transpose(0, 1))).mean(0))


@pytest.mark.parametrize("count", [3, 4])
def test_resampling_finds_the_axis_of_the_examples(count):
    task = SequenceFirst(2, ablate="resample")
    task.count = count
    masks = np.zeros((2, 8), bool)
    found = resampled(task, np.arange(2), masks)
    task.seed, task.ablate = 0, "zero_weights"
    model, examples = task.model(), task.examples()
    with torch.no_grad():
        for row in range(2):  # all hidden units: the partner's own logits
            logits = model(examples.inputs[0][derangement(0, row, count)])
            expected = task.outputs["test_margins"](logits, examples.targets)
            torch.testing.assert_close(found[row], expected, atol=TOLERANCE, rtol=TOLERANCE)


class Experts(nn.Module):
    """Sends every example to one of two linear layers."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 5), nn.Linear(3, 5)])

    def forward(self, x):
        found = x.new_zeros(len(x), 5)
        for at, expert in enumerate(self.experts):
            chosen = (x[:, 0] > 0) == bool(at)
            found[chosen] = expert(x[chosen])
        return found


def test_resampling_refuses_activations_that_are_not_example_by_example():
    class Routed(Perceptron):
        def model(self):
            return randomised(Experts())

        def components(self, model):
            return find_components(model, ["linear_row"])

    with pytest.raises(ComponentError, match=r"experts.0.weight does not lie example by example"):
        resampled(Routed(ablate="resample"), np.arange(1), np.ones((1, 10), bool))


class Sentences(ComponentTask):
    """A language model on sequences of several lengths, padded to any length."""

    padding, with_mask = 0, True
    outputs = {"test_margins": per_sequence(margin)}  # noqa: RUF012

    def model(self):
        model = randomised(TiedEmbedding())
        model.head = nn.Linear(4, 7)
        return randomised(model)

    def components(self, model):
        return find_components(model, ["linear_row"], exclude=["head"])

    def examples(self):
        lengths = torch.tensor([3, 5, 2, 5])
        tokens = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(2))
        tokens = nn.functional.pad(tokens, (0, self.padding))
        attention = (torch.arange(5 + self.padding) < lengths[:, None]).long()
        inputs = (tokens * attention, attention)
        return Examples(inputs if self.with_mask else inputs[:1], next_tokens(tokens, attention))

    def predict(self, network, inputs):
        return network(inputs[0])


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("ablate", ["mean", "resample"])
def test_padding_changes_nothing(ablate, with_mask):
    masks = np.random.default_rng(0).random((3, 4)) < 0.5
    found = []
    for padding in (0, 6):
        task = Sentences(3 - padding // 3, ablate=ablate)
        task.padding, task.with_mask = padding, with_mask
        found.append(resampled(task, np.arange(3), masks))
    torch.testing.assert_close(*found, atol=TOLERANCE, rtol=TOLERANCE)
    assert (found[0] - found[0][0]).abs().max() > 0.1
