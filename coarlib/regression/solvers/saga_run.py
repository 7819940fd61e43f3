"""The state of SAGA runs, epoch by epoch, over mini-batches from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

__all__ = ["Batch", "SagaRun", "safe_step", "standardise"]

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # masks [B, M], outputs [B, T], idx [B]
POWER_STEPS = 12
BATCHES_MEASURED = 4


def standardise(masks: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return (masks - mean) / scale, zero where a feature never varies, float32."""
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (masks.float() - mean) / safe * (scale > 0)


def safe_step(batches: Iterator[Batch], mean: torch.Tensor, scale: torch.Tensor) -> float:
    """Step size 1 / (3 L), L the largest curvature of a mini-batch (measured on a few)."""
    largest = 1.0
    generator = torch.Generator().manual_seed(0)
    for number, (masks, _, _) in enumerate(batches):
        z = standardise(masks, mean, scale)
        vector = torch.randn(z.shape[1], generator=generator).to(z.device)
        size = 0.0
        for _ in range(POWER_STEPS):
            vector = z.T @ (z @ (vector / vector.norm().clamp_min(1e-30))) / len(z)
            size = float(vector.norm())
        largest = max(largest, size)
        if number + 1 >= BATCHES_MEASURED:
            break
    return 1 / (3 * 1.1 * largest)


@dataclass
class SagaRun:
    """State of a SAGA run over T targets.

    Parameters
    ----------
    weight : float32 [M, T], bias : float32 [T]
        Standardised units; changed in place.
    num_rows : int
        n, the rows of an epoch.
    table_rows : int
        One more than the largest row index.
    mean, scale : float32 [M]
        Of the masks.
    lr : float
    update_bias : bool
    """

    weight: torch.Tensor
    bias: torch.Tensor
    num_rows: int
    table_rows: int
    mean: torch.Tensor
    scale: torch.Tensor
    lr: float
    update_bias: bool = True
    epochs: int = 0
    columns: torch.Tensor = field(init=False)
    table: torch.Tensor = field(init=False)
    slope: torch.Tensor = field(init=False)
    level: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        device, targets = self.weight.device, self.weight.shape[1]
        self.columns = torch.arange(targets, device=device)
        self.table = torch.zeros(self.table_rows, targets, device=device)
        self.slope = torch.zeros_like(self.weight)
        self.level = torch.zeros_like(self.bias)

    def epoch(
        self, batches: Iterator[Batch], lam: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass over the rows at λ [T]; returns each target's largest squared step and MSE."""
        before = self.weight.clone()
        squares = torch.zeros_like(self.bias)
        for masks, outputs, rows in batches:
            z = standardise(masks, self.mean, self.scale)
            y = outputs[:, self.columns].float()
            residual = z @ self.weight + self.bias - y
            change = residual - self.table[rows]
            step = z.T @ change
            size = len(z)
            self.weight -= self.lr * (step / size + self.slope)
            if self.update_bias:
                self.bias -= self.lr * (change.sum(0) / size + self.level)
            self.slope += step / self.num_rows
            self.level += change.sum(0) / self.num_rows
            self.table[rows] = residual
            threshold = self.lr * lam
            self.weight.copy_(self.weight.sign() * (self.weight.abs() - threshold).clamp_min(0))
            squares += residual.square().sum(0)
        self.epochs += 1
        return (self.weight - before).square().amax(0), squares / self.num_rows

    def drop(self, finished: torch.Tensor) -> None:
        """Go on without the targets that are finished, bool [T]."""
        keep = ~finished
        self.columns = self.columns[keep]
        for name in ("weight", "table", "slope"):
            setattr(self, name, getattr(self, name)[:, keep].contiguous())
        for name in ("bias", "level"):
            setattr(self, name, getattr(self, name)[keep].contiguous())

    def error(self, batches: Iterator[Batch]) -> torch.Tensor:
        """Mean squared error on other rows, [T]."""
        total, count = torch.zeros_like(self.bias), 0
        for masks, outputs, _ in batches:
            z = standardise(masks, self.mean, self.scale)
            predicted = z @ self.weight + self.bias
            total += (predicted - outputs[:, self.columns].float()).square().sum(0)
            count += len(z)
        return total / max(count, 1)
