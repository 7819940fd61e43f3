"""What an accelerator does for rows, fits, retraining and the path kernel, against peers.

    python benchmarks/gpu.py [--parts rows_resnet20 …] [--device cuda] [--small]

Every part has its own limit and prints a JSON line when it ends; a table follows, and the whole
goes to results/gpu.json. Peers run in the same process, on the same data, warmed up alike:
upstream's loop (a deep copy a row, filters zeroed, half-precision autocast, batches of 500; the
images already on the device, which is kinder than its loader), models trained one by one, fast_l1
where it is importable. Weights and images are random: speed does not depend on them. ``--small``
runs everything at toy sizes, also on a processor, to see that it works; nothing is saved then.
"""

import argparse
import contextlib
import copy
import io
import json
import signal
import tempfile
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import reporting
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.ablation import ablate
from coarlib.errors import RegressionError
from coarlib.history import TrainingLoss, open_run, record
from coarlib.interop.fast_l1 import calc_stats, train_saga
from coarlib.interop.fast_l1_package import IndicesFollow, installed_regressor
from coarlib.path_kernel import explain
from coarlib.regression import ArrayRows, Moments, fit
from coarlib.regression.moments import int8_pairs
from coarlib.retraining import Trainer, train_many
from coarlib.retraining.stack import Stack
from coarlib.retraining.vectorised import probed
from estimate.cifar_resnet.model import CifarResNet

KEEP = 0.95
WAYS = {
    "none": {"autocast": "none", "compiled": False},
    "auto": {"autocast": "auto", "compiled": False},  # the first minute of the default options
    "auto, compiled": {"autocast": "auto", "compiled": True},  # what follows it
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--small", action="store_true")
    asked = arguments.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing is measured (try --device cpu --small)")
        return
    device = torch.device(asked.device)
    results = {}
    for name in asked.parts:
        part, limit = PARTS[name]
        results[name] = within(limit, part, device, asked.small)
        print(json.dumps({name: results[name]}), flush=True)
    rows = [
        {"part": name, "what": key, "value": value}
        for name, found in results.items()
        for key, value in found.items()
    ]
    reporting.table("all parts", rows)
    if device.type == "cuda" and not asked.small:
        results["device"] = torch.cuda.get_device_name(device)
        reporting.save("gpu", results, "torch", "transformers", "torchvision", "fast_l1")


def within(limit, part, device, small):
    """Run a part; what it raises, or that it ran past its limit, is its result."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(limit)
    found = {}
    try:
        given = part(device, small)
        for more in [given] if isinstance(given, dict) else given:
            found |= more
    except Exception as error:  # the other parts go on
        traceback.print_exc()
        found["failed"] = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
    return found


def _too_long(number, frame):
    raise TimeoutError("past its limit")


def seconds(call, device, repeats=3):
    """Best of a few runs after a first one; the device has ended when the clock is read."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Rows: default options, the best ones, the bare forward pass, and upstream's loop.


def rows_resnet20(device, small):
    return rows(CifarResNet((16, 32, 64), (3, 3, 3)), images(32, 60 if small else 10_000), device)


def rows_coar_resnet(device, small):
    width = 16 if small else 256
    model = CifarResNet((width,), (4,), pooled=4, single=True)
    return rows(model, images(32, 60 if small else 10_000), device)


def rows_vit(device, small):
    from torchvision.models import VisionTransformer

    sizes = (32, 16, 2, 2, 32, 64) if small else (224, 16, 12, 12, 768, 3072)
    model = VisionTransformer(*sizes)
    return rows(model, images(sizes[0], 20 if small else 1000), device, "linear_row")


def rows_gpt2(device, small):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 50} if small else {}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    tokens = torch.randint(0, 50, (12, 16) if small else (500, 128))
    return rows(model, (tokens, None), device, "conv1d_output", batch=12)


def images(side, count):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 3, side, side, generator=generator)
    return pixels, torch.randint(0, 10, (count,), generator=generator)


