"""What is asked of a model and its examples before the first row.

On a few examples: the model runs, outputs are one number an example, and neither the batch size
nor the order nor padding changes them; with every component ablated they change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from coarlib.ablation.examples import Examples
from coarlib.errors import CoarlibError, TaskError, first_line
from coarlib.outputs import Output
from coarlib.task import own_code

FEW = 4

Values = dict[str, torch.Tensor]
"""Outputs [B] by name."""


def logits_of(returned: Any) -> torch.Tensor:
    """Take the logits of what a model returned: a tensor, or an object that has ``logits``.

    Raises
    ------
    TaskError
        If it is something else.
    """
    logits = returned.get("logits") if isinstance(returned, Mapping) else None
    found = returned if isinstance(returned, torch.Tensor) else getattr(returned, "logits", logits)
    if isinstance(found, torch.Tensor):
        return found
    raise TaskError(
        f"the model returns {type(returned).__name__}, not a tensor of logits; give predict, a "
        "function that runs it and returns them"
    )


def checked_output(key: str, output: Output, logits: Any, batch: Examples) -> torch.Tensor:
    """Apply an output function, and refuse what is not one number an example.

    Returns
    -------
    torch.Tensor
        float [B].

    Raises
    ------
    TaskError
    """
    try:
        values = output(logits, batch.targets)
    except (CoarlibError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a user's function raises
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TaskError(
            f"the output {key} fails on logits of {shape} and {_named(batch.targets)} as labels: "
            f"{first_line(error)}"
        ) from error
    if not isinstance(values, torch.Tensor):
        raise TaskError(f"the output {key} returned {type(values).__name__}, not a tensor")
    plain = values.layout == torch.strided and values.device.type != "meta"
    if values.shape != (len(batch),) or values.is_complex() or not plain:
        kind = "" if plain else f"{str(values.layout).removeprefix('torch.')} {values.device} "
        what = "a single number" if not values.ndim else kind + _named(values)
        raise TaskError(
            f"the output {key} returned {what} for {len(batch)} examples; it must return one real "
            f"number an example, [{len(batch)}] (a loss needs reduction='none')"
        )
    return values


def probe(
    examples: Examples,
    taken: Callable[[Examples], Examples],
    predict: Callable[[Examples], Any],
    outputs: Mapping[str, Output],
    tolerance: float,
) -> None:
    """Run a few examples together, again, alone and in another order: it must make no difference.

    Parameters
    ----------
    examples : Examples
        A few, as stored.
    taken : callable
        Turns stored examples into a batch as the model takes it.
    predict : callable (batch) -> logits
    outputs : mapping of name to Output
    tolerance : float
        The largest difference, relative to 1 + the largest output.

    Raises
    ------
    TaskError
        If the model fails on them, or outputs are not one number an example, or depend on the
        batch or on chance.
    """

    def run(stored: Examples) -> Values:
        with own_code("transform()"):
            batch = taken(stored)
        logits = _first_run(predict, batch)
        return {
            key: checked_output(key, output, logits, batch).detach().float().cpu()
            for key, output in outputs.items()
        }

    together, count = run(examples), len(examples)
    _same(together, run(examples), tolerance, "when run once more (is there randomness in it?)")
    if count == 1:
        return
    backwards = run(examples.take(torch.arange(count).flip(0)))
    backwards = {key: values.flip(0) for key, values in backwards.items()}
    _same(together, backwards, tolerance, "when the batch is in another order")
    alone = [run(examples.take(slice(at, at + 1))) for at in range(count)]
    joined = {key: torch.cat([one[key] for one in alone]) for key in outputs}
    _same(together, joined, tolerance, "alone, or with other padding")


def _first_run(predict: Callable[[Examples], Any], batch: Examples) -> Any:
    try:
        return predict(batch)
    except (CoarlibError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model raises
        raise TaskError(_refusal(batch, error)) from error


def _same(expected: Values, found: Values, tolerance: float, how: str) -> None:
    for key, values in expected.items():
        finite = torch.isfinite(values)
        if not finite.any():
            continue
        gaps = torch.where(finite, (values - found[key]).abs(), 0.0)
        at = int(gaps.argmax())
        if not float(gaps[at]) <= tolerance * (1.0 + float(values[finite].abs().amax())):
            raise TaskError(
                f"{key} of example {at} is {values[at]:.6g} in a batch of {len(values)} but "
                f"{found[key][at]:.6g} {how}, so rows would depend on more than their mask; every "
                "example has to be computed for itself (does padding need an attention mask?)"
            )


def _refusal(batch: Examples, error: Exception) -> str:
    shapes = ", ".join(map(_named, batch.inputs))
    first = batch.inputs[0]
    hint = ""
    if first.dtype == torch.uint8:
        hint = (
            "; images of bytes have to be scaled as in training, images.float() / 255 for a start"
        )
    if first.ndim == 4 and first.shape[-1] in (1, 3, 4) and first.shape[1] not in (1, 3, 4):
        hint += "; the channels are last, torch wants images.permute(0, 3, 1, 2)"
    return f"the model cannot be run on {shapes}: {first_line(error)}{hint}"


def _named(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
