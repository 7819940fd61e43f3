"""Score attributions against a store: the linear datamodeling score with p-values and interval.

    python -m score_lds --data.store STORE --data.scores FILE_OR_DIRECTORY \\
        [--data.x_name masks --data.y_name test_margins --data.rows 900:1000] [--cfg.out lds.json]

Only completed rows are scored, once their checksums are verified. Score rows that no fit has seen:
say which with --data.rows. The result is written as JSON, and beside it, as .npz, the correlation
and p-value of every target.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.commands.arguments import Boolean, Param, Whole, parse, run
from coarlib.errors import ArgumentError, ScoringError
from coarlib.files import whole_file
from coarlib.scoring import LDSResult, UndefinedCorrelationWarning, lds
from coarlib.scoring.score_files import load_scores
from coarlib.store import Store
from coarlib.store.added import store_of_output
from coarlib.store.verify import refuse_torn

SECTIONS = {
    "data": {
        "store": Param(str, "directory of the store", required=True),
        "scores": Param(
            str, "scores [N, T]: .npy, .pt, .safetensors or a directory", required=True
        ),
        "score_key": Param(str, "which tensor of a file that holds several"),
        "x_name": Param(str, "the store's array of masks (default: the design's)"),
        "y_name": Param(str, "the store's array of outputs (default: the only one)"),
        "rows": Param(str, "rows of the store to score on, a:b (default: all completed)"),
    },
    "cfg": {
        "out": Param(str, "where to write the result (.json; an .npz is put beside it)"),
        "kind": Param(str, "spearman, pearson or kendall", default="spearman"),
        "higher_is_better": Param(Boolean(), "0 if the outputs are losses", default=True),
        "resamples": Param(int, "bootstrap resamples of the rows; 0: no interval", default=1000),
        "seed": Param(Whole(0), "seed of the bootstrap", default=0),
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print and write the LDS of the scores that the arguments name."""
    args = parse(__doc__ or "", SECTIONS, argv)
    data, cfg = args.data, args.cfg
    out = None if cfg.out is None else _output_path(cfg.out)
    store = store_of_output(Store.open(data.store), data.y_name)
    rows = _rows(store, data.rows)
    x_name, y_name = store.masks_name(data.x_name), store.outputs_name(data.y_name)
    scores = load_scores(data.scores, data.score_key)
    with warnings.catch_warnings():  # the counts are printed below, in words
        warnings.simplefilter("ignore", UndefinedCorrelationWarning)
        result = lds(
            scores,
            _take(store.array(x_name), rows),
            _take(store.array(y_name), rows),
            cfg.kind,
            higher_is_better=cfg.higher_is_better,
            resamples=cfg.resamples,
            seed=cfg.seed,
            quiet=False,
        )
    _print(result)
    if out is not None:
        _write(out, result, {"store": data.store, "scores": data.scores, "rows": data.rows})
        print(f"wrote {out} and {out.with_suffix('.npz').name}")


def _output_path(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".json":
        raise ArgumentError(f"--cfg.out must end in .json, not {text}")
    if not path.parent.is_dir():
        raise ArgumentError(f"--cfg.out: there is no directory {path.parent}")
    return path


def _rows(store: Store, text: str | None) -> NDArray[np.int64]:
    """Completed rows in the range ``a:b``; says how many are left out."""
    first, last = 0, store.num_models
    if text is not None:
        try:
            parts = [int(part) if part else None for part in text.split(":")]
            start, stop = parts
        except ValueError as error:
            raise ArgumentError(f"--data.rows must be a:b, not {text!r}") from error
        first, last = start or 0, store.num_models if stop is None else stop
        if not 0 <= first < last <= store.num_models:
            raise ArgumentError(
                f"--data.rows {text} is not a range within the {store.num_models} rows of "
                f"{store.path}"
            )
    completed = store.completed_rows()
    rows = completed[(completed >= first) & (completed < last)]
    if len(rows) < 2:
        raise ScoringError(
            f"{len(rows)} of rows {first}:{last} of {store.path} are completed; a correlation "
            "needs at least two"
        )
    refuse_torn(store, rows, quiet=False)
    if len(rows) < last - first:
        print(
            f"warning: {last - first - len(rows)} of rows {first}:{last} are not completed and "
            "left out",
            file=sys.stderr,
        )
    return rows


def _take(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Select rows; a contiguous range stays memory-mapped."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return array[rows[0] : rows[-1] + 1]
    return array[rows]


def _print(result: LDSResult) -> None:
    interval = "" if result.interval is None else f"  95% interval {result.interval}"
    print(
        f"mean LDS ({result.kind}) over {result.num_scored} targets and {result.num_subsets} "
        f"rows: {result.mean:.4f}{interval}"
    )
    print(f"share of targets with p < .05: {result.share_significant():.3f}")
    print(
        f"targets without a correlation: {result.num_constant} constant, {result.num_nan} with NaN"
    )


def _write(path: Path, result: LDSResult, inputs: dict[str, Any]) -> None:
    summary = {
        "mean": _number(result.mean),
        "interval": None
        if result.interval is None
        else {
            "low": _number(result.interval.low),
            "high": _number(result.interval.high),
            "level": result.interval.level,
            "resamples": result.replicates.size,
        },
        "kind": result.kind,
        "num_rows": result.num_subsets,
        "num_targets": result.num_targets,
        "num_scored": result.num_scored,
        "num_constant": result.num_constant,
        "num_nan": result.num_nan,
        "share_p_below_05": _number(result.share_significant()),
        "inputs": inputs,
    }
    arrays = path.with_suffix(".npz")
    with whole_file(arrays) as file:
        np.savez(
            file,
            correlation=result.correlation,
            p_value=result.p_value,
            replicates=result.replicates,
        )
    with whole_file(path, "w") as file:
        file.write(json.dumps(summary, indent=2) + "\n")


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value


if __name__ == "__main__":
    run(main)
