"""Claims: any number of workers share out the rows of a store, with nothing else running.

A claim is a file ``claims/<block>/<row>.<generation>`` made exclusively, never renamed or deleted.
It takes the rows of the block from ``row`` on, up to the next claimed one; the highest generation
owns them, and stealing means creating generation + 1. Which rows to take, and when a living
worker's are cut in two, is said in :mod:`coarlib.store.pieces`. The owner touches its file; a
claim is stale when its modification time has not changed for ``ttl`` seconds *on the observer's
own monotonic clock*, so no two clocks are ever compared. A worker that is done with its rows,
finished or not, leaves ``<row>.<generation>.free`` beside it, so that rows which are missing later
(the store grew, ``verify --repair`` withdrew some) need no waiting. A worker lists the few blocks
it looks at, never all. Correctness never rests on a claim: rows are functions of their index, so
a row computed twice is harmless.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.files import draft_of
from coarlib.loading import load_json
from coarlib.store.heartbeat import Heartbeat
from coarlib.store.layout import CLAIMS_DIR
from coarlib.store.pieces import (
    LOOKS,
    MOST_DOUBLED,
    MOST_LOOKS,
    Claim,
    Pace,
    Piece,
    order,
    pieces,
    still_mine,
)
from coarlib.store.processes import has_died, process_identity
from coarlib.store.reader import Store
from coarlib.store.settle import settle

# Network file systems cache attributes for up to 60 s.
DEFAULT_TTL = 180.0
HEARTBEATS_PER_TTL = 6
# A block is a directory: more of them make their parent slow on a network file system.
MAX_BLOCKS = 2000
BLOCK_FILE = "block_rows"
# What a file system without hard links answers.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
CLAIM_NAME = re.compile(r"(\d+)\.(\d+)(\.free)?")


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
    """Return {row: claim of the highest generation} of a block, and the claims that were let go.

    Parameters
    ----------
    directory : Path
        ``claims/<block>``; it may be missing.

    Raises
    ------
    StoreError
        If the directory cannot be listed.
    """
    owners: dict[int, Claim] = {}
    released: set[Claim] = set()
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return owners, released
    except OSError as error:
        raise StoreError(f"cannot list {directory}: {error.strerror}") from error
    for name in names:
        match = CLAIM_NAME.fullmatch(name)
        if match is None:
            continue
        claim = Claim(int(match[1]), int(match[2]))
        if match[3]:
            released.add(claim)
        elif claim.row not in owners or owners[claim.row].generation < claim.generation:
            owners[claim.row] = claim
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
    pace : Pace, optional
        What this worker needs for a row, and how many it has in hand; nobody's rows are doubled
        before it knows.
    """

    def __init__(
        self, store: Store, block_rows: int, ttl: float = DEFAULT_TTL, pace: Pace | None = None
    ) -> None:
        self.store, self.block_rows, self.ttl = store, block_rows, ttl
        self.pace = Pace(block_rows) if pace is None else pace
        self.taken_over = self.doubled = self.written = 0
        self._directory = store.path / CLAIMS_DIR
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}
        self._own: Claim | None = None
        self._heartbeat = Heartbeat(ttl / HEARTBEATS_PER_TTL)
        self._taste = np.random.default_rng().random(-(-store.num_models // block_rows))
        self._looks = LOOKS

    def next_rows(self, open_rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Claim rows: a piece that nobody has, or else the second half of a living worker's.

        Parameters
        ----------
        open_rows : int64 [K]
            Ascending rows that are wanted and not committed.

        Returns
        -------
        int64 [B] or None
            The rows now claimed; None if all that were looked at are in a living worker's hand.
        """
        blocks, first, counts = np.unique(
            open_rows // self.block_rows, return_index=True, return_counts=True
        )
        taken: list[Piece] = []
        for place in order(counts, self._taste[blocks], self._looks).tolist():
            block, rows = int(blocks[place]), open_rows[first[place] :][: counts[place]]
            owners, released = list_claims(self._block(block))
            for piece in pieces(block * self.block_rows, rows, owners):
                owner = None if piece.owner in released else piece.owner
                stale = owner is not None and self._is_stale(owner)
                if owner is not None and not stale and not self._may_double(piece):
                    taken.append(piece)
                elif self._take(piece.next_claim()):
                    self.taken_over += stale
                    self.doubled += owner is not None and not stale
                    return piece.rows
        in_hand = self.pace.in_hand(waited=self._looks == MOST_LOOKS)
        for piece in sorted(taken, key=lambda piece: -len(piece.rows)):
            claim = piece.cut(in_hand)
            if claim is not None and self._take(claim):
                return piece.rows[piece.rows >= claim.row]
        self._looks = min(2 * self._looks, MOST_LOOKS)
        return None

    def still_mine(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the claimed ``rows`` still to do that nobody has cut off or taken."""
        if self._own is None or not len(rows):
            return rows[:0]
        owners, _ = list_claims(self._block(self._own.row // self.block_rows))
        return still_mine(rows, self._own, owners.values())

    def finish(self) -> None:
        """Let go of the own claim, done or not, so that nobody has to wait until it is stale."""
        if self._own is not None:
            file = self._file(self._own)
            with suppress(OSError):
                file.with_name(f"{file.name}.free").touch(exist_ok=False)
            self._hold(None)

    def _block(self, block: int) -> Path:
        return self._directory / str(block)

    def _file(self, claim: Claim) -> Path:
        return self._block(claim.row // self.block_rows) / claim.name

    def _may_double(self, piece: Piece) -> bool:
        """Whether the last row of a living worker has stood still for long enough."""
        if len(piece.rows) > 1:
            return False
        still = self._unchanged_for(("row", str(piece.owner)), int(piece.rows[0]))
        within_bounds = self.doubled < 1 + MOST_DOUBLED * self.written
        return within_bounds and still > self.pace.patience()

    def _is_stale(self, claim: Claim) -> bool:
        file = self._file(claim)
        try:
            touched = file.stat().st_mtime_ns
        except OSError:
            return False
        still = self._unchanged_for(("touched", claim.name), touched)
        return still > self.ttl or owner_has_died(file)

    def _unchanged_for(self, what: tuple[str, str], value: int) -> float:
        """Seconds of the own clock for which this worker has seen ``value`` unchanged."""
        now = time.monotonic()
        before, since = self._seen.get(what, (None, now))
        if before != value:
            self._seen[what], since = (value, now), now
        return now - since

    def _take(self, claim: Claim) -> bool:
        """Make the claim's file unless it exists; whether this worker is the one that made it.

        The file gets its name by a link, which is as exclusive as O_EXCL and shows it only with
        its content: nobody has to wait for an owner who was killed before it could sign.
        """
        file = self._file(claim)
        draft = draft_of(file)
        try:
            file.parent.mkdir(exist_ok=True)
            _sign(draft)
            try:
                os.link(draft, file)
                made = True
            except FileExistsError:
                # A server that answers a repeated request says so to the one who made it, too.
                made = os.path.samestat(os.stat(draft), os.stat(file))
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                made = _sign(file)
        except OSError as error:
            raise StoreError(f"cannot claim {file}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                draft.unlink()
        if made:
            self._hold(claim)
            self._looks = LOOKS
        return made

    def _hold(self, claim: Claim | None) -> None:
        self._own = claim
        self._heartbeat.file = None if claim is None else self._file(claim)

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
