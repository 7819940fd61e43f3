"""Configuration files: YAML or JSON, with short names or with upstream's sections."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from coarlib.errors import ArgumentError
from coarlib.loading import load_json, load_yaml


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
    load = load_json if path.suffix == ".json" else load_yaml
    content = load(path, ArgumentError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ArgumentError(f"configuration file {path} must map sections to keys")
    return {str(key): value for key, value in content.items()}


def _text_keys(value: object) -> object:
    """Turn a mapping's keys into text (YAML reads ``yes:`` as True)."""
    return {str(key): part for key, part in value.items()} if isinstance(value, dict) else value
