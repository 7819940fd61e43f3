"""Layers of many small models on a processor, with the batch last in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
_CACHED = 2**20  # bytes, half a level-2 cache
_MOST = 2**30  # bytes of a channel, with what padding adds: tables hold 32 bits
_ROW = 16  # of a tap's weights: BLOCK of them
Shape = tuple[int, ...]
Table = tuple[NDArray[np.int64], NDArray[np.int32]]


def are_ready() -> bool:
    """Whether layers are compiled, here or by another process, or are to be in any case."""
    if worth_compiling(0, 1):
        return True
    from coarlib.retraining.kernels import add_up, correlate, pass_relu
    from coarlib.retraining.pool_kernels import pool, unpool

    return all(kernel.is_ready for kernel in (add_up, correlate, pass_relu, pool, unpool))


def compile_layers() -> None:
    """Compile them, in some seconds."""
    layer, image = nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 1, 1, 1, requires_grad=True)
    found = convolution(layer, layer.weight[None], None, image, relu=True)
    max_pool(found[0], (1, 1), relu=False).sum().backward()


def computes(x: torch.Tensor) -> bool:
    """Whether layers are computed here for such activations [K, B, C, H, W]."""
    channel = _ITEM * x[0, :, 0].numel()
    fits = x.dtype == torch.float32 and x.device.type == "cpu" and channel < _MOST
    return fits and not torch.is_autocast_enabled("cpu")


def convolution(  # noqa: PLR0917
    layer: nn.Conv2d,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x: torch.Tensor,
    relu: bool,
    window: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Convolve images with the batch last, through a max pool and a ReLU if they follow.

    Parameters
    ----------
    layer : nn.Conv2d
        Stride, padding (no word), dilation and groups.
    weight, bias : float32 [K, O, C / groups, h, w], [K, O]
    x : float32 [K, C, H, W, B]
    relu : bool
    window : (h, w), optional
        Of a max pool of windows side by side.

    Returns
    -------
    float32 [K, O, H', W', B]
    """
    from coarlib.retraining.vectors import LANES

    padding: Any = layer.padding
    models, groups, batch = len(x), len(x) * layer.groups, x.shape[4]
    plan = _Plan.of((*x.shape[2:4], *layer.kernel_size), layer.stride, padding, layer.dilation)
    if batch % LANES:
        x = functional.pad(x, (0, -batch % LANES))
    weight = weight.reshape(groups, layer.out_channels // layer.groups, weight.shape[2], -1)
    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias.reshape(groups, -1)
    x = x.contiguous().view(groups, -1, x.shape[2] * x.shape[3], x.shape[4])
    found: torch.Tensor = _Convolution.apply(x, weight, bias, plan, window, relu)
    found = found.view(models, -1, *found.shape[2:])
    return found[..., :batch] if batch % LANES else found


def max_pool(x: torch.Tensor, window: tuple[int, int], relu: bool) -> torch.Tensor:
    """Take the largest entries of windows side by side in x [N, H, W, B], as torch does."""
    from coarlib.retraining.vectors import LANES

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
) -> Table:
    """Sort triples by one of their parts; list both others, times so many bytes each."""
    key = getattr(plan, by)
    order = np.argsort(key, kind="stable")
    starts = np.searchsorted(key[order], np.arange(count + 1))
    columns = [getattr(plan, name)[order] * scale for name, scale in (first, second)]
    return starts, np.stack(columns, 1).astype(np.int32)


def _forwards(plan: _Plan, batch: int) -> Table:
    """What reaches each place of the output."""
    places = plan.size[0] * plan.size[1]
    return _table(plan, "outputs", ("inputs", _ITEM * batch), ("taps", _ROW), places)


def _backwards(plan: _Plan, batch: int, places: int) -> Table:
    """What each of so many places of the input reaches."""
    return _table(plan, "inputs", ("outputs", _ITEM * batch), ("taps", _ROW), places)


def _of_taps(plan: _Plan, batch: int, taps: int) -> Table:
    """What each tap joins."""
    return _table(plan, "taps", ("outputs", _ITEM * batch), ("inputs", _ITEM * batch), taps)


