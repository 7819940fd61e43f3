"""A network whose true component attributions are known in closed form.

logits = V (m ⊙ W x): each hidden unit j adds V[c, j] (W x)_j to logit c if it is kept, so the
attribution of unit j to the target logit of example x is exactly V[y, j] (W x)_j.
"""

from typing import ClassVar

import torch
from torch import nn

from coarlib import outputs
from coarlib.ablation import ComponentTask, Examples, find_components

UNITS, CLASSES, EXAMPLES = 12, 3, 5


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.hidden = nn.Linear(4, UNITS, bias=False)
        self.head = nn.Linear(UNITS, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, inputs):
        return self.head(self.hidden(inputs))


def examples():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(EXAMPLES, 4, generator=generator), torch.arange(EXAMPLES) % CLASSES


def true_attributions():
    """What a fit must find, float64 [UNITS, EXAMPLES]."""
    model = TwoLayers().double()
    inputs, targets = examples()
    return (model.head.weight[targets].T * model.hidden(inputs.double()).T).detach().numpy()


class GoldenTask(ComponentTask):
    outputs: ClassVar = {"test_margins": outputs.logit}

    def model(self):
        return TwoLayers()

    def components(self, model):
        return find_components(model, ["linear_row"], include=["hidden"])

    def examples(self):
        inputs, targets = examples()
        return Examples((inputs,), targets)
