"""Four architectures: a simple CNN, a ResNet, a U-Net and Mask R-CNN, trained alike."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.data import Dataset

from nuctut import detection, experiments, postprocess, training
from nuctut.experiments.settings import Positive
from nuctut.files import STRICT, Measure
from nuctut.losses import IoULoss
from nuctut.models.cnn import SimpleCNN
from nuctut.models.mask_rcnn import MaskRCNN
from nuctut.models.resnet import WIDTH, FCNResNet
from nuctut.models.unet import UNet
from nuctut.samples import Sample, SampleSet

CHANNELS = 3

# In the order of the paper's table, which is that of its scores.
NETWORKS: dict[str, type[nn.Module]] = {
    "simple-cnn": SimpleCNN,
    "resnet": FCNResNet,
    "u-net": UNet,
    "mask-rcnn": MaskRCNN,
}
CODE = {
    "simple-cnn": ("targets", "losses", "training", "models/cnn"),
    "resnet": ("targets", "losses", "training", "models/resnet"),
    "u-net": ("targets", "losses", "training", "models/unet"),
    "mask-rcnn": ("targets", "detection", "training", "models/mask_rcnn", "models/resnet"),
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(experiments.Settings):
    """What a preset fixes for one of the networks.

    Mask R-CNN has losses of its own, and always the scale "linear".

    Attributes:
        options: Arguments of the network's constructor, but for `pretrained`.
        pretrained: Whether it starts from weights trained on COCO; of "resnet" and "mask-rcnn".
        crop: Side of the random crops in pixels.
        colour, zoom, gamma: Of `training.Jitter`.
        balance: Draw images by their sort, see `training.balanced`, so that the many of one sort do
            not drown the few of another; else all alike.
        iou: Of `losses.IoULoss`.
        threshold: Least probability of a nucleus' pixel; of Mask R-CNN, least score of a nucleus.
        …: Those of `experiments.Settings`.
    """

    options: dict[str, Any]
    pretrained: bool
    crop: Positive
    colour: Measure
    zoom: Annotated[float, Field(ge=1)]
    gamma: Measure
    balance: bool
    iou: Measure
    threshold: Annotated[float, Field(ge=0, le=1)]


def code(variant: str) -> tuple[str, ...]:
    """Modules of the package that decide what the fit of a variant computes."""
    return CODE[variant]


def network(variant: str, settings: Settings, had: bool | None = None) -> nn.Module:
    """One of `NETWORKS`, see `experiments.Experiment`.

    Raises:
        ValueError: For an unknown one.
        OSError: When it starts from published weights and they cannot be had.
    """
    if variant not in NETWORKS:
        raise ValueError(f"variant must be one of {', '.join(NETWORKS)}, not {variant!r}.")
    options = dict(settings.options)
    if variant in ("resnet", "mask-rcnn"):
        options["pretrained"] = settings.pretrained if had is None else had
        options["restore"] = had is not None
    return NETWORKS[variant](**options)


def describe(model: nn.Module) -> str:
    """A network in words: its family, its size, and what its weights started from."""
    match model:
        case SimpleCNN():
            return f"simple CNN, {model.channels} feature maps"
        case UNet():
            return f"U-Net, {model.channels[0]} to {model.channels[-1]} feature maps"
        case FCNResNet():
            family = "FCN"
        case MaskRCNN():
            family = "Mask R-CNN"
    narrow = "" if model.width == WIDTH else f" of {model.width} to {8 * model.width} feature maps"
    start = "COCO weights" if model.pretrained else "from scratch"
    return f"{family}, ResNet-{model.depth}{narrow}, {start}"


def loss(variant: str, settings: Settings) -> nn.Module | None:
    """The soft IoU with a cross-entropy; None for Mask R-CNN, which has losses of its own."""
    if variant == "mask-rcnn":
        return None
    return IoULoss(iou=settings.iou, cross_entropy=settings.cross_entropy)


def items(
    variant: str,
    samples: SampleSet,
    settings: Settings,
    teach: experiments.ClassMap | None = None,
    *,
    seed: int,
    progress: bool,
) -> Dataset:
    """Random crops of images and masks; of nuclei one by one for Mask R-CNN."""
    jitter = training.Jitter(settings.gain, settings.colour, settings.zoom, settings.gamma)
    how = {"size": settings.crop, "jitter": jitter, "seed": seed, "progress": progress}
    if settings.balance and samples.split == "training":
        how["shares"] = training.balanced([sample.tags["sort"] for sample in samples])
    if variant == "mask-rcnn":
        return detection.instance_crops(samples, **how)
    return experiments.random_crops(samples, teach or mask, scale=settings.scale, **how)


def mask(sample: Sample) -> np.ndarray:
    """(H, W) uint8, 1 in nuclei."""
    return (sample.labels > 0).astype(np.uint8)


def rule(variant: str, settings: Settings) -> postprocess.LabelRule | None:
    """Whatever hangs together in the mask is one nucleus; None for Mask R-CNN."""
    if variant == "mask-rcnn":
        return None
    return postprocess.pieces_of_a_mask(settings.threshold, settings.min_area)
