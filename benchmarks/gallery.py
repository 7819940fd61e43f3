"""Draw the gallery of docs/gallery.md: every figure of coarlib.plots, of small real runs.

    python benchmarks/gallery.py

Trains a CNN and a small network on scikit-learn's digits, ablates filters, records and explains a
training run, retrains on halves; writes docs/pictures/gallery/*.png and docs/gallery.md. Takes two
minutes.
"""

import inspect
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import coarlib as cl
from coarlib import plots
from coarlib.baselines.components import leave_one_out, random_scores
from coarlib.history import open_run
from coarlib.history.setups import train_with_history
from coarlib.path_kernel import explain
from coarlib.path_kernel.studies import training_curve
from coarlib.plots.style import save_png, styled
from coarlib.regression.rows import StoreRows
from coarlib.report.learning import look_ahead
from coarlib.report.strongest import layer_means, nearest
from coarlib.retraining import RetrainTask, Trainer
from coarlib.scoring.scoreboard import Line, Scoreboard
from estimate.digits.model import digits, load_or_train
from estimate.digits_path.setup import DigitsPath

DOCS = Path(__file__).resolve().parent.parent / "docs"
PICTURES = DOCS / "pictures" / "gallery"
ROWS, SINGLES = 1500, 240
HEAD = """# Gallery

Every figure is a function of `coarlib.plots`, or `cl.plots`: it returns a matplotlib figure, takes
`axes=` to draw into yours, and has colours that colour-blind readers can tell apart. Below are
small real runs on handwritten digits; `benchmarks/gallery.py` draws them.
"""
# There are seven colours; these are never the best buy.
NOT_DRAWN = ("gradient × parameter", "leave one out, then rows")
TITLES = {"digits": "digits, 240 filters", "resnet20": "ResNet-20, 688 filters"}
WORDS = {
    "rows, shared prior": "ablations alone",
    "passes": "gradient passes",
    "joined": "passes and ablations",
    "joined, all orders": "passes and ablations, all orders",
    "leave one out": "leave-one-out",
}
GROUPS = {
    "Does it work?": (
        "method_distributions", "correlation_histogram", "ranked_correlations",
        "predicted_against_true", "correlation_against_cost", "correlation_against_fraction",
        "learning_curve",
    ),
    "What decides an output?": ("attribution_bars", "layer_map", "nearest_examples"),
    "Which training data?": ("helpful_and_harmful", "lds_distribution", "scoreboard"),
    "What did training do?": (
        "training_curves", "influence_over_steps", "source_balance", "contribution_over_steps",
        "layer_kernels", "kernel_similarity",
    ),
    "Are the rows sound?": ("mask_balance", "outputs_under_masks"),
}  # fmt: skip


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        drawn = {**of_components(place), **of_training(place), **of_retraining(place)}
    drawn["correlation_against_cost"] = frontier("digits")
    draw_measured()
    if set(drawn) != {name for names in GROUPS.values() for name in names}:
        raise SystemExit(f"not all figures are drawn: {sorted(drawn)}")
    for name, figure in drawn.items():
        save_png(figure, PICTURES / f"{name}.png")
    write_page()
    print(f"wrote docs/gallery.md and {len(drawn)} pictures")


def draw_measured():
    """Draw what other benchmarks have measured."""
    for name in TITLES:
        save_png(frontier(name), DOCS / "pictures" / f"frontier_{name}.png")
    save_png(of_stories(), DOCS / "pictures" / "tinyllama_stories.png")


def write_page():
    page = [HEAD]
    for group, names in GROUPS.items():
        page.append(f"## {group}\n")
        for name in names:
            first = inspect.getdoc(getattr(plots, name)).split("\n")[0]
            alt = first.replace("Draw ", "").rstrip(".").replace("[", "(").replace("]", ")")
            link = f"reference/plots.md#{getattr(plots, name).__module__}.{name}"
            page.append(f"**[`{name}`]({link})** – {first}\n")
            page.append(f"![{alt[0].upper()}{alt[1:]}](pictures/gallery/{name}.png)\n")
    (DOCS / "gallery.md").write_text("\n".join(page), encoding="utf-8")


