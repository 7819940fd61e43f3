"""Slices of parameters: components of any shape, and what every component comes down to.

A :class:`SliceGroup` is one component made of slices of any parameters: a whole block, or whatever
a user names. :class:`Channels` is what ablation works on: one axis of one parameter, and which of
its channels belong to which component.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import nn

from coarlib.errors import ComponentError

_TEXT = re.compile(r"^(?P<path>[\w.]+?)(?:\[(?P<place>[\d:,\s]+)\])?$")


@dataclass(frozen=True)
class ParameterSlice:
    """Consecutive channels of one axis of a parameter, or of two.

    Attributes
    ----------
    path : str
        ``"layer1.0.conv1.weight"``.
    axis : int
    start : int
    stop : int or None
        The channel after the last one; None takes all from ``start``.
    also : (axis, start, stop), optional
        Of these, only what lies there along another axis too.
    """

    path: str
    axis: int = 0
    start: int = 0
    stop: int | None = None
    also: tuple[int, int, int | None] | None = None

    @classmethod
    def parse(cls, text: str) -> ParameterSlice:
        """Read ``"path"``, ``"path[3]"``, ``"path[:, 3:5]"`` or ``"path[2, :, 5]"``.

        Raises
        ------
        ComponentError
            If the text is none of these.
        """
        found = _TEXT.match(text.strip())
        places = [part.strip() for part in (found["place"] or ":").split(",")] if found else []
        chosen = [(axis, place) for axis, place in enumerate(places) if place != ":"]
        if found is None or len(chosen) > 2:
            raise ComponentError(
                f"{text!r} is no slice of a parameter: give path, path[3], path[0:4] or, for "
                "other axes, path[:, 3:5] or path[2, :, 5]; two axes at most"
            )
        spans = [(axis, *_span(text, place)) for axis, place in chosen] or [(0, 0, None)]
        return cls(found["path"], *spans[0], spans[1] if len(spans) > 1 else None)

    @property
    def spans(self) -> list[tuple[int, int, int | None]]:
        """(axis, start, stop) of each axis."""
        return [(self.axis, self.start, self.stop), *([self.also] if self.also else [])]


def _span(text: str, place: str) -> tuple[int, int | None]:
    first, colon, last = place.partition(":")
    if any(part and not part.isdigit() for part in (first, last)) or not place:
        raise ComponentError(f"{text!r}: {place!r} is no index or range such as 0:4")
    start = int(first or 0)
    return start, (int(last) if last else None) if colon else start + 1


@dataclass(frozen=True)
class SliceGroup:
    """One component made of slices of one or several parameters.

    Attributes
    ----------
    module : str
        What it is called: the path of a block, or the user's name.
    kind : str
        ``"block"``, ``"expert"``, ``"hidden_unit"``, ``"group"`` or ``"slices"``.
    slices : tuple of ParameterSlice
    """

    module: str
    kind: str
    slices: tuple[ParameterSlice, ...]
    units = 1

    @property
    def path(self) -> str:
        """Name of the component."""
        return self.module

    @property
    def axis(self) -> str:
        """What the table says instead of an axis."""
        return "-"

    def unit_name(self, unit: int) -> str:
        """Name its only unit."""
        return self.module


@dataclass
class Channels:
    """The channels along axes of a parameter, and the components that they belong to.

    Attributes
    ----------
    module, parameter : str
        Where the parameter is.
    axes : tuple of int
        One axis, or two, whose channels are numbered with the second running fastest.
    groups : int
        As in :class:`~coarlib.ablation.components.ComponentGroup`.
    kind : str
    count : int
        Channels C along the axes.
    component, channel : int64 [K]
        Pairs: this channel belongs to that component. A channel may belong to several; it is kept
        while all of them are.
    """

    module: str
    parameter: str
    axes: tuple[int, ...]
    groups: int
    kind: str
    count: int
    component: torch.Tensor
    channel: torch.Tensor

    @property
    def path(self) -> str:
        """Full name of the parameter."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter

    @property
    def axis(self) -> int:
        """The axis, or the first of two."""
        return self.axes[0]

    def kept(self, mask: torch.Tensor) -> torch.Tensor:
        """Return which channels a mask (bool [N] on the CPU, True = kept) keeps, bool [C]."""
        kept = torch.ones(self.count, dtype=torch.bool)
        kept[self.channel[~mask[self.component]]] = False
        return kept

    def add(self, component: torch.Tensor, channel: torch.Tensor) -> None:
        """Let further channels belong to further components."""
        self.component = torch.cat([self.component, component])
        self.channel = torch.cat([self.channel, channel])

    def entries(self, kept: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Spread channels [C] over the parameter: broadcastable to ``shape``."""
        view = [1] * len(shape)
        if self.groups == 1:
            for axis in self.axes:
                view[axis] = shape[axis]
            return kept.reshape(view)
        blocks = kept.reshape(self.groups, 1, shape[1])
        blocks = blocks.expand(self.groups, shape[0] // self.groups, shape[1])
        return blocks.reshape(shape[0], shape[1], *view[2:])

    def sum_by_component(self, values: torch.Tensor, sums: torch.Tensor) -> None:
        """Add values of channels [T, C] to sums of components [T, N]."""
        index = self.component.to(sums.device)
        sums.index_add_(1, index, values[:, self.channel.to(values.device)].to(sums))


def channels_of_slice(model: nn.Module, piece: ParameterSlice, index: int, kind: str) -> Channels:
    """Return the channels of a slice, all belonging to component ``index``.

    Raises
    ------
    ComponentError
        If the model has no such parameter, axis or channels.
    """
    try:
        parameter = model.get_parameter(piece.path)
    except AttributeError as error:
        raise ComponentError(f"the model has no parameter {piece.path}") from error
    found = [_channels_along(parameter, piece.path, *span) for span in sorted(piece.spans)]
    channel = found[0]
    for (axis, *_), inner in zip(sorted(piece.spans)[1:], found[1:], strict=True):
        channel = (channel[:, None] * parameter.shape[axis] + inner).reshape(-1)
    axes = tuple(axis for axis, *_ in sorted(piece.spans))
    count = math.prod(parameter.shape[axis] for axis in axes)
    module, _, name = piece.path.rpartition(".")
    component = torch.full_like(channel, index)
    return Channels(module, name, axes, 1, kind, count, component, channel)


def _channels_along(
    parameter: torch.Tensor, path: str, axis: int, start: int, stop: int | None
) -> torch.Tensor:
    length = parameter.shape[axis] if axis < parameter.ndim else 0
    stop = length if stop is None else stop
    if not 0 <= start < stop <= length:
        raise ComponentError(
            f"{path} has shape {tuple(parameter.shape)}, which has no channels {start} to {stop} "
            f"(exclusive) along axis {axis}"
        )
    return torch.arange(start, stop)


def slice_components(slices: dict[str, list[str]]) -> list[SliceGroup]:
    """Name components by slices of parameters.

    Parameters
    ----------
    slices : dict of name to texts
        ``{"early": ["conv1.weight[0:4]", "fc.weight[:, 3]"]}``; each name is one component. What a
        text may be: :meth:`ParameterSlice.parse`.

    Returns
    -------
    list of SliceGroup
        For :class:`~coarlib.ablation.components.ComponentSet`, alone or beside other groups.

    Raises
    ------
    ComponentError
        If a text is no slice, or a name has none.
    """
    for name, texts in slices.items():
        if not texts or isinstance(texts, str):
            raise ComponentError(f"component {name} needs a list of slices, such as ['w[0:4]']")
    return [
        SliceGroup(name, "slices", tuple(ParameterSlice.parse(text) for text in texts))
        for name, texts in slices.items()
    ]
