"""Attributions as tables: the strongest features of a target, and frames of pandas and xarray."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.ablation.components import ComponentSet
from coarlib.display import bars, card, effects, shortened, text_table
from coarlib.errors import ComponentError, SetupError

Z_95 = 1.96
LONGEST_NAME = 30


@dataclass(frozen=True, repr=False)
class TopFeatures:
    """The features with the largest effect on one target, strongest first.

    Attributes
    ----------
    target : int
    index : int64 [K]
        Positions in a mask.
    names : tuple of str
    effect : float64 [K]
        Change of the output when the feature is kept rather than ablated.
    error : float64 [K] or None
        Standard errors, where the solver has any.
    """

    target: int
    index: NDArray[np.int64]
    names: tuple[str, ...]
    effect: NDArray[np.float64]
    error: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        said = effects(self.effect, self._reach)
        if self._reach is None:
            rows = [[name, one] for name, (one, _) in zip(self.names, said, strict=True)]
            return text_table([f"target {self.target}", "effect"], rows)
        both = [[name, *pair] for name, pair in zip(self.names, said, strict=True)]
        return text_table([f"target {self.target}", "effect", "± 95%"], both)

    def _repr_html_(self) -> str:
        names = [shortened(name, LONGEST_NAME) for name in self.names]
        return card(f"effect on target {self.target}", bars(names, self.effect, self._reach))

    @property
    def _reach(self) -> NDArray[np.float64] | None:
        """Half-widths of 95% intervals, float64 [K]."""
        return None if self.error is None else Z_95 * self.error


def feature_names(components: Sequence[Mapping[str, Any]] | None, count: int) -> list[str]:
    """Return what each of ``count`` mask entries is; numbered where nothing says it.

    Parameters
    ----------
    components : sequence of mapping, optional
        What :meth:`~coarlib.ablation.ComponentSet.to_json` gave.

    Raises
    ------
    ComponentError
        If they are not ``count`` components.
    """
    if components is None:
        return [f"feature {at}" for at in range(count)]
    found = ComponentSet.from_json(components)
    if len(found) != count:
        raise ComponentError(f"{count} features cannot be named by {len(found)} components")
    return list(found.names)


def layers_of(components: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Return which layer each mask entry belongs to, int64 [N]; whole blocks are one layer."""
    groups = ComponentSet.from_json(components).groups
    names = [group.path if group.units > 1 else group.kind for group in groups]
    index = [names.index(name) for name in names]
    return np.repeat(index, [group.units for group in groups])


def to_dataframe(weight: NDArray[Any], names: Sequence[str]) -> Any:
    """Return weights [N, T] as a pandas DataFrame; SetupError if pandas is not installed."""
    pandas = _optional("pandas")
    rows = pandas.Index(names, name="feature")
    columns = pandas.RangeIndex(weight.shape[1], name="target")
    return pandas.DataFrame(weight, index=rows, columns=columns)


def to_xarray(arrays: Mapping[str, NDArray[Any] | None], names: Sequence[str]) -> Any:
    """Return arrays [N, T] and [T] as an xarray Dataset; SetupError if xarray is missing."""
    xarray = _optional("xarray")
    count = next(array.shape[-1] for array in arrays.values() if array is not None)
    values = {
        key: (("feature", "target")[-array.ndim :], array)
        for key, array in arrays.items()
        if array is not None
    }
    return xarray.Dataset(values, {"feature": list(names), "target": np.arange(count)})


def _optional(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SetupError(
            f"this needs {name}; install it with: pip install 'coarlib[frames]'"
        ) from error
