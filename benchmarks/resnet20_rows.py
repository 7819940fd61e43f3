"""Real rows that several benchmarks share, made once: ResNet-20 on 200 CIFAR-10 test images.

    python benchmarks/resnet20_rows.py [--out out/resnet20]

3,000 ablations of 5% of its 688 filters, and the guesses of gradient_scores: a quarter of an hour
of one core. An interrupted run goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT, DATA = ROOT / "out" / "resnet20", ROOT.parent / "shared" / "data"
ROWS, SKIP, KEEP = 3000, 5, 0.95


def settings(data=DATA):
    """What the task of these rows takes; None where its model and images are not here."""
    files = {
        "model_path": data / "akamaster_resnet20-12fca82f.th",
        "beton_path": data / "cifar10_test1000_lossless.npz",
    }
    if not all(path.is_file() for path in files.values()):
        return None
    return {key: str(path) for key, path in files.items()} | {
        "subsample_skip": SKIP,
        "autocast": "none",
    }


def make(out=OUT):
    """(store, guesses), made where they are not; None where model and images are not here."""
    found, store, scores = settings(), out / "store", out / "scores.npz"
    if found is None:
        print("ResNet-20 and its images are not here: left out")
        return None
    words = [f"--set={key}={value}" for key, value in found.items()]
    task = ["--task", "cifar_resnet", *words]
    if not store.exists():
        coar("initialize_store", str(store), *task, "--rows", str(ROWS), "--keep", str(KEEP))
    coar("make_dataset", str(store), *task)
    if not scores.exists():
        coar("gradient_scores", *task, "--out", str(scores))
    return store, scores


def coar(*words):
    subprocess.run([sys.executable, "-m", "coarlib", *words], check=True, cwd=ROOT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    print(json.dumps([str(path) for path in make(parser.parse_args().out.resolve()) or ()]))
