"""Small stores and fits that reports are made of."""

import json

import numpy as np

from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.rows import StoreRows
from coarlib.regression.split import Split
from coarlib.store import Store

FEATURES, TARGETS, ROWS = 12, 8, 160
LAYERS = [("first", 4), ("second", 8)]


def make_store(path, rows=ROWS, complete=None, features=FEATURES, targets=TARGETS):
    """A store in COAR's layout whose outputs are linear in the masks, with some noise."""
    rng = np.random.default_rng(0)
    masks = rng.random((rows, features)) < 0.8
    weight = rng.normal(size=(features, targets))
    outputs = masks @ weight + 0.3 * rng.normal(size=(rows, targets))
    path.mkdir(parents=True)
    done = np.arange(rows) < (rows if complete is None else complete)
    outputs[~done], masks[~done] = 0, False
    for name, array in (  # no spec.json, so no checksums to compute
        ("masks", masks),
        ("test_margins", outputs.astype(np.float16)),
        ("_completed", done),
    ):
        np.save(path / f"{name}.npy", array)
    return path


def make_fit(store, out, held_out=40):
    """Attributions of all completed rows of a store."""
    source = StoreRows(Store.open(store))
    rows = np.arange(len(source.row_ids))
    split = Split(rows[: len(rows) - held_out], rows[len(rows) - held_out :])
    found = fit_and_score(source, split, "ridge", FitOptions(quiet=True, say=lambda _: None))
    found.summary |= {"data": str(store), "seed": None}
    found.save(out)
    return out


def make_case(directory, **options):
    """A directory with store/, attributions/, an LDS result and names of everything."""
    store = make_store(directory / "store", **options)
    make_fit(store, directory / "attributions")
    correlation = np.linspace(0.1, 0.8, TARGETS)
    np.savez(directory / "trak.npz", correlation=correlation)
    summary = {
        "mean": 0.45,
        "kind": "spearman",
        "interval": {"low": 0.4, "high": 0.5},
        "num_rows": 40,
        "num_targets": TARGETS,
        "share_p_below_05": 0.75,
    }
    (directory / "trak.json").write_text(json.dumps(summary))
    lines = [
        {"method": m, "fraction": f, "pearson": r, "pearson_low": r - 0.1, "pearson_high": r + 0.1}
        for m, r in (("COAR", 0.8), ("random", 0.0))
        for f in (0.1, 0.2)
    ]
    (directory / "evaluation.json").write_text(json.dumps({"lines": lines}))
    groups = [
        {"module": name, "parameter": "weight", "kind": "conv_filter", "axis": 0, "units": units}
        for name, units in LAYERS
    ]
    (directory / "components.json").write_text(json.dumps(groups))
    rng = np.random.default_rng(1)
    np.savez(
        directory / "examples.npz",
        images=rng.integers(0, 255, (TARGETS, 9, 9, 3), dtype=np.uint8),
        labels=np.arange(TARGETS) % 3,
        class_names=np.array(["cat", "dog", "</script><b>crab"]),
        texts=np.array([f"the {word} picture" for word in "abcdefgh"]),
    )
    return directory


def report_arguments(directory):
    """Arguments of coar report that show everything of a case."""
    return [
        str(directory),
        "--examples",
        str(directory / "examples.npz"),
        "--components",
        str(directory / "components.json"),
        "--quiet",
    ]