def rows(model, data, device, components="conv_filter", batch=500):
    randomise(model)
    task = ablate(model, data, components, autocast="none", batch_size=batch)
    task.prepare(device)
    masks = np.random.default_rng(0).random((8, task.num_features)) < KEEP
    upstream = Upstream(copy.deepcopy(task.plain_model()), task, batch, device)
    theirs = seconds(lambda: [upstream.row(mask) for mask in masks[:2]], device) / 2
    yield {"components": task.num_features, "upstream: s/row": theirs}
    for name, options in WAYS.items():
        task = ablate(model, data, components, **options)
        began = time.perf_counter()
        task.prepare(device)
        task.identity()  # settles what was left open
        found = {"prepare: s": time.perf_counter() - began, "batch": task.batch_size}
        some = masks[:2] if name == "none" else masks  # float32 is slow, and nobody's default
        took = seconds(partial(task.rows, np.arange(len(some)), some), device, 2) / len(some)
        found |= {"precision": task.autocast, "s/row": took, "times upstream": theirs / took}
        found["applying a mask: s"] = applying(task, masks, device)
        found["bare forward: s/row"] = seconds(partial(bare, task), device, 2)
        yield {f"{name}: {key}": value for key, value in found.items()}


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.normal_(0, (2 / fan) ** 0.5, generator=generator)


def applying(task, masks, device):
    """Seconds a mask, of many that are spread at once as rows do."""
    with task.ablation as ablation:
        states = ablation.spread(torch.from_numpy(masks))
        return seconds(lambda: [ablation.set(state) for state in states], device) / len(masks)


def bare(task):
    with torch.inference_mode(), task.precision():
        for _, batch in task.batches():
            task.predict(task._network, task._held(batch.inputs))


class Upstream:
    """A row as COAR's scripts make it: a deep copy, zeroed units, half-precision autocast."""

    def __init__(self, network, task, batch, device):
        self.network, self.task, self.batch, self.device = network, task, batch, device
        self.channels = task.component_set.channels(network)

    def row(self, mask):
        model = copy.deepcopy(self.network)
        mask = torch.from_numpy(mask)
        with torch.no_grad():
            for part in self.channels:
                parameter = model.get_parameter(part.path)
                kept = part.entries(part.kept(mask), parameter.shape)
                parameter.mul_(kept.to(parameter))
        dtype = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        found = []
        with torch.no_grad(), torch.autocast(self.device.type, dtype):
            for _, batch in self.task.batches(self.batch):
                logits = self.task.predict(model, batch.inputs)
                output = next(iter(self.task.outputs.values()))
                found.append(output(logits, batch.targets).float().cpu())
        return torch.cat(found)


# Fits.


def least_squares(device, small):
    """From mapped float16 outputs to weights with a certificate, and with robust errors."""
    masks, outputs = table(*((400, 30, 20) if small else (45_000, 2304, 10_000)))
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory) / "masks.npy", Path(directory) / "outputs.npy"
        np.save(files[0], masks)
        np.save(files[1], outputs.astype(np.float16))
        source = ArrayRows(*(np.load(file, mmap_mode="r") for file in files))
        rows = source, np.arange(len(masks))

        def moments():
            return Moments.from_rows(source, device=device)

        yield {"moments: s": seconds(moments, device, 2)}
        made = moments()
        for name in ("least_squares", "ridge", "shared_prior"):
            yield {f"{name}: s": seconds(lambda n=name: fit(made, n, device=device), device, 1)}
        robust = partial(fit, made, "least_squares", rows=rows, device=device)
        yield {"least_squares, robust errors: s": seconds(robust, device, 1)}


def pair_counts(device, small):
    rows, features = (256, 64) if small else (32_768, 50_000)
    values = torch.rand(rows, features, device=device) < KEEP
    took = seconds(lambda: int8_pairs(values), device)
    return {"s": took, "TOP/s": 2 * rows * features**2 / took / 1e12}


def fast_l1(device, small):
    """fast_l1's own code at two learning rates, its rows on the device already, for a while each.

    Its objective's excess over the least one is what is left to do when it is stopped; the ratio
    of times is a lower bound. An epoch of our ``train_saga`` is timed on the same loader.
    """
    rows, features, targets = (400, 30, 20) if small else (45_000, 2304, 10_000)
    masks, outputs = table(rows, features, targets)
    source = ArrayRows(masks, outputs)

    def exact():
        return fit(Moments.from_rows(source, device=device), "least_squares", device=device)

    ours, made = seconds(exact, device, 1), exact()
    batches = OnDevice(torch.from_numpy(masks), torch.from_numpy(outputs), device)
    yield {"ours: s": ours}
    took = our_epoch(batches, 3)
    yield {"our train_saga: s/epoch": took}
    try:
        package = installed_regressor()
    except RegressionError as error:
        yield {"fast_l1 not measured": str(error)}
        return
    least = batches.squares(torch.from_numpy(made.weight), torch.from_numpy(made.bias))
    for name, rate, limit in (("best rate", 0.05, 30), ("published rate", 0.001, 10)):
        yield {f"{name}: {what}": x for what, x in stopped(package, batches, rate, limit, least)}
        yield {f"{name}: times ours, at least": limit / ours}


