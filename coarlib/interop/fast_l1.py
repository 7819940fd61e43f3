"""fast_l1's functions on any device, without cupy, and fast_l1 itself where it is installed.

``calc_max_lambda`` and ``train_saga`` have fast_l1's signatures: they take loaders of
``(masks [B, N], outputs [B, T], index [B])`` on one device and change ``weight`` and ``bias``, in
standardised units, in place. (:meth:`coarlib.regression.Attributions.from_standardised` converts
to raw mask units.) What differs is what was wrong: the largest λ is that of the standardised
problem which is then solved (fast_l1's is too small by the masks' standard deviation), ``lr=None``
finds a safe step size, every batch counts whatever its size, and the weights left behind are those
of the best λ, not of the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.interop.fast_l1_package import IndicesFollow, installed_regressor
from coarlib.masks.digests import mask_digests
from coarlib.regression.attributions import Attributions
from coarlib.regression.cost import COST, Cost
from coarlib.regression.rows import RowSource
from coarlib.regression.solvers.saga_run import SagaRun, safe_step, standardise
from coarlib.regression.split import Split

__all__ = [
    "RowLoader",
    "calc_max_lambda",
    "calc_stats",
    "fit_with_fast_l1",
    "train_saga",
]

MAX_EPOCHS = 20_000

Loader = Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class RowLoader:
    """A loader of a row source's rows, as fast_l1 wants them: equal batches, on one device.

    Parameters
    ----------
    source : RowSource
    positions : int64 [K]
    batch_size : int
        The largest divisor of K up to this is used, because fast_l1's buffers have one size.
    device : torch.device or str
    """

    def __init__(
        self,
        source: RowSource,
        positions: NDArray[np.int64],
        batch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        count = len(positions)
        if count == 0 or batch_size < 1:
            raise RegressionError(f"{count} rows cannot be read in batches of {batch_size}")
        self.batch_size = max(b for b in range(1, min(batch_size, count) + 1) if count % b == 0)
        self._source, self._positions, self._device = source, positions, device

    def __len__(self) -> int:
        return len(self._positions) // self.batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for start in range(0, len(self._positions), self.batch_size):
            masks, outputs = self._source.read(self._positions[start : start + self.batch_size])
            index = torch.arange(start, start + len(masks), device=self._device)
            x, y = (torch.from_numpy(np.ascontiguousarray(v)) for v in (masks, outputs))
            yield x.to(self._device).float(), y.to(self._device).float(), index


def fit_with_fast_l1(
    source: RowSource,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    *,
    lr: float,
    num_lambdas: int,
    eps: float,
    max_lambda: float = -1.0,
    batch_size: int = 500,
    check_every: int = 2,
    stop_eps: float = 1e-5,
    use_bias: bool = True,
    regressor: Any = None,
    device: torch.device | str = "cuda",
) -> Attributions:
    """Run fast_l1 as upstream's run_regression does, and convert its result to raw mask units.

    Parameters
    ----------
    train, validation : int64
        Positions of the rows to fit and to choose λ on; the final fit is on both.
    max_lambda : float
        -1 takes the largest useful λ; 0 with ``num_lambdas=1`` is least squares.
    regressor : module, optional
        Something with fast_l1's functions; fast_l1 itself by default.

    Raises
    ------
    RegressionError
        If fast_l1 cannot be used here.
    """
    saga = installed_regressor() if regressor is None else regressor
    both = np.union1d(train, validation)
    first = RowLoader(source, train, min(batch_size, len(validation)), device)
    # fast_l1 scores in buffers of the training batches, so a few validation rows may be left over.
    scored = validation[: len(validation) // first.batch_size * first.batch_size]
    second = RowLoader(source, scored, first.batch_size, device)
    loaders = first, second, RowLoader(source, both, batch_size, device)
    weight = torch.zeros(source.num_features, source.num_targets, device=device)
    bias = torch.zeros(source.num_targets, device=device)
    common = {
        "lr": lr,
        "update_bias": use_bias,
        "early_stop_freq": check_every,
        "early_stop_eps": stop_eps,
    }
    decay = float(eps ** (1 / num_lambdas))
    with IndicesFollow():
        largest = saga.calc_max_lambda(loaders[0])
        if max_lambda != -1:
            largest = torch.full_like(largest, max_lambda)
        lam = saga.train_saga(
            weight, bias, loaders[0], loaders[1],
            start_lams=largest, lam_decay=decay, num_lambdas=num_lambdas, **common,
        )  # fmt: skip
        saga.train_saga(
            weight, bias, loaders[2], None,
            start_lams=lam, lam_decay=1.0, num_lambdas=1, **common,
        )  # fmt: skip
    kept, digests = np.zeros(source.num_features), []
    for start in range(0, len(both), 4096):
        masks = source.read(both[start : start + 4096])[0]
        kept += masks.sum(0)
        digests.append(mask_digests(masks))
    w, b, lam_ = (value.cpu().double().numpy() for value in (weight, bias, lam))
    result = Attributions.from_standardised(w, b, lam_, kept / len(both))
    result.fitted = np.sort(np.concatenate(digests))
    result.split = Split(train, validation).row_ids(source)
    result.summary |= {
        "solver": "fast_l1",
        "status": "fast_l1's SAGA, converted to raw units",
        "num_rows": len(both),
        COST: Cost(len(both)).as_json(),
    }
    return result


def calc_stats(loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (divisor n) of the masks, float32 [N] each."""
    count, total, squares = 0, None, None
    for masks, _, _ in loader:
        wide = masks.double()
        total = wide.sum(0) if total is None else total + wide.sum(0)
        squares = wide.square().sum(0) if squares is None else squares + wide.square().sum(0)
        count += len(masks)
    if total is None or squares is None:
        raise RegressionError("the loader yields no rows")
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()


