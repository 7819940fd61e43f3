"""What gradient passes say together (sums over blocks, outputs), and what trials do (outputs)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import StoreError
from coarlib.gradient_passes.filling import TRIALS_DIR, open_passes, plan_of
from coarlib.gradient_passes.plan import PassPlan
from coarlib.gradient_passes.task import COUNTS, OUTPUTS, SUMS
from coarlib.store import Store

__all__ = ["PASS_COST", "PassSums", "Trials", "read_passes", "read_trials"]

PASS_COST = 3
"""Cost of a gradient pass in forward passes: its backward pass counts as two."""


NEAR = 16
"""Examples that are no further apart are drawn at once, with those between them."""


@dataclass(frozen=True)
class Trials:
    """Outputs of some targets under masks of their own.

    Attributes
    ----------
    plan : PassPlan
    passes : int64 [K]
        Which of the plan's masks they had.
    outputs : float64 [K, T]
        What each of them gave.
    targets : int64 [T]
        Which examples the targets are.
    """

    plan: PassPlan
    passes: NDArray[np.int64]
    outputs: NDArray[np.float64]
    targets: NDArray[np.int64]

    @property
    def num_targets(self) -> int:
        """Targets, T."""
        return len(self.targets)

    @property
    def forward_passes(self) -> float:
        """What they cost, in forward passes over the examples."""
        return (PASS_COST if self.plan.on_path else 1) * len(self.passes)

    def of_targets(self, which: NDArray[np.int64]) -> Self:
        """Those of some of these targets, int64 [t]."""
        return replace(self, outputs=self.outputs[:, which], targets=self.targets[which])

    def some(self, chosen: NDArray[np.bool_]) -> Trials:
        """Return some of the trials, bool [K]."""
        return replace(self, passes=self.passes[chosen], outputs=self.outputs[chosen])

    def masks(self, targets: slice, components: int) -> NDArray[np.float32]:
        """Draw the masks of some targets again, float32 [t, K, N].

        Parameters
        ----------
        targets : slice
            Within those of these trials.
        components : int
            N.
        """
        chosen = self.targets[targets]
        apart = (np.diff(chosen) < 1) | (np.diff(chosen) > NEAR)
        runs = [run for run in np.split(chosen, np.flatnonzero(apart) + 1) if len(run)]
        starts = np.cumsum([0, *(len(run) for run in runs[:-1])])
        drawn = np.empty((len(chosen), len(self.passes), components), np.float32)
        for at, index in enumerate(self.passes):
            for start, run in zip(starts, runs, strict=True):
                span = slice(int(run[0]), int(run[-1]) + 1)
                masks = self.plan.draw(int(index), span, components)
                drawn[start : start + len(run), at] = masks[run - run[0]]
        return drawn


@dataclass(frozen=True)
class PassSums(Trials):
    """Sums of gradient passes for some targets, and the passes' outputs.

    Attributes
    ----------
    path_sums, path_squares : float32 [N, T]
        Σ g and Σ g² over the passes in which the component is on a path.
    path_counts : float32 [N, T]
        How many those are.
    kept_means : float32 [N, T]
        Mean of g over the passes in which the component is kept (their expected number).
    """

    path_sums: NDArray[np.float32]
    path_squares: NDArray[np.float32]
    path_counts: NDArray[np.float32]
    kept_means: NDArray[np.float32]

    @property
    def num_features(self) -> int:
        """Components, N."""
        return len(self.path_sums)

    def of_targets(self, which: NDArray[np.int64]) -> Self:
        """Those of some of these targets, int64 [t]."""
        of_each = ("path_sums", "path_squares", "path_counts", "kept_means")
        some = {name: getattr(self, name)[:, which] for name in of_each}
        return replace(super().of_targets(which), **some)


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
    found = _chosen(open_passes(store), most, blocks)
    if found is None:
        return None
    kept, plan, blocks = found
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
        _numbers(plan, blocks),
        np.concatenate(outputs).astype(np.float64),
        np.arange(chosen.stop)[chosen],
        path_sums=sums["path_sums"].astype(np.float32),
        path_squares=sums["path_squares"].astype(np.float32),
        path_counts=sums[COUNTS].astype(np.float32),
        kept_means=sums["kept_sums"].astype(np.float32),
    )


def read_trials(
    store: Store | str | Path,
    targets: slice = slice(None),
    most: int | None = None,
    blocks: NDArray[np.int64] | None = None,
) -> Trials | None:
    """Read the trials that a store has, as of :func:`read_passes`; None if it has none."""
    found = _chosen(open_passes(store, TRIALS_DIR), most, blocks)
    if found is None:
        return None
    kept, plan, blocks = found
    outputs = np.concatenate([arrays[OUTPUTS] for _, arrays in kept.blocks((OUTPUTS,), blocks)])
    every = outputs.reshape(-1, outputs.shape[-1])
    which = np.arange(every.shape[1])[targets]
    return Trials(plan, _numbers(plan, blocks), every[:, targets].astype(np.float64), which)


def _chosen(
    kept: Store | None, most: int | None, blocks: NDArray[np.int64] | None
) -> tuple[Store, PassPlan, NDArray[np.int64]] | None:
    """The store of blocks, its plan and those blocks that are wanted and there; None if none is."""
    if kept is None:
        return None
    plan, done = plan_of(kept), kept.completed_rows()
    blocks = done if blocks is None else np.intersect1d(done, blocks)
    if most is not None:
        blocks = blocks[: most // plan.passes]
    return (kept, plan, blocks) if len(blocks) else None


def _numbers(plan: PassPlan, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which passes blocks hold."""
    return (blocks[:, None] * plan.passes + np.arange(plan.passes)).reshape(-1)
