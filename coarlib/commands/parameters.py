"""One argument of a command: fastargs' ``Param`` with other names and a place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import fastargs
from fastargs.validation import Anything, Checker, Int

from coarlib.commands.checkers import Boolean, Whole
from coarlib.errors import ArgumentError, nearest


class Param(fastargs.Param):
    """An argument: fastargs' ``Param``, with other names and a place.

    Parameters
    ----------
    checker : type or fastargs Checker
        How a value is read.
    desc : str
    default : optional
        Read like a given value.
    required : bool
    also : tuple of str
        Other names that mean the same, for ever: ``"expt.base_dir"``.
    positional : bool
        Given by its place.
    many : bool
        May be given several times, or takes all words that are left; its checker gets a list.
    """

    checker: Checker

    def __init__(
        self,
        checker: type | Checker,
        desc: str = "",
        default: object = None,
        required: bool = False,
        *,
        also: Sequence[str] = (),
        positional: bool = False,
        many: bool = False,
    ) -> None:
        super().__init__(checker, desc, default, required)
        if isinstance(self.checker, Int):
            self.checker = Whole()
        self.also, self.positional, self.many = tuple(also), positional, many

    def read(self, value: object, source: str) -> Any:
        """Check a value; ArgumentError names ``source``, where it was given."""
        try:
            found = self.checker.check(value)
            if isinstance(found, float) and math.isnan(found):
                raise ValueError(value)
            return found
        except (ValueError, TypeError, OverflowError) as error:
            wanted = self.checker.help()
            hint = nearest(str(value), getattr(self.checker, "words", ()))
            raise ArgumentError(f"{source} must be {wanted}, not {value!r}{hint}") from error


def in_flags(text: str, params: Mapping[str, Param], sources: Mapping[str, str]) -> str:
    """Name parameters in what the library says as the command's user does.

    A sentence starts with the parameter that is wrong (``until must be …``), or has one that
    helps in brackets (``allow it (allow_other_task)``).

    Parameters
    ----------
    text : str
    params : mapping of short name to Param
    sources : mapping of short name to str
        Where those were set that were.
    """
    wrong = re.match(r"(?:the )?(\w+)(?= (?:must|needs|is an?) )", text)
    if wrong and wrong[1] in sources:
        text = sources[wrong[1]] + text[wrong.end() :]

    def flag(found: re.Match[str]) -> str:
        known = params.get(found[1])
        return f"(--{found[1]}" if known and not known.positional else found[0]

    return re.sub(r"\((\w+)(?=\)| \w+ them\))", flag, text)


# What every command takes.
COMMON: dict[str, Param] = {
    "config": Param(
        Anything(), "YAML or JSON file with arguments; later files win", also=("config-file",),
        many=True,
    ),
    "quiet": Param(Boolean(), "show no progress bars", default=False),
}  # fmt: skip
