"""A person's own solver or way of ablating, from ``file.py:Class`` or ``package.module:Class``.

Only what somebody types (or writes into a configuration file) is loaded: settings that a store
recorded never come here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from coarlib import setups
from coarlib.errors import CoarlibError, RegressionError, TaskError

if TYPE_CHECKING:
    from coarlib.regression import solvers


def solver_name(name: str) -> str:
    """Return the name of a solver, loaded and registered first where ``name`` says a class.

    Raises
    ------
    RegressionError
        If there is no such class, it is no solver, or it has another one's name.
    """
    if not _says_a_class(name):
        return name
    from coarlib.regression import solvers  # torch, which most commands do without

    kind: type[solvers.Solver] = _load(name, solvers.Solver, RegressionError)
    is_one = is_dataclass(kind) and hasattr(kind, "name")
    known = solvers.SOLVERS.get(getattr(kind, "name", ""))
    if not is_one:
        raise RegressionError(f"{name} must be a frozen dataclass with a name")
    if known is not None and known.__qualname__ != kind.__qualname__:
        raise RegressionError(f"{name} must not be called {kind.name}: another solver is")
    return solvers.register(kind).name


def own_ablation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's settings, with ``ablate`` a name where it said a class.

    Raises
    ------
    TaskError
        If there is no such class, it is no way of ablating, or it has another one's name.
    """
    ablate = settings.get("ablate")
    if not isinstance(ablate, str) or not _says_a_class(ablate):
        return dict(settings)
    from coarlib import ablation

    kind = _load(ablate, ablation.Ablation, TaskError)
    return {**settings, "ablate": ablation.register(kind).name}


def _says_a_class(name: str) -> bool:
    return ":" in name or name.endswith(".py")


def _load(name: str, kind: type[Any], error: type[CoarlibError]) -> Any:
    found = setups.find(name, kind, error=error)
    if not inspect.isclass(found) or not issubclass(found, kind) or inspect.isabstract(found):
        raise error(f"{name} is no {kind.__name__} class that can be used")
    return found
