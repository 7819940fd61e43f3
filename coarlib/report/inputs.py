"""What a report is about: found in a directory, checked to fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coarlib.errors import CoarlibError, ReportError
from coarlib.regression.attributions import DATAMODELS, Attributions
from coarlib.regression.rows import RowSource, StoreRows, open_rows
from coarlib.report.methods import Baseline, find_baselines
from coarlib.report.notes import FeatureNotes, Notes
from coarlib.report.records import (
    EXPLANATION,
    Evaluation,
    LDSRecord,
    StepContributions,
    find_lds,
    read_evaluation,
    read_steps,
)
from coarlib.store import Store

__all__ = ["ReportInputs", "gather"]

EVALUATION, ATTRIBUTIONS = "evaluation.json", "attributions"
MANY_TARGETS = 20_000


@dataclass
class ReportInputs:
    """Everything that a report can show; what is missing is said in its section.

    Attributes
    ----------
    title : str
        Empty for one in words.
    attributions : Attributions or None
    rows : RowSource or None
        Masks and outputs, from a store or a .beton.
    store : Store or None
    why_no_rows : str
        One sentence, if ``rows`` is None.
    examples : Notes
        Of the targets.
    features : FeatureNotes
    baselines : mapping of method to Baseline
        Other scores, to be judged on the same held-out rows.
    evaluation : Evaluation or None
        Methods at several ablated fractions.
    lds : sequence of LDSRecord
    steps : StepContributions or None
    model : str
        Its name.
    place : str
        The directory that is reported on.
    output_key : str or None
        Which array of outputs was fitted, where that was said.
    """

    title: str = ""
    attributions: Attributions | None = None
    rows: RowSource | None = None
    store: Store | None = None
    why_no_rows: str = "No store was given."
    examples: Notes = field(default_factory=Notes)
    features: FeatureNotes = field(default_factory=FeatureNotes)
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    lds: Sequence[LDSRecord] = ()
    steps: StepContributions | None = None
    model: str = ""
    place: str = ""
    output_key: str | None = None

    def check(self) -> None:
        """Raise ReportError where two inputs cannot belong together."""
        found, rows = self.attributions, self.rows
        if found is not None and rows is not None:
            if found.num_features != rows.num_features:
                raise ReportError(
                    f"the attributions have {found.num_features} features, but the masks of "
                    f"{rows.description} have {rows.num_features}; name the store that "
                    "was fitted"
                )
            if found.num_targets != rows.num_targets:
                raise ReportError(
                    f"the attributions have {found.num_targets} targets, but the outputs of "
                    f"{rows.description} have {rows.num_targets}; name the array (y_name) "
                    "and the range of targets that were fitted"
                )
        shape = self.shape
        if shape is not None:
            self.features.check(shape[0])
            self.examples.check(shape[1], "targets")
            for name, baseline in self.baselines.items():
                if baseline.scores.shape != shape:
                    raise ReportError(
                        f"the baseline {name} has shape {list(baseline.scores.shape)}, not "
                        f"{list(shape)}"
                    )

    @property
    def is_small(self) -> bool:
        """Whether the page may hold much of every target and stay below ten megabytes."""
        return self.shape is None or self.shape[1] <= MANY_TARGETS

    @property
    def shape(self) -> tuple[int, int] | None:
        """Number of features and of targets, where known."""
        for one in (self.attributions, self.rows):
            if one is not None:
                return one.num_features, one.num_targets
        return None


def gather(
    out: str | Path,
    store: str | Path | None = None,
    *,
    mask_key: str | None = None,
    output_key: str | None = None,
    targets: slice = slice(None),
) -> ReportInputs:
    """Find what a directory holds.

    Parameters
    ----------
    out : str or Path
        A result of run_regression, a directory with one in ``attributions`` (and a store in
        ``store``), an explained training history, or a store.
    store : str or Path, optional
        The rows: a store or a .beton; by default what the fit says it used, if it is still there.
    mask_key, output_key, targets
        As the fit was told.

    Raises
    ------
    ReportError, StoreError, RegressionError
        If there is nothing to report on, or it is damaged.
    """
    out = Path(out)
    home = out.absolute()
    if home.name == ATTRIBUTIONS:  # a result is known by the run that it is of
        home = home.parent
    inputs = ReportInputs(place=home.name, output_key=output_key)
    fitted = next((d for d in (out, out / ATTRIBUTIONS) if (d / DATAMODELS).is_file()), None)
    if fitted is not None:
        inputs.attributions = Attributions.load(fitted, mmap=True)
        inputs.lds = [*find_lds(out), *([] if fitted == out else find_lds(fitted))]
        places = [folder / EVALUATION for folder in (out, out / "evaluation")]
        found = next((place for place in places if place.is_file()), None)
        inputs.evaluation = None if found is None else read_evaluation(found)
    elif (out / EXPLANATION).is_file():
        inputs.steps = read_steps(out)
    elif (out / "_completed.npy").is_file():
        store = store or out
    elif (out / "store").is_dir():
        pass
    else:
        raise ReportError(
            f"{out} holds neither a result of run_regression ({DATAMODELS}), nor a store, nor an "
            "explained training history; there is nothing to report on"
        )
    _open_rows(inputs, _place_of_rows(inputs, out, store), mask_key, output_key, targets)
    if (components := _components(inputs)) is not None:
        inputs.features = FeatureNotes.of_components(components)
    if inputs.attributions is not None and inputs.shape is not None:
        inputs.baselines = find_baselines(out, inputs.shape)
    inputs.check()
    return inputs


def _components(inputs: ReportInputs) -> list[dict[str, Any]] | None:
    """Return what the features are, as the fit or the store says."""
    found = inputs.attributions
    if found is not None and found.components is not None:
        return found.components
    return getattr(inputs.rows, "components", None)


def _place_of_rows(inputs: ReportInputs, out: Path, store: str | Path | None) -> Path | None:
    if store is not None:
        return Path(store)
    if (out / "store").is_dir():
        return out / "store"
    if inputs.attributions is None:
        return None
    said, beside = inputs.attributions.summary.get("data"), out.absolute().parent / "store"
    if out.absolute().name == ATTRIBUTIONS and beside.is_dir() and Path(said or "").suffix:
        return beside  # of which the .beton was written: it knows names, too
    if said and Path(said).exists():
        return Path(said)
    inputs.why_no_rows = (
        f"The rows of the fit ({said}) are not there; name their store."
        if said
        else "The fit does not say which rows it used; name their store."
    )
    return None


def _open_rows(
    inputs: ReportInputs,
    place: Path | None,
    mask_key: str | None,
    output_key: str | None,
    targets: slice,
) -> None:
    if place is None:
        return
    if place.is_dir():
        inputs.store = Store.open(place)
    try:
        rows = open_rows(place, mask_key, output_key, targets)
        if len(rows.row_ids) == 0:
            inputs.why_no_rows = f"No row of {place} is completed yet."
            return
        inputs.rows = rows
    except CoarlibError as error:
        # A store without masks and outputs has a report all the same.
        if inputs.store is None or inputs.attributions is not None:
            raise
        inputs.why_no_rows = f"{place} has no rows of masks and outputs: {error}."
    if isinstance(inputs.rows, StoreRows):  # never a picture of damaged rows
        inputs.rows.verify(np.arange(len(inputs.rows.row_ids)))
