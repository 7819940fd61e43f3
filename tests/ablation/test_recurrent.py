import numpy as np
import pytest
import torch
from tiny_models import randomised
from torch import nn

from coarlib.ablation import ablate, find_components
from coarlib.errors import ComponentError

CELLS = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
TARGETS = torch.arange(4) % 3


def sequences(inputs=5):
    return torch.randn(4, 6, inputs, generator=torch.Generator().manual_seed(1))


class Reader(nn.Module):
    """Reads the last state of a recurrent layer, or of a cell that it calls itself."""

    def __init__(self, recurrent, width):
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(width, 3)

    def forward(self, x):
        if isinstance(self.recurrent, nn.RNNBase):
            return self.head(self.recurrent(x)[0][:, -1])
        state = None
        for step in x.unbind(1):
            state = self.recurrent(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def with_states_masked(layer, x, kept):
    """Run a layer step by step by torch's cells, each hidden state times its part of the mask."""
    masks = iter(kept.reshape(-1, layer.hidden_size).float())
    weights = dict(layer.named_parameters())
    for level in range(layer.num_layers):
        ways = []
        for way in [""] + ["_reverse"] * layer.bidirectional:
            cell, mask = CELLS[type(layer)](x.shape[2], layer.hidden_size), next(masks)
            for key, parameter in cell.named_parameters():
                parameter.data.copy_(weights[f"{key}_l{level}{way}"])
            state, states = None, []
            for step in x.flip(1).unbind(1) if way else x.unbind(1):
                state = cell(step, state)
                state = (state[0] * mask, state[1]) if isinstance(state, tuple) else state * mask
                states.append(state[0] if isinstance(state, tuple) else state)
            ways.append(torch.stack(states[::-1] if way else states, 1))
        x = torch.cat(ways, 2)
    return x


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("layers, both", [(1, False), (2, True)])
def test_rows_are_those_of_hidden_states_set_to_zero(kind, layers, both):
    layer = kind(5, 4, layers, bidirectional=both, batch_first=True)
    model = randomised(Reader(layer, 4 * (1 + both)))
    components = find_components(model, "hidden_unit")
    assert len(components) == 4 * layers * (1 + both)
    assert components.name(1) == "recurrent.hidden_l0[1]"
    assert not both or components.name(15) == "recurrent.hidden_l1_reverse[3]"
    task = ablate(model, (sequences(), TARGETS), components)
    task.prepare(torch.device("cpu"))
    masks = np.random.default_rng(0).random((5, len(components))) < 0.6
    rows = task.rows(np.arange(5), masks)["test_margins"]
    for mask, row in zip(torch.from_numpy(masks), rows, strict=True):
        with torch.no_grad():
            logits = model.head(with_states_masked(layer, sequences(), mask)[:, -1])
        expected = task.outputs["test_margins"](logits, TARGETS)
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CELLS.values())
def test_units_of_cells_are_silent(kind):
    cell = randomised(kind(5, 4))
    components = find_components(cell, "hidden_unit")
    assert len(components) == 4 and components.name(2) == "hidden[2]"
    task = ablate(Reader(cell, 4), (sequences(), TARGETS), lambda model: components_of(model))
    task.prepare(torch.device("cpu"))
    silent = task.rows(np.arange(1), np.zeros((1, 4), bool))["test_margins"]
    bias = task.plain_model().head.bias.detach().expand(4, 3)
    torch.testing.assert_close(silent[0], task.outputs["test_margins"](bias, TARGETS))


def components_of(model):
    return find_components(model, "hidden_unit")


def test_units_before_a_projection():
    layer = nn.LSTM(5, 4, proj_size=2, batch_first=True)
    model = randomised(Reader(layer, 2))
    task = ablate(model, (sequences(), TARGETS), "hidden_unit")
    task.prepare(torch.device("cpu"))
    mask = np.array([[True, False, True, True]])
    found = task.rows(np.arange(1), mask)["test_margins"][0]
    layer.weight_hr_l0.data[:, 1] = 0  # what reads the unit
    with torch.no_grad():
        expected = task.outputs["test_margins"](model(sequences()), TARGETS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_ways_that_need_activations_refuse_and_a_wrong_kind_names_the_right_one():
    model = randomised(Reader(nn.GRU(5, 4, batch_first=True), 4))
    with pytest.raises(ComponentError, match=r"cannot be reached by hooks"):
        task = ablate(model, (sequences(), TARGETS), "hidden_unit", ablate="mean")
        task.prepare(torch.device("cpu"))
    with pytest.raises(ComponentError, match=r"kind mlp_neuron.*; it has .*hidden_unit"):
        find_components(model, "mlp_neuron")
