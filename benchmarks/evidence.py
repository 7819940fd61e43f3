"""Stores of rows, passes, trials and leave-one-out for real models, that other benchmarks read.

    python benchmarks/evidence.py --models digits,resnet20 --out out/frontier

Whatever is there already is not computed again, so a run that was stopped goes on. Public
checkpoints and data are read from ../shared/data.
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import reporting
import torch

import coarlib as cl
from coarlib.baselines.components import leave_one_out
from coarlib.baselines.evaluation import baseline
from coarlib.baselines.mean_gradients import ablated_masks, group_index, mean_gradients
from coarlib.filling.worker import FillOptions
from coarlib.gradient_passes.filling import (
    PASSES_DIR,
    TRIALS_DIR,
    fill_passes,
    open_passes,
    plan_for,
)
from coarlib.setups import load

DATA = reporting.ROOT.parent / "shared" / "data"
CPU, KEY = torch.device("cpu"), "test_margins"
FITTED, HELD = 1000, 400
"""At most so many rows are fitted; at least so many, the others, by nobody."""
MODELS = 16
"""Ablated models whose gradients the informed prior averages."""


@dataclass(frozen=True)
class Model:
    """What is measured of one model: share ablated, rows to fit, gradient passes, trials."""

    share: float
    rows: int
    passes: int
    trials: int
    make: Callable


def cifar(name):
    images = np.load(DATA / "cifar10_test1000_lossless.npz")
    few = Path("out/frontier/images100.npz")
    few.parent.mkdir(parents=True, exist_ok=True)
    np.savez(few, x=images["x"][:100], y=images["y"][:100])
    path = next(DATA.glob(f"akamaster_{name}-*.th"))
    how = {"model_path": path, "beton_path": str(few), "batch_size": 100, "autocast": "none"}
    return load("cifar_resnet", how)


def stories():
    names = ("stories260K.bin", "tok512.bin", "tinystories_500.json")
    model, words, texts = (str(DATA / name) for name in names)
    where = {"model_path": model, "tokenizer_path": words, "data_path": texts}
    return load("tinyllama_stories", {**where, "autocast": "none"})


class Sums(cl.ComponentTask):
    """100 sums modulo 113 by a one-layer transformer; components are heads and neurons."""

    def __init__(self):
        super().__init__(batch_size=100)
        file = reporting.ROOT / "tests" / "zoo" / "modular_addition.py"
        spec = importlib.util.spec_from_file_location("adder", file)
        self.made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.made)

    def model(self):
        return self.made.load_adder(DATA / "modadd113_no_wd.pt")

    def components(self, model):
        return cl.find_components(model, ["attention_head", "mlp_neuron"])

    def examples(self):
        tokens, answers = self.made.sums(128)
        return cl.Examples((tokens,), answers)


ALL = {
    "digits": Model(0.1, 5000, 512, 640, lambda: load("digits")),
    "resnet20": Model(0.05, 2000, 256, 640, lambda: cifar("resnet20")),
    "resnet32": Model(0.05, 1000, 256, 640, lambda: cifar("resnet32")),
    "tinyllama": Model(0.05, 1000, 256, 640, stories),
    "modular": Model(0.05, 1000, 256, 640, Sums),
}


def evidence(name, out):
    """Return the store of a model, filled, and arrays: lone, mean, plain [N, T], groups [N]."""
    model = ALL[name]
    task = model.make()
    task.prepare(CPU)
    count, keep = len(task.component_set), round(1 - model.share, 2)
    store = cl.Store.create(out / name, task, model.rows + HELD, keep, device="cpu")
    until_stopped(cl.fill(store, task, device="cpu"))
    for where, most in ((PASSES_DIR, model.passes), (TRIALS_DIR, model.trials)):
        there = open_passes(store, where)
        if there is None or 8 * len(there.completed_rows()) < most:
            plan = plan_for(store, task, trials=where == TRIALS_DIR)
            until_stopped(fill_passes(store, task, most, CPU, plan=plan, options=FillOptions()))
    single = {"kind": "leave_one_out"}
    alone = cl.Store.create(out / f"{name}_alone", task, count + 1, design=single, device="cpu")
    until_stopped(cl.fill(alone, task, device="cpu"))
    kept = out / f"{name}_gradients.npz"
    if not kept.exists():
        mean = mean_gradients(task, ablated_masks(count, model.share, MODELS), KEY)
        plain = baseline("gradient_parameter", task, KEY).scores
        np.savez(kept, mean=mean, plain=plain, groups=group_index(task.component_set))
    lone = leave_one_out(alone.array("masks"), alone.array(KEY))
    return store, {"lone": lone, **np.load(kept)}


def until_stopped(report):
    if report.stopped:
        raise SystemExit("stopped; the same command goes on")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="digits,resnet20")
    parser.add_argument("--out", type=Path, default=Path("out/frontier"))
    args = parser.parse_args()
    reporting.one_thread()
    for name in args.models.split(","):
        evidence(name, args.out)
        print(name, flush=True)


if __name__ == "__main__":
    main()
