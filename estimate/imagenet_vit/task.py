"""Margins of ViT-B/16 on ImageNet validation images, with neurons ablated."""

from __future__ import annotations

from typing import ClassVar

from estimate.imagenet_resnet.task import ImagenetResnetTask


class ImagenetVitTask(ImagenetResnetTask):
    """ViT-B/16 with the first weights of torchvision; 82,944 rows of its linear layers.

    Takes the settings of :class:`~estimate.imagenet_resnet.task.ImagenetResnetTask`; upstream
    uses every tenth image.
    """

    architecture: ClassVar[str] = "vit_b_16"
    component_preset: ClassVar[str] = "imagenet_vit"
