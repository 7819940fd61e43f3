"""Long fills and trainings followed from elsewhere: wandb, TensorBoard, MLflow, or a file of lines.

An adapter is a class with a name that takes numbers with their step. What is logged comes from
:class:`coarlib.progress.Progress` and from whoever adds to it; a tracker that fails (a network that
is gone) ends with one warning and never ends the work.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from coarlib.errors import ArgumentError, CoarlibError, SetupError, nearest

__all__ = ["TRACKERS", "Tracker", "is_tracked", "note", "tracked"]

SECONDS_BETWEEN = 10.0
Numbers = Mapping[str, float]


class Tracker(ABC):
    """Where numbers go.

    Parameters
    ----------
    place : Path
        The store or history that is made; files go beside it.
    about : mapping
        Settings of the run, JSON values.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""
    where: str
    """Where to look, in words."""

    @abstractmethod
    def __init__(self, place: Path, about: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def log(self, numbers: Numbers, step: int) -> None:
        """Take numbers, by name, at a step."""

    @abstractmethod
    def close(self) -> None:
        """End the run."""

    @classmethod
    def load(cls, module: str = "") -> Any:
        """Import the adapter's package; SetupError says how to install it."""
        try:
            return importlib.import_module(module or cls.package)
        except ImportError as error:
            raise SetupError(
                f"tracking by {cls.name} needs {cls.package}; install it with: pip install "
                f"'coarlib[{cls.name}]'"
            ) from error


class JsonLines(Tracker):
    """Lines of JSON in ``PLACE.log.jsonl``; several workers append to one file."""

    name = "jsonl"

    def __init__(self, place: Path, about: Mapping[str, Any]) -> None:
        self._path = place.with_name(f"{place.name}.log.jsonl")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.where = str(self._path)
        self._append({"begun": dict(about)})

    def log(self, numbers: Numbers, step: int) -> None:
        """Append a line."""
        self._append({"step": step, **numbers})

    def close(self) -> None:
        """Do nothing: every line is written."""

    def _append(self, content: Mapping[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), "process": os.getpid(), **content})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


class TensorBoard(Tracker):
    """Scalars in ``PLACE.tensorboard``."""

    name = package = "tensorboard"

    def __init__(self, place: Path, about: Mapping[str, Any]) -> None:
        self.load()
        folder = str(place.with_name(f"{place.name}.tensorboard"))
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder)
        self.where = f"{folder}, for tensorboard"
        self._writer.add_text("settings", json.dumps(dict(about), default=str))

    def log(self, numbers: Numbers, step: int) -> None:
        """Add scalars."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandB(Tracker):
    """A run of Weights & Biases in the project ``coarlib`` (or ``WANDB_PROJECT``)."""

    name = package = "wandb"

    def __init__(self, place: Path, about: Mapping[str, Any]) -> None:
        project = os.environ.get("WANDB_PROJECT", "coarlib")
        self._run = self.load().init(project=project, name=place.name, config=dict(about))
        self._run.define_metric("*", step_metric="step")
        self.where = self._run.url or self._run.dir

    def log(self, numbers: Numbers, step: int) -> None:
        """Log with the step as a number: wandb drops what comes at a step before the last one.

        A step goes back where one thing follows another: training a model, then filling rows.
        """
        self._run.log({**numbers, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow(Tracker):
    """A run of MLflow in the experiment ``coarlib`` (or ``MLFLOW_EXPERIMENT_NAME``)."""

    name = package = "mlflow"

    def __init__(self, place: Path, about: Mapping[str, Any]) -> None:
        self._mlflow = self.load()
        self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "coarlib"))
        self._mlflow.start_run(run_name=place.name)
        self._mlflow.log_params({name: str(value)[:250] for name, value in about.items()})
        self.where = f"the run {place.name} of {self._mlflow.get_tracking_uri()}"

    def log(self, numbers: Numbers, step: int) -> None:
        """Log metrics; their names may hold no brackets."""
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


TRACKERS: dict[str, type[Tracker]] = {
    one.name: one for one in (JsonLines, TensorBoard, WandB, MLflow)
}


class _Tracking:
    """The tracker of the work that runs now, and what it adds to every note."""

    def __init__(self, tracker: Tracker, also: Callable[[], Numbers] | None) -> None:
        self.tracker: Tracker | None = tracker
        self.also, self.last, self.busy = also, -float("inf"), False

    def note(self, numbers: Numbers, step: int, now: bool) -> None:
        due = now or time.monotonic() - self.last >= SECONDS_BETWEEN
        if self.tracker is None or self.busy or not due:  # what ``also`` does is not tracked
            return
        self.last, self.busy = time.monotonic(), True
        self._tell(lambda tracker: tracker.log({**numbers, **self._more()}, step))
        self.busy = False

    def close(self) -> None:
        """End the run, if it has not failed."""
        self._tell(lambda tracker: tracker.close())

    def _more(self) -> Numbers:
        return self.also() if self.also else {}

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            what(self.tracker)
        except Exception as error:  # whatever another program raises, the rows come first
            ended = f"tracking by {self.tracker.name} has ended ({_said(error)})"
            print(f"{ended}; the work goes on", file=sys.stderr)
            self.tracker = None


_running: list[_Tracking] = []


def _said(error: Exception) -> str:
    """Return what another program's error says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def tracked(
    kind: str | None,
    place: str | Path,
    about: Mapping[str, Any],
    also: Callable[[], Numbers] | None = None,
) -> Iterator[None]:
    """Track everything that shows progress inside.

    Parameters
    ----------
    kind : str or None
        A name of :data:`TRACKERS`; None tracks nothing.
    place : str or Path
        What is made.
    about : mapping
        Settings, for the run's page.
    also : callable () -> numbers, optional
        Adds to what is logged, when it is logged (the correlation so far).

    Raises
    ------
    ArgumentError, SetupError
        If there is no such tracker, its package is missing, or it does not start.
    """
    if kind is None:
        yield
        return
    if kind not in TRACKERS:
        known = ", ".join(TRACKERS)
        raise ArgumentError(f"there is no tracker {kind}{nearest(kind, TRACKERS)} (but {known})")
    try:
        tracker = TRACKERS[kind](Path(place), about)
    except CoarlibError:
        raise
    except Exception as error:  # before the work: better no run than one that nobody follows
        raise SetupError(f"tracking by {kind} does not start ({_said(error)})") from error
    print(f"followed in {tracker.where}", file=sys.stderr)
    running = _Tracking(tracker, also)
    _running.append(running)
    try:
        yield
    finally:
        _running.remove(running)
        running.close()


def is_tracked() -> bool:
    """Whether somebody wants numbers."""
    return bool(_running)


def note(numbers: Numbers, step: int, now: bool = False) -> None:
    """Log numbers, at most every ten seconds unless ``now``."""
    for running in _running:
        running.note(numbers, step, now)
