"""The task of COAR: a model's outputs on fixed examples with components ablated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, ClassVar, Self

import torch
from torch import nn

from coarlib.ablation.block_check import check_blocks, check_reached
from coarlib.ablation.compiling import uncompiled
from coarlib.ablation.components import ComponentSet
from coarlib.ablation.examples import Examples, as_examples
from coarlib.ablation.fuse import fused_copy
from coarlib.ablation.plain import checked_model
from coarlib.ablation.precision import AUTO, PRECISIONS, is_pure
from coarlib.ablation.probe import FEW, probe
from coarlib.ablation.tuned import TunedTask
from coarlib.ablation.tuning import MOST, batch_by_size, largest_activation
from coarlib.ablation.ways import Ablation, Context, ablation_named
from coarlib.errors import ComponentError, TaskError, whole_number
from coarlib.identity import Identity
from coarlib.task import TaskLayout, asked

Predict = Callable[[nn.Module, tuple[torch.Tensor, ...]], Any]
"""(model, inputs of a batch) -> logits."""


class ComponentTask(TunedTask):
    """Outputs of an ablated model; a set-up says which model, components and examples.

    Parameters
    ----------
    batch_size : int, optional
        Examples in one forward pass; None chooses: on a processor by the size of activations, on
        an accelerator by a probe of a few seconds. It changes speed and memory, and outputs by no
        more than :attr:`tolerance`. A batch that does not fit the device's memory is halved.
    fuse : bool
        Fold batch norms into convolutions (:mod:`coarlib.ablation.fuse`); folding that changes
        the outputs of a probe beyond rounding is not used.
    autocast : {"none", "bf16", "fp16", "pure_bf16", "pure_fp16", "auto"}
        Compute matrix products in half precision, as COAR does on GPUs (fp16), or hold the whole
        model in it (``pure``: faster, rounds more; for ways that change weights). ``auto`` takes
        the precision of a store's rows, and before there are any the fastest whose rounding is
        under 1% of the variance of a few rows.
    ablate : str
        What ablating means, a name in :data:`coarlib.ablation.ABLATIONS`: ``zero_weights`` (biases
        stay; COAR's, the default), ``scale_weights`` (times :attr:`scale`), ``zero_activation``,
        ``mean`` (over all examples), ``resample`` (the activation of another example, drawn from
        :attr:`seed` and the row), or one that was registered.
    compiled : bool, optional
        Run the model through ``torch.compile``. None does so after a while of rows, so that it
        never doubles what a few cost (:func:`~coarlib.ablation.compiling.patience`), and keeps what
        is faster. Without a working compiler, or where activations are replaced by hooks, rows run
        uncompiled.

    Raises
    ------
    TaskError
        If an option is none of these.

    Notes
    -----
    Subclasses implement :meth:`model`, :meth:`components` and :meth:`examples`, and may override
    :attr:`outputs`, :meth:`predict`, :meth:`transform`, and for reports :attr:`class_names` and
    :meth:`texts`.
    """

    class_names: ClassVar[Sequence[str]] = ()
    """What the class indices in ``Examples.targets`` mean, for reports."""

    scale: float = 0.5
    """What ``scale_weights`` multiplies with."""

    seed: int = 0
    """Of ways of ablating that draw."""

    def __init__(
        self,
        batch_size: int | None = 500,
        fuse: bool = True,
        autocast: str = "none",
        ablate: str = "zero_weights",
        compiled: bool | None = None,
    ) -> None:
        if batch_size is not None and whole_number(batch_size, "batch_size") < 1:
            raise TaskError(f"the batch size must be at least 1, not {batch_size}")
        if autocast not in (*PRECISIONS, AUTO):
            raise TaskError(f"autocast must be {', '.join(PRECISIONS)} or {AUTO}, not {autocast}")
        self.way = ablation_named(ablate)
        if is_pure(autocast) and not self.way.on_weights:
            raise TaskError(
                f"{ablate} replaces activations, so autocast={autocast!r}, which holds the whole "
                f"model in half precision, is not for it: take {autocast.removeprefix('pure_')}"
            )
        self.ablate = self.way.name
        # Folding moves activations behind the norm, so replacing them there is something else.
        self.fuse = fuse and self.way.on_weights
        self.batch_size = MOST if batch_size is None else batch_size
        self._size_is_free, self._precision_is_free = batch_size is None, autocast == AUTO
        self.autocast = "none" if autocast == AUTO else autocast
        self.compiled = compiled if self.way.on_weights else False
        self._identities: dict[str, str] = {}  # by precision
        self._instead: ComponentSet | None = None

    def with_components(self, components: ComponentSet) -> Self:
        """Return the same task of other components, to be prepared."""
        other = copy(self)
        other._instead = components
        return other

    @abstractmethod
    def model(self) -> nn.Module:
        """Return the trained model, on any device; it is not changed."""

    @abstractmethod
    def components(self, model: nn.Module) -> ComponentSet:
        """Return the components that the mask entries stand for."""

    @abstractmethod
    def examples(self) -> Examples:
        """Return the examples whose outputs are recorded."""

    def texts(self) -> Sequence[str] | None:
        """Return the text of each example, for reports, where examples are texts."""
        return None

    @property
    def num_features(self) -> int | None:
        """Number of components, known after :meth:`prepare`."""
        return None if self._ablation is None else len(self._ablation.components)

    @property
    def component_table(self) -> list[dict[str, Any]] | None:
        """The components as JSON, known after :meth:`prepare`."""
        return None if self._ablation is None else self._ablation.components.to_json()

    @property
    def component_set(self) -> ComponentSet:
        """Return the components, known after :meth:`prepare`; ComponentError before."""
        return self.ablation.components

    def layout(self) -> TaskLayout:
        """Return the number of components, and float32 [T] for each output."""
        outputs = {key: ("float32", (self.num_examples,)) for key in self.outputs}
        return TaskLayout(len(self.component_set), outputs)

    def identity(self) -> str | None:
        """Digest weights, examples, components, the way of ablating, outputs and precision."""
        self._settle()
        return self._identities.get(self.autocast)

    def adopt(self, identity: str | None) -> str | None:
        """Compute in the precision under which this task has an identity, if that was left open."""
        if self._precision_is_free:
            found = [name for name, mine in self._identities.items() if mine == identity]
            self._settle(*found)
            if found and found[0] != self.autocast:
                self._compute_in(found[0])
        return self.identity()

    def _identify(self, model: nn.Module, components: ComponentSet) -> dict[str, str]:
        """Digest all that a row is a function of besides its mask, for every precision."""
        found = Identity().add("components", components.to_json(), self.ablate)
        found.add(self.scale, self.seed, self.way)
        found.add(self._examples.keywords, self._examples.inputs, self._examples.targets)
        found.add_model(model).add(dict(self.outputs))
        found.add_method(self, "transform").add_method(self, "predict")
        return {name: found.copy().add(name).hexdigest() for name in PRECISIONS}

    def prepare(self, device: torch.device) -> None:
        """Load model and examples, and check that they fit together.

        Raises
        ------
        ComponentError, TaskError
            If the components do not fit the model, or the examples not each other.
        """
        self._device = device
        name = type(self).__name__
        model = checked_model(asked(self, "model"), f"the model of {name}")
        components = self._instead or asked(self, "components", model)
        if not isinstance(components, ComponentSet):
            raise ComponentError(
                f"the components of {name} must be a ComponentSet (find_components makes one), not "
                f"{type(components).__name__}"
            )
        self._examples = as_examples(asked(self, "examples"), f"the examples of {name}")
        if not self.outputs:
            raise TaskError(f"{name} has no outputs to record")
        self._identities = self._identify(model, components)
        if self._examples.resident:
            self._examples = self._examples.to(device)
        self._network = model.to(device)
        components.channels(model)  # refuses what does not fit
        self._check_examples()
        self._check_blocks(components)
        self._whole = self._network = self._fastest(model, components)
        self._ablation = self._whole_ablation = self._ablation_of(components)
        self._settle_later(lambda: self._check_that_ablation_acts(self.ablation))

    def plain_model(self) -> nn.Module:
        """Return the model on the device, in evaluation mode and without wrappers; not folded."""
        return checked_model(self.model(), "the model").to(self._device)

    def _check_examples(self) -> None:
        """Probe a few examples in a few ways; their largest activation settles a free batch."""

        def predict(batch: Examples) -> Any:
            with largest_activation(self._network) as largest:
                logits = self.predict(self._network, batch.inputs)
            if self._size_is_free and isinstance(logits, torch.Tensor):
                whole = sum(x.numel() for x in (*batch.inputs, logits))
                self.batch_size = batch_by_size(largest.numbers, whole, len(batch))
            return logits

        few = self._examples.take(slice(0, FEW))
        dtypes = {x.dtype for x in self._network.parameters()}
        with torch.inference_mode(), self.precision():
            probe(few, self._taken, predict, self.outputs, self._coarse(dtypes))

    def _check_blocks(self, components: ComponentSet) -> None:
        batch = self._taken(self._examples.take(slice(0, FEW)))
        given = self._network, components, lambda: self.predict(self._network, batch.inputs)
        with torch.inference_mode(), self.precision(), uncompiled(self._network):
            check_blocks(*given)
            if not self.way.on_weights:
                check_reached(*given)

    def _check_that_ablation_acts(self, ablation: Ablation) -> None:
        """Refuse an ablation of every component that changes no output of any example."""
        masks = torch.tensor([[True], [False]]).expand(2, len(ablation.components))
        with torch.inference_mode(), self.precision(), ablation:
            for size in (FEW, self.batch_size):
                for where, batch in self.batches(size):
                    pair = []
                    for mask in masks:
                        ablation.apply(mask)
                        pair.append(self._measured(ablation, 0, where, batch))
                    if any(not torch.equal(pair[0][key], pair[1][key]) for key in self.outputs):
                        return
                    if size == FEW:
                        break
        raise ComponentError(
            f"ablating all {len(ablation.components)} components by {self.ablate} changes no "
            "output of any example: the model does not use them as it runs (is some of it "
            "compiled, or are its weights copied elsewhere?)"
        )

    def _ablation_of(self, components: ComponentSet) -> Ablation:
        return self.way(
            Context(
                self._network,
                components,
                self.scale,
                self.seed,
                len(self._examples),
                lambda: (batch for _, batch in self.batches()),
                lambda batch: self.predict(self._network, batch.inputs),
            )
        )

    def _fastest(self, model: nn.Module, components: ComponentSet) -> nn.Module:
        parts = components.channels(model)
        # Folding writes into biases, so a bias that is a component itself must stay what it is.
        if not self.fuse or any(part.parameter == "bias" for part in parts):
            return model
        fused = fused_copy(model, keep={part.module for part in parts})
        with torch.inference_mode():
            inputs = self._taken(self._examples.take(slice(0, FEW)).to(self._device)).inputs
            before, after = self.predict(model, inputs), self.predict(fused, inputs)
        scale = 1.0 + float(before.abs().amax())
        return fused if float((before - after).abs().amax()) < self.tolerance * scale else model
