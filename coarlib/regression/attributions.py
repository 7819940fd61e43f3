"""Attributions: the result of a fit, in raw mask units.

``weight[j, t]`` is the predicted change of output t when component j is kept rather than ablated,
everything else equal. (fast_l1 saves weights of standardised masks without the scale: at a keep
probability of .95 those are 0.218 times the effect. :meth:`Attributions.standardised` and
:meth:`Attributions.from_standardised` convert.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.display import card, histogram
from coarlib.errors import RegressionError, whole_number
from coarlib.explorer import explore
from coarlib.regression.chosen import chosen, named
from coarlib.regression.cost import Cost
from coarlib.regression.effects import SLOPE_ERROR, Effect, error_of_sum, precise_bias, slope_error
from coarlib.regression.heldout import SCORE_FIELDS, HeldOut
from coarlib.regression.problem import Problem, Solution
from coarlib.regression.result_files import DATAMODELS, ROWS, ResultFiles
from coarlib.regression.split import Split
from coarlib.regression.tables import (
    TopFeatures,
    feature_names,
    to_dataframe,
    to_xarray,
)
from coarlib.statistics.arrays import as_array

__all__ = ["DATAMODELS", "Attributions"]

SUMMARY, COMPONENTS = "summary.json", "components.json"
HISTOGRAM = "held-out correlation of the targets"
ERRORS, SCORES, PATH = "standard_errors.npz", "scores.npz", "path.npz"


@dataclass
class Attributions:
    """Weights of N features (components, training examples) for T targets.

    Attributes
    ----------
    weight : float32 [N, T]
        Raw mask units.
    bias : float32 or float64 [T]
        Predicted output with everything ablated.
    lam : float64 [T]
        Penalty of each target, in standardised units.
    mean_mask : float64 [N]
        How often each feature was kept in the rows of the fit.
    gap : float64 [T]
        Certificate: bound on (objective - optimum), relative to half the target's variance.
    error_feature : float64 [N] or [N, T] or None
    error_target : float64 [T] or None
        Standard errors in factored form; :attr:`standard_error` is their product.
    draws : float16 [K, N, T] or None
        Weights less their mean, drawn together from their posterior, in units of their standard
        errors: what errors of sets need.
    held_out : HeldOut or None
        Scores on rows that the (validation) fit has not seen.
    summary : dict
        How the fit was made, JSON values only.
    path : dict
        The course of a λ path, arrays [T, L] (saved as ``path.npz``), where there was one.
    fitted : uint64 [n] or None
        Which masks the weights were fitted on, ascending: digests, which stay what they are when
        rows are copied, converted or merged (:func:`~coarlib.masks.digests.mask_digests`).
    split : Split or None
        The rows (their numbers in the source) that were fitted and held out for the scores.
    components : list of dict or None
        What the features are, as :meth:`coarlib.ablation.ComponentSet.to_json` says it.
    """

    weight: NDArray[np.float32]
    bias: NDArray[Any]
    lam: NDArray[np.float64]
    mean_mask: NDArray[np.float64]
    gap: NDArray[np.float64]
    error_feature: NDArray[np.float64] | None = None
    error_target: NDArray[np.float64] | None = None
    draws: NDArray[np.float16] | None = None
    held_out: HeldOut | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    path: dict[str, NDArray[Any]] = field(default_factory=dict)
    fitted: NDArray[np.uint64] | None = None
    split: Split | None = None
    components: list[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        solver, rows = self.summary.get("solver", "unknown solver"), self.summary.get("num_rows")
        how = solver if rows is None else f"{solver}, {rows:,} rows"
        scored = "not scored on held-out rows" if self.held_out is None else repr(self.held_out)
        return f"Attributions: {self.num_features:,} features, {self.num_targets:,} targets\n" + (
            f"{how.replace('_', ' ')}\n{scored}"
        )

    def _repr_html_(self) -> str:
        scores = np.empty(0) if self.held_out is None else self.held_out.pearson
        return card(repr(self), histogram(scores, HISTOGRAM))

    @classmethod
    def from_solution(cls, problem: Problem, solution: Solution) -> Attributions:
        """Wrap what a solver returned, with a summary of it."""
        moments = problem.moments
        beyond = ~np.isfinite(solution.weight).all(0)
        if beyond.any():
            raise RegressionError(
                f"the weights of {int(beyond.sum())} targets (the first: {int(np.argmax(beyond))}) "
                "are beyond float32; scale their outputs or leave the targets out"
            )
        summary = {
            "status": solution.status,
            "iterations": solution.iterations,
            "num_rows": moments.num_rows,
            "num_excluded": moments.num_excluded,
            "num_features": moments.num_features,
            "num_targets": moments.num_targets,
            "constant_features": int(moments.constant_features.sum()),
            "constant_targets": int(moments.constant_targets.sum()),
            "largest_gap": float(solution.gap.max(initial=0.0)),
            **solution.details,
        }
        return cls(
            solution.weight,
            solution.bias,
            solution.lam,
            moments.mean_mask,
            solution.gap,
            solution.error_feature,
            solution.error_target,
            solution.draws,
            None,
            summary,
            solution.path,
            moments.digests,
        )

    @property
    def cost(self) -> Cost:
        """What everything that went in took, in forward passes over the examples."""
        return Cost.of(self.summary)

    @property
    def num_features(self) -> int:
        """Number of features N."""
        return int(self.weight.shape[0])

    @property
    def num_targets(self) -> int:
        """Number of targets T."""
        return int(self.weight.shape[1])

    @property
    def standard_error(self) -> NDArray[np.float64] | None:
        """Standard error of each weight, [N, T]; None where no honest one is known.

        Of shrunken weights it holds the bias of shrinkage, too: a distance to the truth, not only
        the spread of the estimate.
        """
        if self.error_feature is None:
            return None
        if self.error_target is None:
            return self.error_feature
        features = self.error_feature
        return (features[:, None] if features.ndim == 1 else features) * self.error_target

    def interval(self, z: float = 1.96) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weight ± z standard errors, two arrays [N, T].

        Raises
        ------
        RegressionError
            If no honest standard errors are known: for the lasso, and where rows are too few.
        """
        error = self.standard_error
        if error is None:
            raise RegressionError(
                "these attributions have no standard errors: the lasso gives none, and other "
                "solvers only from enough rows for their number of features"
            )
        return self.weight - z * error, self.weight + z * error

    def predict(self, masks: NDArray[Any]) -> NDArray[Any]:
        """Predict outputs of masks bool [B, N], [B, T]: float32, or float64 far from zero."""
        masks = as_array(masks, "masks")
        if masks.ndim != 2 or masks.shape[1] != self.num_features:
            raise RegressionError(
                f"masks must be [B, {self.num_features}], not {list(masks.shape)}"
            )
        x = torch.from_numpy(masks.astype(np.float32))
        product = torch.mm(x, torch.from_numpy(np.ascontiguousarray(self.weight, np.float32)))
        return product.numpy() + precise_bias(self.bias, self.weight)

    def top_features(self, target: int, count: int = 10) -> NDArray[np.int64]:
        """Features with the largest absolute weight for one target, strongest first."""
        (target,) = chosen(whole_number(target, "target"), self.num_targets, "target")
        if whole_number(count, "count") < 1:
            raise RegressionError(f"count must be at least 1, not {count}")
        return np.argsort(-np.abs(self.weight[:, target]), kind="stable")[:count]

    def top(self, target: int, count: int = 10) -> TopFeatures:
        """Return names, effects and errors of the strongest features of a target, as a table.

        Raises
        ------
        RegressionError
            If there is no such target.
        """
        index, one = self.top_features(target, count), self.targets([target])
        error = None if one.standard_error is None else one.standard_error.reshape(-1)[index]
        names, effect = self.feature_names, self.weight[index, target].astype(np.float64)
        return TopFeatures(target, index, tuple(names[at] for at in index), effect, error)

    @property
    def feature_names(self) -> list[str]:
        """What each feature is: a component's name, or ``"feature 7"`` where nothing says it."""
        return feature_names(self.components, self.num_features)

    def to_dataframe(self) -> Any:
        """Return the weights as a pandas DataFrame: a row a feature, a column a target.

        Raises
        ------
        SetupError
            If pandas is not installed.
        """
        return to_dataframe(self.weight, self.feature_names)

    def to_xarray(self) -> Any:
        """Return weights, errors, bias and held-out correlations as an xarray Dataset.

        Raises
        ------
        SetupError
            If xarray is not installed.
        """
        values = {"weight": self.weight, "error": self.standard_error, "bias": self.bias}
        scores = None if self.held_out is None else self.held_out.pearson
        return to_xarray({**values, "correlation": scores}, self.feature_names)

    def explore(self, **options: Any) -> Any:
        """Open the report in a notebook; options of :func:`coarlib.report.inline.explore`."""
        return explore(self, **options)

    def effect(self, features: str | Sequence[int] | NDArray[Any]) -> Effect:
        """Predicted change of each output when all of a set of features are kept.

        Parameters
        ----------
        features : str, sequence of int, or bool [N]
            Indices, a name, or a pattern of names as for files: ``"layer3.*"``.

        Returns
        -------
        Effect
            With its standard error, where the fit tells how its errors go together.

        Raises
        ------
        RegressionError
            If there is no such feature, or no name fits.
        """
        if isinstance(features, str):
            index, what = named(features, self.feature_names), features
        else:
            index = np.unique(chosen(features, self.num_features, "feature"))  # of a set
            what = f"{len(index)} features"
        value = self.weight[index].sum(0, dtype=np.float64)
        linear = None if self.held_out is None else self.held_out.r_squared
        common = slope_error(self.held_out, self.summary)
        error = error_of_sum(value, index, self.standard_error, self.draws, common)
        return Effect(what, index, value, *error, linear)

    def targets(self, which: int | slice | Sequence[int] | NDArray[Any]) -> Attributions:
        """Return the attributions of some targets (without summary scores)."""
        pick = chosen(which, self.num_targets, "target")
        feature = self.error_feature
        return replace(
            self,
            weight=self.weight[:, pick],
            bias=self.bias[pick],
            lam=self.lam[pick],
            gap=self.gap[pick],
            error_feature=feature if feature is None or feature.ndim == 1 else feature[:, pick],
            error_target=None if self.error_target is None else self.error_target[pick],
            draws=None if self.draws is None else self.draws[:, :, pick],
            held_out=None,
            path={key: values[pick] for key, values in self.path.items()},
            # The scores were those of all targets together.
            summary={key: value for key, value in self.summary.items() if key != "held_out"}
            | {SLOPE_ERROR: slope_error(self.held_out, self.summary)},
        )

    def standardised(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return weight [N, T] and bias [T] as fast_l1 has them: for (mask - mean) / sd."""
        scale = np.sqrt(self.mean_mask * (1 - self.mean_mask))
        weight = self.weight * scale[:, None]
        bias = self.bias + self.mean_mask @ self.weight.astype(np.float64)
        return weight.astype(np.float32), bias

    @classmethod
    def from_standardised(
        cls,
        weight: NDArray[Any],
        bias: NDArray[Any],
        lam: NDArray[Any],
        mean_mask: NDArray[np.float64],
    ) -> Attributions:
        """Convert fast_l1's weights, given how often each feature was kept in its rows."""
        scale = np.sqrt(mean_mask * (1 - mean_mask))[:, None]
        raw = np.divide(weight, scale, out=np.zeros(weight.shape), where=scale > 0)
        return cls(
            weight=raw.astype(np.float32),
            bias=np.asarray(bias, float) - mean_mask @ raw,
            lam=np.asarray(lam, float),
            mean_mask=mean_mask,
            gap=np.full(raw.shape[1], np.nan),
        )

    def save(self, path: str | Path) -> None:
        """Write the result directory; ``datamodels.pt`` comes last and makes it complete.

        Raises
        ------
        RegressionError
            If ``path`` already holds a result, or a store. Nothing is overwritten.
        """
        scores = {"gap": self.gap, "mean_mask": self.mean_mask}
        summary = dict(self.summary)
        if self.held_out is not None:
            scores |= {name: getattr(self.held_out, name) for name in SCORE_FIELDS}
            summary["held_out"] = self.held_out.summary()
        errors = {"feature": self.error_feature, "target": self.error_target, "draws": self.draws}
        ResultFiles(
            {"weight": self.weight, "bias": self.bias, "lam": self.lam},
            {
                ERRORS: {key: value for key, value in errors.items() if value is not None},
                SCORES: scores,
                PATH: self.path,
                ROWS: self._rows(),
            },
            {COMPONENTS: self.components, SUMMARY: summary},
        ).save(Path(path))

    def _rows(self) -> dict[str, NDArray[Any]]:
        """Which rows went in, as arrays to save."""
        rows: dict[str, NDArray[Any]] = {} if self.fitted is None else {"fitted": self.fitted}
        if self.split is not None:
            rows |= {"train": self.split.train, "validation": self.split.validation}
        return rows

    @classmethod
    def load(cls, path: str | Path, mmap: bool = False) -> Attributions:
        """Read a result directory.

        Parameters
        ----------
        path : str or Path
        mmap : bool
            Map the weights instead of reading them.

        Raises
        ------
        RegressionError
            If the directory holds no complete result.
        """
        files = ResultFiles.load(
            Path(path), (SCORES, ERRORS, ROWS, PATH), (SUMMARY, COMPONENTS), mmap
        )
        weight, summary = files.tensors["weight"], files.documents[SUMMARY] or {}
        scores, rows = files.arrays[SCORES], files.arrays[ROWS]
        features, targets = weight.shape
        held = summary.get("held_out")
        if held and "pearson" not in scores:
            raise RegressionError(f"{path} is damaged: {SCORES}, scores of held-out rows, is gone")
        return cls(
            weight=weight,
            bias=files.tensors["bias"].astype(np.float64),
            lam=files.tensors["lam"].astype(np.float64),
            mean_mask=scores.get("mean_mask", np.full(features, np.nan)),
            gap=scores.get("gap", np.full(targets, np.nan)),
            error_feature=files.arrays[ERRORS].get("feature"),
            error_target=files.arrays[ERRORS].get("target"),
            draws=files.arrays[ERRORS].get("draws"),
            held_out=HeldOut.of_summary(held, scores) if held else None,
            summary=summary,
            path=files.arrays[PATH],
            fitted=rows.get("fitted"),
            split=Split(rows["train"], rows["validation"]) if "train" in rows else None,
            components=files.documents[COMPONENTS],
        )
