"""Layers of many small models on a processor, with the batch last in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from coarlib.compiled import worth_compiling

__all__ = ["COMPILING", "are_ready", "compile_layers", "computes", "convolution", "max_pool"]

COMPILING = 4.0  # seconds of training after which compiling, which takes about 2, soon pays
_ITEM = 4  # bytes
_ROW = 16  # of a tap's weights: BLOCK of them
Shape = tuple[int, ...]


def are_ready() -> bool:
    """Whether layers are compiled, here or by another process, or are to be in any case."""
    if worth_compiling(0, 1):
        return True
    from coarlib.retraining.kernels import add_up, correlate, pass_relu, pool, unpool

    return all(kernel.is_ready for kernel in (add_up, correlate, pass_relu, pool, unpool))


def compile_layers() -> None:
    """Compile them, in some seconds."""
    layer, image = nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 1, 1, 1, requires_grad=True)
    found = convolution(layer, layer.weight[None], None, image, relu=True)
    max_pool(found[0], (1, 1), relu=False).sum().backward()


def computes(x: torch.Tensor) -> bool:
    """Whether layers are computed here for such activations."""
    fits = x.dtype == torch.float32 and x.device.type == "cpu"
    return fits and not torch.is_autocast_enabled("cpu")


def convolution(
    layer: nn.Conv2d,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x: torch.Tensor,
    relu: bool,
) -> torch.Tensor:
    """Convolve images with the batch last, through a ReLU if one follows.

    Parameters
    ----------
    layer : nn.Conv2d
        Stride, padding (no word), dilation and groups.
    weight, bias : float32 [K, O, C / groups, h, w], [K, O]
    x : float32 [K, C, H, W, B]

    Returns
    -------
    float32 [K, O, H', W', B]
    """
    from coarlib.retraining.kernels import LANES

    padding: Any = layer.padding
    models, groups, batch = len(x), len(x) * layer.groups, x.shape[4]
    plan = _Plan.of((*x.shape[2:4], *layer.kernel_size), layer.stride, padding, layer.dilation)
    if batch % LANES:
        x = functional.pad(x, (0, -batch % LANES))
    weight = weight.reshape(groups, layer.out_channels // layer.groups, weight.shape[2], -1)
    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias.reshape(groups, -1)
    x = x.contiguous().view(groups, -1, x.shape[2] * x.shape[3], x.shape[4])
    found: torch.Tensor = _Convolution.apply(x, weight, bias, plan, relu)
    found = found.view(models, -1, *plan.size, x.shape[3])
    return found[..., :batch] if batch % LANES else found


def max_pool(x: torch.Tensor, window: tuple[int, int], relu: bool) -> torch.Tensor:
    """Take the largest entries of windows side by side in x [N, H, W, B], as torch does."""
    from coarlib.retraining.kernels import LANES

    batch = x.shape[3]
    if batch % LANES:
        x = functional.pad(x, (0, -batch % LANES))
    found: torch.Tensor = _MaxPool.apply(x, window, relu)
    return found[..., :batch] if batch % LANES else found


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which places of images meet, by which tap of a convolution's kernel.

    Attributes
    ----------
    size : (H', W')
        Of the output.
    outputs, inputs, taps : int64 [n]
        Of every triple that meets.
    """

    size: tuple[int, int]
    outputs: NDArray[np.int64]
    inputs: NDArray[np.int64]
    taps: NDArray[np.int64]

    @classmethod
    @lru_cache(maxsize=128)
    def of(cls, size: Shape, stride: Shape, padding: Shape, dilation: Shape) -> _Plan:
        """List what meets; ``size`` is (H, W, h, w)."""
        image, kernel = size[:2], size[2:]
        out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(image, kernel, stride, padding, dilation, strict=True)
        ]
        y, x, i, j = np.indices((*out, *kernel)).reshape(4, -1)
        down = y * stride[0] - padding[0] + i * dilation[0]
        right = x * stride[1] - padding[1] + j * dilation[1]
        inside = (down >= 0) & (down < image[0]) & (right >= 0) & (right < image[1])
        found = y * out[1] + x, down * image[1] + right, i * kernel[1] + j
        return cls((out[0], out[1]), *(part[inside] for part in found))


