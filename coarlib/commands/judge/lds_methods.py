"""The attribution methods that lds_benchmark compares on the digits; each is computed once."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.baselines.components import random_scores
from coarlib.baselines.ekfac import ekfac_scores, require_kronfluence
from coarlib.baselines.examples import (
    LabelledData,
    gradient_similarity,
    require_traker,
    trak_scores,
    traker_scores,
)
from coarlib.errors import ArgumentError, ScoringError, nearest
from coarlib.files import whole_file
from coarlib.loading import load_json, load_npy
from coarlib.metagradient import Metagradients, metagradients_of_seeds
from coarlib.metagradient.derivatives import draw_shares
from coarlib.metagradient.trained import recorded_run
from coarlib.outputs import margin_log_sum_exp
from coarlib.path_kernel import explain
from coarlib.regression import fit
from coarlib.retraining import Trainer, run_seed, train_many

SEED = 0
COUNTED = {"metagradient": 8, "metagradient_trak": 8, "path_kernel": 2, "ridge_rows": 400}
"""What stands after the colon (``metagradient:32``) by default: seeds, or retrainings."""
OF_MODELS = ("gradient_similarity", "trak", "traker", "ekfac")
"""Of trained models; how many stands after the colon, --full_models by default."""
METHODS = ("random", *OF_MODELS, *COUNTED)
OUTPUT = "log_odds"


def check_methods(text: str, known: Sequence[str] = METHODS) -> list[str]:
    """Read a comma list of methods; ArgumentError names one that is unknown, or says if none is."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if text and not names:
        raise ArgumentError(f"--methods names no method (there are {', '.join(known)})")
    for name in names:
        kind, colon, count = name.partition(":")
        if kind not in known:
            raise ArgumentError(
                f"--methods: there is no method {kind} (there are {', '.join(known)})"
                f"{nearest(kind, known)}"
            )
        if colon and kind == "random":
            raise ArgumentError("--methods: random scores take no number")
        if colon and not (count.isdecimal() and int(count)):
            raise ArgumentError(f"--methods: {name} is not {kind}:NUMBER, e.g. {kind}:8")
    kinds = {name.partition(":")[0] for name in names}
    for kind, require in (("traker", require_traker), ("ekfac", require_kronfluence)):
        if kind in kinds:
            require()  # before anything is trained
    return names


