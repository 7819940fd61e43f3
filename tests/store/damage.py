"""Damage to every file of a store or a result, and what everything that reads them makes of it."""

import shutil
from dataclasses import dataclass, field

import numpy as np

from coarlib.errors import CoarlibError
from coarlib.regression import Attributions
from coarlib.regression.rows import open_rows
from coarlib.store import RowWriter, Store, initialize
from coarlib.store import layout as store_layout
from coarlib.store import verify as store_verify
from coarlib.store.authors import rows_by_identity
from coarlib.store.checksum import row_checksums
from coarlib.store.components import read_components, settle_components
from coarlib.store.identity import all_identities, settle_identity
from coarlib.store.merge import merge
from coarlib.store.provenance import WorkerLog, read_batches
from coarlib.store.spec import parse_spec_content
from coarlib.store.status import status

SPEC = {
    "num_models": 16,
    "schema": {
        "masks": {"dtype": "bool_", "shape": [6]},
        "margins": {"dtype": "float16", "shape": [3]},
    },
    "design": {"kind": "stratified", "keep_prob": 0.5, "seed": 5},
    "notes": "a store to be damaged",
}
DONE = np.arange(12)
LABELS = np.array([0, 0, 0, 1, 1, 1])
# Files that no row rests on: claims share out work, the lock has no content.
HARMLESS = ("claims",)


def make_store(path):
    """A store as workers leave it, 12 of its 16 rows completed."""
    initialize(path, parse_spec_content(SPEC), labels=LABELS)
    settle_components(path, [{"kind": "block", "module": f"m{i}", "units": 1} for i in range(6)])
    settle_identity(path, "0123456789abcdef", "some:Task")
    store = Store.open(path)
    masks = store.draw_masks(store.design, DONE)
    arrays = {"masks": masks, "margins": (masks[:, :3] + DONE[:, None] + 0.5).astype(np.float16)}
    origin = {"task": "some:Task", "identity": "0123456789abcdef", "settings": {"scale": 0.5}}
    with WorkerLog(path, origin) as log, RowWriter(store) as writer:
        log.batch(DONE, row_checksums(DONE, arrays), 1.0, 2.0)
        writer.write(DONE, arrays)
    return path


def look_at_store(path, scratch):
    """Run what reads stores; return (all that it read, what it said is wrong)."""
    store = Store.open(path)
    report = store_verify.verify(store, threads=1)
    said = [*report.notes, *(() if report.sound else ["not sound"])]
    rows = open_rows(path)
    rows.verify(np.arange(len(rows.row_ids)))
    masks, outputs = rows.read(np.arange(len(rows.row_ids)))
    merge(scratch, [store])
    merged = Store.open(scratch)
    content = (
        store.spec,
        store.design,
        read_components(path),
        all_identities(path),
        {name: found.tolist() for name, found in rows_by_identity(store).items()},
        [(b.ranges, b.digests, b.started, b.seconds, b.worker) for b in read_batches(path)],
        status(store).complete,
        rows.row_ids.tolist(),
        masks.tobytes(),
        outputs.tobytes(),
        merged.completed_rows().tolist(),
        np.array(merged.array("margins")).tobytes(),
    )
    return content, said


def make_result(path):
    """A small result with every file that a fit may leave."""
    rng = np.random.default_rng(0)
    found = Attributions(
        weight=rng.normal(size=(6, 3)).astype(np.float32),
        bias=rng.normal(size=3),
        lam=np.full(3, 0.1),
        mean_mask=np.full(6, 0.5),
        gap=np.zeros(3),
        summary={"solver": "ridge", "num_rows": 12, "lam": 0.1},
        fitted=np.arange(12, dtype=np.uint64),
    )
    found.save(path)
    return path


def look_at_result(path, scratch):
    """Load a result both ways; return what was read."""
    content = []
    for mmap in (False, True):
        a = Attributions.load(path, mmap=mmap)
        arrays = (a.weight, a.bias, a.lam, a.mean_mask, a.gap, a.fitted)
        content += [None if x is None else np.asarray(x).tobytes() for x in arrays]
        content.append(a.summary)
    return content, []


@dataclass
class Found:
    """Of the damage done to one file: refused, reported, harmless; and what must not be."""

    file: str
    done: int = 0
    refused: int = 0
    reported: int = 0
    harmless: int = 0
    silent: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)


def impatient(patch):
    """Do not wait for files that other processes might be changing."""
    patch.setattr(store_verify, "SECONDS_BEFORE_SECOND_LOOK", 0.0)
    patch.setattr(store_layout, "SECONDS_BETWEEN_ATTEMPTS", 0.0)


def attack(path, look, changes, scratch):
    """Apply ``changes(data)`` -> iterator of (what, new bytes) to each file in turn.

    Returns
    -------
    list of Found
        One a file that something rests on.
    """
    truth, _ = look(path, scratch / "merged")
    shutil.rmtree(scratch / "merged", ignore_errors=True)
    results = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = str(file.relative_to(path))
        if name.startswith(HARMLESS):
            continue
        data, found = file.read_bytes(), Found(name)
        for what, changed in changes(data):
            file.write_bytes(changed)
            found.done += 1
            try:
                content, said = look(path, scratch / "merged")
            except CoarlibError as error:
                found.refused += 1
                if "\n" in str(error):
                    found.raised.append(f"{what}: more than a line")
            except Exception as error:  # what a user would see as a traceback
                found.raised.append(f"{what}: {type(error).__name__}: {error}")
            else:
                if said:
                    found.reported += 1
                elif content == truth:
                    found.harmless += 1
                else:
                    found.silent.append(what)
            finally:
                shutil.rmtree(scratch / "merged", ignore_errors=True)
        file.write_bytes(data)
        results.append(found)
    return results


def flipped_bits(stride, first=0):
    """Return a ``changes``: every ``stride``-th bit flipped, from ``first`` on."""

    def changes(data):
        for bit in range(first % stride, 8 * len(data), stride):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            yield f"bit {bit}", bytes(changed)

    return changes


def mutations(rng, count):
    """Return a ``changes``: bytes overwritten, parts cut, doubled or swapped, ends lost."""

    def changes(data):
        for number in range(count):
            changed = bytearray(data)
            for _ in range(rng.integers(0, 4)):
                changed[rng.integers(len(changed))] = rng.integers(256)
            kind = rng.integers(5)
            a, b = sorted(rng.integers(0, len(changed) + 1, 2))
            if kind == 0:
                changed = changed[: max(1, a)]
            elif kind == 1:
                changed = changed[:a] + changed[b:]
            elif kind == 2:
                changed = changed[:b] + changed[a:]
            yield f"mutation {number}", bytes(changed)

    return changes
