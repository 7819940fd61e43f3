"""What goes where when a fit is cut into jobs, and how long each takes: said before anything runs.

Two ways are open. By rows: each job sums a share of the rows, one job adds the sums up and factors
once. By targets: each job fits a block of targets, and repeats the factorisation. Neither needs
collectives; sums and blocks go through files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coarlib.regression.budget import GIB, duration, predict, seconds_of, summing_bytes
from coarlib.regression.solvers import Size, Solver

__all__ = ["Stage", "Way", "plan_fit"]


@dataclass(frozen=True)
class Stage:
    """Jobs that run at once: how many, what each does, for how long and in how much memory."""

    command: str
    jobs: int
    what: str
    seconds: float
    peak_bytes: float

    def __str__(self) -> str:
        jobs = "1 job" if self.jobs == 1 else f"{self.jobs} jobs at once"
        took, memory = duration(self.seconds), self.peak_bytes / GIB
        return f"{jobs}: {self.what}; about {took} and {memory:.1f} GiB each\n    {self.command}"


@dataclass(frozen=True)
class Way:
    """One way to cut a fit."""

    name: str
    stages: Sequence[Stage]

    @property
    def seconds(self) -> float:
        """Seconds until all stages are done, one after the other."""
        return sum(stage.seconds for stage in self.stages)

    def __str__(self) -> str:
        lines = [f"{self.name}: about {duration(self.seconds)}"]
        return "\n".join([*lines, *(f"  {stage}" for stage in self.stages)])


def plan_fit(solver: Solver, size: Size, jobs: int, fit: str) -> list[Way]:
    """Return the ways to do a fit in ``jobs`` jobs on machines like this one, the quickest first.

    Parameters
    ----------
    solver : Solver
    size : Size
        In the form that the fit would take.
    jobs : int
        At most so many at once, 2 or more.
    fit : str
        The arguments of ``run_regression``, for the commands.
    """
    shares = min(jobs, size.total)
    blocks = min(jobs, size.targets)
    alone = predict(solver, size)
    block = replace(size, targets=-(-size.targets // blocks))
    one = predict(solver, block)
    what = f"all {size.total:,} rows, {block.targets:,} of {size.targets:,} targets"
    join = Stage(f"coar fit_targets {fit} --join --count {blocks}", 1, "side by side", 0.0, 0.0)
    by_targets = Stage(
        f"coar fit_targets {fit} --index I --count {blocks}", blocks, what, one.seconds,
        one.peak_bytes,
    )  # fmt: skip
    ways = [
        Way("alone", [Stage(f"coar run_regression {fit}", 1, "everything", alone.seconds,
                            alone.peak_bytes)]),
        Way("targets by blocks", [by_targets, replace(join, peak_bytes=8.0 * _weights(size))]),
    ]  # fmt: skip
    if size.form == "primal":
        ways.append(_by_rows(solver, size, shares, fit, alone.peak_bytes))
    return sorted(ways, key=lambda way: way.seconds)


def _by_rows(solver: Solver, size: Size, shares: int, fit: str, peak: float) -> Way:
    summing, solving = seconds_of(solver, size, exact=True)
    rows = f"sums of {-(-size.total // shares):,} of {size.total:,} rows, all targets"
    sums = summing_bytes(size)
    return Way(
        "rows by shares, one factorisation",
        [
            Stage(f"coar moments {fit} --index I --count {shares}", shares, rows,
                  summing / shares, sums),
            Stage(f"coar moments {fit} --join --count {shares}", 1, "adds them up", 0.0, sums),
            Stage(f"coar run_regression {fit}", 1,
                  f"factors {size.features:,} × {size.features:,} once, solves all targets",
                  solving, peak),
        ],
    )  # fmt: skip


def _weights(size: Size) -> float:
    return float(size.features * size.targets)
