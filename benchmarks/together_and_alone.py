"""Models trained together and alone, over kinds of model, optimizer and schedule.

    python benchmarks/together_and_alone.py

For each kind, 16 models on random subsets of 512 of scikit-learn's digits: whether a stack trains
them and if not why, the largest difference of a logit between a model trained together and alone,
in standard deviations of the logit between the models; processor time alone divided by together,
the probe of a stack apart; and the memory that the probe predicts for the stack from one step of
two models, divided by the most that the stack has allocated. Time of the probe is shown too, and
what a change of the initial weights by 1e-7 of their size does to models trained alone: training
amplifies rounding, in some kinds by much. Whether a difference is rounding shows in float64, where
the same comparison is made again: rounding is 5e8 times smaller there, another computation is not.
"""

import time
import warnings
from dataclasses import replace

import numpy as np
import reporting
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.retraining import SequentialTrainingWarning, Trainer, train_many
from coarlib.retraining.probe import Allocations
from coarlib.retraining.vectorised import probed, train_stack
from estimate.digits.model import digits

MODELS, EXAMPLES, BATCH, EPOCHS, ROUNDS = 16, 512, 32, 3, 2
CPU = torch.device("cpu")
SGD, OPTIM, LR = torch.optim.SGD, torch.optim, torch.optim.lr_scheduler
MOMENTUM = {"lr": 0.05, "momentum": 0.9}


