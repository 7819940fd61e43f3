"""The directory of memory-mapped arrays: creating, reading, and durable row writes.

``layout`` says what lies where; ``create`` initialises; ``reader`` opens; ``writer`` commits rows;
``checksum`` digests them. Nothing here needs torch.
"""

from coarlib.store.create import initialize
from coarlib.store.design import settle_design
from coarlib.store.reader import Store, StoreLike, take_rows
from coarlib.store.writer import RowWriter

__all__ = ["RowWriter", "Store", "StoreLike", "initialize", "settle_design", "take_rows"]
