from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny_models import SharedConv, TiedEmbedding, TinyResNet, images, randomised
from torch import nn

from coarlib.ablation import (
    ComponentTask,
    Examples,
    WeightAblation,
    find_components,
)
from coarlib.ablation.activations import Hooks, sites_of
from coarlib.ablation.ways import Context, ZeroActivation
from coarlib.baselines.evaluation import baseline
from coarlib.baselines.gradients import METHODS, gradient_scores
from coarlib.errors import ComponentError
from coarlib.outputs import IGNORED, logit, margin, per_sequence

TARGETS = torch.arange(6) % 5
TOLERANCE = 1e-4


def scores(method, model, components, inputs=None, output=margin, targets=TARGETS, **options):
    inputs = images(6) if inputs is None else inputs
    batch = Examples((inputs,), targets)
    return gradient_scores(
        method,
        model,
        components,
        batches=[part for _, part in batch.batches(4)],
        predict=lambda network, x: network(*x),
        output=output,
        **options,
    )


def weights_times_gradients(model, components, inputs, targets, output):
    """Σ w ∂o/∂w by differentiating each example by the weights themselves."""
    found = []
    for at in range(len(targets)):
        model.zero_grad()
        output(model(inputs[at : at + 1]), targets[at : at + 1]).sum().backward()
        column = []
        for group, parameter in zip(components, components.parameters(model), strict=True):
            product = (parameter * parameter.grad).detach()
            for unit in range(group.units):
                kept = torch.arange(group.units) == unit
                column.append((product * group.kept_entries(kept, parameter.shape)).sum().item())
        found.append(column)
    return np.array(found).T


@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        (TinyResNet, ["conv_filter", "linear_row"]),
        (TinyResNet, ["linear_input", "norm_channel"]),
        (SharedConv, ["conv_filter", "linear_row"]),
    ],
)
def test_gradient_times_parameter_is_what_it_says(architecture, kinds):
    model = randomised(architecture())
    components = find_components(model, kinds)
    expected = weights_times_gradients(model, components, images(6), TARGETS, margin)
    found = scores("gradient_parameter", model, components)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())
    assert np.abs(found).max() > 0.1


def test_gradient_times_parameter_of_a_token_model():
    model = randomised(TiedEmbedding())
    components = find_components(model, ["linear_row", "linear_input"], exclude=["head"])
    tokens = torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([tokens[:, 1:], torch.full((5, 1), IGNORED)], 1)
    output = per_sequence(margin)
    expected = weights_times_gradients(model, components, tokens, targets, output)
    found = scores("gradient_parameter", model, components, tokens, output, targets)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_the_path_of_tokens_runs_in_the_embeddings():
    model = randomised(nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5)))
    tokens = torch.randint(7, (6, 3), generator=torch.Generator().manual_seed(0))
    components = find_components(model, ["linear_input"])
    found = scores("conductance", model, components, tokens, logit)
    with torch.no_grad():
        embedded = model[0](tokens).flatten(1)
    np.testing.assert_allclose(found, (model[2].weight[TARGETS] * embedded).T.detach(), atol=1e-5)
    assert not model[0]._forward_hooks
    bare = nn.Sequential(nn.Flatten(), TokenSum())
    components = find_components(bare, ["linear_input"])
    with pytest.raises(ComponentError, match=r"or an nn.Embedding of tokens"):
        scores("conductance", bare, components, tokens, logit)


