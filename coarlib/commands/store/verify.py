"""Check every completed row of a store against its checksum, and repair what is torn.

    coar verify STORE [--rows 0:1000] [--repair] [--adopt]

Prints the rows whose bytes do not match and exits with 1 if there are any. With --repair they are
marked as not completed, so that workers fill them again, and flags of sound rows are restored. With
--adopt, rows that other programs wrote into the store are checked and kept, and a directory that
COAR's or datamodels' scripts made becomes a store.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.leaving import after_rows
from coarlib.store import Store
from coarlib.store.added import stale_rows
from coarlib.store.adopt import adopt
from coarlib.store.inside import BLOCKS, stores_inside
from coarlib.store.verify import verify

COMMAND = Command(
    "verify",
    __doc__,
    {
        "store": common.store(),
        "rows": common.rows(),
        "repair": common.flag("mark torn rows as not completed"),
        "adopt": common.flag("keep rows that COAR's or datamodels' own scripts wrote"),
        "drop_adoptable": common.flag("with --repair, drop rows of other programs, too"),
        "threads": Param(Whole(1), "threads; default: all cores"),
    },
)
SHOWN = 20


def main(argv: Sequence[str] | None = None) -> None:
    """Verify the store that the arguments name, and the stores inside it."""
    args = COMMAND.parse(argv)
    if args.adopt:
        _adopt(args.store)
    store = Store.open(args.store)
    rows = common.rows_of(args.rows, store.num_models)
    sound = _verify(store, rows, args)
    for name, inside in stores_inside(store).items():
        passes = name in BLOCKS
        print(f"{name.replace('_', ' ')}:" if passes else f"added output {name}:")
        part = (0, inside.num_models) if passes else (rows[0], min(rows[1], inside.num_models))
        sound &= _verify(inside, part, args)
        if not passes and (stale := len(stale_rows(store, inside))):
            print(f"{stale} rows are stale: run coar add_output with --rerun")
            sound = False
    if not sound:
        sys.exit(1)
    print(after_rows(Store.open(args.store)))


def _adopt(path: str) -> None:
    """Adopt what can be adopted, in words."""
    found = adopt(path)
    print(f"{len(found.good)} rows of another program adopted")
    for row, reason in sorted(found.refused.items())[:SHOWN]:
        print(f"row {row} is not: {reason}")
    if len(found.refused) > SHOWN:
        print(f"{len(found.refused) - SHOWN} more are not")


def _verify(store: Store, rows: tuple[int, int], args: Arguments) -> bool:
    """Verify (and repair) rows of one store, in words; whether nothing is left to do."""
    started = time.monotonic()
    report = verify(
        store,
        rows,
        args.repair,
        drop_adoptable=args.drop_adoptable,
        threads=args.threads,
        quiet=False,
    )
    seconds = time.monotonic() - started
    print(
        f"{report.checked} completed rows checked in {seconds:.1f} s "
        f"({report.bytes / 1e9 / max(seconds, 1e-9):.2f} GB/s)"
    )
    for rows_found, what in (
        (report.torn, "do not match their checksum"),
        (report.unflagged, "are committed without their completed flag"),
        (report.unfounded, "are flagged as completed without a checksum"),
        (report.adoptable, "of these hold whole rows of another program: --adopt keeps them"),
        (report.other_masks, "have another mask than the store's design draws"),
    ):
        if rows_found:
            shown = ", ".join(map(str, rows_found[:SHOWN]))
            more = ", …" if len(rows_found) > SHOWN else ""
            print(f"{len(rows_found)} rows {what}: {shown}{more}")
    for line in report.notes:
        print(line)
    if report.sound:
        print("no row is torn or altered")
    elif report.repaired:
        print("repaired: run the workers again for the rows that are no longer completed")
    elif report.torn or report.unflagged or set(report.unfounded) - set(report.adoptable):
        print("run with --repair to have them filled again")
    return report.sound or report.repaired


if __name__ == "__main__":
    run(main)
