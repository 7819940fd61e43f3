"""What gradient passes say together: sums over blocks, and their outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.gradient_passes.filling import open_passes, plan_of
from coarlib.gradient_passes.plan import PassPlan
from coarlib.gradient_passes.task import COUNTS, OUTPUTS, SUMS
from coarlib.store import Store

__all__ = ["PASS_COST", "PassSums", "read_passes"]

PASS_COST = 3
"""Cost of a gradient pass in forward passes: its backward pass counts as two."""


@dataclass(frozen=True)
class PassSums:
    """Sums of gradient passes for some targets.

    Attributes
    ----------
    plan : PassPlan
    passes : int64 [K]
        Which passes are summed, ascending.
    outputs : float64 [K, T]
        What each of them gave.
    path_sums, path_squares : float32 [N, T]
        Σ g and Σ g² over the passes in which the component is on a path.
    path_counts : float32 [N, T]
        How many those are.
    kept_means : float32 [N, T]
        Mean of g over the passes in which the component is kept (their expected number).
    targets : int64 [T]
        Which examples the targets are.
    """

    plan: PassPlan
    passes: NDArray[np.int64]
    outputs: NDArray[np.float64]
    path_sums: NDArray[np.float32]
    path_squares: NDArray[np.float32]
    path_counts: NDArray[np.float32]
    kept_means: NDArray[np.float32]
    targets: NDArray[np.int64]

    @property
    def num_features(self) -> int:
        """Components, N."""
        return len(self.path_sums)

    @property
    def num_targets(self) -> int:
        """Targets, T."""
        return self.path_sums.shape[1]

    @property
    def forward_passes(self) -> float:
        """What the passes cost, in forward passes over the examples."""
        return PASS_COST * len(self.passes)

    def of_targets(self, which: NDArray[np.int64]) -> PassSums:
        """The sums of some of these targets, int64 [t]."""
        of_each = ("outputs", "path_sums", "path_squares", "path_counts", "kept_means")
        some = {name: getattr(self, name)[:, which] for name in of_each}
        return replace(self, **some, targets=self.targets[which])

    def masks(self, targets: slice) -> NDArray[np.float32]:
        """Draw the masks of some targets again, float32 [t, K, N].

        Parameters
        ----------
        targets : slice
            Within those of these sums.
        """
        chosen = self.targets[targets]
        runs = np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1)
        parts = [slice(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
        shape = (len(chosen), len(self.passes), self.num_features)
        drawn = np.empty(shape, np.float32)
        for at, index in enumerate(self.passes):
            masks = [self.plan.draw(int(index), part, self.num_features) for part in parts]
            drawn[:, at] = np.concatenate(masks)
        return drawn


def read_passes(
    store: Store | str | Path,
    targets: slice = slice(None),
    most: int | None = None,
    blocks: NDArray[np.int64] | None = None,
) -> PassSums | None:
    """Sum the gradient passes that a store has; None if it has none.

    Parameters
    ----------
    store : Store or path
        The store of the rows.
    targets : slice
        Which targets.
    most : int, optional
        Only the first blocks, with so many passes at most.
    blocks : int64 [B], optional
        Only these blocks, ascending.

    Raises
    ------
    StoreError
        If the passes cannot be read.
    """
    kept = open_passes(store)
    if kept is None:
        return None
    plan, done = plan_of(kept), kept.completed_rows()
    blocks = done if blocks is None else np.intersect1d(done, blocks)
    if most is not None:
        blocks = blocks[: most // plan.passes]
    if not len(blocks):
        return None
    if missing := {*SUMS, COUNTS, OUTPUTS} - set(kept.spec.schema):
        raise StoreError(f"{kept.path} lacks {', '.join(sorted(missing))}")
    chosen = slice(*targets.indices(kept.spec.schema[COUNTS].shape[1]))
    sums: dict[str, NDArray[Any]] = {}
    outputs = []
    for _, arrays in kept.blocks((*SUMS, COUNTS, OUTPUTS), blocks):
        outputs += [*arrays[OUTPUTS][:, :, chosen]]
        for name in (*SUMS, COUNTS):
            part = arrays[name][:, :, chosen].sum(0, dtype=np.float64)
            sums[name] = part if name not in sums else sums[name] + part
    count = len(blocks) * plan.passes
    kept_share = 1 - plan.on_path - plan.ablated
    sums["kept_sums"] /= max(count * kept_share, 1)
    return PassSums(
        plan,
        (blocks[:, None] * plan.passes + np.arange(plan.passes)).reshape(-1),
        np.concatenate(outputs).astype(np.float64),
        path_sums=sums["path_sums"].astype(np.float32),
        path_squares=sums["path_squares"].astype(np.float32),
        path_counts=sums[COUNTS].astype(np.float32),
        kept_means=sums["kept_sums"].astype(np.float32),
        targets=np.arange(chosen.stop)[chosen],
    )
