"""Tiny training runs for the path kernel, and a brute-force decomposition of them.

The brute force knows nothing of the library: it trains with torch.optim, keeps everything, and
applies the definition (a momentum buffer for every sample, 14 Gauss-Legendre nodes a step) with
plain autograd loops in float64.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.history import NormRegulariser, TrainingLoss, record

BATCHES = ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 2], [3, 1, 7, 0], [6, 2], [5, 9, 8, 4])
NUM_SAMPLES, NUM_TEST = 10, 2


def tiny_model(seed=0, dtype=torch.float64, activation=nn.Tanh):
    """An MLP 3-5-5 classes with 50 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 5)).to(dtype)


def tiny_data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_SAMPLES + NUM_TEST, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 5, (NUM_SAMPLES + NUM_TEST,), generator=generator)
    inputs = inputs.to(dtype)
    train = inputs[:NUM_SAMPLES], targets[:NUM_SAMPLES]
    return train, (inputs[NUM_SAMPLES:], targets[NUM_SAMPLES:])


@dataclass
class Run:
    """How to train: everything that the path kernel has to follow."""

    optimizer: str = "AdamW"
    options: dict = field(default_factory=lambda: {"lr": 0.05})
    groups: bool = False
    schedule: bool = False
    clip: float | None = None
    regulariser: NormRegulariser | None = None
    reduction: str = "mean"
    batches: tuple = BATCHES
    function: object = F.cross_entropy

    def loss(self):
        function = self.function
        if self.reduction == "sum":
            return TrainingLoss(summed_cross_entropy, "sum", self.regulariser)
        return TrainingLoss(function, "mean", self.regulariser)

    def build(self, model):
        parameters = model.parameters()
        if self.groups:
            first, second = list(model[0].parameters()), list(model[2].parameters())
            parameters = [
                {"params": second, "lr": 0.02, "weight_decay": 0.3},
                {"params": first},
            ]
        return getattr(torch.optim, self.optimizer)(parameters, **self.options)

    def train(self, model, optimizer, data, begin=0, before_step=lambda number: None):
        """Run the updates; ``before_step`` is called with gradients in place."""
        inputs, targets = data
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7) if self.schedule else None
        loss = self.loss()
        for number, batch in enumerate(self.batches[begin:], begin):
            optimizer.zero_grad()
            named = dict(model.named_parameters())
            loss.of_batch(model(inputs[batch]), targets[batch], named).backward()
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            before_step(number)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()

    def record(self, path, model=None, data=None, **options):
        """Train under the recorder; returns the trained model."""
        model = tiny_model() if model is None else model
        data = tiny_data()[0] if data is None else data
        optimizer = self.build(model)
        options = {"max_batch": max(map(len, self.batches)), "quiet": True, **options}
        with record(
            model,
            optimizer,
            path,
            samples=data,
            loss=self.loss(),
            num_steps=len(self.batches),
            **options,
        ) as history:
            self.train(model, optimizer, data, before_step=lambda n: history.batch(self.batches[n]))
        return model


def summed_cross_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum")


