"""Which task made the rows: settled by the first worker, so that one store holds one task's rows.

``identity.json`` holds the identity (:meth:`coarlib.task.Task.identity`) of the first worker's
task. Another one is refused unless that is allowed in so many words; then it is recorded in
``identities/``, and each worker's log says which rows it made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from coarlib.errors import StoreError
from coarlib.loading import open_regular
from coarlib.store.provenance import batch_of, log_files, parse_line
from coarlib.store.settle import digest_of, read_sealed_json, sealed_json, settle

IDENTITY_FILE = "identity.json"
OTHERS_DIR = "identities"
UNKNOWN = "unknown"
HEAD_BYTES = 2**16


def read_identity(path: Path) -> str | None:
    """Return the identity of the task that a store's first worker had; None if none said it.

    Where the file is gone, a worker's log tells.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    return _identity(path / IDENTITY_FILE) or next(iter(logged_identities(path)), None)


def identity_is_lost(path: Path) -> bool:
    """Whether logs name the task that made the rows, while the settings no longer do."""
    return not (path / IDENTITY_FILE).exists() and bool(logged_identities(path))


def logged_identities(path: Path) -> list[str]:
    """Return the identities that the first lines of workers' logs name, each once."""
    found: dict[str, None] = {}
    for file in log_files(path):
        with suppress(StoreError), open_regular(file, StoreError) as log:
            name = identity_of(parse_line(log.readline(HEAD_BYTES)))
            found |= {} if name == UNKNOWN else {name: None}
    return list(found)


def all_identities(path: Path) -> list[str]:
    """Return the identities of all tasks that made rows of a store, the settled one first."""
    found = recorded_identities(path)
    if identity_is_lost(path):
        found = [*logged_identities(path)[:1], *found, *logged_identities(path)]
    return list(dict.fromkeys(found))


def recorded_identities(path: Path) -> list[str]:
    """Return the identities that settings files hold; StoreError if one is damaged."""
    files = [path / IDENTITY_FILE, *sorted((path / OTHERS_DIR).glob("*.json"))]
    return [one for one in map(_identity, files) if one is not None]


def settle_identity(
    path: Path,
    identity: str | None,
    task: str,
    allow_other_task: bool = False,
    may_allow: bool = True,
) -> None:
    """Hold a worker to the task that a store's rows were made by: the first one decides for all.

    Parameters
    ----------
    path : Path
    identity : str, optional
        Of the worker's task; None if it cannot tell, which checks nothing.
    task : str
        Its name, for people.
    allow_other_task : bool
        Let another task make rows too, and record it.
    may_allow : bool
        Whether who reads the refusal can say so.

    Raises
    ------
    StoreError
        If another task made the rows, or the file is damaged or cannot be written.
    """
    if identity is None:
        return
    content = sealed_json({"identity": identity, "task": task})
    if not identity_is_lost(path) or identity == read_identity(path):
        settle(path / IDENTITY_FILE, content)
    if read_identity(path) == identity:
        return
    if not allow_other_task:
        raise StoreError(
            f"the rows of {path} were made by another task ({_short(read_identity(path))}) than "
            f"this one ({task}, {_short(identity)}): give the model, data and settings they were "
            "made with"
            + (
                ", make another store, or allow it (allow_other_task)"
                if may_allow
                else ", or make another store"
            )
        )
    settle(path / OTHERS_DIR / f"{digest_of(identity)}.json", content)


def copy_identities(source: Path, target: Path, allow_other_task: bool) -> None:
    """Settle for ``target`` what made the rows of ``source``; StoreError as when filling."""
    for identity in all_identities(source):
        settle_identity(target, identity, f"as recorded in {source.name}", allow_other_task)


def check_same_identity(paths: Sequence[Path]) -> None:
    """Raise StoreError if the rows of some stores were made by different tasks."""
    known = [(path, identity) for path in paths for identity in all_identities(path)]
    for path, identity in known[1:]:
        if identity != known[0][1]:
            raise StoreError(
                f"the rows of {known[0][0]} and {path} were made by different tasks "
                f"({_short(known[0][1])} and {_short(identity)}): join those of one task, or "
                "allow it (allow_other_task)"
            )


def identity_of_row(path: Path, row: int) -> str | None:
    """Return the identity of the task that made a row; None if no log tells."""
    try:
        found = identity_of(batch_of(path, row).worker)
    except StoreError:
        return None
    return None if found == UNKNOWN else found


def identity_of(worker: Mapping[str, Any]) -> str:
    """Return the identity of the task that a worker's log names; ``"unknown"`` if it does not."""
    task = worker.get("task")
    found = task.get("identity") if isinstance(task, Mapping) else None
    return found if isinstance(found, str) else UNKNOWN


def _identity(file: Path) -> str | None:
    content = read_sealed_json(file)
    if content is None:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("identity"), str):
        raise StoreError(f"{file} is damaged: it names no identity ({json.dumps(content)[:80]})")
    return str(content["identity"])


def _short(identity: str | None) -> str:
    return "".join(c for c in str(identity) if c.isalnum() or c in "-_.")[:16]
