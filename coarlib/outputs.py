"""What a row records: one number an example, from a model's logits and the example's targets.

Every output is a function ``(logits, targets) -> [T]``. Classifiers give logits ``[T, C]`` and
class indices ``[T]``. For language models :func:`per_sequence` turns any of these functions into
its mean over the tokens of a sequence, with logits ``[T, L, V]`` and targets ``[T, L]`` in which
:data:`IGNORED` marks the positions (padding, prompt) that do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch.nn import functional as F

from coarlib.errors import TaskError, nearest

Output = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

IGNORED = -100
"""Target that counts for nothing; the value PyTorch and transformers use."""

_TRUSTED = ContextVar("trusted", default=False)


@contextmanager
def trusted() -> Iterator[None]:
    """Skip the check of what targets hold, for targets that have passed it with these logits.

    It reads their smallest and largest, for which an accelerator has to end all that it does.
    """
    before = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(before)


def logit(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the logit of the target class.

    Parameters
    ----------
    logits : float [T, C]
    targets : int64 [T]

    Returns
    -------
    torch.Tensor
        [T].

    Raises
    ------
    TaskError
        If the shapes do not fit, or a target is not a class.
    """
    return logits.gather(1, _classes(logits, targets)[:, None]).squeeze(1)


def margin(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the target's logit minus the largest other logit.

    The output of COAR (Shah, Ilyas, Madry 2024, §4) and of datamodels; positive if and only if
    the prediction is right. Shapes and errors as in :func:`logit`.
    """
    correct = logit(logits, targets)
    return correct - _without_target(logits, targets).amax(1)


def margin_log_sum_exp(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the target's logit minus the log-sum-exp of the others: log p / (1 - p).

    The output of TRAK (Park et al. 2023, eq. 10), computed without forming p. Shapes and errors
    as in :func:`logit`.
    """
    correct = logit(logits, targets)
    return correct - _without_target(logits, targets).logsumexp(1)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of the target, in nats.

    Shapes and errors as in :func:`logit`.
    """
    return F.cross_entropy(logits, _classes(logits, targets), reduction="none")


def log_probability(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of the target, in nats; shapes and errors as :func:`logit`."""
    return -cross_entropy(logits, targets)


def probability(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the softmax probability of the target; shapes and errors as in :func:`logit`."""
    return log_probability(logits, targets).exp()


def contrast(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the logit of one answer minus that of another.

    Parameters
    ----------
    logits : float [T, C]
    targets : int64 [T, 2]
        The two answers.

    Returns
    -------
    torch.Tensor
        [T].

    Raises
    ------
    TaskError
        As :func:`logit`.
    """
    if targets.ndim != 2 or targets.shape[1] != 2:
        raise TaskError(
            f"a contrast needs two answers an example, not targets of {tuple(targets.shape)}"
        )
    return logit(logits, targets[:, 0]) - logit(logits, targets[:, 1])


def per_sequence(output: Output) -> Output:
    """Return the mean of a per-token output over the tokens of each sequence.

    Parameters
    ----------
    output : Output
        For logits ``[K, V]`` and targets ``[K]``.

    Returns
    -------
    Output
        For logits ``[T, L, V]`` and targets ``[T, L]`` int64, :data:`IGNORED` where a position
        does not count. ``targets[:, i]`` is the token that ``logits[:, i]`` predicts; a causal
        model's own tokens therefore have to be shifted by one (:func:`next_tokens`). A sequence
        without any token that counts gives NaN.
    """

    def mean_over_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if logits.shape[:2] != targets.shape:
            raise TaskError(
                f"logits of {tuple(logits.shape)} do not fit targets of {tuple(targets.shape)}"
            )
        counts = targets != IGNORED
        values = output(logits[counts], targets[counts]).float()
        rows = counts.nonzero()[:, 0]
        sums = torch.zeros(len(targets), device=values.device).index_add_(0, rows, values)
        return sums / counts.sum(1)

    return mean_over_tokens


def next_tokens(tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the targets of a causal language model for right-padded sequences.

    Parameters
    ----------
    tokens : int64 [T, L]
    attention_mask : bool or int [T, L]
        1 for tokens, 0 for padding.

    Returns
    -------
    torch.Tensor
        int64 [T, L]: the following token, :data:`IGNORED` at the last token and at padding.
    """
    targets = torch.full_like(tokens, IGNORED)
    counts = attention_mask[:, 1:].bool()
    targets[:, :-1] = torch.where(counts, tokens[:, 1:], IGNORED)
    return targets


OUTPUTS: Mapping[str, Output] = MappingProxyType(
    {
        "margin": margin,
        "margin_log_sum_exp": margin_log_sum_exp,
        "cross_entropy": cross_entropy,
        "logit": logit,
        "log_probability": log_probability,
        "probability": probability,
        "contrast": contrast,
    }
)


def by_name(name: str) -> Output:
    """Return the output called ``name``; TaskError names the nearest one, and all."""
    if name not in OUTPUTS:
        raise TaskError(
            f"unknown output {name}{nearest(name, OUTPUTS)}; there are {', '.join(OUTPUTS)}"
        )
    return OUTPUTS[name]


def _without_target(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.scatter(1, targets.long()[:, None], -torch.inf)


def _classes(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return targets as int64, once they are sure to be classes of the logits."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise TaskError(
            f"logits of {tuple(logits.shape)} do not fit targets of {tuple(targets.shape)}"
        )
    classes = targets.long()
    if _TRUSTED.get():
        return classes
    if targets.is_floating_point() and not torch.equal(classes.to(targets.dtype), targets):
        raise TaskError(
            f"targets are {str(targets.dtype).removeprefix('torch.')} such as "
            f"{float(targets[classes != targets][0]):g}, but classes are whole numbers"
        )
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[1]:
        raise TaskError(
            f"targets run from {int(classes.min())} to {int(classes.max())}, but the model has "
            f"{logits.shape[1]} classes"
        )
    return classes
