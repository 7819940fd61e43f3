"""Checking every committed row against its checksum, at the speed of the disk, and repairing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RowRangeError, StoreError, TornRowError
from coarlib.store.adopt import adoptable
from coarlib.store.authors import recorded_rows, rows_by_identity
from coarlib.store.create import sweep_store
from coarlib.store.identity import all_identities, identity_is_lost
from coarlib.store.layout import DESIGN_LABELS, DESIGN_MASKS, array_path
from coarlib.store.provenance import damaged_lines, log_files
from coarlib.store.reader import Store, StoreLike, take_rows
from coarlib.store.scan import torn_rows
from coarlib.store.settle import check_sealed_npy
from coarlib.store.writer import RowWriter

SECONDS_BEFORE_SECOND_LOOK = 0.2
# A wrong seed or a wrong design shows in any of them.
MASKS_REDRAWN, MASKS_AT_ONCE = 256, 256


@dataclass
class VerifyReport:
    """What :func:`verify` found.

    Attributes
    ----------
    checked : int
        Committed rows whose bytes were digested.
    torn : list of int
        Committed rows whose bytes do not match their checksum.
    unflagged : list of int
        Committed rows whose ``_completed`` flag is not 1 (upstream's readers miss them).
    unfounded : list of int
        Rows flagged as completed without a checksum (a foreign writer, or damage).
    adoptable : list of int
        Those of them that hold whole rows, which :func:`coarlib.store.adopt.adopt` keeps.
    other_masks : list of int
        Committed rows whose mask is not the one that the design draws.
    notes : list of str
        What else is worth knowing, a sentence each: rows of several tasks, damaged log lines.
    bytes : int
        Bytes read.
    repaired : bool
        Whether torn and unfounded rows were withdrawn, flags restored, and nothing is left to do.
    """

    checked: int = 0
    torn: list[int] = field(default_factory=list)
    unflagged: list[int] = field(default_factory=list)
    unfounded: list[int] = field(default_factory=list)
    adoptable: list[int] = field(default_factory=list)
    other_masks: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bytes: int = 0
    repaired: bool = False

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong."""
        return not (self.torn or self.unflagged or self.unfounded or self.other_masks)


def verify(
    store: StoreLike,
    rows: tuple[int, int] | None = None,
    repair: bool = False,
    *,
    drop_adoptable: bool = False,
    threads: int | None = None,
    quiet: bool = True,
) -> VerifyReport:
    """Check rows ``[start, stop)`` of ``store`` (all by default).

    Parameters
    ----------
    store : Store or path
    repair : bool
        Mark torn and unfounded rows as not completed, so that workers fill them again, and
        restore the flags of sound ones. Rows that can be adopted are kept.
    drop_adoptable : bool
        Withdraw those, too.
    threads : int, optional
        All cores by default; reading and hashing run outside Python's lock.

    Raises
    ------
    StoreError
        If the store carries no checksums (COAR's and datamodels' do not), or cannot be read.
    RowRangeError
        If the range lies outside the store.
    """
    store = Store.open(store)
    if not store.has_checksums:
        raise StoreError(f"{store.path} carries no checksums (coarlib did not make it): unverified")
    start, stop = rows or (0, store.num_models)
    if not 0 <= start < stop <= store.num_models:
        raise RowRangeError(f"rows {start}:{stop} lie outside 0:{store.num_models}")
    rows_wanted = np.arange(start, stop, dtype=np.int64)
    report = _look(store, rows_wanted, threads or os.cpu_count() or 1, quiet)
    if not report.sound:
        # A row that a living worker was just writing looks wrong for a moment; damage stays.
        time.sleep(SECONDS_BEFORE_SECOND_LOOK)
        suspects = np.array(sorted({*report.torn, *report.unflagged, *report.unfounded}), np.int64)
        again = _look(store, suspects, threads or os.cpu_count() or 1, quiet=True)
        report.torn, report.unflagged = again.torn, again.unflagged
        report.unfounded = again.unfounded
    report.notes = _notes(store)
    report.adoptable = sorted(adoptable(store, np.array(report.unfounded, np.int64)).good)
    report.other_masks = other_masks(store, report, rows_wanted)
    check_settings(store)
    if repair and not report.sound:
        _repair(store, report, drop_adoptable)
    return report


def other_masks(store: Store, report: VerifyReport, rows: NDArray[np.int64]) -> list[int]:
    """Draw masks of committed rows again and return which differ: a sample, or all if any does."""
    design = store.design
    if design is None or store.mask_key is None:
        return []
    committed = np.setdiff1d(rows[store.completed_among(rows)], report.torn)
    sample = committed[:: max(1, len(committed) // MASKS_REDRAWN)]
    found = _differ_from_design(store, sample)
    return _differ_from_design(store, committed) if found else []


def _differ_from_design(store: Store, rows: NDArray[np.int64]) -> list[int]:
    found: list[int] = []
    for first in range(0, len(rows), MASKS_AT_ONCE):
        some = rows[first : first + MASKS_AT_ONCE]
        stored = take_rows(store.array(store.masks_name()), some)
        drawn = store.draw_masks(store.design, some) if store.design is not None else stored
        found += some[(stored != drawn).any(axis=1)].tolist()
    return found


def check_settings(store: Store) -> None:
    """Compare every settings file with its digest; StoreError names the first that is damaged."""
    Store.open(store.path)
    for key in (DESIGN_MASKS, DESIGN_LABELS):
        if array_path(store.path, key).exists():
            check_sealed_npy(array_path(store.path, key))


def _notes(store: Store) -> list[str]:
    """Say which tasks made the rows, if several did, and what of the logs is damaged."""
    notes = []
    made = rows_by_identity(store)
    if len(all_identities(store.path)) > 1:
        rows = "; ".join(f"{name}: {len(r)} rows, first {r[0]}" for name, r in made.items())
        notes.append(f"rows of different tasks: {rows}")
    if identity_is_lost(store.path):
        notes.append(
            "identity.json, which says what task made the rows, is gone; workers' logs tell, and "
            "the next worker with that task restores it"
        )
    nobody = np.setdiff1d(store.completed_rows(), recorded_rows(store))
    if log_files(store.path) and len(nobody):
        notes.append(
            f"no worker's log tells who made {len(nobody)} rows (the first is {nobody[0]})"
        )
    if lines := damaged_lines(store.path):
        notes.append(
            f"{len(lines)} lines of workers' logs are damaged (the first is {lines[0]}): what they "
            "say is not believed; the rows themselves are checked apart"
        )
    return notes


def find_torn(
    store: Store, rows: NDArray[np.int64], threads: int | None = None, quiet: bool = True
) -> list[int]:
    """Return which of some rows do not match their checksum; nothing is changed.

    Parameters
    ----------
    rows : int64 [K]
        Ascending row numbers, completed ones.
    threads, quiet
        See :func:`verify`.

    Raises
    ------
    StoreError
        If the store carries no checksums, or cannot be read.
    """
    if not store.has_checksums:
        raise StoreError(f"{store.path} carries no checksums (coarlib did not make it): unverified")
    threads = threads or os.cpu_count() or 1
    torn = torn_rows(store, rows, store.checksums(), threads, quiet)
    if torn:  # a living worker may be at it, as in verify
        time.sleep(SECONDS_BEFORE_SECOND_LOOK)
        suspects = np.array(sorted(torn), np.int64)
        torn = torn_rows(store, suspects, store.checksums(), threads, quiet=True)
    return torn


def refuse_torn(store: Store, rows: NDArray[np.int64], quiet: bool = True) -> None:
    """Raise TornRowError if any of the completed ``rows`` does not match its checksum.

    A store that carries no checksums is taken as it is.
    """
    torn = find_torn(store, rows, quiet=quiet) if store.has_checksums else []
    if torn:
        raise TornRowError(
            f"{len(torn)} completed rows of {store.path} do not match their checksums (the first "
            f"is {torn[0]}); verify and repair them there, and fill them again"
        )


def _look(store: Store, rows: NDArray[np.int64], threads: int, quiet: bool) -> VerifyReport:
    """Compare the ascending ``rows`` with their checksums and flags, as they are now."""
    checksums, flags = store.checksums(), store.flags()
    digests, marks = checksums[rows], flags[rows]
    committed = rows[digests != 0]
    return VerifyReport(
        checked=len(committed),
        bytes=len(committed) * store.spec.row_bytes,
        torn=torn_rows(store, committed, checksums, threads, quiet),
        unflagged=rows[(digests != 0) & (marks != 1)].tolist(),
        unfounded=rows[(digests == 0) & (marks != 0)].tolist(),
    )


def _repair(store: Store, report: VerifyReport, drop_adoptable: bool) -> None:
    lost = {*report.torn, *report.unfounded}
    if not drop_adoptable:
        lost -= set(report.adoptable)
    kept = np.array(sorted(set(report.unflagged) - set(report.torn)), np.int64)
    sweep_store(store.path)
    with RowWriter(store) as writer:
        writer.withdraw(np.array(sorted(lost), np.int64))
        writer.mark_completed(kept)
    report.repaired = drop_adoptable or not report.adoptable
