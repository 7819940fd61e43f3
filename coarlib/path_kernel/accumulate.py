"""Adding up contributions by training sample, component, parameter tensor and step window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation import ComponentSet, SliceGroup
from coarlib.errors import HistoryError, nearest
from coarlib.history.parameters import ParameterTable, Tensors

AXES = ("sample", "component", "tensor", "step")
SOURCES = ("data", "weight_decay", "regulariser", "prior_momentum")
"""Where a change of the output comes from; only ``data`` has a sample axis."""

Axes = tuple[str, ...]


def parse_axes(by: Sequence[str | Sequence[str]], has_components: bool) -> tuple[Axes, ...]:
    """Check what to accumulate by: names of :data:`AXES`, or pairs of them.

    Raises
    ------
    HistoryError
    """
    found = []
    for item in by:
        axes = (item,) if isinstance(item, str) else tuple(item)
        for axis in axes:
            if axis not in AXES:
                raise HistoryError(f"cannot accumulate by {axis}{nearest(axis, AXES)}")
        if not 1 <= len(set(axes)) == len(axes) <= 2 or {"component", "tensor"} <= set(axes):
            raise HistoryError(
                f"cannot accumulate by {' and '.join(axes)}: give one axis or a pair of two, and "
                "components already lie within tensors"
            )
        if "component" in axes and not has_components:
            raise HistoryError("accumulating by component needs components=")
        found.append(tuple(sorted(axes, key=AXES.index)))
    return tuple(dict.fromkeys(found))


class ComponentColumns:
    """Which entries of each tracked tensor belong to which component.

    Parameters
    ----------
    components : ComponentSet
    table : ParameterTable
        The tracked tensors; components of others count as zero.
    """

    def __init__(self, components: ComponentSet, table: ParameterTable) -> None:
        self.count = len(components)
        self.groups: list[tuple[str, int, int, torch.Tensor]] = []
        shapes = dict(zip(table.names, table.shapes, strict=True))
        first = 0
        for group in components:
            if isinstance(group, SliceGroup):
                raise HistoryError(
                    f"component {group.path} lies in several tensors; the path kernel takes units "
                    "of one tensor, as find_components finds them by every kind but block"
                )
            if group.path in shapes:
                shape = shapes[group.path]
                units = group.kept_entries(torch.arange(group.units), shape).expand(shape)
                order = units.reshape(-1).argsort(stable=True)
                self.groups.append((group.path, first, group.units, order))
            first += group.units

    def products(self, query: Tensors, gradient: Tensors) -> torch.Tensor:
        """Return inner products ``[q, b, U]`` of ``query`` [q, p] and ``gradient`` [b, p]."""
        some_q, some_g = next(iter(query.values())), next(iter(gradient.values()))
        total = some_q.new_zeros(len(some_q), len(some_g), self.count)
        for name, first, units, order in self.groups:
            if name not in gradient:
                continue
            columns = order.to(some_q.device)
            left = query[name][:, columns].reshape(len(some_q), units, -1)
            right = gradient[name][:, columns].reshape(len(some_g), units, -1)
            total[:, :, first : first + units] += torch.einsum("qur,bur->qbu", left, right)
        return total


@dataclass(frozen=True)
class Breakdown:
    """Sizes and helpers that all accumulators of an explanation share.

    Attributes
    ----------
    axes : tuple of tuples
        What is accumulated.
    tensors : tuple of str
        Tracked tensors.
    num_samples : int
    first, last, window : int
        Updates, and how many make one step window.
    components : ComponentColumns or None
    """

    axes: tuple[Axes, ...]
    tensors: tuple[str, ...]
    num_samples: int
    first: int
    last: int
    window: int
    components: ComponentColumns | None

    @property
    def num_windows(self) -> int:
        """How many step windows there are."""
        return max(1, -(-(self.last - self.first) // self.window))

    @property
    def by_sample(self) -> bool:
        """Whether gradients of single samples are needed."""
        return any("sample" in axes for axes in self.axes)

    def size(self, axis: str) -> int:
        """Length of an axis."""
        return {
            "sample": self.num_samples,
            "component": 0 if self.components is None else self.components.count,
            "tensor": len(self.tensors),
            "step": self.num_windows,
        }[axis]

    def axes_of(self, source: str) -> dict[str, Axes]:
        """Return the axes of every array that a source is accumulated in, by array name."""
        with_samples = source == "data"
        owns = [tuple(a for a in axes if with_samples or a != "sample") for axes in self.axes]
        return {array_name(source, own): own for own in owns if own}

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Return the shape behind [n, K] of every array to accumulate, by name."""
        each = [self.axes_of(source) for source in SOURCES]
        return {n: tuple(map(self.size, own)) for some in each for n, own in some.items()}


