"""Conversions: exact where they can be, refused where they would lose a value."""

import numpy as np
import pytest

from coarlib.beton.convert import _widen_half, check_castable, copy_rows
from coarlib.errors import BetonError

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_every_half_is_widened_exactly():
    for values in (HALVES, HALVES[HALVES == 0], *np.split(HALVES, 64)):
        got = np.empty(values.shape, np.float32)
        _widen_half(got, values)
        assert got.tobytes() == values.astype(np.float32).tobytes()


def test_rare_subnormals_among_ordinary_halves_are_widened_exactly():
    values = np.ones(10_000, np.float16)
    values[::997] = np.float16(6e-8)
    values[1::997] = np.float16(-3e-6)
    got = np.empty(values.shape, np.float32)
    _widen_half(got, values)
    assert got.tobytes() == values.astype(np.float32).tobytes()


def test_processors_that_flush_subnormals_do_not_change_a_value():
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        test_rare_subnormals_among_ordinary_halves_are_widened_exactly()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [np.int32, np.float16, np.float32])
def test_narrowing_keeps_values_that_fit(dtype):
    wide = np.arange(-100, 100).astype(np.int64 if np.dtype(dtype).kind == "i" else np.float64)
    got = np.empty(wide.shape, dtype)
    copy_rows("x", got, wide)
    assert (got == wide).all()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([1.0, 70000.0]), np.float16),
        (np.array([1e39]), np.float32),
        (np.array([1 << 31]), np.int32),
        (np.array([-129]), np.int8),
        (np.array(["abcd"], "S4"), "S2"),
        (np.array([0, 1, 2]), bool),
        (np.array([0.5]), bool),
        (np.array([np.nan]), bool),
    ],
)
def test_values_that_do_not_fit_are_refused(values, dtype):
    with pytest.raises(BetonError, match="does not fit field 'x'"):
        copy_rows("x", np.empty(values.shape, dtype), values)


def test_nan_and_inf_pass_through_narrowing():
    got = np.empty(3, np.float16)
    copy_rows("x", got, np.array([np.nan, np.inf, -np.inf]))
    assert np.isnan(got[0]) and np.isposinf(got[1]) and np.isneginf(got[2])


@pytest.mark.parametrize(
    ("source", "target"), [("f4", "i4"), ("c8", "f4"), ("M8[s]", "?"), ("S1", "i4")]
)
def test_changes_of_kind_are_refused(source, target):
    with pytest.raises(BetonError, match="source has dtype"):
        check_castable("x", np.dtype(source), np.dtype(target))
