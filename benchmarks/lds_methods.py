"""Attribution methods by LDS on retrained digit models, with the noise ceiling.

    python benchmarks/lds_methods.py [--out out/lds_benchmark] [--models logistic]

`coar lds_benchmark` for both of its models: 200 random halves of the digits, 5 runs each, all of
its methods (EK-FAC where kronfluence is installed), and what each cost in trainings. What is in
--out already is not done again.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import reporting

MODELS = ("logistic", "cnn")
METHODS = "random,gradient_similarity,trak:10,path_kernel,ridge_rows:400,metagradient:8"
METHODS += ",metagradient:32,metagradient_trak:8,metagradient_trak:32"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=reporting.ROOT / "out" / "lds_benchmark")
    parser.add_argument("--models", default=",".join(MODELS))
    ekfac = ",ekfac" * (importlib.util.find_spec("kronfluence") is not None)
    parser.add_argument("--methods", default=METHODS + ekfac)
    args = parser.parse_args()
    out, file = args.out.resolve(), reporting.RESULTS / "lds_methods.json"
    results = json.loads(file.read_text())["results"] if file.exists() else {}
    for model in args.models.split(","):
        words = ["-m", "coarlib", "lds_benchmark", "--model", model, "--out", str(out)]
        words += ["--methods", args.methods]
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
    return {
        "lds": record["mean"],
        "interval": interval(record["interval"]),
        "share of the ceiling": record["share_of_ceiling"],
        "trainings": record["trainings"],
    }


def interval(record):
    return [record["low"], record["high"]]


if __name__ == "__main__":
    main()
