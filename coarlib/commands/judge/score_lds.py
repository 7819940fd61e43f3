"""Score attributions against a store: the linear datamodeling score with p-values and interval.

    coar score_lds STORE OUT_DIR
    coar score_lds STORE A=out/ridge B=trak.npy --rows 900:1000 --out lds.json

Only completed rows are scored, once their checksums are verified, and only rows on which no scores
were fitted: attributions know which those are. Of several scores, every pair is compared on the
same rows. A result is written as JSON, and beside it, as .npz, the correlation and p-value of every
target; of several, one a name (lds.A.json, lds.B.json).
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.commands import common
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.checkers import Choice, Paths
from coarlib.commands.leaving import again, keep_arguments, next_step
from coarlib.errors import ArgumentError, ScoringError
from coarlib.files import for_file
from coarlib.masks.digests import mask_digests
from coarlib.regression.result_files import fitted_masks
from coarlib.scoring import LDSResult, NoiseCeiling, UndefinedCorrelationWarning, compare, lds
from coarlib.scoring.metrics import METRICS, evaluate
from coarlib.scoring.nonfinite import NONFINITE, InfiniteOutputsWarning
from coarlib.scoring.records import comparison_record, write_lds
from coarlib.scoring.rows import RowsLeftOutWarning, mean_over_runs
from coarlib.scoring.score_files import load_scores
from coarlib.statistics.correlation import CORRELATIONS
from coarlib.store import Store
from coarlib.store.added import store_of_output
from coarlib.store.verify import refuse_torn

COMMAND = Command(
    "score_lds",
    __doc__,
    {
        "store": common.store("directory of the store", "data.store"),
        "scores": Param(
            Paths(),
            "scores [N, T], as PATH or NAME=PATH: .npy, .pt, .safetensors or a directory",
            required=True,
            positional=True,
            many=True,
            also=("data.scores",),
        ),
        "score_key": Param(
            str, "which tensor of a file that holds several", also=("data.score_key",)
        ),
        "transposed": common.flag("the scores are [T, N]", default=False),
        "nonfinite": Param(
            Choice(NONFINITE),
            "targets with NaN or infinite outputs: keep, leave out, or their rows for them alone",
            default="keep",
        ),
        "x_name": common.x_name("data.x_name"),
        "y_name": common.y_name("data.y_name"),
        "rows": common.rows(
            "rows of the store to score on; default: all completed that no scores were fitted on",
            "data.rows",
        ),
        "allow_fitted_rows": common.flag(
            "score on rows that the scores were fitted on", default=False
        ),
        "out": common.out(
            "where to write the result (.json; an .npz is put beside it)", "cfg.out"
        ),
        "kind": Param(
            Choice(CORRELATIONS), "of correlation", default="spearman", also=("cfg.kind",)
        ),
        "metric": Param(Choice(METRICS), f"print this as well: {', '.join(METRICS)}"),
        "higher_is_better": common.flag(
            "no if the outputs are losses", "cfg.higher_is_better", default=True
        ),
        "interval": common.flag("estimate intervals, and compare", default=True),
    },
    dict.fromkeys(
        ("cfg.interval", "resamples", "cfg.resamples", "seed", "cfg.seed"),
        "there is one kind of interval, and nothing is drawn for it",
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Print and write the LDS of the scores that the arguments name."""
    args = COMMAND.parse(argv)
    out = None if args.out is None else _output_path(args.out)
    store = store_of_output(Store.open(args.store), args.y_name)
    scores = {name: load_scores(path, args.score_key) for name, path in args.scores.items()}
    rows, includes_fitted = _unfitted(store, _rows(store, args.rows), args)
    found: dict[str, LDSResult] = {}
    for name, matrix in scores.items():
        known = next((result.ceiling for result in found.values()), None)
        _note_of_square(name, matrix, args)
        found[name] = _score(store, rows, name, matrix, args, known)
    for name, result in found.items():
        if len(found) > 1:
            print(f"{name}:")
        _print(result, includes_fitted)
        if args.metric is not None:
            _print_metric(args.metric, store, rows, scores[name], args)
    pairs = _compare(found) if args.interval else {}
    if out is None:
        print(again(args, out="lds.json"))
        return
    for name, result in found.items():
        path = out if len(found) == 1 else out.with_suffix(f".{name}.json")
        inputs = {"store": args.store, "scores": args.scores[name], "rows": args.rows}
        also = {"includes_fitted_rows": includes_fitted, "comparisons": pairs}
        write_lds(path, result, {"method": name, "inputs": inputs} | also)
        print(f"wrote {path} and {path.with_suffix('.npz').name}")
    keep_arguments(args, out)
    print(next_step("scoreboard", out.parent))


def _note_of_square(name: str, scores: NDArray[Any], args: SimpleNamespace) -> None:
    """Say that the shape of a file's scores cannot tell [N, T] from [T, N], where N = T > 1."""
    known = args.transposed or fitted_masks(args.scores[name]) is not None
    if scores.shape[0] == scores.shape[1] > 1 and not known:
        print(
            f"note: {args.scores[name]} is taken as [N, T]; with N = T = {len(scores)} its shape "
            "cannot tell: if it is [test, train], say --transposed",
            file=sys.stderr,
        )


