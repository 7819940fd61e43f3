"""Runs the real ffcv in its own process: ``python ffcv_child.py JOBS.json``.

ffcv hangs when one of its workers fails, so tests give this process a time limit. A job is
{"do": "read" | "write" | "loader", …}; arrays travel as .npz files.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from ffcv.fields import FloatField, IntField, NDArrayField
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter

from coarlib import beton

torch.set_num_threads(2)


def collect(loader):
    """Copy every batch: the Loader hands out a ring of buffers that it fills again."""
    names = list(loader.pipeline_specs)
    parts = {name: [] for name in names}
    for batch in loader:
        for name, values in zip(names, batch, strict=True):
            parts[name].append(values.cpu().numpy().copy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def read(job):
    loader = Loader(
        job["path"],
        batch_size=job["batch_size"],
        num_workers=2,
        os_cache=job["os_cache"],
        order=OrderOption[job["order"]],
        seed=3,
        drop_last=False,
    )
    np.savez(job["out"], **collect(loader))


def write(job):
    fields = {}
    with np.load(job["source"]) as source:
        arrays = {name: source[name] for name in source.files}
    for name, array in arrays.items():
        if array.ndim > 1:
            fields[name] = NDArrayField(array.dtype, array.shape[1:])
        else:
            fields[name] = IntField() if array.dtype.kind == "i" else FloatField()

    class Rows:
        def __len__(self):
            return len(next(iter(arrays.values())))

        def __getitem__(self, row):
            return tuple(array[row] for array in arrays.values())

    writer = DatasetWriter(
        job["out"], fields, page_size=job["page_size"], num_workers=job["workers"]
    )
    writer.from_indexed_dataset(Rows(), chunksize=job.get("chunksize", 100))


def loader(job):
    arguments = job["arguments"]
    if "target_slice" in arguments:
        arguments["target_slice"] = slice(*arguments["target_slice"])
    built = beton.ffcv_loader(job["path"], **arguments)
    np.savez(job["out"], **collect(built))


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        {"read": read, "write": write, "loader": loader}[job["do"]](job)
