"""Run every command that a result in benchmarks/results names, one after the other (make bench).

    python benchmarks/run_all.py

What cannot be measured here (for want of data, a peer's checkout or a device) says why, and the
others are measured all the same.
"""

import json
import subprocess
import sys

import reporting


def commands():
    """What makes the committed results: a script and what it needs on its command line."""
    found = (json.loads(path.read_text())["command"] for path in reporting.RESULTS.glob("*.json"))
    return sorted(set(found))


if __name__ == "__main__":
    failed = []
    for command in commands():
        print("==", command, flush=True)
        done = subprocess.run([sys.executable, *command.split()], cwd=reporting.ROOT, check=False)
        failed += [command] * (done.returncode != 0)
    if failed:
        sys.exit("\n  ".join(["not measured, as they say above:", *failed]))