def brute_force(run, output=lambda logits, target: logits):
    """Decompose by definition.

    Returns a dict with float64 arrays: ``taken`` and ``acted`` [N, K, samples, tensors, steps],
    ``decay`` and ``penalty`` [N, K, tensors, steps] where they acted, ``outputs`` [steps+1, N, K].
    """
    model = tiny_model()
    train, test = tiny_data()
    optimizer = run.build(model)
    log = []

    def note(number):
        groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        log.append(
            {
                "theta": [p.detach().clone() for p in model.parameters()],
                "grad": [p.grad.clone() for p in model.parameters()],
                "hyper": [dict(groups[id(p)]) for p in model.parameters()],
            }
        )

    run.train(model, optimizer, train, before_step=note)
    thetas = [entry["theta"] for entry in log] + [[p.detach().clone() for p in model.parameters()]]
    steps, tensors = len(log), len(thetas[0])

    def forward(theta, x):
        hidden = torch.tanh(F.linear(x, theta[0], theta[1]))
        return F.linear(hidden, theta[2], theta[3])

    def outputs_at(theta):
        return torch.stack([output(forward(theta, x), y) for x, y in zip(*test, strict=True)])

    nodes, weights = np.polynomial.legendre.leggauss(14)
    nodes, weights = (nodes + 1) / 2, weights / 2

    def phi(step, n):
        """[K] lists of tensors."""
        total = None
        for a, w in zip(nodes, weights, strict=True):
            theta = [
                ((1 - a) * p + a * q).requires_grad_()
                for p, q in zip(thetas[step], thetas[step + 1], strict=True)
            ]
            value = output(forward(theta, test[0][n]), test[1][n]).reshape(-1)
            found = [torch.autograd.grad(v, theta, retain_graph=True) for v in value]
            scaled = [[w * g for g in row] for row in found]
            total = (
                scaled
                if total is None
                else [
                    [s + t for s, t in zip(r, o, strict=True)]
                    for r, o in zip(scaled, total, strict=True)
                ]
            )
        return total

    def entering(step):
        """{(kind, sample): list of tensors}: clipped gradients that enter the optimizer."""
        leaf = [p.clone().requires_grad_() for p in thetas[step]]
        batch = run.batches[step]
        found = {}
        weight = 1 / len(batch) if run.reduction == "mean" else 1.0
        for i in batch:
            one = F.cross_entropy(forward(leaf, train[0][i])[None], train[1][i][None])
            found["data", i] = [weight * g for g in torch.autograd.grad(one, leaf)]
        if run.regulariser is not None:
            penalty = run.regulariser.alpha * sum(torch.norm(p, p=run.regulariser.p) for p in leaf)
            found["penalty", 0] = list(torch.autograd.grad(penalty, leaf))
        whole = [sum(g[k] for g in found.values()) for k in range(tensors)]
        if run.clip is not None:
            norm = torch.sqrt(sum((g**2).sum() for g in whole))
            scale = min(1.0, run.clip / (float(norm) + 1e-6))
            found = {key: [scale * g for g in value] for key, value in found.items()}
            whole = [scale * g for g in whole]
        for k in range(tensors):  # the brute force itself is checked against training
            torch.testing.assert_close(whole[k], log[step]["grad"][k], rtol=1e-9, atol=1e-12)
        if run.optimizer != "AdamW":
            found["decay", 0] = [
                h["weight_decay"] * p for h, p in zip(log[step]["hyper"], leaf, strict=True)
            ]
        return {key: [g.detach() for g in value] for key, value in found.items()}

    inputs = [entering(s) for s in range(steps)]
    totals = [[sum(g[k] for g in step.values()) for k in range(tensors)] for step in inputs]
    second = [torch.zeros_like(p) for p in thetas[0]]
    keys = sorted({key for step in inputs for key in step})
    moves = np.zeros((steps, steps, len(keys)), object)  # [acted, taken, key] -> list of tensors
    for s in range(steps):
        if run.optimizer != "SGD":
            second = [
                h["betas"][1] * v + (1 - h["betas"][1]) * u**2
                for h, v, u in zip(log[s]["hyper"], second, totals[s], strict=True)
            ]
        for t in range(s + 1):
            for j, key in enumerate(keys):
                if key in inputs[t]:
                    moves[s, t, j] = [
                        _move(run, log, s, t, k, inputs[t][key][k], second[k])
                        for k in range(tensors)
                    ]
    features = [[phi(s, n) for n in range(NUM_TEST)] for s in range(steps)]
    outputs = torch.stack([outputs_at(theta) for theta in thetas]).numpy()
    kk = outputs.shape[2]
    result = {
        "outputs": outputs,
        "taken": np.zeros((NUM_TEST, kk, NUM_SAMPLES, tensors, steps)),
        "acted": np.zeros((NUM_TEST, kk, NUM_SAMPLES, tensors, steps)),
        "decay": np.zeros((NUM_TEST, kk, tensors, steps)),
        "penalty": np.zeros((NUM_TEST, kk, tensors, steps)),
    }
    for s in range(steps):
        for n in range(NUM_TEST):
            for c in range(kk):
                for k in range(tensors):
                    f = features[s][n][c][k]
                    for t in range(s + 1):
                        for j, (kind, i) in enumerate(keys):
                            if not isinstance(moves[s, t, j], list):
                                continue
                            value = float((f * moves[s, t, j][k]).sum())
                            if kind == "data":
                                result["taken"][n, c, i, k, t] += value
                                result["acted"][n, c, i, k, s] += value
                            else:
                                result[kind][n, c, k, s] += value
                    if run.optimizer == "AdamW":
                        h = log[s]["hyper"][k]
                        shrink = -h["lr"] * h["weight_decay"] * float((f * thetas[s][k]).sum())
                        result["decay"][n, c, k, s] += shrink
    return result


def _move(run, log, s, t, k, gradient, second):
    """Movement of tensor k in update s by a gradient that entered in update t."""
    h = log[s]["hyper"][k]
    if run.optimizer == "SGD":
        momentum = h["momentum"]
        if not momentum:
            return -h["lr"] * gradient if s == t else 0 * gradient
        take = 1.0 if t == 0 else 1 - h["dampening"]
        buffered = momentum ** (s - t) * take * gradient
        if not h["nesterov"]:
            return -h["lr"] * buffered
        return -h["lr"] * (momentum * buffered + (gradient if s == t else 0 * gradient))
    beta1, beta2 = h["betas"]
    buffered = beta1 ** (s - t) * (1 - beta1) * gradient
    root = (second / (1 - beta2 ** (s + 1))).sqrt() + h["eps"]
    return -h["lr"] * buffered / (1 - beta1 ** (s + 1)) / root
