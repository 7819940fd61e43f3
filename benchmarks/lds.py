"""LDS, rank correlation and mislabel AUC: times and differences against dattri, TRAK and scipy.

    python benchmarks/lds.py

Every side gets the same arrays, one thread, one call that warms it up, and the best of the same
turns. Peers compute what they compute in use: p-values are included everywhere. The physical limit
beside each ratio is the part that no method avoids: the float64 product of masks and scores, or
sorting the same numbers as plain integers. Besides wall time, processor time is shown, which other
work on the machine disturbs less. dattri's AUC compares all pairs: 50,000 examples,
where others stand side by side too, are too many for it.
"""

import numpy as np
import reporting
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from coarlib.scoring import correlate, lds, mislabel_detection_auc

try:
    from dattri import metric as dattri
except ImportError:
    dattri = None


def main():
    reporting.one_thread()
    results = {
        "lds": subsets_of_examples(),
        "rank_correlation": many_rows(),
        "mislabel_auc": mislabel(2_000),
        "mislabel_auc_large": mislabel(50_000, with_dattri=False),
    }
    reporting.save("lds", results, "scipy", "numba", "torch", "dattri", "scikit-learn")


def subsets_of_examples(subsets=100, examples=5000, targets=1000):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((examples, targets)).astype("f4")
    indices = np.stack([rng.choice(examples, examples // 2, replace=False) for _ in range(subsets)])
    masks = np.zeros((subsets, examples), dtype=bool)
    np.put_along_axis(masks, indices, True, axis=1)
    noise = 80 * rng.standard_normal((subsets, targets))
    margins = (masks.astype("f4") @ scores + noise).astype("f4")
    torch_scores, truth = torch.tensor(scores), (torch.tensor(margins), torch.tensor(indices))

    def trak_form():
        predicted = (torch.tensor(masks).float() @ torch_scores).numpy()
        return np.array([spearmanr(predicted[:, t], margins[:, t]) for t in range(targets)])

    doubles, as_doubles = scores.astype("f8"), masks.astype("f8")
    calls = {
        "coarlib": lambda: lds(scores, masks, margins, interval=False),
        "coarlib with interval": lambda: lds(scores, masks, margins),
        "TRAK form (product + scipy loop)": trak_form,
        "limit: float64 product": lambda: as_doubles @ doubles,
    }
    if dattri:
        calls["dattri.metric.lds"] = lambda: dattri.lds(torch_scores, truth)
    times = reporting.best_times(5, **calls)
    found = lds(scores, masks, margins, interval=False)
    exact = masks.astype("f8") @ doubles
    r, p = np.array([spearmanr(exact[:, t], margins[:, t]) for t in range(targets)]).T
    difference = {
        "r": float(np.abs(found.correlation - r).max()),
        "p": float(np.abs(found.p_value - p).max()),
    }
    title = f"LDS with p-values, M={subsets}, N={examples}, T={targets}, float32"
    return report(title, times, difference)


def many_rows(rows=10_000, targets=2_000):
    rng = np.random.default_rng(0)
    predicted = rng.standard_normal((rows, targets))
    margins = (predicted + rng.standard_normal((rows, targets))).astype("f2")

    def scipy_loop():
        return np.array([spearmanr(predicted[:, t], margins[:, t]) for t in range(targets)])

    keys = (
        rng.integers(0, 2**63, (targets, rows), dtype="u8"),
        rng.integers(0, 2**32, (targets, rows), dtype="u4"),
    )
    found = correlate(predicted, margins)
    r, p = scipy_loop().T
    times = reporting.best_times(
        3,
        **{
            "coarlib": lambda: correlate(predicted, margins),
            "scipy loop": scipy_loop,
            "limit: sorting both as integers": lambda: [np.sort(k) for k in keys],
        },
    )
    distinct = int(np.median([np.unique(column).size for column in margins.T[:50]]))
    title = (
        f"Spearman with p-values, M={rows}, T={targets}, float64 and float16 ({distinct} distinct)"
    )
    difference = {
        "r": float(np.abs(found.r - r).max()),
        "p": float(np.abs(found.p - p).max()),
    }
    return report(title, times, difference)


def mislabel(count, with_dattri=True):
    rng = np.random.default_rng(0)
    wrong = rng.random(count) < 0.1
    scores = (rng.standard_normal(count) + wrong).round(2)
    calls = {
        "coarlib": lambda: mislabel_detection_auc(scores, wrong),
        "scikit-learn": lambda: roc_auc_score(wrong, scores),
        "limit: sorting the scores": lambda: np.sort(scores),
    }
    if dattri and with_dattri:
        tensors = torch.tensor(scores), torch.tensor(wrong)
        calls["dattri (all pairs)"] = lambda: dattri.mislabel_detection_auc(*tensors)
    times = reporting.best_times(5, **calls)
    difference = abs(mislabel_detection_auc(scores, wrong).auc - roc_auc_score(wrong, scores))
    return report(f"mislabel AUC, n={count}, tied scores", times, {"auc": difference})


def report(title, times, difference):
    wall, processor = times["coarlib"]
    rows = [
        {
            "method": name,
            "wall ms": 1e3 * found[0],
            "processor ms": 1e3 * found[1],
            "times coarlib (wall)": found[0] / wall,
            "times coarlib (processor)": found[1] / processor,
        }
        for name, found in times.items()
    ]
    reporting.table(title, rows)
    print(f"  largest difference from the oracle: {difference}")
    return {"problem": title, "methods": rows, "difference_from_oracle": difference}


if __name__ == "__main__":
    main()
