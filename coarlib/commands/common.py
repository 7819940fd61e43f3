"""Arguments that several commands take: declared once, so that one name means one thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coarlib.commands.arguments import Arguments, Boolean, Param, Settings, Whole
from coarlib.commands.checkers import Choice, Range, slice_of
from coarlib.commands.own_classes import own_ablation
from coarlib.errors import ArgumentError
from coarlib.setups import load
from coarlib.task import Task
from coarlib.tracking import TRACKERS

# Results are named beside these by what they are: x/store, x/attributions, x/evaluation.
PLAIN_NAMES = ("store", "rows", "attributions", "history", "explanation")


def rows_of(text: str | None, count: int, name: str = "--rows") -> tuple[int, int]:
    """Return first row and row after the last one of a range within ``0:count``.

    Raises
    ------
    ArgumentError
        If the range lies outside; ``name`` is the argument's.
    """
    asked = slice_of(text or ":")
    start, stop = asked.start, count if asked.stop is None else asked.stop
    if not start < stop <= count:
        raise ArgumentError(f"{name} must be A:B within 0:{count}, not {text!r}")
    return start, stop


def ranges(rows: NDArray[np.int64], most: int = 5) -> str:
    """Write ascending row numbers as ranges: ``0:40, 55, 70:80, …``."""
    starts = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
    stops = [*starts[1:], len(rows)]
    shown = []
    for start, stop in zip(starts[:most], stops[:most], strict=True):
        first, last = int(rows[start]), int(rows[stop - 1])
        shown.append(str(first) if first == last else f"{first}:{last + 1}")
    return ", ".join(shown) + (", …" if len(starts) > most else "")


def count_of(text: str) -> int:
    """Return N of ``N`` or ``0:N``: how many rows a store is to have; ArgumentError otherwise."""
    asked = slice_of(text)
    if asked.start or asked.stop is None:
        raise ArgumentError(f"--rows must say how many rows there are to be, not {text!r}")
    return int(asked.stop)


def store(desc: str = "directory of the store", *also: str, required: bool = True) -> Param:
    """Return the first positional argument of all commands that work on a store."""
    return Param(str, desc, required=required, positional=True, also=also)


def rows(desc: str = "only these rows", *also: str, required: bool = False) -> Param:
    """Return ``--rows``, a range of rows of the store."""
    return Param(Range(), f"{desc}: A:B, or N for 0:N", required=required, also=also)


def task(*also: str, required: bool = True, note: str = "") -> Param:
    """Return ``--task``, what is measured."""
    desc = f"a set-up's name, package.module:Class or file.py:Class{note}"
    return Param(str, desc, required=required, also=also)


def settings(*also: str) -> Param:
    """Return ``--set``, the settings of a task or set-up; upstream's form is one JSON object."""
    desc = "a setting of the task, as often as needed"
    return Param(Settings(), desc, default={}, also=("task_args", *also), many=True)


def device(*also: str) -> Param:
    """Return ``--device``, where things are computed."""
    return Param(str, "auto, cpu, cuda, cuda:1, mps", default="auto", also=also)


def out(desc: str, *also: str, required: bool = False, default: str | None = None) -> Param:
    """Return ``--out``, where the result goes."""
    return Param(str, desc, default, required, also=also)


def x_name(*also: str) -> Param:
    """Return ``--x_name``, the array of masks."""
    return Param(str, "the store's array of masks; default: as its spec says", also=also)


def y_name(*also: str) -> Param:
    """Return ``--y_name``, the array of outputs."""
    return Param(str, "the store's array of outputs; default: the only real-valued one", also=also)


def output(*also: str) -> Param:
    """Return ``--output``, which of a task's outputs."""
    desc = "array of the store that was fitted; default: the task's only one"
    return Param(str, desc, also=also)


def seed(desc: str, *also: str, default: int | None = 0) -> Param:
    """Return ``--seed``."""
    return Param(Whole(0), desc, default=default, also=also)


def log() -> Param:
    """Return ``--log``, what follows the work from elsewhere."""
    desc = f"follow it by one of {', '.join(TRACKERS)}; jsonl needs nothing"
    return Param(Choice(tuple(TRACKERS)), desc)


def flag(desc: str, *also: str, default: bool = False) -> Param:
    """Return a yes-or-no argument."""
    return Param(Boolean(), desc, default=default, also=also)


def load_task(args: Arguments, logdir: str | Path = ".") -> Task:
    """Build the task that ``--task`` and ``--set`` say."""
    return load(args.task, own_ablation(args.set), logdir, args.others)


def beside(path: str | Path, what: str) -> Path:
    """Name a result beside its store: ``x/store`` gives ``x/what``, ``x/y`` gives ``x/y_what``."""
    path = Path(path)
    stem = path.stem if path.suffix == ".beton" else path.name
    if stem in PLAIN_NAMES:
        return path.with_name(what)
    for name in PLAIN_NAMES:
        stem = stem.removesuffix(f"_{name}")
    return path.with_name(f"{stem}_{what}")
