"""Configuration files: YAML or JSON, with short names or with upstream's sections."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import yaml

from coarlib.errors import ArgumentError


def read_file(path: Path, known: Collection[str]) -> dict[str, object]:
    """Read a file into {name: value}, where a section's keys are called ``section.key``.

    Parameters
    ----------
    path : Path
    known : collection of str
        Names of arguments: one whose value is a mapping is told from a section by them.

    Raises
    ------
    ArgumentError
        If the file cannot be read, or does not map names to values.
    """
    flat: dict[str, object] = {}
    for name, value in _content(path).items():
        keys = value if isinstance(value, dict) else {}
        if isinstance(value, dict) and (
            name not in known or any(f"{name}.{key}" in known for key in keys)
        ):
            flat |= {f"{name}.{key}": _text_keys(part) for key, part in keys.items()}
        else:
            flat[name] = _text_keys(value)
    return flat


def _content(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"cannot read configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"configuration file {path} is not text") from error
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ArgumentError(f"configuration file {path} cannot be parsed: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ArgumentError(f"configuration file {path} must map sections to keys")
    return {str(key): value for key, value in content.items()}


def _text_keys(value: object) -> object:
    """Turn a mapping's keys into text (YAML reads ``yes:`` as True)."""
    return {str(key): part for key, part in value.items()} if isinstance(value, dict) else value
