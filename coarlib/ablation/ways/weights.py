"""Ablating components in place, and undoing it bit for bit.

The weights of an ablated unit are scaled, mostly to zero, and biases stay, so an ablated filter
still outputs its bias.
"""

from __future__ import annotations

from functools import reduce
from itertools import accumulate
from types import TracebackType
from typing import Self

import torch
from torch import nn

from coarlib.ablation.activations import Site
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.plain import unwrapped
from coarlib.ablation.ways.base import Ablation
from coarlib.errors import ComponentError


class WeightAblation(Ablation):
    """Scales the weights of ablated components of a model, in place.

    Parameters
    ----------
    model : nn.Module
        Changed while the context is open, and only in the selected parameters.
    components : ComponentSet
    factor : float
        What ablated weights are multiplied with: 0 (the default) removes them.

    Raises
    ------
    ComponentError
        If the components do not fit the model.

    Notes
    -----
    Use as a context manager; on leaving it, also by an exception, every selected parameter holds
    the bits it had on entering. No copy of the model is made, only of the selected parameters.
    """

    def __init__(self, model: nn.Module, components: ComponentSet, factor: float = 0.0) -> None:
        self.components = components
        model = unwrapped(model)
        channels = components.channels(model)
        # A parameter may hold components along two axes; an entry stays if both keep it.
        self._channels = [
            [part for part in channels if part.path == path]
            for path in dict.fromkeys(part.path for part in channels)
        ]
        self._parameters = [model.get_parameter(parts[0].path) for parts in self._channels]
        # All channels in one line, so that a mask is spread over them, and sent to a device, once.
        parts = [part for parts in self._channels for part in parts]
        ends = list(accumulate(part.count for part in parts))
        spans = [slice(end - part.count, end) for part, end in zip(parts, ends, strict=True)]
        self._spans = {id(part): span for part, span in zip(parts, spans, strict=True)}
        self._count = ends[-1] if ends else 0
        self._component = _joined([part.component for part in parts])
        self._place = _joined(
            [span.start + part.channel for part, span in zip(parts, spans, strict=True)]
        )
        self.factor = factor
        self._intact: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        self._changed = [False] * len(self._parameters)

    def __enter__(self) -> Self:
        if self._intact:
            raise ComponentError("this ablation is already in use")
        if not self._copies:
            with torch.inference_mode(False):  # whoever enters later may not be in it
                self._copies = [torch.empty_like(parameter) for parameter in self._parameters]
        with torch.no_grad():
            for copy, parameter in zip(self._copies, self._parameters, strict=True):
                copy.copy_(parameter)
        self._intact = self._copies  # at one address always: what is recorded reads there
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()
        self._intact = []
        if not self._accelerated:
            self._copies = []

    def apply(self, mask: torch.Tensor) -> None:
        """Leave exactly the components kept that the mask keeps.

        Parameters
        ----------
        mask : bool [N]
            True = kept. Whatever was ablated before comes back first.

        Raises
        ------
        ComponentError
            If the mask has another width, or the context is not open.
        """
        if not self._intact:
            raise ComponentError("apply masks inside the context: with WeightAblation(…) as it:")
        self.components.check_masks(mask[None])
        self.set(self.spread(mask[None])[0])

    @property
    def _accelerated(self) -> bool:
        """Whether the first of the parameters is on an accelerator."""
        return bool(self._parameters) and self._parameters[0].device.type != "cpu"

    def spread(self, masks: torch.Tensor) -> torch.Tensor:
        """Return which channels masks (bool [B, N]) keep, bool [B, C], where the parameters are."""
        if not self._accelerated:
            kept = torch.ones(len(masks), self._count, dtype=torch.bool)
            for row, mask in zip(kept, masks.cpu(), strict=True):
                row[self._place[~mask[self._component]]] = False
            return kept
        device = self._parameters[0].device
        self._component, self._place = self._component.to(device), self._place.to(device)
        cut = (~masks.to(device))[:, self._component].int()
        times = torch.zeros(len(masks), self._count, dtype=torch.int32, device=device)
        return times.index_add_(1, self._place, cut) == 0

    @torch.no_grad()
    def set(self, state: torch.Tensor) -> None:
        """Keep exactly some channels, bool [C]: a row of :meth:`spread`.

        On an accelerator nothing here depends on what the state holds, so that it can be recorded.
        """
        known = not self._accelerated
        for at, parts in enumerate(self._channels):
            parameter, intact = self._parameters[at].detach(), self._intact[at]
            kept = [(part, state[self._spans[id(part)]]) for part in parts]
            cut = [
                part.entries(channels.to(parameter.device), parameter.shape)
                for part, channels in kept
                if not (known and channels.all())
            ]
            if not cut:
                self._restore_one(at)
                continue
            self._changed[at] = True
            ablated = intact * self.factor if self.factor else intact.new_zeros(())
            torch.where(reduce(torch.logical_and, cut), intact, ablated, out=parameter)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring every parameter back to the bits it had on entering."""
        for at in range(len(self._intact)):
            self._restore_one(at)

    def replaced(self, site: Site, index: int, activation: torch.Tensor) -> torch.Tensor:
        """Return what is left of an activation when its weights are scaled."""
        return activation - (1 - self.factor) * site.without_bias(activation)

    def _restore_one(self, at: int) -> None:
        if self._changed[at]:
            self._parameters[at].copy_(self._intact[at])
            self._changed[at] = False


def _joined(indices: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.long), *indices])
