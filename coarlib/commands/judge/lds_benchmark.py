"""Benchmark attribution methods by LDS: retrain on subsets, score, compare, with a noise ceiling.

    coar lds_benchmark --model logistic --size test
    coar lds_benchmark --bank DIRECTORY_OR_URL --scores mine=scores.npy
    coar lds_benchmark --config QUANDA.yaml --scores mine=scores.npy

On scikit-learn's handwritten digits: retrains on random halves of 1,347 examples (200 subsets, 5
runs each; --size test: 24 and 2), scores every example for every held-out digit by each
method, and prints a table of methods by LDS. Rows, models and scores are kept in --out:
killed at any moment and started again, it goes on where it was. With --bank, a published bank
of retrained models takes the place of retraining, and scores come from files. --config may also
name a configuration of quanda's LinearDatamodeling: its subsets are trained and judged on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.baselines.components import random_scores
from coarlib.commands import common
from coarlib.commands.arguments import Arguments, Command, Param, Whole, run
from coarlib.commands.checkers import Choice, Named
from coarlib.commands.judge.lds_methods import METHODS, DigitsMethods, check_methods
from coarlib.commands.judge.of_quanda import split_off
from coarlib.commands.leaving import again, keep_arguments, next_step
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError
from coarlib.files import whole_file
from coarlib.filling.worker import FillOptions, fill
from coarlib.interop.published import Bank, load_bank
from coarlib.regression.result_files import fitted_masks
from coarlib.scoring import LDSResult, lds, masks_from_indices
from coarlib.scoring.records import lds_record
from coarlib.scoring.score_files import load_scores
from coarlib.setups import load, shipped_file
from coarlib.statistics.correlation import CORRELATIONS
from coarlib.store import Store, initialize
from coarlib.store.spec import load_spec
from coarlib.tracking import tracked

SUFFIXES = {"full": "", "test": "_test"}
SETUP = "digits_subsets"
SEED = 0  # of random scores
WITHOUT_MODELS = ("random",)  # methods of a bank


def _param(key: str, *args: Any, **options: Any) -> Param:
    return Param(*args, **options, also=(f"bench.{key}",))


COMMAND = Command(
    "lds_benchmark",
    __doc__,
    {
        "out": common.out("where everything goes", "bench.out_dir", default="out/lds_benchmark"),
        "model": _param("model", str, "logistic or cnn", default="logistic"),
        "size": _param(
            "size", Choice(tuple(SUFFIXES)), "full, or test: few subsets", default="full"
        ),
        "device": common.device("bench.device"),
        "full_models": _param(
            "full_models", Whole(1), "models that methods use which are given no number", default=5
        ),
        "kept": _param(
            "kept", float, "share of the examples that the methods' models train on", default=0.5
        ),
        "methods": _param(
            "methods",
            str,
            "of random, gradient_similarity, trak, traker and ekfac (their packages), path_kernel, "
            "metagradient, metagradient_trak, ridge_rows; trak:10 is of 10 models; a bank has only "
            "random",
        ),
        "scores": _param("scores", Named(), "scores [N, T] of further methods (see score_lds)"),
        "bank": _param("bank", str, "a published bank instead of retraining: path or URL"),
        "sha256": _param("sha256", str, "of the bank's archive; required for a URL"),
        "cache_dir": _param("cache_dir", str, "where banks are kept", default="out/banks"),
        "x_name": _param("x_name", str, "a bank's array of masks; default: the design's"),
        "y_name": _param("y_name", str, "a bank's array of outputs; default: the only one"),
        "higher_is_better": common.flag(
            "no if a bank's outputs are losses", "bench.higher_is_better", default=True
        ),
        "kind": _param("kind", Choice(CORRELATIONS), "of correlation", default="spearman"),
        "log": common.log(),
        "dry_run": common.flag("say what would be retrained, and stop"),
    },
    dict.fromkeys(
        ("resamples", "bench.resamples", "seed", "bench.seed"),
        "nothing is drawn for intervals",
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    words = list(sys.argv[1:] if argv is None else argv)
    config, words = split_off(words) or (None, words)
    bench = COMMAND.parse(words)
    _check_names(bench.scores or {}, METHODS if config is bench.bank is None else WITHOUT_MODELS)
    if bench.dry_run:
        print(_plan(bench) if config is None else f"{config}: its models would be trained")
        print(again(bench, config=config))
        return
    about = {"model": bench.model, "size": bench.size, "bank": bench.bank, "config": str(config)}
    costs: dict[str, float] = {}
    files = bench.scores or {}
    given = {name: load_scores(file) for name, file in files.items()}  # before anything is trained
    with tracked(bench.log, bench.out, about):
        if config is not None:
            out, bank, scores = _for_quanda(bench, config)
        elif bench.bank is not None:
            out, bank, scores = _on_a_bank(bench)
        else:
            out, bank, scores = _on_digits(bench, costs)
    known = [np.empty(0, np.uint64)]
    scores |= given
    for file in files.values():
        known += [masks for masks in [fitted_masks(file)] if masks is not None]
    fitted = np.concatenate(known)  # left out for all, so that all are judged on the same subsets
    results: dict[str, LDSResult] = {}
    for name, found in scores.items():
        results[name] = lds(
            found,
            bank.masks,
            bank.outputs,
            bench.kind,
            higher_is_better=bench.higher_is_better,
            fitted=fitted,
            ceiling=next((result.ceiling for result in results.values()), None),
        )
    _print(bank, results, costs)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "lds.json", results, costs)
    keep_arguments(bench, out)
    print(next_step("scoreboard", out))


def _check_names(given: Collection[str], methods: Collection[str]) -> None:
    """Raise ArgumentError where a name of given scores is that of a method, as trak:5 is."""
    for name in given:
        if name.partition(":")[0] in methods:
            raise ArgumentError(
                f"--scores: {name} is the name of a method of lds_benchmark; call these scores "
                "something else"
            )


def _on_digits(
    bench: Arguments, costs: dict[str, float]
) -> tuple[Path, Bank, dict[str, NDArray[Any]]]:
    """Retrain what is missing and score it: where it is, the rows, {method: scores}.

    ``costs`` is filled with what each method cost, in trainings.
    """
    methods = check_methods(bench.methods or "random,gradient_similarity,trak")
    if not 0 < bench.kept <= 1:
        raise ArgumentError(f"--kept must be above 0 and at most 1, not {bench.kept}")
    out = Path(bench.out) / f"{bench.model}{SUFFIXES[bench.size]}"
    device = resolve_device(bench.device)
    spec = load_spec(_spec(bench))
    task = load(SETUP, {"model": bench.model, "runs": spec.schema["test_margins"].shape[0]})
    initialize(out / "store", spec)
    store = Store.open(out / "store")
    fill(store, task, np.arange(store.num_models), device, FillOptions(ways_round=()))
    masks, outputs = np.array(store.array("masks")), np.array(store.array("test_margins"))
    made = DigitsMethods(out / "scores", task, bench.full_models, bench.kept, device)
    scores = {name: made.scores(name) for name in methods}
    costs |= {name: cost for name in methods if (cost := made.trainings(name)) is not None}
    return out, Bank("held-out digits", masks, outputs), scores


def _for_quanda(bench: Arguments, config: Path) -> tuple[Path, Bank, dict[str, NDArray[Any]]]:
    """Train what is missing of quanda's benchmark; its own margins on the evaluated examples."""
    from coarlib.interop.quanda import LinearDatamodeling

    methods = check_methods(bench.methods or "random", WITHOUT_MODELS)
    found = LinearDatamodeling.train(config, device=str(resolve_device(bench.device)))
    masks = masks_from_indices(found.subset_ids, found.trainer.num_examples)
    bank = Bank(str(found.config["id"]), masks, found.margins())
    shape = masks.shape[1], bank.outputs.shape[1]
    scores = {name: random_scores(*shape, SEED) for name in methods}
    return Path(found.config["bench_save_dir"]), bank, scores


