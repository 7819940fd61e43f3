"""Score attributions against a store: the linear datamodeling score with p-values and interval.

    coar score_lds STORE FILE_OR_DIRECTORY
    coar score_lds STORE scores.npy --y_name test_margins --rows 900:1000 --out lds.json

Only completed rows are scored, once their checksums are verified. Score rows that no fit has seen:
say which with --rows. The result is written as JSON, and beside it, as .npz, the correlation
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

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, Whole, run
from coarlib.commands.checkers import Choice
from coarlib.errors import ArgumentError, ScoringError
from coarlib.files import whole_file
from coarlib.scoring import LDSResult, UndefinedCorrelationWarning, lds
from coarlib.scoring.score_files import load_scores
from coarlib.store import Store
from coarlib.store.added import store_of_output
from coarlib.store.verify import refuse_torn

KINDS = ("spearman", "pearson", "kendall")
COMMAND = Command(
    "score_lds",
    __doc__,
    {
        "store": common.store("directory of the store", "data.store"),
        "scores": Param(
            str,
            "scores [N, T]: .npy, .pt, .safetensors or a directory",
            required=True,
            positional=True,
            also=("data.scores",),
        ),
        "score_key": Param(
            str, "which tensor of a file that holds several", also=("data.score_key",)
        ),
        "x_name": common.x_name("data.x_name"),
        "y_name": common.y_name("data.y_name"),
        "rows": common.rows("rows of the store to score on; default: all completed", "data.rows"),
        "out": common.out(
            "where to write the result (.json; an .npz is put beside it)", "cfg.out"
        ),
        "kind": Param(
            Choice(KINDS), "of correlation", default="spearman", also=("cfg.kind",)
        ),
        "higher_is_better": common.flag(
            "no if the outputs are losses", "cfg.higher_is_better", default=True
        ),
        "resamples": Param(
            Whole(0),
            "bootstrap resamples of the rows; 0: no interval",
            default=1000,
            also=("cfg.resamples",),
        ),
        "seed": common.seed("seed of the bootstrap", "cfg.seed"),
    },
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Print and write the LDS of the scores that the arguments name."""
    args = COMMAND.parse(argv)
    out = None if args.out is None else _output_path(args.out)
    store = store_of_output(Store.open(args.store), args.y_name)
    rows = _rows(store, args.rows)
    x_name, y_name = store.masks_name(args.x_name), store.outputs_name(args.y_name)
    scores = load_scores(args.scores, args.score_key)
    with warnings.catch_warnings():  # the counts are printed below, in words
        warnings.simplefilter("ignore", UndefinedCorrelationWarning)
        result = lds(
            scores,
            _take(store.array(x_name), rows),
            _take(store.array(y_name), rows),
            args.kind,
            higher_is_better=args.higher_is_better,
            resamples=args.resamples,
            seed=args.seed,
            quiet=False,
        )
    _print(result)
    if out is not None:
        _write(out, result, {"store": args.store, "scores": args.scores, "rows": args.rows})
        args.save(out.with_suffix(".arguments.yaml"), "score_lds")
        print(f"wrote {out} and {out.with_suffix('.npz').name}")


def _output_path(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".json":
        raise ArgumentError(f"--out must end in .json, not {text}")
    if not path.parent.is_dir():
        raise ArgumentError(f"--out: there is no directory {path.parent}")
    return path


def _rows(store: Store, text: str | None) -> NDArray[np.int64]:
    """Completed rows in the range ``A:B``; says how many are left out."""
    first, last = common.rows_of(text, store.num_models)
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
