"""Layers of many small models on a processor, with the batch last in memory."""

from __future__ import annotations

from collections.abc import Callable
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

COMPILING = 4.0  # seconds of training after which compiling, which takes 3 or 4, soon pays
_ITEM = 4  # bytes
_CACHED = 2**12  # bytes of each channel of a block; those of some blocks fit a level-1 cache
_MOST = 2**30  # bytes of a channel, with what padding adds: tables hold 32 bits
Shape = tuple[int, ...]
Table = tuple[NDArray[np.int64], NDArray[np.int32]]


def are_ready() -> bool:
    """Whether layers are compiled, here or by another process, or are to be in any case."""
    if worth_compiling(0, 1):
        return True
    from coarlib.retraining.kernels import convolve, convolve_back
    from coarlib.retraining.pool_kernels import pool, unpool

    return all(kernel.is_ready for kernel in (convolve, convolve_back, pool, unpool))


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


def _table(key: NDArray[np.int64], count: int, *columns: NDArray[np.int64]) -> Table:
    """Sort rows of some columns by a key of so many values; where those of each value start."""
    order = np.argsort(key, kind="stable")
    starts = np.searchsorted(key[order], np.arange(count + 1))
    return starts, np.stack([column[order] for column in columns], 1).astype(np.int32)


@lru_cache(maxsize=256)
def _forwards(plan: _Plan, batch: int) -> Table:
    """What reaches each place of the output."""
    places = plan.size[0] * plan.size[1]
    return _table(plan.outputs, places, _ITEM * batch * plan.inputs, _ITEM * plan.taps)


@lru_cache(maxsize=256)
def _backwards(plan: _Plan, batch: int, places: int) -> Table:
    """What each of so many places of the input reaches."""
    return _table(plan.inputs, places, _ITEM * batch * plan.outputs, _ITEM * plan.taps)


@lru_cache(maxsize=256)
def _of_taps(plan: _Plan, batch: int, taps: int) -> Table:
    """What each tap joins, for so many places of the output after others as stay in the cache."""
    step = max(1, _CACHED // (_ITEM * batch))
    key = plan.outputs // step * taps + plan.taps
    parts = -(-plan.size[0] * plan.size[1] // step)
    return _table(key, parts * taps, *(_ITEM * batch * n for n in (plan.outputs, plan.inputs)))


class _Convolution(torch.autograd.Function):
    """Of x [G, C, P, B], weight [G, O, C, T] and bias [G, O], G models times groups."""

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
        from coarlib.retraining.kernels import convolve

        ctx.plan, ctx.window = plan, window or (1, 1)
        size = [n // w for n, w in zip(plan.size, ctx.window, strict=True)]
        found = x.new_empty(*weight.shape[:2], *size, x.shape[3])
        which = torch.empty_like(found if window else found[:, :0], dtype=torch.int32)
        within = _window(ctx.window, plan.size[1], x.shape[3])
        table = _forwards(plan, x.shape[3]), ctx.window, within, relu
        _in_threads(
            lambda *part: convolve(*part, _between(plan, x, weight), *table),
            *(x, weight, bias, found, which),
        )
        ctx.save_for_backward(x, weight, which, found if relu and not window else found[:, :0])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from coarlib.retraining.kernels import convolve_back

        (x, weight, which, found), plan = ctx.saved_tensors, ctx.plan
        batch, (for_x, _, for_bias) = x.shape[3], ctx.needs_input_grad[:3]
        of_x = x.new_empty(x.shape if for_x else (len(x), 0, 0, 0))
        of_bias = x.new_empty(weight.shape[:2] if for_bias else (len(x), 0))
        of_weight = torch.empty_like(weight)
        every = gradient.contiguous(), found, which, x, weight, of_x, of_weight, of_bias
        tables = _of_taps(plan, batch, weight.shape[3]), _backwards(plan, batch, x.shape[2])
        within = _window(ctx.window, plan.size[1], batch)
        table = *tables, ctx.window, within
        _in_threads(lambda *part: convolve_back(*part, _between(plan, x, weight), *table), *every)
        of_all = of_x if for_x else None, of_weight, of_bias if for_bias else None
        return *of_all, None, None, None


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
        _in_threads(lambda *part: pool(*part, *table), x.contiguous(), found, which)
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
        _in_threads(lambda *part: unpool(*part, *table), gradient.contiguous(), which, found)
        return found, None, None


@lru_cache(maxsize=128)
def _window(window: tuple[int, int], width: int, batch: int) -> NDArray[np.int32]:
    """Bytes from the first place of a window to each, in rows of so many places."""
    down, right = np.indices(window).reshape(2, -1)
    return ((down * width + right) * batch * _ITEM).astype(np.int32)


def _between(plan: _Plan, x: torch.Tensor, weight: torch.Tensor) -> NDArray[np.float32]:
    """Zeros [O, H', W', B] for a group's convolution, where no vector lies across cache lines."""
    return torch.zeros(weight.shape[1], *plan.size, x.shape[3]).numpy()


def _in_threads(function: Callable[..., None], *tensors: torch.Tensor) -> None:
    """Share groups out to as many threads as torch uses."""
    arrays = [part.detach().numpy() for part in tensors]
    threads = min(torch.get_num_threads(), len(arrays[0]))
    if threads == 1:
        function(*arrays)
        return
    edges = np.linspace(0, len(arrays[0]), threads + 1).astype(np.int64)
    parts = [[array[first:stop] for array in arrays] for first, stop in pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: function(*part), parts))
