"""Ablating the activations of components instead of their weights.

What an ablated component sends on is replaced: by zero (unlike zero weights, the bias goes too),
by its mean over reference examples (mean ablation), or by what it sends on for another example
(resample ablation). The model's parameters are never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch
from torch import nn

from coarlib.ablation.activations import Hooks, sites_of
from coarlib.ablation.components import ComponentSet
from coarlib.errors import ComponentError

REPLACEMENTS = ("zero", "mean", "resample")


class ActivationAblation:
    """Replaces the activations of ablated components while the context is open.

    Parameters
    ----------
    model : nn.Module
    components : ComponentSet
    replacement : {"zero", "mean", "resample"}
    reference : callable, optional
        Runs the model on the reference examples; needed for the mean.
    seed : int
        Of the permutation that resampling draws for each batch: example t gets the activation of
        example π(t) of its batch, the same π for all components.

    Raises
    ------
    ComponentError
        If hooks cannot reach a component, or an option is missing or unknown.

    Notes
    -----
    Resampling takes other examples from the same batch, so its rows depend on the batch size;
    the other two do not.
    """

    def __init__(
        self,
        model: nn.Module,
        components: ComponentSet,
        replacement: str = "zero",
        *,
        reference: Callable[[], object] | None = None,
        seed: int = 0,
    ) -> None:
        if replacement not in REPLACEMENTS:
            raise ComponentError(
                f"activations are replaced by {', '.join(REPLACEMENTS)}, not by {replacement}"
            )
        if replacement == "mean" and reference is None:
            raise ComponentError("mean ablation needs reference examples")
        self.components, self._replacement, self._seed = components, replacement, seed
        self._sites = sites_of(model, components)
        self._kept: list[torch.Tensor | None] = [None] * len(self._sites)
        self._means: list[torch.Tensor] = []
        if reference is not None and replacement == "mean":
            self._means = self._measure(reference)
        self._hooks = Hooks(self._sites, self._change)

    def __enter__(self) -> ActivationAblation:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self.restore()

    def apply(self, mask: torch.Tensor) -> None:
        """Leave exactly the components kept that the mask (bool [N], True = kept) keeps."""
        self.components.check_masks(mask[None])
        mask = mask.cpu()
        for at, site in enumerate(self._sites):
            kept = site.channels.kept(mask)
            self._kept[at] = None if bool(kept.all()) else kept

    def restore(self) -> None:
        """Keep every component."""
        self._kept = [None] * len(self._sites)

    def _change(self, index: int, activation: torch.Tensor) -> torch.Tensor:
        kept, site = self._kept[index], self._sites[index]
        if kept is None:
            return activation
        keep = site.spread(kept.to(activation.device), activation)
        return torch.where(keep, activation, self.replaced(index, activation))

    def replaced(self, index: int, activation: torch.Tensor) -> torch.Tensor:
        """Return what an activation of a site becomes where it is ablated (broadcastable)."""
        if self._replacement == "mean":
            mean = self._means[index].to(activation)
            return self._sites[index].spread(mean, activation)
        if self._replacement == "zero":
            return activation.new_zeros(())
        generator = torch.Generator().manual_seed(self._seed)
        return activation[torch.randperm(len(activation), generator=generator)]

    def _measure(self, reference: Callable[[], object]) -> list[torch.Tensor]:
        sums: list[torch.Tensor | None] = [None] * len(self._sites)
        counts = [0] * len(self._sites)

        def record(index: int, activation: torch.Tensor) -> torch.Tensor:
            channels = activation.detach().movedim(self._sites[index].channel, -1)
            flat = channels.reshape(-1, channels.shape[-1]).double()
            before = sums[index]
            sums[index] = flat.sum(0) if before is None else before + flat.sum(0)
            counts[index] += len(flat)
            return activation

        with torch.no_grad(), Hooks(self._sites, record):
            reference()
        means = []
        for site, total, count in zip(self._sites, sums, counts, strict=True):
            if total is None:
                raise ComponentError(f"the reference examples never reach {site.channels.path}")
            means.append(total / count)
        return means
