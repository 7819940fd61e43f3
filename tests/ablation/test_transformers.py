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
