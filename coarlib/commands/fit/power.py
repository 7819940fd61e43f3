"""How many rows are enough: the learning curve of a store or .beton, extrapolated.

coar power STORE
coar power STORE --solver shared_prior --held_out 0.3
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.fit.run_regression import COMMAND as REGRESSION
from coarlib.commands.fit.run_regression import ROWS, rows_of
from coarlib.commands.leaving import again, next_step
from coarlib.commands.own_classes import solver_name
from coarlib.devices import resolve_device
from coarlib.regression.learning_curve import learning_curve
from coarlib.regression.rows import verified_note
from coarlib.store import Store

COMMAND = Command(
    "power",
    __doc__,
    {
        **ROWS,
        "store": common.store("a store directory or a .beton"),
        "held_out": Param(float, "share of the rows that score the fits", default=0.2),
        "solver": Param(str, "whose curve, as in run_regression", default="ridge"),
        "points": Param(Whole(1), "row counts on the curve", default=6),
        "device": common.device(),
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the learning curve."""
    args = COMMAND.parse(argv)
    source, split = rows_of(args)
    if args.verify:
        print(verified_note(source, np.union1d(split.train, split.validation)))
    curve = learning_curve(
        source,
        split.train,
        split.validation,
        solver=solver_name(args.solver),
        points=args.points,
        device=resolve_device(args.device),
        quiet=False,
    )
    print(curve.table())
    print(curve)
    print(_next(args))


def _next(args: Arguments) -> str:
    """Return the step after the curve: to fit the rows, or, where that was done, to have more."""
    if not Path(args.store).is_dir() or not common.beside(args.store, "attributions").exists():
        return again(args, REGRESSION)
    return next_step("grow", args.store, rows=2 * Store.open(args.store).num_models)


if __name__ == "__main__":
    run(main)
