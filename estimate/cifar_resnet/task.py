"""Margins of a CIFAR-10 residual network on test images, with conv filters ablated."""

from __future__ import annotations

from torch import nn

from coarlib.ablation import ComponentSet, ComponentTask, Examples, preset
from coarlib.errors import SetupError
from coarlib.inputs.checkpoints import read_weights
from coarlib.inputs.images import CIFAR, IMAGENET, image_examples, read_images
from estimate.cifar_resnet.model import CifarResNet, PadShortcut, from_weights

WHERE_MODEL = (
    "download COAR's model from the README of github.com/MadryLab/modelcomponents, or "
    "resnet20-12fca82f.th of github.com/akamaster/pytorch_resnet_cifar10, and give its place as "
    "--expt.model_path"
)
WHERE_IMAGES = (
    "download cifar10.beton from the README of github.com/MadryLab/modelcomponents, or save the "
    "CIFAR-10 test set as an .npz with x (uint8 [T, 32, 32, 3]) and y, and give its place as "
    "--expt.beton_path"
)
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
NORMALIZATIONS = {"cifar": CIFAR, "imagenet": IMAGENET}


class CifarTask(ComponentTask):
    """Conv filters of a residual network (2,304 in COAR's, 688 in ResNet-20).

    Parameters
    ----------
    model_path : str
        Weights; the architecture follows from their shapes.
    beton_path : str
        Images: a .beton (needs ffcv), an .npz, or a folder of .npy files.
    subsample_skip : int
        Use every so-many-th image.
    normalization : {"auto", "cifar", "imagenet"}
        Channel statistics; auto takes ImageNet's for He's networks, whose public checkpoints were
        trained so, and CIFAR's for the others.
    num_workers : int
        Accepted for upstream's commands; images are read once, in this process.
    """

    rows_per_batch = 4
    class_names = CLASSES

    def __init__(
        self,
        model_path: str,
        beton_path: str,
        *,
        subsample_skip: int = 1,
        batch_size: int | None = None,
        normalization: str = "auto",
        autocast: str = "auto",
        ablate: str = "zero_weights",
        compiled: bool | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, autocast=autocast, ablate=ablate, compiled=compiled)
        if normalization not in ("auto", *NORMALIZATIONS):
            raise SetupError(f"normalization must be auto, cifar or imagenet, not {normalization}")
        self.model_path, self.beton_path = model_path, beton_path
        self.subsample_skip, self.normalization = subsample_skip, normalization
        self._loaded: CifarResNet | None = None

    def model(self) -> CifarResNet:
        """Return the network with the weights at ``model_path``."""
        if self._loaded is None:
            weights = read_weights(self.model_path, WHERE_MODEL)
            self._loaded = from_weights(weights, self.model_path)
        return self._loaded

    def components(self, model: nn.Module) -> ComponentSet:
        """Filters of the convolutions named conv; upstream leaves out those in shortcuts."""
        return preset("cifar_resnet", model)

    def examples(self) -> Examples:
        """Return the test images."""
        images, labels = read_images(self.beton_path, WHERE_IMAGES, self.subsample_skip)
        chosen = self.normalization
        if chosen == "auto":
            he = any(isinstance(module, PadShortcut) for module in self.model().modules())
            chosen = "imagenet" if he else "cifar"
        return image_examples(images, labels, NORMALIZATIONS[chosen])
