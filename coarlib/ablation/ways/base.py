"""What a way of ablating is: it puts a mask into a model, and takes it out again.

A new way is one file with one class and one call of :func:`register`; every set-up takes it by
its name (``ablate="…"``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarlib.ablation.activations import Site
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.examples import Examples
from coarlib.errors import TaskError, nearest


@dataclass(frozen=True)
class Context:
    """What a way of ablating is made from.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode; what is ablated.
    components : ComponentSet
    scale : float
        What remains of ablated weights, for ways that scale them.
    seed : int
        Of ways that draw.
    num_examples : int
        T.
    batches : callable
        Gives all examples, batch by batch, as the model takes them.
    run : callable
        Runs the model on a batch.
    """

    model: nn.Module
    components: ComponentSet
    scale: float = 0.5
    seed: int = 0
    num_examples: int = 0
    batches: Callable[[], Iterable[Examples]] = tuple
    run: Callable[[Examples], object] = lambda batch: None


class Ablation(ABC):
    """A way of ablating components of one model, used as a context manager.

    Class attributes
    ----------------
    name : str
        What settings call it.
    on_weights : bool
        It changes parameters in place, not activations. Then batch norms may be folded into
        convolutions and the model compiled, since neither changes what it means.

    Subclasses that are registered take a :class:`Context` as their only argument.
    """

    name: ClassVar[str] = ""
    on_weights: ClassVar[bool] = True
    components: ComponentSet

    def __init__(self, context: Context) -> None:
        self.components = context.components

    @abstractmethod
    def __enter__(self) -> Self:
        """Get hold of the model."""

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the model as it was found."""

    @abstractmethod
    def apply(self, mask: torch.Tensor) -> None:
        """Leave exactly the components kept that the mask (bool [N], True = kept) keeps."""

    def spread(self, masks: torch.Tensor) -> torch.Tensor:
        """Return what :meth:`set` takes for masks bool [B, N], row by row; all at once is cheap."""
        return masks

    def set(self, state: torch.Tensor) -> None:
        """Do as :meth:`apply` with one row of what :meth:`spread` returned."""
        self.apply(state)

    @abstractmethod
    def restore(self) -> None:
        """Keep every component."""

    @abstractmethod
    def replaced(self, site: Site, index: int, activation: torch.Tensor) -> torch.Tensor:
        """Return what an activation becomes where it is ablated (broadcastable to it).

        Parameters
        ----------
        site : Site
        index : int
            Of the site among those of the components.
        activation : Tensor [T, …]
        """

    def partners(self, row: int, where: slice) -> NDArray[np.int64] | None:
        """Say which examples have to run beside those of a batch; None if none.

        Parameters
        ----------
        row : int
            Which row of the store is measured.
        where : slice
            The examples of the batch, among all.

        Returns
        -------
        int64 [len(batch)] or None
            The model then runs on the batch followed by these.
        """
        return None


ABLATIONS: dict[str, type[Ablation]] = {}
"""Every registered way of ablating, by name."""

_ALIASES = {"zero": "zero_activation"}


def register(kind: type[Ablation]) -> type[Ablation]:
    """Make a way of ablating known by its ``name``; usable as a decorator.

    Raises
    ------
    TaskError
        If it has no name, or another class has that one.
    """
    known = ABLATIONS.get(kind.name)
    if not kind.name or (known is not None and known.__qualname__ != kind.__qualname__):
        raise TaskError(
            f"{kind.__qualname__} cannot be registered as a way of ablating named {kind.name!r}: "
            "a name of its own is needed"
        )
    ABLATIONS[kind.name] = kind
    return kind


def ablation_named(name: str) -> type[Ablation]:
    """Return the way of ablating called ``name``; TaskError lists the known ones."""
    name = _ALIASES.get(name, name)
    if name not in ABLATIONS:
        raise TaskError(
            f"ablate must be {', '.join(ABLATIONS)}, not {name}{nearest(str(name), ABLATIONS)}"
        )
    return ABLATIONS[name]
