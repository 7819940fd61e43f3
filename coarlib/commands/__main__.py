"""coar: counterfactual attribution at scale.

    coar COMMAND [ARGUMENTS]
    coar COMMAND --help         what a command does and takes, with an example

First steps: coar demo, or coar new_setup NAME. The same as python -m coarlib COMMAND.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from coarlib import __version__, setups
from coarlib.commands.arguments import run
from coarlib.errors import ArgumentError, nearest

HERE = Path(__file__).parent
OTHER_NAMES = {"learning_curve": "power"}
ROOMS = {
    "start": "Start",
    "store": "Make and keep rows",
    "fit": "Turn rows into attributions",
    "judge": "Judge attributions, and use them",
    "history": "Explain by the training history",
    "cluster": "Run it on a cluster",
}


def modules() -> dict[str, Path]:
    """Return {command: its file}: those of the rooms here, and the set-ups' ``make_dataset``."""
    rooms = HERE.glob("*/*.py")
    found = {path.stem: path for path in rooms if "\nCOMMAND = " in path.read_text("utf-8")}
    for name, folder in setups.names(setups.WORKER_FILE).items():
        found[f"{name}.make_dataset"] = folder / setups.WORKER_FILE
    return dict(sorted(found.items()))


def commands() -> dict[str, str]:
    """Return {command: first line of its docstring}, found without importing its module."""
    return {name: _first_line(path) for name, path in modules().items()}


def _first_line(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n")[0]


def overview() -> str:
    """Return what ``coar --help`` shows: the commands by room, a line each."""
    lines = [__doc__ or ""]
    files = modules()
    width = max(len(name) for name in files if "." not in name)
    for room, title in ROOMS.items():
        lines.append(title)
        for name, path in files.items():
            if path.parent.name == room and path.is_relative_to(HERE):
                line = re.split(r": |; | \(|, for ", _first_line(path).rstrip("."))[0]
                lines.append(f"  {name:<{width}}  {line}")
        lines.append("")
    known = ", ".join(name.split(".")[0] for name in files if "." in name)
    return "\n".join([*lines, f"Set-ups (--task NAME): {known}"])


def main(argv: Sequence[str] | None = None) -> None:
    """Dispatch ``coar COMMAND …`` to the module of that name."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
    elif words[0] in ("-V", "--version"):
        print(f"coarlib {__version__}")
    else:
        run(_dispatch, words)


def load(name: str) -> ModuleType:
    """Import the module of a command; ArgumentError if there is none of that name."""
    name, known = OTHER_NAMES.get(name, name), modules()
    if name not in known:
        raise ArgumentError(f"unknown command {name}{nearest(name, known)} (coar --help lists all)")
    room = "estimate" if "." in name else f"coarlib.commands.{known[name].parent.name}"
    return importlib.import_module(f"{room}.{name}")


def _dispatch(argv: Sequence[str] | None) -> None:
    name, *rest = list(argv or [])
    load(name).main(rest)


if __name__ == "__main__":
    main()
