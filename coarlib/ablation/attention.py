"""Opening up ``nn.MultiheadAttention``, which uses its projections without calling them.

Hooks on its projections never fire. While it is opened, the same attention is computed with both
projections as calls: the fused query–key–value projection passes through an identity module, the
tap, and the output projection is called. What lies between is torch's own function, given identity
matrices for projections, so that masks and options mean what they always do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from coarlib.errors import ComponentError

# Arguments of nn.MultiheadAttention after query, key and value, in order.
_OPTIONS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Switch off torch's fused inference of transformer layers, which skips hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def opened(attention: nn.MultiheadAttention, tap: nn.Module | None) -> Iterator[None]:
    """Let an attention call its output projection, and its tap with the fused input projection.

    Parameters
    ----------
    attention : nn.MultiheadAttention
        Behaves as before once the context is left.
    tap : nn.Module or None
        Called with the queries, keys and values side by side, ``[T, L, 3 · embed_dim]``.

    Raises
    ------
    ComponentError
        When the attention is called: with a single sequence that is no batch, or, if there is a
        tap, with keys of another length than queries.
    """
    attention.forward = _forward(attention, tap)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del attention.forward


def _forward(module: nn.MultiheadAttention, tap: nn.Module | None) -> Callable[..., Any]:
    def forward(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *more: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        options |= dict(zip(_OPTIONS, more, strict=False))
        if query.ndim != 3:
            raise ComponentError("attention to a single sequence is not reached; give a batch")
        batch = [x if module.batch_first else x.transpose(0, 1) for x in (query, key, value)]
        projected = _tapped(tap, _projections(module, batch))
        identity = torch.eye(module.embed_dim, dtype=query.dtype, device=query.device)
        queries, keys, values = (x.transpose(0, 1) for x in projected)
        mixed, weights = F.multi_head_attention_forward(
            queries,
            keys,
            values,
            module.embed_dim,
            module.num_heads,
            None,
            None,
            module.bias_k,
            module.bias_v,
            module.add_zero_attn,
            module.dropout,
            identity,
            None,
            training=module.training,
            use_separate_proj_weight=True,
            q_proj_weight=identity,
            k_proj_weight=identity,
            v_proj_weight=identity,
            **options,
        )
        outputs = module.out_proj(mixed.transpose(0, 1))
        return (outputs if module.batch_first else outputs.transpose(0, 1)), weights

    return forward


def _projections(
    module: nn.MultiheadAttention, inputs: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    bias = module.in_proj_bias
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))


def _tapped(tap: nn.Module | None, projected: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    if tap is None:
        return projected
    if len({x.shape[1] for x in projected}) != 1:
        raise ComponentError(
            "the fused projection of an attention whose keys have another length than its queries "
            "is no one activation; take attention heads as components instead"
        )
    return tap(torch.cat(projected, -1)).chunk(3, -1)
