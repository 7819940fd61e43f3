"""What every benchmark script shares: timing, the machine's description, the results file."""

import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def best_seconds(repeats, **calls):
    """Time calls in turn, so that they share the machine's moods; return the best of each."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def best_times(repeats, **calls):
    """As best_seconds, but (wall, processor) seconds: the latter ignores what else runs here."""
    best = dict.fromkeys(calls, (float("inf"), float("inf")))
    for _ in range(repeats):
        for name, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            found = time.perf_counter() - wall, time.process_time() - processor
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


def save(name, results, *packages):
    """Write results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions("numpy", *packages),
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


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
