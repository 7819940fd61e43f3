"""Writing and reading .beton files: coarlib against the real ffcv and against copying the bytes.

    .ci/install_ffcv.sh; python benchmarks/beton.py [--scratch DIR] [--rounds 5] [--large-gb 4]

20,000 rows of COAR's CIFAR-10 set-up (2304 bool, 10,000 outputs from float16 memory maps) are
written by ffcv with 1 and 2 workers, by coarlib (synced to disk, which ffcv's are not), and copied.
Everything is measured in processes of its own, in turn, after the memory that the file will take
was used once; sources and files are in the page cache. Then a file of ImageNet rows of 4 GB, from
which a whole ImageNet data set is extrapolated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import reporting

from coarlib import beton

ROWS, FEATURES, TARGETS = 20_000, 2304, 10_000
IMAGENET = {"features": 22_720, "targets": 50_000, "rows": 100_000}
BATCH = 1000
EPOCHS = 5
SECONDS = 900
COPY_BYTES = 1 << 19


def fields(features, targets):
    return {
        "mask": beton.NDArray(np.dtype(bool), (features,)),
        "targets": beton.NDArray(np.dtype(np.float32), (targets,)),
        "idx": beton.Int(),
    }


def make_sources(folder, rows, features, targets, block=500):
    """Masks and outputs as a store holds them; blocks repeat, which no part can profit from."""
    rng = np.random.default_rng(0)
    masks = rng.random((block, features)) < 0.95
    outputs = (3 * rng.standard_normal((block, targets))).astype(np.float16)
    for name, values in (("masks", masks), ("outputs", outputs)):
        shape = (rows, values.shape[1])
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
        for start in range(0, rows, block):
            array[start : start + block] = values[: rows - start]
        array.flush()


def open_sources(folder):
    return [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("masks", "outputs")]


# What runs in processes of its own -----------------------------------------------------------


def child_write(folder, path):
    masks, outputs = open_sources(folder)
    started = time.perf_counter()
    source = {"mask": masks, "targets": outputs, "idx": np.arange(len(masks))}
    beton.write(path, fields(masks.shape[1], outputs.shape[1]), source, quiet=True)
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_memory()}


def child_ffcv_write(folder, path, workers):
    from ffcv.fields import IntField, NDArrayField
    from ffcv.writer import DatasetWriter

    class Rows:
        """Upstream's data set: a row of each array, outputs as float32, and the row number."""

        def __init__(self):
            self.masks, self.outputs = open_sources(folder)

        def __len__(self):
            return len(self.masks)

        def __getitem__(self, row):
            return self.masks[row], self.outputs[row].astype("float32"), row

    rows = Rows()
    started = time.perf_counter()
    kinds = {
        "mask": NDArrayField(np.dtype(bool), rows.masks.shape[1:]),
        "targets": NDArrayField(np.dtype(np.float32), rows.outputs.shape[1:]),
        "idx": IntField(),
    }
    DatasetWriter(str(path), kinds, num_workers=workers).from_indexed_dataset(rows)
    return {"seconds": time.perf_counter() - started}


def child_copy(source, path):
    started = time.perf_counter()
    copy(source, path)
    seconds = time.perf_counter() - started
    os.sync()
    return {"seconds": seconds, "synced_seconds": time.perf_counter() - started}


def child_read(path, order):
    opening = []
    for _ in range(20):
        started = time.perf_counter()
        file = beton.open(path)
        opening.append(time.perf_counter() - started)
    epochs = [timed_epoch(file.batches(BATCH, order, seed=k)) for k in range(EPOCHS + 1)]
    return {"first": epochs[0], "warm": epochs[1:], "open": opening}


def child_read_views(path, _order):
    """Copy a whole file out of views, run after run; the limit is copying as many bytes at once."""
    file = beton.open(path)
    data = np.fromfile(path, np.uint8)
    target = np.ones_like(data)

    def copy_views():
        for _, views in file.views():
            for view in views.values():
                target[: view.nbytes].view(view.dtype).reshape(view.shape)[...] = view

    calls = {"warm": copy_views, "memory_copy": lambda: np.copyto(target, data)}
    return reporting.best_seconds(EPOCHS, **calls)


def child_ffcv_read(path, order):
    from ffcv.loader import Loader, OrderOption

    started = time.perf_counter()
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=2,
        os_cache=True,
        order=OrderOption[order.upper()],
        seed=0,
        drop_last=False,
    )
    built = time.perf_counter() - started
    epochs = [timed_epoch(loader) for _ in range(EPOCHS + 1)]
    return {"first": epochs[0], "warm": epochs[1:], "open": [built]}


