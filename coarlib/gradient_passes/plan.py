"""What a gradient pass is drawn from: masks as a pure function of (plan, pass, example)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ArgumentError, StoreError, whole_number

# Keep these draws apart from those of rows and of resampling, whose counters lie below.
_COUNTER, _COUNTER_OF_TRIALS = 1 << 193, 1 << 194
MOST_REMOVED = 2 / 3  # share at which every component is ablated or on a path
_WORDS = 4  # numbers that one step of the counter makes


@dataclass(frozen=True)
class PassPlan:
    """How gradient passes are drawn.

    Parameters
    ----------
    on_path : float
        b, the probability that a component is scaled by a uniform number; 0 for trials, which are
        not differentiated.
    ablated : float
        a, the probability that it is ablated altogether.
    seed : int
    passes : int
        How many passes one block sums.
    output : str
        Which of the task's outputs is differentiated.

    Raises
    ------
    ArgumentError
        If these are no probabilities, or there is no pass.
    """

    on_path: float
    ablated: float
    seed: int = 0
    passes: int = 8
    output: str = "test_margins"

    def __post_init__(self) -> None:
        a, b = self.ablated, self.on_path
        if not (0 <= b <= 1 and 0 <= a < 1 and 0 < a + b <= 1):
            raise ArgumentError(
                f"a component is on a path or ablated with probabilities that add up to more than "
                f"0 and 1 at most, not {b} and {a}"
            )
        if not 1 <= whole_number(self.passes, "passes") <= 255:
            raise ArgumentError(f"a block has 1 to 255 passes, not {self.passes}")
        if not 0 <= whole_number(self.seed, "seed") < 2**64:
            raise ArgumentError(f"the seed must be at least 0 and below 2^64, not {self.seed}")

    @classmethod
    def for_fraction(cls, fraction: float, **settings: Any) -> PassPlan:
        """Return the plan whose masks remove a share of the components on average.

        Half of it is ablated, and half removed along paths, on which a component is half there.

        Raises
        ------
        ArgumentError
            If the share is not above 0 and at most 2/3.
        """
        if not 0 < fraction <= MOST_REMOVED:
            raise ArgumentError(
                f"gradient passes remove a share above 0 and at most 2/3, not {fraction}"
            )
        return cls(on_path=fraction, ablated=fraction / 2, **settings)

    @classmethod
    def of_trials(cls, fraction: float, **settings: Any) -> PassPlan:
        """Return the plan of trials: a share of the components is ablated, none is on a path."""
        return cls(on_path=0.0, ablated=fraction, **settings)

    @property
    def fraction(self) -> float:
        """The share of components that is removed on average."""
        return self.ablated + self.on_path / 2

    def draw(self, index: int, examples: slice, components: int) -> NDArray[np.float64]:
        """Draw the masks of one pass.

        Parameters
        ----------
        index : int
            Which pass.
        examples : slice
            Which examples, ``start`` and ``stop`` given.
        components : int
            N.

        Returns
        -------
        float64 [len(examples), N]
            1 = kept, 0 = ablated, else on a path. An example's mask does not depend on which
            others are drawn with it.
        """
        steps = -(-components // _WORDS)
        key = np.array([self.seed, index], dtype=np.uint64)
        first = (_COUNTER if self.on_path else _COUNTER_OF_TRIALS) + examples.start * steps
        bits = np.random.Philox(key=key, counter=first)
        count = examples.stop - examples.start
        raw = bits.random_raw(count * steps * _WORDS).reshape(count, -1)[:, :components]
        # Odd multiples of 2⁻⁵⁴: never 0 or 1, so a component on a path is told from the others.
        uniform = ((raw >> np.uint64(11)) + 0.5) * 2.0**-53
        mask = np.where(uniform < self.on_path + self.ablated, 0.0, 1.0)
        along = uniform < self.on_path
        mask[along] = uniform[along] / self.on_path
        return mask

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object, where: str) -> PassPlan:
        """Read what :meth:`as_json` gave; StoreError names ``where`` if it is something else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(content, Mapping) or set(content) != names:
            raise StoreError(f"{where} does not say how gradient passes were drawn")
        try:
            return cls(**content)
        except (ArgumentError, TypeError) as error:
            raise StoreError(f"{where} is damaged: {error}") from error


def on_path(masks: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which entries of masks are on a path."""
    return np.asarray((masks > 0) & (masks < 1))