class Then(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Residual(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x):
        return F.relu(x + self.body(x))


class Rows(nn.Module):
    """An image as a sequence of its eight rows through layers that take [B, L, E]."""

    def __init__(self, layer, width=8, out=16):
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(8, width), layer, nn.Linear(out, 10)

    def forward(self, x):
        found = self.layer(self.embed(x.flatten(1, 2)))
        found = found[0] if isinstance(found, tuple) else found
        return self.head(found.mean(1))


class Pixels(nn.Module):
    """An image as a text of its pixels' grey levels, the embedding tied to the output."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 16)
        self.mix, self.head, self.out = (
            nn.Linear(16, 16),
            nn.Linear(16, 17, bias=False),
            nn.Linear(17, 10),
        )
        self.head.weight = self.embed.weight

    def forward(self, x):
        tokens = (x.flatten(1) * 16).long().clamp(0, 16)
        return self.out(self.head(torch.tanh(self.mix(self.embed(tokens))).mean(1)))


def encoder(dropout):
    return Rows(nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True), 16)


def convolutional(norm=None, pool=nn.MaxPool2d):
    layers = [nn.Conv2d(1, 8, 3, padding=1), norm(8) if norm else nn.Identity(), nn.ReLU(), pool(2)]
    return nn.Sequential(
        *layers, nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )


def residual(norm):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        Residual(8, norm),
        Residual(8, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def perceptron(*extra, hidden=64):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), *extra, nn.ReLU(), nn.Linear(hidden, 10)
    )


def depthwise():
    return nn.Sequential(
        nn.Conv2d(1, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.GELU(),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def sequence():
    return nn.Sequential(
        nn.Flatten(1, 2),
        nn.Conv1d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def squared(outputs, targets):
    return (outputs - F.one_hot(targets, 10)).square().mean(1)


def groups(width):
    return nn.GroupNorm(2, width)


# name: (model, optimizer, its options, further settings)
KINDS = {
    "logistic, SGD, linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        SGD,
        MOMENTUM,
        {"schedule": "linear"},
    ),
    "perceptron, plain SGD": (perceptron, SGD, {"lr": 0.1}, {}),
    "perceptron, Nesterov, decay, cosine": (
        perceptron,
        SGD,
        MOMENTUM | {"nesterov": True, "weight_decay": 1e-3},
        {"schedule": "cosine"},
    ),
    "perceptron, AdamW, warm-up, cosine": (
        perceptron,
        OPTIM.AdamW,
        {"lr": 3e-3, "weight_decay": 0.01},
        {"schedule": "cosine", "warmup": 5},
    ),
    "perceptron, Adam, clipped": (perceptron, OPTIM.Adam, {"lr": 3e-3}, {"clip_norm": 0.5}),
    "perceptron, RMSprop, own StepLR": (
        perceptron,
        OPTIM.RMSprop,
        {"lr": 1e-3},
        {"schedule": lambda o, s: LR.StepLR(o, 8, 0.5)},
    ),
    "perceptron, Adagrad": (perceptron, OPTIM.Adagrad, {"lr": 0.02}, {}),
    "perceptron, NAdam, own OneCycle": (
        perceptron,
        OPTIM.NAdam,
        {"lr": 2e-3},
        {"schedule": lambda o, s: LR.OneCycleLR(o, 4e-3, total_steps=s)},
    ),
    "perceptron, Adadelta": (perceptron, OPTIM.Adadelta, {"lr": 1.0}, {}),
    "perceptron, LBFGS": (perceptron, OPTIM.LBFGS, {"lr": 0.1, "max_iter": 3}, {}),
    "perceptron, squared error": (perceptron, SGD, MOMENTUM, {"loss": squared}),
    "perceptron, augmented": (
        perceptron,
        SGD,
        MOMENTUM,
        {"augment": lambda x: x + 0.1 * torch.randn_like(x)},
    ),
    "perceptron, dropout": (lambda: perceptron(nn.Dropout(0.2)), SGD, MOMENTUM, {}),
    "perceptron, layer norm": (lambda: perceptron(nn.LayerNorm(64)), OPTIM.Adam, {"lr": 3e-3}, {}),
    "perceptron, batch norm": (lambda: perceptron(nn.BatchNorm1d(64)), SGD, MOMENTUM, {}),
    "wide perceptron (1,024)": (lambda: perceptron(hidden=1024), SGD, MOMENTUM, {}),
    "convolutional": (convolutional, SGD, MOMENTUM, {}),
    "convolutional, batch norm": (
        lambda: convolutional(nn.BatchNorm2d),
        SGD,
        MOMENTUM,
        {"drop_last": True},
    ),
    "convolutional, group norm": (lambda: convolutional(groups), OPTIM.AdamW, {"lr": 3e-3}, {}),
    "depthwise convolutions": (depthwise, SGD, MOMENTUM, {}),
    "1-D convolutions": (sequence, SGD, MOMENTUM, {}),
    "residual": (lambda: residual(nn.Identity), SGD, MOMENTUM, {}),
    "residual, batch norm": (lambda: residual(nn.BatchNorm2d), SGD, MOMENTUM, {}),
    "attention": (lambda: encoder(0.0), OPTIM.AdamW, {"lr": 3e-3}, {}),
    "attention, dropout": (lambda: encoder(0.1), OPTIM.AdamW, {"lr": 3e-3}, {}),
    "GRU": (lambda: Rows(nn.GRU(8, 16, batch_first=True)), OPTIM.Adam, {"lr": 5e-3}, {}),
    "LSTM": (lambda: Rows(nn.LSTM(8, 16, batch_first=True)), OPTIM.Adam, {"lr": 5e-3}, {}),
    "tied embedding": (Pixels, OPTIM.AdamW, {"lr": 5e-3}, {}),
}


def main():
    images, labels = (part[:EXAMPLES] for part in digits(held_out=False))
    held_out = digits(held_out=True)[0]
    rng = np.random.default_rng(0)
    halves = [rng.choice(EXAMPLES, EXAMPLES // 2, replace=False) for _ in range(MODELS)]
    rows = []
    for name, (model, optimizer, options, further) in KINDS.items():
        recipe = Trainer(model, images, labels, EPOCHS, BATCH, optimizer, options, **further)
        rows.append({"kind": name, **compare(recipe, halves, held_out)})
        print(*rows[-1].values(), sep=" | ", flush=True)
    reporting.table(f"{MODELS} models together and alone", rows)
    reporting.save("together_and_alone", rows, "torch")


def compare(recipe, subsets, held_out):
    recipe.check_pure(CPU)
    started = time.process_time()
    probe = probed(recipe, CPU)
    step = time.process_time() - started
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train_many(recipe, subsets, range(MODELS))  # times a stack, and gives it up if it is slower
    reasons = [str(w.message) for w in told if issubclass(w.category, SequentialTrainingWarning)]
    made = {}

    def together():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made["together"] = train_many(recipe, subsets, range(MODELS))

    def alone():
        made["alone"] = [recipe.train(subset, seed) for seed, subset in enumerate(subsets)]

    times = reporting.best_times(ROUNDS, together=together, alone=alone)
    with torch.no_grad():
        logits = {who: torch.stack([m(held_out) for m in models]) for who, models in made.items()}
    spread = logits["alone"].std(dim=0)
    gap = (logits["together"] - logits["alone"]).abs() / spread
    nudged = replace(recipe, model=lambda: changed(recipe.model()))
    others = [nudged.run(s, seed)(held_out).detach() for seed, s in enumerate(subsets)]
    amplified = (torch.stack(others) - logits["alone"]).abs() / spread
    ratio = memory = finer = None
    if not reasons:
        finer = float64_difference(recipe, subsets, held_out)
        ratio = times["alone"][1] / times["together"][1]
        with Allocations() as allocations:
            train_stack(recipe, subsets, range(MODELS), CPU)
        choice = recipe.verdicts.get(("cpu", MODELS.bit_length()))
        way = choice.way if choice else next(iter(probe.ways))
        memory = probe.ways[way] * MODELS / allocations.most
    why = reasons[0].removeprefix("models are trained one by one: ") if reasons else ""
    return {
        "stacked": not reasons,
        "largest difference (sd)": float(gap.max()),
        "the same in float64 (sd)": finer,
        "after a change of 1e-7 (sd)": float(amplified.max()),
        "alone / together (CPU time)": ratio,
        "predicted / measured memory": memory,
        "probe (s)": step,
        "alone, because": why,
    }


def float64_difference(recipe, subsets, held_out):
    finer = replace(recipe, model=lambda: recipe.model().double(), inputs=recipe.inputs.double())
    together = train_stack(finer, subsets, range(MODELS), CPU)
    alone = [finer.run(subset, seed) for seed, subset in enumerate(subsets)]
    with torch.no_grad():
        logits = [torch.stack([m(held_out.double()) for m in who]) for who in (together, alone)]
    return float(((logits[0] - logits[1]).abs() / logits[1].std(dim=0)).max())


def changed(model):
    generator = torch.Generator().manual_seed(0)  # the model's own stream stays as it is
    with torch.no_grad():
        for part in model.parameters():
            part.add_(1e-7 * part.abs().max() * torch.randn(part.shape, generator=generator))
    return model


if __name__ == "__main__":
    main()
