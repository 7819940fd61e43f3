"""Reading a recorded history: one update, one state at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from coarlib.history.settings import read_settings
from coarlib.store import Store


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
        done = self.steps.completed()
        self._states_done = self.states.completed()
        count = len(done) if done.all() else int(np.argmin(done))
        self.first = self.settings.start
        self.last = self._last_with_state(self.first + count)

    def _last_with_state(self, reached: int) -> int:
        """Return the last step, at most ``reached``, whose state is kept."""
        numbers = self._states["step"][self._states_done]
        numbers = numbers[(numbers >= self.first) & (numbers <= reached)]
        return int(numbers.max()) if len(numbers) else self.first

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
        for candidate in (row, end):
            if candidate is None or not self._states_done[candidate]:
                continue
            if self._states["step"][candidate] == step:
                return State(*(self._tensor(key, candidate) for key in _STATE_KEYS))  # type: ignore[arg-type]
        return None

    def ends(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """θ ``[P]`` at the beginning and the end of the whole run, where a window left them out."""
        if not self.settings.has_ends:
            return None
        rows = (self.settings.num_states - 2, self.settings.num_states - 1)
        if not self._states_done[list(rows)].all():
            return None
        first, last = (self._tensor("theta", row) for row in rows)
        return first, last  # type: ignore[return-value]

    def _tensor(self, key: str, row: int) -> torch.Tensor | None:
        if key not in self._states:
            return None
        values = torch.from_numpy(np.array(self._states[key][row]))
        return values.view(torch.bfloat16) if self.settings.storage == "bfloat16" else values

    def nbytes(self) -> int:
        """Bytes of disk that the files really take (rows not written yet are holes)."""
        files = [file for file in self.path.rglob("*") if file.is_file()]
        return sum(file.stat().st_blocks * 512 for file in files)


_STATE_KEYS = ("theta", "second_moment", "momentum")
