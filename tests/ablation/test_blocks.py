"""A block is all that it writes into the stream, whatever its parts are called."""

import numpy as np
import pytest
import torch
from tiny_models import images, randomised
from torch import nn
from torch.nn import functional as F

from coarlib.ablation import ComponentSet, SliceGroup, WeightAblation, ablate, find_components
from coarlib.ablation.selection import coverage
from coarlib.ablation.slices import ParameterSlice
from coarlib.errors import ComponentError

CPU = torch.device("cpu")
TOKENS = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
CAUSAL = {
    "Llama": {**SIZES, **GROUPED},
    "Mixtral": {**SIZES, **GROUPED, "num_local_experts": 4},
    "Olmoe": {**SIZES, **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 1},
    "GptOss": {**SIZES, **GROUPED, "head_dim": 4, "num_local_experts": 4},
    "Qwen2Moe": {**SIZES, **GROUPED, "num_experts": 4, "moe_intermediate_size": 12,
                 "shared_expert_intermediate_size": 12},
    "GPTNeoX": {**SIZES, "num_attention_heads": 4},
    "Bloom": {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4},
}  # fmt: skip
EXPERTS = {"Mixtral": 24, "Olmoe": 24, "GptOss": 24, "Qwen2Moe": 12}


def causal(name, biases=False):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**CAUSAL[name])
    model = randomised(transformers.AutoModelForCausalLM.from_config(config))
    for key, parameter in model.named_parameters():
        if "bias" in key.rsplit(".", 1)[-1] and not biases:
            parameter.data.zero_()
    return model


def written(model, layer, components, index):
    """What a layer adds to the stream, intact and with one component ablated."""
    seen = []

    def hook(module, args, kwargs, output):
        stream = args[0] if args else kwargs["hidden_states"]
        seen.append((output[0] if isinstance(output, tuple) else output) - stream)

    handle = model.get_submodule(layer).register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad(), WeightAblation(model, components) as ablation:
        model(TOKENS)
        ablation.apply(torch.arange(len(components)) != index)
        model(TOKENS)
    handle.remove()
    return [float(x.norm()) for x in seen]


@pytest.mark.parametrize("name", CAUSAL)
def test_without_its_block_a_layer_writes_nothing(name):
    model = causal(name)
    components = find_components(model, "block")
    assert len(components) == 2
    assert coverage(model, components)[0].startswith("block in 2 of 2 layers of ")
    intact, left = written(model, components.name(1), components, 1)
    assert left < 1e-5 < 1e-2 < intact


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_and_their_neurons(name):
    model, neurons = causal(name), EXPERTS[name]
    experts = find_components(model, "expert")
    units = find_components(model, "expert_neuron")
    assert experts.sizes == [4, 4] and units.sizes == [4 * neurons] * 2
    down = model.get_parameter(units.groups[0].path)
    place = 2 * neurons + 5
    with torch.no_grad(), WeightAblation(model, units) as ablation:
        before = down.clone()
        ablation.apply(torch.arange(len(units)) != place)
        changed = (down != before).nonzero()
    axis = 1 if name == "GptOss" else 2
    assert (changed[:, 0] == 2).all() and (changed[:, axis] == 5).all() and len(changed) == 16
    text = units.name(place).rpartition("experts.")[2]
    assert text == ("down_proj[2, 5]" if axis == 1 else "down_proj[2, :, 5]")
    piece = ParameterSlice.parse(units.name(place))
    by_hand = ComponentSet([SliceGroup("mine", "slices", (piece,)), *experts])
    with torch.no_grad(), WeightAblation(model, by_hand) as ablation:
        ablation.apply(torch.arange(9) != 0)
        torch.testing.assert_close((down != before).nonzero(), changed)
    assert ComponentSet.from_json(by_hand.to_json()) == by_hand
    assert ComponentSet.from_json(units.to_json()) == units


