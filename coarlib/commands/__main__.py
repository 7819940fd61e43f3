"""coar: counterfactual attribution at scale.

coar COMMAND [ARGUMENTS]      the same as  python -m coarlib COMMAND [ARGUMENTS]
coar COMMAND --help           what a command does and takes
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from coarlib.commands.arguments import nearest, run
from coarlib.errors import ArgumentError

HERE = Path(__file__).parent
NO_COMMANDS = ("histories", "lds_methods")  # what several commands of a room share
OTHER_NAMES = {"power": "learning_curve"}


def modules() -> dict[str, Path]:
    """Return {command: its file}: those of the rooms here, and the set-ups' ``make_dataset``."""
    rooms = [path for path in HERE.glob("*/*.py") if path.stem not in (*NO_COMMANDS, "__init__")]
    found = {path.stem: path for path in rooms}
    spec = importlib.util.find_spec("estimate")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for path in Path(folder).glob("*/make_dataset.py"):
            found.setdefault(f"{path.parent.name}.make_dataset", path)
    return dict(sorted(found.items()))


def commands() -> dict[str, str]:
    """Return {command: first line of its docstring}, found without importing its module."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    return {name: (ast.get_docstring(tree) or "").split("\n")[0] for name, tree in trees.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Dispatch ``coar COMMAND …`` to the module of that name."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, commands()))
        print(__doc__)
        print("\n".join(f"  {name:<{width}}  {line}" for name, line in commands().items()))
        return
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
