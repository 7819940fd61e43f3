"""Reconstructing predictions only: no contribution of single samples, forward mode throughout."""

from __future__ import annotations

import numpy as np
import torch

from coarlib.path_kernel.adjoint import CHECKS
from coarlib.path_kernel.decomposition import Decomposition
from coarlib.path_kernel.explain import Subject
from coarlib.path_kernel.gradients import differentiable_attention
from coarlib.path_kernel.parameters import Tensors
from coarlib.path_kernel.quadrature import DEFAULT_TOLERANCE, Quadrature
from coarlib.path_kernel.queries import Output, Queries
from coarlib.path_kernel.walk import Step
from coarlib.progress import Progress


def predict(
    subject: Subject,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    output: str | Output = "all",
    tolerance: float | None = None,
    decay_apart: bool = False,
    quiet: bool = False,
) -> Decomposition:
    """Reconstruct outputs as f_0 + Σ_s ⟨Φ_s, θ_(s+1) - θ_s⟩.

    One forward-mode derivative a node serves all outputs, so this is far cheaper than
    :func:`coarlib.path_kernel.explain`. ``data`` here holds everything that moved the parameters.

    Parameters
    ----------
    subject, inputs, targets, output, tolerance, quiet
        As in :func:`coarlib.path_kernel.explain`.
    decay_apart : bool
        Give decoupled weight decay as ``weight_decay``, by the midpoint rule; one more derivative
        an update.

    Returns
    -------
    Decomposition
        Totals only.
    """
    walk = subject.walk
    queries = Queries(subject.model, subject.put(inputs), subject.put(targets), output)
    outputs = queries.count_outputs(walk.theta(walk.history.first))
    allowed = DEFAULT_TOLERANCE[walk.dtype] if tolerance is None else tolerance
    quadrature = Quadrature(queries, allowed)
    points = torch.arange(len(queries), device=walk.device)
    with differentiable_attention():
        initial = before = queries.values(walk.theta(walk.history.first), points)
        zero = torch.zeros_like(initial).double()
        moved, decayed, residual, largest = (zero.clone() for _ in range(4))
        with Progress(len(walk.numbers), "predicting", "step", quiet) as progress:
            for number in walk.numbers:
                step = walk.step(number)
                after = queries.values(step.theta_next, points)
                shrink = _decay(step) if decay_apart else None
                total, decay = _update(quadrature, step, shrink, points, (before, after))
                off = (after - before - total).double()
                moved += (total - decay).double()
                decayed += decay.double()
                residual += off
                largest = torch.maximum(largest, off.abs())
                before = after
                progress.advance()
    values = {"initial": initial, "final": before, "data": moved, "weight_decay": decayed}
    checks = dict.fromkeys(("regulariser", "prior_momentum", *CHECKS), zero)
    checks |= {"quadrature_residual": residual, "largest_step_residual": largest}
    arrays = {k: v.double().cpu().numpy() for k, v in {**values, **checks}.items()}
    about = {
        "tolerance": allowed,
        "num_outputs": outputs,
        "first": walk.history.first,
        "last": walk.history.last,
    }
    return Decomposition({k: np.asarray(v) for k, v in arrays.items()}, about)


def _update(
    quadrature: Quadrature,
    step: Step,
    shrink: Tensors | None,
    points: torch.Tensor,
    values: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ⟨Φ, Δ⟩ and its part by decoupled weight decay, ``[n, K]`` each."""
    before, after = values
    queries = quadrature.queries
    delta = {name: step.theta_next[name] - theta for name, theta in step.theta.items()}
    middle = {name: torch.lerp(v, step.theta_next[name], 0.5) for name, v in step.theta.items()}
    if shrink is None:
        total = queries.slopes(middle, delta, points)
        decay = torch.zeros_like(total)
    else:
        both = {name: torch.stack([values, shrink[name]]) for name, values in delta.items()}
        total, decay = queries.directional(middle, both, points)
    bad = ((after - before - total).abs().amax(1) > quadrature.allowed(before, after)).nonzero()
    bad = bad.squeeze(1)
    if len(bad):
        total = total.clone()
        nodes = quadrature.nodes(step.theta, delta, points[bad], before[bad], after[bad])
        total[bad] = nodes.integral
    return total, decay


def _decay(step: Step) -> Tensors | None:
    """The part of an update by decoupled weight decay; None where there is none."""
    if not any(update.shrink for update in step.updates.values()):
        return None
    none = {name: torch.zeros_like(theta) for name, theta in step.theta.items()}
    shrunk = {n: step.theta[n] * -u.shrink for n, u in step.updates.items() if u.shrink}
    return {**none, **shrunk}
