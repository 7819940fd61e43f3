"""A task from any model in one call: no class to write."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from coarlib.ablation.components import ComponentSet
from coarlib.ablation.examples import Examples, as_examples
from coarlib.ablation.plain import checked_model
from coarlib.ablation.selection import find_components
from coarlib.ablation.task import ComponentTask, Predict
from coarlib.errors import ComponentError, TaskError
from coarlib.outputs import IGNORED, Output, by_name, margin, next_tokens, per_sequence

Components = str | Sequence[str] | ComponentSet | Callable[[nn.Module], ComponentSet]
Outputs = str | Output | Sequence[str] | Mapping[str, str | Output]


class GivenTask(ComponentTask):
    """What :func:`ablate` returns: a task of a model and examples that are at hand."""

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        components: ComponentSet,
        *,
        outputs: Mapping[str, Output],
        predict: Predict | None,
        names: Sequence[str] | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._given, self._all, self._parts = model, examples, components
        self.outputs = outputs  # type: ignore[misc]
        self._predict, self._names = predict, names

    def model(self) -> nn.Module:
        """Return the model."""
        return self._given

    def components(self, model: nn.Module) -> ComponentSet:
        """Return the components."""
        return self._parts

    def examples(self) -> Examples:
        """Return the examples."""
        return self._all

    def texts(self) -> Sequence[str] | None:
        """Return the names of the examples, if they were given."""
        return self._names

    def predict(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Run the model, or the function that was given for that."""
        return (
            super().predict(network, inputs)
            if self._predict is None
            else self._predict(network, inputs)
        )


def ablate(
    model: nn.Module,
    examples: Any,
    components: Components = "conv_filter",
    *,
    outputs: Outputs | None = None,
    ablate: str = "zero_weights",
    predict: Predict | None = None,
    batch_size: int | None = None,
    names: Sequence[str] | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    scale: float = 0.5,
    seed: int = 0,
    autocast: str = "none",
    compiled: bool | None = None,
) -> ComponentTask:
    """Make a task of a model: which outputs are recorded under ablation of which components.

    Parameters
    ----------
    model : nn.Module
        Trained; it is evaluated in evaluation mode and left as it is.
    examples : pair (inputs, labels), or Examples
        T examples. Inputs are a tensor or array [T, …], or a tuple or mapping of several (the
        model's positional or keyword arguments, such as token ids and attention mask); labels are
        [T] classes, or [T, L] tokens with :data:`coarlib.outputs.IGNORED` where none counts. For a
        causal language model labels may be None or the tokens themselves: each position then
        predicts the next token.
    components : str, sequence of str, ComponentSet, or callable (model) -> ComponentSet
        Kinds of :data:`coarlib.ablation.KINDS`, or the components themselves; of a
        :class:`~coarlib.ablation.Hierarchy`, :func:`coarlib.attribute` tries groups first.
    outputs : str, function, sequence or mapping of them, optional
        What is recorded: names of :data:`coarlib.outputs.OUTPUTS`, or functions (logits, labels)
        -> [T]; a mapping names the store's arrays. By default the margin, as ``test_margins``, and
        its mean over tokens where labels are [T, L].
    ablate : str
        A name of :data:`coarlib.ablation.ABLATIONS`.
    predict : callable (model, inputs) -> logits, optional
        By default the model is called, and ``logits`` taken of what Hugging Face models return.
    batch_size : int, optional
        Examples in one forward pass; by default what a batch of logits and inputs may weigh.
    names : sequence of T str, optional
        What to call the examples in reports.
    include, exclude : str or sequence of str
        Patterns of module paths, as for :func:`coarlib.ablation.find_components`.
    scale : float
        What ``ablate="scale_weights"`` multiplies with.
    seed : int
        Of ways of ablating that draw.
    autocast, compiled
        As for :class:`~coarlib.ablation.ComponentTask`.

    Returns
    -------
    ComponentTask
        Put into a file at module level (or returned by a function without arguments there), it
        can be handed to workers as ``file.py:name``.

    Raises
    ------
    TaskError, ComponentError
        In one sentence, if something that was handed in is not what it should be.
    """
    model = checked_model(model, "the model")
    made = _examples(examples)
    if names is not None and (isinstance(names, str) or len(names) != len(made)):
        raise TaskError(f"names must be {len(made)} texts, one an example")
    task = GivenTask(
        model,
        made,
        _components(components, model, include, exclude),
        outputs=_outputs(outputs, per_token=made.targets.ndim == 2),
        predict=predict,
        names=names,
        batch_size=batch_size,
        autocast=autocast,
        ablate=ablate,
        compiled=compiled,
    )
    try:
        task.scale, task.seed = float(scale), operator.index(seed)
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"scale must be a number and seed a whole one, not {scale!r} and {seed!r}"
        ) from error
    return task


def _examples(given: Any) -> Examples:
    """Read the examples; labels of causal language models may be missing, or the tokens."""
    if isinstance(given, Mapping):
        given = (given, None)
    if isinstance(given, Examples) or not isinstance(given, tuple | list) or len(given) != 2:
        return as_examples(given)
    inputs, labels = given
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
        taken = inputs.pop("labels", None)  # with labels, transformers would compute a loss
        labels = taken if labels is None else labels
    missing = labels is None
    if missing:
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        labels = first[0] if isinstance(first, tuple) else first
    made = as_examples((inputs, labels))
    tokens = made.inputs[0]
    same = (
        tokens.shape == made.targets.shape and tokens.ndim == 2 and not tokens.is_floating_point()
    )
    counts = made.targets != IGNORED
    if missing and not same:
        raise TaskError("labels may only be left out where the first input is tokens, [T, L]")
    if not same or not bool((made.targets == tokens)[counts].all()):
        return made
    attention = made.attention
    real = counts if attention is None else attention & counts
    return replace(made, targets=next_tokens(tokens, real))


def _components(
    given: Components, model: nn.Module, include: str | Sequence[str], exclude: str | Sequence[str]
) -> ComponentSet:
    if isinstance(given, ComponentSet):
        return given
    if callable(given):
        made = given(model)
        if not isinstance(made, ComponentSet):
            raise ComponentError(
                f"the function of components returned {type(made).__name__}, not a ComponentSet"
            )
        return made
    return find_components(model, given, include, exclude)


def _outputs(given: Outputs | None, per_token: bool) -> dict[str, Output]:
    """Name the output functions; those of the library become means over tokens where needed."""

    def function(one: Any) -> Output:
        if isinstance(one, str):
            found = by_name(one)
            return per_sequence(found) if per_token and one != "contrast" else found
        if not callable(one):
            raise TaskError(f"an output must be a name or a function, not {type(one).__name__}")
        return one

    if given is None:
        return {"test_margins": per_sequence(margin) if per_token else margin}
    if isinstance(given, Mapping):
        found = {str(key): function(one) for key, one in given.items()}
    elif isinstance(given, str) or not isinstance(given, Sequence):
        found = {_name(given): function(given)}
    else:
        found = {_name(one): function(one) for one in given}
    if not found:
        raise TaskError("outputs names nothing to record")
    return found


def _name(output: Any) -> str:
    name = output if isinstance(output, str) else getattr(output, "__name__", "")
    return name if name.isidentifier() else "test_outputs"
