"""The parts of an explained prediction, in memory or in a store of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import HistoryError, nearest
from coarlib.path_kernel.accumulate import SOURCES, array_name
from coarlib.regression import Attributions
from coarlib.store import Store

ABOUT_FILE = "explanation.json"
RESIDUALS = ("quadrature_residual", "untracked", "update_residual")
"""Error of the quadrature; movement of tensors that are not tracked; difference between recorded
updates and those that the gradients, momenta and decays give (rounding, storage in bfloat16)."""


@dataclass(frozen=True)
class Decomposition:
    """f_T = initial + data + weight_decay + regulariser + prior_momentum + residuals.

    Attributes
    ----------
    arrays : mapping of name to array [N, K, …]
        ``initial`` and ``final``, the model's own outputs before the first and after the last
        recorded update; ``outside``, what updates outside a recorded window changed; ``data``,
        ``weight_decay``, ``regulariser`` and ``prior_momentum`` (from before the first update),
        totals; the residuals; ``largest_step_residual``
        (absolute), and the accumulated arrays, such as ``data_by_sample`` [N, K, D].
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
        """
        path = Path(path)
        try:
            about = json.loads((path / ABOUT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HistoryError(f"{path} holds no explanation: {error}") from error
        store = Store.open(path)
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
        parts = [np.asarray(self[name], np.float64) for name in ("initial", *SOURCES)]
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
