"""Where gradient passes are kept: a store of blocks inside the store of the rows.

A block is a row of it, so blocks are durable, claimed, resumed, verified and merged as any rows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coarlib.ablation.task import ComponentTask
from coarlib.errors import ArgumentError, StoreError, TaskError
from coarlib.filling.settling import settle_task
from coarlib.filling.worker import FillOptions, FillReport, fill
from coarlib.gradient_passes.plan import PassPlan
from coarlib.gradient_passes.task import OUTPUTS, BlockTask
from coarlib.store import Store
from coarlib.store.create import initialize
from coarlib.store.grow import at_least
from coarlib.store.inside import PASSES_DIR, TRIALS_DIR, open_blocks
from coarlib.store.spec import ArraySpec, StoreSpec

if TYPE_CHECKING:
    import torch

__all__ = ["PASSES_DIR", "TRIALS_DIR", "fill_passes", "open_passes", "plan_for", "plan_of"]


def fill_passes(
    store: Store,
    task: ComponentTask,
    passes: int,
    device: torch.device,
    *,
    plan: PassPlan | None = None,
    blocks: slice | None = None,
    options: FillOptions | None = None,
) -> FillReport:
    """Compute gradient passes and keep them with a store.

    Blocks that are there already are skipped. A worker killed at any moment leaves whole blocks
    only; running it again does the rest.

    Parameters
    ----------
    store : Store
        Of rows of the same task (there may be none yet).
    task : ComponentTask
        Prepared here, on ``device``, unless ``options`` say that it is.
    passes : int
        How many there are to be altogether; whole blocks are computed.
    device : torch.device
    plan : PassPlan, optional
        By default that of the passes that are there, or one that removes the share of components
        that the rows' design removes. One of trials fills those instead.
    blocks : slice, optional
        Only these blocks.
    options : FillOptions, optional

    Returns
    -------
    FillReport
        It counts blocks.

    Raises
    ------
    StoreError
        If the rows or the passes there were made by another task or plan.
    ComponentError, TaskError
        If gradient passes do not apply to the task.
    """
    options = options or FillOptions()
    if passes < 1:
        raise ArgumentError(f"at least one gradient pass is needed, not {passes}")
    if not options.prepared:
        task.prepare(device)
    plan = plan or plan_for(store, task)
    blocked = BlockTask(task, plan)
    _check_task(store, task, options)
    kept = _open(store, blocked, plan, -(-passes // plan.passes))
    chosen = np.arange(-(-passes // plan.passes), dtype=np.int64)[blocks or slice(None)]
    if not len(chosen):
        raise ArgumentError(f"there are {-(-passes // plan.passes)} blocks, none of them is named")
    return fill(kept, blocked, chosen, device, options)


def plan_for(
    store: Store, task: ComponentTask, output: str | None = None, trials: bool = False
) -> PassPlan:
    """Return the plan of the passes (or trials) of a store, or the one that suits its rows.

    Raises
    ------
    TaskError
        If the store's design does not say which share is ablated, or there are several outputs.
    """
    kept = open_passes(store, TRIALS_DIR if trials else PASSES_DIR)
    if kept is not None:
        return plan_of(kept)
    design = store.design
    share = None if design is None else design.ablated_share(_width(store))
    if not share:
        raise TaskError(
            f"the design of {store.path} does not say which share of the components is ablated; "
            "say it (fraction)"
        )
    if output is None and len(task.outputs) > 1:
        raise TaskError(f"name one of the task's outputs: {', '.join(task.outputs)}")
    make = PassPlan.of_trials if trials else PassPlan.for_fraction
    return make(share, output=output or next(iter(task.outputs)))


def _width(store: Store) -> int:
    return store.spec.schema[store.masks_name()].shape[0]


def open_passes(store: Store | str | Path, name: str = PASSES_DIR) -> Store | None:
    """Open the gradient passes (or trials) of a store; None if it has none."""
    return open_blocks(store.path if isinstance(store, Store) else Path(store), name)


def plan_of(kept: Store) -> PassPlan:
    """Return the plan of kept passes; StoreError if they do not tell."""
    return PassPlan.from_json(kept.spec.outputs.get(OUTPUTS), f"{kept.path}/spec.json")


def _check_task(store: Store, task: ComponentTask, options: FillOptions) -> None:
    """Hold passes and rows to one task, whichever come first."""
    key = store.mask_key
    if key is not None and store.spec.schema[key].shape[0] != len(task.component_set):
        raise TaskError(
            f"{key} of {store.path} has {store.spec.schema[key].shape[0]} features a row but the "
            f"task has {len(task.component_set)} components"
        )
    name = str(options.origin.get("task", f"{type(task).__module__}:{type(task).__qualname__}"))
    may_allow = "allow_other_task" in options.ways_round
    settle_task(store.path, task, name, options.allow_other_task, may_allow)


def _open(store: Store, blocked: BlockTask, plan: PassPlan, blocks: int) -> Store:
    """Open the blocks, created or grown if need be; StoreError if they are others."""
    if not store.has_checksums:
        raise StoreError(f"{store.path} carries no checksums (coarlib did not make it)")
    layout = blocked.layout().outputs
    schema = {key: ArraySpec(np.dtype(dtype), shape) for key, (dtype, shape) in layout.items()}
    spec = StoreSpec(
        blocks, schema, None, {OUTPUTS: plan.as_json()}, f"gradient passes of {store.path.name}"
    )
    name = PASSES_DIR if plan.on_path else TRIALS_DIR
    kept = open_passes(store, name)
    if kept is None:
        initialize(store.path / name, spec)
        kept = Store.open(store.path / name)
    differences = kept.spec.differences(replace(spec, num_models=kept.num_models))
    if plan_of(kept) != plan:
        differences.append(f"drawn by {plan_of(kept).as_json()} there, {plan.as_json()} here")
    if differences:
        raise StoreError(
            f"{kept.path} holds other gradient passes ({'; '.join(differences)}); give what they "
            "were made with, or remove that directory"
        )
    return at_least(kept, blocks)
