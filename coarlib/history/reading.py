"""Reading a recorded history: one update, one state at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from coarlib.errors import HistoryError
from coarlib.history.commit import Commit
from coarlib.history.settings import Settings, read_settings
from coarlib.identity import Identity
from coarlib.store import Store
from coarlib.store.verify import find_torn


@dataclass(frozen=True)
class StepRecord:
    """One update without its tensors.

    ``samples`` int64 [B], ``weights`` float64 [B], ``hyper`` float64 [groups, HYPER], ``counts``
    int32 [tensors], ``clip`` float64 [tensors], ``digest`` of θ before the update.
    """

    number: int
    samples: NDArray[np.int64]
    weights: NDArray[np.float64]
    hyper: NDArray[np.float64]
    counts: NDArray[np.int32]
    clip: NDArray[np.float64]
    digest: int


@dataclass
class State:
    """Parameters and optimizer state before an update, flat: θ ``[P]``, v and momentum or None.

    ``second_moment`` covers all trained tensors, or the tracked ones only (see Settings).
    """

    theta: torch.Tensor
    second_moment: torch.Tensor | None = None
    momentum: torch.Tensor | None = None


def digest_of(values: NDArray[Any] | torch.Tensor) -> int:
    """Digest an array's bytes, a signed 64-bit number."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        bits = values.contiguous().view(torch.int16) if values.dtype == torch.bfloat16 else values
        values = bits.numpy()
    digest = xxhash.xxh3_64_intdigest(np.ascontiguousarray(values).data)
    return digest - 2**64 if digest >= 2**63 else digest


