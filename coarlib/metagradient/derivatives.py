"""Metagradients of trained outputs, of one recorded run or averaged over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.devices import resolve_device
from coarlib.errors import HistoryError
from coarlib.history import RecordedRun
from coarlib.history.inputs import Inputs
from coarlib.history.queries import Query
from coarlib.identity import Identity
from coarlib.metagradient.filling import over_runs
from coarlib.metagradient.found import Metagradients
from coarlib.metagradient.trained import recorded_run
from coarlib.retraining import Trainer
from coarlib.retraining.randomness import checked_seed

DEFAULT_MEMORY = 512 * 2**20


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
        A store of results, one row a test point; finished rows are kept, and processes that
        share it share out its rows.
    memory : int
        Bytes that the derivatives may take, about; sets how many test points go together. What
        is expected stands in the line of progress.
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
    return over_runs(
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
        If an argument cannot be, training diverged, or ``out`` holds results of anything else.
    TaskError
        If a seed cannot be.
    """
    try:
        seeds = [checked_seed(seed) for seed in seeds]
    except TypeError as error:
        raise HistoryError(f"seeds are a list of whole numbers, not {seeds!r}") from error
    device = resolve_device(str(device))
    shares = draw_shares(trainer.num_examples, seeds, kept)
    facts = Identity().add(trainer.facts()).hexdigest()
    points = inputs.to(device), targets.to(device), output

    def make(seed: int, share: NDArray[np.bool_]) -> Callable[[], RecordedRun]:
        return lambda: recorded_run(trainer, np.flatnonzero(share), seed, device)

    return over_runs(
        [make(seed, share) for seed, share in zip(seeds, shares, strict=True)],
        shares,
        points,
        {"seeds": seeds, "kept": kept, "training": facts},
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
    if not (isinstance(kept, Real) and 0 < kept <= 1):
        raise HistoryError(f"kept must be above 0 and at most 1, not {kept!r}")
    size, together = max(1, int(count * kept)), max(1, int(1 / kept))
    shares = np.zeros((len(seeds), count), np.bool_)
    for place, share in enumerate(shares):
        first = seeds[place - place % together]
        order = np.random.default_rng([first, count]).permutation(count)
        begin = place % together * size
        share[order[begin : begin + size]] = True
    return shares