def timed_epoch(batches):
    started = time.perf_counter()
    count = 0
    for _ in batches:
        count += 1
    seconds = time.perf_counter() - started
    if count != -(-ROWS // BATCH):
        raise RuntimeError(f"{count} batches")
    return seconds


def peak_memory():
    """Peak resident memory of this process in MB (its program and mapped files included)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


# The parent ------------------------------------------------------------------------------------


def run(name, *arguments, ffcv=False):
    """Run a child_… function in a new process and return its result."""
    environment = dict(os.environ)
    if ffcv:
        environment["PYTHONPATH"] = str(Path(sys.prefix) / "ffcv")
    code = json.dumps([name, *map(str, arguments)])
    done = subprocess.run(
        [sys.executable, __file__, "--child", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(code):
    name, *arguments = json.loads(code)
    values = [int(word) if word.isdigit() else word for word in arguments]
    values = [Path(word) if "/" in str(word) else word for word in values]
    print(json.dumps(globals()[f"child_{name}"](*values)))


def copy(source, path):
    """Copy a file through one buffer of half a megabyte, the fastest plain way here."""
    buffer = memoryview(bytearray(COPY_BYTES))
    with open(source, "rb", buffering=0) as read, open(path, "wb", buffering=0) as write:
        while count := read.readinto(buffer):
            write.write(buffer[:count])


def use_memory_once(path, size):
    """Write and remove a file, so that no contestant pays for memory that the host must find."""
    path.unlink(missing_ok=True)
    scratch = path.with_name("scratch")
    block = bytes(1 << 22)
    with open(scratch, "wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
    scratch.unlink()


def cache(*paths):
    """Read files once, so that they are in the page cache."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(1 << 22)
            while file.readinto(buffer):
                pass


def writing(folder, rounds):
    out, original = folder / "out.beton", folder / "original.beton"
    run("write", folder, original)
    size = original.stat().st_size
    contestants = {
        "coarlib": lambda: run("write", folder, out),
        "ffcv, 1 worker": lambda: run("ffcv_write", folder, out, 1, ffcv=True),
        "ffcv, 2 workers": lambda: run("ffcv_write", folder, out, 2, ffcv=True),
        "copy": lambda: run("copy", original, out),
    }
    results = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            use_memory_once(out, size)
            cache(original, *folder.glob("*.npy"))
            results[name].append(call())
    out.unlink()
    return size, results


def reading(folder, rounds):
    path = folder / "original.beton"
    results = {}
    for _ in range(rounds):
        for order in ("sequential", "random"):
            for name, ffcv in (("read", False), ("ffcv_read", True)):
                cache(path)
                results.setdefault((name, order), []).append(run(name, path, order, ffcv=ffcv))
        results.setdefault("views", []).append(run("read_views", path, "sequential"))
    return results


def best(results, key="seconds"):
    return min(np.min(result[key]) for result in results)


def compare_writing(folder, rounds):
    size, results = writing(folder, rounds)
    seconds = {name: best(found) for name, found in results.items()}
    medians = {
        name: float(np.median([r["seconds"] for r in found])) for name, found in results.items()
    }
    synced = best(results["copy"], "synced_seconds")
    peer = min(seconds["ffcv, 1 worker"], seconds["ffcv, 2 workers"])
    reporting.table(
        f"writing {ROWS} rows, {size / 1e6:.0f} MB (coarlib's are on disk when it returns)",
        [
            {
                "writer": name,
                "best s": value,
                "median s": medians[name],
                "MB/s": size / 1e6 / value,
                "x copy": value / seconds["copy"],
                "ffcv / this": peer / value,
            }
            for name, value in seconds.items()
        ],
    )
    print(f"\n  copying and syncing: {synced:.3f} s")
    return {
        "bytes": size,
        "best_seconds": seconds,
        "median_seconds": medians,
        "copy_and_sync_seconds": synced,
        "times_faster_than_ffcv": peer / seconds["coarlib"],
        "times_slower_than_copy": seconds["coarlib"] / seconds["copy"],
        "peak_memory_mb": max(r["peak_mb"] for r in results["coarlib"]),
    }


def compare_reading(folder, rounds):
    results = reading(folder, rounds)
    found = {}
    limit = best(results["views"], "memory_copy")
    for order in ("sequential", "random"):
        ours, theirs = (best(results[name, order], "warm") for name in ("read", "ffcv_read"))
        found[order] = {
            "coarlib_seconds": ours,
            "ffcv_warm_seconds": theirs,
            "ffcv_first_epoch_seconds": best(results["ffcv_read", order], "first"),
            "times_faster_than_ffcv": theirs / ours,
        }
    opening = [seconds for r in results["read", "random"] for seconds in r["open"]]
    built = best(results["ffcv_read", "random"], "open")
    reporting.table(
        f"reading all rows in batches of {BATCH}, warm, both copy into memory they use again",
        [
            {
                "order": order,
                "coarlib s": row["coarlib_seconds"],
                "ffcv s (2 threads)": row["ffcv_warm_seconds"],
                "ffcv / coarlib": row["times_faster_than_ffcv"],
                "memory copy s": limit,
                "x copy": row["coarlib_seconds"] / limit,
            }
            for order, row in found.items()
        ],
    )
    views = best(results["views"], "warm")
    print(
        f"\n  whole file, every run of rows copied out of its view: {views:.3f} s\n"
        f"  opening (20,000 rows checked): median {np.median(opening) * 1e3:.1f} ms, "
        f"worst {max(opening) * 1e3:.1f} ms; "
        f"ffcv's constructor {built:.2f} s"
    )
    return {
        **found,
        "memory_copy_seconds": limit,
        "views_seconds": views,
        "views_times_faster_than_ffcv": found["sequential"]["ffcv_warm_seconds"] / views,
        "open_median_ms": float(np.median(opening) * 1e3),
        "open_worst_ms": max(opening) * 1e3,
        "ffcv_constructor_seconds": built,
    }


def large(folder, gigabytes, rounds=2):
    """Write a file of ImageNet rows and extrapolate to the whole data set."""
    shape = fields(IMAGENET["features"], IMAGENET["targets"])
    row = sum(one.nbytes for name, one in shape.items() if name != "idx")
    rows = int(gigabytes * 1e9 / row)
    make_sources(folder, rows, IMAGENET["features"], IMAGENET["targets"])
    out, other = folder / "large.beton", folder / "copy"
    found, copies = [], []
    for _ in range(rounds):
        use_memory_once(out, rows * row)
        cache(*folder.glob("*.npy"))
        found.append(run("write", folder, out))
        use_memory_once(other, rows * row)
        cache(out)
        copies.append(run("copy", out, other))
        other.unlink()
    seconds, peak = best(found), max(r["peak_mb"] for r in found)
    factor = IMAGENET["rows"] / rows
    result = {
        "rows": rows,
        "bytes": out.stat().st_size,
        "best_seconds": seconds,
        "copy_seconds": best(copies),
        "times_slower_than_copy": seconds / best(copies),
        "peak_memory_mb": peak,
        "extrapolated": {
            "rows": IMAGENET["rows"],
            "bytes": int(out.stat().st_size * factor),
            "seconds": seconds * factor,
        },
    }
    reporting.table(
        "writing ImageNet rows (22,720 bool + 50,000 float32)",
        [
            {
                "rows": rows,
                "GB": result["bytes"] / 1e9,
                "s": seconds,
                "copy s": result["copy_seconds"],
                "x copy": result["times_slower_than_copy"],
                "peak MB": peak,
            },
            {
                "rows": f"{IMAGENET['rows']} (extrapolated)",
                "GB": result["extrapolated"]["bytes"] / 1e9,
                "s": result["extrapolated"]["seconds"],
                "copy s": result["copy_seconds"] * factor,
                "x copy": result["times_slower_than_copy"],
                "peak MB": peak,
            },
        ],
    )
    return result


def claims(write, read, big):
    rows = [
        ("writing, times ffcv's best", write["times_faster_than_ffcv"], ">=", 4),
        ("writing, times a copy", write["times_slower_than_copy"], "<=", 1.6),
        ("random batches, times ffcv", read["random"]["times_faster_than_ffcv"], ">=", 1.3),
        ("sequential batches, times ffcv", read["sequential"]["times_faster_than_ffcv"], ">=", 2.5),
        ("sequential whole file, times ffcv", read["views_times_faster_than_ffcv"], ">=", 2.5),
        ("opening, ms", read["open_median_ms"], "<=", 15),
        (
            "peak memory of writing, MB",
            max(write["peak_memory_mb"], big["peak_memory_mb"]),
            "<=",
            200,
        ),
    ]
    table = [
        {
            "claim": claim,
            "measured": value,
            "wanted": f"{sign} {bound}",
            "met": "yes" if (value >= bound if sign == ">=" else value <= bound) else "NO",
        }
        for claim, value, sign, bound in rows
    ]
    reporting.table("claims", table)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scratch", help="folder with 12 GB free")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-gb", type=float, default=4.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        make_sources(folder, ROWS, FEATURES, TARGETS)
        write = compare_writing(folder, args.rounds)
        read = compare_reading(folder, max(2, args.rounds // 2))
        for path in folder.iterdir():
            path.unlink()
        big = large(folder, args.large_gb)
    results = {"writing": write, "reading": read, "large": big, "claims": claims(write, read, big)}
    return reporting.save("beton", results, "torch", "numba", "ffcv")


if __name__ == "__main__":
    main()
