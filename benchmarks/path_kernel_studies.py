"""Studies with the path kernel on digits: pruning, retraining (LDS), similarity, kernels.

    python benchmarks/path_kernel_studies.py

A 64-128-10 network learns 300 digits by SGD with momentum, recorded. 100 held-out digits are
explained; pruning is judged on 200 others. Compared are

* orders in which to remove hidden units: by the path kernel's mean absolute contribution, by COAR
  (least squares on 1,500 random ablations of the same outputs), by the norm of their weights, and
  random ones: accuracy, and KL divergence from the whole network;
* attributions of training samples against the outputs of 100 networks retrained on random halves
  (LDS), beside the product of gradients at the last parameters;
* cosines of attribution vectors within and between classes.

Writes results/path_kernel_studies.json and the pictures of docs/path_kernel.md. One minute.
"""

import tempfile
from pathlib import Path

import numpy as np
import reporting
import torch
from torch.nn import functional as F

from coarlib import plots
from coarlib.ablation import WeightAblation, find_components
from coarlib.history import TrainingLoss, open_run
from coarlib.history.gradients import SampleGradients
from coarlib.history.setups import train_with_history
from coarlib.path_kernel import explain
from coarlib.path_kernel.studies import component_scores, pruning_curves, similarity
from coarlib.plots.style import line_style, save_png, styled
from coarlib.regression import Moments, fit
from coarlib.scoring import lds
from estimate.digits_path.setup import DigitsPath

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
HIDDEN, EXPLAINED, ABLATIONS, KEEP, RETRAINED = 128, 100, 1500, 0.9, 100


def main():
    torch.set_num_threads(1)
    setup = DigitsPath(hidden=HIDDEN)
    with tempfile.TemporaryDirectory() as folder:
        model = train_with_history(setup, f"{folder}/history", quiet=True)
        units = find_components(model, ["linear_row"], include=["0"])
        inputs, targets = setup.test_samples()
        points = inputs[:EXPLAINED], targets[:EXPLAINED]
        found = explain(
            open_run(f"{folder}/history", model, setup.loss(), setup.train_samples()),
            *points,
            output="logit",
            by=["sample", "component", ("sample", "tensor")],
            components=units,
            tolerance=1e-4,
            quiet=True,
        )
    others = inputs[EXPLAINED:], targets[EXPLAINED:]
    results = {
        "checks": found.checks(),
        "pruning": pruning(model, units, found, points, others),
        "retraining": retraining(setup, model, found, points),
        "similarity": alike(found, points[1]),
    }
    draw_kernels(found, setup.train_samples()[1], points[1])
    reporting.save("path_kernel_studies", results, "torch", "scikit-learn", "matplotlib")


def coar_scores(model, units, points):
    """Mean absolute effect of each unit on the explained outputs, by COAR."""
    generator = np.random.default_rng(0)
    masks = generator.random((ABLATIONS, len(units))) < KEEP
    outputs = []
    with torch.no_grad(), WeightAblation(model, units) as ablation:
        for mask in masks:
            ablation.apply(torch.from_numpy(mask))
            outputs.append(model(points[0]).gather(1, points[1][:, None]).squeeze(1).numpy())
    fitted = fit(Moments.from_arrays(masks, np.array(outputs)), "least_squares")
    torch.set_num_threads(1)  # compiled parallel loops raise OpenMP's number for torch, too
    return np.abs(np.asarray(fitted.weight)).mean(1)


