"""Reading a ``.beton`` over a memory map."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from coarlib.beton.fields import Field
from coarlib.beton.layout import TABLE_ENTRY
from coarlib.beton.validate import check_pointers, read_layout
from coarlib.commandline import nearest
from coarlib.errors import BetonError

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
        self._data: np.ndarray | None = _map(self.path)
        try:
            layout, table_start = read_layout(self._data)
            end = layout.metadata_end
            records = self._data[layout.metadata_start : end].view(layout.record_dtype)
            items = self._data[layout.metadata_start : end].view("<u8").reshape(len(records), -1)
            columns = [k for k, name in enumerate(layout.fields) if name in layout.array_sizes]
            offsets = items[:, columns]
            check_pointers(offsets, self._data[table_start:].view(TABLE_ENTRY), layout, table_start)
        except BetonError as error:
            raise BetonError(f"{self.path} is not a readable .beton: {error}") from error
        self.fields: dict[str, Field] = dict(layout.fields)
        self.layout, self._records = layout, records
        self._offsets = offsets.astype(np.int64)
        self._columns = {name: k for k, name in enumerate(layout.array_sizes)}
        steps = np.diff(self._offsets, axis=0) != layout.row_bytes
        breaks = np.flatnonzero(steps.any(axis=1)) + 1 if self._columns else np.empty(0, np.int64)
        self._run_starts = np.concatenate([[0], breaks, [layout.num_rows]])

    def __len__(self) -> int:
        return self.layout.num_rows

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
        self._data = None
        self._records = self._records[:0].copy()

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
        return {name: self._take(name, chosen) for name in self._names(names)}

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
        chosen = self._names(names)
        for first, last in zip(
            self._run_starts[:-1].tolist(), self._run_starts[1:].tolist(), strict=True
        ):
            yield slice(first, last), {name: self._view(name, first, last) for name in chosen}

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
        if batch_size < 1:
            raise BetonError(f"batch_size must be at least 1, not {batch_size}")
        if order not in ("sequential", "random"):
            raise BetonError(f"order must be 'sequential' or 'random', not {order!r}")
        chosen = self._indices(slice(None) if indices is None else indices)
        if order == "random":
            chosen = np.random.Generator(np.random.Philox(key=seed)).permutation(chosen)
        last = len(chosen) - batch_size + 1 if drop_last else len(chosen)
        names = self._names(names)
        return (self.rows(chosen[k : k + batch_size], names) for k in range(0, last, batch_size))

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
        if self._data is None:
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

    def _take(self, name: str, rows: np.ndarray) -> np.ndarray:
        field = self.fields[name]
        if name not in self._columns:
            return self._records[name][rows]
        out = np.empty((len(rows), *field.shape), field.dtype)
        if not len(rows):
            return out
        size = self.layout.array_sizes[name]
        target = out.reshape(len(rows), -1).view(np.uint8)
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first == len(rows) and bool(np.all(np.diff(rows) == 1)):
            self._copy_runs(name, first, last, target)
        else:
            data = self._bytes()
            for place, offset in enumerate(self._offsets[rows, self._columns[name]].tolist()):
                target[place] = data[offset : offset + size]
        return out

    def _copy_runs(self, name: str, first: int, last: int, target: np.ndarray) -> None:
        """Copy rows first..last-1 into uint8 [rows, nbytes], a run at a time."""
        run = int(np.searchsorted(self._run_starts, first, side="right")) - 1
        start = first
        while start < last:
            run += 1
            stop = min(int(self._run_starts[run]), last)
            target[start - first : stop - first] = self._raw_view(name, start, stop)
            start = stop

    def _raw_view(self, name: str, first: int, last: int) -> np.ndarray:
        """View rows of one run as uint8 [rows, nbytes]."""
        return np.ndarray(
            (last - first, self.layout.array_sizes[name]),
            np.uint8,
            self._bytes(),
            int(self._offsets[first, self._columns[name]]),
            (self.layout.row_bytes, 1),
        )

    def _view(self, name: str, first: int, last: int) -> np.ndarray:
        if name not in self._columns:
            return self._records[name][first:last]
        field = self.fields[name]
        raw = self._raw_view(name, first, last)
        inner = np.empty(field.shape, field.dtype).strides
        return np.ndarray(
            (last - first, *field.shape),
            field.dtype,
            self._bytes(),
            int(self._offsets[first, self._columns[name]]),
            (raw.strides[0], *inner),
        )

    def _bytes(self) -> np.ndarray:
        if self._data is None:
            raise BetonError(f"{self.path} was closed")
        return self._data


def _map(path: Path) -> np.ndarray:
    """Map a file read-only as uint8 [size]."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BetonError(f"{path} is not a file")
        if status.st_size == 0:
            raise BetonError(f"{path} is not a readable .beton: it is empty")
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BetonError(f"cannot open {path}: {reason}") from error
