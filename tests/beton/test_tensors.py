"""Recycled memory and torch tensors: the same rows, and nothing held is ever changed."""

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

from coarlib import beton
from coarlib.beton.buffers import KEPT, Buffers
from coarlib.errors import ArgumentError, BetonError

torch = pytest.importorskip("torch")


def test_buffers_come_back_only_when_nobody_holds_them():
    buffers = Buffers(beton.NDArray(np.int32, (1000,)))
    first = buffers.rows(5)
    first[:] = 1
    part = first[2:3, ::2]
    del first
    second = buffers.rows(5)  # part still refers to the first buffer
    assert not np.shares_memory(part, second)
    second[:] = 2
    assert (part == 1).all()
    tensor = torch.from_numpy(second)
    del second
    third = buffers.rows(5)
    third[:] = 3
    assert (tensor == 2).all()
    address = third.ctypes.data
    del third
    assert buffers.rows(4).ctypes.data == address


def test_buffers_keep_no_more_than_a_few():
    buffers = Buffers(beton.Int())
    held = [buffers.rows(10) for _ in range(3 * KEPT)]
    assert len({array.ctypes.data for array in held}) == len(held)
    assert len(buffers._pool) == KEPT


def test_batches_that_are_kept_do_not_change(coar_file):
    path, source = coar_file
    with beton.open(path) as file:
        kept = list(file.batches(10))
        passing = [batch["targets"].copy() for batch in file.batches(10)]
    for batch, copy, start in zip(kept, passing, range(0, 300, 10), strict=True):
        assert (batch["targets"] == source["targets"][start : start + 10]).all()
        assert (copy == source["targets"][start : start + 10]).all()


def test_batches_in_a_loop_use_their_memory_again(coar_file):
    with beton.open(coar_file[0]) as file:
        addresses = [batch["targets"].ctypes.data for batch in file.batches(10)]
    assert len(set(addresses)) <= 2


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_tensors_are_the_rows_of_batches(coar_file, order):
    with beton.open(coar_file[0]) as file:
        pairs = zip(
            file.tensors(32, "cpu", order, seed=4), file.batches(32, order, seed=4), strict=True
        )
        for tensors, batch in pairs:
            assert list(tensors) == list(batch)
            for name, tensor in tensors.items():
                assert tensor.device.type == "cpu"
                assert tensor.numpy().tobytes() == batch[name].tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_arrive_on_the_device_whole(tmp_path):
    fields = {"x": beton.NDArray(np.float32, (50_000,)), "idx": beton.Int()}
    source = {
        "x": np.random.default_rng(0).random((997, 50_000), np.float32),
        "idx": np.arange(997),
    }
    path = beton.write(tmp_path / "x.beton", fields, source, quiet=True)
    with beton.open(path) as file:
        kept = list(file.tensors(64, "cuda", "random", seed=1))
        assert sum(len(batch["idx"]) for batch in kept) == 997
        for batch in [*kept, *file.tensors(64, "cuda")]:
            assert batch["x"].is_cuda
            assert (batch["x"].cpu().numpy() == source["x"][batch["idx"].cpu().numpy()]).all()


def test_an_abandoned_iteration_leaves_no_thread(coar_file):
    with beton.open(coar_file[0]) as file:
        iterator = file.tensors(5)
        next(iterator)
        iterator.close()
        del iterator
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("beton")]


def test_large_batches_are_copied_by_threads_also_after_a_fork(tmp_path):
    fields = {"x": beton.NDArray(np.float32, (10_007,))}
    source = {"x": np.random.default_rng(0).random((1000, 10_007), np.float32)}
    path = beton.write(tmp_path / "x.beton", fields, source, quiet=True)
    with beton.open(path) as file:
        assert (file.rows(slice(3, 999))["x"] == source["x"][3:999]).all()
        child = os.fork()
        if child == 0:  # hangs if the child waits for its parent's threads
            os._exit(int(not (file.rows(slice(3, 999))["x"] == source["x"][3:999]).all()))
        deadline = time.monotonic() + 60
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        if done[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert done == (child, 0)


def test_what_torch_cannot_hold_is_named(tmp_path):
    fields = {"when": beton.NDArray("<M8[s]", (2,)), "idx": beton.Int()}
    source = {"when": np.zeros((3, 2), "<M8[s]"), "idx": np.arange(3)}
    with beton.open(beton.write(tmp_path / "x.beton", fields, source, quiet=True)) as file:
        with pytest.raises(BetonError, match="torch has no dtype for field 'when'"):
            file.tensors(1)
        assert [int(batch["idx"]) for batch in file.tensors(1, names=["idx"])] == [0, 1, 2]
        with pytest.raises(ArgumentError, match="device"):
            file.tensors(1, "abacus")
        with pytest.raises(BetonError, match="seed"):
            file.tensors(1, seed=-1)


def test_fill_refuses_arrays_that_do_not_fit(coar_file):
    with beton.open(coar_file[0]) as file:
        for wrong in (
            np.empty((2, 96), np.float32),
            np.empty((2, 97), np.float64),
            np.empty((97, 2), np.float32).T,
        ):
            with pytest.raises(BetonError, match="needs a contiguous array"):
                file.fill({"targets": wrong}, [0, 1])
