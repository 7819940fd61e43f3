"""How far a history holds: the one commit point of its updates and its states.

Rows are written ahead in the background; only those before the committed update count. Going on
from an earlier update moves the commit point back first, so that rows of an abandoned continuation
never mix with new ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from coarlib.errors import HistoryError
from coarlib.files import whole_file
from coarlib.history.optimizers import SECOND_MOMENT_KEY, OptimizerKind
from coarlib.identity import Identity
from coarlib.loading import load_json

COMMIT_FILE = "commit.json"


@dataclass(frozen=True)
class Commit:
    """All rows before update ``step`` are on disk and belong to one run.

    Attributes
    ----------
    step : int
    digest : int
        Of θ before update ``step``.
    optimizer : str
        Digest of the optimizer's state there.
    """

    step: int
    digest: int
    optimizer: str

    def write(self, path: Path) -> None:
        """Make this the commit point of the history in ``path``."""
        with whole_file(path / COMMIT_FILE, "w") as stream:
            json.dump(asdict(self), stream)
            stream.write("\n")

    @classmethod
    def read(cls, path: Path) -> Commit | None:
        """Read the commit point; None where nothing was committed yet.

        Raises
        ------
        HistoryError
            If the file is damaged.
        """
        file = path / COMMIT_FILE
        try:
            if not file.exists():
                return None
            content = load_json(file, HistoryError)
            return cls(int(content["step"]), int(content["digest"]), str(content["optimizer"]))
        except (ValueError, KeyError, TypeError) as error:
            raise HistoryError(f"{file} is damaged: {error}") from error


def optimizer_digest(
    optimizer: torch.optim.Optimizer, kind: OptimizerKind, parameters: Sequence[torch.Tensor]
) -> str:
    """Digest momentum, second moment and update count of all ``parameters``."""
    keys = [kind.momentum_key, *([SECOND_MOMENT_KEY, "step"] if kind.adaptive else [])]
    found = Identity()
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for key in keys:
            value = state.get(key)
            if key == "step":
                value = None if value is None else int(value)
            elif isinstance(value, torch.Tensor) and not value.any():
                value = None  # a buffer of zeros acts like none
            found.add(key, value)
    return found.hexdigest()
