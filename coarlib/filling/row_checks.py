"""What a task may return, and how it becomes what a store holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import TaskError, first_line
from coarlib.store.spec import ArraySpec
from coarlib.task import Task, own_code


def rows_of_task(task: Task, rows: NDArray[np.int64], masks: NDArray[np.bool_]) -> dict[Any, Any]:
    """Ask a task for rows.

    Raises
    ------
    TaskError
        If its code fails, or it returns no mapping.
    """
    name = type(task).__name__
    with own_code(f"rows() of {name}"):
        returned = task.rows(rows, masks)
    if not isinstance(returned, Mapping):
        raise TaskError(
            f"rows() of {name} must return a mapping of array names to values, not "
            f"{type(returned).__name__}"
        )
    return dict(returned)


def check_rows(
    schema: Mapping[str, ArraySpec], rows: NDArray[np.int64], returned: Mapping[str, Any]
) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
    """Check what a task returned and cast it to the stored dtypes.

    Returns
    -------
    (arrays, problems)
        ``arrays`` [B, *shape] in stored dtypes; ``problems`` maps a row index to what is not
        finite in it.

    Raises
    ------
    TaskError
        For a missing or unknown key, a wrong shape, or a dtype that cannot be stored.
    """
    for key in schema:
        if key not in returned:
            raise TaskError(
                f"the task returned no {key!r} (it returned {_names(returned)}); "
                f"the store's schema has {', '.join(schema)}"
            )
    for key in returned:
        if key not in schema:
            raise TaskError(
                f"the task returned {key!r}, which is not in the store's schema "
                f"({', '.join(schema)})"
            )
    arrays: dict[str, NDArray[Any]] = {}
    problems: dict[int, str] = {}
    for key, spec in schema.items():
        value = _as_numpy(key, returned[key])
        wanted = (len(rows), *spec.shape)
        if value.shape != wanted:
            raise TaskError(
                f"the task returned {key!r} with shape {list(value.shape)} for "
                f"{len(rows)} rows, the schema asks for {list(wanted)}"
            )
        arrays[key] = _cast(key, value, spec.dtype)
        for position, problem in _non_finite(key, value, arrays[key]).items():
            problems.setdefault(int(rows[position]), f"row {rows[position]}: {problem}")
    return arrays, problems


def _names(returned: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, returned)) or "nothing"


def _as_numpy(key: str, value: Any) -> NDArray[Any]:
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # NumPy has no such dtype
                value = value.float()
            return np.asarray(value.numpy())
        return np.asarray(value)
    except Exception as error:  # torch and NumPy raise many kinds for what is no plain array
        raise TaskError(
            f"the task returned {key!r} as something that is no array: {first_line(error)}"
        ) from error


def _cast(key: str, value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if not np.can_cast(value.dtype, dtype, casting="same_kind"):
        raise TaskError(
            f"the task returned {key!r} as {value.dtype.name}, which does not fit the schema's "
            f"{dtype.name}"
        )
    with np.errstate(over="ignore"):  # overflow is reported row by row
        return np.ascontiguousarray(value, dtype=dtype)


def _non_finite(key: str, value: NDArray[Any], stored: NDArray[Any]) -> dict[int, str]:
    """Say for each row position what is not finite in ``stored``."""
    if stored.dtype.kind != "f":
        return {}
    finite = np.isfinite(stored).reshape(len(stored), -1)
    found = {}
    for position in np.flatnonzero(~finite.all(axis=1)):
        original = value[position].reshape(-1)
        where = np.flatnonzero(~finite[position])
        first = original[where[0]]
        if np.isfinite(first):
            what = (
                f"{first:.6g} overflows {stored.dtype.name} "
                f"(largest {np.finfo(stored.dtype).max:.6g}); use float32 in the spec"
            )
        else:
            shape = stored.shape[1:]
            place = np.unravel_index(where[0], shape) if len(shape) > 1 else ()
            what = f"{first} at " + (str([*map(int, place)]) if place else f"target {where[0]}")
        found[int(position)] = f"{key} has {len(where)} values that are not finite, first {what}"
    return found
