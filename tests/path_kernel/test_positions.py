"""Layers whose other positions nobody reads: computed where they are read, to the same numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.history.positions import only_positions_read

TOKENS, LENGTH, WIDTH = 7, 5, 8


class Reader(nn.Module):
    """Attention, a residual layer, a sum of two heads; the outcome is read in several ways."""

    def __init__(self, read, *, act=F.relu, causal=False):
        super().__init__()
        self.embedding, self.places = (
            nn.Embedding(TOKENS, WIDTH),
            nn.Parameter(torch.randn(LENGTH, 1)),
        )
        self.inner, self.outer = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.head, self.read, self.act, self.causal = nn.Linear(WIDTH, TOKENS), read, act, causal
        self.rows = []
        for layer in (self.inner, self.outer, self.head):
            layer.register_forward_hook(lambda _, inputs, __: self.rows.append(inputs[0].shape[1]))

    def forward(self, tokens, twice=False):
        stream = self.embedding(tokens) * self.places
        mixed = F.scaled_dot_product_attention(stream, stream, stream, is_causal=self.causal)
        stream = torch.stack([mixed, mixed + stream]).sum(dim=0)
        stream = stream + self.outer(self.act(self.inner(stream)))
        return self.read(self.head(stream))


READS = {
    "last": (lambda x: x[:, -1, :].log_softmax(-1), [1, 1, 1]),
    "first two": (lambda x: x[:, :2].flatten(1), [2, 2, 2]),
    "middle twice": (lambda x: x[:, 2] * x[:, 2].sigmoid(), [1, 1, 1]),
    "two places": (lambda x: x[:, 0] + x[:, -1], [LENGTH] * 3),
    "all": (lambda x: x.sum(1), [LENGTH] * 3),
    "from a computed place": (lambda x: x[:, x.shape[1] - 1 :].flatten(1), [LENGTH] * 3),
    "an axis of its own": (lambda x: x[:, True].flatten(1), [LENGTH] * 3),
    "a column": (lambda x: x[:, :, 0], [LENGTH] * 3),
}


def both(model):
    tokens = torch.randint(0, TOKENS, (6, LENGTH))
    found = only_positions_read(model, tokens[:2])
    outcomes = []
    for each in (model, found):
        model.rows.clear()
        outputs = each(tokens)
        torch.manual_seed(1)
        used = list(model.parameters())
        outcomes.append(
            [outputs, *torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), used)]
        )
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)
    return found


@pytest.mark.parametrize("name", READS)
def test_what_is_not_read_is_not_computed(name):
    torch.manual_seed(0)
    read, rows = READS[name]
    model = Reader(read).double()
    found = both(model)
    assert model.rows == rows
    assert (found is model) == (rows[0] == LENGTH)


@pytest.mark.parametrize("options", [{"act": nn.ReLU(inplace=True)}, {"causal": True}])
def test_what_is_not_known_to_keep_positions_apart_is_computed_everywhere(options):
    torch.manual_seed(0)
    model = Reader(READS["last"][0], **options).double()
    both(model)
    assert model.rows[:1] == [LENGTH if "act" in options else 1]
    assert model.rows[1:] == [1, 1]


def test_other_readers_of_a_layer_keep_its_positions():
    torch.manual_seed(0)
    model = Reader(lambda x: x[:, -1] + x.mean(1)).double()
    both(model)
    assert model.rows == [LENGTH] * 3


class Branching(nn.Module):
    """What a tracer cannot follow."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x)[:, -1] if x.sum() > 0 else self.head(x)[:, 0]


@pytest.mark.parametrize("inputs", [torch.ones(2, 4, 3), {"x": torch.ones(2, 4, 3)}])
def test_a_model_that_cannot_be_traced_stays_as_it_is(inputs, capfd):
    model = Branching() if isinstance(inputs, torch.Tensor) else nn.Sequential(nn.Linear(3, 2))
    assert only_positions_read(model, inputs) is model
    assert capfd.readouterr().err == ""
