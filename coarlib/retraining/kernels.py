"""Compiled convolutions with the batch last; imported where used, as numba takes a while.

One group (a model, or one of its layer's groups) after another goes through a layer and what
follows it, so that what is between them stays in the cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coarlib.compiled import njit
from coarlib.retraining.pool_kernels import pool, unpool
from coarlib.retraining.products import add_up, correlate
from coarlib.retraining.vectors import LANES

__all__ = ["convolve", "convolve_back"]

_NO_BIAS = np.zeros(1, np.float32)


@njit(nogil=True)
def convolve(  # noqa: PLR0917
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    out: NDArray[np.float32],
    which: NDArray[np.int32],
    between: NDArray[np.float32],
    reaching: tuple[NDArray[np.int64], NDArray[np.int32]],
    window: tuple[int, int],
    within: NDArray[np.int32],
    relu: bool,
) -> None:  # pragma: no cover - compiled
    """Convolve x [G, C, P, B] into ``out`` [G, O, H', W', B], through a max pool or a ReLU.

    ``weight`` is [G, O, C, T], ``bias`` [G, O]. ``which`` is empty, or as ``out`` and notes what
    is taken from each ``window`` of a group's convolution, for which there is memory ``between``.
    See :func:`pool` for ``within``, and :func:`correlate` for what is ``reaching`` each place.
    """
    groups, channels, places, batch = x.shape
    outputs, taps = weight.shape[1], weight.shape[3]
    pooled = which.size > 0
    cut = relu and not pooled
    strides = 4 * places * batch, 4 * taps, 4 * taps * channels, 4, 4 * between[0].size
    for g in range(groups):
        to = between.ctypes.data if pooled else out[g].ctypes.data
        correlate(
            *(x[g].ctypes.data, weight[g].ctypes.data, bias[g].ctypes.data, to),
            *((channels, outputs, batch), strides, *reaching, cut),
        )
        if pooled:
            pool(between, out[g], which[g], *window, within, relu)


@njit(nogil=True)
def convolve_back(  # noqa: PLR0917
    gradient: NDArray[np.float32],
    out: NDArray[np.float32],
    which: NDArray[np.int32],
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    of_x: NDArray[np.float32],
    of_weight: NDArray[np.float32],
    of_bias: NDArray[np.float32],
    between: NDArray[np.float32],
    joined: tuple[NDArray[np.int64], NDArray[np.int32]],
    reached: tuple[NDArray[np.int64], NDArray[np.int32]],
    window: tuple[int, int],
    within: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Take the ``gradient`` of what :func:`convolve` computes to its arguments.

    ``out`` is empty but behind a ReLU without a pool, ``of_x`` and ``of_bias`` [G, O] are where
    they are not wanted; ``between`` has zeros where no window is. See :func:`add_up` for what is
    ``joined`` by each tap; ``reached`` from each place of x are places of the output.
    """
    groups, channels, places, batch = x.shape
    outputs, taps = weight.shape[1], weight.shape[3]
    of_given, of_place = 4 * between[0].size, 4 * places * batch
    strides = of_given, 4 * taps * channels, 4 * taps, 0, of_place
    for g in range(groups):
        given = gradient[g] if which.size == out.size == 0 else between
        _given_back(gradient[g], out[g], which[g], given, of_bias[g], window, within)
        here, there = given.ctypes.data, x[g].ctypes.data
        add_up(here, there, of_weight[g], (of_given, of_place), batch // LANES, *joined)
        if of_x.size:
            correlate(
                *(here, weight[g].ctypes.data, _NO_BIAS.ctypes.data, of_x[g].ctypes.data),
                *((outputs, channels, batch), strides, *reached, False),
            )


@njit(nogil=True)
def _given_back(  # noqa: PLR0917
    gradient: NDArray[np.float32],
    out: NDArray[np.float32],
    which: NDArray[np.int32],
    given: NDArray[np.float32],
    of_bias: NDArray[np.float32],
    window: tuple[int, int],
    within: NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """Take a group's gradient [O, H', W', B] through what follows its convolution; sum it."""
    for o in range(len(given)):
        one = slice(o, o + 1)
        if which.size:
            unpool(gradient[one], which[one], given[one], *window, within)
        elif out.size:
            _pass_relu(gradient[o].ravel(), out[o].ravel(), given[o].ravel())
        if of_bias.size:
            of_bias[o] = _total(given[o].ravel())


@njit(nogil=True)
def _pass_relu(
    gradient: NDArray[np.float32], out: NDArray[np.float32], passed: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    """Let a gradient [N] pass where a ReLU's ``out`` is not 0."""
    for n in range(len(gradient)):
        passed[n] = np.float32(0) if out[n] <= 0 else gradient[n]


@njit(nogil=True, fastmath={"reassoc", "nsz"})  # so that it runs in vectors
def _total(values: NDArray[np.float32]) -> np.float32:  # pragma: no cover - compiled
    total = np.float32(0)
    for n in range(len(values)):
        total += values[n]
    return total
