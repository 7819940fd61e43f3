"""What examples and features *are*: images, texts, labels and names, for people to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarlib.errors import ReportError
from coarlib.loading import load_json, load_npz

__all__ = ["FeatureNotes", "Notes", "as_pictures", "read_groups", "read_notes"]

IMAGE_KEYS, LABEL_KEYS, TEXT_KEYS = ("images", "x"), ("labels", "y"), ("texts",)
MANY_CLASSES = 30


@dataclass(frozen=True)
class Notes:
    """What is known about examples; every part may be missing.

    Attributes
    ----------
    images : uint8 [T, H, W] or [T, H, W, 3], or None
    labels : sequence of T str, or None
    texts : sequence of T str, or None
    """

    images: NDArray[np.uint8] | None = None
    labels: Sequence[str] | None = None
    texts: Sequence[str] | None = None

    def check(self, count: int, what: str) -> None:
        """Raise ReportError unless every part has ``count`` entries."""
        for name in ("images", "labels", "texts"):
            part = getattr(self, name)
            if part is not None and len(part) != count:
                raise ReportError(
                    f"there are {len(part)} {name} for {count} {what}; give those that were "
                    "recorded, in the same order"
                )

    def classes(self) -> list[str] | None:
        """Return the distinct labels in order, or None if there are none or too many."""
        if self.labels is None:
            return None
        names = set(self.labels)
        numbers = all(label.lstrip("-").isdecimal() for label in names)
        found = sorted(names, key=int) if numbers else sorted(names)
        return found if 2 <= len(found) <= MANY_CLASSES else None


@dataclass(frozen=True)
class FeatureNotes:
    """Names of features: components in groups (layers), or training examples.

    Attributes
    ----------
    groups : sequence of (name, count)
        Consecutive features, such as the filters of one layer; empty if unknown.
    notes : Notes
        Of training examples.
    kind : str
        What the components are, such as ``"conv_filter"``; empty if unknown, or of several kinds.
    """

    groups: Sequence[tuple[str, int]] = ()
    notes: Notes = field(default_factory=Notes)
    kind: str = ""

    @classmethod
    def of_components(cls, content: Any) -> FeatureNotes:
        """Take names from what ``ComponentSet.to_json`` gives; ReportError for anything else."""
        groups = groups_from_json(content)
        kinds = {str(group.get("kind", "")) for group in content}
        return cls(groups, kind=kinds.pop() if len(kinds) == 1 else "")

    @property
    def count(self) -> int:
        """How many components are named."""
        return sum(size for _, size in self.groups)

    @property
    def noun(self) -> str:
        """What the features are, in the plural."""
        if self.groups:
            named = self.kind.replace("conv_", "convolution_").replace("_", " ")
            return f"{named}s" if named else "components"
        known = self.notes
        labelled = known.images is not None or known.labels is not None or known.texts is not None
        return "training examples" if labelled else "features"

    def check(self, count: int) -> None:
        """Raise ReportError unless the names fit ``count`` features."""
        named = sum(size for _, size in self.groups)
        if self.groups and named != count:
            raise ReportError(
                f"the component groups name {named} components, but attributions and masks have "
                f"{count} features"
            )
        self.notes.check(count, "features")

    def name(self, feature: int) -> str:
        """Name one feature."""
        start = 0
        for group, size in self.groups:
            if feature < start + size:
                return f"{group}[{feature - start}]"
            start += size
        label = "" if self.notes.labels is None else f" ({self.notes.labels[feature]})"
        return f"{'feature' if self.noun == 'features' else 'example'} {feature}{label}"

    def membership(self) -> tuple[list[str], NDArray[np.int64]] | None:
        """Return group names and each feature's group [N]: layers, or classes of training data."""
        if self.groups:
            sizes = [size for _, size in self.groups]
            return [name for name, _ in self.groups], np.repeat(np.arange(len(sizes)), sizes)
        classes = self.notes.classes()
        if classes is None or self.notes.labels is None:
            return None
        place = {label: at for at, label in enumerate(classes)}
        return classes, np.array([place[label] for label in self.notes.labels], np.int64)


