"""The same blocks through submitit."""

import json

import pytest

from coarlib.cluster import parse_plan
from coarlib.cluster.submission import open_store, placed
from coarlib.cluster.with_submitit import FillBlock, map_blocks
from coarlib.errors import ClusterError

submitit = pytest.importorskip("submitit")
SPEC = {
    "num_models": 40,
    "schema": {
        "masks": {"dtype": "bool_", "shape": [10]},
        "margins": {"dtype": "float32", "shape": [3]},
    },
    "design": {"kind": "bernoulli", "keep_prob": 0.8, "seed": 1},
}


def test_submitit_fills_what_is_missing_and_then_nothing(tmp_path, project_root):
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    plan = placed(
        parse_plan(
            {
                "store": str(tmp_path / "store"),
                "spec": str(tmp_path / "spec.json"),
                "task": "tests/zoo/linear_task.py:LinearTask",
                "rows_per_job": 20,
            }
        ),
        project_root,
    )
    store = open_store(plan)
    executor = submitit.LocalExecutor(folder=tmp_path / "logs")
    assert [job.result() for job in map_blocks(plan, executor)] == [0, 1]
    assert len(store.completed_rows()) == 40
    assert map_blocks(plan, executor) == []


def test_a_block_that_fails_says_so_and_can_be_requeued(tmp_path):
    (tmp_path / "fill.sbatch").write_text('exit "$((SLURM_ARRAY_TASK_ID + 3))"\n')
    block = FillBlock(str(tmp_path / "fill.sbatch"), 4)
    with pytest.raises(ClusterError, match="block 4 ended with exit code 7"):
        block()
    assert block.checkpoint().function is block
