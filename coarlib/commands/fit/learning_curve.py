"""How many rows are enough: the learning curve of a store or .beton, extrapolated.

coar power STORE
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coarlib.commands.arguments import PLAIN, Boolean, Param, Whole, parse, run
from coarlib.commands.fit.run_regression import target_range
from coarlib.devices import resolve_device
from coarlib.errors import RegressionError
from coarlib.regression.learning_curve import learning_curve
from coarlib.regression.rows import open_rows, verified_note
from coarlib.regression.split import split_rows

POSITIONAL = {"data": Param(str, "a store directory or a .beton", required=True)}
SECTIONS = {
    PLAIN: {
        "held_out": Param(float, "share of the rows that score the fits", default=0.2),
        "solver": Param(str, "whose curve: ridge, least_squares, lasso …", default="ridge"),
        "points": Param(Whole(1), "row counts on the curve", default=6),
        "x_name": Param(str, "the mask array of a store (default: the design's)"),
        "y_name": Param(str, "the output array of a store (default: the only real-valued one)"),
        "target_start_ind": Param(int, "first target", default=0),
        "target_end_ind": Param(int, "one past the last target; -1 = all", default=-1),
        "device": Param(str, "auto, cpu, cuda …", default="auto"),
        "verify": Param(Boolean(), "compare the rows with their checksums first", default=True),
        "seed": Param(Whole(0), "shuffle which rows are held out; without it, the last ones"),
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the learning curve."""
    args = parse(__doc__ or "", SECTIONS, argv, positional=POSITIONAL)
    options = args.options
    if not 0 < options.held_out < 1:
        raise RegressionError(f"--held_out must be between 0 and 1, not {options.held_out:g}")
    targets = target_range(options, "--")
    source = open_rows(args.data, options.x_name, options.y_name, targets)
    total = len(source.row_ids)
    held = max(2, round(options.held_out * total))
    split = split_rows(source, total - held, held, options.seed)
    if options.verify:
        print(verified_note(source, np.arange(total)))
    curve = learning_curve(
        source,
        split.train,
        split.validation,
        solver=options.solver,
        points=options.points,
        device=resolve_device(options.device),
        quiet=False,
    )
    print(curve.table())
    print(curve)


if __name__ == "__main__":
    run(main)
