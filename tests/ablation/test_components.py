import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TiedEmbedding, TinyResNet
from torch import nn

from coarlib.ablation import ComponentGroup, ComponentSet, find_components, preset
from coarlib.ablation.selection import KINDS
from coarlib.ablation.slices import slice_components
from coarlib.errors import ComponentError

GROUPS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 7)),
    min_size=1,
    max_size=6,
    unique_by=lambda g: g[0],
)


@given(GROUPS)
def test_index_and_unit_are_inverse(sizes):
    groups = [ComponentGroup(f"layer{name}", "weight", "linear_row", 0, n) for name, n in sizes]
    components = ComponentSet(groups)
    located = [components.locate(i) for i in range(len(components))]
    assert located == [(group, unit) for group in groups for unit in range(group.units)]
    for index, (group, unit) in enumerate(located):
        assert components.index(group.path, unit) == index
        assert components.index(group.module, unit) == index
    assert len(components) == sum(components.sizes)


def test_groups_come_in_module_order_and_survive_json():
    components = find_components(TinyResNet(), ["linear_row", "conv_filter"])
    assert [(g.path, g.units) for g in components] == [
        ("conv1.weight", 6),
        ("conv2.weight", 6),
        ("upconv.weight", 4),
        ("linear.weight", 5),
    ]
    assert components.name(13) == "upconv.weight[filter 1]"
    again = ComponentSet.from_json(json.loads(json.dumps(components.to_json())))
    assert again == components and hash(again) == hash(components)
    with pytest.raises(ComponentError, match="not a description"):
        ComponentSet.from_json([{"modul": "x"}])


def channels_by_component(model, components):
    """{component: (parameter, its entries)}, of those whose name is a slice."""
    found = {}
    for part in components.channels(model):
        for index in range(len(components)):
            kept = part.kept(torch.arange(len(components)) != index)
            if not kept.all():
                entries = part.entries(kept, model.get_parameter(part.path).shape)
                found[index] = (part.path, entries.expand(model.get_parameter(part.path).shape))
    return found


@pytest.mark.parametrize("model", [TinyResNet(), nn.TransformerEncoderLayer(8, 2, 12)])
def test_names_of_all_kinds_are_unique_and_are_the_slices(model):
    kinds = [kind for kind in KINDS if any(KINDS[kind](n, m) for n, m in model.named_modules())]
    several = [k for k in kinds if k not in ("attention_head", "mlp_neuron")]
    inside = [k for k in kinds if k not in ("linear_input", "linear_row")]
    for chosen in (several, inside):
        components = find_components(model, [*chosen])
        assert len(set(components.names)) == len(components)
        wanted = channels_by_component(model, components)
        for index, name in enumerate(components.names):
            if "filter" in name:  # of a grouped transposed convolution
                continue
            found = ComponentSet(slice_components({name: [name]}))
            ((path, entries),) = channels_by_component(model, found).values()
            assert path == wanted[index][0] and torch.equal(entries, wanted[index][1])


def test_what_a_user_calls_as_another_component_is_called_is_told_apart():
    model = nn.Sequential(nn.Linear(3, 2))
    rows = find_components(model, ["linear_row", "linear_input"])
    mine = ComponentSet(slice_components({"0.weight[0]": ["0.bias[1]"], "edge": ["0.bias[0]"]}))
    both = rows + mine
    assert len(set(both.names)) == len(both) == 7
    assert both.names[0] == "0.weight[0] (linear_row)" and both.names[1] == "0.weight[1]"
    assert both.names[2:5] == tuple(f"0.weight[:, {i}]" for i in range(3))
    with pytest.raises(ComponentError, match=r"linear_row.*linear_input.*give path and kind"):
        both.indices("0")
    assert both.indices("0", "linear_input") == range(2, 5)


def test_selection_by_pattern():
    model = TinyResNet()
    assert len(find_components(model, include=["conv*"])) == 12
    assert len(find_components(model, include=["*conv*"], exclude=["up*"])) == 12
    assert len(find_components(model, ["norm_channel"])) == 12
    assert len(find_components(model, ["linear_input"])) == 4


def test_table_lists_every_group():
    table = find_components(TinyResNet()).table().splitlines()
    assert table[1].split() == ["0-5", "conv1.weight", "0", "conv_filter", "6"]
    assert table[-1].split() == ["total", "16"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: find_components(m, ["conv_filters"]), "did you mean 'conv_filter'"),
        (lambda m: find_components(m, include=["nothing*"]), "no component of kind conv_filter"),
        (lambda m: find_components(m, include=[3]), "named by words, not by 3"),
        (lambda m: preset("imagenet_vitt", m), "did you mean 'imagenet_vit'"),
        (lambda m: find_components(m).locate(16), "component 16 does not exist: there are 16"),
        (lambda m: find_components(m).locate(-1), "does not exist"),
        (lambda m: find_components(m).indices("conv3"), "did you mean 'conv"),
        (lambda m: find_components(m).index("conv1", 6), r"\[6\] does not exist"),
        (lambda m: find_components(m).check_masks(np.ones((2, 15), bool)), "do not fit 16"),
        (lambda m: find_components(m) + find_components(m), "selected twice"),
        (lambda m: find_components(m).parameters(nn.Linear(2, 2)), "no parameter conv1.weight"),
        (
            lambda m: ComponentSet([ComponentGroup("conv1", "weight", "x", 0, 7)]).parameters(m),
            "does not hold 7 components",
        ),
        (lambda m: ComponentSet([]), "no component"),
    ],
)
def test_bad_selections_are_refused(call, message):
    with pytest.raises(ComponentError, match=message):
        call(TinyResNet())


def test_a_tied_parameter_is_refused_by_name():
    with pytest.raises(ComponentError, match=r"embed.weight and head.weight are one tied"):
        find_components(TiedEmbedding(), ["linear_row"])
    assert len(find_components(TiedEmbedding(), ["linear_row"], exclude=["head"])) == 4


def test_one_module_under_two_names_is_one_set_of_components():
    model = nn.Module()
    model.blocks = nn.Sequential(nn.Linear(3, 3))
    model.block0 = model.blocks[0]
    assert [g.path for g in find_components(model, ["linear_row"])] == ["blocks.0.weight"]


def test_grouped_transposed_filters_are_the_output_channels():
    conv = nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False)
    components = find_components(conv)
    images = torch.randn(2, 6, 3, 3)
    for unit in range(4):
        kept = torch.arange(4) != unit
        entries = components.groups[0].kept_entries(kept, conv.weight.shape)
        ablated = nn.functional.conv_transpose2d(images, conv.weight * entries, groups=2)
        assert torch.equal(ablated.abs().amax((0, 2, 3)) == 0, ~kept)
        assert torch.equal(ablated[:, kept], conv(images)[:, kept])