class TokenSum(nn.Module):
    """Takes tokens without embedding them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, tokens):
        return self.linear(tokens.float())


def linear_model():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    return randomised(model), torch.randn(6, 4, generator=torch.Generator().manual_seed(3))


def test_on_a_linear_model_the_first_order_is_exact():
    model, inputs = linear_model()
    components = find_components(model, ["linear_row"], include=["0"])
    found = scores("gradient_parameter", model, components, inputs, logit)
    with torch.no_grad(), WeightAblation(model, components) as ablation:
        intact = logit(model(inputs), TARGETS)
        for index in range(3):
            ablation.apply(torch.arange(3) != index)
            effect = intact - logit(model(inputs), TARGETS)
            np.testing.assert_allclose(found[index], effect, atol=TOLERANCE)


def test_conductance_adds_up_to_the_change_of_the_output():
    model, inputs = randomised(TinyResNet()), images(6)
    components = find_components(model, include=["conv1"])
    found = scores("conductance", model, components, inputs, logit)
    with torch.no_grad():
        change = logit(model(inputs), TARGETS) - logit(model(inputs * 0), TARGETS)
    # conv1 cuts the network, so its channels carry all of the change; 10 steps leave some error.
    error = np.abs(found.sum(0) - change.numpy()).max()
    assert error < 0.05 * change.abs().max().item()


def test_internal_influence_on_a_linear_model_is_the_weight_after_it():
    model, inputs = linear_model()
    components = find_components(model, ["linear_row"], include=["0"])
    found = scores("internal_influence", model, components, inputs, logit)
    np.testing.assert_allclose(found, model[1].weight[TARGETS].T.detach(), atol=TOLERANCE)


def test_work_in_place_does_not_disturb_the_recording():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    randomised(plain)
    in_place = nn.Sequential(plain[0], nn.ReLU(inplace=True), *plain[2:])
    components = find_components(plain)
    for method in METHODS:
        found = scores(method, in_place, components, patch=halved)
        expected = scores(method, plain, components, patch=halved)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_frozen_parameters_and_leftover_hooks():
    model = randomised(TinyResNet())
    expected = scores("gradient_parameter", model, find_components(model))
    model.requires_grad_(False)
    found = scores("gradient_parameter", model, find_components(model))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_model_fails():
    model = randomised(TinyResNet())
    sites = sites_of(model, find_components(model))
    with pytest.raises(RuntimeError), Hooks(model, sites, lambda _, a: a):
        model(torch.zeros(1, 7, 6, 6))
    assert not any(module._forward_hooks for module in model.modules())


class AttentionNet(nn.Module):
    """Attends among the colour channels of an image."""

    def __init__(self, batch_first=True, kdim=None):
        super().__init__()
        self.embed, self.head = nn.Linear(36, 8), nn.Linear(8, 5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=kdim)
        self.batch_first, self.kdim = batch_first, kdim

    def forward(self, images):
        tokens = self.embed(images.flatten(2))
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        keys = tokens[..., : self.kdim]
        mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
        mixed, _ = self.attention(tokens, keys, tokens, None, attn_mask=mask)
        return self.head(mixed.mean(1 if self.batch_first else 0))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("in_projection_row", {}),
        ("in_projection_row", {"batch_first": False}),
        ("attention_head", {"batch_first": False}),
        ("attention_head", {"kdim": 4}),  # three projections instead of a fused one
        ("linear_input", {}),
    ],
)
def test_projections_of_multihead_attention_are_reached(kind, options):
    model = randomised(AttentionNet(**options))
    components = find_components(model, [kind], include=["attention*"])
    expected = weights_times_gradients(model, components, images(6), TARGETS, margin)
    found = scores("gradient_parameter", model, components)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())
    for method in METHODS:
        assert np.isfinite(scores(method, model, components, patch=halved)).all()
    assert "forward" not in vars(model.attention)


def test_transformer_encoder_layers_do_not_take_torchs_way_around_hooks():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = randomised(nn.Sequential(nn.Flatten(2), nn.Linear(36, 8), layer, nn.Flatten()))
    model.append(nn.Linear(24, 5))
    components = find_components(model, ["mlp_neuron", "attention_head"])
    with torch.inference_mode():
        intact = model(images(4))
        with ZeroActivation(Context(model, components)) as ablation:
            assert torch.allclose(model(images(4)), intact, atol=1e-5)
            ablation.apply(torch.zeros(len(components), dtype=torch.bool))
            by_hooks = model(images(4))
        with WeightAblation(model, components) as weights:
            weights.apply(torch.zeros(len(components), dtype=torch.bool))
            by_weights = model(images(4))
    assert (by_weights - intact).abs().max() > 0.01
    torch.testing.assert_close(by_hooks, by_weights, atol=1e-5, rtol=1e-5)


def halved(site, _, activation):
    return activation / 2


def test_attribution_patching_towards_what_the_task_patches_in():
    """On a linear output the first order is exact, whatever is put in place."""
    for ablate in ("zero_weights", "scale_weights", "zero_activation", "mean"):
        task = LinearTask(ablate=ablate)
        task.prepare(torch.device("cpu"))
        patching = baseline("attribution_patching", task, "test_margins").scores
        left_out = baseline("leave_one_out", task, "test_margins").scores
        np.testing.assert_allclose(patching, left_out, atol=TOLERANCE)
        assert np.abs(patching).max() > 0.1
    with pytest.raises(ComponentError, match="what to patch in"):
        gradient_scores(
            "attribution_patching",
            task.model(),
            task.component_set,
            batches=[],
            predict=task.predict,
            output=logit,
        )


class LinearTask(ComponentTask):
    """A linear model whose logits are what is recorded."""

    outputs: ClassVar = {"test_margins": logit}

    def model(self):
        return linear_model()[0]

    def components(self, model):
        return find_components(model, ["linear_row"], include=["0"])

    def examples(self):
        return Examples((linear_model()[1],), TARGETS)


def test_examples_along_another_axis_are_refused():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, images):
            return self.linear(images[:, 0].transpose(0, 1)).mean(0)

    model = Swapped()
    components = find_components(model, ["linear_row"])
    with pytest.raises(ComponentError, match="along its first axis"):
        scores(
            "gradient_parameter", model, components, torch.randn(3, 1, 7, 6), targets=TARGETS[:3]
        )
