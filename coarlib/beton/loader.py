"""The real ffcv Loader with upstream's pipelines, for fast_l1 on a GPU (extra ``ffcv``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from coarlib.beton.fields import Field, Float, NDArray
from coarlib.beton.reader import Beton
from coarlib.beton.tensors import check_torch_dtype
from coarlib.devices import resolve_device
from coarlib.errors import BetonError

__all__ = ["ffcv_loader"]

ORDERS = ("random", "sequential", "quasi_random")


def ffcv_loader(
    path: str | os.PathLike[str],
    batch_size: int,
    *,
    device: str = "cpu",
    order: Literal["random", "sequential", "quasi_random"] = "random",
    indices: Sequence[int] | np.ndarray | None = None,
    target_slice: slice | None = None,
    num_workers: int | None = None,
    os_cache: bool = True,
    seed: int = 0,
    drop_last: bool = True,
) -> Any:
    """Build ffcv's Loader with the pipelines of datamodels and COAR.

    Array fields are decoded, made tensors and moved to the device; Int and Float become [B]. The
    file is checked first: ffcv itself reads out of bounds in a damaged one.

    Parameters
    ----------
    path : path
        The ``.beton``.
    batch_size : int
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
    order : "random", "sequential" or "quasi_random"
    indices : int [K], optional
        Rows to iterate over; all by default.
    target_slice : slice, optional
        The part of ``targets`` to keep.
    num_workers : int, optional
        Threads; all processors by default.
    os_cache : bool
        Leave caching to the system (the file fits memory).
    seed : int
    drop_last : bool
        Leave out a last batch that is not full, as fast_l1 expects.

    Returns
    -------
    ffcv.loader.Loader
        Yields a tuple of tensors a batch, in file order of the fields. They are a ring of
        buffers: copy what is kept.

    Raises
    ------
    BetonError
        If ffcv is not installed, the file is damaged, or it has a field that hangs ffcv's Loader.
    ArgumentError
        If there is no such device.
    """
    if order not in ORDERS:
        raise BetonError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    with Beton(path) as file:
        fields, num_rows = file.fields, len(file)
    _check_fields(fields)
    chosen = np.arange(num_rows) if indices is None else np.asarray(indices)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < num_rows:
        raise BetonError(f"indices go beyond {path}, which has {num_rows} rows")
    if batch_size < 1 or (drop_last and chosen.size < batch_size):
        raise BetonError(f"batch_size {batch_size} gives no full batch of {chosen.size} rows")
    try:
        from ffcv.loader import Loader, OrderOption
    except ImportError as error:
        raise BetonError(
            "ffcv is not installed; pip install 'coarlib[ffcv]' (it needs OpenCV and a compiler), "
            "or read the file with coarlib.beton.open"
        ) from error
    return Loader(
        os.fspath(path),
        batch_size=batch_size,
        num_workers=num_workers or os.cpu_count() or 1,
        os_cache=os_cache,
        order=OrderOption[order.upper()],
        seed=seed,
        indices=chosen,
        drop_last=drop_last,
        pipelines={
            name: _pipeline(field, resolve_device(device), target_slice, name)
            for name, field in fields.items()
        },
    )


def _check_fields(fields: dict[str, Field]) -> None:
    for name, field in fields.items():
        check_torch_dtype(name, field.dtype)
        if field.dtype == np.float16:
            raise BetonError(
                f"field '{name}' is float16, on which ffcv's Loader hangs; write it as float32 or "
                "read it with coarlib.beton.open"
            )


def _pipeline(field: Field, device: Any, target_slice: slice | None, name: str) -> list[Any]:
    from ffcv.fields.decoders import FloatDecoder, IntDecoder, NDArrayDecoder
    from ffcv.transforms import Squeeze, ToDevice, ToTensor

    if isinstance(field, NDArray):
        operations = [NDArrayDecoder(), ToTensor()]
    else:
        decoder = FloatDecoder() if isinstance(field, Float) else IntDecoder()
        operations = [decoder, ToTensor(), Squeeze(1)]
    if name == "targets" and target_slice is not None:
        operations.append(_slice_operation(target_slice))
    return operations if device.type == "cpu" else [*operations, ToDevice(device)]


def _slice_operation(part: slice) -> Any:
    """Return an ffcv operation that keeps columns ``part`` of [B, T] tensors."""
    from ffcv.pipeline.operation import Operation

    class Slice(Operation):
        def generate_code(self) -> Any:
            return lambda batch, _: batch[:, part]

        def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
            size = len(range(previous_state.shape[0])[part])
            return replace(previous_state, shape=(size, *previous_state.shape[1:])), None

    return Slice()
