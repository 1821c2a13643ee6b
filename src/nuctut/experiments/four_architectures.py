"""Four architectures: a simple CNN, a ResNet, a U-Net and Mask R-CNN, trained alike."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from nuctut import detection, inference, postprocess, targets, training
from nuctut.experiments import (
    Measured,
    Segmented,
    code_digest,
    description,
    fit_key,
    fit_or_take_up,
    fit_settings,
    measure,
    random_crops,
    ready,
)
from nuctut.losses import IoULoss
from nuctut.models.cnn import SimpleCNN
from nuctut.models.mask_rcnn import MaskRCNN
from nuctut.models.resnet import FCNResNet
from nuctut.models.unet import UNet
from nuctut.samples import Sample, SampleSet

# In the order of the paper's table, which is that of its scores.
NETWORKS: dict[str, type[nn.Module]] = {
    "simple-cnn": SimpleCNN,
    "resnet": FCNResNet,
    "u-net": UNet,
    "mask-rcnn": MaskRCNN,
}
CODE_OF_A_FIT = {
    "simple-cnn": ("targets", "losses", "training", "models/cnn"),
    "resnet": ("targets", "losses", "training", "models/resnet"),
    "u-net": ("targets", "losses", "training", "models/unet"),
    "mask-rcnn": ("targets", "detection", "training", "models/mask_rcnn"),
}


@dataclass(frozen=True)
class Settings:
    """What a preset fixes for one of the networks.

    Attributes:
        data: Source asked for: "auto", "real" or "simulated".
        images: Most images per split; None takes all.
        options: Arguments of the network's constructor.
        crop: Side of the random crops in pixels.
        scale: Of intensities, see `targets.standardise`; Mask R-CNN always has "linear".
        gain, colour, zoom: Of `training.Jitter`.
        iou, cross_entropy: Weights of `losses.IoULoss`; Mask R-CNN has losses of its own.
        threshold: Least probability of a nucleus' pixel; of Mask R-CNN, least score of a nucleus.
        min_area: Predicted nuclei with fewer pixels than this are dropped.
        epochs … devices: Of `training.FitSettings`.
    """

    data: str
    images: int | None
    options: Mapping[str, Any]
    crop: int
    scale: str
    gain: float
    colour: float
    zoom: float
    iou: float
    cross_entropy: float
    threshold: float
    min_area: int
    epochs: int
    updates: int | None
    batch_size: int
    learning_rate: float
    schedule: str
    l2: float
    precision: str
    patience: int | None
    devices: int = 1


@dataclass(frozen=True)
class Trained:
    """A fitted network, ready to predict, and how it came to be."""

    variant: str
    model: nn.Module
    fit: training.FitResult
    settings: Settings
    channels: ClassVar[int] = 3

    @property
    def rule(self) -> postprocess.LabelRule | None:
        """Whatever hangs together in the mask is one nucleus; None for Mask R-CNN."""
        if isinstance(self.model, MaskRCNN):
            return None
        return postprocess.pieces_of_a_mask(self.settings.threshold, self.settings.min_area)

    @property
    def name(self) -> str:
        """What was really trained, such as "Mask R-CNN, ResNet-18, from scratch"."""
        return describe(self.model)

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings and the network's name, as a record keeps them."""
        return asdict(self.settings) | {"network": self.name}

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(1, H, W) float32 probability of a nucleus, of an (H, W, 3) image; not of Mask R-CNN."""
        normalise = functools.partial(targets.standardise, scale=self.settings.scale)
        precision = self.settings.precision
        return inference.predict(self.model, image, normalise=normalise, precision=precision)

    def labels(self, image: np.ndarray) -> np.ndarray:
        """(H, W) int32 labels of an (H, W, 3) image of any size.

        Mask R-CNN gives nuclei; of the others, whatever hangs together in the mask is one.
        """
        if self.rule is not None:
            return self.rule.labels(self.probabilities(image))
        settings = self.settings
        how = {"min_score": settings.threshold, "min_area": settings.min_area}
        return detection.segment(self.model, image, **how)


def describe(model: nn.Module) -> str:
    """A network in words: its family, its size, and what its weights started from."""
    match model:
        case SimpleCNN():
            return f"simple CNN, {model.channels} feature maps"
        case UNet():
            return f"U-Net, {model.channels[0]} to {model.channels[-1]} feature maps"
        case FCNResNet():
            family = f"FCN, ResNet-{model.depth}"
        case MaskRCNN():
            family = f"Mask R-CNN, ResNet-{model.depth}"
    return f"{family}, {'COCO weights' if model.pretrained else 'from scratch'}"


def train(
    variant: str,
    train_set: SampleSet,
    validation_set: SampleSet,
    settings: Settings,
    *,
    seed: int = 0,
    device: str = "auto",
    runs: Path,
    progress: bool = True,
) -> Trained:
    """Fit one of `NETWORKS`, or take up the fit of the same name, settings, data and code.

    Args:
        variant: Which network.
        train_set, validation_set: What it learns from, and what chooses its checkpoint.
        settings, seed, device: See `Settings` and `training.FitSettings`.
        runs: Folder that holds the fits, one folder each.
        progress: Show progress bars.

    Raises:
        ValueError: For an unknown network.
    """
    if variant not in NETWORKS:
        raise ValueError(f"variant must be one of {', '.join(NETWORKS)}, not {variant!r}.")
    how = fit_settings(settings, seed, device)
    torch.manual_seed(seed)
    model = NETWORKS[variant](**settings.options)
    pretrained = getattr(model, "pretrained", False)  # not always had where they are asked for
    parts = (variant, train_set, validation_set, settings, how, pretrained)
    folder = runs / f"{variant}--s{seed}--{fit_key(*parts, code=CODE_OF_A_FIT[variant])}"
    loss = None
    if variant != "mask-rcnn":
        loss = IoULoss(iou=settings.iou, cross_entropy=settings.cross_entropy)
    about = (variant, seed, settings, train_set, current_code(variant), pretrained)
    fit = fit_or_take_up(
        model,
        loss,
        lambda samples: _items(variant, samples, settings, seed, progress),
        (train_set, validation_set),
        folder,
        how,
        description(__name__, *about),
        progress=progress,
    )
    return Trained(variant, ready(model, device), fit, settings)


def current_code(variant: str) -> str:
    """Digest of the code that a fit of a variant depends on, as it stands now."""
    return code_digest(CODE_OF_A_FIT[variant])


def restored(variant: str, settings: Settings, pretrained: bool) -> nn.Module:
    """The network of a fit, without its weights."""
    options = dict(settings.options)
    if variant in ("resnet", "mask-rcnn"):
        options |= {"pretrained": pretrained, "restore": True}
    return NETWORKS[variant](**options)


def _items(
    variant: str, samples: SampleSet, settings: Settings, seed: int, progress: bool
) -> Dataset:
    jitter = training.Jitter(settings.gain, settings.colour, settings.zoom)
    how = {"size": settings.crop, "jitter": jitter, "seed": seed, "progress": progress}
    if variant == "mask-rcnn":
        return detection.instance_crops(samples, **how)
    return random_crops(samples, _mask, scale=settings.scale, **how)


def _mask(sample: Sample) -> np.ndarray:
    return (sample.labels > 0).astype(np.uint8)


def measure_network(
    trained: Trained,
    samples: SampleSet,
    *,
    variant: str = "",
    after: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: bool = True,
) -> Measured:
    """A network on a set of samples: every score sees its labels.

    Args:
        trained: The network.
        samples: What to measure on.
        variant: Names the measurement; by default as the network.
        after: What is done to the network's labels, such as `postprocess.divide`.
        progress: Show a progress bar.
    """

    def segment(sample: Sample) -> Segmented:
        start = time.perf_counter()
        labels = trained.labels(sample.image)
        labels = labels if after is None else after(labels)
        return Segmented(labels, {"seconds_per_image": time.perf_counter() - start}, {})

    return measure(variant or trained.variant, segment, samples, progress=progress)
