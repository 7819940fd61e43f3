"""Small tasks of every kind of component that gradient passes scale."""

import pytest
import torch
from tiny_models import TinyResNet, images, randomised
from torch import nn

from coarlib.ablation import ComponentTask, Examples, ablate, find_components

EXAMPLES = 11
KINDS = {
    "filters": "activations",
    "rows": "activations",
    "heads": "activations",
    "neurons": "activations",
    "blocks": "activations",
    "routed": "weights",
    "experts": "weights",
    "expert_neurons": "weights",
}
"""Kind -> what is scaled."""


def small_task(**settings):
    """Filters of a convolutional network with grouped and transposed convolutions, not prepared."""
    labels = torch.arange(EXAMPLES) % 5
    return ablate(randomised(TinyResNet()), (images(EXAMPLES), labels), batch_size=4, **settings)


class SmallTask(ComponentTask):
    """The same, as a class that commands can name."""

    def model(self):
        return randomised(TinyResNet())

    def components(self, model):
        return find_components(model)

    def examples(self):
        return Examples((images(EXAMPLES),), torch.arange(EXAMPLES) % 5)


class Routed(nn.Module):
    """Sends every token to one of two linear layers."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])
        self.head = nn.Linear(6, 5)

    def forward(self, tokens):
        found = tokens.new_zeros(*tokens.shape[:-1], 6)
        for at, expert in enumerate(self.experts):
            chosen = (tokens[..., 0] > 0) == bool(at)
            found[chosen] = expert(tokens[chosen])
        return self.head(torch.tanh(found).mean(1))


def language_model(kind):
    """A causal language model of two layers, with or without experts."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 12}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    if kind.startswith("expert"):
        config = transformers.MixtralConfig(num_local_experts=4, **sizes)
        return transformers.MixtralForCausalLM(config)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def task_of(kind):
    """A task, in double precision where that goes, with components of that kind; not prepared."""
    torch.manual_seed(0)
    if kind == "filters":
        model, inputs = randomised(TinyResNet()), images(EXAMPLES)
        return ablate(model.double(), (inputs.double(), torch.arange(EXAMPLES) % 5))
    if kind in ("rows", "routed"):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
        model = randomised(Routed() if kind == "routed" else model).double()
        inputs = torch.randn(EXAMPLES, *((7, 4) if kind == "routed" else (4,))).double()
        parts = find_components(model, ["linear_row"])
        return ablate(model, (inputs, torch.arange(EXAMPLES) % 5), parts)
    names = {"heads": "attention_head", "neurons": "mlp_neuron", "blocks": "block"}
    names |= {"experts": "expert", "expert_neurons": "expert_neuron"}
    model = randomised(language_model(kind))
    if not kind.startswith("expert"):  # grouped products of experts have no double precision
        model = model.double()
    tokens = torch.randint(3, 40, (5, 7), generator=torch.Generator().manual_seed(0))
    return ablate(model, (tokens, None), find_components(model, names[kind]))
