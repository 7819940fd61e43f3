"""A solver is one class and one registry line: then a fit and the command line know it."""

from dataclasses import dataclass

import numpy as np
import pytest
from regression_problems import linear_rows, make_store

from coarlib.commands.fit.run_regression import main
from coarlib.errors import RegressionError
from coarlib.regression import SOLVERS, Attributions, Moments, Solution, Solver, fit, register


@dataclass(frozen=True)
class Marginal(Solver):
    """Each weight as if no other feature existed, times ``lam``."""

    name = "marginal"
    lam: float = 1.0

    def solve(self, problem):
        solution = Solution.empty(problem, "marginal effects")
        solution.fill(problem, slice(None), self.lam * problem.covariance())
        solution.gap[:] = np.nan
        return solution


@pytest.fixture
def marginal():
    register(Marginal)
    yield
    del SOLVERS["marginal"]


def test_a_registered_solver_is_reached_by_name_and_by_instance(marginal):
    data = linear_rows(300, 8, 3, keep=0.5, noise=0.1)
    moments = Moments.from_arrays(data.masks, data.outputs)
    found = fit(moments, "marginal", lam=0.5)
    y = data.outputs - data.outputs.mean(0)
    x = (data.masks - data.masks.mean(0)) / data.masks.std(0) ** 2
    assert np.allclose(found.weight, 0.5 * x.T @ y / 300, atol=1e-4)
    assert found.summary["solver"] == "marginal"
    whole = fit((data.masks, data.outputs), Marginal(lam=0.5), held_out=100)
    assert np.allclose(whole.weight, found.weight, atol=1e-6) and whole.held_out.mean > 0.5
    with pytest.raises(RegressionError, match="option 'lamb'; did you mean 'lam'"):
        fit(moments, "marginal", lamb=0.5)


def test_a_registered_solver_is_reached_from_the_command_line(marginal, tmp_path):
    data = linear_rows(120, 8, 3, dtype=np.float32)
    make_store(tmp_path / "store", data.masks, data.outputs)
    words = f"--data.data_path {tmp_path / 'store'} --data.num_train 90 --data.num_val 30 --cfg.k 1"
    main([*words.split(), "--cfg.solver", "marginal", "--cfg.out_dir", str(tmp_path / "out")])
    assert Attributions.load(tmp_path / "out").summary["solver"] == "marginal"


def test_solvers_are_immutable():
    with pytest.raises(AttributeError):
        Marginal().lam = 3.0
    assert Marginal(2.0) == Marginal(2.0)
