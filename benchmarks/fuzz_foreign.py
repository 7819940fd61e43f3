"""Fuzz what people bring: values that tasks return, and files of masks, outputs and scores.

    python benchmarks/fuzz_foreign.py [--count 20000] [--seed 0]

The cases are the tests' (tests/fuzz/foreign.py): a task in which the model, the components, the
examples, predict, an output, or the rows are anything at all; and files in every format that hold
anything, some of them damaged. Each goes through the commands. It must be done, or be refused with
exit code 2 and one sentence, with no traceback and no half-made store.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import reporting

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "fuzz"))

import foreign


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = foreign.run(args.count, args.seed, Path(folder))
    for case in outcome.wrong[:10]:
        print(case)
    counts = dict(sorted(outcome.counts.items()))
    reporting.table("what became of them", [counts | {"wrong": len(outcome.wrong)}])
    results = {
        "cases": args.count,
        "seed": args.seed,
        "counts": counts,
        "wrong": len(outcome.wrong),
        "seconds": time.perf_counter() - started,
    }
    reporting.save("fuzz_foreign", results, "numpy", "torch", "pandas")


if __name__ == "__main__":
    main()
