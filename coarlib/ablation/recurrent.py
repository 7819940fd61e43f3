"""Hidden units of recurrent layers: what makes one unit, taken away in every gate.

Unit j of a layer and direction is made by row j of each gate's block in ``weight_ih``,
``weight_hh`` and their biases (gates: 1 in an RNN, 3 in a GRU, 4 in an LSTM). All of these rows are
the component, biases included. With them at zero and the usual initial state of zeros, the unit's
hidden state (and an LSTM's cell) is 0 at every step: tanh(0) = 0 is what enters it, so whatever
reads it reads nothing. Where an LSTM projects its states (``proj_size``), units are those before
the projection.
"""

from __future__ import annotations

import re

from torch import nn

from coarlib.ablation.slices import ParameterSlice, SliceGroup

_MADE_BY = re.compile(r"(weight|bias)_(ih|hh)(?P<layer>_l\d+(_reverse)?)?")


def hidden_units(name: str, module: nn.Module) -> list[SliceGroup]:
    """Return the hidden units of a recurrent layer or cell, layer by layer.

    They are called ``lstm.hidden_l0[3]``, ``lstm.hidden_l0_reverse[3]``, or ``cell.hidden[3]``.
    """
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return []
    layers: dict[str, list[str]] = {}
    for key, _ in module.named_parameters(recurse=False):
        if (found := _MADE_BY.fullmatch(key)) is not None:
            layers.setdefault(found["layer"] or "", []).append(key)
    at, size = f"{name}." if name else "", module.hidden_size
    return [
        SliceGroup(f"{at}hidden{layer}[{unit}]", "hidden_unit", _rows(module, at, keys, unit, size))
        for layer, keys in layers.items()
        for unit in range(size)
    ]


def _rows(
    module: nn.Module, at: str, keys: list[str], unit: int, size: int
) -> tuple[ParameterSlice, ...]:
    return tuple(
        ParameterSlice(at + key, 0, row, row + 1)
        for key in keys
        for row in range(unit, len(module.get_parameter(key)), size)
    )
