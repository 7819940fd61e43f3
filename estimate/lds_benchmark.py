"""Benchmark attribution methods by LDS: retrain on subsets, score, compare, with a noise ceiling.

    python -m estimate.lds_benchmark [--bench.model logistic] [--bench.size test]

On scikit-learn's handwritten digits: retrains on random halves of 1,347 examples (200 subsets, 5
runs each; --bench.size test: 24 and 2), scores every example for every held-out digit by each
method, and prints a table of methods by LDS. Rows, models and scores are kept in --bench.out_dir:
killed at any moment and started again, it goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.commandline import Param, Whole, parse, run
from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, ScoringError
from coarlib.files import whole_file
from coarlib.outputs import margin_log_sum_exp
from coarlib.retraining import Trainer, run_seed, train_many
from coarlib.retraining.baselines import (
    Examples,
    gradient_similarity,
    random_scores,
    trak_scores,
)
from coarlib.scoring import LDSResult, NoiseCeiling, lds, noise_ceiling
from coarlib.spec import load_spec
from coarlib.store import Store, initialize
from coarlib.worker import fill
from estimate.digits.model import digits
from estimate.digits_subsets.task import SEED, DigitsSubsetsTask, trainer

SECTIONS = {
    "bench": {
        "out_dir": Param(str, "where everything goes", default="out/lds_benchmark"),
        "model": Param(str, "logistic or cnn", default="logistic"),
        "size": Param(str, "full, or test: a tenth of the subsets", default="full"),
        "device": Param(str, "auto, cpu, cuda, cuda:1, mps", default="auto"),
        "full_models": Param(Whole(1), "models on all data that the methods use", default=5),
        "resamples": Param(Whole(1), "bootstrap resamples of the subsets", default=1000),
    }
}
SPECS = Path(__file__).resolve().parent.parent / "specs"
SUFFIXES = {"full": "", "test": "_test"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    bench = parse(__doc__ or "", SECTIONS, argv).bench
    if bench.size not in SUFFIXES:
        raise ArgumentError(f"--bench.size must be full or test, not {bench.size}")
    out = Path(bench.out_dir) / f"{bench.model}{SUFFIXES[bench.size]}"
    device = resolve_device(bench.device)
    store = _retrained(out / "store", bench.model, bench.size, device)
    masks, outputs = np.array(store.array("masks")), np.array(store.array("test_margins"))
    scores = _Scores(out / "scores", bench.model, bench.full_models, device)
    methods: dict[str, Callable[[], NDArray[Any]]] = {
        "random": scores.random,
        "gradient_similarity": scores.similarity,
        "trak": scores.trak,
    }
    results = {
        name: lds(scores.kept(name, compute), masks, outputs, resamples=bench.resamples)
        for name, compute in methods.items()
    }
    ceiling = noise_ceiling(outputs)
    _print(results, ceiling)
    _write(out / "lds.json", results, ceiling)


def _retrained(path: Path, model: str, size: str, device: torch.device) -> Store:
    """Return the store with every row filled."""
    spec = load_spec(SPECS / f"digits_subsets{SUFFIXES[size]}.json")
    runs = spec.schema["test_margins"].shape[0]
    task = DigitsSubsetsTask(model, runs)  # type: ignore[arg-type]  # checked by the task
    initialize(path, spec)
    store = Store.open(path)
    fill(store, task, np.arange(store.num_models), device)
    return store


class _Scores:
    """Scores of every method, each computed once and kept as an .npy that names what made it."""

    def __init__(self, path: Path, model: str, full_models: int, device: torch.device) -> None:
        self._path, self._full_models, self._device = path, full_models, device
        self._trainer: Trainer = trainer(model)  # type: ignore[arg-type]
        self._train = Examples(self._trainer.inputs, self._trainer.targets)
        self._test = Examples(*digits(held_out=True))
        self._models: list[torch.nn.Module] = []

    def kept(self, name: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the scores of a method; ScoringError if a damaged file is in the way."""
        shape = (len(self._train.targets), len(self._test.targets))
        file = self._path / f"{name}_{self._full_models}_models.npy"
        if not file.exists():
            self._path.mkdir(parents=True, exist_ok=True)
            scores = compute()
            with whole_file(file) as stream:
                np.save(stream, scores)
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        if found.shape != shape:
            raise ScoringError(f"{file} holds scores {found.shape}, not {shape}; delete it")
        return np.asarray(found)

    def random(self) -> NDArray[Any]:
        return random_scores(len(self._train.targets), len(self._test.targets), SEED)

    def similarity(self) -> NDArray[Any]:
        loss = self._trainer.loss
        return gradient_similarity(
            self._on_all_data(), self._train, self._test, loss, margin_log_sum_exp
        )

    def trak(self) -> NDArray[Any]:
        return trak_scores(self._on_all_data(), self._train, self._test, margin_log_sum_exp)

    def _on_all_data(self) -> list[torch.nn.Module]:
        if not self._models:
            everything = np.arange(self._trainer.num_examples)
            seeds = [run_seed(SEED + 1, 0, run) for run in range(self._full_models)]
            self._models = train_many(self._trainer, [everything] * len(seeds), seeds, self._device)
        return self._models


def _print(results: dict[str, LDSResult], ceiling: NoiseCeiling) -> None:
    first = next(iter(results.values()))
    print(f"{first.num_subsets} subsets, {first.num_targets} held-out digits")
    print(f"{'method':<22}{'LDS':>7}  95% interval     p < .05")
    for name, result in results.items():
        share = result.share_significant()
        print(f"{name:<22}{result.mean:>7.3f}  {result.interval!s:<16} {share:>7.1%}")
    print(f"{'noise ceiling':<22}{ceiling.mean:>7.3f}  ({ceiling.num_runs} runs a subset)")


def _write(path: Path, results: dict[str, LDSResult], ceiling: NoiseCeiling) -> None:
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
        "noise_ceiling": ceiling.mean,
        "num_subsets": next(iter(results.values())).num_subsets,
        "num_runs": ceiling.num_runs,
    }
    with whole_file(path, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
