"""COAR end to end on ResNet-20 and 1,000 CIFAR-10 test images, against the baselines.

    python benchmarks/cifar_resnet20.py [--out out/resnet20] [--data ../shared/data]

The public commands one after the other: 3,000 ablations of 5% of the 688 filters (bfloat16
autocast), ridge, and an evaluation on fresh ablations at three fractions, on every fifth image.
What is there already is not done again.
"""

import argparse
import json
from pathlib import Path

import reporting

from coarlib.regression.attributions import Attributions
from coarlib.store import Store
from estimate import evaluate, initialize_store, run_regression
from estimate.cifar_resnet import make_dataset

ROOT = Path(__file__).resolve().parent.parent
EVERY = 5
FRACTIONS = "0.025,0.05,0.1"
BASELINES = "leave_one_out,gradient_parameter,random"


def flags(section: str, **values: object) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{section}.{key}", str(value))]


def fit(out: Path) -> Attributions:
    config = ROOT / "estimate" / "cifar_resnet" / "regression_config_resnet20.yaml"
    if not (out / "attributions" / "datamodels.pt").exists():
        arguments = ["--config", str(config), "--data.data_path", str(out / "store")]
        run_regression.main([*arguments, "--cfg.out_dir", str(out / "attributions")])
    whole = Attributions.load(out / "attributions")
    some = whole.targets(slice(0, None, EVERY))
    if not (out / "attributions_some" / "datamodels.pt").exists():
        some.save(out / "attributions_some")
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "resnet20")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, default=100)
    options = parser.parse_args()
    out, data = options.out, options.data
    if not data.is_dir():
        print(f"{data} is not here: nothing to measure")
        return
    settings = {
        "model_path": str(data / "akamaster_resnet20-12fca82f.th"),
        "beton_path": str(data / "cifar10_test1000_lossless.npz"),
        "autocast": "bf16",
    }
    spec = ROOT / "specs" / "cifar_resnet20.json"
    initialize_store.main(flags("logging", logdir=out / "store", spec=spec))
    make_dataset.main(flags("expt", base_dir=out / "store", **settings))
    whole = fit(out)
    evaluate.main(
        flags(
            "eval",
            task="cifar_resnet",
            task_args=json.dumps({**settings, "subsample_skip": EVERY}),
            attributions=out / "attributions_some",
            out_dir=out / "evaluation",
            fractions=FRACTIONS,
            rows=options.rows,
            baselines=BASELINES,
        )
    )
    found = json.loads((out / "evaluation" / "evaluation.json").read_text())
    held = whole.held_out
    found["held_out"] = {
        "rows": held.num_rows,
        "images": len(held.pearson),
        "pearson": held.mean,
        "interval": [held.mean_low, held.mean_high],
    }
    found["ablations"] = len(Store.open(out / "store").completed_rows())
    reporting.save("cifar_resnet20", found, "torch")


if __name__ == "__main__":
    main()
