"""Joining stores that were filled apart."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError, TornRowError
from coarlib.progress import Progress
from coarlib.spec import StoreSpec
from coarlib.store.checksum import row_checksums
from coarlib.store.create import initialize
from coarlib.store.layout import DESIGN_FILE, DESIGN_MASKS, WORKERS_DIR, ArrayFile, array_path
from coarlib.store.reader import Store
from coarlib.store.writer import RowWriter


@dataclass
class MergeReport:
    """What :func:`merge` did: rows copied, rows that were there already, and of what sources."""

    copied: int = 0
    present: int = 0
    unverified: tuple[str, ...] = ()


def merge(out: str | Path, sources: Sequence[Store], quiet: bool = True) -> MergeReport:
    """Copy the committed rows of ``sources`` into the store ``out``, row i to row i.

    ``out`` is created if absent; rows that it has already with the same digest are left alone, so
    an interrupted merge is finished by running it again. Everything is checked before any row is
    copied, but for rows that turn out torn while they are read.

    Raises
    ------
    StoreError
        If specs, designs or seeds differ, or two stores hold different values for one row.
    TornRowError
        If a source's row does not match its checksum.
    """
    if not sources:
        raise StoreError("merge needs at least one store to read from")
    spec = _common_spec(sources)
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        target = Store.open(out)
        _check_compatible(target, sources)
        if target.num_models < spec.num_models:
            raise StoreError(
                f"{out} has {target.num_models} rows, the sources {spec.num_models}; grow it first"
            )
        _check_overlaps([target, *sources])
    else:
        _check_overlaps(sources)
        initialize(out, spec, _design_masks(sources, spec))
        target = Store.open(out)
    _copy_design(sources, target)
    report = MergeReport(unverified=tuple(str(s.path) for s in sources if not s.verified))
    with RowWriter(target) as writer:
        for source in sources:
            _copy_rows(source, target, writer, report, quiet)
            _copy_provenance(source, target)
    return report


def _common_spec(sources: Sequence[Store]) -> StoreSpec:
    """Return the spec of all sources, with the rows of the largest."""
    _check_compatible(sources[0], sources[1:])
    with_design = [s for s in sources if s.spec.design is not None]
    first = (with_design or list(sources))[0].spec
    return replace(first, num_models=max(source.num_models for source in sources))


def _check_compatible(one: Store, others: Sequence[Store]) -> None:
    for other in others:
        here = replace(one.spec, num_models=1, design=None)
        there = replace(other.spec, num_models=1, design=None)
        differences = here.differences(there)
        if differences:
            raise StoreError(f"{one.path} and {other.path} do not fit: {'; '.join(differences)}")
        designs = one.design, other.design
        if None not in designs and designs[0] != designs[1]:
            shown = [None if d is None else d.as_json() for d in designs]
            raise StoreError(
                f"{one.path} and {other.path} draw their masks differently: {shown[0]} and "
                f"{shown[1]}"
            )


def _check_overlaps(stores: Sequence[Store]) -> None:
    """Refuse rows that two stores hold with different digests (digests cover index and bytes)."""
    seen: dict[int, tuple[int, Store]] = {}
    for store in stores:
        rows = store.completed_rows()
        for row, digest in zip(rows.tolist(), _digests(store, rows).tolist(), strict=True):
            other = seen.setdefault(row, (digest, store))
            if other[0] != digest:
                raise StoreError(
                    f"row {row} differs between {other[1].path} and {store.path}; nothing was "
                    "copied: verify both and withdraw the wrong one"
                )


def _digests(store: Store, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    if store.verified:
        return store.checksums()[rows]
    keys = tuple(store.spec.schema)
    found = [row_checksums(block, arrays) for block, arrays in store.blocks(keys, rows)]
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def _design_masks(sources: Sequence[Store], spec: StoreSpec) -> NDArray[Any] | None:
    if spec.design is None or not spec.design.from_file:
        return None
    largest = max(sources, key=lambda source: source.num_models)
    return ArrayFile.read(array_path(largest.path, DESIGN_MASKS)).map()


def _copy_design(sources: Sequence[Store], target: Store) -> None:
    """Carry over a design that a first worker settled."""
    for source in sources:
        file = source.path / DESIGN_FILE
        if target.design is None and file.is_file():
            shutil.copyfile(file, target.path / DESIGN_FILE)


def _copy_rows(
    source: Store, target: Store, writer: RowWriter, report: MergeReport, quiet: bool
) -> None:
    there = target.completed()
    rows = source.completed_rows()
    report.present += int(there[rows].sum())
    rows = rows[~there[rows]]
    checksums = source.checksums() if source.verified else None
    with Progress(len(rows), f"merging {source.path.name}", quiet=quiet) as progress:
        for block, arrays in source.blocks(tuple(source.spec.schema), rows):
            if checksums is not None:
                torn = block[row_checksums(block, arrays) != checksums[block]]
                if len(torn):
                    raise TornRowError(
                        f"row {torn[0]} of {source.path} does not match its checksum; run "
                        "coar verify --repair there, fill it again and merge again"
                    )
            writer.write(block, arrays)
            report.copied += len(block)
            progress.advance(len(block))


def _copy_provenance(source: Store, target: Store) -> None:
    for file in (source.path / WORKERS_DIR).glob("*.jsonl"):
        goal = target.path / WORKERS_DIR / file.name
        if not goal.exists():
            shutil.copyfile(file, goal)
