"""Reading labelled images: NumPy files, or FFCV's .beton where ffcv is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.ablation.examples import Examples
from coarlib.errors import SetupError
from coarlib.loading import load_npy, load_npz

IMAGES, LABELS = "x", "y"
# Mean and standard deviation of the channels, in units of pixel values 0 … 255.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CIFAR = ((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))
"""The ones COAR uses."""


def read_images(
    path: str | Path, where_to_get: str, skip: int = 1, crop: tuple[int, float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read images and labels.

    Parameters
    ----------
    path : str or Path
        An ``.npz`` with ``x`` (uint8 [T, H, W, 3], RGB) and ``y`` (whole numbers [T]); a folder
        with ``x.npy`` and ``y.npy``, which is mapped and not read at once; or a ``.beton`` with
        fields ``image`` and ``label`` (needs ffcv).
    where_to_get : str
        What to say if there is nothing: what to get from where.
    skip : int
        Keep every ``skip``-th image, from the first.
    crop : (size, ratio), optional
        For a ``.beton``: the centre crop that is decoded. NumPy images must have the size already.

    Returns
    -------
    images : uint8 [T, H, W, 3]
    labels : int64 [T]

    Raises
    ------
    SetupError
        If the file is missing or holds something else.
    """
    path = Path(path)
    if skip < 1:
        raise SetupError(f"subsample_skip must be at least 1, not {skip}")
    if not path.exists():
        raise SetupError(f"there are no images at {path}; {where_to_get}")
    if path.is_dir():
        images, labels = (_mapped(path / f"{key}.npy") for key in (IMAGES, LABELS))
    elif path.suffix == ".npz":
        images, labels = _from_npz(path)
    elif path.suffix == ".beton":
        images, labels = _from_beton(path, crop)
    else:
        raise SetupError(f"{path} is neither an .npz, a .beton, nor a folder with x.npy and y.npy")
    images, labels = images[::skip], labels[::skip]
    whole = labels.dtype.kind in "iu" and labels.ndim == 1
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not whole:
        raise SetupError(
            f"{path} must hold x uint8 [T, H, W, 3] and y whole numbers [T], not "
            f"{images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    if len(images) != len(labels):
        raise SetupError(f"{path} holds {len(images)} images but {len(labels)} labels")
    writable = images if images.flags.writeable else np.require(images, requirements=["O", "W"])
    return torch.from_numpy(writable), torch.from_numpy(labels.astype(np.int64))


def normalised(
    images: torch.Tensor, mean: Sequence[float], deviation: Sequence[float]
) -> torch.Tensor:
    """Turn uint8 [T, H, W, 3] into float32 [T, 3, H, W], each channel less mean over deviation."""
    shape = (1, 3, 1, 1)
    mean_t, deviation_t = (
        torch.tensor(x, device=images.device).view(shape) for x in (mean, deviation)
    )
    return (images.permute(0, 3, 1, 2).float() - mean_t) / deviation_t


def image_examples(
    images: torch.Tensor, labels: torch.Tensor, statistics: tuple[Sequence[float], Sequence[float]]
) -> Examples:
    """Return normalised images as examples that stay on the device."""
    return Examples((normalised(images, *statistics),), labels)


def _mapped(path: Path) -> NDArray[Any]:
    # Copy on write: torch wants a writable array, and the file stays as it is.
    return load_npy(path, SetupError, mode="c")


def _from_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    content = load_npz(path, SetupError)
    if not {IMAGES, LABELS} <= set(content):
        raise SetupError(f"{path} must hold the arrays x (images) and y (labels)")
    return content[IMAGES], content[LABELS]


def _from_beton(path: Path, crop: tuple[int, float] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        from ffcv.fields import decoders
        from ffcv.loader import Loader, OrderOption
    except ImportError as error:
        raise SetupError(
            f"reading the images of {path} needs ffcv; pip install 'coarlib[ffcv]', or give an "
            ".npz with x (uint8 [T, H, W, 3]) and y instead"
        ) from error
    if crop is None:
        image = decoders.SimpleRGBImageDecoder()
    else:
        size, ratio = crop
        image = decoders.CenterCropRGBImageDecoder((size, size), ratio)
    loader = Loader(
        str(path),
        batch_size=500,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        pipelines={"image": [image], "label": [decoders.IntDecoder()]},
    )
    parts = [(np.array(images), np.array(labels).reshape(-1)) for images, labels, *_ in loader]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
