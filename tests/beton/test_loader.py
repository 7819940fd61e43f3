"""What ffcv_loader refuses before ffcv sees the file."""

import sys

import numpy as np
import pytest

from coarlib import beton
from coarlib.errors import BetonError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "shuffled"}, "order must be one of"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 301}, "no full batch of 300 rows"),
        ({"indices": [300]}, "has 300 rows"),
        ({"indices": [0, 1]}, "no full batch of 2 rows"),
    ],
)
def test_bad_arguments_are_named(coar_file, arguments, message):
    with pytest.raises(BetonError, match=message):
        beton.ffcv_loader(coar_file[0], **{"batch_size": 32, **arguments})


def test_a_damaged_file_and_float16_never_reach_ffcv(coar_file, tmp_path):
    fields = {"targets": beton.NDArray(np.float16, (3,))}
    path = beton.write(
        tmp_path / "half.beton", fields, {"targets": np.ones((9, 3), np.float16)}, quiet=True
    )
    with pytest.raises(BetonError, match="float16, on which ffcv's Loader hangs"):
        beton.ffcv_loader(path, 3)
    with coar_file[0].open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(BetonError, match="truncated"):
        beton.ffcv_loader(coar_file[0], 3)


def test_without_ffcv_the_error_says_what_to_do(coar_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(BetonError, match="ffcv is not installed"):
        beton.ffcv_loader(coar_file[0], 32)
