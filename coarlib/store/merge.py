"""Joining stores that were filled apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError, TornRowError
from coarlib.files import whole_file
from coarlib.progress import Progress
from coarlib.store.added import ROW_DIGESTS
from coarlib.store.checksum import row_checksums
from coarlib.store.components import first_difference, read_components, settle_components
from coarlib.store.create import initialize, sweep_store
from coarlib.store.design import read_labels, settle_design
from coarlib.store.grow import grow
from coarlib.store.identity import check_same_identity, copy_identities
from coarlib.store.inside import BLOCKS, stores_inside
from coarlib.store.layout import DESIGN_MASKS, WORKERS_DIR
from coarlib.store.reader import Store, StoreLike
from coarlib.store.writer import RowWriter

ROWS_AT_ONCE = 1024


@dataclass
class MergeReport:
    """What :func:`merge` did: rows copied, rows that were there already, and of what sources.

    ``copied_added`` counts rows of added outputs and blocks of gradient passes
    (:mod:`coarlib.store.inside`).
    """

    copied: int = 0
    present: int = 0
    unverified: tuple[str, ...] = ()
    copied_added: int = 0


def merge(
    out: StoreLike,
    sources: Sequence[StoreLike],
    quiet: bool = True,
    allow_other_task: bool = False,
) -> MergeReport:
    """Copy the committed rows of ``sources`` (stores, or their paths) into ``out``, row i to row i.

    ``out`` is created if absent; rows that it has already with the same digest are left alone, so
    an interrupted merge is finished by running it again. Everything is checked before any row is
    copied, but for rows that turn out torn while they are read.

    Rows that different tasks made are joined only if ``allow_other_task`` says so.

    Raises
    ------
    StoreError
        If specs, designs, seeds or tasks differ, or two stores hold different values for one row.
    TornRowError
        If a source's row does not match its checksum.
    """
    if isinstance(sources, Store | str | Path) or not sources:
        raise StoreError("merge needs a list of one or more stores to read from")
    opened = [Store.open(source) for source in sources]
    out = out.path if isinstance(out, Store) else Path(out)
    target = Store.open(out) if _holds_something(out) else None
    stores = [*opened] if target is None else [target, *opened]
    _check_compatible(stores)
    if not allow_other_task:
        check_same_identity([store.path for store in stores])
    rows = max(source.num_models for source in opened)
    if target is not None and target.num_models < rows:
        raise StoreError(f"{out} has {target.num_models} rows, the sources {rows}; grow it first")
    _check_overlaps(stores)
    if target is None:
        target = _create(out, opened, rows)
    _settle_design(target, opened)
    for source in opened:
        settle_components(target.path, read_components(source.path))
        copy_identities(source.path, target.path, allow_other_task)
    report = MergeReport(unverified=tuple(str(s.path) for s in opened if not s.has_checksums))
    sweep_store(target.path)
    with RowWriter(target) as writer:
        for source in opened:
            _copy_rows(source, target, writer, report, quiet)
            _copy_provenance(source, target)
    _merge_inside(target, opened, report, quiet, allow_other_task)
    return report


def _merge_inside(
    target: Store,
    sources: Sequence[Store],
    report: MergeReport,
    quiet: bool,
    allow_other_task: bool,
) -> None:
    """Merge added outputs, gradient passes and trials, each by the rules of any store."""
    inside = [stores_inside(source) for source in sources]
    for name in sorted({name for part in inside for name in part}):
        with_it = [part[name] for part in inside if name in part]
        there = stores_inside(target).get(name)
        most = max(source.num_models for source in with_it)
        if there is not None and there.num_models < most:
            grow(there, most)
        path = target.path / with_it[0].path.relative_to(_owner(sources, with_it[0]).path)
        found = merge(path, with_it, quiet, allow_other_task)
        report.copied_added += found.copied


def _owner(sources: Sequence[Store], inside: Store) -> Store:
    return next(source for source in sources if inside.path.is_relative_to(source.path))


def _holds_something(path: Path) -> bool:
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; give the directory of the store to make or extend")
    return path.is_dir() and any(path.iterdir())


def _create(out: Path, sources: Sequence[Store], rows: int) -> Store:
    """Create ``out`` with the spec of the sources, and the masks of a design that has a file."""
    first = next((s for s in sources if s.spec.design is not None), sources[0])
    masks = None
    if first.spec.design is not None and first.spec.design.from_file:
        largest = max(sources, key=_rows_of_masks)
        masks = largest.array_file(DESIGN_MASKS).map()
        rows = max(rows, len(masks))
    labels = next((found for s in sources if (found := read_labels(s.path)) is not None), None)
    initialize(out, replace(first.spec, num_models=rows), masks, labels)
    return Store.open(out)


def _rows_of_masks(store: Store) -> int:
    """Return how many rows the design's mask file of a store has; 0 if it has none."""
    design = store.spec.design
    if design is None or not design.from_file:
        return 0
    return store.array_file(DESIGN_MASKS).shape[0]


