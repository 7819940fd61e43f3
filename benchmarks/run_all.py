"""Run every command that a result in benchmarks/results names, one after the other (make bench).

python benchmarks/run_all.py
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
    for command in commands():
        print("==", command, flush=True)
        subprocess.run([sys.executable, *command.split()], cwd=reporting.ROOT, check=True)
