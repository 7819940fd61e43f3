"""The verbs of the front door: each a few lines over one room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from coarlib.devices import resolve_device
from coarlib.errors import ArgumentError, RegressionError, TaskError, whole_number
from coarlib.filling.worker import FillOptions, FillReport, row_range
from coarlib.filling.worker import fill as fill_rows
from coarlib.history import History, open_run
from coarlib.masks import MaskDesign
from coarlib.outputs import margin_log_sum_exp
from coarlib.path_kernel import Decomposition
from coarlib.path_kernel import explain as explain_run
from coarlib.regression import ArrayRows, Attributions, RowSource, StoreRows, open_rows
from coarlib.regression.fit import default_held_out
from coarlib.regression.fit_and_score import FitOptions, fit_and_score
from coarlib.regression.solvers import Solver, solver_of
from coarlib.regression.split import split_rows
from coarlib.retraining import RetrainTask
from coarlib.statistics.arrays import as_array
from coarlib.store import Store
from coarlib.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from coarlib.history import Samples, TrainingLoss
    from coarlib.retraining import Trainer
    from coarlib.retraining.functions import Train
    from coarlib.retraining.task import Evaluate


def fill(
    store: Store | str | Path,
    task: Task,
    rows: tuple[int, int] | range | None = None,
    device: str = "auto",
    *,
    share: bool = False,
    quiet: bool = False,
) -> FillReport:
    """Compute the missing rows of a store, here.

    Workers elsewhere (``coar make_dataset``) may fill the same store at the same time, if all of
    them share.

    Parameters
    ----------
    store : Store or path
    task : Task
    rows : (first, end) or range, optional
        Only these rows, the end exclusive; by default all.
    device : str
        ``auto`` (an accelerator, if there is one), ``cpu``, ``cuda:1`` …
    share : bool
        Claim blocks of rows, so that other workers do other rows.
    quiet : bool
        No progress bar.

    Returns
    -------
    FillReport
        What was computed, and what was there already.

    Raises
    ------
    TaskError
        If task and store do not fit, or the task returns something else than it announced.
    NonFiniteError
        If rows were refused for NaN or infinity; the good ones are kept.
    """
    store = Store.open(store)
    if not isinstance(task, Task):
        raise TaskError(f"a store is filled from a Task, not from {type(task).__name__}")
    if isinstance(rows, range) and rows.step == 1:
        rows = rows.start, rows.stop
    if rows is not None and (not isinstance(rows, tuple | list) or len(rows) != 2):
        raise ArgumentError(f"rows must be a pair (first, end), not {rows!r}")
    first, end = (0, store.num_models) if rows is None else rows
    chosen = row_range(
        whole_number(first, "the first row"), whole_number(end, "the end"), store.num_models
    )
    options = FillOptions(claim=share, quiet=quiet, ways_round=())
    return fill_rows(store, task, chosen, resolve_device(device), options)


def lds_bank(
    train: Trainer | Train,
    data: tuple[Any, Any] | Evaluate,
    subsets: int = 100,
    *,
    runs: int = 4,
    kept: float = 0.5,
    num_examples: int | None = None,
    seed: int = 0,
    out: str | Path = "out/bank",
    device: str = "auto",
    quiet: bool = False,
) -> Store:
    """Retrain on random subsets of the data, so that attributions can be judged by their LDS.

    Resumes where it was stopped, and shares the work with processes that are given the same
    ``out``. ``coarlib.lds(scores, bank.array("masks"), bank.array("test_margins"))`` judges.

    Parameters
    ----------
    train : Trainer, or callable (subset int64 [k], seed[, device]) -> model
        One's own training loop, on the examples of ``subset``.
    data : (inputs, targets), or callable (model, device) -> [T]
        What is measured: the log-odds of the right class on test points, or anything else.
    subsets, runs : int
        How many subsets, and models trained on each with seeds of their own; two at least give a
        noise ceiling.
    kept : float
        Share of the examples in a subset.
    num_examples : int, optional
        N, where ``train`` is a function.
    seed : int
        Of subsets and of training.
    out : str or Path
        The store.
    device : str
    quiet : bool

    Returns
    -------
    Store
        ``masks`` bool [subsets, N] and ``test_margins`` float32 [subsets, runs, T].

    Raises
    ------
    TaskError
        If training is no function of (subset, seed), or measures nothing.
    StoreError
        If ``out`` holds another bank.
    """
    if not callable(data) and not (isinstance(data, tuple | list) and len(data) == 2):
        raise ArgumentError(
            "data is a pair (inputs, targets), or a function (model, device) that returns outputs, "
            f"not {type(data).__name__}"
        )
    evaluate = data if callable(data) else _log_odds(*data)
    task = RetrainTask(train, evaluate, num_examples, seed=seed, runs=runs, keep_runs=True)
    design = MaskDesign(kind="fixed_size", keep_prob=kept, seed=seed)
    store = Store.create(out, task, subsets, design=design, device=device)
    fill(store, task, device=device, share=True, quiet=quiet)
    return store


def _log_odds(inputs: torch.Tensor, targets: torch.Tensor) -> Evaluate:
    def evaluate(model: Any, device: torch.device) -> torch.Tensor:
        outputs = model(inputs.to(device))
        return margin_log_sum_exp(getattr(outputs, "logits", outputs), targets.to(device))

    return evaluate


def fit(
    rows: Store | RowSource | str | Path | ArrayLike,
    outputs: ArrayLike | None = None,
    solver: str | Solver = "auto",
    *,
    held_out: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    verbose: bool = False,
    **options: Any,
) -> Attributions:
    """Fit attributions, and score them on rows that were held out.

    Parameters
    ----------
    rows : Store, path of a store or .beton, or masks bool [K, N]
        Completed rows; what has not been computed is left out. Masks: array, tensor or lists.
    outputs : real [K, T]
        Where ``rows`` are masks in memory.
    solver : str or Solver
        ``auto`` tries several and keeps what predicts the held-out rows best.
    held_out : int, optional
        How many rows score the fit; a tenth of them by default, at least 20, at most half. The
        weights that are returned come from all rows.
    seed : int, optional
        Draws which rows are held out; by default the last ones.
    device : str
    verbose : bool
        Print what is being done.
    **options
        Options of the solver, where it is given by name.

    Raises
    ------
    RegressionError
        If there are too few rows, or solver and options do not fit.
    """
    source = _source(rows, outputs)
    count = len(source.row_ids)
    held = default_held_out(count) if held_out is None else whole_number(held_out, "held_out")
    if seed is not None:
        seed = whole_number(seed, "seed")
    split = split_rows(source, count - held, held, seed)
    say = print if verbose else _silent
    how = FitOptions(device=resolve_device(device), quiet=not verbose, say=say)
    return fit_and_score(source, split, solver_of(solver, **options), how)


def _source(rows: Any, outputs: ArrayLike | None) -> RowSource:
    kept = isinstance(rows, Store | str | Path) or hasattr(rows, "row_ids")
    if kept and outputs is not None:
        raise RegressionError("outputs are given, but not as a pair with masks in memory")
    if outputs is not None:
        return ArrayRows(as_array(rows, "masks"), as_array(outputs, "outputs"))
    if isinstance(rows, Store):
        return StoreRows(rows)
    if isinstance(rows, str | Path):
        return open_rows(rows)
    if kept:
        source: RowSource = rows
        return source
    if isinstance(rows, list | tuple) or np.ndim(rows) == 0:
        raise RegressionError(
            f"rows are a store, its path, or masks with outputs, not {type(rows).__name__}"
        )
    raise RegressionError("masks in memory need the outputs measured under them")


def _silent(line: str) -> None:
    """Say nothing."""


def explain(
    history: History | str | Path,
    model: nn.Module,
    *,
    loss: TrainingLoss,
    samples: Samples | Sequence[torch.Tensor],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    device: str | None = None,
    **options: Any,
) -> Decomposition | None:
    """Decompose a trained model's outputs by training sample, component, tensor or step.

    Parameters
    ----------
    history : History or path
        What :func:`coarlib.record` kept of the training run.
    model, loss, samples
        What was recorded; the model's trained parameters do not matter.
    inputs, targets : Tensor [T, …]
        Test points.
    device : str, optional
        That of the model by default.
    **options
        ``by``, ``output``, ``components`` … of :func:`coarlib.path_kernel.explain`.

    Raises
    ------
    HistoryError
        If these are not the model or the data that were recorded.
    """
    place = None if device is None else resolve_device(device)
    run = open_run(history, model, loss, samples, device=place)
    return explain_run(run, inputs, targets, **options)
