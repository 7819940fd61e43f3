"""How many examples go through a model at once."""

import time

import pytest
import torch
from zoo.tiny_models import TinyResNet

from coarlib.ablation import ablate, tuned, tuning


class Machine:
    """Runs a batch in launch + size × each seconds, and has memory for some."""

    def __init__(self, launch, each, memory=10**9):
        self.now, self.launch, self.each, self.memory = 0.0, launch, each, memory
        self.sizes = []

    def run(self, size):
        if size > self.memory:
            raise torch.OutOfMemoryError("full")
        self.sizes.append(size)
        self.now += self.launch + size * self.each

    def probe(self, count, start=1, seconds=60.0):
        return tuning.batch_by_probe(self.run, count, start, seconds, clock=lambda: self.now)


def test_batches_double_until_launching_no_longer_matters():
    size, rate = Machine(launch=0.01, each=1e-4).probe(100_000)
    assert 1024 <= size <= 8192
    assert rate == pytest.approx(size / (0.01 + size * 1e-4))
    assert Machine(launch=0, each=1e-4).probe(1000)[0] == 1
    assert Machine(launch=1, each=1e-9).probe(300)[0] == 300


def test_a_full_memory_ends_the_probe():
    assert Machine(0.01, 1e-4, memory=200).probe(10_000)[0] == 128
    with pytest.raises(torch.OutOfMemoryError):
        Machine(0.01, 1e-4, memory=2).probe(10_000, start=4)


def test_the_probe_keeps_its_time():
    slow = Machine(launch=1.0, each=1e-4)
    assert slow.probe(10_000, seconds=5.0)[0] == 2
    assert slow.now < 10


def test_large_activations_make_small_batches():
    images, labels = torch.rand(30, 3, 8, 8), torch.zeros(30, dtype=torch.long)
    task = ablate(TinyResNet().eval(), (images, labels))
    task.prepare(torch.device("cpu"))
    model = task.plain_model()
    with tuning.largest_activation(model) as largest, torch.inference_mode():
        model(images[:4])
    assert task.batch_size == min(500, 2**21 // (largest.numbers // 4))
    assert tuning.batch_by_size(16 * 32 * 32 * 4, 4 * 3082, 4) == 128
    assert tuning.batch_by_size(4, 4 * 50_000_000, 4) == 1


def small_task():
    model, images = TinyResNet().eval(), torch.rand(40, 3, 8, 8)
    task = ablate(model, (images, torch.zeros(40, dtype=torch.long)))
    task.prepare(torch.device("cpu"))
    return task


def test_an_accelerator_is_probed_and_announced(capsys):
    """The processor stands in for it: the same code runs there, and changes no row."""
    task = small_task()
    size = tuning.announced_batch(task.device, task._run_batch, 40, 4)
    assert 4 <= size <= 40
    assert f"cpu: {size} examples a forward pass" in capsys.readouterr().err


@pytest.mark.parametrize(("chosen", "next_size"), [("none", 4), ("bf16", 40)])
def test_precisions_are_compared_at_a_batch_that_keeps_an_accelerator_at_work(
    monkeypatch, chosen, next_size
):
    """That of the first one is not looked for again, where it is chosen."""
    task, seen, sizes = small_task(), [], []

    def choose(device, names, measure, seconds):
        seen.append((task.batch_size, seconds("none")))
        sizes.clear()
        return chosen

    def run(size):
        sizes.append(size)
        time.sleep(2e-3)  # bound by launching

    monkeypatch.setattr(tuned, "native", lambda device: ["bf16"])
    monkeypatch.setattr(tuned, "choose_precision", choose)
    monkeypatch.setattr(task, "_run_batch", run)
    task._device, task.batch_size = torch.device("mps"), 4
    task._open = True
    task._settle()
    assert seen[0][0] == 40 == task.batch_size and sizes[0] == next_size
    assert 2e-3 / 40 <= seen[0][1] < 2e-2 / 40


def test_a_precision_whose_batch_does_not_fit_is_timed_in_a_smaller_one(monkeypatch):
    task, sizes = small_task(), []

    def run(size):
        sizes.append(size)
        if size > 10:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(task, "_run_batch", run)
    task.batch_size = 40
    task._seconds_in("none")
    assert sizes[:3] == [40, 20, 10]
    task.batch_size = 40
    monkeypatch.setattr(task, "_run_batch", lambda size: run(11))
    with pytest.raises(torch.OutOfMemoryError):
        task._seconds_in("none")
    assert task._size_in("none") == 40
