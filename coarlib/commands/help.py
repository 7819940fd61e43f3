"""What ``coar COMMAND --help`` shows: usage, what it does, the arguments, the short form first."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from fastargs.validation import Float

from coarlib.commands.checkers import Boolean, Range, Whole
from coarlib.commands.parameters import COMMON, Param

WIDTH = 100
INDENT = 26
VALUES = {"set": "KEY=VALUE", "config": "FILE", "manual_max_lambda": "λ", "lam": "λ"}


def help_text(name: str, text: str, params: Mapping[str, Param]) -> str:
    """Return the help of a command: its name, docstring and own arguments are given."""
    placed = [_placed(key, param) for key, param in params.items() if param.positional]
    needed = [
        f"--{key} {_value(key, param)}"
        for key, param in params.items()
        if param.required and not param.positional
    ]
    usage = " ".join(["usage: coar", name, *placed, *needed, "[--option VALUE …]"])
    lines = [usage, "", text.strip(), ""]
    order = sorted(params.items(), key=lambda item: not item[1].positional)
    for key, param in (*order, *COMMON.items()):
        lines += _entry(key, param)
    return "\n".join(lines)


def note(param: Param) -> str:
    """Return what an argument means and its default, in words."""
    text = param.desc
    if param.required:
        text += " (required)"
    elif param.default not in (None, "", {}) and not isinstance(param.checker, Boolean):
        text += f" [{param.default}]"
    elif isinstance(param.checker, Boolean) and param.default is not None:
        text += f" [{'yes' if param.checker.check(param.default) else 'no'}]"
    return text


def _placed(key: str, param: Param) -> str:
    word = key.upper() + (" …" if param.many else "")
    return word if param.required else f"[{word}]"


def _value(key: str, param: Param) -> str:
    if isinstance(param.checker, Boolean):
        return "0|1" if param.default is not False else ""
    if key in VALUES:
        return VALUES[key]
    return {Whole: "N", Float: "X", Range: "A:B"}.get(type(param.checker), key.upper())


def _entry(key: str, param: Param) -> list[str]:
    name = key.upper() if param.positional else f"--{key}"
    if not param.positional:
        name = f"{name} {_value(key, param)}".rstrip()
    text = note(param)
    if param.also:
        text += f" (also {', '.join(f'--{name}' for name in param.also)})"
    head = f"  {name:<{INDENT - 2}}"
    lines = textwrap.wrap(text, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False)
    if len(head) > INDENT:
        return [f"  {name}", *(" " * INDENT + line for line in lines)]
    return [head + lines[0], *(" " * INDENT + line for line in lines[1:])]
