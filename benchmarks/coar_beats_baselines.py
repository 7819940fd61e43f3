"""COAR end to end against the baselines, on two real models: the paper's main table, small.

    python benchmarks/coar_beats_baselines.py [--setup cifar_resnet20] [--out out/coar]

The public commands one after the other (initialize_store, make_dataset, run_regression, evaluate):
3,000 ablations of 5% of the components, ridge, and fresh ablations at three fractions.

- cifar_resnet20: 688 filters of He et al.'s ResNet-20, 1,000 CIFAR-10 test images, bfloat16
- tinyllama_stories: 40 heads and 860 neurons of the TinyStories Llama, 50 stories

What is in --out already is not done again, and its cost is read from there; an interrupted run
goes on where it stopped. From nothing the first takes an hour of one core (a third of that with
AMX), the second ten minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import reporting

from coarlib.regression.attributions import Attributions
from coarlib.store import Store

ROOT = Path(__file__).resolve().parent.parent
FRACTIONS = "0.025,0.05,0.1"


@dataclass(frozen=True)
class Setup:
    """A set-up: its package, spec, regression configuration, and settings naming files."""

    package: str
    spec: str
    config: str
    files: dict[str, str]
    settings: dict[str, object]


SETUPS = {
    "cifar_resnet20": Setup(
        "cifar_resnet",
        "cifar_resnet20.json",
        "regression_config_resnet20.yaml",
        {
            "model_path": "akamaster_resnet20-12fca82f.th",
            "beton_path": "cifar10_test1000_lossless.npz",
        },
        {"autocast": "bf16"},
    ),
    "tinyllama_stories": Setup(
        "tinyllama_stories",
        "tinyllama_stories.json",
        "regression_config.yaml",
        {
            "model_path": "stories260K.bin",
            "tokenizer_path": "tok512.bin",
            "data_path": "tinystories_500.json",
        },
        {},
    ),
}


def flags(section: str, **values: object) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{section}.{key}", str(value))]


def absolute(path: str) -> Path:
    return Path(path).resolve()


class Costs:
    """Wall and processor seconds of every step, kept beside what the step made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = json.loads(path.read_text()) if path.is_file() else {}

    def step(self, name: str, module: str, *words: str) -> None:
        wall, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", f"estimate.{module}", *words], cwd=ROOT, check=True)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = (
            time.perf_counter() - wall,
            now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
        )
        before = self.seconds.get(name, {"wall_s": 0.0, "cpu_s": 0.0})
        self.seconds[name] = {
            key: before[key] + more for key, more in zip(("wall_s", "cpu_s"), spent, strict=True)
        }
        self.path.write_text(json.dumps(self.seconds))


def run(setup: Setup, out: Path, data: Path, rows: int) -> dict:
    """Store, fit and evaluation of one set-up."""
    store, attributions, evaluation = out / "store", out / "attributions", out / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    costs = Costs(out / "costs.json")
    settings = {key: str(data / name) for key, name in setup.files.items()} | setup.settings
    words = flags("logging", logdir=store, spec=ROOT / "specs" / setup.spec)
    costs.step("store", "initialize_store", *words)
    if len(Store.open(store).completed_rows()) < Store.open(store).num_models:
        words = flags("expt", base_dir=store, **settings)
        costs.step("ablations", f"{setup.package}.make_dataset", *words)
    if not (attributions / "datamodels.pt").exists():
        config = ROOT / "estimate" / setup.package / setup.config
        words = ["--config", str(config), *flags("data", data_path=store)]
        costs.step("regression", "run_regression", *words, *flags("cfg", out_dir=attributions))
    if not (evaluation / "evaluation.json").exists():
        words = flags(
            "eval",
            task=setup.package,
            task_args=json.dumps(settings),
            attributions=attributions,
            out_dir=evaluation,
            fractions=FRACTIONS,
            rows=rows,
        )
        costs.step("evaluation with baselines", "evaluate", *words)
    found = json.loads((evaluation / "evaluation.json").read_text())
    held = Attributions.load(attributions).held_out
    found["held_out"] = {
        "rows": held.num_rows,
        "targets": len(held.pearson),
        "pearson": held.mean,
        "interval": [held.mean_low, held.mean_high],
    }
    found["ablations"] = len(Store.open(store).completed_rows())
    found["seconds"] = costs.seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setup", choices=[*SETUPS, "all"], default="all")
    parser.add_argument("--out", type=absolute, default=ROOT / "out" / "coar")
    parser.add_argument("--data", type=absolute, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, default=100, help="fresh ablations a fraction")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"{options.data} is not here: nothing to measure")
        return
    for name, setup in SETUPS.items():
        if options.setup in (name, "all"):
            found = run(setup, options.out / name, options.data, options.rows)
            reporting.save(name, found, "torch")


if __name__ == "__main__":
    main()
