"""Margins of a torchvision classifier on ImageNet validation images, with components ablated."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from coarlib.ablation import ComponentSet, ComponentTask, Examples, preset
from coarlib.errors import SetupError
from coarlib.inputs.checkpoints import load_weights, read_weights
from coarlib.inputs.images import IMAGENET, normalised, read_images
from coarlib.outputs import margin

WHERE_IMAGES = (
    "download imagenet_val.beton from the README of github.com/MadryLab/modelcomponents, or save "
    "the validation set, cropped to 224×224, as x.npy (uint8 [T, 224, 224, 3]) and y.npy in a "
    "folder, and give its place as --expt.beton_path"
)
CROP = (224, 224 / 256)


class ImagenetResnetTask(ComponentTask):
    """ResNet-50 with the first weights of torchvision; 22,720 conv filters.

    Parameters
    ----------
    beton_path : str
        Images: a .beton (needs ffcv), a folder with x.npy and y.npy, or an .npz.
    model_path : str
        A state dict; empty downloads torchvision's.
    subsample_skip : int
        Use every so-many-th image.
    num_workers : int
        Accepted for upstream's commands; images are read in this process.
    """

    architecture: ClassVar[str] = "resnet50"
    component_preset: ClassVar[str] = "imagenet_resnet"
    outputs: ClassVar = {"val_margins": margin}
    rows_per_batch = 2

    def __init__(
        self,
        beton_path: str,
        model_path: str = "",
        *,
        subsample_skip: int = 1,
        batch_size: int | None = None,
        autocast: str = "auto",
        ablate: str = "zero_weights",
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, autocast=autocast, ablate=ablate)
        self.beton_path, self.model_path = beton_path, model_path
        self.subsample_skip = subsample_skip

    def network(self, pretrained: bool) -> nn.Module:
        """Build torchvision's model, with its weights (downloaded and kept by torch) or without."""
        try:
            from torchvision import models
        except ImportError as error:
            raise SetupError(
                f"{self.architecture} comes from torchvision; pip install torchvision"
            ) from error
        try:
            weights = "IMAGENET1K_V1" if pretrained else None
            return models.get_model(self.architecture, weights=weights)
        except OSError as error:
            raise SetupError(
                f"the weights of {self.architecture} could not be downloaded ({error}); download "
                "IMAGENET1K_V1 of torchvision elsewhere and give its place as --expt.model_path"
            ) from error

    def model(self) -> nn.Module:
        """Return the classifier."""
        if not self.model_path:
            return self.network(pretrained=True)
        weights = read_weights(
            self.model_path, f"leave --expt.model_path out to download {self.architecture}"
        )
        return load_weights(self.network(pretrained=False), weights, self.model_path)

    def components(self, model: nn.Module) -> ComponentSet:
        """Return upstream's component set."""
        return preset(self.component_preset, model)

    def examples(self) -> Examples:
        """Return the images as stored; they move to the device batch by batch."""
        images, labels = read_images(self.beton_path, WHERE_IMAGES, self.subsample_skip, CROP)
        return Examples((images,), labels, resident=False)

    def transform(self, batch: Examples) -> Examples:
        """Normalise on the device."""
        return Examples((normalised(batch.inputs[0], *IMAGENET),), batch.targets)
