"""The digits set-up for histories: seconds to train, seconds to explain."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from coarlib.history import TrainingLoss
from coarlib.history.setups import HistorySetup, Pairs


class DigitsPath(HistorySetup):
    """Scikit-learn's digits, 64-hidden-10 with tanh, SGD with momentum.

    Parameters
    ----------
    num_train : int
        Training digits; the last 300 of the shuffled set are held out.
    num_steps, batch_size, hidden : int
    lr, momentum, weight_decay : float
    """

    def __init__(
        self,
        num_train: int = 300,
        num_steps: int = 150,
        batch_size: int = 32,
        *,
        hidden: int = 32,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
    ) -> None:
        from sklearn.datasets import load_digits

        self.num_steps, self.batch_size, self._hidden = num_steps, batch_size, hidden
        self._lr, self._momentum, self._decay = lr, momentum, weight_decay
        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
        images = torch.from_numpy(data.data).float()[order] / 16
        labels = torch.from_numpy(data.target).long()[order]
        self._train = images[:num_train], labels[:num_train]
        self._test = images[-300:], labels[-300:]

    def model(self) -> nn.Module:
        """Build the network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            size = self._hidden
            return nn.Sequential(nn.Linear(64, size), nn.Tanh(), nn.Linear(size, 10))

    def train_samples(self) -> Pairs:
        """Return training digits [T, 64] in 0 … 1 and labels."""
        return self._train

    def test_samples(self) -> Pairs:
        """Return held-out digits."""
        return self._test

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD with momentum and L2 decay."""
        return torch.optim.SGD(
            model.parameters(), self._lr, momentum=self._momentum, weight_decay=self._decay
        )

    def loss(self) -> TrainingLoss:
        """Cross-entropy of logits."""
        return TrainingLoss(F.cross_entropy)
