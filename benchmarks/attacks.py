"""What a store and its readers survive: kills, flipped bits, mutated files of every format.

    python benchmarks/attacks.py [--mutations 10000] [--beton 100000] [--seed 0]

Kills: claiming workers are killed at random while they fill a store (benchmarks/soak.py). Bits:
each file of a small store and of a result, one bit at a time, read by everything that reads it
(tests/store/damage.py). Formats: mutated .json, .yaml, .npy, .npz and .pt through the one loader
of each, .beton through its reader. Nothing may be silent, raise more than one sentence, or hang.
"""

import argparse
import faulthandler
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import fuzz_beton
import numpy as np
import reporting
import torch
import yaml
from soak import soak

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "store"))
import damage

from coarlib.errors import CoarlibError
from coarlib.loading import load_json, load_npy, load_npz, load_pt, load_yaml

SECONDS_A_READ = 10.0


def examples():
    """A small file of each format, as bytes."""
    values = np.arange(96, dtype=np.float32).reshape(8, 12)
    plain = {"num_models": 100, "schema": {"a": {"shape": [3, 4]}}, "x": [1.5, None, "ü", [[]]]}
    found = {
        ".json": json.dumps(plain, ensure_ascii=False).encode(),
        ".yaml": yaml.safe_dump(plain, allow_unicode=True).encode(),
    }
    for suffix, save in (
        (".npy", lambda file: np.save(file, values)),
        (".npz", lambda file: np.savez_compressed(file, a=values, b=np.array(["x", "yz"]))),
        (".pt", lambda file: torch.save({"a": torch.from_numpy(values), "b": [1, "x"]}, file)),
    ):
        file = io.BytesIO()
        save(file)
        found[suffix] = file.getvalue()
    return found


LOADERS = {
    ".json": load_json,
    ".yaml": load_yaml,
    ".npy": load_npy,
    ".npz": load_npz,
    ".pt": load_pt,
}


def mutate(suffix, data, count, rng, folder):
    """Load ``count`` mutations of a file; say how many were refused, opened, or worse."""
    path = folder / f"mutated{suffix}"
    row = {"format": suffix, "files": 0, "refused": 0, "opened": 0, "tracebacks": 0, "slowest": 0.0}
    for _, changed in damage.mutations(rng, count)(data):
        path.write_bytes(changed)
        row["files"] += 1
        started = time.perf_counter()
        faulthandler.dump_traceback_later(SECONDS_A_READ, exit=True)  # a hang ends the run
        try:
            found = LOADERS[suffix](path, CoarlibError)
            np.asarray(found).sum() if suffix == ".npy" else None
            row["opened"] += 1
        except CoarlibError as error:
            row["refused" if "\n" not in str(error) else "tracebacks"] += 1
        except Exception as error:
            row["tracebacks"] += 1
            print(f"{suffix}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            faulthandler.cancel_dump_traceback_later()
        row["slowest"] = max(row["slowest"], time.perf_counter() - started)
    return row


def flip(stride, folder):
    """Flip bits of every file of a store and of a result; one row a file."""
    rows = []
    patch = SimpleNamespace(setattr=lambda *a: mock.patch.object(*a).start())
    damage.impatient(patch)
    for kind, make, look in (
        ("store", damage.make_store, damage.look_at_store),
        ("result", damage.make_result, damage.look_at_result),
    ):
        path = make(folder / kind)
        for one in damage.attack(path, look, damage.flipped_bits(stride), folder):
            name = "workers/….jsonl" if one.file.startswith("workers") else one.file
            rows.append(
                {
                    "file": f"{kind}/{name}",
                    "bits": one.done,
                    "refused": one.refused,
                    "reported": one.reported,
                    "harmless": one.harmless,
                    "silent": len(one.silent),
                    "tracebacks": len(one.raised),
                }
            )
            for what in [*one.silent, *one.raised]:
                print(f"{one.file}: {what}", file=sys.stderr)
    mock.patch.stopall()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutations", type=int, default=10_000, help="of each format")
    parser.add_argument("--beton", type=int, default=100_000, help="mutated .beton files")
    parser.add_argument("--stride", type=int, default=7, help="every how many-th bit is flipped")
    parser.add_argument("--rows", type=int, default=4000, help="of the store filled under fire")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, started = np.random.default_rng(args.seed), time.perf_counter()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        formats = [
            mutate(suffix, data, args.mutations, rng, folder) for suffix, data in examples().items()
        ]
        parts = fuzz_beton.fuzz(args.beton, args.seed, memory)
        total = {key: sum(p[key] for p in parts) for key in ("files", "refused", "opened")}
        slowest = max(part["slowest_seconds"] for part in parts)
        formats.append({"format": ".beton", **total, "tracebacks": 0, "slowest": slowest})
        reporting.table("mutated files", formats)
        bits = flip(args.stride, folder)
        reporting.table("flipped bits", bits)
    with tempfile.TemporaryDirectory() as name:
        under_fire = soak(Path(name) / "store", args.rows)
    print(under_fire)
    sums = {
        "kills_survived": under_fire.kills,
        "rows_lost": under_fire.lost,
        "rows_wrong": under_fire.wrong + under_fire.torn,
        "bits_flipped": sum(row["bits"] for row in bits),
        "silent": sum(row["silent"] for row in bits),
        "tracebacks": sum(row["tracebacks"] for row in [*bits, *formats]),
        "hangs": 0,  # one would have ended this run
    }
    print(sums)
    results = {"total": sums, "seconds": time.perf_counter() - started}
    results |= {"formats": formats, "bits": bits, "under_fire": vars(under_fire)}
    return reporting.save("attacks", results, "numpy", "torch")


if __name__ == "__main__":
    main()
