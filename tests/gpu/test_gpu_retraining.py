"""Models trained together on a GPU are those trained alone there, in every way, recorded or not."""

import numpy as np
import pytest
import torch

from coarlib.retraining import Trainer
from coarlib.retraining.layers import WAYS
from coarlib.retraining.stack import TORCH_FUNC, Stack
from estimate.cifar_resnet.model import CifarResNet

ON_ACCELERATORS = [name for name, way in WAYS.items() if not way.batch_last]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("replayed", [True, False])
@pytest.mark.parametrize("way", [*ON_ACCELERATORS, TORCH_FUNC])
def test_residual_networks_in_float64(way, replayed):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (80,), generator=generator)
    recipe = Trainer(lambda: CifarResNet((4, 8), (1, 1), classes=4).double(), inputs, labels, 3, 16)
    device = torch.device("cuda")
    subsets = [np.random.default_rng(i).choice(80, 60, replace=False) for i in range(4)]
    stack = Stack(recipe, subsets, range(4), device, way, replayed)
    for _ in stack.steps():
        pass
    assert bool(stack._gradients._known) == replayed
    for seed, made in enumerate(stack.unstacked()):
        expected = recipe.train(subsets[seed], seed, device).state_dict()
        for name, value in made.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=1e-7, rtol=1e-7)