def _check_compatible(stores: Sequence[Store]) -> None:
    """Refuse stores whose arrays, designs, seeds or mask files differ."""
    one = stores[0]
    for other in stores[1:]:
        here, there = (replace(s.spec, num_models=1, design=None) for s in (one, other))
        differences = here.differences(there)
        inside = ROW_DIGESTS in here.schema or other.path.name in BLOCKS
        if inside and here.outputs != there.outputs:
            differences.append(f"made by {here.outputs} and by {there.outputs}")
        if differences:
            raise StoreError(f"{one.path} and {other.path} do not fit: {'; '.join(differences)}")
    _check_components(stores)
    designed = [store for store in stores if store.design is not None]
    for other in designed[1:]:
        one = designed[0]
        if one.design != other.design:
            shown = [s.design and json.dumps(s.design.as_json()) for s in (one, other)]
            raise StoreError(
                f"{one.path} and {other.path} draw their masks differently: {shown[0]} and "
                f"{shown[1]}"
            )
        _check_mask_files(one, other)


def _check_components(stores: Sequence[Store]) -> None:
    tables = [(s.path, table) for s in stores if (table := read_components(s.path)) is not None]
    for path, table in tables[1:]:
        if found := first_difference(tables[0][1], table):
            raise StoreError(f"{tables[0][0]} and {path} ablate other components: {found}")


def _check_mask_files(one: Store, other: Store) -> None:
    here, there = read_labels(one.path), read_labels(other.path)
    if here is not None and there is not None and not np.array_equal(here, there):
        raise StoreError(f"the labels that {one.path} and {other.path} draw masks by differ")
    common = min(_rows_of_masks(one), _rows_of_masks(other))
    files = [store.array_file(DESIGN_MASKS) for store in (one, other) if common]
    for start in range(0, common, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, common)
        masks = [file.read_rows(start, stop) for file in files]
        if not np.array_equal(masks[0], masks[1]):
            raise StoreError(
                f"the mask files that {one.path} and {other.path} were made with differ within "
                f"rows {start}:{stop}"
            )


def _check_overlaps(stores: Sequence[Store]) -> None:
    """Refuse rows that two stores hold with different digests (digests cover index and bytes)."""
    rows = max(store.num_models for store in stores)
    digests, owners = np.zeros(rows, np.uint64), np.zeros(rows, np.int32)
    for number, store in enumerate(stores):
        mine = np.zeros(rows, np.uint64)
        mine[: store.num_models] = _digests(store)
        differ = np.flatnonzero((digests != 0) & (mine != 0) & (digests != mine))
        if len(differ):
            row = differ[0]
            raise StoreError(
                f"row {row} differs between {stores[owners[row]].path} and {store.path}; nothing "
                "was copied: verify both and withdraw the wrong one"
            )
        new = (digests == 0) & (mine != 0)
        digests[new], owners[new] = mine[new], number


def _digests(store: Store) -> NDArray[np.uint64]:
    """Return the digests of all rows, uint64 [num_models]; computed where a store has none."""
    if store.has_checksums:
        return store.checksums()
    found = np.zeros(store.num_models, np.uint64)
    for block, arrays in store.blocks(tuple(store.spec.schema)):
        found[block] = row_checksums(block, arrays)
    return found


def _settle_design(target: Store, sources: Sequence[Store]) -> None:
    """Carry over the design that the sources were filled by, if the target names none yet."""
    for source in sources:
        if source.design is not None and target.design is None and not source.design.from_file:
            settle_design(target.path, target.spec, source.design)


def _copy_rows(
    source: Store, target: Store, writer: RowWriter, report: MergeReport, quiet: bool
) -> None:
    there = target.completed()
    rows = source.completed_rows()
    report.present += int(there[rows].sum())
    rows = rows[~there[rows]]
    checksums = source.checksums() if source.has_checksums else None
    with Progress(len(rows), f"merging {source.path.name}", quiet=quiet) as progress:
        for block, arrays in source.blocks(tuple(source.spec.schema), rows):
            if checksums is not None:
                torn = block[row_checksums(block, arrays) != checksums[block]]
                if len(torn):
                    raise TornRowError(
                        f"row {torn[0]} of {source.path} does not match its checksum; verify "
                        "and repair it there, fill it again and merge again"
                    )
            writer.write(block, arrays)
            report.copied += len(block)
            progress.advance(len(block))


def _copy_provenance(source: Store, target: Store) -> None:
    """Copy the workers' logs, also those that grew since an earlier merge."""
    directory = target.path / WORKERS_DIR
    try:
        for file in (source.path / WORKERS_DIR).glob("*.jsonl"):
            goal = directory / file.name
            if not goal.exists() or goal.stat().st_size < file.stat().st_size:
                with open(file, "rb") as log, whole_file(goal) as copy:
                    shutil.copyfileobj(log, copy)
    except OSError as error:
        raise StoreError(
            f"cannot copy the workers' logs of {source.path} to {directory}: {error.strerror}"
        ) from error
