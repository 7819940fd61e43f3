"""The attribution methods that lds_benchmark compares on the digits; each is computed once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.baselines.components import random_scores
from coarlib.baselines.examples import (
    LabelledData,
    gradient_similarity,
    require_traker,
    trak_scores,
    traker_scores,
)
from coarlib.errors import ArgumentError, ScoringError, nearest
from coarlib.files import whole_file
from coarlib.loading import load_npy
from coarlib.metagradient import metagradients_of_seeds
from coarlib.outputs import margin_log_sum_exp
from coarlib.retraining import Trainer, run_seed, train_many

SEED = 0
METHODS = ("random", "gradient_similarity", "trak", "traker", "metagradient")
KEPT, DEFAULT_SEEDS = 0.5, 8
"""Of ``metagradient``; ``metagradient:32`` averages over 32."""


def check_methods(text: str, known: Sequence[str] = METHODS) -> list[str]:
    """Read a comma list of methods; ArgumentError names one that is unknown."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        kind, _, seeds = name.partition(":")
        if seeds and not (kind == "metagradient" and seeds.isdecimal() and int(seeds)):
            raise ArgumentError(f"--methods: {name} is not metagradient:SEEDS, e.g. metagradient:8")
        if kind not in known:
            raise ArgumentError(
                f"--methods: there is no method {name} (there are {', '.join(known)})"
                f"{nearest(name, known)}"
            )
    if "traker" in names:
        require_traker()  # before anything is trained
    return names


class DigitsMethods:
    """Scores of every method, each computed once and kept as an .npy that names what made it.

    Parameters
    ----------
    path : Path
    task : the digits_subsets task
        Says how models are trained (``trainer``) and what is held out (``held_out()``).
    full_models : int
        Models on all data.
    device : torch.device
    """

    def __init__(self, path: Path, task: Any, full_models: int, device: torch.device) -> None:
        self._path, self._full_models, self._device = path, full_models, device
        self._trainer: Trainer = task.trainer
        self._train = LabelledData(self._trainer.inputs, self._trainer.targets)
        self._test = LabelledData(*task.held_out())
        self._models: list[torch.nn.Module] = []

    def scores(self, name: str) -> NDArray[Any]:
        """Return the scores of a method; ScoringError if a damaged file is in the way."""
        compute: dict[str, Callable[[], NDArray[Any]]] = {
            "random": self._random,
            "gradient_similarity": self._similarity,
            "trak": self._trak,
            "traker": self._traker,
        }
        kind, _, seeds = name.partition(":")
        shape = (len(self._train.targets), len(self._test.targets))
        models = int(seeds or DEFAULT_SEEDS) if kind == "metagradient" else self._full_models
        file = self._path / f"{kind}_{models}_models.npy"
        if not file.exists():
            self._path.mkdir(parents=True, exist_ok=True)
            if kind == "metagradient":
                scores = self._metagradient(int(seeds or DEFAULT_SEEDS))
            else:
                scores = compute[name]()
            with whole_file(file) as stream:
                np.save(stream, scores)
        found = load_npy(file, ScoringError)
        if found.shape != shape:
            raise ScoringError(f"{file} holds scores {found.shape}, not {shape}; delete it")
        return np.asarray(found)

    def _random(self) -> NDArray[Any]:
        return random_scores(len(self._train.targets), len(self._test.targets), SEED)

    def _similarity(self) -> NDArray[Any]:
        loss = self._trainer.loss
        return gradient_similarity(
            self._on_all_data(), self._train, self._test, loss, margin_log_sum_exp
        )

    def _trak(self) -> NDArray[Any]:
        return trak_scores(self._on_all_data(), self._train, self._test, margin_log_sum_exp)

    def _traker(self) -> NDArray[Any]:
        with tempfile.TemporaryDirectory() as folder:
            return traker_scores(self._on_all_data(), self._train, self._test, folder)

    def _metagradient(self, seeds: int) -> NDArray[Any]:
        found = metagradients_of_seeds(
            self._trainer,
            self._test.inputs,
            self._test.targets,
            [run_seed(SEED + 1, 0, run) for run in range(seeds)],
            kept=KEPT,
            output="log_odds",
            out=self._path / f"metagradient_{seeds}_seeds",
            device=self._device,
        )
        print(f"metagradient: {found.smoothness}")
        return found.scores

    def _on_all_data(self) -> list[torch.nn.Module]:
        if not self._models:
            everything = np.arange(self._trainer.num_examples)
            seeds = [run_seed(SEED + 1, 0, run) for run in range(self._full_models)]
            self._models = train_many(self._trainer, [everything] * len(seeds), seeds, self._device)
        return self._models