def _score(  # noqa: PLR0917
    store: Store,
    rows: NDArray[np.int64],
    name: str,
    scores: NDArray[Any],
    args: SimpleNamespace,
    ceiling: NoiseCeiling | None,
) -> LDSResult:
    """Score one matrix; what is odd about targets or rows goes to stderr in a sentence each.

    If no target has a correlation, that is a ScoringError.
    """
    x_name, y_name = store.masks_name(args.x_name), store.outputs_name(args.y_name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = lds(
            scores,
            _take(store.array(x_name), rows),
            _take(store.array(y_name), rows),
            args.kind,
            higher_is_better=args.higher_is_better,
            transposed=args.transposed,
            nonfinite=args.nonfinite,
            output=y_name,
            ceiling=ceiling,
            interval=args.interval,
            quiet=False,
        )
    if result.num_scored == 0:
        undefined = (w for w in said if issubclass(w.category, UndefinedCorrelationWarning))
        why = next((str(warning.message) for warning in undefined), "there are no targets")
        raise ScoringError(f"{args.scores[name]} cannot be scored: {why}")
    for warning in said:
        if issubclass(warning.category, RowsLeftOutWarning):
            failed = rows[result.failed_rows]
            print(
                f"warning: left out, for all their outputs are NaN: rows {common.ranges(failed)}",
                file=sys.stderr,
            )
        elif issubclass(warning.category, InfiniteOutputsWarning | UndefinedCorrelationWarning):
            print(f"warning: {warning.message}", file=sys.stderr)
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return result


def _print_metric(
    name: str, store: Store, rows: NDArray[np.int64], scores: NDArray[Any], args: SimpleNamespace
) -> None:
    masks = _take(store.array(store.masks_name(args.x_name)), rows)
    outputs = mean_over_runs(_take(store.array(store.outputs_name(args.y_name)), rows))
    values = evaluate(name, scores.T if args.transposed else scores, masks, outputs)
    defined = values[~np.isnan(values)]
    if not defined.size:
        raise ScoringError(f"{name} is defined for none of the {values.size} targets")
    print(f"{name}: {defined.mean():.4f} (mean over {len(defined)} targets)")


def _unfitted(
    store: Store, rows: NDArray[np.int64], args: SimpleNamespace
) -> tuple[NDArray[np.int64], bool]:
    """Rows on which none of the scores were fitted, and whether some are kept nevertheless.

    Rows that were asked for by ``--rows`` are not dropped: if they were fitted, that is an error.
    """
    known = [masks for path in args.scores.values() if (masks := fitted_masks(path)) is not None]
    if not known:
        return rows, False
    masks = _take(store.array(store.masks_name(args.x_name)), rows)
    seen = np.isin(mask_digests(masks), np.concatenate(known))
    if args.allow_fitted_rows or not seen.any():
        return rows, bool(seen.any())
    left = rows[~seen]
    if args.rows is not None or len(left) < 2:
        raise ArgumentError(
            f"the scores were fitted on {int(seen.sum())} of these {len(rows)} rows (row "
            f"{rows[seen][0]} is the first), which leaves {len(left)} that are new to them: give "
            "others with --rows, or say --allow_fitted_rows"
        )
    print(f"scoring on the {len(left)} rows that were not fitted: {common.ranges(left)}")
    return left, False


def _compare(found: dict[str, LDSResult]) -> dict[str, Any]:
    """Print the paired difference of every two; {"A - B": its numbers}."""
    pairs = {}
    for (name, a), (other, b) in itertools.combinations(found.items(), 2):
        result = compare(a, b)
        print(
            f"{name} - {other}: {result.difference:+.4f}  95% interval {result.interval}  "
            f"p = {result.p:.2g}"
        )
        pairs[f"{name} - {other}"] = comparison_record(result)
    return pairs


def _output_path(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".json":
        raise ArgumentError(f"--out must end in .json, not {text}")
    return for_file(path)


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


def _print(result: LDSResult, includes_fitted: bool) -> None:
    interval = "" if result.interval is None else f"  95% interval {result.interval}"
    label = "  ON ROWS THAT WERE FITTED" if includes_fitted else ""
    print(
        f"mean LDS ({result.kind}) over {result.num_scored} targets and {result.num_subsets} "
        f"rows: {result.mean:.4f}{interval}{label}"
    )
    print(f"regime: {result.regime}")
    if result.ceiling is not None:
        share = f"{result.share_of_ceiling:.1%} {result.share_interval}"
        print(f"noise ceiling: {result.ceiling.mean:.4f} {result.ceiling.interval}; share {share}")
    print(f"share of targets with p < .05: {result.share_significant():.3f}")
    print(
        f"targets without a correlation: {result.num_constant} constant, "
        f"{result.num_nan_scores} with scores and {result.num_nan_outputs} with outputs that are "
        "not finite"
    )


if __name__ == "__main__":
    run(main)
