"""Compile everything once, so that no job does: for images, and before a cluster's first array.

coar warmup
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coarlib.commands.arguments import Command, run
from coarlib.compiled import cache_directory, compiling_everything
from coarlib.regression import Lasso, Moments, fit
from coarlib.regression.rows import ArrayRows
from coarlib.regression.split import Split
from coarlib.retraining.convolutions import compile_layers
from coarlib.scoring.lds import lds
from coarlib.statistics.ranks import doubled_ranks

COMMAND = Command("warmup", __doc__, {})
DTYPES = (np.float16, np.float32, np.float64)


def main(argv: Sequence[str] | None = None) -> None:
    """Compile the library's kernels for all the types that stores hold."""
    COMMAND.parse(argv)
    with compiling_everything():
        for dtype in DTYPES:
            warm_up(np.dtype(dtype))
        compile_layers()
    place = cache_directory()
    if place is None:
        print("compiled, but there is nowhere to keep it: set NUMBA_CACHE_DIR to such a directory")
    else:
        print(f"compiled; kept in {place}")


def warm_up(dtype: np.dtype[np.floating]) -> None:
    """Run whatever is compiled on a problem of no size, with outputs of a type."""
    rng = np.random.default_rng(0)
    masks = rng.random((120, 12)) < 0.95
    outputs = (masks @ rng.normal(size=(12, 80)) + rng.normal(size=(120, 80))).astype(dtype)
    rows = ArrayRows(masks, outputs)
    split = Split(np.arange(90), np.arange(90, 120))
    moments = Moments.from_rows(rows, split.train)
    held = Moments.from_rows(rows, split.validation)
    fit(moments, Lasso(num_lambdas=3), validation=held)
    scores = rng.normal(size=(12, 80)).astype(dtype)
    for kind in ("spearman", "pearson", "kendall"):
        _ = lds(scores, masks, outputs, kind).interval
    doubled_ranks(np.zeros((5000, 1), dtype))  # counted, if 16 bits hold them


if __name__ == "__main__":
    run(main)
