"""Rows of stores, .beton files and arrays, as one kind of source."""

from coarlib.regression.rows.some_targets import SomeTargets
from coarlib.regression.rows.sources import (
    ArrayRows,
    BetonRows,
    RowSource,
    StoreRows,
    open_rows,
    verified_note,
)

__all__ = [
    "ArrayRows",
    "BetonRows",
    "RowSource",
    "SomeTargets",
    "StoreRows",
    "open_rows",
    "verified_note",
]
