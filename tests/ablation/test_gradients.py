import numpy as np
import pytest
import torch
from tiny_models import SharedConv, TiedEmbedding, TinyResNet, images, randomised
from torch import nn
from torchvision_like import ViTLike

from coarlib.ablation import Examples, WeightAblation, find_components
from coarlib.ablation.activations import Hooks, site_of
from coarlib.ablation.gradients import METHODS, gradient_scores
from coarlib.errors import ComponentError
from coarlib.outputs import IGNORED, logit, margin, per_sequence

TARGETS = torch.arange(6) % 5
TOLERANCE = 1e-4


def scores(method, model, components, inputs=None, output=margin, targets=TARGETS):
    inputs = images(6) if inputs is None else inputs
    batch = Examples((inputs,), targets)
    return gradient_scores(
        method,
        model,
        components,
        batches=[part for _, part in batch.batches(4)],
        predict=lambda network, x: network(*x),
        output=output,
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
        np.testing.assert_allclose(
            scores(method, in_place, components), scores(method, plain, components), atol=1e-6
        )


def test_frozen_parameters_and_leftover_hooks():
    model = randomised(TinyResNet())
    expected = scores("gradient_parameter", model, find_components(model))
    model.requires_grad_(False)
    found = scores("gradient_parameter", model, find_components(model))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_model_fails():
    model = randomised(TinyResNet())
    sites = [site_of(model, group) for group in find_components(model)]
    with pytest.raises(RuntimeError), Hooks(sites, lambda _, activation: activation):
        model(torch.zeros(1, 7, 6, 6))
    assert not any(module._forward_hooks for module in model.modules())


def test_multihead_attention_is_refused_by_name():
    model = ViTLike(1, 2, 8, 8, classes=5)
    components = find_components(model, ["in_projection_row"])
    with pytest.raises(ComponentError, match=r"self_attention.in_proj_weight .* by hooks"):
        scores("gradient_parameter", model, components)
