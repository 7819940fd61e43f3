"""Peak memory of an explanation in adjoint form against the size of the training set.

    python benchmarks/path_kernel_memory.py

A 64-128-10 MLP trained by AdamW (40 updates of 50 samples) on 200, 2,000 and 20,000 samples; ten
outputs of 20 points are decomposed by tensor and step. Every size runs in a process of its own.
The physical limit is the gradients themselves: three times points × outputs × parameters. The
last column is what a momentum buffer a sample (the reference's form) would take once.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import reporting
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.history import TrainingLoss, open_run, record
from coarlib.path_kernel import explain

SIZES, POINTS, STEPS, BATCH = (200, 2_000, 20_000), 20, 40, 50


def measure(size):
    """Return peak megabytes before and after explaining."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.randn(size, 64), torch.randint(0, 10, (size,))
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss = TrainingLoss(F.cross_entropy)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "h"
        options = {"num_steps": STEPS, "max_batch": BATCH, "quiet": True}
        with record(model, optimizer, path, samples=data, loss=loss, **options) as history:
            for _ in range(STEPS):
                batch = torch.randint(0, size, (BATCH,))
                optimizer.zero_grad()
                F.cross_entropy(model(data[0][batch]), data[1][batch]).backward()
                history.batch(batch)
                optimizer.step()
        run = open_run(path, model, loss, data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        points = data[0][:POINTS], data[1][:POINTS]
        explain(run, *points, by=[("tensor", "step")], tolerance=1e-2, quiet=True)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"size": size, "before": before, "after": after, "parameters": parameters}))


def main():
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]))
        return
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
    parameters = rows[0]["parameters"]
    limit = 3 * POINTS * 10 * parameters * 4 / 1e6
    print(f"{'samples':>9}{'added MB':>10}{'gradients MB':>14}{'buffers a sample MB':>21}")
    for row in rows:
        row["added_mb"] = row["after"] - row["before"]
        row["gradients_mb"] = limit
        row["sample_buffers_mb"] = row["size"] * parameters * 4 / 1e6
        print(
            f"{row['size']:9}{row['added_mb']:10.0f}{limit:14.0f}{row['sample_buffers_mb']:21.0f}"
        )
    reporting.save("path_kernel_memory", rows, "torch")


if __name__ == "__main__":
    main()
