"""coar: counterfactual attribution at scale.

coar COMMAND [ARGUMENTS]      the same as  python -m estimate.COMMAND [ARGUMENTS]
coar COMMAND --help           what a command does and takes
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from coarlib.commandline import nearest, run
from coarlib.errors import ArgumentError

HERE = Path(__file__).parent


def commands() -> dict[str, str]:
    """Return {command: first line of its docstring}, found without importing anything."""
    found = {}
    for path in sorted(HERE.glob("*.py")) + sorted(HERE.glob("*/make_dataset.py")):
        if path.stem.startswith("_"):
            continue
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        name = path.relative_to(HERE).with_suffix("")
        found[".".join(name.parts)] = doc.split("\n")[0]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Dispatch ``coar COMMAND …`` to the module of that name."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, commands()))
        print(__doc__)
        print("\n".join(f"  {name:<{width}}  {line}" for name, line in commands().items()))
        return
    run(_dispatch, words)


def _dispatch(argv: Sequence[str] | None) -> None:
    name, *rest = list(argv or [])
    known = commands()
    if name not in known:
        raise ArgumentError(f"unknown command {name}{nearest(name, known)} (coar --help lists all)")
    importlib.import_module(f"estimate.{name}").main(rest)


if __name__ == "__main__":
    main()
