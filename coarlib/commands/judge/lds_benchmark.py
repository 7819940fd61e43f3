"""Benchmark attribution methods by LDS: retrain on subsets, score, compare, with a noise ceiling.

    python -m estimate.lds_benchmark [--config specs/digits_lds.yaml] [--bench.size test]
    python -m estimate.lds_benchmark --bench.bank DIRECTORY_OR_URL --bench.scores mine=scores.npy

On scikit-learn's handwritten digits: retrains on random halves of 1,347 examples (200 subsets, 5
runs each; --bench.size test: 24 and 2), scores every example for every held-out digit by each
method, and prints a table of methods by LDS. Rows, models and scores are kept in --bench.out_dir:
killed at any moment and started again, it goes on where it was. With --bench.bank, a published bank
of retrained models takes the place of retraining, and scores come from files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fastargs.validation import Checker
from numpy.typing import NDArray

from coarlib.baselines.examples import random_scores
from coarlib.commands.arguments import Boolean, Param, Whole, parse, run
from coarlib.commands.judge.lds_methods import DigitsMethods, check_methods
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError
from coarlib.files import whole_file
from coarlib.filling.worker import fill
from coarlib.interop.published import Bank, load_bank
from coarlib.scoring import LDSResult, NoiseCeiling, lds, noise_ceiling
from coarlib.scoring.score_files import load_scores
from coarlib.store import Store, initialize
from coarlib.store.spec import load_spec
from estimate.digits_subsets.task import SEED, DigitsSubsetsTask


class NamedFiles(Checker):
    """Reads ``name=file,name=file``, or a mapping in a configuration file."""

    def check(self, value: object) -> dict[str, str]:
        """Return {name: file}; ValueError for anything else."""
        if isinstance(value, Mapping):
            return {str(name): str(file) for name, file in value.items()}
        parts = [part.partition("=") for part in str(value).split(",") if part]
        if not all(name and file for name, _, file in parts):
            raise ValueError(value)
        return {name: file for name, _, file in parts}

    def help(self) -> str:
        """Describe what is accepted."""
        return "name=file,name=file"


SECTIONS = {
    "bench": {
        "out_dir": Param(str, "where everything goes", default="out/lds_benchmark"),
        "model": Param(str, "logistic or cnn", default="logistic"),
        "size": Param(str, "full, or test: a tenth of the subsets", default="full"),
        "device": Param(str, "auto, cpu, cuda, cuda:1, mps", default="auto"),
        "full_models": Param(Whole(1), "models on all data that the methods use", default=5),
        "methods": Param(
            str,
            "of random, gradient_similarity, trak, traker (their package); a bank has only random",
        ),
        "scores": Param(NamedFiles(), "scores [N, T] of further methods (see score_lds)"),
        "bank": Param(str, "a published bank instead of retraining: directory, archive or URL"),
        "sha256": Param(str, "of the bank's archive; required for a URL"),
        "cache_dir": Param(str, "where banks are kept", default="out/banks"),
        "x_name": Param(str, "a bank's array of masks (default: the design's)"),
        "y_name": Param(str, "a bank's array of outputs (default: the only one)"),
        "higher_is_better": Param(Boolean(), "0 if a bank's outputs are losses", default=True),
        "kind": Param(str, "spearman, pearson or kendall", default="spearman"),
        "resamples": Param(Whole(1), "bootstrap resamples of the subsets", default=1000),
        "seed": Param(Whole(0), "seed of the bootstrap", default=0),
    }
}
SPECS = Path(__file__).resolve().parents[3] / "specs"
SUFFIXES = {"full": "", "test": "_test"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    bench = parse(__doc__ or "", SECTIONS, argv).bench
    out, bank, scores = _on_digits(bench) if bench.bank is None else _on_a_bank(bench)
    for name, file in (bench.scores or {}).items():
        scores[name] = load_scores(file)
    options = {"resamples": bench.resamples, "seed": bench.seed}
    results = {
        name: lds(
            found,
            bank.masks,
            bank.outputs,
            bench.kind,
            higher_is_better=bench.higher_is_better,
            **options,
        )
        for name, found in scores.items()
    }
    if not results:
        raise ArgumentError("there is nothing to score: give --bench.methods or --bench.scores")
    ceiling = noise_ceiling(bank.outputs) if bank.outputs.ndim == 3 else None
    _print(bank, results, ceiling)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "lds.json", results, ceiling)


def _on_digits(bench: SimpleNamespace) -> tuple[Path, Bank, dict[str, NDArray[Any]]]:
    """Retrain what is missing and score it: where it is, the rows, {method: scores}."""
    if bench.size not in SUFFIXES:
        raise ArgumentError(f"--bench.size must be full or test, not {bench.size}")
    methods = check_methods(bench.methods or "random,gradient_similarity,trak")
    out = Path(bench.out_dir) / f"{bench.model}{SUFFIXES[bench.size]}"
    device = resolve_device(bench.device)
    store = _retrained(out / "store", bench.model, bench.size, device)
    masks, outputs = np.array(store.array("masks")), np.array(store.array("test_margins"))
    made = DigitsMethods(out / "scores", bench.model, bench.full_models, device)
    scores = {name: made.scores(name) for name in methods}
    return out, Bank("held-out digits", masks, outputs), scores


def _on_a_bank(bench: SimpleNamespace) -> tuple[Path, Bank, dict[str, NDArray[Any]]]:
    """Load the bank; of the methods, only random scores need no model."""
    methods = check_methods(bench.methods or "random", ("random",))
    bank = load_bank(bench.bank, bench.sha256, bench.cache_dir, bench.x_name, bench.y_name)
    shape = bank.masks.shape[1], bank.outputs.shape[-1]
    return (
        Path(bench.out_dir) / bank.name.partition(".")[0],
        bank,
        {name: random_scores(*shape, SEED) for name in methods},
    )


def _retrained(path: Path, model: str, size: str, device: torch.device) -> Store:
    """Return the store with every row filled."""
    spec = load_spec(SPECS / f"digits_subsets{SUFFIXES[size]}.json")
    runs = spec.schema["test_margins"].shape[0]
    task = DigitsSubsetsTask(model, runs)  # type: ignore[arg-type]  # checked by the task
    initialize(path, spec)
    store = Store.open(path)
    fill(store, task, np.arange(store.num_models), device)
    return store


def _print(bank: Bank, results: dict[str, LDSResult], ceiling: NoiseCeiling | None) -> None:
    first = next(iter(results.values()))
    print(f"{first.num_subsets} subsets, {first.num_targets} targets ({bank.name})")
    print(f"{'method':<22}{'LDS':>7}  95% interval     p < .05")
    for name, result in results.items():
        share = result.share_significant()
        print(f"{name:<22}{result.mean:>7.3f}  {result.interval!s:<16} {share:>7.1%}")
    if ceiling is not None:
        runs = f"({ceiling.num_runs} runs a subset)"
        print(f"{'noise ceiling':<22}{ceiling.mean:>7.3f}  {ceiling.interval!s:<16} {runs}")


def _write(path: Path, results: dict[str, LDSResult], ceiling: NoiseCeiling | None) -> None:
    content = {
        "methods": {
            name: {
                "lds": result.mean,
                "interval": [result.interval.low, result.interval.high]
                if result.interval
                else None,
                "share_p_below_05": result.share_significant(),
            }
            for name, result in results.items()
        },
        "noise_ceiling": ceiling and ceiling.mean,
        "num_subsets": next(iter(results.values())).num_subsets,
        "num_runs": ceiling.num_runs if ceiling else 1,
    }
    with whole_file(path, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
