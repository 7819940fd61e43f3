"""Exact path kernel against the reference implementation (explaind), in one run, on one thread.

    python benchmarks/path_kernel.py [--nodes 10]

Configuration A: (a+b) mod 23, one-layer transformer (8,160 parameters with explaind's own model),
200 training pairs in batches of 50, 40 AdamW updates, 20 test points. Both train with a history and
explain it. Like is compared with like: the kernel of test points, training samples and all outputs
on both sides (the reference keeps no kernel by parameter and does not evaluate itself), and the
prediction alone on both sides; one scalar target, which the reference cannot do, has no ratio. Ours
runs at the largest tolerance whose error is not larger than the reference's: of kernels, the
largest error of a (test point, output, training sample) against float64 at a tolerance of 1e-6; of
predictions, against the model's true outputs. Both are warmed up on two test points and take turns;
CPU seconds of the process, the best of as many turns each. explaind is looked for under
``build/explaind`` (see docs/path_kernel.md); the comparison is skipped with a word where it is
absent.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import reporting
import torch
from torch.nn import functional as F

from coarlib.history import History, TrainingLoss, open_run, record
from coarlib.path_kernel import explain, predict

ROOT = Path(__file__).resolve().parent.parent
EXPLAIND = ROOT / "build" / "explaind"
RECORDINGS, TURNS = 3, 1
MODULUS, STEPS, BATCH, TRAIN, TEST = 23, 40, 50, 200, 20
ADAMW = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.98)}
TOLERANCES = (3e-3, 2e-3, 1.5e-3, 1e-3, 6e-4, 3e-4, 2e-4, 1.2e-4, 1e-4, 6e-5, 3e-5)


def data():
    pairs = [(b, MODULUS, a, MODULUS + 1) for a in range(MODULUS) for b in range(a, MODULUS)]
    tokens = torch.tensor(pairs)
    targets = (tokens[:, 0] + tokens[:, 2]) % MODULUS
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAIN], order[TRAIN : TRAIN + TEST]
    return (tokens[train], targets[train]), (tokens[test], targets[test])


def build():
    from explaind.modulo_model.model import SingleLayerTransformerClassifier

    torch.manual_seed(0)
    return SingleLayerTransformerClassifier(MODULUS + 2, d_model=32, nhead=4, dim_mlp=64)


def batches():
    generator = torch.Generator().manual_seed(1)
    order = []
    while len(order) < STEPS:
        order += list(torch.randperm(TRAIN, generator=generator).split(BATCH))
    return order[:STEPS]


def train_ours(train, path=None, repeats=1, **options):
    """Return the model and the CPU seconds of the loop; recorded if ``path`` is given."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    context = contextlib.nullcontext()
    steps = batches() * repeats
    if path is not None:
        loss = TrainingLoss(F.nll_loss)
        options = {"num_steps": len(steps), "max_batch": BATCH, "quiet": True, **options}
        context = record(model, optimizer, path, samples=train, loss=loss, **options)
    with context as history:
        started = time.process_time()
        for batch in steps:
            optimizer.zero_grad()
            F.nll_loss(model(train[0][batch]), train[1][batch]).backward()
            if history is not None:
                history.batch(batch)
            optimizer.step()
    return model, time.process_time() - started


def train_reference(train, directory):
    from explaind.data_paths import DataPath
    from explaind.model_paths import ModelPath
    from explaind.modulo_model.loss import RegularizedCrossEntropyLoss
    from explaind.optimizer_paths import AdamWOptimizerPath

    class Pairs(torch.utils.data.Dataset):
        def __init__(self):
            self.data, self.targets = train[0], list(train[1])

        def __getitem__(self, index):
            return self.data[index], self.targets[index]

        def __len__(self):
            return TRAIN

    paths = {"device": "cpu", "overwrite": True}
    model = ModelPath(build(), output_dim=25, checkpoint_path=f"{directory}/m.pt", **paths)
    path = f"{directory}/o.pt"
    optimizer = AdamWOptimizerPath(model, checkpoints=[], checkpoint_path=path, **paths, **ADAMW)
    loss = RegularizedCrossEntropyLoss(alpha=0.0)
    steps = [batch.tolist() for batch in batches()]
    loader = torch.utils.data.DataLoader(Pairs(), batch_sampler=steps)
    log = DataPath(loader, checkpoint_path=f"{directory}/d.pt", overwrite=True, full_batch=False)
    started = time.process_time()
    for batch in log.dataloader:
        inputs, targets = log.get_batch(batch)
        optimizer.zero_grad()
        value, _ = loss(model.forward(inputs), targets, params=model.parameters(), output_reg=True)
        value.backward()
        optimizer.step()
        model.log_checkpoint()
        optimizer.log_checkpoint()
    seconds = time.process_time() - started
    for part in (optimizer, model, log):
        part.save_checkpoints()
    size = sum(file.stat().st_size for file in Path(directory).iterdir())
    return (model, optimizer, loss, log), seconds, size


