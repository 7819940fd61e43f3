"""A wide model is its models side by side: the same outputs, gradients and running statistics."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import stack_module_state
from torch.nn import functional as F

from coarlib.errors import TaskError
from coarlib.retraining import Trainer, train_many, vectorised
from coarlib.retraining import stack as stacks
from coarlib.retraining.convolutions import compile_layers, computes, convolution, max_pool
from coarlib.retraining.kernels import convolve, convolve_back
from coarlib.retraining.layers import WAYS
from coarlib.retraining.pool_kernels import pool, unpool
from coarlib.retraining.probe import probe_stack
from coarlib.retraining.vectorised import probed, train_stack
from coarlib.retraining.wide import wide_models
from estimate.cifar_resnet.model import CifarResNet

CPU, MODELS, ROUNDING = torch.device("cpu"), 3, 1e-9


def nested():
    relu = nn.ReLU()  # used twice
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), relu),
        nn.AvgPool2d(2, ceil_mode=True),
        relu,
        nn.Sequential(nn.Conv2d(4, 6, 2, stride=1, groups=2), nn.Tanh(), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5, bias=False),
        nn.GELU(),
        nn.Linear(5, 4),
    )


class Dense(nn.Module):
    """Concatenates, normalises in every way, pools and reshapes by functions; a bare parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding="same")
        self.second = nn.Conv2d(7, 6, 3, stride=2, padding=1, dilation=1)
        self.groups, self.rows = nn.GroupNorm(2, 6), nn.LayerNorm(6)
        self.images, self.columns = nn.BatchNorm2d(4), nn.BatchNorm1d(6)
        self.out, self.scale = nn.Linear(6, 5), nn.Parameter(torch.full((5,), 1.5))

    def forward(self, x):
        hidden = torch.cat([F.relu(self.images(self.first(x))), x], 1)
        hidden += 1
        hidden = F.max_pool2d(self.groups(self.second(hidden)).relu_(), 2)
        hidden = self.rows(self.columns(hidden.mean((2, 3)).view(x.size(0), -1)))
        return self.out(hidden) * self.scale + x.shape[1]


class Tokens(nn.Module):
    """Embedding, positions in a buffer, attention of torch's, an embedding tied to the output."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Embedding(7, 8), nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("places", torch.arange(48.0).view(6, 8) / 48)

    def forward(self, x):
        hidden = self.embed(x) + self.places.to(self.embed.weight)
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=True)[0]
        return self.head(hidden[:, -1] + hidden.amax(1))


def sequence():
    return nn.Sequential(
        nn.Flatten(2),
        nn.Conv1d(3, 4, 3, padding=1),
        nn.MaxPool1d(2),
        nn.LayerNorm(32),
        nn.Softmax(dim=1),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


def two_pools():
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))


class Flattening(nn.Module):
    """Flattens axes in every way."""

    def __init__(self):
        super().__init__()
        self.rows, self.out = nn.Flatten(-3, -2), nn.Linear(8, 4)

    def forward(self, x):
        rows = self.rows(x).flatten(0, 1) * torch.flatten(x, end_dim=2)
        return self.out(rows).flatten()


ARCHITECTURES = {
    "nested": nested,
    "two pools": two_pools,
    "shortcuts that pad": lambda: CifarResNet((4, 8), (1, 2)),
    "shortcuts that project": lambda: CifarResNet((4, 8), (1, 1), projection=True, pooled=2),
    "dense": Dense,
    "tokens": Tokens,
    "sequence": sequence,
    "flattening": Flattening,
}


def models_and_inputs(name):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(MODELS, 5, 3, 8, 8, generator=generator, dtype=torch.float64)
    if name == "tokens":
        inputs = torch.randint(7, (MODELS, 5, 6), generator=generator)
    models = []
    for seed in range(MODELS):
        torch.manual_seed(seed)
        models.append(ARCHITECTURES[name]().double().train())
    return models, inputs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_gradients_and_statistics_are_those_of_the_models(name, way):
    models, inputs = models_and_inputs(name)
    parameters, buffers = stack_module_state(copy.deepcopy(models))
    outputs = wide_models(models[0])[way](parameters, buffers, inputs)
    outputs.sin().sum().backward()
    for place, one in enumerate(models):
        expected = one(inputs[place])
        expected.sin().sum().backward()
        torch.testing.assert_close(outputs[place], expected, atol=ROUNDING, rtol=ROUNDING)
        for part, parameter in one.named_parameters():
            found = parameters[part].grad[place]
            torch.testing.assert_close(found, parameter.grad, atol=ROUNDING, rtol=ROUNDING)
        for part, buffer in one.named_buffers():
            torch.testing.assert_close(buffers[part][place], buffer, atol=ROUNDING, rtol=ROUNDING)


class Deciding(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Remembering(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen.mul_(0.9).add_(x.detach().mean(0))
        return super().forward(x - self.seen)


class OfTwo(nn.Linear):
    def forward(self, x, y=None):
        return super().forward(x)


@pytest.mark.parametrize("model", [lambda: Deciding(4, 4), Remembering, lambda: OfTwo(4, 4)])
def test_what_cannot_be_traced_is_left_to_torch_func(model):
    assert not wide_models(model())


class Hooked(nn.Sequential):
    """A layer of torch's with a hook, and options that no layer side by side handles."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
            nn.BatchNorm2d(4, affine=False),
            nn.InstanceNorm2d(4),
            nn.ReLU(),
            nn.Flatten(2),
            nn.Linear(64, 4),
        )
        self[3].register_forward_hook(lambda module, args, found: 2 * found)


