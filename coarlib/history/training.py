"""What was trained on what: samples by number, the loss of one sample, loss regularisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, default_collate

from coarlib.errors import HistoryError
from coarlib.history.inputs import Inputs, as_inputs, each, number_of

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Regulariser = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
DIGESTED_SAMPLES = 1000
REDUCTIONS = ("mean", "sum")


class Samples:
    """Inputs and targets that can be taken by number, so that a history keeps numbers only.

    Parameters
    ----------
    source : (inputs, targets) tensors, or a Dataset of (input, target) items
        ``inputs [D, ...]``, ``targets [D, ...]``; inputs may be a tuple or mapping
        of tensors. A Dataset must give the same item every time (no random augmentation).

    Raises
    ------
    HistoryError
        If the two differ in length.
    """

    def __init__(self, source: Sequence[Any] | Dataset[Any]) -> None:
        self._dataset = source if isinstance(source, Dataset) else None
        self._tensors: tuple[Inputs, torch.Tensor] | None = None
        if self._dataset is None:
            inputs, targets = source  # type: ignore[misc]
            inputs = as_inputs(inputs)
            count = number_of(inputs)
            if count != len(targets):
                raise HistoryError(
                    f"there are {count} inputs and {len(targets)} targets; they must pair up"
                )
            self._tensors = (inputs, targets)

    def __len__(self) -> int:
        if self._tensors is not None:
            return len(self._tensors[1])
        return len(self._dataset)  # type: ignore[arg-type]

    def take(
        self, indices: NDArray[np.int64], device: torch.device | None = None
    ) -> tuple[Any, torch.Tensor]:
        """Return ``inputs [B, ...]`` and ``targets [B, ...]`` of some samples."""
        if self._tensors is not None:
            chosen = torch.as_tensor(indices)
            inputs, targets = (each(lambda t: t[chosen.to(t.device)], x) for x in self._tensors)
        else:
            items = [self._dataset[int(index)] for index in indices]  # type: ignore[index]
            inputs, targets = default_collate(items)
        return each(lambda t: t.to(device), as_inputs(inputs)), targets.to(device)

    def digest(self, whole: bool = False) -> str:
        """Digest of the samples (of 1000 evenly spaced ones where there are more).

        ``whole`` takes all of them, unless they are a Dataset's.
        """
        most = len(self) if whole and self._tensors is not None else DIGESTED_SAMPLES
        count = min(len(self), most)
        chosen = np.linspace(0, len(self) - 1, count).astype(np.int64)
        digest = xxhash.xxh3_64(str(len(self)).encode())
        for tensor in tree_leaves(self.take(chosen, torch.device("cpu"))):
            digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class NormRegulariser:
    """``alpha`` times the sum over tensors of their p-norms, added to the training loss."""

    alpha: float
    p: float = 2.0

    def __call__(self, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the scalar penalty."""
        total: torch.Tensor | float = 0.0
        for parameter in parameters.values():
            total = total + torch.norm(parameter, p=self.p)
        return torch.as_tensor(self.alpha * total)


@dataclass(frozen=True)
class TrainingLoss:
    """The objective of a step: a reduction of per-sample losses, plus a regulariser.

    Attributes
    ----------
    function : callable (outputs [B, ...], targets [B, ...]) -> scalar
        Its value on a batch of one is that sample's loss (``F.cross_entropy``, ``F.nll_loss``,
        ``nn.MSELoss()`` …).
    reduction : {"mean", "sum"}
        How ``function`` combines the samples of a batch.
    regulariser : callable (parameters by name) -> scalar, optional
    autocast : torch.dtype, optional
        The dtype of ``torch.autocast``, where training computes outputs and loss under it.
    """

    function: LossFunction
    reduction: str = "mean"
    regulariser: Regulariser | None = None
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise HistoryError(f"the reduction must be mean or sum, not {self.reduction!r}")

    def weight(self, batch_size: int) -> float:
        """Return the weight of one sample in a batch."""
        return 1.0 / batch_size if self.reduction == "mean" else 1.0

    def precision(self, device: torch.device) -> torch.autocast:
        """Return the context in which training computes outputs and loss."""
        dtype, enabled = self.autocast, self.autocast is not None
        return torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=False)

    def of_batch(
        self,
        outputs: torch.Tensor,
        targets: torch.Tensor,
        parameters: Mapping[str, torch.Tensor],
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the scalar objective, with per-sample ``weights [B]`` where they are not equal."""
        if weights is None:
            value = self.function(outputs, targets)
        else:
            pairs = zip(outputs, targets, weights, strict=True)
            value = torch.stack([self.function(o[None], t[None]) * w for o, t, w in pairs]).sum()
        return value if self.regulariser is None else value + self.regulariser(parameters)


_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.RReLU)


def random_or_coupled(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """List modules that, in training mode, make a sample's gradient random or batch-dependent.

    Returns
    -------
    list of (name, module, reason)
    """
    found: list[tuple[str, nn.Module, str]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            found.append((name, module, "couples the samples of a batch"))
        elif isinstance(module, nn.modules.instancenorm._InstanceNorm):
            if module.track_running_stats:
                found.append((name, module, "updates running statistics"))
        elif isinstance(module, _DROPOUTS):
            if getattr(module, "p", 1.0) > 0:
                found.append((name, module, "draws random masks that no row can hold"))
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0:
            found.append((name, module, "draws random dropout masks that no row can hold"))
    return found


def refuse_inexact(modules: Sequence[tuple[str, nn.Module, str]]) -> None:
    """Refuse modules of :func:`random_or_coupled` that are in training mode.

    Raises
    ------
    HistoryError
        Names the first such module and what to do.
    """
    for name, module, reason in modules:
        coupled = getattr(module, "track_running_stats", True) is False
        if module.training or coupled:
            raise HistoryError(
                f"{type(module).__name__} {name!r} in training mode {reason}, so its path kernel "
                "is not exact; call .eval() on it, remove it, or use GroupNorm or LayerNorm"
            )
