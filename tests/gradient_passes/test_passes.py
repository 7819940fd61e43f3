"""Masks of passes, their sums, and how blocks of them are kept, shared, resumed and checked."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from paths import ROOT
from scalable_tasks import EXAMPLES, small_task

import coarlib as cl
from coarlib.ablation import ComponentTask
from coarlib.autopilot.holdings import Holdings
from coarlib.commands.__main__ import load
from coarlib.errors import ArgumentError, CoarlibError, StoreError, TaskError, TornRowError
from coarlib.filling.worker import FillOptions, fill
from coarlib.gradient_passes import (
    PassPlan,
    fill_passes,
    open_passes,
    read_passes,
    read_trials,
)
from coarlib.gradient_passes.filling import TRIALS_DIR, plan_for
from coarlib.gradient_passes.plan import on_path
from coarlib.gradient_passes.scaling import scaling_of
from coarlib.regression import StoreRows
from coarlib.regression.rows import SomeTargets
from coarlib.store import Store
from coarlib.store.merge import merge
from coarlib.store.status import status
from coarlib.store.verify import verify

BLOCKS = 60
CPU, QUIET = torch.device("cpu"), FillOptions(quiet=True)
SUMS = ("outputs", "path_sums", "path_squares", "path_counts", "kept_means")


def assert_same_sums(one, other, tolerance=1e-6):
    """Sums of passes agree, relative to their size."""
    assert np.array_equal(one.passes, other.passes)
    for name in SUMS:
        a, b = getattr(one, name), getattr(other, name)
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max(), name


def test_masks_are_a_function_of_seed_pass_and_example():
    plan = PassPlan.for_fraction(0.1, seed=3)
    whole = plan.draw(7, slice(0, 40), 1001)
    assert np.array_equal(plan.draw(7, slice(13, 29), 1001), whole[13:29])
    assert not np.array_equal(plan.draw(8, slice(0, 40), 1001), whole)
    assert not np.array_equal(PassPlan.for_fraction(0.1, seed=4).draw(7, slice(0, 40), 1001), whole)
    along = on_path(whole)
    sd = 1 / whole.size**0.5
    assert abs(along.mean() - 0.1) < 4 * sd and abs((whole == 0).mean() - 0.05) < 4 * sd
    assert abs(whole[along].mean() - 0.5) < 4 * sd / 0.1**0.5
    assert abs(1 - whole.mean() - plan.fraction) < 4 * sd and plan.fraction == pytest.approx(0.1)


@pytest.mark.parametrize("share", [0.0, 0.7, float("nan")])
def test_shares_that_cannot_be_are_refused(share):
    with pytest.raises(ArgumentError, match="share above 0"):
        PassPlan.for_fraction(share)


def test_sums_are_those_of_their_passes(store, task):
    fill_passes(store, task, 6, CPU, plan=PassPlan(0.3, 0.2, passes=3), options=QUIET)
    found = read_passes(store, slice(2, 9))
    count, plan = len(task.component_set), found.plan
    scaling = scaling_of(task, task.outputs["test_margins"])
    sums = np.zeros((4, count, EXAMPLES))
    for index in range(6):
        for where, batch in task.batches():
            masks = plan.draw(index, where, count)
            outputs, slopes = scaling.run(torch.from_numpy(masks).float(), batch)
            g, along = slopes.numpy().T, on_path(masks).T
            for at, part in enumerate((g * along, g**2 * along, along, g * (masks == 1).T)):
                sums[at][:, where] += part
            expected = np.full(EXAMPLES, np.nan)
            expected[where] = outputs
            inside = ~np.isnan(expected[2:9])
            assert np.allclose(found.outputs[index][inside], expected[2:9][inside], atol=1e-5)
    sums[3] /= 6 * 0.5
    for at, name in enumerate(("path_sums", "path_squares", "path_counts", "kept_means")):
        assert np.allclose(getattr(found, name), sums[at][:, 2:9], atol=1e-4), name
    drawn = found.masks(slice(1, 3), found.num_features)
    assert drawn.shape == (2, 6, count)
    assert np.allclose(drawn[0, 4], plan.draw(4, slice(3, 4), count)[0])
    assert found.forward_passes == 18


def test_passes_grow_resume_and_are_refused_to_others(store, task):
    assert read_passes(store) is None and open_passes(store) is None
    plan = PassPlan.for_fraction(0.2, passes=2)
    assert fill_passes(store, task, 3, CPU, plan=plan, options=QUIET).written == 2
    again = fill_passes(store, task, 8, CPU, options=QUIET)  # the plan of those that are there
    assert (again.written, again.skipped) == (2, 2)
    assert len(read_passes(store, most=5).passes) == 4
    with pytest.raises(StoreError, match="holds other gradient passes"):
        fill_passes(store, task, 8, CPU, plan=PassPlan.for_fraction(0.1, passes=2), options=QUIET)
    other = small_task(scale=0.5, ablate="scale_weights")
    with pytest.raises(StoreError, match="made by another task"):
        fill_passes(store, other, 8, CPU, options=QUIET)
    with pytest.raises(ArgumentError, match="none of them is named"):
        fill_passes(store, task, 8, CPU, blocks=slice(4, 9), options=QUIET)
    with pytest.raises(TaskError, match="has no output losses"):
        fill_passes(store, task, 8, CPU, plan=PassPlan(0.1, 0, output="losses"), options=QUIET)


def test_verify_finds_torn_blocks_and_merge_joins_them(store, task, tmp_path):
    plan = PassPlan.for_fraction(0.2, passes=2)
    fill_passes(store, task, 8, CPU, plan=plan, options=QUIET)
    whole = read_passes(store)
    parts = []
    for name, blocks in (("a", slice(0, 1)), ("b", slice(1, 4))):
        parts.append(Store.create(tmp_path / name, task, rows=40, keep_prob=0.8, device="cpu"))
        fill_passes(parts[-1], task, 8, CPU, plan=plan, blocks=blocks, options=QUIET)
    merge(tmp_path / "merged", parts)
    assert_same_sums(read_passes(tmp_path / "merged"), whole)
    other = Store.create(tmp_path / "c", task, rows=40, keep_prob=0.8, device="cpu")
    fill_passes(other, task, 8, CPU, plan=PassPlan.for_fraction(0.2, passes=2, seed=1),
                options=QUIET)  # fmt: skip
    with pytest.raises(StoreError, match="do not fit"):
        merge(tmp_path / "merged", [other])
    kept = open_passes(store)
    file = kept.path / "path_sums.npy"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert verify(open_passes(store)).torn == [3]
    with pytest.raises(SystemExit):
        load("verify").main([str(store.path)])


TASK = f"{ROOT / 'tests' / 'zoo' / 'scalable_tasks.py'}:SmallTask"


def worker(store, passes):
    """Start a process that shares so many passes out, four blocks at a time."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "zoo")])
    code = (
        "import sys, torch; from scalable_tasks import small_task\n"
        "from coarlib.filling.worker import FillOptions\n"
        "from coarlib.gradient_passes import fill_passes; from coarlib.store import Store\n"
        "how = FillOptions(quiet=True, claim=True, claim_ttl=2, rows_per_batch=4)\n"
        "passes, cpu = int(sys.argv[2]), torch.device('cpu')\n"
        "fill_passes(Store.open(sys.argv[1]), small_task(), passes, cpu, options=how)"
    )
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", code, str(store.path), str(passes)], env=env)