def as_pictures(images: Any) -> NDArray[np.uint8]:
    """Turn images of any usual layout into uint8 [T, H, W] or [T, H, W, 3] to look at.

    Parameters
    ----------
    images : [T, H, W], [T, H, W, 1 or 3] or [T, 1 or 3, H, W]
        uint8 is taken as it is; other numbers are stretched to the range of the whole set (so
        normalised images look natural enough).

    Raises
    ------
    ReportError
        If the shape is none of these.
    """
    array = np.asarray(images)
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise ReportError(f"images of shape {list(np.shape(images))} are no set of images")
    if array.dtype == np.uint8:
        return array
    wide = array.astype(np.float32)
    axes = tuple(range(wide.ndim - 1)) if wide.ndim == 4 else None
    low, high = np.nanmin(wide, axis=axes), np.nanmax(wide, axis=axes)
    spread = np.where(high > low, high - low, 1)
    return np.asarray(np.nan_to_num((wide - low) / spread * 255).round(), dtype=np.uint8)


def read_notes(path: str | Path) -> Notes:
    """Read what is known about examples from a file.

    Parameters
    ----------
    path : str or Path
        An ``.npz`` with any of ``images`` (or ``x``), ``labels`` (or ``y``), ``texts`` and
        ``class_names``; or a ``.json`` list of texts, or object with ``texts`` and ``labels``.

    Raises
    ------
    ReportError
        If it cannot be read without executing code from it, or holds none of these.
    """
    path = Path(path)
    if path.suffix == ".npz":
        content: Mapping[str, Any] = load_npz(path, ReportError)
    else:
        loaded = load_json(path, ReportError)
        content = loaded if isinstance(loaded, dict) else {"texts": loaded}
    images, labels, texts = (
        next((content[key] for key in keys if key in content), None)
        for keys in (IMAGE_KEYS, LABEL_KEYS, TEXT_KEYS)
    )
    if images is None and labels is None and texts is None:
        raise ReportError(f"{path} holds none of images, labels and texts")
    for name, part in (("labels", labels), ("texts", texts)):
        if part is not None and not isinstance(part, list) and np.ndim(part) != 1:
            raise ReportError(f"the {name} of {path} must be a list")
    return Notes(
        None if images is None else as_pictures(images),
        None if labels is None else _named(labels, content.get("class_names")),
        None if texts is None else [str(text) for text in texts],
    )


def _named(labels: Any, names: Any) -> list[str]:
    if names is None:
        return [str(label) for label in labels]
    try:
        return [str(names[int(label)]) for label in labels]
    except (IndexError, ValueError) as error:
        raise ReportError(f"class_names has no name for every label: {error}") from error


def read_groups(path: str | Path) -> list[dict[str, Any]]:
    """Read component groups as ``ComponentSet.to_json`` gives them.

    Raises
    ------
    ReportError
        If it is something else.
    """
    content = load_json(path, ReportError)
    try:
        groups_from_json(content)
    except ReportError as error:
        raise ReportError(f"{path} is not a JSON file of component groups: {error}") from error
    return list(content)


def groups_from_json(content: Any) -> list[tuple[str, int]]:
    """Return (name, count) of groups that ``ComponentSet.to_json`` described.

    A module names its group; where groups of several kinds lie in one, kind and parameter do, too.
    """
    try:
        if not isinstance(content, list):
            raise TypeError("no list")
        sizes = [int(group["units"]) for group in content]
        names = [str(group["module"] or group["parameter"]) for group in content]
        for further in ("kind", "parameter"):
            counts = Counter(names)
            names = [
                name if counts[name] == 1 else f"{name} {group.get(further, '')}".rstrip()
                for name, group in zip(names, content, strict=True)
            ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"not a description of component groups: {error!r}") from error
    return list(zip(names, sizes, strict=True))
