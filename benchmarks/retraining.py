"""Vectorised retraining against one by one and against dattri.retrain_lds, at equal epochs.

    python benchmarks/retraining.py

64 models on random halves of scikit-learn's digits, on one thread. Every way leaves a file of
weights for each model, as dattri does, is warmed up once and takes turns with the others; what is
compiled is compiled before (``coar warmup``). Times are
per model: what trains models one by one is timed on fewer of them. Besides wall time, processor
time is shown, which other work on the machine disturbs less. The limit is the arithmetic: the
multiply-adds of a model's steps at the speed of a large matrix product.
"""

import sys
import tempfile
import types
import warnings
from pathlib import Path

import numpy as np
import reporting
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coarlib.retraining import Trainer, train_many
from coarlib.retraining.convolutions import compile_layers
from estimate.cifar_resnet.model import CifarResNet
from estimate.digits.model import digits
from estimate.digits_subsets.task import small_cnn

try:
    sys.modules.setdefault("pretty_midi", types.ModuleType("pretty_midi"))  # not used here
    from dattri.model_util.retrain import retrain_lds as dattri_retrain_lds
except ImportError:
    dattri_retrain_lds = None

MODELS, EPOCHS, BATCH = 64, 2, 64
ONE_BY_ONE, OF_DATTRI, ROUNDS = 12, 6, 3
OPTIONS = {"lr": 0.05, "momentum": 0.9}
# Multiply-adds of one example's forward pass; a step is three times that.
MULTIPLY_ADDS = {
    "cnn": 8 * 9 * 64 + 16 * 8 * 9 * 16 + 2560,
    "mlp": 64 * 64 + 640,
    "residual": (27 + 2 * 72) * 8 * 64 + (72 + 144 + 8) * 16 * 16 + 160,
}


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def residual():
    """Two residual blocks with batch normalisation, the second with a projection."""
    return CifarResNet((8, 16), (1, 1), projection=True)


def main():
    reporting.one_thread()
    compile_layers()
    models = {"cnn": small_cnn, "mlp": mlp, "residual": residual}
    results = [compare(name, model) for name, model in models.items()]
    reporting.save("retraining", results, "torch", "dattri")


def compare(name, model):
    images, labels = digits(held_out=False)
    if name == "residual":
        images = images.repeat(1, 3, 1, 1)
    trainer = Trainer(model, images, labels, EPOCHS, BATCH, options=OPTIONS)
    rng = np.random.default_rng(0)
    half = len(labels) // 2
    subsets = [rng.choice(len(labels), half, replace=False) for _ in range(MODELS)]
    calls = {
        "coarlib, 64 at once": lambda: keep(train_many(trainer, subsets, range(MODELS))),
        "coarlib, one by one": lambda: keep(
            trainer.train(subset, seed) for seed, subset in enumerate(subsets[:ONE_BY_ONE])
        ),
    }
    trained = dict(
        zip([*calls, "dattri.retrain_lds"], (MODELS, ONE_BY_ONE, OF_DATTRI), strict=True)
    )
    if dattri_retrain_lds:
        calls["dattri.retrain_lds"] = lambda: with_dattri(model, images, labels)
    rows = []
    for method, (wall, cpu) in reporting.best_times(ROUNDS, **calls).items():
        count = trained[method]
        rows.append(
            {"method": method, "wall ms": 1e3 * wall / count, "processor ms": 1e3 * cpu / count}
        )
    operations = 6 * MULTIPLY_ADDS[name] * half * EPOCHS
    limit = 1e3 * operations / product_speed()
    rows.append({"method": "limit: arithmetic", "wall ms": limit, "processor ms": float("nan")})
    for row in rows:
        row["wall ratio"] = row["wall ms"] / rows[0]["wall ms"]
        row["processor ratio"] = row["processor ms"] / rows[0]["processor ms"]
    reporting.table(f"a model ({name}), {half} examples, {EPOCHS} epochs", rows)
    difference = largest_difference(trainer, subsets[:8], images)
    print(f"  largest difference of a logit, together against alone: {difference:.2g}")
    rows[-1]["processor ms"] = rows[-1]["processor ratio"] = None
    return {
        "model": name,
        "threads": torch.get_num_threads(),
        "methods": rows,
        "largest_logit_difference": difference,
    }


def keep(models):
    """Write each model's weights, as dattri does."""
    with tempfile.TemporaryDirectory() as path:
        for number, model in enumerate(models):
            torch.save(model.state_dict(), Path(path) / f"{number}.pt")


def with_dattri(model, images, labels):
    def train_func(loader, seed=None):
        torch.manual_seed(seed)
        network = model()
        optimizer = torch.optim.SGD(network.parameters(), **OPTIONS)
        for _ in range(EPOCHS):
            for inputs, targets in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs), targets).backward()
                optimizer.step()
        return network

    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH)
    with tempfile.TemporaryDirectory() as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dattri_retrain_lds(train_func, loader, path, num_subsets=OF_DATTRI, seed=0)


def product_speed(size=1024):
    """Operations a second of a float32 matrix product."""
    a = torch.randn(size, size)
    seconds = reporting.best_seconds(10, product=lambda: a @ a)["product"]
    return 2 * size**3 / seconds


def largest_difference(trainer, subsets, images):
    together = train_many(trainer, subsets, range(len(subsets)))
    alone = [trainer.train(subset, seed) for seed, subset in enumerate(subsets)]
    with torch.no_grad():
        return max(
            float((a(images) - b(images)).abs().max()) for a, b in zip(together, alone, strict=True)
        )


if __name__ == "__main__":
    main()
