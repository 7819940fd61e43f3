"""Intervals hold the truth as often as they say, also for the weights that people look at."""

import json
import sys

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import coverage_regression

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("truth", ["dense", "sparse"])
@pytest.mark.parametrize("solver", ["least squares, robust", "ridge", "shared prior"])
def test_intervals_of_weights_hold_the_truth(solver, truth):
    made = coverage_regression.SOLVERS[solver]
    found = coverage_regression.weights_covered(made, truth, (800, 80), "equal", 2)
    assert 0.92 <= found["all"] <= 0.995 and found["top ten"] >= 0.9


@pytest.mark.parametrize("solver", coverage_regression.SOLVERS)
def test_with_fewer_rows_than_features_no_interval_is_given(solver):
    made = coverage_regression.SOLVERS[solver]
    assert coverage_regression.weights_covered(made, "sparse", (60, 120), "equal", 1) is None


def test_what_twice_the_rows_bring_was_predicted():
    ridge = coverage_regression.SOLVERS["ridge"]
    found = coverage_regression.curves_covered(ridge, "dense", (240, 60), 6)
    assert found["covered"] >= 4 / 6 and found["mean width"] < 0.3


def test_the_committed_tables_say_so():
    table = json.loads((RESULTS / "coverage_regression.json").read_text())["results"]
    shown = [line for line in table["weights"] if line["all"] is not None]
    assert len(shown) > 40
    assert all(line["all"] >= 0.93 and line["top ten"] >= 0.91 for line in shown)
    assert all(line["covered"] >= 0.9 for line in table["learning curves"])
    certified = json.loads((RESULTS / "certificates.json").read_text())["results"]
    assert all(line["violations"] == 0 for line in certified.values()) and len(certified) >= 13
