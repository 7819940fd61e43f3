"""Which task makes a store's rows: the first worker's, whose free choices the others take over."""

from __future__ import annotations

from pathlib import Path

from coarlib.errors import StoreError
from coarlib.store.identity import read_identity, settle_identity
from coarlib.task import Task


def settle_task(
    path: Path,
    task: Task,
    name: str,
    allow_other_task: bool = False,
    may_allow: bool = True,
) -> None:
    """Hold a prepared task to the one that made a store's rows, after it took over its choices.

    Parameters
    ----------
    path : Path
        Of the store.
    task : Task
        Prepared.
    name : str
        Of the task, for people.
    allow_other_task, may_allow : bool
        As for :func:`coarlib.store.identity.settle_identity`.

    Raises
    ------
    StoreError
        If another task made the rows, or the file that names it is damaged or cannot be written.
    """
    first = read_identity(path)
    mine = task.adopt(first)
    try:
        settle_identity(path, mine, name, allow_other_task, may_allow)
    except StoreError:
        if first is not None or task.adopt(read_identity(path)) == mine:
            raise
        # Another worker was first, a moment ago, and chose otherwise.
        settle_identity(path, task.identity(), name, allow_other_task, may_allow)
