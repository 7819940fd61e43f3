"""The modular-addition set-up: tokens a, +, b, =; log-probabilities of the sum."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from coarlib.errors import SetupError
from coarlib.history import TrainingLoss
from coarlib.history.setups import HistorySetup, Pairs


class OneLayerTransformer(nn.Module):
    """One attention layer and one MLP, read at the last token.

    As in ExPLAIND's experiment: no positions (a sum does not depend on the order), one projection
    a head that is query, key and value at once, no normalisation, and the stream after attention
    does not contain the embedding.

    Parameters
    ----------
    tokens : int
        Size of the vocabulary, of inputs and of outputs.
    width, heads, hidden : int
    """

    def __init__(self, tokens: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(tokens, width)
        self.encoder = nn.Linear(width, width, bias=False)
        self.decoder = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.unembedding = nn.Linear(width, tokens, bias=False)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities ``[T, tokens]`` of sequences ``[T, length]``."""
        stream = self.embedding(sequences) * self.embedding.embedding_dim**0.5
        count, length, width = stream.shape
        size = width // self.heads
        encoded = self.encoder(stream).reshape(count, length, self.heads, size)
        scores = torch.einsum("bhd,bthd->bht", encoded[:, -1], encoded) * size**-0.5
        mixed = torch.einsum("bht,bthd->bhd", scores.softmax(-1), encoded)
        attended = self.decoder(mixed.reshape(count, width))
        output = attended + F.relu(self.down(F.relu(self.up(attended))))
        return self.unembedding(output).log_softmax(-1)


class ModularAddition(HistorySetup):
    """Unordered pairs, some for training and some held out; full batches by AdamW.

    The defaults are those of ExPLAIND's training script, which stops when both accuracies are 1.

    Parameters
    ----------
    modulus : int
        p; tokens p and p + 1 are the plus and the equals sign.
    num_train, num_test : int
        Of the p (p + 1) / 2 pairs.
    num_steps : int
    batch_size : int, optional
        All training pairs if not given.
    width, heads, hidden : int
    lr, weight_decay : float

    Raises
    ------
    SetupError
        If there are not so many pairs.
    """

    def __init__(
        self,
        modulus: int = 113,
        num_train: int = 4000,
        num_test: int = 2000,
        num_steps: int = 2000,
        batch_size: int | None = None,
        *,
        width: int = 64,
        heads: int = 4,
        hidden: int = 512,
        lr: float = 1e-3,
        weight_decay: float = 4.0,
    ) -> None:
        self.modulus, self.num_steps = modulus, num_steps
        self.batch_size = batch_size or num_train
        self._shape = (width, heads, hidden)
        self._lr, self._decay = lr, weight_decay
        low, high = torch.triu_indices(modulus, modulus)
        if num_train + num_test > len(low):
            raise SetupError(
                f"modulus {modulus} has {len(low)} unordered pairs, fewer than the "
                f"{num_train} + {num_test} asked for; lower num_train or num_test"
            )
        plus, equals = torch.full_like(low, modulus), torch.full_like(low, modulus + 1)
        order = torch.randperm(len(low), generator=torch.Generator().manual_seed(0))
        sequences = torch.stack([high, plus, low, equals], 1)[order]
        sums = (low + high)[order] % modulus
        train, test = slice(num_train), slice(num_train, num_train + num_test)
        self._train, self._test = (sequences[train], sums[train]), (sequences[test], sums[test])

    def model(self) -> nn.Module:
        """Build the transformer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return OneLayerTransformer(self.modulus + 2, *self._shape)

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

    def loss(self) -> TrainingLoss:
        """Negative log-likelihood."""
        return TrainingLoss(F.nll_loss)
