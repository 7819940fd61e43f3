"""Adding up contributions by training sample, component, parameter tensor and step window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation import ComponentSet, SliceGroup
from coarlib.errors import HistoryError, nearest
from coarlib.history.factors import Gradients
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
    for item in (by,) if isinstance(by, str) else by:
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

    def products(self, query: Tensors, gradient: Mapping[str, Gradients]) -> torch.Tensor:
        """Return inner products ``[Z, Q, B, U]`` of ``query`` [Z, Q, p] and ``gradient``."""
        total: torch.Tensor | None = None
        for name, first, units, order in self.groups:
            if name not in gradient:
                continue
            columns = order.to(query[name].device)
            left = query[name][:, :, columns].unflatten(2, (units, -1))
            right = gradient[name].flat()[:, :, columns].unflatten(2, (units, -1))
            met = torch.einsum("zqur,zbur->zqbu", left, right)
            if total is None:
                total = met.new_zeros(*met.shape[:3], self.count)
            total[..., first : first + units] += met
        if total is None:
            met = _inner(query, gradient)
            return met.new_zeros(*met.shape, self.count)
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
        updates: Sequence[int],
        query: Tensors,
        gradient: Mapping[str, Gradients],
        samples: NDArray[np.int64] | None = None,
    ) -> None:
        """Add ``-⟨query, gradient⟩``.

        Parameters
        ----------
        source : str
            One of :data:`SOURCES`.
        updates : Z numbers
            That the contributions are counted at.
        query : {name: [Z, n·K, p]}
        gradient : {name: Gradients [Z, B, p]}
            Tensors that are missing contribute nothing.
        samples : int64 [Z, B], optional
            Sample numbers of the gradients; none where they are to be summed.
        """
        if not gradient:
            return
        if samples is None:
            gradient = _summed(gradient)
        products: dict[tuple[str, bool], torch.Tensor] = {}

        def product(place: str, each: bool) -> torch.Tensor:
            if (place, each) not in products:
                parts = gradient if each else _summed(gradient)
                products[place, each] = self._product(place, query, parts)
            return products[place, each]

        device = next(iter(query.values())).device
        numbers = np.asarray(updates, np.int64) - self.breakdown.first
        windows = torch.as_tensor(numbers // self.breakdown.window, device=device)
        for name, own in self.breakdown.axes_of(source).items():
            place = next((axis for axis in own if axis in ("tensor", "component")), "")
            target = self.arrays[name]
            if "sample" in own and samples is not None:
                where = torch.as_tensor(samples, device=device)
                if "step" in own:
                    where = where * self.breakdown.num_windows + windows[:, None]
                    target = target.flatten(1, 2)
                found = product(place, True).transpose(0, 1).flatten(1, 2)
                target.index_add_(1, where.flatten(), found, alpha=-1)
            elif "step" in own:
                found = product(place, False).squeeze(2).movedim(0, -1)
                target.index_add_(-1, windows, found, alpha=-1)
            else:
                target -= product(place, False).squeeze(2).sum(0)
        done = ("", True) in products
        self.totals[source] -= product("", done).sum((0, 2), dtype=torch.float64)

    def _product(
        self, place: str, query: Tensors, gradient: Mapping[str, Gradients]
    ) -> torch.Tensor:
        """Inner products ``[Z, Q, B]``, or ``[Z, Q, B, parts]`` by tensor or component."""
        if place == "component" and self.breakdown.components is not None:
            return self.breakdown.components.products(query, gradient)
        if place == "":
            return _inner(query, gradient)
        met = {name: values.products(query[name]) for name, values in gradient.items()}
        none = torch.zeros_like(next(iter(met.values())))
        return torch.stack([met.get(name, none) for name in query], -1)

    def rows(self) -> dict[str, torch.Tensor]:
        """Return all arrays ``[n, K, …]``."""
        found = {
            name: values.reshape(*self._shape, *values.shape[1:])
            for name, values in self.arrays.items()
        }
        return {**found, **{s: v.reshape(self._shape) for s, v in self.totals.items()}}


def _inner(query: Tensors, gradient: Mapping[str, Gradients]) -> torch.Tensor:
    parts = [values.products(query[name]) for name, values in gradient.items()]
    return sum(parts[1:], parts[0])


def _summed(gradient: Mapping[str, Gradients]) -> Mapping[str, Gradients]:
    return {name: values.summed() for name, values in gradient.items()}
