"""Writing rows of a history in the background, a buffer at a time.

Every row of a buffer is written durably by :class:`coarlib.store.RowWriter`; training waits only
where the disk is slower than two buffers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.store import RowWriter, Store

BUFFER_BYTES = 16 * 2**20
MAX_BUFFERED_ROWS = 256


class BufferedRows:
    """Collects rows of one store and writes them in a thread.

    Parameters
    ----------
    store : Store
    bfloat16 : bool
        Arrays of dtype int16 hold bfloat16 bit patterns.
    """

    def __init__(self, store: Store, bfloat16: bool = False) -> None:
        self._writer = RowWriter(store)
        spec = store.spec
        self.capacity = int(min(MAX_BUFFERED_ROWS, max(1, BUFFER_BYTES // spec.row_bytes)))
        self._free: queue.Queue[dict[str, torch.Tensor]] = queue.Queue()
        for _ in range(2):
            self._free.put(
                {
                    key: torch.zeros(
                        (self.capacity, *array.shape),
                        dtype=torch.bfloat16
                        if bfloat16 and array.dtype == np.int16
                        else torch.from_numpy(np.empty(0, array.dtype)).dtype,
                    )
                    for key, array in spec.schema.items()
                }
            )
        self._full: queue.Queue[tuple[list[int], dict[str, torch.Tensor]] | None] = queue.Queue()
        self._take_buffer()
        self._rows: list[int] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def slot(self, row: int) -> Mapping[str, torch.Tensor]:
        """Return the tensors of row ``row`` to fill; call :meth:`commit` when they are."""
        place = len(self._rows)
        self._rows.append(row)
        return {key: values[place] for key, values in self._current.items()}

    def arrays(self, row: int) -> Mapping[str, NDArray[Any]]:
        """Like :meth:`slot`, as numpy arrays (faster to fill with small values)."""
        place = len(self._rows)
        self._rows.append(row)
        return {key: values[place : place + 1] for key, values in self._current_arrays.items()}

    def commit(self) -> None:
        """Hand the buffer over if it is full; raises what the writing thread ran into."""
        if len(self._rows) >= self.capacity:
            self.flush()

    def _take_buffer(self) -> None:
        self._current = self._free.get()
        plain = {k: v for k, v in self._current.items() if v.dtype != torch.bfloat16}
        self._current_arrays = {key: values.numpy() for key, values in plain.items()}

    def flush(self) -> None:
        """Hand over what there is."""
        if self._failure is not None:
            raise self._failure
        if self._rows:
            self._full.put((self._rows, self._current))
            self._rows = []
            self._take_buffer()

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
        while (item := self._full.get()) is not None:
            rows, buffer = item
            if self._failure is None:
                try:
                    self._write(rows, buffer)
                except BaseException as error:  # handed to the training thread
                    self._failure = error
            self._free.put(buffer)

    def _write(self, rows: list[int], buffer: dict[str, torch.Tensor]) -> None:
        order: Any = np.argsort(rows, kind="stable")
        if (np.diff(rows) > 0).all():
            order = slice(None)  # as nearly always: no copy
        arrays = {}
        for key, values in buffer.items():
            filled = values[: len(rows)]
            stored = filled.view(torch.int16) if filled.dtype == torch.bfloat16 else filled
            arrays[key] = stored.numpy()[order]
        self._writer.write(np.array(rows, np.int64)[order], arrays)
