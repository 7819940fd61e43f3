"""One recorded update backwards: from derivatives with respect to what it wrote to what it read.

With the update of :mod:`coarlib.history.optimizers`, θ' = θ - through·b' - direct·u - shrink·θ and
b' = keep·b + take·u, and a second moment v' = β2·v + (1 - β2)·u² inside ``through`` for Adam, the
derivatives λ of an output with respect to θ', b' and v' become::

    λb ← λb - through·λθ                                   λv ← λv + λθ·b'·∂through/∂D·∂D/∂v' …
    λu = take·λb - direct·λθ + 2(1 - β2)·u·λv              (u entered all three)
    λg = clip·(λu - g⟨λu, g⟩/(‖g‖(‖g‖ + ε)))               (clipping by norm, where it was active)
    λθ ← (1 - shrink)·λθ + couple·λu + H λg,    λb ← keep·λb,    λv ← β2·λv

and the derivative with respect to the weight of sample i in this batch is w_i⟨λg, ∇ℓ_i(θ)⟩. All λ
carry one row a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import grad, jvp, vmap

from coarlib.history.clipping import NORM_EPS
from coarlib.history.gradients import SampleGradients, differentiable_attention
from coarlib.history.optimizers import HYPER, INACTIVE, OptimizerKind
from coarlib.history.parameters import Tensors
from coarlib.history.walk import Update


@dataclass
class Derivatives:
    """Derivatives of q outputs with respect to parameters, momentum and second moment.

    ``{name: [q, *shape]}`` each; changed in place by :meth:`enter`, then by :meth:`leave`.
    """

    theta: Tensors
    momentum: Tensors
    second_moment: Tensors

    @classmethod
    def of(cls, theta: Tensors) -> Derivatives:
        """Start at the end of training, where only the parameters matter."""
        zeros = [{name: torch.zeros_like(v) for name, v in theta.items()} for _ in range(2)]
        return cls(dict(theta), *zeros)

    def enter(self, kind: OptimizerKind, update: Update, gradient: Tensors) -> Tensors:
        """Go back through the optimizer's formula; return λu, ``{name: [q, *shape]}``.

        ``gradient`` is the clipped gradient of the batch (for Adam and AdamW). ``theta`` is left
        with its direct part; :func:`through_gradient` adds what comes through the gradient. What is
        returned holds until :meth:`leave`: it may be the momentum's own tensor.
        """
        found = {}
        for place, (name, own) in enumerate(update.coefficients.items()):
            count = int(update.record.counts[place])
            theta, momentum = self.theta[name], self.momentum[name]
            if isinstance(own.through, torch.Tensor):
                momentum.addcmul_(theta, own.through, value=-1.0)
            else:
                momentum.sub_(theta, alpha=own.through)
            plain = own.take == 1 and not own.direct and not kind.adaptive
            entering = momentum if plain else momentum * own.take
            if own.direct:
                entering.sub_(theta, alpha=own.direct)
            if kind.adaptive and count != INACTIVE:
                lr, beta2, beta1 = (
                    float(update.record.hyper[update.groups[place], HYPER.index(key)])
                    for key in ("lr", "beta2", "momentum")
                )
                size = lr / (1 - beta1 ** (count + 1))
                second, correction = update.second_moment[name], 1 - beta2 ** (count + 1)
                root = (second / correction).sqrt()
                slope = torch.where(root > 0, 0.5 / correction / root, 0.0)
                through = torch.as_tensor(own.through)
                moment = self.second_moment[name]
                u = gradient[name] + own.couple * update.theta[name]
                if size:
                    bent = update.momentum[name] * through.square() / size * slope
                    moment.addcmul_(theta, bent)
                entering.addcmul_(moment, u, value=2 * (1 - beta2))
                moment *= beta2
            if own.shrink:
                theta *= 1 - own.shrink
            if own.couple:
                theta.add_(entering, alpha=own.couple)
            found[name] = entering
        return found

    def leave(self, update: Update) -> None:
        """Step back to before the momentum moved."""
        for name, own in update.coefficients.items():
            if own.keep != 1:
                self.momentum[name] *= own.keep


def unclip(update: Update, entering: Tensors, gradient: Tensors) -> Tensors:
    """Turn λ of clipped gradients into λ of the gradients, where clipping by norm was active.

    ``gradient`` is that of the batch before clipping. Tensors that share a factor below 1 were
    clipped together.
    """
    factors: dict[float, list[str]] = {}
    for name, factor in update.clip.items():
        factors.setdefault(factor, []).append(name)
    found = dict(entering)
    for factor, names in factors.items():
        if factor == 1.0:
            continue
        norm = torch.sqrt(sum(gradient[n].square().sum() for n in names))  # type: ignore[arg-type]
        along = sum(entering[n].flatten(1) @ gradient[n].flatten() for n in names)
        share = torch.as_tensor(along) / (norm * (norm + NORM_EPS)).clamp(min=1e-300)
        for name in names:
            rows = share.reshape(-1, *[1] * gradient[name].dim())
            found[name] = factor * (entering[name] - rows * gradient[name])
    return found


def through_gradient(
    gradients: SampleGradients,
    theta: Tensors,
    fixed: Tensors,
    batch: tuple[Any, torch.Tensor, torch.Tensor],
    rows: tuple[Tensors, Tensors],
) -> tuple[Tensors, torch.Tensor]:
    """Go back through the gradient of a batch, or of some of its samples.

    Parameters
    ----------
    gradients : SampleGradients
    theta, fixed : {name: [*shape]}
        What is trained, and the model's other parameters and buffers.
    batch : inputs [B, …], targets [B, …] and the samples' weights in the objective, float [B]
    rows : pair of {name: [q, *shape]}
        λg, and λθ, to which the Hessian of these samples' objective times λg is added in place.

    Returns
    -------
    λθ : {name: [q, *shape]}
    along : float [q, B]
        ``⟨λg, ∇ℓ_i⟩``.
    """
    (inputs, targets, weights), (direction, sums) = batch, rows

    def total(part: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        each = gradients.losses({**fixed, **part}, inputs, targets)
        return (each * weights).sum(), each

    def back(along: Tensors) -> tuple[Tensors, torch.Tensor]:
        # Forward over reverse: the other way round torch loses terms of LayerNorm and GroupNorm.
        found: Any = jvp(grad(total, has_aux=True), (theta,), (along,))[1]
        return found

    with differentiable_attention():
        curved, along = vmap(back)(direction)
    added = {name: sums[name].add_(values.detach()) for name, values in curved.items()}
    return added, along.detach()


def through_regulariser(
    regulariser: Callable[[Tensors], torch.Tensor], theta: Tensors, rows: tuple[Tensors, Tensors]
) -> Tensors:
    """Add the Hessian of a loss regulariser times λg to λθ in place, as :func:`through_gradient`.

    Returns
    -------
    λθ : {name: [q, *shape]}
    """
    direction, sums = rows

    def back(along: Tensors) -> Tensors:
        found: Any = jvp(grad(regulariser), (theta,), (along,))[1]
        return found

    return {n: sums[n].add_(values.detach()) for n, values in vmap(back)(direction).items()}