@lru_cache(maxsize=512)
def _table(
    plan: _Plan, by: str, first: tuple[str, int], second: tuple[str, int], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Sort triples by one of their parts; list both others, times so many bytes each."""
    key = getattr(plan, by)
    order = np.argsort(key, kind="stable")
    starts = np.searchsorted(key[order], np.arange(count + 1))
    columns = [getattr(plan, name)[order] * scale for name, scale in (first, second)]
    return starts, np.stack(columns, 1).astype(np.int32)


class _Convolution(torch.autograd.Function):
    """Of x [G, C, P, B], weight [G, O, C, T] and bias [G, O], G models times groups."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        plan: _Plan,
        relu: bool,
    ) -> torch.Tensor:
        ctx.plan = plan
        places = plan.size[0] * plan.size[1]
        found = x.new_empty(len(x), weight.shape[1], places, x.shape[3])
        table = _table(plan, "outputs", ("inputs", _ITEM * x.shape[3]), ("taps", _ROW), places)
        _in_threads(_correlated, x, weight, bias, found, table=(*table, relu))
        ctx.save_for_backward(x, weight, *[found] * relu)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from coarlib.retraining.kernels import add_up, pass_relu

        x, weight, *found = ctx.saved_tensors
        plan, gradient, width = ctx.plan, gradient.contiguous(), _ITEM * x.shape[3]
        of_x = of_weight = None
        if found:
            passed = gradient.new_empty(gradient.shape)
            of_bias = gradient.new_empty(weight.shape[:2])
            flat = (part.flatten(2) for part in (gradient, *found, passed))
            _in_threads(pass_relu, *flat, of_bias, table=())
            gradient = passed
        else:
            of_bias = gradient.sum((2, 3))
        if ctx.needs_input_grad[0]:
            of_x = x.new_empty(x.shape)
            table = _table(plan, "inputs", ("outputs", width), ("taps", _ROW), x.shape[2])
            turned, none = weight.transpose(1, 2), x.new_zeros(x.shape[:2])
            _in_threads(_correlated, gradient, turned, none, of_x, table=(*table, False))
        if ctx.needs_input_grad[1]:
            of_weight = weight.new_empty(weight.shape)
            table = _table(plan, "taps", ("outputs", width), ("inputs", width), weight.shape[3])
            _in_threads(add_up, gradient, x, of_weight, table=table)
        return of_x, of_weight, of_bias, None, None


class _MaxPool(torch.autograd.Function):
    """Of x [N, H, W, B], windows side by side."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, window: tuple[int, int], relu: bool) -> torch.Tensor:
        from coarlib.retraining.kernels import pool

        ctx.window, ctx.shape = window, x.shape
        size = [n // w for n, w in zip(x.shape[1:3], window, strict=True)]
        found = x.new_empty(len(x), *size, x.shape[3])
        which = torch.empty_like(found, dtype=torch.int32)
        table = (*window, _window(window, *x.shape[2:]), relu)
        _in_threads(pool, x.contiguous(), found, which, table=table)
        ctx.save_for_backward(which)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        from coarlib.retraining.kernels import unpool

        (which,) = ctx.saved_tensors
        whole = not any(n % w for n, w in zip(ctx.shape[1:3], ctx.window, strict=True))
        found = gradient.new_empty(ctx.shape) if whole else gradient.new_zeros(ctx.shape)
        table = (*ctx.window, _window(ctx.window, *ctx.shape[2:]))
        _in_threads(unpool, gradient.contiguous(), which, found, table=table)
        return found, None, None


@lru_cache(maxsize=128)
def _window(window: tuple[int, int], width: int, batch: int) -> NDArray[np.int32]:
    """Bytes from the first place of a window to each, in rows of so many places."""
    down, right = np.indices(window).reshape(2, -1)
    return ((down * width + right) * batch * _ITEM).astype(np.int32)


def _in_threads(
    function: Callable[..., None], *tensors: torch.Tensor, table: Sequence[Any]
) -> None:
    """Share groups out to as many threads as torch uses."""
    arrays = [part.detach().numpy() for part in tensors]
    threads = min(torch.get_num_threads(), len(arrays[0]))
    if threads == 1:
        function(*arrays, *table)
        return
    edges = np.linspace(0, len(arrays[0]), threads + 1).astype(np.int64)
    parts = [[array[first:stop] for array in arrays] for first, stop in pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: function(*part, *table), parts))


def _correlated(  # noqa: PLR0917
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    out: NDArray[np.float32],
    starts: NDArray[np.int64],
    table: NDArray[np.int32],
    relu: bool,
) -> None:
    from coarlib.retraining.kernels import BLOCK, correlate

    groups, outputs, channels, taps = weight.shape
    blocks = -(-outputs // BLOCK)
    packed = np.zeros((groups, blocks * BLOCK, channels, taps), np.float32)
    packed[:, :outputs] = weight
    packed = packed.reshape(groups, blocks, BLOCK, channels, taps).transpose(0, 1, 3, 4, 2)
    added = np.zeros((groups, blocks * BLOCK), np.float32)
    added[:, :outputs] = bias
    weights, biases = np.ascontiguousarray(packed), added.reshape(groups, blocks, BLOCK)
    correlate(x, weights, biases, starts, table, out, relu)
