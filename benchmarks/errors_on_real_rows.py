"""Do the standard errors of least squares hold on real rows? Refits on disjoint halves of a store.

    python benchmarks/errors_on_real_rows.py

The rows are those of the digits set-up, filled where they are not; --store takes others.
A random split gives two fits of independent rows, whose weights differ by √2 standard deviations of
one: that is the empirical one, from many splits and with no truth known. The strongest are each
target's ten largest mean weights. A 95% interval covers where the difference of the two fits is
within 1.96 times the root of the sum of their squared errors.
"""

import argparse
from pathlib import Path

import numpy as np
import reporting

from coarlib.commands.store import initialize_store, make_dataset
from coarlib.regression import ArrayRows, LeastSquares, Moments, fit, open_rows

STRONGEST, Z = 10, 1.96
STORE = reporting.ROOT / "out" / "errors" / "store"


def halves(rows, count, rng):
    """Two disjoint halves of ``count`` rows."""
    drawn = rng.permutation(len(rows.row_ids))[:count]
    return np.sort(drawn[: count // 2]), np.sort(drawn[count // 2 :])


def measure(rows, count, splits):
    """Ratio of empirical and reported sd, and coverage, for both kinds of errors."""
    rng = np.random.default_rng(0)
    kinds = ("robust", "classical")
    squares, total, fits = 0.0, 0.0, 0
    reported, covered = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0)
    for _ in range(splits):
        pair = []
        for half in halves(rows, count, rng):
            moments = Moments.from_rows(rows, half)
            pair.append({
                kind: fit(moments, LeastSquares(errors=kind), rows=(rows, half)) for kind in kinds
            })  # fmt: skip
        first, second = (found["robust"].weight.astype(float) for found in pair)
        squares = squares + (first - second) ** 2 / 2
        total, fits = total + first + second, fits + 2
        for kind in kinds:
            variance = sum(found[kind].standard_error ** 2 for found in pair)
            reported[kind] = reported[kind] + variance / 2
            covered[kind] = covered[kind] + (abs(first - second) <= Z * np.sqrt(variance))
    strongest = np.argsort(-abs(total), axis=0)[:STRONGEST]
    line = {"rows of a fit": count // 2, "splits": splits}
    for kind in kinds:
        ratio = squares / np.maximum(reported[kind], 1e-300)
        share = covered[kind] / splits
        top = (np.take_along_axis(values, strongest, 0) for values in (ratio, share))
        top_ratio, top_share = (float(np.nanmean(values)) for values in top)
        line |= {
            f"{kind}: sd over reported": round(float(np.sqrt(ratio.mean())), 3),
            f"{kind}: the same, strongest": round(top_ratio**0.5, 3),
            f"{kind}: coverage": round(float(share.mean()), 3),
            f"{kind}: coverage, strongest": round(top_share, 3),
        }
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--counts", type=int, nargs="+", default=[800, 1200, 3000])
    args = parser.parse_args()
    if args.store == STORE:
        initialize_store.main([str(STORE), "--spec", "digits"])
        make_dataset.main([str(STORE), "--task", "digits", "--set", f"model_path={STORE}.pt"])
    source = open_rows(args.store)
    masks, outputs = source.read(np.arange(len(source.row_ids)))
    rows = ArrayRows(masks, outputs)
    table = [measure(rows, min(count, len(masks)), args.splits) for count in args.counts]
    for line in table:
        print(line)
    results = {
        "features": rows.num_features,
        "targets": rows.num_targets,
        "source": source.description.replace(str(args.store), args.store.name),
        "table": table,
    }
    reporting.save("errors_on_real_rows", results, "torch", "numba")


if __name__ == "__main__":
    main()