def test_what_was_asked_for_and_not_found_is_named(recwarn):
    model = causal("Mixtral")
    with pytest.warns(UserWarning, match="no component of kind mlp_neuron.*kind expert_neuron"):
        heads = find_components(model, ["attention_head", "mlp_neuron"])
    assert heads.sizes == [4, 4]
    find_components(causal("Qwen2Moe"), ["attention_head", "mlp_neuron", "expert"])
    half = nn.Sequential(*(causal("Llama").model.layers[n] for n in (0, 1)))
    half[1].mlp = nn.Identity()
    with pytest.warns(UserWarning, match="mlp_neuron was found in 1 of 2 layers of body only"):
        find_components(nn.ModuleDict({"body": half}), "mlp_neuron")
    assert len(recwarn) == 0


class Residual(nn.Module):
    """A residual block whose shortcut has a name that says nothing."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.match = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None
        self.a = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.b = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.last = nn.BatchNorm2d(outputs)

    def forward(self, x):
        way = x if self.match is None else self.match(x)
        return F.relu(way + self.last(self.b(F.relu(self.a(x)))))


class Plain(Residual):
    def forward(self, x):
        return F.relu(self.last(self.b(F.relu(self.a(x)))))


class Net(nn.Module):
    def __init__(self, kind=Residual):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(kind(4, 4), kind(4, 6, 2), kind(6, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_the_shortcut_stays_whatever_it_is_called():
    model = randomised(Net())
    components = find_components(model, "block")
    slices = {g.module: [piece.path for piece in g.slices] for g in components}
    assert slices == {f"blocks.{n}": [f"blocks.{n}.b.weight"] for n in range(3)}
    task = ablate(model, (images(6), torch.arange(6) % 5), "block")
    task.prepare(CPU)
    masks = np.array([[True, False, True]])
    found = task.rows(np.arange(1), masks)["test_margins"][0]
    model.blocks[1].b.weight.data.zero_()
    with torch.no_grad():
        expected = task.outputs["test_margins"](model(images(6)), torch.arange(6) % 5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_blocks_that_are_no_blocks_are_refused():
    model, given = randomised(Net()), (images(6), torch.arange(6) % 5)

    def block(*paths):
        return ComponentSet([SliceGroup("blocks.1", "block", tuple(map(ParameterSlice, paths)))])

    with pytest.raises(ComponentError, match=r"a part of it in place: .*blocks\.1\.a\.weight"):
        ablate(model, given, block("blocks.1.match.weight")).prepare(CPU)
    with pytest.raises(ComponentError, match=r"nothing goes past blocks\.1"):
        ablate(model, given, block("blocks.1.match.weight", "blocks.1.b.weight")).prepare(CPU)
    with pytest.raises(ComponentError, match="no component of kind block"):
        find_components(randomised(Net(Plain)), "block")


class Stage(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 2, 2)
        self.layers = nn.ModuleList([Residual(outputs, outputs) for _ in range(2)])

    def forward(self, x):
        x = self.down(x)
        for layer in self.layers:
            x = layer(x)
        return x


def test_of_stages_the_members_are_the_blocks():
    model = nn.Sequential(nn.Sequential(Stage(3, 4), Stage(4, 6)), nn.Flatten())
    paths = [group.module for group in find_components(model, "block")]
    assert paths == [f"0.{s}.layers.{n}" for s in (0, 1) for n in (0, 1)]


class Functional(nn.Module):
    """Uses the weights of a layer without calling it, as WavLM and Mamba do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, x):
        hidden = F.conv2d(x, self.first.weight, self.first.bias).relu()
        return self.second(hidden).mean((2, 3))


def test_activations_that_hooks_miss_are_refused():
    model, given = randomised(Functional()), (images(6), torch.arange(6) % 5)
    ablate(model, given).prepare(CPU)  # weights are weights
    with pytest.raises(ComponentError, match=r"uses first\.weight without calling first"):
        ablate(model, given, ablate="zero_activation").prepare(CPU)
    ablate(model, given, include="second", ablate="zero_activation").prepare(CPU)


def test_every_block_that_is_none_is_named():
    model = randomised(Net(Untraced))
    with pytest.raises(ComponentError, match=r"past blocks\.0, blocks\.1, blocks\.2 \(3 of 3"):
        ablate(model, (images(6), torch.arange(6) % 5), "block").prepare(CPU)


class Untraced(Plain):
    def forward(self, x):
        return super().forward(x * float(x.abs().sum() >= 0))