class _Convolution(torch.autograd.Function):
    """Of x [G, C, P, B], weight [G, O, C, T] and bias [G, O], G models times groups.

    Between it and the max pool or ReLU that may follow, some groups at a time stay in the cache.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        plan: _Plan,
        window: tuple[int, int] | None,
        relu: bool,
    ) -> torch.Tensor:
        ctx.plan, ctx.window = plan, window
        height, width = window or (1, 1)
        size = plan.size[0] // height, plan.size[1] // width
        found = x.new_empty(*weight.shape[:2], *size, x.shape[3])
        which = torch.empty_like(found if window else found[:, :0], dtype=torch.int32)
        _in_threads(_forward, x, weight, bias, found, which, table=(plan, window, relu))
        ctx.save_for_backward(x, weight, which, found if relu else found[:, :0])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, which, found = ctx.saved_tensors
        wanted, gradient = ctx.needs_input_grad[0], gradient.contiguous()
        of_x = x.new_empty(x.shape if wanted else (len(x), 0))
        of_weight, of_bias = torch.empty_like(weight), weight.new_empty(weight.shape[:2])
        every = gradient, found, which, x, weight, of_x, of_weight, of_bias
        _in_threads(_backward, *every, table=(ctx.plan, ctx.window))
        return of_x if wanted else None, of_weight, of_bias, None, None, None


class _MaxPool(torch.autograd.Function):
    """Of x [N, H, W, B], windows side by side."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, window: tuple[int, int], relu: bool) -> torch.Tensor:
        from coarlib.retraining.pool_kernels import pool

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
        from coarlib.retraining.pool_kernels import unpool

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


def _forward(  # noqa: PLR0917
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    out: NDArray[np.float32],
    which: NDArray[np.int32],
    plan: _Plan,
    window: tuple[int, int] | None,
    relu: bool,
) -> None:
    from coarlib.retraining.pool_kernels import pool

    table = _forwards(plan, x.shape[3])
    if window is None:
        _correlated(x, weight, bias, out.reshape(*out.shape[:2], -1, x.shape[3]), *table, relu)
        return
    within = _window(window, plan.size[1], x.shape[3])
    for part, between, images in _parts(plan, weight, x.shape[3]):
        _correlated(x[part], weight[part], bias[part], between, *table, False)
        to, taps = (values[part].reshape(-1, *values.shape[2:]) for values in (out, which))
        pool(images, to, taps, *window, within, relu)


def _backward(  # noqa: PLR0917
    gradient: NDArray[np.float32],
    out: NDArray[np.float32],
    which: NDArray[np.int32],
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    of_x: NDArray[np.float32],
    of_weight: NDArray[np.float32],
    of_bias: NDArray[np.float32],
    plan: _Plan,
    window: tuple[int, int] | None,
) -> None:
    from coarlib.retraining.kernels import add_up, pass_relu
    from coarlib.retraining.pool_kernels import unpool

    batch, turned, none = x.shape[3], weight.swapaxes(1, 2), np.zeros(x.shape[:2], np.float32)
    of_taps = _of_taps(plan, batch, weight.shape[3])
    for part, before, images in _parts(plan, weight, batch):
        given = gradient[part]
        if out.size:
            passed = before.reshape(given.shape) if window is None else np.empty_like(given)
            flat = (values.reshape(*values.shape[:2], -1) for values in (given, out[part], passed))
            pass_relu(*flat, of_bias[part])
            given = passed
        else:
            given.sum((2, 3, 4), out=of_bias[part])
        if window is not None:
            within = _window(window, plan.size[1], batch)
            each, taps = (values.reshape(-1, *values.shape[2:]) for values in (given, which[part]))
            unpool(each, taps, images, *window, within)
            given = before
        given = given.reshape(before.shape)
        add_up(given, x[part], of_weight[part], *of_taps)
        if of_x.size:
            table = _backwards(plan, batch, x.shape[2])
            _correlated(given, turned[part], none[part], of_x[part], *table, False)


def _parts(
    plan: _Plan, weight: NDArray[np.float32], batch: int
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32]]]:
    """Groups of which a convolution's output stays in the cache, and memory for it.

    That is [g, O, Q, B], and the same as images [g · O, H', W', B]; zeros before the first.
    """
    groups, outputs = weight.shape[:2]
    places = plan.size[0] * plan.size[1]
    step = max(1, _CACHED // (_ITEM * outputs * places * batch))
    memory = np.zeros((min(step, groups), outputs, places, batch), np.float32)
    for first in range(0, groups, step):
        between = memory[: groups - first]
        yield slice(first, first + step), between, between.reshape(-1, *plan.size, batch)
