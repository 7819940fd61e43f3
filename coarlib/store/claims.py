"""Claims: any number of workers share out the blocks of a store, with nothing else running.

A claim is a file ``claims/<block>.<generation>`` made exclusively, never renamed or deleted;
the highest generation owns the block, and stealing means creating generation + 1. The owner
touches its file; a claim is stale when its modification time has not changed for ``ttl`` seconds
*on the observer's own monotonic clock*, so no two clocks are ever compared. A worker that is done
with a block, finished or not, leaves ``<block>.<generation>.free`` beside it, so that rows which
are missing later (the store grew, ``verify --repair`` withdrew some) need no waiting. Correctness
never rests on a claim: rows are functions of their index, so a row computed twice is harmless.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.files import draft_of
from coarlib.loading import load_json
from coarlib.store.heartbeat import Heartbeat
from coarlib.store.layout import CLAIMS_DIR
from coarlib.store.processes import has_died, process_identity
from coarlib.store.reader import Store
from coarlib.store.settle import settle

# Network file systems cache attributes for up to 60 s.
DEFAULT_TTL = 180.0
HEARTBEATS_PER_TTL = 6
# More blocks than this make the directory slow to list on a network file system.
MAX_BLOCKS = 2000
BLOCK_FILE = "block_rows"
# What a file system without hard links answers.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
CLAIM_NAME = re.compile(r"(\d+)\.(\d+)(\.free)?")


@dataclass(frozen=True)
class Claim:
    """One claim file: ``block`` of the store, taken for the ``generation``-th time."""

    block: int
    generation: int

    @property
    def name(self) -> str:
        """Name of the file in ``claims/``."""
        return f"{self.block}.{self.generation}"


def settle_block_rows(store: Store, wanted: int) -> int:
    """Return how many rows a block has: ``wanted``, unless an earlier worker settled it.

    Parameters
    ----------
    wanted : int
        At least the rows that a worker computes together.
    """
    file = store.path / CLAIMS_DIR / BLOCK_FILE
    settled = block_rows_of(store)
    if settled is not None:
        return settled
    settle(file, b"%d\n" % max(wanted, -(-store.num_models // MAX_BLOCKS)))
    settled = block_rows_of(store)
    if settled is None:
        raise StoreError(f"{file} must hold a positive whole number; remove it and start again")
    return settled


def block_rows_of(store: Store) -> int | None:
    """Return the settled rows of a block; None if no worker has claimed any yet."""
    try:
        settled = int((store.path / CLAIMS_DIR / BLOCK_FILE).read_text())
    except (OSError, ValueError):
        return None
    return settled if settled > 0 else None


def list_claims(directory: Path) -> tuple[dict[int, Claim], set[Claim]]:
    """Return {block: claim of the highest generation} and the claims that were let go.

    Raises
    ------
    StoreError
        If the directory cannot be listed.
    """
    owners: dict[int, Claim] = {}
    released = set()
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise StoreError(f"cannot list {directory}: {error.strerror}") from error
    for name in names:
        match = CLAIM_NAME.fullmatch(name)
        if match is None:
            continue
        claim = Claim(int(match[1]), int(match[2]))
        if match[3]:
            released.add(claim)
        elif claim.block not in owners or owners[claim.block].generation < claim.generation:
            owners[claim.block] = claim
    return owners, released


def owner_has_died(file: Path) -> bool:
    """Whether a claim's owner ran on this very system and is gone, so that no wait is needed."""
    try:
        return has_died(load_json(file, StoreError))
    except StoreError:
        return False


def _sign(file: Path) -> bool:
    """Create ``file`` with this process's name in it; False if it exists."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    owner = {"host": socket.gethostname(), **process_identity(os.getpid())}
    try:
        os.write(descriptor, json.dumps(owner).encode())
    finally:
        os.close(descriptor)
    return True


class Claims:
    """One worker's view of a store's claims; a context manager that keeps the own claim alive.

    Parameters
    ----------
    store : Store
    block_rows : int
        Rows a block, the same for all workers (:func:`settle_block_rows`).
    ttl : float
        Seconds without a heartbeat after which a claim may be taken over; at least three times
        what a batch of rows takes.
    """

    def __init__(self, store: Store, block_rows: int, ttl: float = DEFAULT_TTL) -> None:
        self.store, self.block_rows, self.ttl = store, block_rows, ttl
        self.taken_over = 0
        self._directory = store.path / CLAIMS_DIR
        self._seen: dict[str, tuple[int, float]] = {}
        self._own: Claim | None = None
        self._heartbeat = Heartbeat(ttl / HEARTBEATS_PER_TTL)

    def next_block(self, open_rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Claim a block that has open rows.

        Parameters
        ----------
        open_rows : int64 [K]
            Ascending rows that are wanted and not committed.

        Returns
        -------
        int64 [B] or None
            The open rows of the block now claimed; None if every such block has a living owner.
        """
        blocks = np.unique(open_rows // self.block_rows)
        if not len(blocks):
            return None
        owners, released = list_claims(self._directory)
        # Starting anywhere keeps a thousand workers from queueing at the same file.
        offset = random.randrange(len(blocks))
        for block in np.roll(blocks, -offset).tolist():
            owner = owners.get(block)
            if owner is None:
                claim = Claim(block, 0)
            elif owner in released or self._is_stale(owner):
                claim = Claim(block, owner.generation + 1)
            else:
                continue
            if self._create(claim):
                self.taken_over += owner is not None and owner not in released
                self._hold(claim)
                return open_rows[open_rows // self.block_rows == block]
        return None

    def finish(self) -> None:
        """Let go of the own claim, done or not, so that nobody has to wait until it is stale."""
        if self._own is not None:
            with suppress(OSError):
                (self._directory / f"{self._own.name}.free").touch(exist_ok=False)
            self._hold(None)

    def _is_stale(self, claim: Claim) -> bool:
        file = self._directory / claim.name
        try:
            touched = file.stat().st_mtime_ns
        except OSError:
            return False
        now = time.monotonic()
        before, since = self._seen.get(claim.name, (None, now))
        if before != touched:
            self._seen[claim.name], since = (touched, now), now
        return now - since > self.ttl or owner_has_died(file)

    def _create(self, claim: Claim) -> bool:
        """Make the claim's file unless it exists; whether this worker is the one that made it.

        The file gets its name by a link, which is as exclusive as O_EXCL and shows it only with
        its content: nobody has to wait for an owner who was killed before it could sign.
        """
        file = self._directory / claim.name
        draft = draft_of(file)
        try:
            _sign(draft)
            try:
                os.link(draft, file)
                return True
            except FileExistsError:
                # A server that answers a repeated request says so to the one who made it, too.
                return os.path.samestat(os.stat(draft), os.stat(file))
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return _sign(file)
        except OSError as error:
            raise StoreError(f"cannot claim {file}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                draft.unlink()

    def _hold(self, claim: Claim | None) -> None:
        self._own = claim
        self._heartbeat.file = None if claim is None else self._directory / claim.name

    def __enter__(self) -> Claims:
        self._heartbeat.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heartbeat.__exit__(kind, error, trace)
        self.finish()