def array_name(source: str, axes: Sequence[str]) -> str:
    """Return the name of an array, such as ``data_by_sample_step``."""
    return f"{source}_by_{'_'.join(axes)}" if axes else source


class Accumulators:
    """Sums for one tile of test points.

    Parameters
    ----------
    breakdown : Breakdown
    shape : (n, K)
    like : tensor
        Gives dtype and device.
    """

    def __init__(self, breakdown: Breakdown, shape: tuple[int, int], like: torch.Tensor) -> None:
        self.breakdown, self._shape = breakdown, shape
        self.arrays = {
            name: like.new_zeros(shape[0] * shape[1], *rest)
            for name, rest in breakdown.arrays().items()
        }
        self.totals = {s: like.new_zeros(shape[0] * shape[1]).double() for s in SOURCES}

    def add(
        self,
        source: str,
        step: int,
        query: Tensors,
        gradient: Tensors,
        samples: NDArray[np.int64] | None = None,
    ) -> None:
        """Add ``-⟨query, gradient⟩``.

        Parameters
        ----------
        source : str
            One of :data:`SOURCES`.
        step : int
            The update that the contribution is counted at.
        query : {name: [n·K, p]}
        gradient : {name: [B, p]}
            Tensors that are missing contribute nothing.
        samples : int64 [B], optional
            Sample numbers of the gradients; none where they are one sum.
        """
        if not gradient:
            return
        if samples is None:
            gradient = _summed(gradient)
        window = (step - self.breakdown.first) // self.breakdown.window
        products: dict[tuple[str, bool], torch.Tensor] = {}

        def product(place: str, each: bool) -> torch.Tensor:
            if (place, each) not in products:
                parts = gradient if each else _summed(gradient)
                products[place, each] = self._product(place, query, parts)
            return products[place, each]

        for name, own in self.breakdown.axes_of(source).items():
            place = next((axis for axis in own if axis in ("tensor", "component")), "")
            target = self.arrays[name]
            target = target.select(-1, window) if "step" in own else target
            if "sample" in own and samples is not None:
                numbers = torch.as_tensor(samples, device=target.device)
                target.index_add_(1, numbers, product(place, True), alpha=-1)
            else:
                target -= product(place, False).squeeze(1)
        done = ("", True) in products
        self.totals[source] -= product("", done).sum(1).double()

    def _product(self, place: str, query: Tensors, gradient: Tensors) -> torch.Tensor:
        """Inner products ``[q, b]``, or ``[q, b, parts]`` by tensor or component."""
        if place == "component" and self.breakdown.components is not None:
            return self.breakdown.components.products(query, gradient)
        some_q, some_g = next(iter(query.values())), next(iter(gradient.values()))
        total = some_q.new_zeros(len(some_q), len(some_g))
        if place == "":
            for name, values in gradient.items():
                total.addmm_(query[name], values.T)
            return total
        blocks = [query[n] @ gradient[n].T if n in gradient else total for n in query]
        return torch.stack(blocks, -1)

    def rows(self) -> dict[str, torch.Tensor]:
        """Return all arrays ``[n, K, …]``."""
        found = {
            name: values.reshape(*self._shape, *values.shape[1:])
            for name, values in self.arrays.items()
        }
        return {**found, **{s: v.reshape(self._shape) for s, v in self.totals.items()}}


def _summed(gradient: Tensors) -> Tensors:
    return {name: values.sum(0, keepdim=True) for name, values in gradient.items()}
