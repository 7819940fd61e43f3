"""A store for the rows of a small convolutional task."""

import sys
from pathlib import Path

import pytest
import torch

from coarlib.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))


@pytest.fixture
def task():
    from scalable_tasks import small_task

    made = small_task()
    made.prepare(torch.device("cpu"))
    return made


@pytest.fixture
def store(tmp_path, task):
    return Store.create(tmp_path / "store", task, rows=40, keep_prob=0.8, device="cpu")
