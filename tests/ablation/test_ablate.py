import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SharedConv, TinyResNet, images, randomised

from coarlib.ablation import WeightAblation, find_components
from coarlib.errors import ComponentError

KINDS = ["conv_filter", "linear_row"]


def bits(model):
    return {key: p.detach().clone().view(torch.uint8) for key, p in model.named_parameters()}


def same_bits(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def deep_copy_with_zeroed_rows(model, components, mask):
    """COAR's own way: a deep copy, one index at a time (axis 0 only)."""
    model = copy.deepcopy(model)
    for index in (~mask).nonzero().flatten().tolist():
        group, unit = components.locate(index)
        with torch.no_grad():
            model.get_parameter(group.path)[unit] = 0
    return model


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_equals_a_deep_copy_with_zeroed_rows(seed, keep):
    for model in (randomised(TinyResNet()), randomised(SharedConv())):
        components = find_components(model, KINDS, exclude=["upconv"])
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(len(components), generator=generator) < keep
        expected = deep_copy_with_zeroed_rows(model, components, mask)
        before = bits(model)
        with WeightAblation(model, components) as ablation:
            ablation.apply(mask)
            assert same_bits(bits(model), bits(expected))
        assert same_bits(bits(model), before)


def test_masks_do_not_add_up():
    model = randomised(TinyResNet())
    components = find_components(model)
    first, second = torch.arange(16) % 2 == 0, torch.arange(16) % 3 == 0
    with WeightAblation(model, components) as ablation:
        ablation.apply(second)
        alone = bits(model)
        ablation.apply(first)
        assert not same_bits(bits(model), alone)
        ablation.apply(second)
        assert same_bits(bits(model), alone)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_intact_model_comes_back_bit_for_bit_after_any_exception(error):
    model = randomised(TinyResNet())
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = -0.0
        model.conv1.weight[1, 0, 0, 0] = float("nan")
    before = bits(model)
    with pytest.raises(error), WeightAblation(model, find_components(model)) as ablation:
        ablation.apply(torch.zeros(16, dtype=torch.bool))
        assert not model.conv1.weight.any()
        raise error
    assert same_bits(bits(model), before)


def test_biases_stay():
    model = randomised(TinyResNet())
    with WeightAblation(model, find_components(model, ["linear_row"])) as ablation:
        ablation.apply(torch.zeros(5, dtype=torch.bool))
        logits = model(images(2))
    assert torch.equal(logits, model.linear.bias.expand(2, 5))


def test_factor_scales_instead():
    model = randomised(TinyResNet())
    expected = model.conv1.weight.detach() * 0.5
    with WeightAblation(model, find_components(model), factor=0.5) as ablation:
        ablation.apply(torch.zeros(16, dtype=torch.bool))
        assert torch.equal(model.conv1.weight, expected)


def test_misuse_is_refused():
    model = TinyResNet()
    ablation = WeightAblation(model, find_components(model))
    with pytest.raises(ComponentError, match="inside the context"):
        ablation.apply(torch.ones(16, dtype=torch.bool))
    with ablation:
        with pytest.raises(ComponentError, match="do not fit 16"):
            ablation.apply(torch.ones(15, dtype=torch.bool))
        with pytest.raises(ComponentError, match="already in use"):
            ablation.__enter__()
