"""Fuzz the .beton reader: 100,000 mutated files, each refused in one sentence or read right.

    python benchmarks/fuzz_beton.py [--count 100000] [--seed 0] [--scratch DIR]

Mutations, and the independent parser that judges what still opens, are the tests'
(tests/beton/mutations.py). A crash would end a worker process, a hang its time limit; both fail.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import reporting

TESTS = Path(__file__).resolve().parent.parent / "tests" / "beton"
FILES_A_WORKER = 5000
SECONDS_A_WORKER = 600
SECONDS_A_FILE = 10.0


def child(path, count, seed):
    """Fuzz one file in this process and print what became of it."""
    sys.path.insert(0, str(TESTS))
    import mutations

    outcome = mutations.run(Path(path), int(count), int(seed))
    print(
        json.dumps(
            {
                "files": outcome.files,
                "refused": outcome.refused,
                "opened": outcome.opened,
                "slowest_seconds": outcome.slowest,
            }
        )
    )


def fuzz(count, seed, scratch):
    sys.path.insert(0, str(TESTS))
    import mutations

    found = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        seeds = mutations.seeds(Path(folder))
        for number in range(-(-count // FILES_A_WORKER)):
            path = seeds[number % len(seeds)]
            part = str(min(FILES_A_WORKER, count - number * FILES_A_WORKER))
            command = [sys.executable, "-X", "faulthandler", __file__, "--child", path, part]
            done = subprocess.run(
                [*command, str(seed * 1_000_003 + number)],
                capture_output=True,
                text=True,
                timeout=SECONDS_A_WORKER,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{path.name}, part {number}:\n{done.stderr[-3000:]}")
            found.append(json.loads(done.stdout) | {"file": path.stem})
            if found[-1]["slowest_seconds"] > SECONDS_A_FILE:
                raise SystemExit(f"{path.name}, part {number}: a file took {found[-1]}")
    return found


def main():
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", help="folder for the files; memory (/dev/shm) is fastest")
    args = parser.parse_args()
    memory = Path("/dev/shm")
    started = time.perf_counter()
    found = fuzz(args.count, args.seed, args.scratch or (memory if memory.is_dir() else None))
    rows = []
    for name in dict.fromkeys(part["file"] for part in found):
        parts = [part for part in found if part["file"] == name]
        rows.append(
            {
                "file": name,
                **{key: sum(part[key] for part in parts) for key in ("files", "refused", "opened")},
                "slowest_seconds": max(part["slowest_seconds"] for part in parts),
            }
        )
    reporting.table("mutated .beton files", rows)
    total = {key: sum(row[key] for row in rows) for key in ("files", "refused", "opened")}
    print(
        f"\n{total['files']} mutated files: {total['refused']} refused with one sentence, "
        f"{total['opened']} opened and read right; no crash, no hang, no read out of bounds"
    )
    results = {"total": total, "seconds": time.perf_counter() - started, "files": rows}
    return reporting.save("fuzz_beton", results)


if __name__ == "__main__":
    main()
