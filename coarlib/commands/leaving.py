"""What a command leaves that ended well: its arguments in a file, and the command to run next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coarlib.commands.arguments import Arguments, Command
from coarlib.commands.common import beside
from coarlib.errors import StoreError
from coarlib.report.provenance import read_run
from coarlib.setups import is_shipped
from coarlib.store import Store

ARGUMENTS_FILE = "arguments.yaml"


def keep_arguments(args: Arguments, result: str | Path) -> None:
    """Write the arguments into a result's directory, or beside its file, for ``--config``."""
    path = Path(result)
    args.save(path / ARGUMENTS_FILE if path.is_dir() else path.with_suffix(f".{ARGUMENTS_FILE}"))


def next_step(command: str, *words: object, **options: Any) -> str:
    """Return the line that names the command to run next, as it can be pasted.

    Parameters
    ----------
    command : str
    *words : object
        Positional arguments.
    **options
        Arguments by short name; None, empty ones and flags that are False are left out.
    """
    line = ["coar", command, *(shlex.quote(_no_flag(word)) for word in words)]
    for key, value in options.items():
        if value is None or value is False or value in ({}, ""):
            continue
        if key == "set":
            for name, item in value.items():
                text = item if isinstance(item, str) else json.dumps(item)
                line += ["--set", shlex.quote(f"{name}={text}")]
        else:
            text = ",".join(_words(value)) if isinstance(value, dict) else _no_flag(value)
            line += [f"--{key}", *([] if value is True else [shlex.quote(text)])]
    return f"next: {' '.join(line)}"


def _no_flag(word: object) -> str:
    """Return a word as text; names that begin with a dash would be taken for a flag."""
    text = str(word)
    return f"./{text}" if text.startswith("-") and isinstance(word, str | Path) else text


def again(args: Arguments, command: Command | None = None, **changes: Any) -> str:
    """Return the line that runs a command with the arguments the user gave, but for some.

    Parameters
    ----------
    args : Arguments
    command : Command, optional
        Another one, which takes those of them that it knows.
    **changes
        By short name; None leaves one out.
    """
    command = command or args.command
    given = {key: getattr(args, key) for key in command.own if key in args.given} | changes
    words: list[object] = []
    for key in [key for key in given if key in command.own and command.own[key].positional]:
        value = given.pop(key)
        words += _words(value) if isinstance(value, dict | list) else [value]
    given = {key: "no" if value is False else value for key, value in given.items()}
    return next_step(command.name, *words, **(given | {"dry_run": None}))


def _words(value: dict[str, str] | list[str]) -> list[str]:
    """Write what a repeated argument has become as it was typed: ``PATH`` or ``NAME=PATH``."""
    pairs = value.items() if isinstance(value, dict) else ((one, one) for one in value)
    return [path if name == path else f"{name}={path}" for name, path in pairs]


def after_rows(
    store: Store, task: str | None = None, settings: Mapping[str, Any] | None = None
) -> str:
    """Return the step after rows of a store: to fill what is missing, to fit them, or to look.

    Parameters
    ----------
    store : Store
    task : str, optional
        What fills it, with its ``settings``; by default what the store recorded, if it is one of
        coarlib's own set-ups: a store does not choose what code runs here.
    settings : mapping, optional
    """
    if len(store.completed_rows()) == store.num_models:
        if store.mask_key is None:  # what explains a training history: there is nothing to fit
            written = Path(f"{store.path}.attributions")
            return next_step("report", written if written.exists() else store.path)
        if (fitted := beside(store.path, "attributions")).exists():
            return next_step("report", fitted)
        return next_step("run_regression", store.path, y_name=_name_of_outputs(store))
    if task is None:
        task, settings = _recorded(store)
    return next_step("make_dataset", store.path, task=task, set=dict(settings or {}))


def _recorded(store: Store) -> tuple[str, Mapping[str, Any]]:
    try:
        tasks = read_run(store).tasks
    except StoreError:
        tasks = {}
    for name, origin in reversed(tasks.items()):
        settings = origin.get("settings")
        if is_shipped(name) and isinstance(settings, dict):
            return name, {key: value for key, value in settings.items() if value is not None}
    return "TASK", {}


def _name_of_outputs(store: Store) -> str | None:
    """Name an array of outputs, where the store holds several."""
    if store.spec.output_key is not None:
        return None
    return next((key for key, kept in store.spec.schema.items() if kept.dtype.kind == "f"), None)
