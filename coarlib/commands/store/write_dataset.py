"""Write the finished rows of a store as a .beton for ffcv, fast_l1 and run_regression.

    python -m write_dataset --cfg.data_dir STORE --cfg.out_path X.beton \\
        --cfg.x_name masks --cfg.y_name test_margins

The file has one sample a completed row: mask (bool), targets (float32) and idx, the row of the
store. It appears under its name only when it is whole; an interrupted write starts over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coarlib.beton.dataset import write_store
from coarlib.commands.arguments import Boolean, Param, parse, run
from coarlib.store import Store

SECTIONS = {
    "cfg": {
        "data_dir": Param(str, "directory of the store", required=True),
        "out_path": Param(str, "the .beton to write", required=True),
        "x_name": Param(str, "the store's array of masks (default: the design's)"),
        "y_name": Param(str, "the store's array of outputs (default: the only one)"),
        "y_slice": Param(str, "write these targets only: a:b or a single index"),
        "y_dtype": Param(str, "float32, float64, or float16 (not for ffcv)", default="float32"),
        "completed_name": Param(str, "the array of finished flags", default="_completed"),
        "ignore_completed": Param(Boolean(), "write unfinished rows too", default=False),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data set that the arguments describe."""
    cfg = parse(__doc__ or "", SECTIONS, argv).cfg
    count = write_store(
        Store.open(cfg.data_dir),
        cfg.out_path,
        cfg.x_name,
        cfg.y_name,
        y_slice=cfg.y_slice,
        y_dtype=cfg.y_dtype,
        completed_name=cfg.completed_name,
        ignore_completed=cfg.ignore_completed,
    )
    size = Path(cfg.out_path).stat().st_size
    print(f"wrote {count} rows to {cfg.out_path} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