def our_epoch(batches, epochs):
    weight, bias, lam = batches.start()
    options = {"lr": 0.05, "start_lams": lam, "lam_decay": 1.0, "num_lambdas": 1}
    options |= {"early_stop_eps": 0.0, "max_epochs": epochs}
    run = partial(train_saga, weight, bias, batches, None, **options)
    return seconds(run, weight.device, 1) / epochs


def stopped(package, batches, rate, limit, least):
    """Run fast_l1's train_saga until the loader says that the time is over; it ends cleanly."""
    weight, bias, lam = batches.start()
    options = {"lr": rate, "start_lams": lam, "lam_decay": 1.0, "num_lambdas": 1}
    said = io.StringIO()
    with IndicesFollow(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        batches.deadline = time.perf_counter() + limit
        package.train_saga(weight, bias, batches, None, early_stop_eps=0.0, **options)
    batches.deadline = None
    epochs = said.getvalue().count("epoch: ")
    yield "epochs", epochs
    yield "s/epoch", limit / max(epochs, 1)
    mean, scale = calc_stats(batches)
    raw = weight / scale[:, None]
    excess = batches.squares(raw, bias - mean @ raw) / least - 1
    yield "excess of the objective when stopped", float(excess)


class OnDevice:
    """A loader for fast_l1, whose batches are on the device; a deadline interrupts it."""

    deadline = None

    def __init__(self, masks, outputs, device, batch=500):
        batch = min(batch, len(masks) // 4)
        x, y = masks.to(device).float(), outputs.to(device)
        parts = x, y, torch.arange(len(x), device=device)
        self.batches = list(zip(*(part.split(batch) for part in parts), strict=True))

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            if self.deadline is not None and time.perf_counter() > self.deadline:
                raise KeyboardInterrupt  # which fast_l1 takes as a wish to end
            yield batch

    def start(self):
        masks, outputs, _ = self.batches[0]
        weight = masks.new_zeros(masks.shape[1], outputs.shape[1])
        return weight, weight.new_zeros(outputs.shape[1]), weight.new_zeros(outputs.shape[1])

    def squares(self, weight, bias):
        """Sum of squared residuals, of weights in raw mask units."""
        weight, bias = (part.to(self.batches[0][0]) for part in (weight, bias))
        return sum((y - x @ weight - bias).square().sum().double() for x, y, _ in self)


def table(rows, features, targets):
    rng = np.random.default_rng(0)
    masks = rng.random((rows, features)) < KEEP
    weights = rng.normal(size=(features, targets)).astype(np.float32)
    outputs = masks.astype(np.float32) @ weights
    outputs += rng.standard_normal(outputs.shape, dtype=np.float32)
    return masks, outputs


# Retraining, and the path kernel.


def retraining(device, small):
    models, count, side = (4, 60, 8) if small else (64, 5000, 28)
    for name, build in (("residual", residual), ("cnn", cnn), ("mlp", mlp)):
        inputs, labels = images(side, count)
        trainer = Trainer(lambda b=build, s=side: b(s), inputs, labels, 1, 50)
        subsets = [
            np.random.default_rng(seed).choice(count, count // 2, replace=False)
            for seed in range(models)
        ]
        train_many(trainer, subsets[:2], [0, 1], device=device)
        every = partial(train_many, trainer, subsets, range(models), device=device)
        together, alone = (
            seconds(every, device, 1),
            seconds(partial(one_by_one, trainer, subsets[:3], device), device, 1),
        )
        found = {"together, s/model": together / models, "one by one, s/model": alone / 3}
        found["times faster"] = alone / 3 / (together / models)
        found["chosen"] = str(trainer.verdicts.get((device.type, models.bit_length())))
        yield {f"{name}: {what}": value for what, value in found.items()}
        yield {f"{name}: apart, sd": apart(trainer, subsets[:4], device)}
        for autocast in ("none", "bf16"):
            rounded = replace(trainer, autocast=autocast)
            for what, value in steps_of_ways(rounded, subsets, device, autocast):
                yield {f"{name}: {what}": value}


def steps_of_ways(trainer, subsets, device, autocast):
    """Milliseconds of a step in each way that works, of making a stack, of taking it apart."""
    for way in probed(trainer, device).ways:  # others fail here, or give other models
        for replayed in (True, False) if autocast == "none" else (True,):
            started = time.perf_counter()
            stack = Stack(trainer, subsets, range(len(subsets)), device, way, replayed)
            wait(device)
            made, steps, times = time.perf_counter(), stack.steps(), []
            for _ in range(stack.warm_steps + 6):
                before = time.perf_counter()
                if next(steps, "ended") == "ended":
                    break
                wait(device)
                times.append(time.perf_counter() - before)
            kind = f"{autocast}, {way}, {'recorded' if replayed else 'launched'}"
            yield f"{kind}, ms/step", 1e3 * min(times)
            if autocast == "none" and not replayed:
                yield "making a stack, ms", 1e3 * (made - started)
                ended = time.perf_counter()
                stack.unstacked()
                wait(device)
                yield "taking it apart, ms", 1e3 * (time.perf_counter() - ended)


def apart(trainer, subsets, device):
    """Largest difference of a logit, together and alone, in standard deviations between models."""
    together = train_many(trainer, subsets, range(len(subsets)), device=device)
    alone = [trainer.train(subset, seed, device) for seed, subset in enumerate(subsets)]
    seen = trainer.inputs[:200].to(device)
    with torch.no_grad():
        logits = [torch.stack([model(seen) for model in who]) for who in (together, alone)]
    return float(((logits[0] - logits[1]).abs() / logits[1].std(0)).max())


def one_by_one(trainer, subsets, device):
    for seed, subset in enumerate(subsets):
        trainer.train(subset, seed, device)


def mlp(side):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn(side):
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def residual(side):
    return CifarResNet((16, 32), (1, 1), projection=True)


def path_kernel(device, small):
    count, updates, modulus = (40, 4, 7) if small else (4000, 200, 113)
    torch.manual_seed(0)
    pairs = torch.randint(0, modulus, (count + 10, 2))
    inputs = torch.cat([F.one_hot(pairs[:, 0], modulus), F.one_hot(pairs[:, 1], modulus)], 1)
    inputs, labels = inputs.float().to(device), (pairs.sum(1) % modulus).to(device)
    model = nn.Sequential(nn.Linear(2 * modulus, 128), nn.Tanh(), nn.Linear(128, modulus)).to(
        device
    )
    optimizer, loss = torch.optim.AdamW(model.parameters(), 1e-3), TrainingLoss(F.cross_entropy)
    data = inputs[:count], labels[:count]
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        path, started = Path(directory) / "h", time.perf_counter()
        options = {"num_steps": updates, "max_batch": count, "quiet": True}
        with record(model, optimizer, path, samples=data, loss=loss, **options) as history:
            for _ in range(updates):
                optimizer.zero_grad()
                F.cross_entropy(model(data[0]), data[1]).backward()
                history.batch(list(range(count)))
                optimizer.step()
        found["recording: s"] = time.perf_counter() - started
        run = open_run(path, model, loss, data)
        for name, by in (("sample", ["sample"]), ("tensor and step", [("tensor", "step")])):
            started = time.perf_counter()
            given = explain(run, inputs[count:], labels[count:], by=by, output="margin", quiet=True)
            found[f"by {name}: s"] = time.perf_counter() - started
            found[f"by {name}: share missing"] = float(given.verdict().share)
    return found


PARTS = {
    "rows_resnet20": (rows_resnet20, 90),
    "rows_coar_resnet": (rows_coar_resnet, 90),
    "rows_vit": (rows_vit, 90),
    "rows_gpt2": (rows_gpt2, 90),
    "least_squares": (least_squares, 60),
    "pair_counts": (pair_counts, 20),
    "fast_l1": (fast_l1, 90),
    "retraining": (retraining, 150),
    "path_kernel": (path_kernel, 70),
}

if __name__ == "__main__":
    main()
