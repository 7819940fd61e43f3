"""What a solver is: its options as fields, one method that solves, and what that takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import RegressionError, nearest
from coarlib.regression.problem import Problem, Solution

if TYPE_CHECKING:
    from coarlib.regression.attributions import Attributions

__all__ = ["Size", "Solver", "solver_named"]


@dataclass(frozen=True)
class Size:
    """Rows to fit and to hold out, features and targets of a fit, and the form of its problem."""

    rows: int
    held_out: int
    features: int
    targets: int
    form: str = "primal"

    @property
    def total(self) -> int:
        """Rows that are read."""
        return self.rows + self.held_out

    @property
    def side(self) -> int:
        """Side of the matrix that is factored."""
        return self.features if self.form == "primal" else self.total


@dataclass(frozen=True)
class Solver(ABC):
    """A way to get weights from a problem; subclasses are frozen dataclasses of their options."""

    name: ClassVar[str]

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """Fit all targets of a problem."""

    @property
    def needs(self) -> frozenset[str]:
        """What a problem must have besides moments.

        ``"gram"``: the matrix X'X; ``"rows"``: the rows, read again in place of any matrix;
        ``"validation"``: moments of other rows, which choose λ.
        """
        return frozenset()

    @property
    def num_folds(self) -> int:
        """Into how many parts the rows are summed, to choose λ by them; 0 for no parts."""
        return 0

    @property
    def shrinks(self) -> bool:
        """Whether weights are shrunk as far as the rows ask for (plain least squares: not)."""
        return True

    @property
    def prior_passes(self) -> float | None:
        """Forward passes over the examples that its guesses of the weights took; None: unknown."""
        return 0

    def refit(self, found: Attributions) -> Solver:
        """Return the solver of more rows, after ``found`` has been chosen on fewer of them."""
        return self

    def of_targets(self, which: NDArray[np.int64]) -> Solver:
        """Return the same for some targets, int64 [t]: with their λ, guesses, starts, passes …"""
        given: dict[str, Any] = {x: getattr(self, x, None) for x in ("lam", "scores", "start")}
        some = {name: value[..., which] for name, value in given.items() if np.ndim(value) > 0}
        for name in ("passes", "trials"):
            if (own := getattr(self, name, None)) is not None:
                some[name] = own.of_targets(which)
        return replace(self, **some)

    def work(self, size: Size) -> float:
        """Float64 operations that one fit takes once the rows are summed."""
        return 0.0

    def memory(self, size: Size) -> float:
        """Bytes that a fit takes besides sums and matrices."""
        return 0.0


def solver_named(known: dict[str, type[Solver]], name: str, options: dict[str, Any]) -> Solver:
    """Make the solver of that name.

    Raises
    ------
    RegressionError
        For a name or an option that does not exist, or an option of the wrong kind.
    """
    if name not in known:
        raise RegressionError(
            f"unknown solver {name!r}{nearest(name, known)} (there are {', '.join(known)})"
        )
    names = [field.name for field in fields(known[name])]
    for option in options:
        if option not in names:
            has = f"its options are {', '.join(names)}" if names else "it has none"
            raise RegressionError(
                f"solver {name} does not take the option {option!r}{nearest(option, names)} ({has})"
            )
    try:
        return known[name](**options)
    except (TypeError, ValueError) as error:  # from the comparison of an option with a number
        given = ", ".join(f"{option}={value!r:.40}" for option, value in options.items())
        raise RegressionError(f"solver {name} cannot use {given}: {error!s:.200}") from error
