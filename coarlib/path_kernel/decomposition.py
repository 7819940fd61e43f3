"""The parts of an explained prediction, in memory or in a store of results."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import HistoryError, nearest
from coarlib.history.results import read_about
from coarlib.path_kernel.accumulate import SOURCES, array_name
from coarlib.regression import Attributions
from coarlib.store import Store
from coarlib.store.verify import refuse_torn

RESIDUALS = ("quadrature_residual", "untracked", "update_residual", "rounding")
"""Error of the quadrature; movement of tensors that are not tracked; difference between recorded
updates and those that the gradients, momenta and decays give (a loss or clipping that is not the
recorded one; storage in bfloat16); and of the model as it was to the stored states at both ends."""


LOUD = 0.01
"""A residual above this share of the outputs' change is warned of."""


@dataclass(frozen=True)
class Verdict:
    """How far an explanation can be trusted.

    Attributes
    ----------
    share : float
        Residual over change of the outputs, both root mean squares over all outputs.
    worst : float
        The same of the worst test point; a change below the mean counts as the mean.
    part_error, largest_part : float
        By how much a single part was off at the test points that were integrated again, and the
        largest part; NaN where none was computed.
    again, points : int
        Test points that were integrated again, and all.
    exceeded : float
        Largest quadrature error of one update over the tolerance.
    largest : str
        The residual that misses most.
    """

    share: float
    worst: float
    part_error: float
    largest_part: float
    exceeded: float
    largest: str
    again: int = 0
    points: int = 0

    @classmethod
    def of(cls, found: Decomposition) -> Verdict:
        """Judge an explanation."""
        change = np.asarray(found["final"], np.float64) - np.asarray(found["initial"], np.float64)
        missed = found.residual
        if not change.size:
            return cls(0.0, 0.0, np.nan, np.nan, 0.0, RESIDUALS[0])
        norms = np.sqrt(np.square(change).mean(1)), np.sqrt(np.square(missed).mean(1))
        whole, off = (float(np.sqrt(np.square(each).mean())) for each in norms)
        floor = np.maximum(norms[0], whole or 1.0)
        errors = np.asarray(found.arrays.get("part_error", np.full(change.shape, np.nan)))
        again = np.isfinite(errors).all(1)
        parts = [found[n] for n in found.arrays if n.startswith(tuple(f"{s}_by_" for s in SOURCES))]
        return cls(
            off / whole if whole else float(off > 0),
            float((norms[1] / floor).max()),
            float(errors[again].max()) if again.any() else np.nan,
            max((float(np.abs(part).max()) for part in parts if part.size), default=np.nan),
            float(np.max(found["largest_step_residual"])) / (found.about["tolerance"] or np.inf),
            max(RESIDUALS, key=lambda name: float(np.abs(found[name]).max())),
            int(again.sum()),
            len(again),
        )

    @property
    def sound(self) -> bool:
        """Whether the parts add up to the outputs' change within 1%."""
        return self.share <= LOUD and self.worst <= LOUD

    def __str__(self) -> str:
        head = (
            f"the parts add up to the change of the outputs within {self.share:.2g} of it "
            f"({self.worst:.2g} at the worst test point)"
        )
        if not self.sound:
            head += (
                f", which is more than {LOUD:.0%}: do not rely on them; most is missed by "
                f"{self.largest} ({_CAUSES[self.largest]})"
            )
        parts = (
            f"; a single part was off by up to {self.part_error:.2g} at {self.again} of "
            f"{self.points} test points, integrated again; the largest is {self.largest_part:.2g}"
        )
        kinks = f"; the quadrature of one update missed its tolerance {self.exceeded:.3g}-fold"
        return (
            head
            + parts * bool(np.isfinite(self.part_error + self.largest_part))
            + kinks * (self.exceeded > 1)
        )


_CAUSES = {
    "quadrature_residual": "tighten the tolerance, or use float64",
    "untracked": "track more tensors when recording",
    "update_residual": "loss, samples or clipping are not those of the training run, or states "
    "were stored in bfloat16",
    "rounding": "store states in the model's own dtype",
}


