"""Command-line arguments: fastargs sections, with what fastargs does badly put right here.

Every runnable module declares its sections as data and calls :func:`parse`; :func:`run` turns a
:class:`~coarlib.errors.CoarlibError` into one line on stderr and exit code 2. Put right compared
with plain fastargs 1.2: ``--config``, ``--config-file`` and ``-C`` are all explicit; bad or
missing values and unknown keys of a configuration file are errors that name the nearest known
key; flags given in a file hold; booleans are read as words, not as ``bool(str)``; nothing is kept
in a global. Precedence: configuration files < environment (``section.key``) < command line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import yaml
from fastargs import Param, Section
from fastargs.config import Config
from fastargs.exceptions import MissingValueError, ValidationError
from fastargs.validation import Checker, Int

from coarlib.errors import ArgumentError, CoarlibError, nearest
from coarlib.progress import set_quiet

__all__ = ["PLAIN", "Boolean", "Param", "Sections", "Whole", "parse", "row_slice", "run"]

Sections = Mapping[str, Mapping[str, Param]]

# The section whose keys are plain options (--rows, not --section.rows).
PLAIN = "options"
QUIET = "quiet"  # every command takes it

EXIT_BAD_INPUT = 2
LONGEST_SHOWN = 200
EXIT_INTERRUPTED = 130

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class Boolean(Checker):
    """Reads 1/0, true/false, yes/no and on/off (``bool("False")`` is True, hence this class)."""

    def check(self, value: object) -> bool:
        """Return the boolean that ``value`` names; ValueError otherwise."""
        word = str(value).strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
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


def row_slice(text: str, num_models: int, name: str) -> tuple[int, int]:
    """Read ``START:STOP`` (either may be left out) as a row range of a store.

    Raises
    ------
    ArgumentError
        If it is not of that form or lies outside ``0:num_models``; ``name`` is the argument's.
    """
    start, colon, stop = text.partition(":")
    try:
        bounds = int(start or 0), int(stop or num_models)
    except ValueError:
        bounds = (-1, -1)
    if not colon or not 0 <= bounds[0] < bounds[1] <= num_models:
        raise ArgumentError(f"{name} must be START:STOP within 0:{num_models}, not {text!r}")
    return bounds


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (--help lists the arguments)")


def parse(
    description: str,
    sections: Sections,
    argv: Sequence[str] | None = None,
    ignored: Mapping[str, str] | None = None,
    positional: Mapping[str, Param] | None = None,
) -> SimpleNamespace:
    """Read the arguments of a runnable module.

    Parameters
    ----------
    description : str
        Shown by ``--help``; usually the module's docstring.
    sections : mapping of section name to mapping of key to fastargs ``Param``
        The keys of the section :data:`PLAIN` are plain options, ``--key``.
    argv : sequence of str, optional
        The arguments; ``sys.argv[1:]`` by default.
    positional : mapping of name to Param, optional
        Arguments without a flag, as ``args.name``; one called ``name...`` takes all that are left.
    ignored : mapping of "section.key" to reason, optional
        Keys that upstream's published files hold and that have no effect: they are accepted and
        named in a warning.

    Returns
    -------
    SimpleNamespace
        ``args.section.key``; a key without value or default is None. ``args.given`` is the set of
        "section.key" names that were set explicitly, ``args.quiet`` whether ``--quiet`` was given.

    Raises
    ------
    ArgumentError
        For anything unknown, missing or of the wrong type.
    """
    positional = positional or {}
    plain = {name.removesuffix("..."): param for name, param in positional.items()}
    config = _declare(sections, plain)
    parser = _argument_parser(description, sections, positional)
    words = sys.argv[1:] if argv is None else list(argv)
    namespace, unknown = parser.parse_known_intermixed_args(words)
    quiet = vars(namespace).pop(QUIET)
    set_quiet(quiet)
    if unknown:
        flags = [_shown(".".join(path), plain) for path in config.entries]
        hint = nearest(unknown[0].split("=")[0], flags)
        raise ArgumentError(f"unknown argument {unknown[0]}{hint} (--help lists the arguments)")
    given, source = _collect(config, vars(namespace), ignored or {}, plain)
    config.collect(given)
    result = _validated(config, given, source, plain)
    result.quiet = quiet
    for name in plain:
        setattr(result, name, getattr(getattr(result, PLAIN), name))
    return result


def _declare(sections: Sections, plain: Mapping[str, Param]) -> Config:
    """Declare all parameters to a Config of their own (fastargs' default one is global)."""
    config = Config()
    for name, params in sections.items():
        Section(name, config_descriptor=config).params(**params)
    if plain:
        Section(PLAIN, config_descriptor=config).params(**plain)
    for param in config.entries.values():
        if isinstance(param.checker, Int):
            param.checker = Whole()
    return config


def _collect(
    config: Config,
    command_line: dict[str, Any],
    ignored: Mapping[str, str],
    plain: Collection[str],
) -> tuple[dict[str, object], dict[str, str]]:
    """Merge files, environment and command line: {key: value} and {key: where it was given}."""
    known = {".".join(path) for path in config.entries}
    given: dict[str, object] = {}
    source: dict[str, str] = {}
    for file in command_line.pop("config_file") or []:
        for key, value in _read_config_file(Path(file)).items():
            if key in ignored:
                print(f"warning: {file}: {key} is ignored: {ignored[key]}", file=sys.stderr)
            elif key not in known:
                raise ArgumentError(f"{file}: unknown key {key}{nearest(key, known)}")
            elif value is not None:
                given[key], source[key] = value, f"{file}: {key}"
    for key in known & set(os.environ):
        given[key], source[key] = os.environ[key], f"environment variable {key}"
    for key, value in command_line.items():
        if value is not None and value != []:
            given[key], source[key] = value, _shown(key, plain)
    return given, source


def _argument_parser(
    description: str, sections: Sections, positional: Mapping[str, Param]
) -> argparse.ArgumentParser:
    parser = _Parser(
        description=description.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Every argument can also stand in a YAML or JSON file given by --config, "
        "as section: {key: value}.",
    )
    parser.add_argument(
        "--config",
        "--config-file",
        "-C",
        dest="config_file",
        action="append",
        metavar="FILE",
        help="YAML or JSON file with arguments; may be repeated, later files win",
    )
    parser.add_argument(f"--{QUIET}", action="store_true", help="show no progress bars")
    for name, param in positional.items():
        word = name.removesuffix("...")
        count = "?" if word == name else "*"  # what is required is checked below, in our words
        parser.add_argument(f"{PLAIN}.{word}", metavar=word.upper(), nargs=count, help=param.desc)
    for name, params in sections.items():
        group = parser.add_argument_group(name)
        for key, param in params.items():
            note = f"{param.desc} [{param.checker.help()}]"
            if param.required:
                note += " (required)"
            elif param.default is not None:
                note += f" (default: {param.default})"
            extra: dict[str, Any] = {"metavar": key.upper()}
            if param.is_flag or isinstance(param.checker, Boolean):
                extra |= {"nargs": "?", "const": "1", "metavar": "0|1"}
            flags = [f"--{name}.{key}"]
            if name == PLAIN:
                flags = [f"--{key}"]
                extra["dest"] = f"{PLAIN}.{key}"
            if name == PLAIN and "nargs" in extra:  # "--repair STORE" must not eat the store
                extra = {"dest": extra["dest"], "action": "store_const", "const": "1"}
            group.add_argument(*flags, help=note.replace("%", "%%"), **extra)
    return parser


def _read_config_file(path: Path) -> dict[str, object]:
    """Read a YAML or JSON file into {"section.key": value}."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"cannot read configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"configuration file {path} is not text") from error
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ArgumentError(f"configuration file {path} cannot be parsed: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ArgumentError(f"configuration file {path} must map sections to keys")
    flat: dict[str, object] = {}
    for section, keys in content.items():
        if isinstance(keys, dict):
            flat |= {f"{section}.{key}": _text_keys(value) for key, value in keys.items()}
        else:
            flat[str(section)] = keys
    return flat


def _text_keys(value: object) -> object:
    """Turn a mapping's keys into text (YAML reads ``yes:`` as True, which fastargs refuses)."""
    return {str(key): part for key, part in value.items()} if isinstance(value, dict) else value


def _shown(key: str, positional: Collection[str]) -> str:
    """Return an argument's name as the user writes it."""
    name = key.removeprefix(f"{PLAIN}.")
    return name.upper() if name in positional else f"--{name}"


def _validated(
    config: Config,
    given: Mapping[str, object],
    source: Mapping[str, str],
    positional: Collection[str],
) -> SimpleNamespace:
    result = SimpleNamespace(given=frozenset(given))
    for path, param in config.entries.items():
        key = ".".join(path)
        try:
            value = config[path]
        except MissingValueError as error:
            raise ArgumentError(f"{_shown(key, positional)} is required: {param.desc}") from error
        except ValidationError as error:
            wanted = param.checker.help()
            raise ArgumentError(f"{source[key]} must be {wanted}, not {given[key]!r}") from error
        section = path[0]
        if not hasattr(result, section):
            setattr(result, section, SimpleNamespace())
        setattr(getattr(result, section), path[-1], value)
    return result


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run a module's ``main(argv)`` and exit as the command line promises.

    A CoarlibError, or a file that the system refuses, becomes ``error: <sentence>`` on stderr and
    exit code 2; Ctrl-C exits 130.
    """
    try:
        main(argv)
    except CoarlibError as error:
        one_line = "\\n".join(str(error).splitlines())
        print(f"error: {one_line}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno is None:  # raised by code, not by the system
            raise
        where = "" if error.filename is None else f"{_short(str(error.filename))}: "
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
