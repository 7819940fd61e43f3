"""Command-line arguments: one grammar for every command, with upstream's names as aliases.

A :class:`Command` declares each argument once, as a fastargs ``Param`` with a short name and the
sectioned names (``--expt.base_dir``) that upstream's scripts and configuration files use; all of
them are accepted on the command line, in files and (the sectioned ones) in the environment.
Precedence: configuration files < environment < command line.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from coarlib.commands.checkers import TRUTHS, Boolean, Settings, Whole
from coarlib.commands.configuration import read_file
from coarlib.commands.help import help_text
from coarlib.commands.parameters import COMMON, Param, in_flags
from coarlib.errors import ArgumentError, CoarlibError, nearest, printable
from coarlib.files import whole_file
from coarlib.progress import set_quiet

__all__ = ["Arguments", "Boolean", "Command", "Param", "Settings", "Whole", "run"]

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
LONGEST_SHOWN = 200
SHORT = {"-C": "--config", "-h": "--help", "-q": "--quiet"}
# Names that an argument without a section had in files and in the environment.
PLAIN = "options"


@dataclass(frozen=True)
class _Given:
    value: Any
    source: str  # as the user would name it


class Arguments(SimpleNamespace):
    """The values of a command's arguments, by short name.

    Attributes
    ----------
    given : frozenset of str
        Short names of those that were set explicitly.
    sources : mapping of short name to str
        How and where these were set: ``"--cfg.lr"``, ``"fit.yaml: cfg.lr"``.
    others : tuple of str
        Words of sections that are somebody else's.
    """

    others: tuple[str, ...] = ()
    given: frozenset[str]
    sources: Mapping[str, str]
    command: Command

    def save(self, path: str | Path) -> None:
        """Write a file that ``--config`` replays: what was given or settled, then the defaults."""
        settled, defaults = {}, []
        for key, param in self.command.own.items():
            value = getattr(self, key, None)
            if value is not None and (key in self.given or value != param.default):
                settled[key] = value
            elif value is not None:
                defaults.append(f"#   {key}: {value}\n")
        settled.pop("dry_run", None)
        with whole_file(Path(path), "w") as file:
            file.write(f"# coar {self.command.name} --config THIS_FILE does it again\n")
            file.write(yaml.safe_dump(settled, sort_keys=False) + "# defaults:\n")
            file.write("".join(defaults))


@dataclass(frozen=True)
class Command:
    """A command: what it does and takes.

    Attributes
    ----------
    name : str
        As in ``coar NAME``.
    text : str
        The module's docstring: a line that says what it does, examples, details.
    own : mapping of short name to Param
    ignored : mapping of key to reason
        Keys that upstream's published files hold and that have no effect: they are accepted and
        named in a warning.
    passes_on : bool
        Arguments of sections that are unknown here, ``--training.lr 0.1``, belong to the code that
        the command runs.
    """

    name: str
    text: str
    own: Mapping[str, Param] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    passes_on: bool = False

    @property
    def params(self) -> dict[str, Param]:
        """All arguments by short name, those of every command last."""
        return {**self.own, **COMMON}

    def parse(self, argv: Sequence[str] | None = None) -> Arguments:
        """Read the arguments (``sys.argv[1:]`` by default); show the help if asked to.

        Raises
        ------
        ArgumentError
            For anything unknown, missing, given twice or of the wrong type.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        before = words[: words.index("--")] if "--" in words else words
        if {"-h", "--help"} & set(before):
            print(help_text(self.name, self.text, self.own))
            sys.exit(0)
        words, others = self._split_off(words)
        typed = self._read_words(words)
        quiet = "quiet" in typed and self.params["quiet"].read(typed["quiet"].value, "--quiet")
        set_quiet(quiet)
        given: dict[str, _Given] = {}
        files = typed.pop("config").value if "config" in typed else []
        for layer in (*map(self._from_file, files), self._from_environment(), typed):
            for key, new in layer.items():
                given[key] = self._over(key, given.get(key), new)
        values: dict[str, Any] = {}
        for key, param in self.params.items():
            if key in given:
                values[key] = param.read(given[key].value, given[key].source)
            elif param.required:
                raise ArgumentError(f"{self.shown(key)} is required: {param.desc}")
            else:
                values[key] = param.default if param.default is None else param.read(
                    param.default, f"the default of {key}"
                )  # fmt: skip
        values["quiet"] = values["quiet"] or quiet
        sources = {key: item.source for key, item in given.items()}
        about = {"given": frozenset(given), "sources": sources, "others": tuple(others)}
        parsed = Arguments(**values, **about, command=self)
        _parsed.set(parsed)
        return parsed

    def shown(self, key: str) -> str:
        """Return an argument's short name as the user writes it."""
        return key.upper() if self.params[key].positional else f"--{key}"

    def names(self) -> dict[str, str]:
        """Return {every name: short name}."""
        found = {key: key for key in self.params}
        for key, param in self.params.items():
            found |= dict.fromkeys(param.also, key)
        return found

    def _over(self, key: str, old: _Given | None, new: _Given) -> _Given:
        """Let a later layer win; settings are joined."""
        checker = self.params[key].checker
        if old is None or not isinstance(checker, Settings):
            return new
        param = self.params[key]
        joined = {**param.read(old.value, old.source), **param.read(new.value, new.source)}
        return _Given(joined, new.source)

    def _read_words(self, words: Sequence[str]) -> dict[str, _Given]:
        """Read the command line: {short name: what was typed}."""
        names = {_plain(name): key for name, key in self.names().items()}
        found: dict[str, _Given] = {}
        loose: list[str] = []
        rest = deque(words)
        while rest:
            word = rest.popleft()
            if word == "--":
                loose += rest
                break
            if not _is_flag(word):
                loose.append(word)
                continue
            flag, equals, value = word.partition("=")
            flag = SHORT.get(flag, flag)
            key = names.get(_plain(flag.removeprefix("--"))) if flag.startswith("--") else None
            if flag.removeprefix("--") in self.ignored:
                print(f"warning: {flag} is ignored: {self.ignored[flag[2:]]}", file=sys.stderr)
                if not equals and rest and not _is_flag(rest[0]):
                    rest.popleft()
                continue
            if key is None:
                known = [f"--{name}" for name in self.names()]
                raise ArgumentError(
                    f"unknown argument {flag}{nearest(flag, known)} (--help lists the arguments)"
                )
            param = self.params[key]
            if not equals and isinstance(param.checker, Boolean):
                value = rest.popleft() if rest and rest[0].lower() in TRUTHS else "1"
            elif not equals and (not rest or (rest[0].startswith("--") and len(rest[0]) > 2)):
                raise ArgumentError(f"{flag} needs a value: {param.desc}")
            elif not equals:
                value = rest.popleft()
            if param.many:
                before = found[key].value if key in found else []
                found[key] = _Given([*before, value], flag)
            elif key in found:
                typed = found[key].source
                also = "" if typed == flag else f" (as {typed} too)"
                raise ArgumentError(f"{flag} is given twice{also}; give it once")
            else:
                found[key] = _Given(value, flag)
        return self._place(loose, found)

    def _split_off(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Divide words into those of this command and those of somebody else's sections."""
        mine: list[str] = []
        others: list[str] = []
        ours = {name.partition(".")[0] for name in self.names() if "." in name}
        rest = deque(words)
        while rest and rest[0] != "--":
            word = rest.popleft()
            section, dot, _ = word.partition("=")[0].removeprefix("--").partition(".")
            if not (self.passes_on and dot and word.startswith("--")) or section in ours:
                mine.append(word)
                continue
            others.append(word)
            if "=" not in word and rest and not _is_flag(rest[0]):
                others.append(rest.popleft())
        return mine + list(rest), others

    def _place(self, loose: Sequence[str], found: dict[str, _Given]) -> dict[str, _Given]:
        """Give words without a flag to the positional arguments that have no value yet."""
        rest = deque(loose)
        by_flag = [key for key in found if self.params[key].positional]
        for key, param in self.own.items():
            if not rest or not param.positional or key in by_flag:
                continue
            taken = list(rest) if param.many else rest.popleft()
            found[key] = _Given(taken, self.shown(key))
            if param.many:
                rest.clear()
        if rest:
            twice = "".join(f"; {key.upper()} is given as {found[key].source}" for key in by_flag)
            raise ArgumentError(f"unknown argument {rest[0]} (--help lists the arguments{twice})")
        return found

    def _from_file(self, file: str) -> dict[str, _Given]:
        names = self.names()
        found: dict[str, _Given] = {}
        for key, value in read_file(Path(file), names).items():
            name = names.get(key) or names.get(key.removeprefix(f"{PLAIN}."))
            if key in self.ignored:
                print(f"warning: {file}: {key} is ignored: {self.ignored[key]}", file=sys.stderr)
            elif name is None:
                raise ArgumentError(f"{file}: unknown key {key}{nearest(key, names)}")
            elif name in found:
                raise ArgumentError(f"{found[name].source} and {key} are the same argument")
            elif value is not None:
                found[name] = _Given(value, f"{file}: {key}")
        return found

    def _from_environment(self) -> dict[str, _Given]:
        """Read the sectioned names only: a variable called ``seed`` means something else."""
        names = {name: key for name, key in self.names().items() if "." in name}
        names |= {f"{PLAIN}.{key}": key for key in self.own}
        return {
            key: _Given(os.environ[name], f"environment variable {name}")
            for name, key in names.items()
            if name in os.environ
        }


_parsed: ContextVar[Arguments | None] = ContextVar("parsed", default=None)


def _is_flag(word: str) -> bool:
    return word in SHORT or word.startswith("--") or (word[:1] == "-" and word[1:2].isalpha())


def _plain(name: str) -> str:
    """``--dry-run`` and ``--dry_run`` are the same."""
    return name.replace("-", "_")


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run a module's ``main(argv)`` and exit as the command line promises.

    A CoarlibError, or a file that the system refuses, becomes ``error: <sentence>`` on stderr,
    which names arguments as they were given, and exit code 2; Ctrl-C exits 130.
    """
    _parsed.set(None)
    try:
        main(argv)
    except CoarlibError as error:
        args, text = _parsed.get(), str(error)
        text = in_flags(text, args.command.params, args.sources) if args else text
        print(f"error: {printable(text)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except MemoryError as error:
        print(f"error: there is not enough memory: {printable(error)}", file=sys.stderr)
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