def run_reference(parts, test, nodes, keep):
    """Outputs and, if ``keep``, the kernel [N, K, D] of all samples by the reference."""
    from explaind.epk_model import ExactPathKernelModel

    kernel = ExactPathKernelModel(
        *parts,
        integral_eps=1 / nodes,
        early_integral_eps=1 / nodes,
        device="cpu",
        evaluate_predictions=False,
        kernel_store_interval=float("nan"),  # never store slices: at step 0 that fails without more
    )
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        found = kernel.predict(test[0], y_test=test[1], keep_kernel_matrices=keep)
    if not keep:
        return found[0], None
    return found[0], sum(found[2].values())[:, 0].numpy() / BATCH


def in_turn(**calls):
    """CPU seconds of each call, the best of some turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(TURNS):
        for name, call in calls.items():
            started = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - started)
    return best


def loosest(function, error_of, target):
    """The largest tolerance whose error is within ``target``, and that error."""
    for tolerance in TOLERANCES:
        error = error_of(function(tolerance=tolerance))
        if error <= target:
            break
    return tolerance, error


def compare(sub, exact, parts, test, all_nodes):
    """Lines of the table: a case, at the reference's accuracies."""
    truth, rows = parts[0].forward(test[0], step=STEPS), []
    kernel = explain(exact, *test, quiet=True, tolerance=1e-6).by("sample")

    def of_total(found):
        return found.checks()["total"]

    def of_kernel(found):
        return float(abs(found.by("sample") - kernel).max())

    target_of = partial(explain, sub, *test, output="log_probability", quiet=True)
    cases = {
        "sample kernel, all outputs": (partial(explain, sub, *test, quiet=True), of_kernel, True),
        "prediction only": (partial(predict, sub, *test, quiet=True), of_total, False),
        "one scalar target": (target_of, of_total, None),
    }
    for nodes in all_nodes:
        outputs, theirs = run_reference(parts, test, nodes, True)
        errors = {
            of_kernel: float(abs(theirs - kernel).max()),
            of_total: (outputs - truth).abs().max().item(),
        }
        for name, (function, error_of, keep) in cases.items():
            tolerance, error = loosest(function, error_of, errors[error_of])
            calls = {"ours": partial(function, tolerance=tolerance)}
            if keep is not None:
                calls["reference"] = partial(run_reference, parts, test, nodes, keep)
            seconds = in_turn(**calls)
            row = {"case": name, "nodes": nodes, "reference error": errors[error_of]}
            row |= {"tolerance": tolerance, "our error": error}
            row |= {f"{side} CPU s": seconds.get(side) for side in ("reference", "ours")}
            row["ratio"] = seconds["reference"] / seconds["ours"] if keep is not None else None
            rows.append(row)
            print(row, flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100], help="of the reference")
    asked = parser.parse_args()
    reporting.one_thread()
    sys.path.insert(0, str(EXPLAIND))
    train, test = data()
    try:
        build()
    except ImportError:
        print(f"explaind is not at {EXPLAIND}; see docs/path_kernel.md. Nothing was measured.")
        return
    silent = io.StringIO()
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model, _ = train_ours(train, root / "h")
        train_ours(train, root / "thin", every=20)
        results["recording"] = recording(train, root)
        (root / "reference").mkdir()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            parts, seconds, size = train_reference(train, root / "reference")
        results["reference_recording_seconds"] = seconds
        bytes_ = {name: History(root / name).settings.num_bytes() for name in ("h", "thin")}
        results["history_bytes"] = {
            "reference": size,
            "full": bytes_["h"],
            "every_20": bytes_["thin"],
        }
        sub = open_run(root / "h", model, TrainingLoss(F.nll_loss), train)
        few = test[0][:2], test[1][:2]
        explain(sub, *few, quiet=True)  # first uses import and compile, on both sides
        predict(sub, *few, quiet=True)
        run_reference(parts, few, 2, True)
        precise = {"device": "cpu", "dtype": torch.float64}
        exact = open_run(root / "h", model, TrainingLoss(F.nll_loss), train, **precise)
        results["speed"] = compare(sub, exact, parts, test, asked.nodes)
        results["gradient_bytes_per_node"] = TEST * 25 * 8160 * 4
        results["limit"] = limit(sub, test)
    results["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    reporting.save("path_kernel", results, "torch", "explaind")
    sizes = results["history_bytes"]
    print("history bytes:", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    print(f"recording over plain training: {results['recording']['ratio']:.2f}")


def recording(train, root):
    """CPU seconds of training without and with a history, in turn."""
    pairs = [
        (
            train_ours(train, repeats=20)[1],
            train_ours(train, root / f"r{turn}", repeats=20)[1],
        )
        for turn in range(RECORDINGS)
    ]
    plain, recorded = (min(seconds) for seconds in zip(*pairs, strict=True))
    return {"plain": plain, "recorded": recorded, "ratio": recorded / plain}


def limit(sub, test):
    """CPU seconds of nothing but the outputs at the states, by single and by batched passes."""
    walk, seconds = sub.walk, []
    states = [walk.theta(number) for number in range(STEPS + 1)]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    value = lambda state: torch.func.functional_call(sub.model, state, (test[0],))  # noqa: E731
    with torch.no_grad():
        for call in (
            lambda: [value(state) for state in states],
            lambda: torch.vmap(value)(stacked),
        ):
            call()
            started = time.process_time()
            call()
            seconds.append(time.process_time() - started)
    return {"forward_passes_seconds": seconds[0], "in_one_pass_seconds": seconds[1]}


if __name__ == "__main__":
    main()