def frontier(name):
    """Accuracy against cost, as benchmarks/frontier.py measured it; a colour is one method."""
    results = results_of("frontier")
    every = dict.fromkeys(line["method"] for one in TITLES for line in results[one])
    every = [method for method in every if method not in NOT_DRAWN]
    points = {}
    for method in every:
        found = sorted(
            (line["forward_passes"], line["correlation"])
            for line in results[name]
            if line["method"] == method
        )
        points[WORDS.get(method, method)] = tuple(zip(*found, strict=True)) or ((), ())
    with styled() as plt:
        figure, axes = plt.subplots(figsize=(4.4, 3.7))
    plots.correlation_against_cost(points, {}, title=TITLES[name], axes=axes)
    return figure


def of_stories():
    """Methods at several fractions on the TinyStories Llama, as docs/ablation.md tabulates them."""
    lines = results_of("tinyllama_stories")["lines"]
    methods = list(dict.fromkeys(line["method"] for line in lines))
    of = {name: [line for line in lines if line["method"] == name] for name in methods}
    return plots.correlation_against_fraction(
        [line["fraction"] for line in of["COAR"]],
        {name: [line["pearson"] for line in one] for name, one in of.items()},
        {name: [(x["pearson_low"], x["pearson_high"]) for x in one] for name, one in of.items()},
        trained_at=0.05,
        title="TinyStories Llama, 900 components, 50 stories",
    )


def results_of(name):
    path = Path(__file__).parent / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"]