def calc_max_lambda(loader: Loader) -> torch.Tensor:
    """Smallest λ at which every weight is zero, of the standardised problem, float32 [T]."""
    mean, scale = calc_stats(loader)
    count, total, cross = 0, None, None
    for masks, outputs, _ in loader:
        y = outputs.double()
        z = standardise(masks, mean, scale).double()
        total = y.sum(0) if total is None else total + y.sum(0)
        cross = z.T @ y if cross is None else cross + z.T @ y
        count += len(masks)
    if cross is None:
        raise RegressionError("the loader yields no rows")
    # The standardised masks sum to zero, so the outputs' mean drops out.
    return (cross.abs().amax(0) / count).float()


def train_saga(
    weight: torch.Tensor,
    bias: torch.Tensor,
    loader: Loader,
    val_loader: Loader | None,
    *,
    lr: float | None,
    start_lams: torch.Tensor,
    lam_decay: float,
    num_lambdas: int,
    early_stop_freq: int = 2,
    early_stop_eps: float = 1e-5,
    logdir: str | Path | None = None,
    update_bias: bool = True,
    min_lams_to_try: int = 10,
    max_epochs: int = MAX_EPOCHS,
) -> torch.Tensor:
    """Fit a lasso path by SAGA, with fast_l1's arguments.

    Parameters
    ----------
    weight : float32 [N, T], bias : float32 [T]
        Start and result, in standardised units.
    loader, val_loader
        Rows to fit, and rows that choose λ (None: the last λ is kept).
    lr : float or None
        Step size; None measures a safe one.
    start_lams : float32 [T]
        First λ of each target; each is multiplied by ``lam_decay``, ``num_lambdas`` in all.
    early_stop_freq : int
        Epochs between checks.
    early_stop_eps : float
        A λ is done when no weight's last step, squared, is above this.
    logdir : path, optional
        Gets ``path.npz``: λ and validation error of every finished (target, λ).
    update_bias : bool
    min_lams_to_try : int
        A target may stop on a worse validation error only after so many λ.
    max_epochs : int
        Bound on the whole run.

    Returns
    -------
    float32 [T]
        The λ kept for each target.
    """
    mean, scale = (v.to(weight.device) for v in calc_stats(loader))
    rows, largest = 0, 0
    for _, _, index in loader:
        rows, largest = rows + len(index), max(largest, int(index.max()))
    step = safe_step(iter(loader), mean, scale) if lr is None else lr
    run = SagaRun(weight.clone(), bias.clone(), rows, largest + 1, mean, scale, step, update_bias)
    lam = start_lams.to(weight.device).float().clone()
    done = torch.zeros_like(lam, dtype=torch.long)
    best_error = torch.full_like(lam, torch.inf)
    last_error = torch.full_like(lam, torch.inf)
    best_lam = torch.zeros_like(bias)
    log: list[tuple[int, float, float]] = []
    while len(run.columns) and run.epochs < max_epochs:
        moved, _ = run.epoch(iter(loader), lam)
        if run.epochs % early_stop_freq:
            continue
        settled = moved < early_stop_eps
        if not settled.any():
            continue
        error = run.error(iter(val_loader)) if val_loader is not None else torch.zeros_like(lam)
        better = settled & ((error <= best_error) | (val_loader is None))
        chosen = run.columns[better]
        weight[:, chosen], bias[chosen] = run.weight[:, better], run.bias[better]
        best_lam[chosen] = lam[better]
        best_error = torch.where(better, error, best_error)
        log += _entries(run.columns, lam, error, settled)
        done += settled
        worse = settled & (error > last_error) & (done >= min_lams_to_try)
        last_error = torch.where(settled, error, last_error)
        lam = torch.where(settled, lam * lam_decay, lam)
        finished = (done >= num_lambdas) | worse
        if finished.any():
            run.drop(finished)
            keep = ~finished
            lam, done = lam[keep], done[keep]
            best_error, last_error = best_error[keep], last_error[keep]
    if len(run.columns):  # out of epochs: keep what there is where nothing was kept
        never = done == 0
        weight[:, run.columns[never]] = run.weight[:, never]
        bias[run.columns[never]] = run.bias[never]
        best_lam[run.columns[never]] = lam[never]
    if logdir is not None:
        _write_log(Path(logdir), log)
    return best_lam


def _entries(
    columns: torch.Tensor, lam: torch.Tensor, error: torch.Tensor, settled: torch.Tensor
) -> list[tuple[int, float, float]]:
    picked = (v[settled].tolist() for v in (columns, lam, error))
    return list(zip(*picked, strict=True))


def _write_log(logdir: Path, log: list[tuple[int, float, float]]) -> None:
    logdir.mkdir(parents=True, exist_ok=True)
    table = np.array(log, dtype=np.float64).reshape(-1, 3)
    np.savez(logdir / "path.npz", target=table[:, 0], lam=table[:, 1], validation_error=table[:, 2])