@pytest.mark.parametrize("model", [Hooked, lambda: nn.Sequential(nn.Unflatten(1, (1, 3)))])
def test_layers_that_are_not_known_go_through_vmap(model):
    models = [model().double().train() for _ in range(MODELS)]
    inputs = torch.randn(MODELS, 5, 3, 8, 8, dtype=torch.float64)
    parameters, buffers = stack_module_state(copy.deepcopy(models))
    outputs = wide_models(models[0])["grouped"](parameters, buffers, inputs)
    for place, one in enumerate(models):
        torch.testing.assert_close(outputs[place], one(inputs[place]))


def residual_trainer(**changed):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (60,), generator=generator)
    settings = {"epochs": 3, "batch_size": 16} | changed
    return Trainer(
        lambda: CifarResNet((4, 8), (1, 1), classes=4).double(), inputs, labels, **settings
    )


@pytest.mark.parametrize("way", [*WAYS, "torch.func"])
def test_residual_networks_trained_together_are_those_trained_alone(way, monkeypatch):
    monkeypatch.setattr(stacks, "are_ready", lambda: True)
    only = stacks.ways_of
    monkeypatch.setattr(stacks, "ways_of", lambda *given: {way: only(*given)[way]})
    monkeypatch.setattr("coarlib.retraining.probe.ways_of", stacks.ways_of)
    recipe = residual_trainer(schedule="cosine", clip_norm=1.0)
    subsets = [np.random.default_rng(i).choice(60, 40, replace=False) for i in range(4)]
    assert list(probe_stack(recipe, CPU).ways) == [way]
    for seed, made in enumerate(train_stack(recipe, subsets, range(4), CPU)):
        expected = recipe.train(subsets[seed], seed).state_dict()
        for name, value in made.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=1e-8, rtol=1e-8)


def test_the_fastest_way_is_kept_and_every_step_of_the_trial_counts(monkeypatch):
    monkeypatch.setattr(stacks, "are_ready", lambda: True)
    recipe = residual_trainer(epochs=15)
    subsets = [np.random.default_rng(i).choice(60, 48, replace=False) for i in range(4)]
    tried = []
    setter = stacks.Stack.way.fset
    monkeypatch.setattr(
        stacks.Stack,
        "way",
        stacks.Stack.way.setter(lambda self, way: (tried.append(way), setter(self, way))),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train_many(recipe, subsets, range(4))
    choice = recipe.verdicts["cpu", 3]
    assert set(tried) == {*WAYS, "torch.func"}
    assert tried[-1] == choice.way
    for seed, made in enumerate(found):
        expected = recipe.train(subsets[seed], seed).state_dict()
        for name, value in made.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=1e-8, rtol=1e-8)


def test_mixed_precision_rounds_together_as_alone():
    def model():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))

    def trained(autocast):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(60, 3, 8, 8, generator=generator)
        labels = torch.randint(4, (60,), generator=generator)
        recipe = Trainer(model, inputs, labels, 2, 16, options={"lr": 0.05}, autocast=autocast)
        subsets = [np.arange(40), np.arange(20, 60)]
        made = train_stack(recipe, subsets, range(2), CPU)[1], recipe.train(subsets[1], 1)
        return [torch.cat([p.detach().flatten() for p in one.parameters()]) for one in made]

    (whole, alone), (half, half_alone) = trained("none"), trained("bf16")
    assert (whole - alone).abs().max() < 1e-5
    assert 1e-5 < (half_alone - alone).abs().max() < 0.05
    assert (half - half_alone).abs().max() < 0.02
    with pytest.raises(TaskError, match="autocast must be none, tf32, bf16, not 'fp8'"):
        residual_trainer(autocast="fp8")


