"""Metagradients of trained outputs, of one recorded run or averaged over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import HistoryError
from coarlib.files import whole_file
from coarlib.history import RecordedRun
from coarlib.history.inputs import Inputs
from coarlib.history.queries import Queries, Query
from coarlib.history.results import Results
from coarlib.identity import Identity
from coarlib.loading import load_json
from coarlib.metagradient.smoothness import Smoothness, draw_removals, reweighted
from coarlib.metagradient.sweep import Sweep, through_gradient_of
from coarlib.metagradient.trained import recorded_run
from coarlib.progress import Progress
from coarlib.regression import Attributions
from coarlib.retraining import Trainer
from coarlib.store.spec import ArraySpec

DEFAULT_MEMORY = 512 * 2**20
SMOOTHNESS_FILE = "smoothness.json"
LIVE_COPIES = 8
"""Tensors of the parameters' size that a sweep holds a target, about."""


@dataclass(frozen=True)
class Metagradients:
    """Derivatives of outputs with respect to the weight of each training sample.

    Attributes
    ----------
    effects : float32 or float64 [S, T, D]
        By seed, output (test point by test point) and training sample: derivative of the output
        with respect to a factor on the sample's loss. Positive: training on it raised the output.
    outputs : float64 [S, T]
        Outputs of the trained models.
    trained : bool [S, D]
        Which samples each seed trained on; the effects of the others are 0.
    smoothness : Smoothness or None
        Of the first seed; None where no removals were asked for.
    about : dict
    """

    effects: NDArray[Any]
    outputs: NDArray[np.float64]
    trained: NDArray[np.bool_]
    smoothness: Smoothness | None
    about: dict[str, Any]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Mean over the seeds that trained on a sample, [D, T], as scoring takes them.

        0 for a sample that none trained on.
        """
        total = np.sum(self.effects, 0, dtype=np.float64).T
        return np.asarray(total / np.maximum(self.trained.sum(0), 1)[:, None])

    def attributions(self) -> Attributions:
        """Return the mean over seeds as attributions; ``bias`` is the output less all effects."""
        scores = self.scores
        correlation = None if self.smoothness is None else self.smoothness.correlation
        return Attributions(
            weight=scores.astype(np.float32),
            bias=self.outputs.mean(0) - scores.sum(0),
            lam=np.zeros(scores.shape[1]),
            mean_mask=np.ones(len(scores)),
            gap=np.full(scores.shape[1], np.nan),
            summary={"method": "metagradient", "smoothness": correlation, **self.about},
        )


def metagradients(
    run: RecordedRun,
    inputs: Inputs,
    targets: torch.Tensor,
    *,
    output: str | Query = "margin",
    removals: int = 6,
    out: str | Path | None = None,
    memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
) -> Metagradients:
    """Differentiate outputs of a recorded run with respect to every training sample's weight.

    Exact, by reverse mode through the recorded updates: one Hessian-vector product an update and
    output. Memory is that of one update.

    Parameters
    ----------
    run : RecordedRun
        A whole run of SGD (momentum, Nesterov, dampening, L2), Adam or AdamW, with schedules, and
        clipping by norm, all tensors tracked.
    inputs [N, ...], targets [N, ...], output
        As :func:`coarlib.path_kernel.explain` takes them.
    removals : int
        How many removals of 1% of the samples to predict and do; 0 for none.
    out : str or Path, optional
        A store of results, one row a test point; finished rows are kept.
    memory : int
        Bytes that the derivatives may take, about; sets how many test points go together.
    quiet : bool

    Raises
    ------
    HistoryError
        If the history is partial, or ``out`` holds results of anything else.

    Warns
    -----
    RuntimeWarning
        If removals are predicted badly.
    """
    about = {"seeds": ["recorded"], **run.identity()}
    history = run.walk.history
    trained = np.zeros((1, history.settings.num_samples), np.bool_)
    for number in run.walk.numbers:
        trained[0, history.record(number).samples] = True
    return _over_runs(
        [lambda: run],
        trained,
        (run.put(inputs), run.put(targets), output),
        about,
        removals=removals,
        out=out,
        memory=memory,
        quiet=quiet,
    )


def metagradients_of_seeds(
    trainer: Trainer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    seeds: Sequence[int],
    *,
    kept: float = 1.0,
    output: str | Query = "margin",
    removals: int = 6,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
) -> Metagradients:
    """Train with several seeds and differentiate the outputs of each trained model.

    Parameters
    ----------
    trainer : Trainer
    inputs, targets, output, removals, out, memory, quiet
        As in :func:`metagradients`; ``out`` has a row for each seed and test point, so a run that
        stopped goes on.
    seeds : sequence of int
    kept : float
        Share of the samples that each seed trains on, another one for each seed, so that all are
        trained on about equally often. To predict models that were trained on halves of the data,
        derivatives at such models are better than at those trained on everything, and cheaper.
    device : torch.device or str

    Raises
    ------
    HistoryError
    """
    shares = draw_shares(trainer.num_examples, seeds, kept)
    facts = Identity().add(trainer.facts()).hexdigest()
    points = inputs.to(device), targets.to(device), output

    def make(seed: int, share: NDArray[np.bool_]) -> Callable[[], RecordedRun]:
        return lambda: recorded_run(trainer, np.flatnonzero(share), seed, device)

    return _over_runs(
        [make(seed, share) for seed, share in zip(seeds, shares, strict=True)],
        shares,
        points,
        {"seeds": [int(seed) for seed in seeds], "kept": kept, "training": facts},
        removals=removals,
        out=out,
        memory=memory,
        quiet=quiet,
    )


def draw_shares(count: int, seeds: Sequence[int], kept: float) -> NDArray[np.bool_]:
    """Draw what each seed trains on, bool [S, D]: pairs of halves, triples of thirds do not meet.

    Raises
    ------
    HistoryError
        If ``kept`` is not above 0 and at most 1.
    """
    if not 0 < kept <= 1:
        raise HistoryError(f"kept must be above 0 and at most 1, not {kept}")
    size, together = max(1, int(count * kept)), max(1, int(1 / kept))
    shares = np.zeros((len(seeds), count), np.bool_)
    for place, share in enumerate(shares):
        first = int(seeds[place - place % together])
        order = np.random.default_rng([first, count]).permutation(count)
        begin = place % together * size
        share[order[begin : begin + size]] = True
    return shares


def _over_runs(
    runs: Sequence[Callable[[], RecordedRun]],
    trained: NDArray[np.bool_],
    points: tuple[Any, torch.Tensor, str | Query],
    about: dict[str, Any],
    *,
    removals: int,
    out: str | Path | None,
    memory: int,
    quiet: bool,
) -> Metagradients:
    if not runs:
        raise HistoryError("there are no seeds to train with")
    inputs, targets, output = points
    made: dict[int, RecordedRun] = {0: runs[0]()}
    queries, first = _queries(made[0], points), made[0].walk
    count, settings = len(targets), first.history.settings
    about = {
        **about,
        "num_rows": count * len(runs),
        "test inputs": Identity().add(inputs).hexdigest(),
        "test targets": Identity().add(targets).hexdigest(),
        "output function": Identity().add(output).hexdigest(),
    }
    own = np.dtype(str(first.dtype).removeprefix("torch."))
    schema = {
        "effects": ArraySpec(own, (queries.num_outputs, settings.num_samples)),
        "outputs": ArraySpec(np.dtype(np.float64), (queries.num_outputs,)),
    }
    results = Results.make(out, schema, np.arange(count * len(runs)), about)
    missing = results.missing()
    row = LIVE_COPIES * queries.num_outputs * settings.table.total * own.itemsize
    tile = max(1, memory // row)
    tiles = [
        (number, part)
        for number in range(len(runs))
        for part in _tiles(missing[missing // count == number], tile)
    ]
    updates, through = len(first.numbers), through_gradient_of(made[0])
    with Progress(len(tiles) * updates, "differentiating", "step", quiet) as progress:
        for number, part in tiles:
            if number not in made:
                made = {0: made[0], number: runs[number]()}
                queries = _queries(made[number], points)
            run = made[number]
            where = torch.from_numpy(part % count).to(run.walk.device)
            found = Sweep(run, queries, progress.advance, through).of(where)
            values = queries.values(run.walk.theta(run.walk.history.last), where)
            results.write(part, {"effects": found, "outputs": values})
    arrays = results.arrays()
    if arrays is None:
        raise HistoryError(f"{out} still lacks rows")
    effects = np.asarray(arrays["effects"]).reshape(len(runs), -1, settings.num_samples)
    outputs = np.asarray(arrays["outputs"]).reshape(len(runs), -1)
    smoothness = None
    if removals:
        kept = None if out is None else Path(out) / SMOOTHNESS_FILE
        removed = draw_removals(np.flatnonzero(trained[0]), removals)
        smoothness = _smoothness(made[0], points, (effects[0], outputs[0]), removed, kept)
        smoothness.warn()
    return Metagradients(effects, outputs, trained, smoothness, about)


def _tiles(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def _queries(run: RecordedRun, points: tuple[Any, torch.Tensor, str | Query]) -> Queries:
    queries = Queries(run.model, run.put(points[0]), run.put(points[1]), points[2])
    queries.count_outputs(run.walk.theta(run.walk.history.first))
    return queries


def _smoothness(
    run: RecordedRun,
    points: tuple[Any, torch.Tensor, str | Query],
    found: tuple[NDArray[Any], NDArray[np.float64]],
    removed: NDArray[np.int64],
    file: Path | None,
) -> Smoothness:
    effects, outputs = found
    walk, count = run.walk, len(removed)
    if file is not None and file.exists():
        content = load_json(file, HistoryError)
        if content.get("removed") == removed.tolist():
            kept = (np.asarray(content[key], np.float64) for key in ("predicted", "measured"))
            return Smoothness(removed, *kept)
    factors = torch.ones(count, walk.history.settings.num_samples, dtype=walk.dtype)
    factors.scatter_(1, torch.from_numpy(removed), 0.0)
    theta = reweighted(run, factors.to(walk.device))
    queries = _queries(run, points)
    every = torch.arange(len(queries), device=walk.device)
    rows = []
    for place in range(count):
        own = {name: values[place] for name, values in theta.items()}
        rows.append(queries.values(own, every).reshape(-1).double().cpu().numpy() - outputs)
    predicted = -np.stack([effects[:, out_].sum(1, dtype=np.float64) for out_ in removed])
    smoothness = Smoothness(removed, predicted, np.stack(rows))
    if file is not None:
        content = {
            "removed": removed.tolist(),
            "predicted": predicted.tolist(),
            "measured": smoothness.measured.tolist(),
        }
        with whole_file(file, "w") as stream:
            json.dump(content, stream)
    return smoothness
