"""Gradients averaged over ablated models: the cheapest good guess of what a fit will find.

An attribution fitted on ablations of a share α is a mean effect *among such ablations*, where
saturation and interactions differ from the intact model. Gradient × parameter averaged over a few
ablated models (of kept units only) estimates that mean to first order, for all components and
examples at the cost of three forward passes a model.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation.activations import Recorder
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.task import ComponentTask
from coarlib.ablation.ways import WeightAblation
from coarlib.baselines.gradients import gradient_times_parameter
from coarlib.errors import ComponentError
from coarlib.masks import MaskDesign, draw
from coarlib.progress import Progress

__all__ = ["ablated_masks", "group_index", "mean_gradients"]

# Neither a design's seed that people choose nor that of evaluation masks.
SEED = 2_305_843_009_213_693_951


def ablated_masks(components: int, fraction: float, count: int) -> NDArray[np.bool_]:
    """Draw masks that ablate a share of the components, bool [count, components].

    Raises
    ------
    ComponentError
        If the share does not lie in [0, 1), or there is no mask to draw.
    """
    if not 0 <= fraction < 1 or count < 1:
        raise ComponentError(
            f"at least one mask, and a fraction from 0 to 1, are needed, not {count} and {fraction}"
        )
    if fraction == 0:
        return np.ones((count, components), np.bool_)
    return draw(MaskDesign(keep_prob=1 - fraction, seed=SEED), np.arange(count), components)


def group_index(components: ComponentSet) -> NDArray[np.int64]:
    """Return which group (parameter, layer) each component belongs to, int64 [N]."""
    return np.repeat(np.arange(len(components.groups)), components.sizes)


def mean_gradients(
    task: ComponentTask, masks: NDArray[np.bool_], key: str, quiet: bool = False
) -> NDArray[np.float64]:
    """Average gradient × parameter over ablated models.

    Parameters
    ----------
    task : ComponentTask
        Prepared; it ablates weights.
    masks : bool [B, N]
        The ablated models (True = kept).
    key : str
        Which of the task's outputs.
    quiet : bool
        Show no progress.

    Returns
    -------
    float64 [N, T]
        For each component the mean over the masks that keep it; 0 where none does.

    Raises
    ------
    ComponentError
        If masks and components do not fit, the task replaces activations, or a group cannot be
        reached by hooks.
    """
    components = task.component_set
    components.check_masks(masks)
    if task.ablate != "zero_weights":
        raise ComponentError(
            f"gradients at ablated models follow ablated weights, but this task ablates by "
            f"{task.ablate}"
        )
    network = task.plain_model()  # not folded: hooks see every activation
    recorder = Recorder(network, components)
    output = task.outputs[key]
    sums = torch.zeros(task.num_examples, len(components), dtype=torch.float64)
    kept = torch.from_numpy(np.ascontiguousarray(masks))
    with (
        Progress(task.num_examples * len(masks), "gradients", quiet=quiet) as progress,
        WeightAblation(network, components) as ablation,
    ):
        for where, batch in task.batches():
            for mask in kept:
                ablation.apply(mask)
                found = gradient_times_parameter(
                    recorder,
                    lambda _, batch=batch: output(  # type: ignore[misc]
                        task.predict(network, batch.inputs), batch.targets
                    ),
                )
                # An ablated unit's activation is zero, so it adds nothing.
                sums[where] += recorder.by_component(found).cpu()
                progress.advance(len(batch))
    return (sums / kept.sum(0).clamp_min(1)).T.numpy()
