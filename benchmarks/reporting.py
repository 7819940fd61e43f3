"""What every benchmark script shares: timing, the machine's description, the results file."""

import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def one_thread():
    """Let numpy, scipy, torch and numba, on every side, use one thread from here on."""
    import numba
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


def best_seconds(repeats, **calls):
    """Time calls in turn, so that they share the machine's moods; return the best of each."""
    return {name: wall for name, (wall, _) in best_times(repeats, **calls).items()}


def best_times(repeats, **calls):
    """(wall, processor) seconds, the best of some turns after one that warms every call up.

    Calls take turns, so that they share the machine's moods; processor time ignores what else
    runs here.
    """
    best = dict.fromkeys(calls, (float("inf"), float("inf")))
    for turn in range(repeats + 1):
        for name, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            found = time.perf_counter() - wall, time.process_time() - processor
            if turn > 0:
                best[name] = tuple(map(min, best[name], found))
    return best


def machine():
    """Describe the machine without naming it."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system()}


def versions(*packages):
    """Versions of Python and of the packages that are installed, here or in a folder beside."""
    found = {"python": platform.python_version()}
    beside = [str(folder) for folder in Path(sys.prefix).glob("ffcv")]  # .ci/install_ffcv.sh
    for package in packages:
        places = metadata.distributions(name=package, path=[*sys.path, *beside])
        found[package] = next((place.version for place in places), None)
    return found


def save(name, results, *packages, options=(), peers=None):
    """Write results/<name>.json.

    ``options`` are what the script needs on its command line to write this file, ``peers`` versions
    of packages of another interpreter.
    """
    RESULTS.mkdir(exist_ok=True)
    script = Path(sys.modules["__main__"].__file__).name
    content = {
        "command": " ".join(["benchmarks/" + script, *options]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions("numpy", *packages) | (peers or {}),
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")


def table(title, rows):
    """Print rows (dicts with the same keys) as aligned columns."""
    print(f"\n{title}")
    columns = list(rows[0])
    texts = [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for line in [columns, *texts]:
        print("  " + "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)))


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
