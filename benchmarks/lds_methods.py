"""Attribution methods by LDS on retrained digit models, with the noise ceiling.

    python benchmarks/lds_methods.py [--out out/lds_benchmark] [--models logistic]

`coar lds_benchmark` for both of its models: 200 random halves of the digits, 5 runs each. What is
in --out already is not done again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import reporting

MODELS = ("logistic", "cnn")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=reporting.ROOT / "out" / "lds_benchmark")
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    out, results = args.out.resolve(), {}
    for model in args.models.split(","):
        words = ["-m", "coarlib", "lds_benchmark", "--model", model, "--out", str(out)]
        subprocess.run([sys.executable, *words], check=True, cwd=reporting.ROOT)
        found = json.loads((out / f"{model}" / "lds.json").read_text())
        results[model] = {
            "subsets": found["num_subsets"],
            "runs": found["num_runs"],
            "methods": {name: numbers(one) for name, one in found["methods"].items()},
        }
        first = next(iter(found["methods"].values()))
        results[model]["noise ceiling"] = {
            "mean": found["noise_ceiling"],
            "interval": interval(first["ceiling_interval"]),
        }
    reporting.save("lds_methods", results, "torch")


def numbers(record):
    """What the table shows of a method."""
    share = {"share of the ceiling": record["share_of_ceiling"]}
    return {"lds": record["mean"], "interval": interval(record["interval"])} | share


def interval(record):
    return [record["low"], record["high"]]


if __name__ == "__main__":
    main()
