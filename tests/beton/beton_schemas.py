"""Schemas that the format must hold, and data to fill them."""

import numpy as np

from coarlib import beton

SCHEMAS = {
    "coar": {
        "mask": beton.NDArray(bool, (336,)),
        "targets": beton.NDArray(np.float32, (97,)),
        "idx": beton.Int(),
    },
    "odd sizes": {
        "a": beton.NDArray(np.uint8, (3,)),
        "b": beton.NDArray(np.float64, (5,)),
        "c": beton.NDArray(np.int16, (7,)),
        "weight": beton.Float(),
    },
    "multi-dimensional": {
        "idx": beton.Int(),
        "image": beton.NDArray(np.uint8, (3, 32, 31)),
        "cube": beton.NDArray(np.int64, (2, 1, 3, 2)),
    },
    "megabyte rows": {
        "long": beton.NDArray(np.float32, (262_145,)),
        "mask": beton.NDArray(bool, (1_000_003,)),
        "idx": beton.Int(),
    },
    "scalars only": {"idx": beton.Int(), "loss": beton.Float()},
    "one array": {"x": beton.NDArray(np.float32, (1,))},
    "sixteen letters": {
        "abcdefghijklmnop": beton.NDArray(np.int32, (11, 13)),
        "score": beton.Float(),
        "mask": beton.NDArray(bool, (2304,)),
    },
}
ROWS = {"megabyte rows": 23, "multi-dimensional": 3000, "one array": 5000}


def random_values(fields, rows, seed=0):
    """Random source arrays of the fields' own dtypes, every value of which differs by row."""
    rng = np.random.default_rng(seed)
    source = {}
    for name, field in fields.items():
        raw = rng.integers(0, 256, (rows, *field.shape, field.dtype.itemsize), np.uint8)
        if field.dtype == bool:
            raw &= 1
        elif field.dtype.kind == "f":
            raw = rng.standard_normal((rows, *field.shape)).astype(field.dtype)[..., None]
        values = raw.view(field.dtype)[..., 0]
        source[name] = values
    return source
