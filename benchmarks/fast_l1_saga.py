"""fast_l1's algorithm as torch operations, for the benchmarks that compare with it.

Its SAGA iteration (standardised masks, a table of residuals, soft thresholding) and its path:
first λ = 0, then from its own largest λ (computed on the raw masks) down by a constant factor; a λ
is done when no weight moved by more than ``stop`` in an epoch, looked at every ``check`` epochs; a
target is finished when its validation error is above that of the λ before (after ten λ) or the path
is at its end. Columns are independent of each other in all this, so runs with different learning
rates and stopping rules go side by side through the same rows.

Small steps need thousands of epochs. After a bound they are counted with the mean of the iteration:
steps of the same size and number along the gradient of all rows, by way of X'X. Without the noise
of batches it needs no more epochs; `Task.drift` says how far the two are apart.
"""

from dataclasses import dataclass

import torch

FEWEST_LAMBDAS = 10


class Saga:
    """One step of fast_l1's loop for columns of one learning rate, or one each.

    Buffers are allocated once; ``drop`` makes them anew.
    """

    def __init__(self, features, targets, rows, rate, batch):
        def zeros(*shape):
            return torch.zeros(*shape)

        self.weight, self.bias = zeros(features, targets), zeros(targets)
        self.slope, self.level = zeros(features, targets), zeros(targets)
        self.table = zeros(rows, targets)
        self.residual, self.step = zeros(batch, targets), zeros(features, targets)
        self.rows, self.size = rows, batch
        self.rate = torch.as_tensor(rate).expand(targets).clone()

    def batch(self, x, y, index, lam=None):
        torch.addmm(y - self.bias, x, self.weight, out=self.residual, beta=-1)
        old = self.table[index]
        self.residual -= old
        torch.mm(x.T, self.residual, out=self.step)
        self.step /= self.size
        self.step += self.slope
        level = self.residual.sum(0) / self.size + self.level
        self.weight.addcmul_(self.step, self.rate, value=-1)
        self.bias.addcmul_(level, self.rate, value=-1)
        self.residual += old
        self.table[index] = self.residual
        share = self.size / self.rows
        self.slope.mul_(1 - share).add_(self.step, alpha=share)
        self.level.mul_(1 - share).add_(level, alpha=share)
        if lam is not None:
            self._threshold(lam)

    def mean_epoch(self, gram, cross, level, lam):
        """The steps of an epoch with batches replaced by all rows: X'X/n, X'y/n and mean y."""
        for _ in range(self.rows // self.size):
            torch.mm(gram, self.weight, out=self.step)
            self.step -= cross
            self.weight.addcmul_(self.step, self.rate, value=-1)
            self.bias.addcmul_(self.bias - level, self.rate, value=-1)
            self._threshold(lam)

    def _threshold(self, lam):
        threshold = self.rate * lam
        torch.clamp(self.weight, -threshold, threshold, out=self.step)
        self.weight -= self.step

    def error(self, x, y, columns=slice(None)):
        """Mean squared error of some columns."""
        predicted = torch.addmm(self.bias[columns], x, self.weight[:, columns])
        return (predicted - y).square_().mean(0)

    def drop(self, keep):
        """Go on with the columns ``keep`` only."""
        for name in ("weight", "slope", "table", "residual", "step"):
            setattr(self, name, getattr(self, name)[:, keep].contiguous())
        for name in ("bias", "level", "rate"):
            setattr(self, name, getattr(self, name)[keep].contiguous())


@dataclass(frozen=True)
class Settings:
    """What its user sets: learning rate, tolerance of a step squared, epochs between looks."""

    rate: float
    stop: float
    check: int


@dataclass
class Found:
    """How one target's path went under some settings; epochs until it was finished or given up."""

    settings: Settings
    target: int
    ended: str
    epochs: int
    checks: int
    lambdas: int
    error: float


def largest_lambda(masks, y):
    """What fast_l1's path starts from: raw masks (not standardised) against centred outputs."""
    return (masks.T @ (y - y.mean(0))).abs().amax(0) / len(y)


@dataclass(frozen=True)
class Task:
    """Standardised masks and outputs of the rows to fit and to choose λ on; the path; the batch."""

    x: torch.Tensor
    y: torch.Tensor
    held_x: torch.Tensor
    held_y: torch.Tensor
    scale: torch.Tensor  # standard deviation of the masks
    start: torch.Tensor  # first λ of each target
    num_lambdas: int
    eps: float
    batch: int

    def follow(self, settings, most_epochs, most_mean_epochs=0):
        """Run every setting on every target; returns what was found.

        After ``most_epochs`` go on with the mean iteration until so many epochs in all.
        """
        return _Paths(self, settings).run(most_epochs, most_mean_epochs)

    def moments(self):
        """X'X/n, X'y/n and mean y."""
        y = self.y - self.y.mean(0)
        return self.x.T @ self.x / len(self.x), self.x.T @ y / len(self.x), self.y.mean(0)

    def drift(self, rate, epochs):
        """Distance of mean iteration and SAGA, relative to the weights, after epochs at λ = 0."""
        sizes = self.x.shape[1], self.y.shape[1], len(self.x)
        one, other = (Saga(*sizes, rate, self.batch) for _ in range(2))
        lam, moments = torch.zeros(1), self.moments()
        generator = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for index in torch.randperm(len(self.x), generator=generator).split(self.batch):
                one.batch(self.x[index], self.y[index], index, lam)
            other.mean_epoch(*moments, lam)
        return float((one.weight - other.weight).norm() / one.weight.norm())


class _Paths:
    """State of the columns that still run: (settings, target) each."""

    def __init__(self, task, settings):
        targets = task.y.shape[1]
        self.task, self.epochs, self.found = task, 0, []
        self.names = [(one, target) for one in settings for target in range(targets)]
        self.saga = Saga(task.x.shape[1], len(self.names), len(task.x),
                         torch.tensor([one.rate for one, _ in self.names]), task.batch)  # fmt: skip
        self.state = {
            "target": torch.tensor([target for _, target in self.names]),
            "stop": torch.tensor([one.stop for one, _ in self.names]),
            "check": torch.tensor([one.check for one, _ in self.names]),
            "lam": torch.zeros(len(self.names)),
            "done": torch.zeros(len(self.names), dtype=torch.long),
            "last": torch.full((len(self.names),), torch.inf),
            "best": torch.full((len(self.names),), torch.inf),
        }

    def run(self, most_epochs, most_mean_epochs):
        task = self.task
        generator = torch.Generator().manual_seed(0)
        gram, cross, level = task.moments() if most_mean_epochs else (None, None, None)
        while self.names and self.epochs < max(most_epochs, most_mean_epochs):
            before, target = self.saga.weight.clone(), self.state["target"]
            if self.epochs < most_epochs:
                for index in torch.randperm(len(task.x), generator=generator).split(task.batch):
                    y = task.y[index][:, target]
                    self.saga.batch(task.x[index], y, index, self.state["lam"])
            else:
                self.saga.mean_epoch(gram, cross[:, target], level[target], self.state["lam"])
            self.epochs += 1
            moved = (self.saga.weight - before).square_().mul_(task.scale.square()[:, None])
            self._look(moved.amax(0))
        self._leave(torch.ones(len(self.names), dtype=torch.bool), "not finished")
        return self.found

    def _look(self, moved):
        s = self.state
        due = self.epochs % s["check"] == 0
        settled = due & (moved < s["stop"])
        diverged = ~torch.isfinite(moved) | (moved > 1e6)
        finished = torch.zeros_like(settled)
        if settled.any():
            finished = self._next_lambda(settled)
        for which, ended in ((diverged, "diverged"), (finished & ~diverged, "finished")):
            self._leave(which, ended)
        if (gone := diverged | finished).any():
            self._drop(~gone)

    def _next_lambda(self, settled):
        """Move settled columns to their next λ; returns which of them are finished."""
        s, task = self.state, self.task
        error = torch.full_like(s["last"], torch.inf)
        error[settled] = self.saga.error(task.held_x, task.held_y[:, s["target"][settled]], settled)
        s["done"] += settled
        worse = settled & (error > s["last"]) & (s["done"] >= FEWEST_LAMBDAS)
        worse &= (self.saga.weight != 0).sum(0) > 1
        s["best"] = torch.where(settled, torch.minimum(s["best"], error), s["best"])
        s["last"] = torch.where(settled, error, s["last"])
        following = s["lam"] * task.eps ** (1 / task.num_lambdas)
        following = torch.where(s["done"] == 1, task.start[s["target"]], following)
        s["lam"] = torch.where(settled, following, s["lam"])
        return worse | (s["done"] > task.num_lambdas)

    def _leave(self, which, ended):
        for i in torch.nonzero(which)[:, 0].tolist():
            one, target = self.names[i]
            done, best = int(self.state["done"][i]), float(self.state["best"][i])
            looks = self.epochs // one.check
            self.found.append(Found(one, target, ended, self.epochs, looks, done, best))

    def _drop(self, keep):
        self.names = [name for name, kept in zip(self.names, keep.tolist(), strict=True) if kept]
        self.state = {key: value[keep] for key, value in self.state.items()}
        self.saga.drop(keep)
