"""Writing rows of a history in the background, a buffer at a time.

Training only copies tensors into a buffer and keeps the small values of a row as they are; a thread
turns those into arrays and writes the buffer durably by :class:`coarlib.store.RowWriter`. Training
waits only where the disk is slower than two buffers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.history.parameters import Tensors
from coarlib.store import RowWriter, Store

BUFFER_BYTES = 16 * 2**20
MAX_BUFFERED_ROWS = 64

Encode = Callable[[dict[str, NDArray[Any]], Sequence[Any]], None]
"""(arrays {key: [R, ...]} to fill, the R small values); called in the writing thread."""


class _Buffer:
    """Memory of some rows; ``places`` are the tensors of each of them."""

    def __init__(self, store: Store, capacity: int, bfloat16: bool) -> None:
        self.tensors: Tensors = {}
        for key, array in store.spec.schema.items():
            bits = bfloat16 and array.dtype == np.int16
            own = torch.bfloat16 if bits else torch.from_numpy(np.empty(0, array.dtype)).dtype
            self.tensors[key] = torch.zeros((capacity, *array.shape), dtype=own)
        self.places = [
            {key: values[place] for key, values in self.tensors.items()}
            for place in range(capacity)
        ]
        self.place_arrays = [
            {k: v.numpy() for k, v in place.items() if v.dtype != torch.bfloat16}
            for place in self.places
        ]

    def arrays(self, count: int) -> dict[str, NDArray[Any]]:
        """Return the first rows as they are stored."""
        filled = {key: values[:count] for key, values in self.tensors.items()}
        return {
            key: (v.view(torch.int16) if v.dtype == torch.bfloat16 else v).numpy()
            for key, v in filled.items()
        }


class BufferedRows:
    """Collects rows of one store and writes them in a thread.

    Parameters
    ----------
    store : Store
    encode : callable
        See :data:`Encode`.
    bfloat16 : bool
        Arrays of dtype int16 hold bfloat16 bit patterns.
    """

    def __init__(self, store: Store, encode: Encode, bfloat16: bool = False) -> None:
        self._writer, self._encode = RowWriter(store), encode
        row_bytes = store.spec.row_bytes
        self.capacity = int(min(MAX_BUFFERED_ROWS, max(1, BUFFER_BYTES // row_bytes)))
        self._free: queue.Queue[_Buffer] = queue.Queue()
        for _ in range(2):
            self._free.put(_Buffer(store, self.capacity, bfloat16))
        self._full: queue.Queue[tuple[list[int], list[Any], _Buffer] | None] = queue.Queue()
        self._current = self._free.get()
        self._rows: list[int] = []
        self._items: list[Any] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def place(self) -> Tensors:
        """Tensors of the next row, to fill before :meth:`append`."""
        return self._current.places[len(self._rows)]

    @property
    def place_arrays(self) -> dict[str, NDArray[Any]]:
        """The same memory as arrays, where NumPy knows the dtype."""
        return self._current.place_arrays[len(self._rows)]

    def append(self, row: int, item: Any) -> None:
        """Add row ``row`` with its small values; raises what the writing thread ran into."""
        self._rows.append(row)
        self._items.append(item)
        if len(self._rows) >= self.capacity:
            self.flush()

    def flush(self) -> None:
        """Hand over what there is."""
        if self._failure is not None:
            raise self._failure
        if self._rows:
            self._full.put((self._rows, self._items, self._current))
            self._rows, self._items = [], []
            self._current = self._free.get()

    def drain(self) -> None:
        """Return when everything appended so far is on disk; raises what writing ran into."""
        self.flush()
        self._full.join()
        if self._failure is not None:
            raise self._failure
        self._writer.flush()

    def close(self) -> None:
        """Write everything and end the thread; raises what it ran into."""
        try:
            self.flush()
        finally:
            self._full.put(None)
            self._thread.join()
            self._writer.close()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (work := self._full.get()) is not None:
            rows, items, buffer = work
            if self._failure is None:
                try:
                    self._write(rows, items, buffer)
                except BaseException as error:  # handed to the training thread
                    self._failure = error
            self._free.put(buffer)
            self._full.task_done()

    def _write(self, rows: list[int], items: list[Any], buffer: _Buffer) -> None:
        arrays = buffer.arrays(len(rows))
        self._encode(arrays, items)
        order: Any = np.argsort(rows, kind="stable")
        if (np.diff(rows) > 0).all():
            order = slice(None)  # as nearly always: no copy
        arrays = {key: values[order] for key, values in arrays.items()}
        self._writer.write(np.array(rows, np.int64)[order], arrays)