@dataclass(frozen=True)
class Decomposition:
    """f_T = initial + data + weight_decay + regulariser + prior_momentum + residuals.

    Attributes
    ----------
    arrays : mapping of name to array [N, K, …]
        ``initial`` and ``final``, the model's own outputs before and after training (``about``
        says otherwise under ``initial_is`` and ``final_is`` where a history does not reach
        there); ``outside``, what updates outside a recorded window changed; ``data``,
        ``weight_decay``, ``regulariser`` and ``prior_momentum`` (from before the first update),
        totals; the residuals; ``largest_step_residual`` (absolute); ``part_error``, by how much
        a single part may be off (measured on every 32nd test point, which is integrated once
        more to a hundredth of the tolerance; NaN elsewhere); and the accumulated arrays, such as
        ``data_by_sample`` [N, K, D].
    about : dict
        What was asked: ``by``, ``count_at``, ``tolerance``, ``tensors``, ``components``,
        ``first``, ``last``, ``window``, ``output``.
    """

    arrays: Mapping[str, NDArray[Any]]
    about: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Decomposition:
        """Open finished results.

        Raises
        ------
        HistoryError
            If they are missing or unfinished.
        TornRowError
            If some do not match their checksums.
        """
        path = Path(path)
        about = read_about(path)
        store = Store.open(path)
        refuse_torn(store, store.completed_rows())
        missing = store.num_models - len(store.completed_rows())
        if missing:
            raise HistoryError(
                f"{path} lacks {missing} of {store.num_models} test points; run the same "
                "explanation again to go on"
            )
        return cls({key: store.array(key) for key in store.spec.schema}, about)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array by name; HistoryError names the nearest one."""
        if name not in self.arrays:
            raise HistoryError(f"there is no {name}{nearest(name, self.arrays)}")
        return self.arrays[name]

    def by(self, *axes: str, source: str = "data") -> NDArray[Any]:
        """Return a source accumulated by axes, in the order sample, component, tensor, step."""
        return self[array_name(source, axes)]

    @property
    def prediction(self) -> NDArray[np.float64]:
        """The sum of the parts without residuals, [N, K]."""
        parts = [np.asarray(self[name], np.float64) for name in ("initial", *SOURCES, "outside")]
        return np.asarray(np.sum(parts, axis=0))

    @property
    def residual(self) -> NDArray[np.float64]:
        """What the parts leave unexplained: final - prediction, [N, K]."""
        return np.asarray(self["final"], np.float64) - self.prediction

    def checks(self) -> dict[str, float]:
        """Return the largest absolute residuals, and how far parts and residuals miss the sum."""
        found = {name: float(np.abs(self[name]).max()) for name in RESIDUALS}
        found["largest_step_residual"] = float(np.max(self["largest_step_residual"]))
        explained = np.sum([self[name] for name in RESIDUALS], axis=0)
        found["total"] = float(np.abs(self.residual).max())
        found["sum_of_parts"] = float(np.abs(self.residual - explained).max())
        return found

    def verdict(self) -> Verdict:
        """Judge the explanation by what it misses."""
        return Verdict.of(self)

    def warn(self) -> None:
        """Warn (RuntimeWarning) if the verdict is bad."""
        verdict = self.verdict()
        if not verdict.sound:
            warnings.warn(str(verdict), RuntimeWarning, stacklevel=3)

    def attributions(self, axis: str = "sample", also: str | None = None) -> Attributions:
        """Return contributions as attributions, so that they can be scored like all others.

        Parameters
        ----------
        axis : {"sample", "component", "tensor"}
        also : str, optional
            A source besides ``"data"`` to be counted too, or ``"all"``: for components and
            tensors, weight decay moves the output as well.

        Returns
        -------
        Attributions
            ``weight`` [features, N·K]: the part of each output that a feature accounts for;
            ``bias`` the rest of the model's output.
        """
        weight = np.asarray(self.by(axis), np.float64)
        if also is not None:
            others = SOURCES[1:] if also == "all" else (also,)
            for source in others:
                weight = weight + self.by(axis, source=source)
        final = np.asarray(self["final"], np.float64)
        targets = final.size
        flat = weight.reshape(targets, -1).T
        summary = {"method": "exact path kernel", **self.about}
        return Attributions(
            weight=flat.astype(np.float32),
            bias=final.reshape(-1) - flat.sum(0),
            lam=np.zeros(targets),
            mean_mask=np.ones(len(flat)),
            gap=np.full(targets, np.nan),
            summary=summary,
        )