def pruning(model, units, found, points, others):
    scores = {
        "path kernel": component_scores(found),
        "COAR": coar_scores(model, units, points),
        "weight norm": model[0].weight.detach().norm(dim=1).numpy(),
    }
    curves = pruning_curves(model, units, scores, *others, points=17, random_orders=30)
    with styled() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2))
    for axis, kind in zip(axes, ("accuracy", "divergence"), strict=True):
        first = int(kind == "divergence")  # that of the whole network is zero
        for at, (name, curve) in enumerate(curves.items()):
            share, values = curve.removed[first:] / HIDDEN, getattr(curve, kind)[first:]
            axis.plot(share, values, label=name, marker=".", **line_style(at))
        axis.set_xlabel("share of hidden units removed")
    left, right = axes
    left.set_ylabel("accuracy")
    right.set_ylabel("KL from the whole network (nats)")
    right.set_yscale("log")
    left.legend()
    save(figure, "digits_pruning")
    rows = [
        {
            "order": name,
            "mean accuracy": float(curve.accuracy.mean()),
            "accuracy, half removed": float(curve.accuracy[8]),
            "KL, half removed": float(curve.divergence[8]),
        }
        for name, curve in curves.items()
    ]
    reporting.table("Removing hidden units, least important first", rows)
    ranks = {n: np.argsort(np.argsort(v)) for n, v in scores.items()}
    agreement = float(np.corrcoef(ranks["path kernel"], ranks["COAR"])[0, 1])
    print(f"  rank correlation of the path kernel's scores with COAR's: {agreement:.2f}")
    detail = {
        name: {key: np.round(getattr(curve, key), 5).tolist() for key in curve.__dataclass_fields__}
        for name, curve in curves.items()
    }
    return {"rows": rows, "rank_correlation_with_coar": agreement, "curves": detail}


def retraining(setup, model, found, points):
    inputs, targets = setup.train_samples()
    generator = np.random.default_rng(1)
    count = len(inputs)
    masks = np.stack([generator.permutation(count) < count // 2 for _ in range(RETRAINED)])
    outputs = []
    for mask in masks:
        kept, other = torch.from_numpy(np.flatnonzero(mask)), setup.model()
        optimizer = setup.optimizer(other)
        for step in range(setup.num_steps):
            batch = kept[torch.from_numpy(setup.batch(step, len(kept)))]
            optimizer.zero_grad()
            F.cross_entropy(other(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            outputs.append(other(points[0]).gather(1, points[1][:, None]).squeeze(1).numpy())
    methods = {
        "path kernel": found.attributions().weight,
        "gradients at the end": gradient_products(setup, model, points),
    }
    rows = []
    for name, weight in methods.items():
        score = lds(weight, masks, np.array(outputs))
        ends = {"low": score.interval.low, "high": score.interval.high}
        rows.append({"method": name, "LDS": float(score.mean), **ends})
    reporting.table(f"LDS, logit of the label, {RETRAINED} retrainings on halves", rows)
    return rows


def gradient_products(setup, model, points):
    """⟨∇ logit, -∇ loss⟩ at the trained parameters, [D, N]."""
    moving = {name: values.detach() for name, values in model.named_parameters()}
    train = SampleGradients(model, setup.loss()).per_sample(moving, {}, *setup.train_samples())
    of_label = SampleGradients(model, TrainingLoss(lambda o, t: -F.nll_loss(o, t)))
    test = of_label.per_sample(moving, {}, *points)
    return -sum(train[name].flatten(1) @ test[name].flatten(1).T for name in moving).numpy()


def alike(found, labels):
    order = labels.argsort(stable=True).numpy()
    vectors = np.asarray(found.by("sample"))[:, 0]
    cosines = similarity(vectors)
    same = np.equal.outer(labels.numpy(), labels.numpy())
    apart = ~np.eye(len(labels), dtype=bool)
    nearest = np.where(apart, cosines, -2).argmax(1)
    save(plots.kernel_similarity(found, order, "held-out digit, by class"), "digits_similarity")
    row = {
        "within a class": float(cosines[same & apart].mean()),
        "between classes": float(cosines[~same].mean()),
        "nearest has the same label": float((labels[nearest] == labels).double().mean()),
    }
    reporting.table("Cosines of attribution vectors", [row])
    return row


def draw_kernels(found, train_labels, test_labels):
    rows, columns = (labels.argsort(stable=True).numpy() for labels in (test_labels, train_labels))
    names = [name for name in found.about["tensors"] if name.endswith("weight")]
    save(plots.layer_kernels(found, (rows, columns), names), "digits_kernels")


def save(figure, name):
    save_png(figure, PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
