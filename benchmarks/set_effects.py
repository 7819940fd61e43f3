"""Do intervals of effects of sets cover, on a real model?

    python benchmarks/set_effects.py --out out/frontier

The digits CNN: effects of single filters, of layers and of 20 random filters, from some rows (a
quarter held out) and gradient passes, against those of least squares on 5,400 rows, whose own error
(robust to unequal variances) is added: the share of sets and of 50 targets whose 95% interval holds
them.
"""

import argparse
from pathlib import Path

import numpy as np
import reporting
from evidence import evidence

import coarlib as cl
from coarlib.gradient_passes import read_passes
from coarlib.regression import StoreRows
from coarlib.regression.solvers import Bayes
from coarlib.regression.tables import layers_of

SIZES = ((60, 32), (200, 96), (600, 256))
STEP, RANDOM = 9, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/frontier"))
    args = parser.parse_args()
    reporting.one_thread()
    store, _ = evidence("digits", args.out)
    targets = slice(0, None, STEP)
    source = StoreRows(store, targets=targets)
    masks, outputs = source.read(np.arange(len(source.row_ids)))
    outputs, layers = outputs.astype(float), layers_of(source.components)
    truth = cl.fit(masks, outputs, "least_squares", held_out=0, device="cpu")
    centred, residual = masks - masks.mean(0), outputs - truth.predict(masks)
    inverse = np.linalg.inv(centred.T @ centred)
    rng, count = np.random.default_rng(0), len(layers)
    sets = {
        "single filters": [[at] for at in range(0, count, 3)],
        "layers": [np.flatnonzero(layers == at) for at in np.unique(layers)],
        "20 random filters": [rng.choice(count, 20, replace=False) for _ in range(RANDOM)],
    }
    lines = []
    for rows, passes in SIZES:
        sums = read_passes(store, targets, most=passes)
        solver = Bayes(passes=sums, groups=layers)
        some = masks[:rows], outputs[:rows]
        found = cl.fit(*some, solver, held_out=rows // 4, seed=0, device="cpu")
        line = {"rows": rows, "passes": passes}
        for name, chosen in sets.items():
            covered = []
            for features in chosen:
                effect = found.effect(features)
                low, high = effect.interval()
                along = centred @ inverse[:, features].sum(1)
                width = (high - low) / 2
                own = 1.96 * np.sqrt(np.square(along[:, None] * residual).sum(0))
                off = np.abs(effect.value - truth.weight[features].sum(0))
                covered.append((off <= np.hypot(width, own)).mean())
            line[name] = round(float(np.mean(covered)), 3)
        lines.append(line)
    reporting.table("share of 95% intervals that cover", lines)
    reporting.save("set_effects", lines, "torch")


if __name__ == "__main__":
    main()
