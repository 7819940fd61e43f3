"""What commands about training histories take: a set-up that can be trained with one."""

from __future__ import annotations

from coarlib import setups
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Param
from coarlib.commands.leaving import next_step
from coarlib.errors import ArgumentError
from coarlib.history.setups import HistorySetup

HISTORY = {
    "history": common.store("directory of the history", "history.path"),
    "task": Param(
        str,
        "a set-up's name, package.module:Class or file.py:Class",
        required=True,
        also=("setup", "setup.name"),
    ),
    "set": common.settings("setup.options"),
    "device": Param(str, "auto, cpu, cuda, cuda:1, mps", default="cpu", also=("setup.device",)),
}


def explain_next(args: Arguments) -> str:
    """Return the step after a history: to explain what it taught."""
    out = common.beside(args.history, "explanation")
    return next_step("explain", args.history, task=args.task, set=args.set, out=out)


def build(args: Arguments) -> HistorySetup:
    """Build the set-up that ``--task`` and ``--set`` describe.

    Raises
    ------
    ArgumentError
        If there is no such set-up, or it does not take these settings.
    """
    make = setups.find(args.task, HistorySetup, setups.HISTORY_FILE, ArgumentError)
    made = setups.build(make, args.set, f"the set-up {args.task}", ArgumentError)
    if not isinstance(made, HistorySetup):
        raise ArgumentError(f"{args.task} is no set-up for a training history")
    return made
