"""Components in groups: first which layers, blocks or sets of heads matter, then which of theirs.

A :class:`Hierarchy` is a component set that knows a parent for every layer of components. Its
coarse set has one component a parent; a refined set has the members of some parents, and the other
parents whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from coarlib.ablation.components import ComponentSet, Group
from coarlib.ablation.slices import ParameterSlice, SliceGroup
from coarlib.errors import ComponentError

__all__ = ["LEVELS", "Hierarchy"]

LEVELS = ("layer", "block")
_NUMBERED = re.compile(r"^(?:.*\.)?\d+(?=\.|$)")  # up to the last number of a path


class Hierarchy(ComponentSet):
    """Components with parents.

    Parameters
    ----------
    components : ComponentSet
    by : str or mapping of str to str
        ``"layer"``: the components of a module belong together, such as the filters of a
        convolution or the heads of an attention. ``"block"``: those of a numbered part,
        ``layer1.0`` or ``model.layers.3``. Or ``{parent: pattern of module paths}``; what no
        pattern fits is grouped by layer.

    Raises
    ------
    ComponentError
        If there is no such level, or a pattern fits nothing.
    """

    def __init__(self, components: ComponentSet, by: str | Mapping[str, str] = "block") -> None:
        super().__init__(components.groups)
        names = [_parent(group, by) for group in self.groups]
        if isinstance(by, Mapping) and (idle := set(by) - set(names)):
            raise ComponentError(f"no component is left for {', '.join(sorted(idle))}")
        self.parents = tuple(dict.fromkeys(names))
        self._members = {
            parent: [group for group, name in zip(self.groups, names, strict=True)
                     if name == parent]
            for parent in self.parents
        }  # fmt: skip
        self.parent: NDArray[np.int64] = np.repeat(
            [self.parents.index(name) for name in names], self.sizes
        )

    def coarse(self) -> ComponentSet:
        """Return one component a parent: all of its members at once."""
        return self.refined(())

    def refined(self, opened: Collection[str]) -> ComponentSet:
        """Return the members of some parents, and the other parents whole.

        Raises
        ------
        ComponentError
            If there is no such parent.
        """
        if unknown := set(opened) - set(self.parents):
            raise ComponentError(f"there is no {', '.join(sorted(unknown))} to open")
        groups: list[Group] = []
        for parent, members in self._members.items():
            groups += members if parent in opened else [_joined(parent, members)]
        return ComponentSet(groups)


def _parent(group: Group, by: str | Mapping[str, str]) -> str:
    module = group.module or group.path
    if isinstance(by, Mapping):
        return next((name for name, part in by.items() if fnmatchcase(module, part)), module)
    if by not in LEVELS:
        raise ComponentError(
            f"components are grouped by {' or '.join(LEVELS)}, or a mapping, not {by}"
        )
    found = _NUMBERED.match(module) if by == "block" else None
    return found[0] if found else module


def _joined(parent: str, members: list[Group]) -> SliceGroup:
    """One component of all units, which fill their parameters."""
    slices: list[ParameterSlice] = []
    for group in members:
        slices += (
            group.slices
            if isinstance(group, SliceGroup)
            else [ParameterSlice(group.path, group.axis)]
        )
    return SliceGroup(parent, "group", tuple(dict.fromkeys(slices)))
