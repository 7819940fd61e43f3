"""A training history on disk: two stores, one row an update and one row a kept state.

``history.json``
    what does not change: optimizer, parameter table, window, thinning (:class:`Settings`).
``steps/``
    row j is update ``start + j``: sample numbers (-1 padded) and weights, hyperparameters, clip
    factors, update counts, a digest of θ before the update.
``states/``
    θ and the second moment (and the momentum where steps are replayed) of every k-th step, then
    of the last one; for a window also θ at the run's beginning and end.

Inputs are never stored, only their numbers and a digest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from coarlib.errors import HistoryError
from coarlib.files import whole_file
from coarlib.path_kernel.optimizers import HYPER, OptimizerKind
from coarlib.path_kernel.parameters import ParameterTable
from coarlib.store import Store, initialize
from coarlib.store.spec import ArraySpec, StoreSpec

SETTINGS_FILE = "history.json"
FORMAT_VERSION = 1
STORAGE = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
_STORED_AS = {"float32": np.float32, "float64": np.float64, "bfloat16": np.int16}


@dataclass(frozen=True)
class Settings:
    """What is fixed when recording begins.

    Attributes
    ----------
    kind : OptimizerKind
    table : ParameterTable
        All trained tensors.
    tracked : tuple of str
        Names of the tensors whose contributions can be computed (the others move unexplained).
    start, stop : int
        The updates that are recorded, ``start <= s < stop``.
    num_steps : int
        Updates of the whole run.
    every : int
        Each how many-th state is kept.
    storage : {"float32", "float64", "bfloat16"}
        How states are stored.
    keep_momentum : bool
        Whether states hold the momentum (always so when ``every > 1``).
    max_batch : int
    weighted : bool
        Whether samples of a batch may have different weights.
    num_samples : int
    data_digest, frozen_digest : str
        Of the samples, and of everything in the model that is not trained.
    """

    kind: OptimizerKind
    table: ParameterTable
    tracked: tuple[str, ...]
    start: int
    stop: int
    num_steps: int
    every: int
    storage: str
    keep_momentum: bool
    max_batch: int
    weighted: bool
    num_samples: int
    data_digest: str
    frozen_digest: str

    @property
    def has_ends(self) -> bool:
        """Whether the run's first and last parameters are kept besides (a window)."""
        return (self.start, self.stop) != (0, self.num_steps)

    @property
    def num_states(self) -> int:
        """Rows of the store of states."""
        return -(-(self.stop - self.start) // self.every) + 1 + 2 * self.has_ends

    def state_rows(self) -> StoreSpec:
        """Return the spec of ``states/``."""
        dtype = np.dtype(_STORED_AS[self.storage])
        schema = {
            "step": ArraySpec(np.dtype(np.int64), ()),
            "theta": ArraySpec(dtype, (self.table.total,)),
        }
        tracked = self.table.subset(self.tracked).total
        if self.kind.adaptive:
            size = self.table.total if self.every > 1 else tracked
            schema["second_moment"] = ArraySpec(dtype, (size,))
        if self.keep_momentum:
            schema["momentum"] = ArraySpec(dtype, (self.table.total,))
        return StoreSpec(self.num_states, schema)

    def step_rows(self) -> StoreSpec:
        """Return the spec of ``steps/``."""
        tensors, groups = len(self.table.names), len(self.kind.nesterov)
        weights = (self.max_batch,) if self.weighted else ()
        return StoreSpec(
            self.stop - self.start,
            {
                "samples": ArraySpec(np.dtype(np.int32), (self.max_batch,)),
                "weights": ArraySpec(np.dtype(np.float64), weights),
                "hyper": ArraySpec(np.dtype(np.float64), (groups, len(HYPER))),
                "counts": ArraySpec(np.dtype(np.int32), (tensors,)),
                "clip": ArraySpec(np.dtype(np.float64), (tensors,)),
                "digest": ArraySpec(np.dtype(np.int64), ()),
            },
        )

    def num_bytes(self) -> int:
        """Bytes that the history will take."""
        states, steps = self.state_rows(), self.step_rows()
        return states.num_models * states.row_bytes + steps.num_models * steps.row_bytes

    def describe(self) -> str:
        """Say in one line what is recorded and how much it will take."""
        kept = "every state" if self.every == 1 else f"every {self.every}-th state"
        return (
            f"history of updates {self.start} to {self.stop - 1} of {self.num_steps}, "
            f"{self.table.total} parameters, {kept} in {self.storage}: "
            f"{self.num_bytes() / 1e6:.4g} MB"
        )

    def state_row(self, step: int) -> int | None:
        """Return the row of the state before update ``step``; None if it is not kept."""
        if step == self.stop:
            return self.num_states - 1 - 2 * self.has_ends
        inside = self.start <= step < self.stop and (step - self.start) % self.every == 0
        return (step - self.start) // self.every if inside else None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-compatible description."""
        content = {**asdict(self), "kind": self.kind.as_json(), "table": self.table.as_json()}
        return {"format_version": FORMAT_VERSION, **json.loads(json.dumps(content))}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Settings:
        """Read what :meth:`as_json` gave."""
        rest = {k: v for k, v in content.items() if k != "format_version"}
        return cls(
            **{
                **rest,
                "kind": OptimizerKind.from_json(rest["kind"]),
                "table": ParameterTable.from_json(rest["table"]),
                "tracked": tuple(rest["tracked"]),
            }
        )


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


def create(path: Path, settings: Settings) -> bool:
    """Create the directories of a history; True if new, False if it was there, the same.

    Raises
    ------
    HistoryError
        If another history is there; the message says in what it differs.
    """
    file = path / SETTINGS_FILE
    if file.exists():
        here, wanted = read_settings(path).as_json(), settings.as_json()
        different = [key for key in wanted if here.get(key) != wanted[key]]
        if different:
            shown = "; ".join(f"{k}: {here.get(k)} there, {wanted[k]} now" for k in different[:3])
            raise HistoryError(
                f"{path} holds the history of another run ({shown:.300}); choose another path"
            )
        return False
    initialize(path / "steps", settings.step_rows())
    initialize(path / "states", settings.state_rows())
    with whole_file(file, "w") as stream:
        json.dump(settings.as_json(), stream, indent=1)
        stream.write("\n")
    return True


def read_settings(path: Path) -> Settings:
    """Read ``history.json``; HistoryError if it is missing or damaged."""
    file = path / SETTINGS_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format_version"] > FORMAT_VERSION:
            raise HistoryError(f"{file} has a newer format; update coarlib to read it")
        return Settings.from_json(content)
    except OSError as error:
        raise HistoryError(f"{path} holds no training history ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HistoryError(f"{file} is damaged: {error}") from error


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
