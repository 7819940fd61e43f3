"""What the page's script needs of every target, packed: numbers as base64 of small integers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.plots.style import pyplot
from coarlib.report.health import Health
from coarlib.report.inputs import ReportInputs
from coarlib.report.learning import Unseen
from coarlib.report.notes import Notes
from coarlib.report.strongest import Nearest, Strongest
from coarlib.report.words import output_name

__all__ = ["explorer_data", "pack", "pack_scaled", "spread_out"]

STEPS = 32767
SMALLEST_SCALE = 1e-37  # what float32 holds with all its digits; smaller numbers become 0
IMAGE_BYTES = 3 * 2**20
LONGEST_SIDE = 96
LONGEST_TEXT = 400
MOST_TEXT_BYTES = 2 * 2**20
SCATTERS = 48
SCATTER_POINTS = 300


def pack(values: NDArray[Any], dtype: str) -> dict[str, Any]:
    """Pack integers as base64 of little-endian ``dtype``."""
    data = np.ascontiguousarray(values).astype(np.dtype(dtype).newbyteorder("<"))
    return {"dtype": dtype, "data": base64.b64encode(data.tobytes()).decode()}


def pack_scaled(values: NDArray[Any]) -> dict[str, Any]:
    """Pack real numbers [T] or [T, K] as int16 with one scale a row (or one in all for [T]).

    The largest error is 1/65,534 of the largest magnitude (or 1e-32); NaN is the smallest int16.
    """
    wide = np.asarray(values, np.float64)
    finite = np.where(np.isfinite(wide), np.abs(wide), 0)
    largest = finite.max(axis=-1, keepdims=True, initial=0)
    scale = (largest / STEPS).astype(np.float32).astype(np.float64)
    scale = np.where(scale >= SMALLEST_SCALE, scale, 1)
    steps = np.where(np.isfinite(wide), np.round(np.nan_to_num(wide) / scale), -STEPS - 1)
    packed = pack(steps, "int16")
    scales = np.broadcast_to(scale, (*wide.shape[:-1], 1))[..., 0]
    return packed | {"scale": pack(scales.astype(np.float32), "float32")}


def spread_out(values: NDArray[Any] | None, count: int) -> NDArray[np.int64]:
    """Return all of ``count`` positions so that any beginning is spread over their values.

    The lowest and the highest come first, then the median, then the quarters, and so on.
    """
    order = np.arange(count) if values is None else np.argsort(values, kind="stable")
    places: list[int] = [0, count - 1]
    parts = 1
    while parts < count:
        places += [round((count - 1) * (2 * at + 1) / (2 * parts)) for at in range(parts)]
        parts *= 2
    unique = list(dict.fromkeys([p for p in places if 0 <= p < count]))
    rest = np.setdiff1d(np.arange(count), unique, assume_unique=True)
    return np.asarray(order[np.concatenate([unique, rest]).astype(np.int64)], dtype=np.int64)


def explorer_data(
    inputs: ReportInputs,
    top: Strongest | None,
    similar: Nearest | None,
    health: Health | None,
    curve: Unseen | None,
) -> dict[str, Any] | None:
    """Collect the data of the table of examples and of the view of one example.

    Returns
    -------
    dict or None
        JSON values; None if there are no targets to show.
    """
    shape = inputs.shape
    if shape is None:
        return None
    features, targets = shape
    held = None if inputs.attributions is None else inputs.attributions.held_out
    order = spread_out(None if held is None else held.pearson, targets)
    content: dict[str, Any] = {"targets": targets, "features": features, "columns": {}}
    content["output"] = output_name(inputs)
    columns = content["columns"]
    if held is not None:
        for name in ("pearson", "low", "high", "r_squared"):
            columns[name] = pack_scaled(np.clip(getattr(held, name), -9, 9))
    if health is not None:
        columns |= {"mean": pack_scaled(health.mean), "sd": pack_scaled(health.deviation)}
    if inputs.examples.labels is not None:
        content["labels"] = list(inputs.examples.labels)
    content["groups"] = [list(group) for group in inputs.features.groups]
    content["ofExamples"] = inputs.features.noun == "training examples"
    if inputs.features.notes.labels is not None:
        content["featureLabels"] = list(inputs.features.notes.labels)
    if top is not None:
        kind = "uint16" if features < 65535 else "uint32"
        missing = np.iinfo(kind).max
        content["top"] = {
            "count": top.features.shape[1],
            "features": pack(np.where(top.features < 0, missing, top.features), kind),
            "weights": pack_scaled(top.weights),
        }
        if top.errors is not None:
            content["top"]["errors"] = pack_scaled(top.errors)
        content["featureImages"] = _images(inputs.features.notes, _most_frequent(top, order))
    if similar is not None and similar.targets.shape[1]:
        content["nearest"] = {
            "count": similar.targets.shape[1],
            "targets": pack(similar.targets, "uint32"),
            "cosines": pack_scaled(similar.cosines),
        }
    content["images"] = _images(inputs.examples, order)
    content["texts"] = _texts(inputs.examples, order)
    if curve is not None:
        content["scatter"] = _scatter(curve)
    return content


def _most_frequent(top: Strongest, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Features of the first targets of ``order``, then those that stand out most often."""
    shown = top.features[order[:50]].ravel()
    chosen, counts = np.unique(top.features[top.features >= 0], return_counts=True)
    everywhere = chosen[np.argsort(-counts, kind="stable")]
    joined = np.concatenate([shown[shown >= 0], everywhere])
    _, first = np.unique(joined, return_index=True)
    return np.asarray(joined[np.sort(first)], dtype=np.int64)


def _images(notes: Notes, order: Iterable[Any]) -> dict[str, str]:
    """PNG data URIs of as many images as the budget allows, in the given order."""
    found: dict[str, str] = {}
    if notes.images is None:
        return found
    left = IMAGE_BYTES
    for at in order:
        uri = picture_uri(notes.images[at])
        left -= len(uri)
        if left < 0:
            break
        found[str(int(at))] = uri
    return found


def picture_uri(image: NDArray[np.uint8]) -> str:
    """Return an image [H, W] or [H, W, 3] as a PNG data URI, coarsened to at most 96 pixels."""
    step = -(-max(image.shape[:2]) // LONGEST_SIDE)
    buffer = io.BytesIO()
    small = image[::step, ::step]
    if small.ndim == 2:  # dark on light, as ink on paper
        small = np.repeat((255 - small)[..., None], 3, axis=2)
    pyplot().imsave(buffer, small, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _texts(notes: Notes, order: NDArray[np.int64]) -> dict[str, str]:
    found: dict[str, str] = {}
    if notes.texts is None:
        return found
    left = MOST_TEXT_BYTES
    for at in order:
        text = notes.texts[at]
        text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
        left -= len(text.encode())
        if left < 0:
            break
        found[str(int(at))] = text
    return found


def _scatter(curve: Unseen) -> dict[str, Any]:
    """Predicted and measured outputs of some targets on some held-out rows."""
    chosen = spread_out(curve.scores.pearson, len(curve.targets))[:SCATTERS]
    count = min(len(curve.true), SCATTER_POINTS)
    rows = np.linspace(0, len(curve.true) - 1, count).astype(np.int64)
    return {
        "targets": curve.targets[chosen].tolist(),
        "points": count,
        "predicted": pack_scaled(curve.predicted[np.ix_(rows, chosen)].T),
        "true": pack_scaled(curve.true[np.ix_(rows, chosen)].T),
    }
