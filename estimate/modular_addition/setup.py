"""The modular-addition set-up: tokens a, b, =; log-probabilities of the sum."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from coarlib.path_kernel import TrainingLoss
from coarlib.path_kernel.setups import HistorySetup, Pairs


class OneLayerTransformer(nn.Module):
    """One attention layer and one MLP without layer norm, read at the last of three tokens.

    Parameters
    ----------
    modulus : int
        p; token p is the equals sign.
    width, heads, hidden : int
    """

    def __init__(self, modulus: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(modulus + 1, width)
        self.position = nn.Parameter(torch.randn(3, width) / width**0.5)
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.unembedding = nn.Linear(width, modulus, bias=False)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities [T, p] of tokens [T, 3]."""
        stream = self.embedding(tokens) + self.position
        count, length, width = stream.shape
        split = (count, length, self.heads, width // self.heads)
        last = self.query(stream[:, -1]).reshape(count, self.heads, -1)
        keys, values = (layer(stream).reshape(split) for layer in (self.key, self.value))
        scores = torch.einsum("bhd,bthd->bht", last, keys) * (width // self.heads) ** -0.5
        mixed = torch.einsum("bht,bthd->bhd", scores.softmax(-1), values)
        stream = stream[:, -1] + self.out(mixed.reshape(count, width))
        stream = stream + self.down(F.relu(self.up(stream)))
        return self.unembedding(stream).log_softmax(-1)


class ModularAddition(HistorySetup):
    """All ordered pairs, a share of them for training.

    Parameters
    ----------
    modulus : int
        113 as in the publications; smaller ones generalise within minutes on a CPU.
    train_share : float
    num_steps, batch_size, width, heads, hidden : int
    lr, weight_decay : float
    """

    def __init__(
        self,
        modulus: int = 113,
        train_share: float = 0.4,
        num_steps: int = 8000,
        batch_size: int = 1024,
        *,
        width: int = 128,
        heads: int = 4,
        hidden: int = 512,
        lr: float = 1e-3,
        weight_decay: float = 1.0,
    ) -> None:
        self.modulus, self.num_steps, self.batch_size = modulus, num_steps, batch_size
        self._shape = (width, heads, hidden)
        self._lr, self._decay = lr, weight_decay
        tokens = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
        equals = torch.full((len(tokens), 1), modulus)
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
        tokens = torch.cat([tokens, equals], 1)[order]
        targets = tokens[:, :2].sum(1) % modulus
        cut = int(train_share * len(tokens))
        self._train, self._test = (tokens[:cut], targets[:cut]), (tokens[cut:], targets[cut:])

    def model(self) -> nn.Module:
        """Build the transformer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return OneLayerTransformer(self.modulus, *self._shape)

    def train_samples(self) -> Pairs:
        """Return the pairs to train on."""
        return self._train

    def test_samples(self) -> Pairs:
        """Return the pairs held out."""
        return self._test

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with betas .9 and .98."""
        return torch.optim.AdamW(
            model.parameters(), self._lr, betas=(0.9, 0.98), weight_decay=self._decay
        )

    def learning_rate(self, step: int) -> float:
        """Warm up over ten updates."""
        return self._lr * min(1.0, (step + 1) / 10)

    def loss(self) -> TrainingLoss:
        """Negative log-likelihood."""
        return TrainingLoss(F.nll_loss)
