"""Wrapped, reparametrised, compiled and quantised models: the same rows, or one sentence."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from coarlib.ablation import ablate, find_components
from coarlib.ablation.plain import plain
from coarlib.errors import ComponentError

CPU = torch.device("cpu")
INPUTS = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 5
WAYS = ["zero_weights", "mean"]


def network():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def rows(model, ablate_by="zero_weights", kinds=("conv_filter", "linear_row"), inputs=INPUTS):
    task = ablate(model, (inputs, LABELS), kinds, ablate=ablate_by)
    task.prepare(CPU)
    masks = np.random.default_rng(0).random((4, task.num_features)) < 0.7
    return task.rows(np.arange(4), masks)["test_margins"]


def compiled(run, in_place):
    model = network()
    fast = model if in_place else torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
    if run:
        with torch.no_grad():
            fast(INPUTS)
    return fast


def compiled_in_part():
    model = network()
    model[0] = torch.compile(model[0], backend="eager")
    with torch.no_grad():
        model(INPUTS)
    return model


def normed(normalise):
    model = network()
    normalise(model[0][0])
    return model


WRAPPED = {
    "DataParallel": lambda: nn.DataParallel(network()),
    "compiled": lambda: compiled(False, False),
    "compiled and run": lambda: compiled(True, False),
    "compiled in place": lambda: compiled(True, True),
    "compiled in part": compiled_in_part,
    "weight norm": lambda: normed(nn.utils.parametrizations.weight_norm),
    "weight norm by hooks": lambda: normed(nn.utils.weight_norm),
    "pruned": lambda: normed(
        lambda m: nn.utils.prune.custom_from_mask(m, "weight", torch.ones_like(m.weight))
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ablate_by", WAYS)
@pytest.mark.parametrize("name", WRAPPED)
def test_rows_are_those_of_the_plain_model(name, ablate_by):
    expected = rows(network(), ablate_by)
    model = WRAPPED[name]()
    torch.testing.assert_close(rows(model, ablate_by), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # and the model still is what it was
        torch.testing.assert_close(model(INPUTS), network()(INPUTS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["spectral_norm", "orthogonal"])
def test_parametrisations_that_change_weights_are_merged(kind):
    model = network()
    getattr(nn.utils.parametrizations, kind)(model[3])
    model.eval()
    merged = plain(model)
    assert type(merged[3]) is nn.Linear and plain(merged) is merged
    with torch.no_grad():
        torch.testing.assert_close(merged(INPUTS), model(INPUTS))
    assert nn.utils.parametrize.is_parametrized(model[3])
    assert torch.isfinite(rows(model)).all()


class Adapter(nn.Module):
    """A low-rank adapter with the names that PEFT gives its parts."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_a = nn.Linear(layer.in_features, 2, bias=False)
        self.lora_b = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_b(self.lora_a(x))

    def merge(self):
        self.base_layer.weight.data += self.lora_b.weight @ self.lora_a.weight


def test_adapters_are_merged():
    model = network()
    model[3] = Adapter(model[3])
    merged = copy.deepcopy(model)
    merged[3].merge()
    merged[3] = merged[3].base_layer
    torch.testing.assert_close(rows(model), rows(merged), atol=1e-5, rtol=1e-5)
    assert isinstance(model[3], Adapter)


def test_quantised_layers_are_named():
    model = network()
    model[3].weight = nn.Parameter(torch.zeros(160, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ComponentError, match="quantised weights"):
        find_components(model, "linear_row")
    with pytest.raises(ComponentError, match="such as 3, are quantised"):
        find_components(model, "mlp_neuron")


def test_weights_of_five_axes_and_state_of_its_own():
    class Volumes(nn.Sequential):
        def get_extra_state(self):
            return {"version": 2}

        def set_extra_state(self, state):
            pass

    torch.manual_seed(0)
    head = (nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5))
    model = Volumes(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), *head).eval()
    inputs = torch.randn(6, 3, 4, 4, 4)
    for ablate_by in WAYS:
        found = rows(model, ablate_by, "conv_filter", inputs)
        assert found.shape == (4, 6) and found.std(0).min() > 1e-4


def test_a_model_that_runs_on_copies_of_its_weights_is_refused():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.twin = [copy.deepcopy(self.net)]

        def forward(self, x):
            return self.twin[0](x)

    with pytest.raises(ComponentError, match="changes no output"):
        rows(Frozen())