def _on_a_bank(bench: Arguments) -> tuple[Path, Bank, dict[str, NDArray[Any]]]:
    """Load the bank; of the methods, only random scores need no model."""
    methods = check_methods(bench.methods or "random", WITHOUT_MODELS)
    bank = load_bank(bench.bank, bench.sha256, bench.cache_dir, bench.x_name, bench.y_name)
    shape = bank.masks.shape[1], bank.outputs.shape[-1]
    return (
        Path(bench.out) / bank.name.partition(".")[0],
        bank,
        {name: random_scores(*shape, SEED) for name in methods},
    )


def _spec(bench: Arguments) -> Path:
    return shipped_file(f"{SETUP}{SUFFIXES[bench.size]}.json")


def _plan(bench: Arguments) -> str:
    if bench.bank is not None:
        return f"scores would be judged on the bank {bench.bank}; nothing would be retrained"
    check_methods(bench.methods or "")
    spec = load_spec(_spec(bench))
    models = spec.num_models * spec.schema["test_margins"].shape[0]
    return f"{models} {bench.model} models would be retrained and {bench.full_models} for scores"


def _print(bank: Bank, results: dict[str, LDSResult], costs: dict[str, float]) -> None:
    first = next(iter(results.values()))
    print(f"{first.num_subsets} subsets, {first.num_targets} targets ({bank.name})")
    print(f"regime: {first.regime}")
    head = f"{'method':<22}{'LDS':>7}  95% interval     p < .05"
    print(f"{head}  of the ceiling" + "  cost in trainings" * bool(costs))
    for name, result in results.items():
        share = result.share_significant()
        of_ceiling = f"  {result.share_of_ceiling:>14.0%}" if result.ceiling else ""
        of_ceiling += f"  {costs[name]:>17.3g}" if name in costs else ""
        line = f"{name:<22}{result.mean:>7.3f}  {result.interval!s:<16} {share:>7.1%}{of_ceiling}"
        print(line)
    if first.ceiling is not None:
        ceiling = first.ceiling
        runs = f"({ceiling.num_runs} runs a subset)"
        print(f"{'noise ceiling':<22}{ceiling.mean:>7.3f}  {ceiling.interval!s:<16} {runs}")


def _write(path: Path, results: dict[str, LDSResult], costs: dict[str, float]) -> None:
    first = next(iter(results.values()))
    content = {
        "methods": {
            name: {"lds": result.mean, "trainings": costs.get(name)} | lds_record(result)
            for name, result in results.items()
        },
        "regime": first.regime.to_json(),
        "noise_ceiling": first.ceiling and first.ceiling.mean,
        "num_subsets": first.num_subsets,
        "num_runs": first.regime.num_runs,
    }
    with whole_file(path, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
