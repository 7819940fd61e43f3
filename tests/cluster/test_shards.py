"""Moments by row shards and fits by target shards are those of one job."""

import numpy as np
import pytest
import torch

from coarlib.cluster.shards import add_shards, join_targets, sum_shard, target_shard, write_shard
from coarlib.errors import ClusterError
from coarlib.filling.worker import fill
from coarlib.regression import ArrayRows, Attributions, Moments, fit
from coarlib.store import Store, initialize
from coarlib.store.spec import parse_spec

SUMS = 1e-12  # relative, of float64 sums
SAVED = 1e-6  # results are saved as float32
FEATURES, TARGETS, ROWS = 40, 9, 3000
CUTS = [0, 17, 400, 401, 1000, 1800, 2950, ROWS]  # seven uneven shards


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(3)
    masks = rng.random((ROWS, FEATURES)) < 0.9
    outputs = masks @ rng.normal(size=(FEATURES, TARGETS)) + rng.normal(size=(ROWS, TARGETS)) + 30
    outputs = outputs.astype(np.float16)
    outputs[[5, 1700], 2] = np.nan
    return ArrayRows(masks, outputs)


@pytest.fixture
def shards(source, tmp_path):
    paths = []
    for index in range(7):
        paths.append(tmp_path / f"{index}.npz")
        assert write_shard(source, np.arange(CUTS[index], CUTS[index + 1]), paths[-1])
    return paths


def about_zero(moments):
    return moments.with_offset(np.zeros(moments.num_targets))


@pytest.mark.parametrize("seed", range(4))
def test_seven_uneven_shards_in_any_order_equal_one_pass(source, shards, seed):
    order = np.random.default_rng(seed).permutation(7)
    found = add_shards(source, np.arange(ROWS), [shards[i] for i in order])
    whole = Moments.from_rows(source, dtype=torch.float64)
    assert (found.num_rows, found.num_excluded) == (whole.num_rows, whole.num_excluded) == (2998, 2)
    assert (found.kept == whole.kept).all() and (found.pairs == whole.pairs).all()
    first = add_shards(source, np.arange(ROWS), shards)
    for name in ("cross", "total", "square"):
        one, other = getattr(about_zero(found), name), getattr(about_zero(whole), name)
        np.testing.assert_allclose(one, other, rtol=SUMS)
        assert (getattr(first, name) == getattr(found, name)).all()  # the order does not show


def test_the_sums_are_those_of_exact_arithmetic(source):
    """Outputs are float16, so float64 sums of them are exact: the oracle."""
    keep = np.isfinite(source.outputs.astype(np.float64)).all(1)
    masks, outputs = source.masks[keep].astype(np.float64), source.outputs[keep].astype(np.float64)
    found = about_zero(sum_shard(source, np.arange(ROWS)))
    np.testing.assert_allclose(found.cross, masks.T @ outputs, rtol=SUMS)
    np.testing.assert_allclose(found.total, outputs.sum(0), rtol=SUMS)
    np.testing.assert_allclose(found.square, (outputs**2).sum(0), rtol=SUMS)
    assert (found.pairs == masks.T @ masks).all()


def test_a_fit_from_shards_is_the_fit(source, shards):
    found = fit(add_shards(source, np.arange(ROWS), shards), "least_squares")
    whole = fit(Moments.from_rows(source), "least_squares")
    np.testing.assert_allclose(found.weight, whole.weight, atol=1e-5)


def test_a_shard_is_summed_once_and_again_only_when_rows_change(source, shards):
    before = shards[0].stat().st_mtime_ns
    assert not write_shard(source, np.arange(CUTS[1]), shards[0])
    assert shards[0].stat().st_mtime_ns == before
    assert write_shard(source, np.arange(CUTS[1] - 1), shards[0])


