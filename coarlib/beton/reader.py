"""Reading a ``.beton`` over a memory map."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np

from coarlib.beton.arrays import Arrays, empty_rows, map_file
from coarlib.beton.buffers import Buffers
from coarlib.beton.fields import Field
from coarlib.beton.layout import TABLE_ENTRY
from coarlib.beton.validate import check_pointers, read_layout
from coarlib.errors import BetonError, nearest

if TYPE_CHECKING:
    import torch

__all__ = ["Beton", "open"]

Order = Literal["sequential", "random"]
Rows = slice | Sequence[int] | np.ndarray


def open(path: str | os.PathLike[str]) -> Beton:
    """Open a ``.beton`` for reading; see :class:`Beton`.

    Raises
    ------
    BetonError
        If the file is missing, truncated, damaged, foreign, or holds a field that is no NDArray,
        Int or Float. Every pointer is checked before this returns.
    """
    return Beton(path)


class Beton:
    """A ``.beton`` file, open for reading.

    Attributes
    ----------
    path : Path
    fields : dict of name to NDArray, Int or Float
        In file order.
    layout : Layout
        Page size and other geometry.

    Use as a context manager or call :meth:`close`; arrays handed out stay valid.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open = True
        data = map_file(self.path)
        try:
            layout, table_start = read_layout(data)
            end = layout.metadata_end
            records = data[layout.metadata_start : end].view(layout.record_dtype)
            items = data[layout.metadata_start : end].view("<u8").reshape(len(records), -1)
            columns = [k for k, name in enumerate(layout.fields) if name in layout.array_sizes]
            offsets = items[:, columns]
            check_pointers(offsets, data[table_start:].view(TABLE_ENTRY), layout, table_start)
        except BetonError as error:
            raise BetonError(f"{self.path} is not a readable .beton: {error}") from error
        self.fields: dict[str, Field] = dict(layout.fields)
        self.layout, self._records = layout, records
        # A copy of the offsets: what was checked stays what is used.
        self._arrays = Arrays(data, layout, offsets.astype(np.int64))

    def __len__(self) -> int:
        return self.layout.num_rows

    def __reduce__(self) -> tuple[type[Beton], tuple[Path]]:
        return Beton, (self.path,)  # another process opens and checks the file itself

    def __enter__(self) -> Beton:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; the map itself goes with the last view of it."""
        self._open = False
        del self._records, self._arrays

    def rows(self, indices: Rows, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Copy rows out of the file.

        Parameters
        ----------
        indices : slice, int [B] or bool [len(self)]
            Rows in the order wanted; may repeat, must lie in 0..len-1.
        names : sequence of str, optional
            Which fields; all by default.

        Returns
        -------
        dict of name to array [B, *shape]
            int64 [B] for Int, float64 [B] for Float.

        Raises
        ------
        BetonError
            If a row or field does not exist, or the file was closed.
        """
        chosen = self._indices(indices)
        out = {name: empty_rows(self.fields[name], len(chosen)) for name in self._names(names)}
        self.fill(out, chosen)
        return out

    def fill(self, out: Mapping[str, np.ndarray], indices: Rows) -> None:
        """Copy rows into arrays that are there already.

        Parameters
        ----------
        out : mapping of field name to array [B, *shape]
            C-contiguous, of the field's dtype.
        indices : slice, int [B] or bool [len(self)]

        Raises
        ------
        BetonError
            As :meth:`rows`, and if an array does not fit its field.
        """
        rows = self._indices(indices)
        for name in self._names(list(out)):
            field, array = self.fields[name], out[name]
            if (array.shape, array.dtype) != ((len(rows), *field.shape), field.dtype) or not (
                array.flags.c_contiguous
            ):
                raise BetonError(
                    f"field '{name}' needs a contiguous array of {field.dtype} "
                    f"{(len(rows), *field.shape)}, not {array.dtype} {array.shape}"
                )
            if name in self._arrays:
                self._arrays.copy(name, rows, array)
            else:
                np.take(self._records[name], rows, out=array)

    def views(
        self, names: Sequence[str] | None = None
    ) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Iterate over the file without copying: runs of rows that lie one behind the other.

        A run is a page in files written here or by one ffcv worker, and a chunk of samples in
        files of several workers.

        Yields
        ------
        (slice, dict of name to read-only array [B, *shape])
            Strided views of the memory map; they may be unaligned in memory.
        """
        self._indices(slice(0))  # refuses a closed file
        chosen, arrays, records = self._names(names), self._arrays, self._records
        return (
            (
                slice(first, last),
                {
                    name: arrays.view(name, first, last)
                    if name in arrays
                    else records[name][first:last]
                    for name in chosen
                },
            )
            for first, last in itertools.pairwise(arrays.run_starts.tolist())
        )

    def batches(
        self,
        batch_size: int,
        order: Order = "sequential",
        seed: int = 0,
        names: Sequence[str] | None = None,
        *,
        indices: Rows | None = None,
        drop_last: bool = False,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Iterate over rows in batches.

        Parameters
        ----------
        batch_size : int
        order : "sequential" or "random"
            Random is a permutation by Philox keyed with ``seed``: the same for the same seed.
        seed : int
            Use another one each epoch.
        names : sequence of str, optional
            Which fields; all by default.
        indices : slice, int [K] or bool [len(self)], optional
            Iterate over these rows only.
        drop_last : bool
            Leave out a last batch that is not full.

        Yields
        ------
        dict of name to array [B, *shape]
            As :meth:`rows`.

        Raises
        ------
        BetonError
            As :meth:`rows`, and for an unknown order or a batch size below 1.
        """
        batches = self._batches(batch_size, order, seed, indices, drop_last)
        return self._filled(self._names(names), batches)

    def _filled(
        self, names: list[str], batches: list[np.ndarray]
    ) -> Iterator[dict[str, np.ndarray]]:
        buffers = {name: Buffers(self.fields[name]) for name in names}
        for rows in batches:
            out = {name: buffers[name].rows(len(rows)) for name in names}
            self.fill(out, rows)
            yield out
            del out  # or its memory could not be used for the next batch

    def tensors(
        self,
        batch_size: int,
        device: str | torch.device = "cpu",
        order: Order = "sequential",
        seed: int = 0,
        *,
        names: Sequence[str] | None = None,
        indices: Rows | None = None,
        drop_last: bool = False,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Iterate over rows in batches of torch tensors on a device.

        The next batches are gathered, and for a CUDA device copied from pinned memory, while one
        is used. Parameters as for :meth:`batches`.

        Raises
        ------
        BetonError
            As :meth:`batches`, and for a dtype that torch does not have.
        ArgumentError
            If there is no such device.
        """
        from coarlib.beton.tensors import tensor_batches
        from coarlib.devices import resolve_device

        batches = self._batches(batch_size, order, seed, indices, drop_last)
        return tensor_batches(self, self._names(names), batches, resolve_device(str(device)))

    def _batches(
        self, batch_size: int, order: str, seed: int, indices: Rows | None, drop_last: bool
    ) -> list[np.ndarray]:
        """Return the rows of each batch, int64 [B]."""
        if batch_size < 1:
            raise BetonError(f"batch_size must be at least 1, not {batch_size}")
        if order not in ("sequential", "random"):
            raise BetonError(f"order must be 'sequential' or 'random', not {order!r}")
        if seed < 0:
            raise BetonError(f"seed must be at least 0, not {seed}")
        rows = self._indices(slice(None) if indices is None else indices)
        if order == "random":
            rows = np.random.Generator(np.random.Philox(key=seed)).permutation(rows)
        end = len(rows) - batch_size + 1 if drop_last else len(rows)
        return [rows[start : start + batch_size] for start in range(0, end, batch_size)]

    def _names(self, names: Sequence[str] | None) -> list[str]:
        for name in names or ():
            if name not in self.fields:
                raise BetonError(
                    f"{self.path} has no field '{name}' (it has {', '.join(self.fields)})"
                    f"{nearest(name, self.fields)}"
                )
        return list(self.fields if names is None else names)

    def _indices(self, indices: Rows) -> np.ndarray:
        """Return row numbers int64 [B], checked."""
        if not self._open:
            raise BetonError(f"{self.path} was closed")
        if isinstance(indices, slice):
            return np.arange(len(self))[indices]
        chosen = np.asarray(indices)
        if chosen.dtype == np.bool_ and chosen.shape == (len(self),):
            return np.flatnonzero(chosen)
        if chosen.size == 0:
            return np.empty(0, np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise BetonError(f"rows must be a slice or a list of integers, not {indices!r}")
        if chosen.min() < 0 or chosen.max() >= len(self):
            wrong = chosen.min() if chosen.min() < 0 else chosen.max()
            raise BetonError(f"row {wrong} is outside {self.path}, which has {len(self)} rows")
        return chosen.astype(np.int64, copy=False)
