"""A training history on disk: two stores, one row an update and one row a kept state.

``history.json``
    what does not change: optimizer, parameter table, window, thinning (:class:`Settings`).
``steps/``
    row j is update ``start + j``: sample numbers (-1 padded) and weights, hyperparameters, clip
    factors, update counts, a digest of θ before the update.
``states/``
    θ and the second moment (and the momentum where steps are replayed) of every k-th step, then
    of the last one.
``ends/``
    where states do not hold them, for a window or in bfloat16: θ at the run's beginning and end in
    the model's own dtype.
``commit.json``
    up to which update all of these hold (:mod:`coarlib.history.commit`).

Inputs are never stored, only their numbers and a digest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coarlib.errors import HistoryError
from coarlib.files import whole_file
from coarlib.history.optimizers import HYPER, OptimizerKind
from coarlib.history.parameters import ParameterTable
from coarlib.loading import load_json
from coarlib.store import initialize
from coarlib.store.spec import ArraySpec, StoreSpec

SETTINGS_FILE = "history.json"
FORMAT_VERSION = 2
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
    dtype : {"float32", "float64"}
        The model's own.
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
    ends_kept : bool
        Whether ``ends/`` is there where it is needed; coarlib 0.1 had none, and kept the ends of a
        window's run behind the states.
    """

    kind: OptimizerKind
    table: ParameterTable
    tracked: tuple[str, ...]
    start: int
    stop: int
    num_steps: int
    every: int
    dtype: str
    storage: str
    keep_momentum: bool
    max_batch: int
    weighted: bool
    num_samples: int
    data_digest: str
    frozen_digest: str
    ends_kept: bool = True

    @property
    def has_ends(self) -> bool:
        """Whether the run's first and last parameters are kept besides."""
        return self.ends_kept and (self.is_window or self.storage != self.dtype)

    @property
    def is_window(self) -> bool:
        """Whether some updates of the run are left out."""
        return (self.start, self.stop) != (0, self.num_steps)

    @property
    def num_states(self) -> int:
        """Rows of the store of states."""
        return -(-(self.stop - self.start) // self.every) + 1

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

    def end_rows(self) -> StoreSpec:
        """Return the spec of ``ends/``: the beginning, and the end."""
        own = ArraySpec(np.dtype(_STORED_AS[self.dtype]), (self.table.total,))
        return StoreSpec(2, {"step": ArraySpec(np.dtype(np.int64), ()), "theta": own})

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
            return self.num_states - 1
        inside = self.start <= step < self.stop and (step - self.start) % self.every == 0
        return (step - self.start) // self.every if inside else None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-compatible description."""
        content = {**asdict(self), "kind": self.kind.as_json(), "table": self.table.as_json()}
        version = FORMAT_VERSION if content.pop("ends_kept") else 1
        return {"format_version": version, **json.loads(json.dumps(content))}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Settings:
        """Read what :meth:`as_json` gave."""
        rest = {"dtype": content["storage"], **content}
        version = rest.pop("format_version")
        found = cls(
            **{
                **rest,
                "kind": OptimizerKind.from_json(rest["kind"]),
                "table": ParameterTable.from_json(rest["table"]),
                "tracked": tuple(rest["tracked"]),
            }
        )
        return replace(found, ends_kept=False) if version < 2 and found.has_ends else found


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
    if settings.has_ends:
        initialize(path / "ends", settings.end_rows())
    with whole_file(file, "w") as stream:
        json.dump(settings.as_json(), stream, indent=1)
        stream.write("\n")
    return True


def read_settings(path: Path) -> Settings:
    """Read ``history.json``; HistoryError if it is missing or damaged."""
    file = path / SETTINGS_FILE
    try:
        if not file.is_file():
            raise HistoryError(f"{path} holds no training history (there is no {file.name})")
        content = load_json(file, HistoryError)
        if content["format_version"] > FORMAT_VERSION:
            raise HistoryError(f"{file} has a newer format; update coarlib to read it")
        return Settings.from_json(content)
    except (ValueError, KeyError, TypeError) as error:
        raise HistoryError(f"{file} is damaged: {error}") from error
