"""How the values of arguments are read: what fastargs' own checkers do not do, or do badly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastargs.validation import Checker

from coarlib.errors import CoarlibError
from coarlib.loading import parse_json

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
TRUTHS = (*TRUE, *FALSE)


class Boolean(Checker):
    """Reads 1/0, true/false, yes/no and on/off (``bool("False")`` is True, hence this class)."""

    def check(self, value: object) -> bool:
        """Return the boolean that ``value`` names; ValueError otherwise."""
        word = str(value).strip().lower()
        if word in TRUTHS:
            return word in TRUE
        raise ValueError(value)

    def help(self) -> str:
        """Describe what is accepted."""
        return "0 or 1"


class Whole(Checker):
    """Reads a whole number in a range (fastargs' ``int`` silently turns 2.7 into 2)."""

    def __init__(self, least: int | None = None, most: int | None = None) -> None:
        self.least, self.most = least, most

    def check(self, value: object) -> int:
        """Return the number; ValueError if it is not whole or out of range."""
        number = float(str(value)) if isinstance(value, float) else int(str(value))
        below = self.least is not None and number < self.least
        if number != int(number) or below or (self.most is not None and number > self.most):
            raise ValueError(value)
        return int(number)

    def help(self) -> str:
        """Describe what is accepted."""
        lower = "" if self.least is None else f" of at least {self.least}"
        upper = "" if self.most is None else f" and at most {self.most}"
        return f"a whole number{lower}{upper}"


class Choice(Checker):
    """Reads one of a few words (fastargs' ``OneOf`` lists them in a random order)."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = words if isinstance(words, Mapping) else tuple(words)

    @property
    def words(self) -> tuple[str, ...]:
        """The words there are now, of which the nearest is named: a registry may grow."""
        return tuple(self._words)

    def check(self, value: object) -> str:
        """Return the word; ValueError for any other."""
        if value not in self.words:
            raise ValueError(value)
        return str(value)

    def help(self) -> str:
        """Describe what is accepted."""
        return f"one of {', '.join(self.words)}"


class ChoiceOrClass(Choice):
    """Reads one of a few words, or a class as ``file.py:Class`` or ``package.module:Class``."""

    def check(self, value: object) -> str:
        """Return the word; ValueError for any other that names no class."""
        text = str(value)
        return text if ":" in text or text.endswith(".py") else super().check(value)

    def help(self) -> str:
        """Describe what is accepted."""
        return f"{super().help()}, or file.py:Class"


class Named(Checker):
    """Reads ``name=file,name=file``, or a mapping in a configuration file."""

    def check(self, value: object) -> dict[str, str]:
        """Return {name: file}; ValueError for anything else, or a name that comes twice."""
        if isinstance(value, Mapping):
            return {str(name): str(file) for name, file in value.items()}
        parts = [part.partition("=") for part in str(value).split(",") if part]
        found = {name: file for name, _, file in parts if name and file}
        if len(found) < len(parts):
            raise ValueError(value)
        return found

    def help(self) -> str:
        """Describe what is accepted."""
        return "name=file,name=file (each name once)"


class _NotJSON(CoarlibError, ValueError):
    """A value that JSON cannot be read from."""


class Settings(Checker):
    """Reads ``key=value`` words, a JSON object, or a mapping into {key: value}.

    A value is JSON where it can be read as such (``3``, ``true``, ``[1, 2]``), else text.
    """

    def check(self, value: object) -> dict[str, Any]:
        """Return the settings; ValueError for anything else, or a key that comes twice."""
        found: dict[str, Any] = {}
        for part in value if isinstance(value, list) else [value]:
            new = self._part(part)
            if found.keys() & new:
                raise ValueError(value)
            found |= new
        return found

    @staticmethod
    def _part(part: object) -> dict[str, Any]:
        if isinstance(part, Mapping):
            return {str(key): value for key, value in part.items()}
        text = str(part).strip()
        key, equals, value = text.partition("=")
        if text.startswith("{"):
            return dict(parse_json(text, "the settings", _NotJSON))
        if not equals or not key.strip().isidentifier():
            raise ValueError(part)
        try:
            return {key.strip(): parse_json(value, key, _NotJSON)}
        except _NotJSON:
            return {key.strip(): value}

    def help(self) -> str:
        """Describe what is accepted."""
        return "key=value (each key once) or a JSON object"


class Paths(Checker):
    """Reads ``PATH`` or ``NAME=PATH`` words, or a mapping, into {name: path}."""

    def check(self, value: object) -> dict[str, str]:
        """Return the paths; ValueError if a name comes twice."""
        if isinstance(value, Mapping):
            return {str(name): str(path) for name, path in value.items()}
        found: dict[str, str] = {}
        for part in value if isinstance(value, list) else [value]:
            name, equals, path = str(part).partition("=")
            if not equals or "/" in name or not name:
                name, path = str(part), str(part)
            if name in found:
                raise ValueError(value)
            found[name] = path
        return found

    def help(self) -> str:
        """Describe what is accepted."""
        return "PATH or NAME=PATH (each name once)"


class Range(Checker):
    """Reads ``A:B`` (either may be left out) or ``N``, which is ``0:N``."""

    def check(self, value: object) -> str:
        """Return the text; ValueError if it names no range."""
        text = str(value).strip()
        slice_of(text)
        return text

    def help(self) -> str:
        """Describe what is accepted."""
        return "A:B, where A is below B and either may be left out, or N for 0:N"


def slice_of(text: str) -> slice:
    """Read ``A:B`` or ``N`` as a slice of whole numbers of at least 0; ValueError otherwise."""
    first, colon, last = text.partition(":")
    start = int(first) if first and colon else 0
    stop = int(last) if last else None if colon else int(first)
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(text)
    return slice(start, stop)
