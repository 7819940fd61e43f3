"""Component sets: which slices of a model's parameters one mask entry stands for.

A component is one *unit* of a :class:`ComponentGroup`: a slice of one parameter along one axis,
such as a filter of a convolution (axis 0 of its weight) or an attention head (``head_dim`` columns
of the output projection). A :class:`ComponentSet` numbers the units of its groups 0 … N-1 in
order; that number is the position in a mask row and in an attribution vector, so it is stable for
a given model and selection and can be written out and read back.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from coarlib.ablation.plain import unwrapped
from coarlib.ablation.slices import Channels, ParameterSlice, SliceGroup, channels_of_slice
from coarlib.display import bars, card
from coarlib.errors import ComponentError, nearest

SHOWN_GROUPS = 12


@dataclass(frozen=True)
class ComponentGroup:
    """The components that one parameter of one module holds.

    Attributes
    ----------
    module : str
        Path of the module, as ``named_modules`` gives it.
    parameter : str
        Name of the parameter within the module, such as ``"weight"``.
    kind : str
        What a unit is: ``"conv_filter"``, ``"linear_row"``, ``"attention_head"`` …
    axis : int
        The axis of the parameter along which units lie.
    units : int
        How many components there are.
    width : int
        Consecutive slices along ``axis`` that make one unit (``head_dim`` for heads, else 1).
    groups : int
        For grouped transposed convolutions, whose filters lie in ``groups`` blocks of axis 0.
    inner : (axis, length), optional
        A second axis: units lie along both, this one running fastest (neurons of experts).
    """

    module: str
    parameter: str
    kind: str
    axis: int
    units: int
    width: int = 1
    groups: int = 1
    inner: tuple[int, int] | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """The axis, or both."""
        return (self.axis,) if self.inner is None else (self.axis, self.inner[0])

    @property
    def path(self) -> str:
        """Full name of the parameter, such as ``"layer1.0.conv1.weight"``."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter

    def unit_name(self, unit: int) -> str:
        """Name a unit by the slice of the parameter that it is, such as ``"fc.weight[:, 3]"``."""
        if self.groups > 1:  # a filter lies in one block of axis 0, which is no plain slice
            return f"{self.path}[filter {unit}]"
        if self.inner is not None:
            places = dict(zip(self.axes, divmod(unit, self.inner[1]), strict=True))
            marks = [str(places.get(axis, ":")) for axis in range(1 + max(self.axes))]
        elif self.width == 1:
            marks = [":"] * self.axis + [str(unit)]
        else:
            marks = [":"] * self.axis + [f"{unit * self.width}:{(unit + 1) * self.width}"]
        return f"{self.path}[{', '.join(marks)}]"

    def kept_entries(self, kept: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Spread a mask of units over the parameter.

        Parameters
        ----------
        kept : bool [units]
        shape : sequence of int
            The parameter's shape.

        Returns
        -------
        torch.Tensor
            bool, broadcastable to ``shape``; False where an ablated unit's weights lie.
        """
        entries = kept.repeat_interleave(self.width) if self.width > 1 else kept
        return self.channels(0).entries(entries, torch.Size(shape))

    def channels(self, first: int) -> Channels:
        """Return the channels of the units, which are components ``first`` and following."""
        count = self.units * self.width
        component = first + torch.arange(self.units).repeat_interleave(self.width)
        place = (self.module, self.parameter, self.axes, self.groups, self.kind)
        return Channels(*place, count, component, torch.arange(count))


Group = ComponentGroup | SliceGroup


class ComponentSet:
    """An ordered set of components; index i is bit i of a mask.

    Parameters
    ----------
    groups : sequence of ComponentGroup or SliceGroup

    Raises
    ------
    ComponentError
        If there is no component, or two groups hold the same slices of one parameter.

    Notes
    -----
    :func:`coarlib.ablation.find_components` builds one from a model.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        if not sum(group.units for group in groups):
            raise ComponentError("the selection holds no component")
        seen: set[tuple[str, tuple[int, ...] | str]] = set()
        for group in groups:
            place = group.axes if isinstance(group, ComponentGroup) else group.kind
            if (group.path, place) in seen:
                raise ComponentError(
                    f"components of {group.path} along axis {group.axis} are selected twice"
                )
            seen.add((group.path, place))
        self.groups = tuple(groups)
        self._ends = list(itertools.accumulate(group.units for group in groups))

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComponentSet) and self.groups == other.groups

    def __hash__(self) -> int:
        return hash(self.groups)

    def __add__(self, other: ComponentSet) -> ComponentSet:
        return ComponentSet(self.groups + other.groups)

    def __repr__(self) -> str:
        kinds = sorted({group.kind for group in self.groups})
        return f"ComponentSet({len(self)} components, {', '.join(kinds)})"

    def _repr_html_(self) -> str:
        counts: Counter[str] = Counter()
        for group in self.groups:
            counts[group.path] += group.units
        shown = dict(counts.most_common(SHOWN_GROUPS))
        rest = len(counts) - len(shown)
        text = f"{self!r}" + (f"\nthe largest {len(shown)} of {len(counts)} groups:" * (rest > 0))
        return card(text, bars([f"{path}: {n}" for path, n in shown.items()], [*shown.values()]))

    @property
    def sizes(self) -> list[int]:
        """Number of components of each group, in order."""
        return [group.units for group in self.groups]

    def locate(self, index: int) -> tuple[Group, int]:
        """Return the group and the unit within it of component ``index``.

        Raises
        ------
        ComponentError
            If there is no such component.
        """
        if not 0 <= index < len(self):
            raise ComponentError(f"component {index} does not exist: there are {len(self)}")
        at = bisect.bisect_right(self._ends, index)
        return self.groups[at], index - self._ends[at] + self.groups[at].units

    def name(self, index: int) -> str:
        """Return component ``index`` as text, such as ``"layer1.0.conv1.weight[7]"``.

        No two components of a set have one name, whatever their kinds: a name is the slice of the
        parameter that the component is, as :meth:`~coarlib.ablation.slices.ParameterSlice.parse`
        reads it, or what a block or a user's component is called.

        Raises
        ------
        ComponentError
            If there is no such component.
        """
        self.locate(index)
        return self.names[index]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every component, in order."""
        kinds = [group.kind for group in self.groups for _ in range(group.units)]
        names = [group.unit_name(unit) for group in self.groups for unit in range(group.units)]
        # A user may call a component as another one is called already.
        for further in (kinds, range(len(names))):
            counts = Counter(names)
            if len(counts) == len(names):
                break
            names = [
                name if counts[name] == 1 else f"{name} ({more})"
                for name, more in zip(names, further, strict=True)
            ]
        return tuple(names)

    def indices(self, path: str, kind: str | None = None) -> range:
        """Return the indices of the components of a parameter or of a module.

        Parameters
        ----------
        path : str
            ``"layer1.0.conv1"`` or ``"layer1.0.conv1.weight"``.
        kind : str, optional
            Needed where components of several kinds lie there.

        Raises
        ------
        ComponentError
            If no group has that name (the message names the nearest one), or several have.
        """
        found = [
            (group, range(end - group.units, end))
            for group, end in zip(self.groups, self._ends, strict=True)
            if path in (group.path, group.module) and kind in (None, group.kind)
        ]
        if len(found) > 1:
            places = ", ".join(f"{group.path} ({group.kind})" for group, _ in found)
            raise ComponentError(f"components at {path} are several: {places}; give path and kind")
        if found:
            return found[0][1]
        known = {name for group in self.groups for name in (group.module, group.path)}
        what = "components" if kind is None else f"components of kind {kind}"
        raise ComponentError(f"no {what} at {path}{nearest(path, known)}")

    def index(self, path: str, unit: int, kind: str | None = None) -> int:
        """Return the index of a unit of a module or parameter (the inverse of :meth:`locate`)."""
        found = self.indices(path, kind)
        if not 0 <= unit < len(found):
            raise ComponentError(f"{path} has {len(found)} components, so [{unit}] does not exist")
        return found[unit]

    def check_masks(self, masks: np.ndarray | torch.Tensor) -> None:
        """Refuse masks whose width is not the number of components.

        Raises
        ------
        ComponentError
        """
        if masks.ndim != 2 or masks.shape[1] != len(self):
            raise ComponentError(
                f"masks of shape {tuple(masks.shape)} do not fit {len(self)} components"
            )

    def channels(self, model: nn.Module) -> list[Channels]:
        """Return the axes of parameters that the components lie along, each once.

        Raises
        ------
        ComponentError
            If the model lacks a parameter, or its shape does not hold the components.
        """
        model = unwrapped(model)
        found: dict[tuple[str, tuple[int, ...], int], Channels] = {}
        for group, end in zip(self.groups, self._ends, strict=True):
            if isinstance(group, ComponentGroup):
                parts = [_checked(model, group).channels(end - group.units)]
            else:
                parts = [channels_of_slice(model, x, end - 1, group.kind) for x in group.slices]
            for part in parts:
                key = (part.path, part.axes, part.groups)
                if key in found:
                    found[key].add(part.component, part.channel)
                else:
                    found[key] = part
        return list(found.values())

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameter of each of :meth:`channels`; errors as there."""
        model = unwrapped(model)
        return [model.get_parameter(part.path) for part in self.channels(model)]

    def to_json(self) -> list[dict[str, Any]]:
        """Return a JSON-compatible description that :meth:`from_json` reads."""
        return [_to_json(group) for group in self.groups]

    @classmethod
    def from_json(cls, groups: Sequence[Mapping[str, Any]]) -> ComponentSet:
        """Read what :meth:`to_json` gave.

        Raises
        ------
        ComponentError
            If an entry is not a component group.
        """
        try:
            return cls([_from_json(group) for group in groups])
        except TypeError as error:
            raise ComponentError(f"not a description of components: {error}") from error

    def table(self) -> str:
        """Return one line a group: index range, parameter, axis, kind, number of components."""
        rows = [("components", "parameter", "axis", "kind", "count")]
        for group, end in zip(self.groups, self._ends, strict=True):
            span = f"{end - group.units}-{end - 1}"
            rows.append((span, group.path, str(group.axis), group.kind, str(group.units)))
        rows.append(("total", "", "", "", str(len(self))))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def _to_json(group: Group) -> dict[str, Any]:
    """Return a group's fields, without those that tables of earlier stores do not have."""
    found = {key: value for key, value in asdict(group).items() if (key, value) != ("inner", None)}
    for piece in found.get("slices", ()):
        if piece["also"] is None:
            del piece["also"]
    return found


def _from_json(group: Mapping[str, Any]) -> Group:
    if "slices" not in group:
        inner = group.get("inner")
        return ComponentGroup(**{**group, "inner": tuple(inner) if inner else None})
    pieces = tuple(
        ParameterSlice(**{**piece, "also": tuple(piece["also"]) if piece.get("also") else None})
        for piece in group["slices"]
    )
    return SliceGroup(**{**group, "slices": pieces})


def _checked(model: nn.Module, group: ComponentGroup) -> ComponentGroup:
    """Refuse a group whose parameter the model lacks, or has in another shape."""
    try:
        parameter = model.get_parameter(group.path)
    except AttributeError as error:
        raise ComponentError(f"the model has no parameter {group.path}") from error
    shape = tuple(parameter.shape)
    if not parameter.is_floating_point():
        raise ComponentError(
            f"{group.path} holds quantised weights ({parameter.dtype}), which cannot be ablated; "
            "load the model in floating point"
        )
    held = math.prod(shape[axis] for axis in group.axes if axis < len(shape))
    if held * group.groups != group.units * group.width:
        raise ComponentError(
            f"{group.path} has shape {shape}, which does not hold "
            f"{group.units} components along axis {group.axis}"
        )
    return group
