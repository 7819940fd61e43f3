"""Blocks of gradient passes, or of trials, as rows: what one worker computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation.task import ComponentTask
from coarlib.errors import TaskError
from coarlib.gradient_passes.plan import PassPlan, on_path
from coarlib.gradient_passes.scaling import scaling_of
from coarlib.task import Task, TaskLayout

__all__ = ["BlockTask"]

SUMS = ("path_sums", "path_squares", "kept_sums")
COUNTS, OUTPUTS = "path_counts", "outputs"


class BlockTask(Task):
    """A row of it is a block of passes of a component task: sums [N, T] and the outputs.

    Of trials there are the outputs alone.

    Parameters
    ----------
    task : ComponentTask
        Prepared.
    plan : PassPlan

    Raises
    ------
    ComponentError, TaskError
        If the components are not ablated by scaling what they send on, or there is no such output.
    """

    rows_per_batch = 1
    own_masks = True

    def __init__(self, task: ComponentTask, plan: PassPlan) -> None:
        if plan.output not in task.outputs:
            raise TaskError(
                f"{type(task).__name__} has no output {plan.output} (it has "
                f"{', '.join(task.outputs)})"
            )
        self._task, self._plan, self.tolerance = task, plan, task.tolerance
        self._size = min(task.batch_size, task.num_examples)
        self._scaling = scaling_of(task, task.outputs[plan.output])

    @property
    def _sums(self) -> dict[str, str]:
        """Names and types of what is summed."""
        return {**dict.fromkeys(SUMS, "float32"), COUNTS: "uint8"} if self._plan.on_path else {}

    @property
    def num_features(self) -> int:
        """Components, N."""
        return len(self._task.component_set)

    @property
    def component_table(self) -> Sequence[Mapping[str, Any]] | None:
        """As of the component task."""
        return self._task.component_table

    def identity(self) -> str | None:
        """As of the component task: a block is a function of it, the plan and its number."""
        return self._task.identity()

    def adopt(self, identity: str | None) -> str | None:
        """Take over the choices of the task that made the rows."""
        return self._task.adopt(identity)

    def layout(self) -> TaskLayout:
        """Return the arrays of a block."""
        shape = (self.num_features, self._task.num_examples)
        arrays = {name: (dtype, shape) for name, dtype in self._sums.items()}
        arrays[OUTPUTS] = ("float32", (self._plan.passes, shape[1]))
        return TaskLayout(self.num_features, arrays)

    def rows(self, indices: NDArray[np.int64], masks: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """Sum blocks of passes over all examples.

        Returns
        -------
        dict
            ``path_sums``, ``path_squares`` (Σ g and Σ g² where a component is on a path),
            ``kept_sums`` (Σ g where it is kept): float32 [B, N, T]; ``path_counts`` uint8
            [B, N, T]; ``outputs`` float32 [B, passes, T].
        """
        found = [self._block(int(index)) for index in indices]
        return {name: np.stack([block[name] for block in found]) for name in found[0]}

    def _block(self, index: int) -> dict[str, NDArray[Any]]:
        while True:
            try:
                return self._summed(
                    range(index * self._plan.passes, (index + 1) * self._plan.passes)
                )
            except torch.OutOfMemoryError:
                if self._size == 1:
                    raise
                self._size = (self._size + 1) // 2

    def _summed(self, passes: range) -> dict[str, NDArray[Any]]:
        shape = self._task.num_examples, self.num_features
        found = {name: np.zeros(shape, dtype) for name, dtype in self._sums.items()}
        found[OUTPUTS] = np.zeros((len(passes), shape[0]), np.float32)
        for where, batch in self._task.batches(self._size):
            part = {name: found[name][where] for name in self._sums}
            for at, index in enumerate(passes):
                masks = self._plan.draw(index, where, shape[1])
                scales = torch.from_numpy(masks.astype(np.float32)).to(self._task.device)
                if not self._sums:
                    found[OUTPUTS][at, where] = self._scaling.forward(scales, batch).cpu().numpy()
                    continue
                outputs, slopes = (x.cpu().numpy() for x in self._scaling.run(scales, batch))
                along = on_path(masks)
                part["path_sums"] += slopes * along
                part["path_squares"] += np.square(slopes) * along
                part["kept_sums"] += slopes * (masks == 1)
                part[COUNTS] += along
                found[OUTPUTS][at, where] = outputs
        return {name: x if name == OUTPUTS else x.T for name, x in found.items()}
