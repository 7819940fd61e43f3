"""Where finished test points go: memory, or a store that is keyed by all they depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import HistoryError
from coarlib.files import whole_file
from coarlib.path_kernel.decomposition import ABOUT_FILE, Decomposition, read_about
from coarlib.store import RowWriter, Store, initialize
from coarlib.store.spec import ArraySpec, StoreSpec


class Results:
    """Rows of an explanation.

    Parameters
    ----------
    schema : dict of name to ArraySpec
    rows : int64
        The test points that are wanted.
    about : dict
        What was asked, in JSON's types.
    store : Store, optional
        Where rows go; memory otherwise.
    """

    def __init__(
        self,
        schema: dict[str, ArraySpec],
        rows: NDArray[np.int64],
        about: dict[str, Any],
        store: Store | None,
    ) -> None:
        self._about, self._store, self._schema, self._rows = about, store, schema, rows
        self._arrays: dict[str, NDArray[Any]] = {}
        if store is None:
            self._arrays = {k: np.zeros((len(rows), *a.shape), a.dtype) for k, a in schema.items()}

    @classmethod
    def make(
        cls,
        out: str | Path | None,
        schema: dict[str, ArraySpec],
        rows: NDArray[np.int64],
        about: dict[str, Any],
    ) -> Results:
        """Open or create the store ``out``.

        Raises
        ------
        HistoryError
            If it holds an explanation of anything else.
        """
        if out is None:
            return cls(schema, rows, about, None)
        path, about = Path(out), json.loads(json.dumps(about))
        file = path / ABOUT_FILE
        if file.exists():
            _refuse_other(path, read_about(path), about)
        initialize(path, StoreSpec(about["num_test"], schema))
        store = Store.open(path)
        if not file.exists():
            if store.completed().any():
                raise HistoryError(f"{path} holds rows but lost its {ABOUT_FILE}; remove it")
            with whole_file(file, "w", replace=False) as stream:
                json.dump(about, stream, indent=1)
                stream.write("\n")
        _refuse_other(path, read_about(path), about)
        return cls(schema, rows, about, store)

    def missing(self) -> NDArray[np.int64]:
        """Return the wanted test points that are not there yet."""
        if self._store is None:
            return self._rows
        return self._rows[~self._store.completed()[self._rows]]

    def write(self, rows: NDArray[np.int64], found: dict[str, torch.Tensor]) -> None:
        """Keep some test points."""
        arrays = {
            key: np.ascontiguousarray(found[key].detach().cpu().numpy().astype(array.dtype))
            for key, array in self._schema.items()
        }
        if self._store is None:
            for key, values in arrays.items():
                self._arrays[key][np.searchsorted(self._rows, rows)] = values
            return
        with RowWriter(self._store) as writer:
            writer.write(rows, arrays)

    def get(self) -> Decomposition | None:
        """Return what there is; None while a store lacks rows."""
        if self._store is None:
            return Decomposition(self._arrays, self._about)
        if not self._store.completed().all():
            return None
        return Decomposition.open(self._store.path)


def _refuse_other(path: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare what an explanation was asked with what is asked now, key by key."""
    before, after = ({**c, **c.get("depends_on", {})} for c in (there, now))
    for key, value in after.items():
        if key != "depends_on" and before.get(key) != value:
            raise HistoryError(
                f"{path} holds another explanation ({key} is {before.get(key)!r:.80} there and "
                f"{value!r:.80} now); choose another path"
            )
