"""Components that are several slices: whole blocks, and what users name themselves."""

import numpy as np
import pytest
import torch
from tiny_models import TinyResNet, images, randomised
from torch import nn
from torchvision_like import ResNet50Like, ViTLike

from coarlib.ablation import (
    ComponentSet,
    ComponentTask,
    Examples,
    ParameterSlice,
    SliceGroup,
    WeightAblation,
    find_components,
    slice_components,
)
from coarlib.ablation.ways import Context, ZeroActivation
from coarlib.baselines.evaluation import baseline
from coarlib.errors import ComponentError, HistoryError
from coarlib.outputs import margin
from coarlib.path_kernel.accumulate import ComponentColumns
from estimate.cifar_resnet.model import he_resnet
from estimate.digits.model import DigitsResNet
from estimate.tinyllama_stories.model import TinyLlama

NONE = torch.zeros(1, dtype=torch.bool)


def ablated(model, components, mask, inputs):
    with torch.no_grad(), WeightAblation(model, components) as ablation:
        ablation.apply(torch.as_tensor(mask))
        return model(inputs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w", ParameterSlice("w")),
        ("a.b.w[3]", ParameterSlice("a.b.w", 0, 3, 4)),
        ("w[0:4]", ParameterSlice("w", 0, 0, 4)),
        ("w[2:]", ParameterSlice("w", 0, 2, None)),
        ("w[:, 3:5]", ParameterSlice("w", 1, 3, 5)),
        ("w[:,:,1]", ParameterSlice("w", 2, 1, 2)),
    ],
)
def test_slices_are_read(text, expected):
    assert ParameterSlice.parse(text) == expected


@pytest.mark.parametrize("text", ["w[", "w[-1]", "w[1,2,3]", "w[a]", "", "w[1:2:3]", "w[::2]"])
def test_what_is_no_slice_is_refused(text):
    with pytest.raises(ComponentError, match=r"no slice of a parameter|no index or range"):
        ParameterSlice.parse(text)


def test_slices_of_several_parameters_are_one_component():
    model = randomised(TinyResNet())
    named = {"early": ["conv1.weight[0:2]", "linear.weight[:, 1]"], "bias": ["linear.bias"]}
    components = ComponentSet(slice_components(named))
    assert len(components) == 2 and components.name(0) == "early" and components.index("bias", 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with WeightAblation(model, components) as ablation:
        ablation.apply(torch.tensor([False, True]))
        assert not model.conv1.weight[:2].any() and model.conv1.weight[2:].all()
        assert not model.linear.weight[:, 1].any() and model.linear.weight[:, 2:].all()
        assert torch.equal(model.linear.bias, before["linear.bias"])
        ablation.apply(torch.tensor([True, False]))
        assert not model.linear.bias.any() and model.conv1.weight.all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert ComponentSet.from_json(components.to_json()) == components
    assert "early" in components.table()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"a": ["no.weight"]}, "no parameter no.weight"),
        ({"a": ["conv1.weight[3:99]"]}, "has no channels 3 to 99"),
        ({"a": ["linear.bias[:, 0]"]}, "has no channels 0 to 1 .* along axis 1"),
        ({"a": []}, "needs a list of slices"),
        ({"a": "conv1.weight"}, "needs a list of slices"),
    ],
)
def test_slices_that_do_not_fit_are_refused(named, message):
    with pytest.raises(ComponentError, match=message):
        ComponentSet(slice_components(named)).channels(TinyResNet())


def test_components_along_two_axes_of_one_parameter_are_both_ablated():
    model = nn.Linear(3, 4, bias=False)
    components = find_components(model, ["linear_row", "linear_input"])
    with WeightAblation(model, components) as ablation:
        ablation.apply(torch.tensor([0, 1, 1, 1, 1, 0, 1], dtype=torch.bool))
        assert not model.weight[0].any() and not model.weight[:, 1].any()
        assert model.weight[1:, [0, 2]].all()


