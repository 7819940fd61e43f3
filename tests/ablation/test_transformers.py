import pytest
import torch
from tiny_models import randomised
from torch import nn
from torchvision_like import ViTLike

from coarlib.ablation import WeightAblation, find_components

TOLERANCE = 1e-5
TOKENS = torch.randint(1, 30, (2, 6), generator=torch.Generator().manual_seed(0))


def hugging_face(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=4)
        return transformers.GPT2LMHeadModel(config)
    if name == "llama":
        config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)
        return transformers.LlamaForCausalLM(config)
    if name == "bert":
        return transformers.BertModel(transformers.BertConfig(num_attention_heads=4, **sizes))
    del sizes["vocab_size"]
    config = transformers.ViTConfig(num_attention_heads=4, image_size=8, patch_size=4, **sizes)
    return transformers.ViTModel(config)


NEURONS = {"gpt2": 64, "llama": 24, "bert": 24, "vit": 24}


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit"])
def test_heads_and_neurons_of_hugging_face_models(name):
    model = randomised(hugging_face(name))
    heads = find_components(model, ["attention_head"])
    neurons = find_components(model, ["mlp_neuron"])
    assert heads.sizes == [4, 4] and {group.width for group in heads} == {4}
    assert neurons.sizes == [NEURONS[name]] * 2 and {group.width for group in neurons} == {1}
    inputs = torch.randn(2, 3, 8, 8) if name == "vit" else TOKENS
    for components in (heads, neurons):
        check_that_ablation_silences_the_slice(model, components, inputs)


def check_that_ablation_silences_the_slice(model, components, inputs):
    """Zeroed weights give what zeroed inputs of the projection give, and not what nothing gives."""
    group, unit = components.groups[0], 1
    span = slice(unit * group.width, (unit + 1) * group.width)

    def silence(module, arguments):
        changed = arguments[0].clone()
        changed[..., span] = 0
        return (changed, *arguments[1:])

    with torch.no_grad():
        intact = model(inputs)[0]
        handle = model.get_submodule(group.module).register_forward_pre_hook(silence)
        expected = model(inputs)[0]
        handle.remove()
        with WeightAblation(model, components) as ablation:
            ablation.apply(torch.arange(len(components)) != unit)
            found = model(inputs)[0]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert (found - intact).abs().max() > 100 * TOLERANCE


def test_heads_of_torch_attention():
    attention = randomised(nn.MultiheadAttention(8, 2, batch_first=True))
    tokens = torch.randn(3, 5, 8)
    components = find_components(attention, ["attention_head"])
    assert components.name(1) == "out_proj.weight[:, 4:8]" and len(components) == 2
    mixed = {}
    for kept in (0, 1):
        with torch.no_grad(), WeightAblation(attention, components) as ablation:
            ablation.apply(torch.arange(2) == kept)
            mixed[kept] = attention(tokens, tokens, tokens)[0] - attention.out_proj.bias
    with torch.no_grad():
        whole = attention(tokens, tokens, tokens)[0] - attention.out_proj.bias
    torch.testing.assert_close(mixed[0] + mixed[1], whole, atol=TOLERANCE, rtol=TOLERANCE)


def test_heads_and_neurons_in_torchvision_and_torch_layers():
    components = find_components(ViTLike(2, 2, 8, 12, classes=3), ["attention_head", "mlp_neuron"])
    assert components.sizes == [2, 12, 2, 12]
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert find_components(layer, ["attention_head", "mlp_neuron"]).sizes == [16, 2]


class InnerAttention(nn.Module):
    """Mixes, and leaves the output projection to the module around it, as LED's does."""

    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        parts = [way(x).unflatten(-1, (2, 4)).transpose(1, 2) for way in self.children()]
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        return mixed.transpose(1, 2).flatten(2)


class OuterAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.output = InnerAttention(), nn.Linear(8, 8)

    def forward(self, x):
        return (self.output(self.inner(x)),)


class AxisAttention(nn.Module):
    """Heads have an axis of their own, as XLNet's do."""

    def __init__(self):
        super().__init__()
        self.n_head = 2
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(8, 2, 4)) for _ in range(4))


class UnknownAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Bilinear(2, 2, 2), nn.Linear(2, 2)


def test_heads_whose_projection_lies_around_the_attention():
    model = randomised(OuterAttention())
    heads = find_components(model, "attention_head")
    assert [heads.name(n) for n in range(2)] == ["output.weight[:, 0:4]", "output.weight[:, 4:8]"]
    check_that_ablation_silences_the_slice(model, heads, torch.randn(2, 5, 8))


def test_heads_along_an_axis_of_their_own():
    model = AxisAttention()
    heads = find_components(model, "attention_head")
    before = model.o.detach().clone()
    with WeightAblation(model, heads) as ablation:
        ablation.apply(torch.tensor([True, False]))
        assert (model.o[:, 1] == 0).all() and torch.equal(model.o[:, 0], before[:, 0])


def test_an_attention_without_known_heads_is_named():
    model = nn.ModuleDict({"mine": UnknownAttention(), "other": OuterAttention()})
    with pytest.warns(UserWarning, match=r"no attention_head was found in mine \(UnknownAttention"):
        find_components(model, "attention_head")


def test_a_table_of_position_biases_is_no_mlp():
    bias_mlp = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 2, bias=False))
    model = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))})
    model["continuous_position_bias_mlp"] = bias_mlp
    assert find_components(model, "mlp_neuron").sizes == [6]
