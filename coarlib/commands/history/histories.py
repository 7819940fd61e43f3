"""The set-ups that can be trained with a history, by name, and their arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from coarlib.commands.arguments import Param, nearest
from coarlib.errors import ArgumentError
from coarlib.history.setups import HistorySetup
from estimate.cifar2_path.setup import Cifar2
from estimate.digits_path.setup import DigitsPath
from estimate.modular_addition.setup import ModularAddition

SETUPS: dict[str, Callable[..., HistorySetup]] = {
    "modular_addition": ModularAddition,
    "cifar2": Cifar2,
    "digits": DigitsPath,
}
SECTION = {
    "name": Param(str, f"one of {', '.join(SETUPS)}", required=True),
    "options": Param(str, "arguments of the set-up as a JSON object", default="{}"),
    "device": Param(str, "auto, cpu, cuda, cuda:1, mps", default="cpu"),
}


def build(arguments: SimpleNamespace) -> HistorySetup:
    """Build the set-up that ``--setup.name`` and ``--setup.options`` describe.

    Raises
    ------
    ArgumentError
        If there is no such set-up, or it does not take these arguments.
    """
    name = arguments.name
    if name not in SETUPS:
        raise ArgumentError(f"there is no set-up {name}{nearest(name, SETUPS)}")
    try:
        options: Any = json.loads(arguments.options)
        return SETUPS[name](**options)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"--setup.options does not fit the set-up {name}: {error}") from error