def test_a_channel_of_two_components_needs_both():
    model = nn.Linear(3, 4, bias=False)
    rows = find_components(model, ["linear_row"])
    both = rows + ComponentSet(slice_components({"pair": ["weight[0:2]"]}))
    for mask, alive in (([1, 0, 1, 1, 1], [0, 2, 3]), ([1, 1, 1, 0, 0], [2])):
        with WeightAblation(model, both) as ablation:
            ablation.apply(torch.tensor(mask, dtype=torch.bool))
            assert model.weight.any(1).nonzero()[:, 0].tolist() == alive


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (he_resnet(20), {f"layer{s}.{b}": ["conv2"] for s in (1, 2, 3) for b in (0, 1, 2)}),
        (DigitsResNet(), {f"blocks.{b}": ["conv2"] for b in range(4)}),
        (ResNet50Like(4, (1, 2)), {f"layer{n}": ["conv3"] for n in ("1.0", "2.0", "2.1")}),
        (
            TinyLlama(8, 12, layers=2, heads=2, kv_heads=1, vocabulary=5),
            {f"layers.{n}": ["attention.o_proj", "mlp.down_proj"] for n in (0, 1)},
        ),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            {f"layers.{n}": ["self_attn.out_proj", "linear2"] for n in (0, 1)},
        ),
    ],
    ids=["he", "digits", "bottleneck", "llama", "torch"],
)
def test_blocks_are_what_writes_into_the_residual_stream(model, expected):
    found = {
        group.path: [piece.path for piece in group.slices]
        for group in find_components(model, ["block"])
    }
    assert found == {
        block: [f"{block}.{name}.weight" for name in names] for block, names in expected.items()
    }
    some = find_components(model, ["block"], include=[f"*{list(expected)[-1]}"])
    assert [group.path for group in some] == list(expected)[-1:]


def test_without_a_block_the_stream_goes_past():
    model = TinyLlama(8, 12, layers=2, heads=2, kv_heads=1, vocabulary=5).eval()
    tokens = torch.arange(5)[None]
    found = ablated(model, find_components(model, ["block"]), [True, False], tokens)
    model.layers = model.layers[:1]
    with torch.no_grad():
        torch.testing.assert_close(found, model(tokens))


def test_torchvisions_transformer_has_blocks_too():
    model = ViTLike(2, 2, 8, 8, classes=5)
    assert len(find_components(model, ["block"])) == 2


class BlockTask(ComponentTask):
    """The blocks of a small residual network."""

    def model(self):
        return randomised(DigitsResNet())

    def components(self, model):
        return find_components(model, ["block"])

    def examples(self):
        return Examples((images(6)[:, :1].repeat(1, 1, 2, 2)[..., :8, :8],), torch.arange(6) % 5)


def test_gradients_of_blocks_add_up_those_of_their_channels():
    task = BlockTask()
    task.prepare(torch.device("cpu"))
    found = baseline("gradient_parameter", task, "test_margins").scores
    filters = BlockTask()
    filters.components = lambda model: find_components(model, include=["blocks.*.conv2"])
    filters.prepare(torch.device("cpu"))
    by_filter = baseline("gradient_parameter", filters, "test_margins").scores
    ends = np.cumsum([0, *filters.component_set.sizes])
    expected = np.add.reduceat(by_filter, ends[:-1], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    masks = np.array([[True, False, True, True]])
    row = task.rows(np.arange(1), masks)["test_margins"]
    spread = np.repeat(masks, filters.component_set.sizes, axis=1)
    torch.testing.assert_close(row, filters.rows(np.arange(1), spread)["test_margins"])


def test_a_bias_that_is_a_component_is_not_folded_into():
    class BiasTask(BlockTask):
        def components(self, model):
            return ComponentSet(slice_components({"bias": ["norm.bias"], "stem": ["stem.bias"]}))

        def model(self):
            model = randomised(DigitsResNet())
            model.stem.bias = nn.Parameter(torch.ones(16))
            return model

    task = BiasTask()
    task.prepare(torch.device("cpu"))
    found = task.rows(np.arange(1), np.array([[True, False]]))["test_margins"][0]
    model, examples = task.model().eval(), task.examples()
    logits = ablated(model, task.component_set, [True, False], *examples.inputs)
    torch.testing.assert_close(found, margin(logits, examples.targets), atol=1e-4, rtol=1e-4)


def test_activations_of_blocks_are_replaced():
    model = randomised(DigitsResNet()).eval()
    components = find_components(model, ["block"], include=["blocks.3"])
    inputs = torch.rand(3, 1, 8, 8)
    with torch.no_grad(), ZeroActivation(Context(model, components)) as ablation:
        ablation.apply(NONE)
        found = model(inputs)
    torch.testing.assert_close(found, ablated(model, components, NONE, inputs))  # no bias there


def test_the_path_kernel_refuses_components_of_several_tensors():
    with pytest.raises(HistoryError, match="layer lies in several tensors"):
        ComponentColumns(
            ComponentSet([SliceGroup("layer", "block", (ParameterSlice("w"),))]),
            type("Table", (), {"names": ["w"], "shapes": [(2, 2)]})(),
        )
