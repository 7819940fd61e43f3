"""Write the finished rows of a store as a .beton for ffcv, fast_l1 and run_regression.

    coar write_dataset STORE --out X.beton

The file has one sample a completed row: mask (bool), targets (float32) and idx, the row of the
store. It appears under its name only when it is whole; an interrupted write starts over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.beton.dataset import write_store
from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.leaving import keep_arguments, next_step
from coarlib.store import Store

COMMAND = Command(
    "write_dataset",
    __doc__,
    {
        "store": common.store("directory of the store", "cfg.data_dir"),
        "out": common.out(
            "the .beton to write; default: beside the store", "cfg.out_path", "cfg.out_dir"
        ),
        "x_name": common.x_name("cfg.x_name"),
        "y_name": common.y_name("cfg.y_name"),
        "targets": Param(
            str, "write these targets only: A:B or a single index", also=("cfg.y_slice",)
        ),
        "dtype": Param(
            str,
            "float32, float64, or float16 (not for ffcv)",
            default="float32",
            also=("cfg.y_dtype",),
        ),
        "completed_name": Param(
            str, "the array of finished flags", default="_completed", also=("cfg.completed_name",)
        ),
        "ignore_completed": common.flag("write unfinished rows too", "cfg.ignore_completed"),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data set that the arguments describe."""
    args = COMMAND.parse(argv)
    out = args.out or Path(args.store).with_suffix(".beton")
    count = write_store(
        Store.open(args.store),
        out,
        args.x_name,
        args.y_name,
        y_slice=args.targets,
        y_dtype=args.dtype,
        completed_name=args.completed_name,
        ignore_completed=args.ignore_completed,
    )
    print(f"wrote {count} rows to {out} ({Path(out).stat().st_size / 1e6:.1f} MB)")
    keep_arguments(args, out)
    print(next_step("run_regression", out))


if __name__ == "__main__":
    run(main)
