"""Do intervals of effects of sets cover, on real models?

    python benchmarks/set_effects.py --out out/frontier

Effects of single filters, of layers and of 20 random filters, from some rows (a quarter held out)
and gradient passes, against those of least squares on all stored rows and trials, whose own error
(robust to unequal variances) is added: the share of sets and of 50 targets whose 95% interval holds
them. Rows have one mask for all targets, so that an error of theirs is the same for all; trials
have masks of their own.
"""

import argparse
from pathlib import Path

import numpy as np
import reporting
from evidence import evidence

import coarlib as cl
from coarlib.gradient_passes import read_passes, read_trials
from coarlib.regression import StoreRows
from coarlib.regression.solvers import Bayes
from coarlib.regression.tables import layers_of

SIZES = {
    "digits": ((60, 32), (200, 96), (600, 256)),
    "resnet20": ((60, 32), (200, 96), (400, 136)),
}
TARGETS, RANDOM = 50, 20


def true_effects(masks, outputs, trials, chosen):
    """Effects [S, T] of sets, columns of ``chosen`` [N, S], and standard errors of them."""
    centred, features = masks - masks.mean(0), masks.shape[1]
    centre = outputs - outputs.mean(0)
    gram, effects, errors = centred.T @ centred, [], []
    for target in range(outputs.shape[1]):
        own = trials.masks(slice(target, target + 1), features)[0].astype(float)
        own -= own.mean(0)
        x = np.concatenate([centred, own])
        y = np.concatenate([centre[:, target], trials.outputs[:, target]])
        y[len(centred) :] -= trials.outputs[:, target].mean()
        inverse = np.linalg.inv(gram + own.T @ own)
        weight = inverse @ (x.T @ y)
        residual = (y - x @ weight) * np.sqrt(len(x) / (len(x) - features))
        effects.append(weight @ chosen)
        errors.append(np.linalg.norm((x @ (inverse @ chosen)) * residual[:, None], axis=0))
    return np.transpose(effects), np.transpose(errors)


def covered(name, out):
    """Share of intervals that cover, by kind of set, at some sizes."""
    store, others = evidence(name, out)
    targets = slice(0, None, others["plain"].shape[1] // TARGETS)
    source = StoreRows(store, targets=targets)
    masks, outputs = source.read(np.arange(len(source.row_ids)))
    outputs, layers = outputs.astype(float), layers_of(source.components)
    rng, count = np.random.default_rng(0), len(layers)
    sets = {
        "single filters": [[at] for at in range(0, count, 3)],
        "20 random filters": [rng.choice(count, 20, replace=False) for _ in range(RANDOM)],
        "layers": [np.flatnonzero(layers == at) for at in np.unique(layers)],
    }
    every = [chosen for some in sets.values() for chosen in some]
    columns = np.zeros((count, len(every)))
    for at, chosen in enumerate(every):
        columns[chosen, at] = 1
    truth, own = true_effects(masks, outputs, read_trials(store, targets), columns)
    for rows, passes in SIZES[name]:
        solver = Bayes(passes=read_passes(store, targets, most=passes), groups=layers)
        some = masks[:rows], outputs[:rows]
        found = cl.fit(*some, solver, held_out=rows // 4, seed=0, device="cpu")
        effects = [found.effect(chosen) for chosen in every]
        width = np.stack([np.subtract(*effect.interval()[::-1]) / 2 for effect in effects])
        off = np.abs(np.stack([effect.value for effect in effects]) - truth)
        inside = (off <= np.hypot(width, 1.96 * own)).mean(1)
        line, start = {"model": name, "rows": rows, "passes": passes}, 0
        for kind, some in sets.items():
            line[kind] = round(float(inside[start : start + len(some)].mean()), 3)
            start += len(some)
        yield line


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/frontier"))
    args = parser.parse_args()
    reporting.one_thread()
    lines = [line for name in SIZES for line in covered(name, args.out)]
    reporting.table("share of 95% intervals that cover", lines)
    reporting.save("set_effects", lines, "torch")


if __name__ == "__main__":
    main()