def test_workers_of_which_one_is_killed_finish_what_grew_and_give_what_one_gives(
    store, task, tmp_path
):
    plan = PassPlan.for_fraction(0.2, passes=1)
    alone = Store.create(tmp_path / "alone", task, rows=40, keep_prob=0.8, device="cpu")
    fill_passes(alone, task, BLOCKS, CPU, plan=plan, options=QUIET)
    fill_passes(store, task, 1, CPU, plan=plan, options=QUIET)
    first = worker(store, BLOCKS // 2 - 1)  # its last claim is cut by the end of the store
    kept = open_passes(store)
    deadline = time.monotonic() + 60
    while len(kept.completed_rows()) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
        kept = open_passes(store)
    first.send_signal(signal.SIGKILL)
    first.wait()
    others = [worker(store, passes) for passes in (BLOCKS - 1, BLOCKS)]  # both grow it
    assert [process.wait(timeout=120) for process in others] == [0, 0]
    assert verify(open_passes(store)).sound
    assert_same_sums(read_passes(store), read_passes(alone))


def test_the_command_computes_and_names_what_comes_next(store, capsys):
    words = [str(store.path), "--task", TASK, "--passes", "3", "--block", "2"]
    run = load("gradient_passes").main
    run([*words, "--dry_run"])
    assert "as long as 9 rows" in capsys.readouterr().out
    run(words)
    out = capsys.readouterr().out
    assert "2 blocks of gradient passes computed" in out and "next: coar run_regression" in out
    run([*words[:3], "--passes", "4"])
    assert "0 blocks of gradient passes computed, 2 were there" in capsys.readouterr().out
    with pytest.raises(CoarlibError, match="holds other gradient passes"):
        run([*words, "--fraction", "0.3"])


def test_a_fit_of_a_store_takes_its_passes(store, task, tmp_path):
    fill(store, task, np.arange(40), CPU, QUIET)
    assert "bayes" not in cl.fit(store, device="cpu").summary["candidates"]
    fill_passes(store, task, 32, CPU, options=QUIET)
    found = cl.fit(store, device="cpu")
    assert {"bayes", "ridge"} <= set(found.summary["candidates"])
    assert found.cost.passes == 40 + 3 * 32
    some = StoreRows(store, targets=slice(3, 8)).gradient_passes()
    assert_same_sums(some, read_passes(store, slice(3, 8)))
    chosen = np.array([9, 1, 2, 5])
    some = SomeTargets(StoreRows(store), chosen).gradient_passes()
    every = read_passes(store)
    assert np.array_equal(some.path_sums, every.path_sums[:, chosen])
    assert np.array_equal(some.masks(slice(0, 4), 16), every.masks(slice(0, 10), 16)[chosen])
    load("run_regression").main(
        [str(store.path), "--out", str(tmp_path / "out"), "--solver", "bayes"]
    )
    saved = cl.Attributions.load(tmp_path / "out")
    assert saved.standard_error.shape == saved.weight.shape
    assert saved.summary["gradient_passes"] == 32 and len(saved.summary["multiples"]) == 3


def test_trials_ablate_every_example_by_itself_and_are_kept_as_passes_are(store, task, tmp_path):
    plan = PassPlan.of_trials(0.2, passes=4)
    assert fill_passes(store, task, 8, CPU, plan=plan, options=QUIET).written == 2
    assert read_passes(store) is None
    found = read_trials(store, slice(1, None, 2))
    masks = found.masks(slice(0, 4), task.num_features)
    assert set(np.unique(masks)) == {0, 1} and abs(masks.mean() - 0.8) < 0.1
    assert not np.array_equal(masks[0], masks[1])
    same_seed = PassPlan(0.1, 0.1, passes=4).draw(0, slice(1, 2), task.num_features)
    assert not np.array_equal(same_seed == 0, masks[:1, 0] == 0)  # nor those of passes
    for at, target in enumerate(found.targets[:4]):
        rows = task.rows(np.arange(8), masks[at] == 1)["test_margins"].numpy()
        assert np.allclose(rows[:, target], found.outputs[:, at], atol=1e-5)
    merge(tmp_path / "both", [store])
    again = read_trials(tmp_path / "both", slice(1, None, 2), most=7)
    assert np.array_equal(again.outputs, found.outputs[:4])
    assert np.array_equal(again.passes, np.arange(4)) and again.forward_passes == 4
    kept = open_passes(store, TRIALS_DIR)
    data = bytearray((kept.path / "outputs.npy").read_bytes())
    data[-5] ^= 1
    (kept.path / "outputs.npy").write_bytes(data)
    assert verify(open_passes(store, TRIALS_DIR)).torn == [1]


@pytest.mark.parametrize("name", ["gradient_passes", "trials"])
def test_damaged_blocks_are_refused_by_all_who_read_them(store, task, name):
    fill(store, task, np.arange(8), CPU, QUIET)
    for trials in (False, True):
        plan = plan_for(store, task, trials=trials)
        fill_passes(store, task, 8, CPU, plan=plan, options=QUIET)
    inside = store.path / name
    outputs = np.lib.format.open_memmap(inside / "outputs.npy", mode="r+")
    outputs[0, 0, 0] += 1
    outputs.flush()
    with pytest.raises(TornRowError, match="do not match their checksums"):
        Holdings(store, task, CPU)
    with pytest.raises(TornRowError, match=rf"{name} do not match their checksums"):
        StoreRows(store).verify(np.arange(8))
    (inside / "spec.json").unlink()
    with pytest.raises(StoreError, match="damaged store"):
        (read_trials if name == "trials" else read_passes)(store)
    with pytest.raises(StoreError, match="damaged store"):
        load("verify").main([str(store.path)])


def test_status_tells_of_passes_and_trials_as_of_rows(store, task, capsys):
    fill(store, task, np.arange(8), CPU, QUIET)
    for trials, blocks in ((False, slice(0, 1)), (True, None)):
        plan = plan_for(store, task, trials=trials)
        fill_passes(store, task, 16, CPU, plan=plan, blocks=blocks, options=QUIET)
    found = status(store)
    passes, trials = found.inside["gradient_passes"], found.inside["trials"]
    assert (passes.complete, passes.missing, passes.missing_ranges) == (1, 1, [(1, 2)])
    assert (trials.complete, trials.missing, trials.passes_of_a_row) == (2, 0, 8)
    load("status").main([str(store.path)])
    said = capsys.readouterr().out
    assert "8 of 40 rows complete (20.0%)" in said and "rows to fill 8-39" in said
    assert "gradient_passes: 8 of 16 gradient passes, 1 of 2 blocks complete (50.0%)" in said
    assert "blocks to fill 1-1\n" in said and "blocks/s" in said
    assert "trials: 16 of 16 trials, 2 of 2 blocks complete (100.0%)" in said
    load("status").main([str(store.path), "--json"])
    assert json.loads(capsys.readouterr().out)["inside"]["trials"]["complete"] == 2
    outputs = np.lib.format.open_memmap(store.path / "trials" / "_completed.npy", mode="r+")
    checksums = np.lib.format.open_memmap(store.path / "trials" / "_checksums.npy", mode="r+")
    outputs[1], checksums[1] = 1, 0
    checksums.flush()
    with pytest.raises(SystemExit, match="1"):  # a torn block is no less wrong than a torn row
        load("status").main([str(store.path)])


@pytest.mark.parametrize("change", ["not finite", "another task"])
def test_refusals_name_only_what_the_caller_can_say(store, monkeypatch, change):
    """Values that are not finite, and another task, in ``fill`` and in passes."""
    with_nan = change == "not finite"
    if not with_nan:
        cl.fill(store, small_task(), rows=(0, 2), device="cpu", quiet=True)
    by = torch.nan if with_nan else 2
    outputs = {"test_margins": lambda logits, labels: logits[:, 0] * by}
    with pytest.raises(CoarlibError) as refused:
        cl.fill(store, small_task(outputs=outputs), rows=(2, 4), device="cpu", quiet=True)
    assert "allow_" not in str(refused.value)
    assert ("mend the task" in str(refused.value)) == with_nan
    monkeypatch.setattr(ComponentTask, "outputs", outputs)
    words = [str(store.path), "--task", TASK, "--passes", "2", "--fraction", "0.2", "--quiet"]
    with pytest.raises(CoarlibError) as refused:
        load("gradient_passes").main([*words, *["--allow_other_task"] * with_nan])
    assert "allow_nonfinite" not in str(refused.value)
    assert ("allow_other_task" in str(refused.value)) == (not with_nan)
