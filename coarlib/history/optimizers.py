"""Optimizers as linear recurrences: what one update does to a gradient that enters it.

Every supported update of one tensor, given the second moment, is linear in the gradient u_s::

    b_s       = keep_s * b_(s-1) + take_s * u_s                      (momentum buffer)
    θ_(s+1)   = θ_s - through_s * b_s - direct_s * u_s - shrink_s * θ_s
    u_s       = clip_s * (Σ_i w_i g_i + ∇R(θ_s)) + couple_s * θ_s

SGD has through = lr and direct = 0 (Nesterov: lr·μ and lr); Adam and AdamW have
through = lr / (1 - β1^t) / (√(v / (1 - β2^t)) + ε), elementwise. L2 decay of SGD and Adam enters u
(couple = λ); AdamW's is decoupled (shrink = lr·λ). A tensor without a gradient in a step keeps its
buffer (keep = 1) and does not move. Formulas of ``torch.optim``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import HistoryError

HYPER = ("lr", "weight_decay", "momentum", "dampening", "beta2", "eps")
"""Columns of a step's hyperparameter record; ``momentum`` is β1 for Adam and AdamW."""

INACTIVE = -1
"""Update count of a tensor that had no gradient in a step."""

_MOMENTUM_KEY = {"SGD": "momentum_buffer", "Adam": "exp_avg", "AdamW": "exp_avg"}
SECOND_MOMENT_KEY = "exp_avg_sq"


@dataclass(frozen=True)
class OptimizerKind:
    """What does not change during training.

    Attributes
    ----------
    name : {"SGD", "Adam", "AdamW"}
    nesterov : tuple of bool
        For each parameter group.
    """

    name: str
    nesterov: tuple[bool, ...]

    @property
    def adaptive(self) -> bool:
        """Whether there is a second moment."""
        return self.name != "SGD"

    @property
    def momentum_key(self) -> str:
        """Name of the momentum buffer in torch's optimizer state."""
        return _MOMENTUM_KEY[self.name]

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-compatible description."""
        return {"name": self.name, "nesterov": list(self.nesterov)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> OptimizerKind:
        """Read what :meth:`as_json` gave."""
        return cls(content["name"], tuple(content["nesterov"]))

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> OptimizerKind:
        """Classify an optimizer.

        Raises
        ------
        HistoryError
            Names the optimizer or the option that has no exact path kernel.
        """
        name = type(optimizer).__name__
        if type(optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            raise HistoryError(
                f"the optimizer {name} has no exact path kernel here; use SGD, Adam or AdamW of "
                "torch.optim"
            )
        for group in optimizer.param_groups:
            for option, why in (
                ("amsgrad", "takes a maximum over steps, which is not linear in the gradients"),
                ("maximize", "turns the gradient's sign; minimise the negative loss instead"),
            ):
                if group.get(option):
                    raise HistoryError(f"{name} with {option}=True cannot be recorded: it {why}")
            if group.get("decoupled_weight_decay") and name == "Adam":
                name = "AdamW"
        return cls(name, tuple(bool(g.get("nesterov")) for g in optimizer.param_groups))

    def hyperparameters(self, optimizer: torch.optim.Optimizer) -> list[list[float]]:
        """Read the current hyperparameters, [groups, len(HYPER)]."""
        rows = []
        for group in optimizer.param_groups:
            beta1, beta2 = group.get("betas", (group.get("momentum", 0.0), 0.0))
            dampening, eps = group.get("dampening", 0.0), group.get("eps", 0.0)
            values = (group["lr"], group["weight_decay"], beta1, dampening, beta2, eps)
            rows.append([float(value) for value in values])
        return rows


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of one tensor's update, as in the module's formulas.

    ``through`` is a number, or a tensor of the parameter's shape for Adam and AdamW.
    """

    keep: float
    take: float
    through: torch.Tensor | float
    direct: float
    shrink: float
    couple: float


STILL = Coefficients(keep=1.0, take=0.0, through=0.0, direct=0.0, shrink=0.0, couple=0.0)


def coefficients_of(
    kind: OptimizerKind,
    group: int,
    hyper: NDArray[np.float64],
    count: int,
    second_moment: torch.Tensor | None,
) -> Coefficients:
    """Return the coefficients of one tensor's update.

    Parameters
    ----------
    kind : OptimizerKind
    group : int
        The tensor's parameter group.
    hyper : float64 [groups, len(HYPER)]
    count : int
        Updates of this tensor before this one; :data:`INACTIVE` if it was skipped.
    second_moment : tensor or None
        v after this update (Adam, AdamW).
    """
    if count == INACTIVE:
        return STILL
    lr, decay, momentum, dampening, beta2, eps = (float(value) for value in hyper[group])
    if not kind.adaptive:
        take = 1.0 if count == 0 or momentum == 0 else 1 - dampening  # torch clones at first
        nesterov = kind.nesterov[group]
        through, direct = (lr * momentum, lr) if nesterov else (lr, 0.0)
        return Coefficients(momentum, take, through, direct, 0.0, decay)
    if second_moment is None:
        raise HistoryError("a history of Adam or AdamW needs its second moments")
    root = (second_moment / (1 - beta2 ** (count + 1))).sqrt() + eps
    through_adam = lr / (1 - momentum ** (count + 1)) / root
    coupled = kind.name == "Adam"
    return Coefficients(
        keep=momentum,
        take=1 - momentum,
        through=through_adam,
        direct=0.0,
        shrink=shrink_of(kind, group, hyper, count),
        couple=decay if coupled else 0.0,
    )


def shrink_of(kind: OptimizerKind, group: int, hyper: NDArray[np.float64], count: int) -> float:
    """Return ``shrink``, the factor of decoupled weight decay; see :func:`coefficients_of`."""
    if kind.name != "AdamW" or count == INACTIVE:
        return 0.0
    return float(hyper[group, HYPER.index("lr")] * hyper[group, HYPER.index("weight_decay")])


class RowOf:
    """Lays the same tensors end to end into rows, again and again, at little cost a call."""

    def __init__(self) -> None:
        self._places: list[int] = []
        self._flat: list[torch.Tensor] = []

    def write(self, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Write ``tensors`` into ``out [P]``, converted to its dtype and device."""
        places = [tensor.data_ptr() for tensor in tensors]
        if places != self._places:  # the first time, or p.data was replaced
            self._flat = [tensor.detach().reshape(-1) for tensor in tensors]
            # reshape copies what is not contiguous; such a copy must not be used again
            aliased = [flat.data_ptr() for flat in self._flat] == places
            self._places = places if aliased else []
        if self._flat[0].dtype == out.dtype and self._flat[0].device == out.device:
            torch.cat(self._flat, out=out)
        else:
            out.copy_(torch.cat(self._flat))

    def write_state(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.Tensor],
        key: str,
        out: torch.Tensor,
    ) -> None:
        """Write one kind of optimizer state of all ``parameters``; zeros where absent."""
        state = optimizer.state
        found = [state[p].get(key) if p in state else None for p in parameters]
        self.write(
            [
                p.new_zeros(p.shape) if v is None else v
                for p, v in zip(parameters, found, strict=True)
            ],
            out,
        )