def of_components(place):
    model = load_or_train(place / "model.pt")
    images, labels = digits(held_out=True)
    images, labels = images[:120], labels[:120]
    task = cl.ablate(model, (images, labels), components="conv_filter")
    store = cl.Store.create(place / "store", task, rows=ROWS, keep_prob=0.9)
    cl.fill(store, task, device="cpu", quiet=True)
    found = cl.fit(store)
    source = StoreRows(store)
    split = found.split.positions(source)
    seen = look_ahead(source, split, np.arange(len(labels)), found)
    alone = np.vstack([np.ones(SINGLES, bool), ~np.eye(SINGLES, dtype=bool)])
    effects = leave_one_out(alone, task.rows(np.arange(SINGLES + 1), alone)["test_margins"].numpy())
    scores = {"leave-one-out": effects, "random": random_scores(SINGLES, len(labels))}
    r = {
        name: cl.correlate(seen.masks.astype(float) @ one, seen.true.astype(float), "pearson").r
        for name, one in scores.items()
    }
    held = found.held_out
    r = {"COAR": held.pearson, **r}
    digit = int(np.argsort(held.pearson)[len(labels) // 2])
    top = found.top(digit, 8)
    similar, queries = nearest(found.weight, 5), [0, 1, 2]
    layer = np.repeat(np.arange(len(task.component_set.sizes)), task.component_set.sizes)
    names = [group.module for group in task.component_set]
    order = np.argsort(seen.scores.pearson)[[0, len(labels) // 2, -1]]
    curve = seen.curve
    return {
        "method_distributions": plots.method_distributions(
            r, {"COAR": (held.mean_low, held.mean_high)}
        ),
        "correlation_histogram": plots.correlation_histogram(r, "digits"),
        "ranked_correlations": plots.ranked_correlations(held.pearson, held.low, held.high),
        "predicted_against_true": plots.predicted_against_true(
            seen.predicted[:, order], seen.true[:, order],
            [f"a {labels[at]}: r = {seen.scores.pearson[at]:.2f}" for at in order],
            output="margin",
        ),
        "correlation_against_fraction": against_fraction(task, found, effects),
        "learning_curve": plots.learning_curve(
            curve.rows, curve.correlation, curve.low, curve.high,
            (float(curve.wanted[0]), float(curve.predicted[0])),
        ),
        "attribution_bars": plots.attribution_bars(
            top.names, top.effect, None if top.error is None else 1.96 * top.error,
            image=images[digit, 0].numpy(), title=f"a {labels[digit]}", output="margin",
        ),
        "layer_map": plots.layer_map(
            layer_means(found.weight, layer, labels.numpy()), names, [str(k) for k in range(10)],
            output="margin",
        ),
        "nearest_examples": plots.nearest_examples(
            images[:, 0].numpy(), queries, similar.targets[queries], similar.cosines[queries]
        ),
        "mask_balance": plots.mask_balance(np.array(store.array("masks")).mean(0), 0.9),
        "outputs_under_masks": plots.outputs_under_masks(
            (np.array(store.array("test_margins")) > 0).mean(1), "accuracy of the ablated model"
        ),
    }  # fmt: skip


def against_fraction(task, found, effects):
    """Mean correlation of 100 fresh ablations at several fractions."""
    fractions, rng = [0.05, 0.1, 0.15, 0.2], np.random.default_rng(1)
    methods = {"COAR": found.weight, "leave-one-out": effects}
    means, intervals = ({name: [] for name in methods} for _ in range(2))
    for fraction in fractions:
        masks = rng.random((100, SINGLES)) >= fraction
        true = task.rows(np.arange(len(masks)), masks)["test_margins"].numpy()
        for name, weight in methods.items():
            scored = cl.lds(weight, masks, true, "pearson")
            means[name].append(scored.mean)
            intervals[name].append((scored.interval.low, scored.interval.high))
    return plots.correlation_against_fraction(fractions, means, intervals, trained_at=0.1)


def of_training(place):
    setup, points = DigitsPath(), 40
    model = train_with_history(setup, place / "history", quiet=True)
    train, test = setup.train_samples(), setup.test_samples()
    run = open_run(place / "history", model, setup.loss(), train)
    inputs, targets = (part[:points] for part in test)
    found = explain(
        run, inputs, targets, output="logit", tolerance=1e-3, quiet=True,
        by=["sample", ("tensor", "step"), ("sample", "tensor")],
    )  # fmt: skip
    curves = {
        name: training_curve(run, *s) for name, s in (("training", train), ("held-out", test))
    }
    steps = {k: np.asarray(found.by("tensor", "step", source=k)).sum(2)[:, 0].mean(0)
             for k in ("data", "weight_decay")}  # fmt: skip
    rows, columns = (part.argsort(stable=True).numpy() for part in (targets, train[1]))
    pictures = [part.reshape(-1, 8, 8).numpy() for part in (inputs, train[0])]
    shown = [0, 1, 2]
    return {
        "training_curves": plots.training_curves(
            {name: (one.steps, one.accuracy, one.loss) for name, one in curves.items()}
        ),
        "influence_over_steps": plots.influence_over_steps(found),
        "source_balance": plots.source_balance(found),
        "contribution_over_steps": plots.contribution_over_steps(
            np.arange(setup.num_steps),
            {name.replace("_", " "): one for name, one in steps.items()},
            output="logit of the label",
        ),
        "layer_kernels": plots.layer_kernels(found, (rows, columns), ["0.weight", "2.weight"]),
        "kernel_similarity": plots.kernel_similarity(found, rows, "held-out digit, by class"),
        "helpful_and_harmful": plots.helpful_and_harmful(
            pictures[0][shown], pictures[1], np.asarray(found.by("sample"))[shown, 0],
            titles=[f"a {targets[at]}" for at in shown],
            training_titles=[str(int(label)) for label in train[1]],
        ),
    }  # fmt: skip


def of_retraining(place):
    setup = DigitsPath()
    train, test = setup.train_samples(), [part[:40] for part in setup.test_samples()]
    trainer = Trainer(setup.model, *train, epochs=8, batch_size=32)

    def log_odds(model, device):
        chosen = -F.cross_entropy(model(test[0]), test[1], reduction="none")
        return chosen - torch.log1p(-chosen.exp())

    task = RetrainTask(trainer, log_odds, runs=2, keep_runs=True)
    design = {"kind": "fixed_size", "keep_prob": 0.5}
    store = cl.Store.create(place / "halves", task, rows=120, design=design)
    cl.fill(store, task, device="cpu", quiet=True)
    masks, outputs = np.array(store.array("masks")), np.array(store.array("test_margins"))
    scores = {
        "metagradients": cl.metagradients_of_seeds(
            trainer, *test, seeds=range(6), kept=0.5, output="log_odds", removals=0, quiet=True
        ).scores,
        "ridge on 160 trainings": cl.fit(masks[:80], outputs[:80].mean(1), "ridge").weight,
        "random": random_scores(masks.shape[1], 40),
    }
    results = {name: cl.lds(one, masks[80:], outputs[80:]) for name, one in scores.items()}
    ceiling = cl.noise_ceiling(outputs)
    lines = [
        Line(name, {
            "mean": float(one.mean), "noise_ceiling": ceiling.mean,
            "interval": {"low": one.interval.low, "high": one.interval.high},
        })
        for name, one in sorted(results.items(), key=lambda pair: -pair[1].mean)
    ]  # fmt: skip
    board = Scoreboard(tuple(lines), results["random"].regime)
    return {
        "lds_distribution": plots.lds_distribution(
            {name: one.correlation for name, one in results.items()}, ceiling.mean
        ),
        "scoreboard": plots.scoreboard(board),
    }


if __name__ == "__main__":
    main()
