"""The benchmark for accelerators runs from end to end; here at toy sizes, on any device."""

import importlib.util
import sys

import pytest
import torch
from paths import ROOT

CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module")
def gpu_parts():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    "part", ["rows_gpt2", "least_squares", "pair_counts", "fast_l1", "retraining", "path_kernel"]
)
def test_a_part(gpu_parts, part):
    device = torch.device("cuda" if CUDA else "cpu")
    run, limit = gpu_parts.PARTS[part]
    found = gpu_parts.within(limit, run, device, small=True)
    assert found and "failed" not in found


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_others(gpu_parts, monkeypatch):
    def slow(device, small):
        while True:
            pass

    def wrong(device, small):
        raise ValueError("no")

    assert gpu_parts.within(1, slow, None, True) == {"failed": "TimeoutError: past its limit"}
    assert gpu_parts.within(5, wrong, None, True) == {"failed": "ValueError: no"}
