"""Where explanations go: memory, or a store of rows that is keyed by all they depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import HistoryError
from coarlib.files import whole_file
from coarlib.loading import load_json
from coarlib.store import RowWriter, Store, initialize
from coarlib.store.spec import ArraySpec, StoreSpec
from coarlib.store.verify import refuse_torn

ABOUT_FILE = "explanation.json"


class Results:
    """Rows of an explanation.

    Parameters
    ----------
    schema : dict of name to ArraySpec
    rows : int64
        Those that are wanted, ascending.
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
        initialize(path, StoreSpec(about["num_rows"], schema))
        store = Store.open(path)
        if not file.exists():
            if store.completed().any():
                raise HistoryError(f"{path} holds rows but lost its {ABOUT_FILE}; remove it")
            with whole_file(file, "w", replace=False) as stream:
                json.dump(about, stream, indent=1)
                stream.write("\n")
        _refuse_other(path, read_about(path), about)
        return cls(schema, rows, about, store)

    @property
    def store(self) -> Store | None:
        """Where rows go, for claims; None where they stay in memory."""
        return self._store

    def missing(self) -> NDArray[np.int64]:
        """Return the wanted rows that are not there yet."""
        if self._store is None:
            return self._rows
        return self._rows[~self._store.completed()[self._rows]]

    def write(self, rows: NDArray[np.int64], found: dict[str, torch.Tensor]) -> None:
        """Keep some rows."""
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

    def arrays(self) -> dict[str, NDArray[Any]] | None:
        """Return all arrays; None while a store lacks rows, TornRowError if one is damaged."""
        if self._store is None:
            return self._arrays
        if not self._store.completed().all():
            return None
        refuse_torn(self._store, self._store.completed_rows())
        return {key: self._store.array(key) for key in self._schema}


def _refuse_other(path: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare what an explanation was asked with what is asked now, key by key."""
    before, after = ({**c, **c.get("depends_on", {})} for c in (there, now))
    for key, value in after.items():
        if key != "depends_on" and before.get(key) != value:
            raise HistoryError(
                f"{path} holds another explanation ({key} is {before.get(key)!r:.80} there and "
                f"{value!r:.80} now); choose another path"
            )


def read_about(path: Path) -> dict[str, Any]:
    """Read what an explanation was asked; HistoryError if there is none."""
    about = load_json(path / ABOUT_FILE, HistoryError)
    if not isinstance(about, dict):
        raise HistoryError(f"{path} holds no explanation: {ABOUT_FILE} is no object")
    return about