class AnyHistory(Protocol):
    """What an explanation needs of a history (on disk, or in memory)."""

    settings: Settings
    first: int
    last: int

    def record(self, step: int) -> StepRecord:
        """Return update ``step`` without its tensors."""

    def state(self, step: int) -> State | None:
        """Return the state before update ``step``, None if it is not kept."""

    def ends(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return θ at both ends of the run, None where the states hold it as it was."""

    def describe_ends(self) -> tuple[str, str]:
        """Say which models these are."""

    def content(self) -> str:
        """Digest everything in it that an explanation reads."""


class History:
    """A recorded history, open for reading.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    HistoryError, StoreError
        If there is none, or it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = read_settings(self.path)
        self.steps = Store.open(self.path / "steps")
        self.states = Store.open(self.path / "states")
        self._steps = {key: self.steps.array(key) for key in self.steps.spec.schema}
        self._states = {key: self.states.array(key) for key in self.states.spec.schema}
        self.commit = Commit.read(self.path)
        self._states_done = self.states.completed()
        self.first = self.settings.start
        self.reached = self._reached()
        self.last = self._last_with_state(self.reached)

    def _reached(self) -> int:
        """Return the update before which all rows hold."""
        done = self.steps.completed()
        unbroken = len(done) if done.all() else int(np.argmin(done))
        if self.commit is None:  # nothing was committed, or an older coarlib recorded it
            return self.first + unbroken
        committed = min(max(self.commit.step, self.first), self.settings.stop) - self.first
        if unbroken < committed:
            raise HistoryError(
                f"{self.path} is damaged: update {self.first + unbroken} is torn; record it again"
            )
        return self.first + committed

    def _last_with_state(self, reached: int) -> int:
        """Return the last step, at most ``reached``, whose state is kept."""
        numbers = self._states["step"][self._states_done]
        numbers = numbers[(numbers >= self.first) & (numbers <= reached)]
        return int(numbers.max()) if len(numbers) else self.first

    def verify(self) -> None:
        """Read all that holds; HistoryError if any of it is not as it was written."""
        kept = self._states_done & (self._states["step"] <= self.last)
        parts = [(self.steps, np.arange(self.num_updates)), (self.states, np.flatnonzero(kept))]
        if self.settings.has_ends:
            ends = Store.open(self.path / "ends")
            parts.append((ends, ends.completed_rows()))
        for store, rows in parts:
            if torn := find_torn(store, rows):
                raise HistoryError(
                    f"{store.path} is damaged: row {torn[0]} does not match its checksum; bring a "
                    "copy back, or record again"
                )

    @property
    def num_updates(self) -> int:
        """How many consecutive updates can be explained."""
        return self.last - self.first

    def record(self, step: int) -> StepRecord:
        """Read update ``step``."""
        row = step - self.first
        samples = self._steps["samples"][row].astype(np.int64)
        samples = samples[samples >= 0]
        weights = np.broadcast_to(self._steps["weights"][row], (self.settings.max_batch,))
        return StepRecord(
            step,
            samples,
            np.array(weights[: len(samples)]),
            np.array(self._steps["hyper"][row]),
            np.array(self._steps["counts"][row]),
            np.array(self._steps["clip"][row]),
            int(self._steps["digest"][row]),
        )

    def state(self, step: int) -> State | None:
        """Read the state before update ``step`` (after the last one: the final state), if kept."""
        row = self.settings.state_row(step)
        end = self.settings.state_row(self.settings.stop)
        for candidate in (row, end) if step <= self.reached else ():
            if candidate is None or not self._states_done[candidate]:
                continue
            if self._states["step"][candidate] == step:
                return State(*(self._tensor(key, candidate) for key in _STATE_KEYS))  # type: ignore[arg-type]
        return None

    def ends(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return θ ``[P]`` at the beginning and the end of the run, in the model's own dtype.

        None where the states hold it as it was, or where the run has not got there.
        """
        settings = self.settings
        if settings.has_ends:
            store, rows, dtype = Store.open(self.path / "ends"), (0, 1), settings.dtype
        elif settings.is_window:  # of coarlib 0.1: behind the states
            store, dtype = self.states, settings.storage
            rows = settings.num_states, settings.num_states + 1
        else:
            return None, None
        last = settings.num_steps if settings.is_window else self.last
        first = 0 if settings.is_window else self.first
        numbers, done = store.array("step"), store.completed()
        first_theta, last_theta = (
            _as_tensor(store.array("theta")[row], dtype)
            if done[row] and int(numbers[row]) == number
            else None
            for row, number in zip(rows, (first, last), strict=True)
        )
        return first_theta, last_theta

    def describe_ends(self) -> tuple[str, str]:
        """Say what an explanation's ``initial`` and ``final`` outputs are those of."""
        settings = self.settings
        first, last = self.ends()
        begins = "the model before training"
        if self.first and first is None:
            begins = f"the model before update {self.first}"
        ends = "the trained model"
        if self.last < settings.num_steps and not (settings.is_window and last is not None):
            ends = f"the model after {self.last} of {settings.num_steps} updates"
        if settings.storage != settings.dtype and last is None:
            ends += f", its parameters rounded to {settings.storage}"
        return begins, ends

    def content(self) -> str:
        """Digest everything that an explanation reads: settings and the rows that hold."""
        found = Identity().add(self.settings.as_json(), self.last)
        found.add(self.steps.checksums()[: self.last - self.first])
        kept = self._states_done & (self._states["step"] <= self.last)
        return found.add(self.states.checksums()[kept], *self.ends()).hexdigest()

    def _tensor(self, key: str, row: int) -> torch.Tensor | None:
        if key not in self._states:
            return None
        return _as_tensor(self._states[key][row], self.settings.storage)

    def nbytes(self) -> int:
        """Bytes of disk that the files really take (rows not written yet are holes)."""
        files = [file for file in self.path.rglob("*") if file.is_file()]
        return sum(file.stat().st_blocks * 512 for file in files)


def _as_tensor(row: NDArray[Any], storage: str) -> torch.Tensor:
    values = torch.from_numpy(np.array(row))
    return values.view(torch.bfloat16) if storage == "bfloat16" else values


_STATE_KEYS = ("theta", "second_moment", "momentum")