def strided():
    """Odd numbers of channels, strides, dilation, groups, and a pool that leaves a rest."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=(2, 1), dilation=(2, 1), bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 9, 2, padding=1, groups=3),
        nn.Flatten(),
        nn.Linear(81, 4),
    )


def pooled_twice():
    """Convolutions that are computed with the pools behind them, which leave a rest."""
    return nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1),
        nn.MaxPool2d(3),
        nn.ReLU(),
        nn.Conv2d(9, 6, 2, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [5, 64])
@pytest.mark.parametrize(
    "architecture", [strided, pooled_twice, nested, lambda: CifarResNet((4, 8), (1, 1))]
)
def test_compiled_layers_are_those_of_the_models(architecture, batch, threads):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(MODELS, batch, 3, 8, 8, generator=generator)
    models = []
    for seed in range(MODELS):
        torch.manual_seed(seed)
        models.append(architecture().train())
    parameters, buffers = stack_module_state(copy.deepcopy(models))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        outputs = wide_models(models[0])["batch_last"](parameters, buffers, inputs)
        outputs.sin().sum().backward()
    finally:
        torch.set_num_threads(before)
    for place, one in enumerate(models):
        exact = one.double()
        expected = exact(inputs[place].double())
        expected.sin().sum().backward()
        torch.testing.assert_close(outputs[place].double(), expected, atol=2e-6, rtol=1e-5)
        for part, parameter in exact.named_parameters():
            found, size = parameters[part].grad[place].double(), float(parameter.grad.abs().max())
            torch.testing.assert_close(found, parameter.grad, atol=2e-5 * size, rtol=1e-5)


def test_what_is_compiled_ahead_is_all_that_is_compiled():
    compile_layers()
    kernels = convolve, convolve_back, pool, unpool
    before = [len(kernel._dispatcher.signatures) for kernel in kernels]
    first, second = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 4, 2, groups=2)
    images = torch.zeros(1, 1, 6, 6, 5)
    hidden = convolution(first, first.weight[None], None, images, False, (2, 2))
    found = convolution(second, second.weight[None], second.bias[None], hidden, True)
    max_pool(found[0], (1, 1), True).sum().backward()
    assert [len(kernel._dispatcher.signatures) for kernel in kernels] == before


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("window", [(2, 2), (3, 2)])
def test_a_compiled_pool_takes_what_torchs_does_among_equals_and_beside_nan(window, relu):
    values = torch.randint(-3, 2, (4, 6, 7, 9), generator=torch.Generator().manual_seed(0)).float()
    values[0, 0, 0, 0] = values[1, 1, 1, 2] = values[1, 0, 0, 2] = torch.nan
    values[2, 0, 0] = values[2, 1, 1] = torch.nan  # of several, torch takes the last
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    found = max_pool(ours, window, relu)
    wanted = F.max_pool2d(theirs.permute(0, 3, 1, 2), window).permute(0, 2, 3, 1)
    wanted = F.relu(wanted) if relu else wanted
    torch.testing.assert_close(found, wanted, atol=0, rtol=0, equal_nan=True)
    weights = torch.arange(found.numel()).view_as(found) + 1.0
    for pooled in (found, wanted):
        (pooled * weights).nan_to_num().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=0, rtol=0)


def test_layers_are_compiled_once_training_has_taken_as_long(monkeypatch):
    compiled = []
    monkeypatch.setattr(vectorised, "compile_layers", lambda: compiled.append(True))
    for module in (stacks, vectorised):
        monkeypatch.setattr(module, "are_ready", lambda: bool(compiled))
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 2
    layers = nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)
    recipe = Trainer(lambda: nn.Sequential(*copy.deepcopy(layers)), images, labels, batch_size=10)
    subsets = [np.arange(20)] * 2
    train_stack(recipe, subsets, range(2), CPU)
    assert not compiled
    assert "batch_last" not in probed(recipe, CPU).ways
    monkeypatch.setattr(vectorised, "COMPILING", 0.0)
    for _ in range(2):
        train_stack(recipe, subsets, range(2), CPU)
        assert compiled == [True]
        assert "batch_last" in probed(recipe, CPU).ways


def test_channels_that_tables_of_32_bits_do_not_reach_are_left_to_torch():
    image = torch.zeros(1).expand(2, 4096, 3, 384, 384)  # 2.4 GB a channel, of which one number is
    assert not computes(image) and computes(image[:, :64])
