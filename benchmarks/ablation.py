"""Rows a second under ablation: coarlib's component task against upstream's way of doing a row.

    python benchmarks/ablation.py [--repeats 7] [--threads 2] [--data ../shared/data]

Upstream's row, re-implemented: deep-copy the model, look every ablated index up in the table of
components, zero it, and run over the data in batches of 500 (stories: 12, one margin after the
other). FFCV hands it images in channels-last order; "planes" is the same loop on contiguous
[T, 3, H, W] images, as torchvision's transforms make them. Ours: the task of each set-up as
`make_dataset` runs it, in float32, compiled by torch.compile, in bfloat16, and at its defaults
(ResNet-20), where short probes choose in the rounds that warm up. The limit beside them is the bare
forward pass of the folded model in batches of our size: nothing is ablated and nothing recorded.
All are measured in turn, a row each.
"""

import argparse
import copy
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import reporting
import torch

from coarlib.ablation import ComponentTask
from estimate.cifar_resnet.task import CifarTask
from estimate.digits.task import DigitsTask
from estimate.tinyllama_stories.task import TinyLlamaTask

CPU = torch.device("cpu")
UPSTREAM_BATCH = 500
UPSTREAM_STORIES = 12
ROWS = 4


class Upstream:
    """A row as upstream computes it, on the task's own model and examples."""

    def __init__(self, task: ComponentTask, sequences: bool) -> None:
        self.task, self.model, self.examples = task, task.model(), task.examples()
        self.sequences = sequences
        self.groups = {group.path: group for group in task.components(self.model)}

    def locate(self, index: int) -> tuple[str, int]:
        counter = 0
        for path, group in self.groups.items():
            if counter <= index < counter + group.units:
                return path, index - counter
            counter += group.units
        raise IndexError(index)

    def masked(self, mask: np.ndarray) -> torch.nn.Module:
        model = copy.deepcopy(self.model).cpu().eval()
        chosen = defaultdict(list)
        for index in (~mask).nonzero()[0]:
            path, unit = self.locate(index)
            chosen[path].append(unit)
        for path, units in chosen.items():
            group, weight = self.groups[path], model.get_parameter(path)
            # Upstream only knows axis 0; heads and neurons need the slice of another axis.
            slices = torch.cat([torch.arange(group.width) + u * group.width for u in units])
            with torch.no_grad():
                weight.index_fill_(group.axis, slices, 0)
        return model

    def margins(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, rows = logits.clone(), torch.arange(len(logits))
        correct = logits[rows, labels].clone()
        logits[rows, labels] = -torch.inf
        return correct - logits[rows, logits.argmax(1)]

    def row(self, mask: np.ndarray) -> torch.Tensor:
        model, found = self.masked(mask), []
        with torch.no_grad():
            size = UPSTREAM_STORIES if self.sequences else UPSTREAM_BATCH
            for _, batch in self.examples.batches(size):
                logits = self.task.predict(model, batch.inputs)
                if not self.sequences:
                    found.append(self.margins(logits, batch.targets))
                    continue
                for row, length in enumerate(batch.inputs[1].sum(1).tolist()):
                    labels = batch.targets[row, : length - 1]
                    mean = self.margins(logits[row, : length - 1], labels).mean()
                    found.append(mean[None])
        return torch.cat(found)


def bare(task: ComponentTask) -> None:
    """The forward passes of one row and nothing else."""
    with torch.inference_mode():
        for _, batch in task.batches():
            task.predict(task._network, batch.inputs)


def seconds(work) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, tasks: dict, sequences: bool, repeats: int) -> dict:
    for task in tasks.values():
        task.prepare(CPU)
    ours = tasks["coarlib"]
    upstream = Upstream(ours, sequences)
    rng = np.random.default_rng(0)
    masks = rng.random((ROWS, ours.num_features)) < 0.95
    (row,) = ours.rows(np.arange(1), masks[:1]).values()
    error = float((row[0] - upstream.row(masks[0])).abs().max() / row.abs().max())
    works = {"upstream": lambda: [upstream.row(mask) for mask in masks]}
    if not sequences:
        plain = Upstream(ours, sequences)
        plain.examples.inputs = tuple(x.contiguous() for x in plain.examples.inputs)
        works["upstream, planes"] = lambda: [plain.row(mask) for mask in masks]
    for kind, task in tasks.items():
        works[kind] = lambda task=task: task.rows(np.arange(ROWS), masks)
    works["bare forward"] = lambda: [bare(ours) for _ in masks]
    times = defaultdict(list)
    for _ in range(repeats + 1):
        for kind, work in works.items():
            times[kind].append([t / ROWS for t in seconds(work)])
    found = {"components": ours.num_features, "targets": ours.num_examples, "error": error}
    for kind, pairs in times.items():
        wall, cpu = np.array(pairs[1:]).T  # the first round warms up
        found[kind] = {
            "wall_s": float(np.median(wall)),
            "cpu_s": float(np.median(cpu)),
            "wall_min_s": float(wall.min()),
        }
    for base, ratio in (("upstream", "speedup"), ("bare forward", "over_limit")):
        for kind in tasks:
            first, second = found[base], found[kind]
            pair = (first, second) if ratio == "speedup" else (second, first)
            found[kind][f"{ratio}_wall"] = pair[0]["wall_s"] / pair[1]["wall_s"]
            found[kind][f"{ratio}_cpu"] = pair[0]["cpu_s"] / pair[1]["cpu_s"]
    print(f"{name}: {ours.num_features} components, {ours.num_examples} examples")
    for kind in works:
        line = f"  {kind:<14} {found[kind]['wall_s'] * 1e3:9.1f} ms a row"
        line += f" ({found[kind]['cpu_s'] * 1e3:.1f} CPU ms)"
        if kind in tasks:
            line += f"  {found[kind]['speedup_wall']:.2f}x upstream's speed"
            line += f" ({found[kind]['speedup_cpu']:.2f}x by CPU time)"
            line += f", {found[kind]['over_limit_wall']:.2f}x the bare forward pass"
        print(line)
    print(f"  largest difference to upstream's row, relative: {error:.1e}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, numbers = options.data, {"threads": options.threads}
    tasks: dict[str, ComponentTask] = {"coarlib": DigitsTask()}
    numbers["digits"] = measure("digits CNN", tasks, False, options.repeats)
    if not data.is_dir():
        print(f"{data} is not here: ResNet-20 and the Llama are left out")
    else:
        paths = (data / "akamaster_resnet20-12fca82f.th", data / "cifar10_test1000_lossless.npz")
        tasks = {
            "coarlib": CifarTask(*map(str, paths), autocast="none"),
            "coarlib compiled": CifarTask(*map(str, paths), autocast="none", compiled=True),
            "coarlib bf16": CifarTask(*map(str, paths), autocast="bf16"),
            "coarlib default": CifarTask(*map(str, paths)),
        }
        numbers["resnet20"] = measure("ResNet-20, CIFAR-10", tasks, False, options.repeats)
        names = ("stories260K.bin", "tok512.bin", "tinystories_500.json")
        files = [str(data / name) for name in names]
        some = {"num_stories": 32, "batch_size": 32, "autocast": "none"}
        tasks = {
            "coarlib": TinyLlamaTask(*files, **some),
            "coarlib compiled": TinyLlamaTask(*files, **some, compiled=True),
        }
        numbers["tinyllama"] = measure("TinyStories Llama", tasks, True, options.repeats)
    reporting.save("ablation", numbers, "torch")


if __name__ == "__main__":
    main()