class DigitsMethods:
    """Scores of every method, each computed once and kept as an .npy that names what made it.

    Parameters
    ----------
    path : Path
    task : the digits_subsets task
        Says how models are trained (``trainer``) and what is held out (``held_out()``).
    num_models : int
        That methods use which are not given a number.
    kept : float
        Share of the examples that each model trains on; see
        :func:`coarlib.metagradient.metagradients_of_seeds`.
    device : torch.device
    """

    def __init__(
        self, path: Path, task: Any, num_models: int, kept: float, device: torch.device
    ) -> None:
        self._path, self._num_models, self._kept, self._device = path, num_models, kept, device
        self._trainer: Trainer = task.trainer
        self._train = LabelledData(self._trainer.inputs, self._trainer.targets)
        self._test = LabelledData(*task.held_out())
        self._models: list[torch.nn.Module] = []
        self._seconds_a_model: list[float] = []
        self._training: float | None = None

    def scores(self, name: str) -> NDArray[Any]:
        """Return the scores of a method; ScoringError if a damaged file is in the way."""
        compute: dict[str, Callable[[int], NDArray[Any]]] = {
            "random": self._random,
            "gradient_similarity": self._similarity,
            "trak": self._trak,
            "traker": self._traker,
            "ekfac": self._ekfac,
            "metagradient": self._metagradient,
            "metagradient_trak": self._metagradient_trak,
            "path_kernel": self._path_kernel,
            "ridge_rows": self._ridge,
        }
        kind, count = self._split(name)
        shape = (len(self._train.targets), len(self._test.targets))
        file = self._file(name)
        if not file.exists():
            self._path.mkdir(parents=True, exist_ok=True)
            if kind == "metagradient_trak":
                self.scores(f"metagradient:{count}")
            if kind in (*OF_MODELS, "metagradient_trak"):
                self._trained(count)
            goes_on = kind == "metagradient" and self._store(count).exists()
            began = time.perf_counter()
            scores = compute[kind](count)
            seconds = math.nan if goes_on else time.perf_counter() - began
            with whole_file(file.with_suffix(".json"), "w") as stream:
                json.dump(self._cost(kind, count, seconds), stream)
            with whole_file(file) as stream:
                np.save(stream, scores)
        found = load_npy(file, ScoringError)
        if found.shape != shape:
            raise ScoringError(f"{file} holds scores {found.shape}, not {shape}; delete it")
        return np.asarray(found)

    def _cost(self, kind: str, count: int, seconds: float) -> dict[str, float]:
        """What scores cost, their models included; nothing where a run was stopped in between."""
        if kind in OF_MODELS:
            seconds += sum(self._seconds_a_model[:count])
        if kind == "metagradient_trak":  # whose seeds' models are these
            seconds += self._record(f"metagradient:{count}").get("seconds", math.nan)
        if math.isnan(seconds):
            return {}
        return {"seconds": seconds, "trainings": seconds / self._one_training()}

    def trainings(self, name: str) -> float | None:
        """What the scores cost, in trainings of one model on half the data; None if not known."""
        return self._record(name).get("trainings")

    def _record(self, name: str) -> dict[str, float]:
        file = self._file(name).with_suffix(".json")
        return dict(load_json(file, ScoringError)) if file.exists() else {}

    def _split(self, name: str) -> tuple[str, int]:
        kind, _, count = name.partition(":")
        return kind, int(count or COUNTED.get(kind, self._num_models))

    def _file(self, name: str) -> Path:
        kind, count = self._split(name)
        return self._path / f"{kind}_{count}_of_{self._kept:g}.npy"

    def _store(self, count: int) -> Path:
        return self._path / f"metagradient_{count}_seeds_of_{self._kept:g}"

    def _one_training(self) -> float:
        """Seconds of one training on half the data, alone."""
        if self._training is None:
            half, seconds = np.arange(self._trainer.num_examples // 2), []
            for _ in range(3):
                began = time.perf_counter()
                self._trainer.run(half, SEED, self._device)
                seconds.append(time.perf_counter() - began)
            self._training = min(seconds)
        return self._training

    def _random(self, count: int) -> NDArray[Any]:
        return random_scores(len(self._train.targets), len(self._test.targets), SEED)

    def _similarity(self, count: int) -> NDArray[Any]:
        models = self._trained(count)
        return gradient_similarity(
            models, self._train, self._test, self._trainer.loss, margin_log_sum_exp
        )

    def _trak(self, count: int) -> NDArray[Any]:
        return trak_scores(self._trained(count), self._train, self._test, margin_log_sum_exp)

    def _traker(self, count: int) -> NDArray[Any]:
        with tempfile.TemporaryDirectory() as folder:
            return traker_scores(self._trained(count), self._train, self._test, folder)

    def _ekfac(self, count: int) -> NDArray[Any]:
        models = self._trained(count)
        return ekfac_scores(models, self._train, self._test, self._trainer.loss, margin_log_sum_exp)

    def _metagradient(self, count: int) -> NDArray[Any]:
        found = self._metagradients(count)
        print(f"metagradient: {found.smoothness}")
        return found.scores

    def _metagradient_trak(self, count: int) -> NDArray[Any]:
        return self._metagradients(count).toward(self._trak(count))

    def _metagradients(self, count: int) -> Metagradients:
        return metagradients_of_seeds(
            self._trainer,
            self._test.inputs,
            self._test.targets,
            self._seeds(count),
            kept=self._kept,
            output=OUTPUT,
            out=self._store(count),
            device=self._device,
        )

    def _path_kernel(self, count: int) -> NDArray[Any]:
        seeds, total = self._seeds(count), np.zeros((self._trainer.num_examples, 1))
        shares = draw_shares(len(total), seeds, self._kept)
        for seed, share in zip(seeds, shares, strict=True):
            run = recorded_run(self._trainer, np.flatnonzero(share), seed, self._device)
            found = explain(run, self._test.inputs, self._test.targets, output=OUTPUT)
            if found is not None:  # as in a store that others fill
                total = total + found.by("sample")[:, 0].T
        return np.asarray(total / np.maximum(shares.sum(0), 1)[:, None])

    def _ridge(self, count: int) -> NDArray[Any]:
        rng = np.random.default_rng([SEED, count])
        masks = np.zeros((count, self._trainer.num_examples), np.bool_)
        for row in masks:
            row[rng.permutation(masks.shape[1])[: int(masks.shape[1] * self._kept)]] = True
        seeds = [run_seed(SEED + 2, 0, run) for run in range(count)]
        models = train_many(self._trainer, list(masks), seeds, self._device)
        inputs, targets = self._test.inputs.to(self._device), self._test.targets.to(self._device)
        with torch.no_grad():
            rows = [margin_log_sum_exp(model(inputs), targets).cpu().numpy() for model in models]
        return np.asarray(fit((masks, np.stack(rows)), "ridge").weight)

    @staticmethod
    def _seeds(count: int) -> list[int]:
        return [run_seed(SEED + 1, 0, run) for run in range(count)]

    def _trained(self, count: int) -> list[torch.nn.Module]:
        seeds, had = self._seeds(count), len(self._models)
        if count > had:
            shares = draw_shares(self._trainer.num_examples, seeds, self._kept)[had:]
            began = time.perf_counter()
            self._models += train_many(self._trainer, list(shares), seeds[had:], self._device)
            self._seconds_a_model += [(time.perf_counter() - began) / len(shares)] * len(shares)
        return self._models[:count]
