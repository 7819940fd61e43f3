"""The one contract a user implements: rows of outputs for given masks.

The same class serves one laptop and a cluster. ``ablation.ComponentTask`` and
``retraining.RetrainTask`` implement it for their kind of counterfactual; a datamodels module with
``main(*_, index, logdir) -> dict`` is accepted through :class:`ModuleTask`.
"""

from __future__ import annotations

import re
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import CoarlibError, TaskError, first_line

if TYPE_CHECKING:
    import torch

    Array = NDArray[Any] | torch.Tensor


# Files of other people's code, in which an error of one's own is only noticed.
_LIBRARIES = re.compile(r"[\\/](site-packages|coarlib|lib[\\/]python[\d.]*)[\\/]")

ArrayShape = tuple[str, tuple[int, ...]]
"""Name of a dtype, and shape of one row."""


@dataclass(frozen=True)
class TaskLayout:
    """What a store for a task's rows must hold.

    Attributes
    ----------
    num_features : int
        N, the width of a mask.
    outputs : mapping of array name to (dtype name, shape of one row)
        ``{"test_margins": ("float32", (1000,))}``.
    """

    num_features: int
    outputs: Mapping[str, ArrayShape]


class Task(ABC):
    """What is measured under each mask.

    Class attributes
    ----------------
    rows_per_batch : int
        How many rows a worker asks for at once unless told otherwise. A batch is what a crash can
        cost, and what a task can evaluate together.
    tolerance : float
        The largest difference of an output between two computations of one row (batching, another
        device); 0 means bit for bit.
    own_masks : bool
        The task draws its masks itself and returns them; the store needs no design.
    trains : bool
        Rows train models, so that measuring another output of them needs another task.
    """

    rows_per_batch: int = 8
    tolerance: float = 0.0
    own_masks: bool = False
    trains: bool = False

    @property
    def num_features(self) -> int | None:
        """Width of the masks the task expects (N), checked against the store; None skips that.

        Read after :meth:`prepare`.
        """
        return None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class of each feature, int [N], for stratified and class-balanced designs; or None.

        Read after :meth:`prepare`. The first worker's labels become the store's.
        """
        return None

    @property
    def component_table(self) -> Sequence[Mapping[str, Any]] | None:
        """What the mask entries stand for, JSON-able, to be kept with the store; or None.

        Read after :meth:`prepare`. The first worker's table becomes the store's, and workers with
        another one are refused.
        """
        return None

    def prepare(self, device: torch.device) -> None:  # noqa: B027 - optional by design
        """Load the model and the data, once a worker."""

    @abstractmethod
    def rows(self, indices: NDArray[np.int64], masks: NDArray[np.bool_]) -> Mapping[str, Array]:
        """Measure a batch of rows.

        Parameters
        ----------
        indices : int64 [B]
            Row indices, for tasks whose rows have randomness of their own (use it as a seed).
        masks : bool [B, N]
            True = kept. Where the store has no design, N is 0, and a task with :attr:`own_masks`
            returns its masks under the mask array's name.

        Returns
        -------
        mapping of array name to [B, *shape]
            Every array of the store's schema except the masks, which may be returned too.
            The batch size never changes a row by more than :attr:`tolerance`.
        """

    def layout(self) -> TaskLayout:
        """Return what a store for this task's rows must hold; read after :meth:`prepare`.

        Raises
        ------
        TaskError
            If the task cannot tell, so that a spec has to say it.
        """
        raise TaskError(
            f"{type(self).__name__} does not say what a row of it holds (Task.layout); write a "
            "spec that does"
        )

    def identity(self) -> str | None:
        """Return a digest of all that a row depends on besides its mask and its index.

        Read after :meth:`prepare`; None if the task cannot tell. Rows of tasks with another
        identity do not belong into one store. Batch size, device, and the order of rows are no
        part of it. :class:`coarlib.identity.Identity` makes such digests.
        """
        return None

    def fingerprint(self) -> str | None:
        """Return :meth:`identity`, which was called so in version 0.1."""
        return self.identity()

    def adopt(self, identity: str | None) -> str | None:
        """Make the choices that were left to this task as the task with ``identity`` made them.

        Read after :meth:`prepare`, before the first row. A task that leaves nothing open, the
        default, has one identity whatever it is given.

        Returns
        -------
        str or None
            Its :meth:`identity` then.
        """
        return self.identity()


class ModuleTask(Task):
    """A datamodels-style module, whose ``main(*_, index, logdir)`` returns one row.

    Parameters
    ----------
    main : callable
    logdir : str or Path
        Passed to ``main``.
    words : sequence of str
        What ``sys.argv`` holds after the program's name while ``main`` runs: published modules
        parse their own fastargs sections there.
    """

    rows_per_batch = 1
    own_masks = True

    def __init__(
        self, main: Callable[..., Mapping[str, Any]], logdir: str | Path, words: Sequence[str] = ()
    ) -> None:
        self._main, self._logdir, self._words = main, str(logdir), tuple(words)

    def rows(self, indices: NDArray[np.int64], masks: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """Call ``main`` once a row and stack what it returns."""
        with own_argv(self._words):
            found = [self._main(index=int(index), logdir=self._logdir) for index in indices]
        return {key: np.stack([np.asarray(row[key]) for row in found]) for key in found[0]}


def asked(task: Task, method: str, *given: Any) -> Any:
    """Call a method that a user wrote, under :func:`own_code`."""
    with own_code(f"{method}() of {type(task).__name__}"):
        return getattr(task, method)(*given)


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Turn whatever somebody's own code raises into one sentence that says where.

    Raises
    ------
    TaskError
        In place of any exception that is neither a CoarlibError nor the system's.
    """
    try:
        yield
    except (CoarlibError, OSError, MemoryError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [x for x in frames if not _LIBRARIES.search(x.filename)]
        last, inside = (own or frames)[-1], "" if own else "inside "
        place = f"{inside}{Path(last.filename).name}, line {last.lineno}"
        raise TaskError(f"{what} failed: {first_line(error)} ({place})") from error


@contextmanager
def own_argv(words: Sequence[str]) -> Iterator[None]:
    """Let somebody's code see its own words as the command line, and not end the program.

    Raises
    ------
    TaskError
        If it exits, as argument parsers do that refuse their words.
    """
    before = sys.argv
    sys.argv = [before[0] if before else "", *words]
    try:
        yield
    except SystemExit as error:
        given = f"it was given {' '.join(words)}" if words else "it was given no arguments"
        raise TaskError(
            f"the task's own code ended the program ({error.code}); {given}; words with a section "
            "that only it knows, as training.epochs has, are passed on to it"
        ) from error
    finally:
        sys.argv = before
