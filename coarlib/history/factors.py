"""Gradients of many rows at many parameters, in full or as the factors of their outer products.

A linear layer's weight has the gradient Σ_t δ_t a_tᵀ, with a its inputs and δ the derivatives of
its outputs at positions t (one, or a token each). As factors it takes out + in numbers a position
instead of out · in, and inner products with other tensors need no more.

Z counts parameters (updates, say), R rows at each (samples, or test points), T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch


class Gradients(Protocol):
    """Gradients of one tensor with p entries, ``[Z, R, p]``."""

    def flat(self) -> torch.Tensor:
        """Return them in full, ``[Z, R, p]``."""

    def summed(self) -> Gradients:
        """Return their sums over rows, ``[Z, 1, p]``."""

    def scaled(self, factors: torch.Tensor) -> Gradients:
        """Return them times ``factors`` [Z]."""

    def part(self, updates: slice) -> Gradients:
        """Return those of some parameters."""

    def products(self, queries: torch.Tensor) -> torch.Tensor:
        """Return inner products with ``queries`` [Z, Q, p], ``[Z, Q, R]``."""


@dataclass(frozen=True)
class Full:
    """Gradients in full, ``values`` [Z, R, p]."""

    values: torch.Tensor

    def flat(self) -> torch.Tensor:
        """Return the values."""
        return self.values

    def summed(self) -> Full:
        """Sum over rows."""
        return Full(self.values.sum(1, keepdim=True))

    def scaled(self, factors: torch.Tensor) -> Full:
        """Multiply each update's."""
        return Full(self.values * factors[:, None, None])

    def part(self, updates: slice) -> Full:
        """Take some updates'."""
        return Full(self.values[updates])

    def products(self, queries: torch.Tensor) -> torch.Tensor:
        """Multiply two matrices an update."""
        return queries @ self.values.transpose(1, 2)


ALL = slice(None)
Runs = Sequence[tuple[slice, slice]]
"""Groups that lie side by side: which of them, and where."""


class Sums(Protocol):
    """Gradients summed over the rows of G groups, ``[G, K, out, in]``; a bias is one column."""

    @property
    def shape(self) -> torch.Size:
        """Return ``[G, K, out, in]``."""

    def write(self, found: torch.Tensor, runs: Runs) -> None:
        """Write ``runs`` of them to ``found`` [P, K, out, in]."""


@dataclass(frozen=True)
class Summed:
    """Sums in full, ``values`` [G, K, out, in]."""

    values: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Return ``[G, K, out, in]``."""
        return self.values.shape

    def write(self, found: torch.Tensor, runs: Runs) -> None:
        """Copy them."""
        for here, there in runs:
            found[there].copy_(self.values[here])


@dataclass(frozen=True)
class Products:
    """Sums as products of ``left`` [G, K, out, C] and ``right`` [G, C, in]."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Return ``[G, K, out, in]``."""
        return torch.Size((*self.left.shape[:3], self.right.shape[2]))

    def write(self, found: torch.Tensor, runs: Runs) -> None:
        """Multiply."""
        left = self.left.flatten(1, 2)
        for here, there in runs:
            torch.bmm(left[here], self.right[here], out=found[there].flatten(1, 2))


@dataclass(frozen=True)
class Added:
    """Sums of ``left`` [G, K, C, width] by ``tokens`` [G, 1, C, 1] of ``count``."""

    left: torch.Tensor
    tokens: torch.Tensor
    count: int

    @property
    def shape(self) -> torch.Size:
        """Return ``[G, K, count, width]``."""
        return torch.Size((*self.left.shape[:2], self.count, self.left.shape[3]))

    def write(self, found: torch.Tensor, runs: Runs) -> None:
        """Add up."""
        tokens = self.tokens.expand(self.left.shape)
        for here, there in runs:
            found[there].zero_().scatter_add_(2, tokens[here], self.left[here])


