"""Interrupted passes resume; what cannot fit is refused before it starts."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from regression_problems import linear_rows, make_store

from coarlib.devices import free_bytes
from coarlib.errors import RegressionError
from coarlib.regression import Lasso, LeastSquares, Ridge
from coarlib.regression.budget import GIB, choose_form, predict
from coarlib.regression.moments import Moments
from coarlib.regression.moments.checkpoint import load_moments, resumable_moments, save_moments
from coarlib.regression.rows import ArrayRows, open_rows
from coarlib.regression.solvers import Size

CIFAR = Size(45_000, 5_000, 2_304, 10_000)
VIT = Size(4_500, 500, 82_944, 5_000)


class Interrupted(Exception):
    pass


class FailsAfter(ArrayRows):
    """Rows whose reading dies after some blocks, and which count what is read."""

    def prepare(self, blocks):
        object.__setattr__(self, "left", blocks)
        object.__setattr__(self, "rows_read", 0)
        return self

    def read(self, positions):
        if self.left == 0:
            raise Interrupted
        object.__setattr__(self, "left", self.left - 1)
        object.__setattr__(self, "rows_read", self.rows_read + len(positions))
        return super().read(positions)


@pytest.fixture
def data():
    return linear_rows(640, 12, 5, noise=1.0)


def same(a, b):
    assert (a.num_rows, a.num_excluded) == (b.num_rows, b.num_excluded)
    assert np.array_equal(a.pairs, b.pairs) and np.array_equal(a.kept, b.kept)
    assert np.allclose(a.cross, b.with_offset(a.offset).cross, atol=1e-3)
    assert np.allclose(a.output_variance, b.output_variance, rtol=1e-5)


def resume(source, positions, path, lines=None):
    return resumable_moments(
        source,
        positions,
        path,
        block_bytes=1,
        save_every=0.0,
        say=print if lines is None else lines.append,
    )


def test_an_interrupted_pass_goes_on_where_it_was(data, tmp_path):
    data.outputs[3, 2] = np.nan
    every, path = np.arange(640), tmp_path / "partial" / "train.npz"
    broken = FailsAfter(data.masks, data.outputs).prepare(6)
    with pytest.raises(Interrupted):
        resume(broken, every, path)
    assert path.is_file()
    again = FailsAfter(data.masks, data.outputs).prepare(100)
    whole = resume(again, every, path)
    assert again.rows_read < 640
    same(whole, Moments.from_arrays(data.masks, data.outputs))
    assert whole.num_excluded == 1


def test_a_store_that_grew_only_adds_its_new_rows(data, tmp_path):
    completed = np.arange(640) % 3 != 0
    completed[300:] = False
    store = make_store(tmp_path / "s", data.masks, data.outputs, completed)
    path = tmp_path / "partial.npz"
    source = open_rows(store)
    part = Moments.from_rows(source)
    save_moments(path, part, source.row_ids, source.identity(source.row_ids))
    make_store(tmp_path / "s", data.masks, data.outputs, np.arange(640) < 500)
    grown = open_rows(store)
    lines = []
    whole = resume(grown, np.arange(500), path, lines)
    same(whole, Moments.from_arrays(data.masks[:500], data.outputs[:500]))
    assert "200 of 500 rows are in the sum already" in lines[0]
    fewer = resume(grown, np.arange(250), path, lines)
    same(fewer, Moments.from_arrays(data.masks[:250], data.outputs[:250]))


@pytest.mark.parametrize("how", ["flip", "truncate", "other rows", "other shape"])
def test_a_damaged_or_foreign_sum_is_not_used(data, tmp_path, how):
    source, path = ArrayRows(data.masks, data.outputs), tmp_path / "partial.npz"
    wrong = Moments.from_arrays(data.masks[:100], data.outputs[:100] + 100)
    done = np.arange(100)
    save_moments(path, wrong, done, "other" if how == "other rows" else source.identity(done))
    if how == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    if how == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    if how == "other shape":
        source = ArrayRows(data.masks, data.outputs[:, :3])
    result = resume(source, np.arange(640), path)
    same(result, Moments.from_arrays(source.masks, source.outputs))


def test_moments_survive_saving(data, tmp_path):
    for with_pairs in (True, False):
        moments = Moments.from_arrays(data.masks, data.outputs, with_pairs=with_pairs)
        save_moments(tmp_path / "m.npz", moments, np.arange(640), "x")
        again, done, identity = load_moments(tmp_path / "m.npz")
        assert np.array_equal(again.cross, moments.cross) and identity == "x" and len(done) == 640
        assert (again.pairs is None) == (not with_pairs)
    assert load_moments(tmp_path / "absent.npz") is None


def test_cifar_size_is_predicted_to_fit_and_vit_takes_the_dual_form():
    assert predict(LeastSquares(), CIFAR).peak_bytes < 3e9
    assert choose_form(LeastSquares(), CIFAR, 16 * GIB).form == "primal"
    assert choose_form(Ridge(), VIT, 32 * GIB).form == "dual"
    assert free_bytes() > 2**28


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(RegressionError, match=r"needs about .* GiB .*conjugate_gradients"):
        choose_form(Ridge(), VIT, 1 * GIB)
    with pytest.raises(RegressionError, match="lasso"):
        choose_form(Lasso(), VIT, 32 * GIB)
    with pytest.raises(RegressionError, match="no block of targets would fit"):
        choose_form(Lasso(), VIT, 32 * GIB)


@pytest.mark.parametrize("solver", [LeastSquares(), Lasso()])
def test_the_blocks_of_targets_that_are_named_do_fit(solver):
    wide = Size(45_000, 5_000, 2304, 1_000_000)
    with pytest.raises(RegressionError) as refusal:
        choose_form(solver, wide, 8 * GIB)
    count, targets = map(int, re.findall(r"(\d+) blocks of (\d+) targets", str(refusal.value))[0])
    assert count * targets >= wide.targets
    assert choose_form(solver, replace(wide, targets=targets), 8 * GIB).form == "primal"
    with pytest.raises(RegressionError):
        choose_form(solver, replace(wide, targets=2 * targets), 8 * GIB)


def test_a_gpu_with_less_memory_than_the_machine_is_the_limit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB // 2, GIB))
    with pytest.raises(RegressionError, match="may be used on cuda:0"):
        choose_form(LeastSquares(), CIFAR, device="cuda:0")