def test_shards_that_do_not_fit_are_refused(source, shards):
    everything = np.arange(ROWS)
    with pytest.raises(ClusterError, match="50 are missing, 0 doubled"):
        add_shards(source, everything, shards[:-1])
    with pytest.raises(ClusterError, match="0 are missing, 17 doubled"):
        add_shards(source, everything, [*shards, shards[0]])
    shards[3].write_bytes(shards[3].read_bytes()[:-40])
    with pytest.raises(ClusterError, match="missing or damaged"):
        add_shards(source, everything, shards)


@pytest.mark.parametrize(("solver", "options"), [("least_squares", {}), ("ridge", {"lam": 0.01})])
def test_three_target_shards_equal_the_whole(source, tmp_path, solver, options):
    moments = Moments.from_rows(source)
    whole = fit(moments, solver, **options)
    parts = []
    for index in range(3):
        part = fit(moments.targets(slice(*target_shard(TARGETS, index, 3))), solver, **options)
        part.save(tmp_path / str(index))
        parts.append(Attributions.load(tmp_path / str(index)))
    joined = join_targets(parts)
    for name in ("weight", "bias", "lam", "standard_error"):
        np.testing.assert_allclose(
            getattr(joined, name), getattr(whole, name), rtol=SAVED, atol=SAVED
        )
    joined.save(tmp_path / "joined")
    assert Attributions.load(tmp_path / "joined").num_targets == TARGETS


def test_target_shards_cover_all_targets_once():
    for count in (1, 2, 5, 9):
        bounds = [target_shard(9, i, count) for i in range(count)]
        assert [t for a, b in bounds for t in range(a, b)] == list(range(9))
    for index, count in ((3, 3), (-1, 3), (0, 10)):
        with pytest.raises(ClusterError, match="there is no shard"):
            target_shard(9, index, count)


def test_parts_of_different_rows_are_not_joined(source):
    one = fit(Moments.from_rows(source, np.arange(1000)), "ridge")
    other = fit(Moments.from_rows(source, np.arange(1000, 2000)), "ridge")
    with pytest.raises(ClusterError, match="not fitted to the same rows"):
        join_targets([one, other])


@pytest.fixture
def filled(tmp_path):
    """A full store of the linear task."""
    import json

    from zoo.linear_task import LinearTask

    spec = {
        "num_models": 200,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [12]},
            "margins": {"dtype": "float32", "shape": [3]},
        },
        "design": {"kind": "bernoulli", "keep_prob": 0.7, "seed": 2},
    }
    initialize(tmp_path / "store", parse_spec(json.dumps(spec)))
    fill(Store.open(tmp_path / "store"), LinearTask(), np.arange(200), torch.device("cpu"))
    return tmp_path / "store"


def test_the_commands_sum_join_and_solve(filled, tmp_path, capsys):
    from estimate import fit_targets, moments, run_regression

    def arguments(out):
        return (
            f"--data.data_path {filled} --data.num_train 150 --data.num_val 50 --cfg.k 1 "
            f"--cfg.manual_max_lambda 0 --cfg.device cpu --cfg.out_dir {tmp_path / out}"
        ).split()

    run_regression.main(arguments("whole"))
    for index in (2, 0, 1):
        moments.main([*arguments("rows"), "--shard.index", str(index), "--shard.count", "3"])
        fit_targets.main([*arguments("cols"), f"--shard.index={index}", "--shard.count", "3"])
    moments.main([*arguments("rows"), "--shard.join", "--shard.count", "3"])
    capsys.readouterr()
    run_regression.main(arguments("rows"))
    assert "150 of 150 rows are in the sum already" in capsys.readouterr().out
    fit_targets.main([*arguments("cols"), "--shard.join", "--shard.count", "3"])
    whole = Attributions.load(tmp_path / "whole")
    for name in ("rows", "cols"):
        found = Attributions.load(tmp_path / name)
        np.testing.assert_allclose(found.weight, whole.weight, atol=1e-5)
        np.testing.assert_allclose(found.held_out.pearson, whole.held_out.pearson, atol=1e-5)