@dataclass(frozen=True)
class Factored:
    """Gradients Σ_t δ_t a_tᵀ of a linear layer's weight, or of its bias (a is 1).

    Rows may have K outputs each, which share their inputs; a sample's loss is one.

    Attributes
    ----------
    left : [K, Z, R, T, out]
        δ.
    right : [Z, R, T, in] or None
        a; None for a bias.
    """

    left: torch.Tensor
    right: torch.Tensor | None

    def flat(self) -> torch.Tensor:
        """Multiply the factors of every row, ``[Z, R · K, p]``."""
        return _by_update(in_full(self.groups(1), self.left), self.left)

    def summed(self) -> Full:
        """Multiply the factors of all rows at once."""
        right = None if self.right is None else self.right.flatten(1, 2)[:, None]
        return Full(Factored(self.left.flatten(2, 3)[:, :, None], right).flat())

    def scaled(self, factors: torch.Tensor) -> Factored:
        """Scale the left factors."""
        return replace(self, left=self.left * factors[:, None, None, None])

    def part(self, updates: slice) -> Factored:
        """Take some updates'."""
        right = None if self.right is None else self.right[updates]
        return Factored(self.left[:, updates], right)

    def groups(self, nodes: int, which: torch.Tensor | slice = ALL) -> Sums:
        """Return the sums over groups of ``nodes`` rows, of those ``which`` [G]."""
        outputs, updates, rows, _, width = self.left.shape
        left = self.left.reshape(outputs, updates * rows // nodes, -1, width)[:, which]
        if self.right is None:
            return Summed(left.sum(2).permute(1, 0, 2)[..., None])
        right = self.right.reshape(updates * rows // nodes, -1, self.right.shape[3])[which]
        return Products(left.permute(1, 0, 3, 2).contiguous(), right)

    def products(self, queries: torch.Tensor) -> torch.Tensor:
        """Multiply by the inputs first where that writes less than the full gradients."""
        if self.right is None or len(self.left) > 1:
            return Full(self.flat()).products(queries)
        _, updates, rows, positions, width = self.left.shape
        count, entries = queries.shape[1], self.right.shape[3]
        if count * positions >= entries:
            return Full(self.flat()).products(queries)
        inputs = self.right.reshape(updates, rows * positions, entries).transpose(1, 2)
        met = torch.bmm(queries.reshape(updates, count * width, entries), inputs)
        met = met.view(updates, count, width, rows, positions)
        return met.mul_(self.left[0].permute(0, 3, 1, 2).contiguous()[:, None]).sum((2, 4))


@dataclass(frozen=True)
class Looked:
    """Gradients of an embedding with ``count`` entries: δ at the tokens that were looked up.

    Attributes
    ----------
    left : [K, Z, R, T, width]
        δ.
    tokens : int64 [Z, R, T]
    count : int
    """

    left: torch.Tensor
    tokens: torch.Tensor
    count: int

    def flat(self) -> torch.Tensor:
        """Add every row's δ up by token, ``[Z, R · K, p]``."""
        return _by_update(in_full(self.groups(1), self.left), self.left)

    def summed(self) -> Full:
        """Add all rows' δ up by token."""
        left, tokens = self.left.flatten(2, 3)[:, :, None], self.tokens.flatten(1)[:, None]
        return Full(Looked(left, tokens, self.count).flat())

    def scaled(self, factors: torch.Tensor) -> Looked:
        """Scale δ."""
        return replace(self, left=self.left * factors[:, None, None, None])

    def part(self, updates: slice) -> Looked:
        """Take some updates'."""
        return replace(self, left=self.left[:, updates], tokens=self.tokens[updates])

    def groups(self, nodes: int, which: torch.Tensor | slice = ALL) -> Sums:
        """As :meth:`Factored.groups`."""
        outputs, updates, rows, _, width = self.left.shape
        left = self.left.reshape(outputs, updates * rows // nodes, -1, width)[:, which]
        tokens = self.tokens.reshape(updates * rows // nodes, 1, -1, 1)[which]
        return Added(left.transpose(0, 1), tokens, self.count)

    def products(self, queries: torch.Tensor) -> torch.Tensor:
        """Look the queries up where that writes less than the full gradients."""
        _, updates, rows, positions, width = self.left.shape
        count = queries.shape[1]
        if count * positions >= self.count or len(self.left) > 1:
            return Full(self.flat()).products(queries)
        table = queries.view(updates, count, self.count, width)
        tokens = self.tokens.flatten(1)[:, None, :, None].expand(-1, count, -1, width)
        met = table.gather(2, tokens).view(updates, count, rows, positions, width)
        return (met * self.left[0, :, None]).sum((3, 4))


Outer = Factored | Looked


def in_full(sums: Sums, like: torch.Tensor) -> torch.Tensor:
    """Return all of them, ``[G, K, out, in]``."""
    found = like.new_empty(sums.shape)
    sums.write(found, ((ALL, ALL),))
    return found


def _by_update(joined: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Lay out gradients ``[Z · R, K, …]`` as ``[Z, R · K, p]``; ``left`` is [K, Z, R, …]."""
    return joined.reshape(left.shape[1], left.shape[2] * left.shape[0], -1)


def together(parts: Sequence[Outer]) -> Outer:
    """Lay the positions of several calls of one layer end to end."""
    if len(parts) == 1:
        return parts[0]
    first, left = parts[0], torch.cat([part.left for part in parts], 3)
    if isinstance(first, Looked):
        tokens = [part.tokens for part in parts if isinstance(part, Looked)]
        return replace(first, left=left, tokens=torch.cat(tokens, 2))
    right = [p.right for p in parts if isinstance(p, Factored) and p.right is not None]
    return replace(first, left=left, right=torch.cat(right, 2) if right else None)
