"""quanda's configuration in place of ours: ``--config`` (or its own ``--config-path``) names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coarlib.errors import ArgumentError
from coarlib.interop.quanda_config import is_config
from coarlib.loading import load_yaml

__all__ = ["split_off"]

_FLAGS = ("--config", "--config-path", "--config_path")


def split_off(words: Sequence[str]) -> tuple[Path, list[str]] | None:
    """Return the configuration among a command's words and the other words, if it is quanda's."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag not in _FLAGS:
            continue
        rest = [*words[:place], *words[place + (1 if equals else 2) :]]
        value = value if equals else (words[place + 1] if place + 1 < len(words) else "")
        if flag != "--config" or is_config(_content(value)):
            return Path(value), rest
    return None


def _content(path: str) -> Any:
    try:
        return load_yaml(path, ArgumentError)
    except ArgumentError:
        return None  # what is wrong with it, the command's own reader says
