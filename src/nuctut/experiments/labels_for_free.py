"""Labels for free: a reduced U-Net that learns from classical labels, and its teachers."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from nuctut import classical, inference, postprocess, targets, training
from nuctut.experiments import (
    ClassMap,
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
from nuctut.losses import LogDiceLoss
from nuctut.models.unet import ReducedUNet
from nuctut.samples import Sample, SampleSet

CODE_OF_A_FIT = ("classical", "targets", "losses", "training", "models/unet")


@dataclass(frozen=True)
class Settings:
    """What a preset fixes: the data's share, the network, and how it is fitted.

    Attributes:
        data: Source asked for: "auto", "real" or "simulated".
        images: Most images per split; None takes all.
        crop: Side of random crops in pixels; None takes the paper's corner tiles of 512.
        scale: Intensity scale, "linear" or "log".
        gain: Half-width of the random factor on the intensities of crops.
        channels, last_channels, dropout, normalise: Of `models.unet.ReducedUNet`.
        cross_entropy: Weight of a cross-entropy added to the log-Dice loss.
        min_area: Predicted nuclei with fewer pixels than this, separations cut out, are dropped.
        epochs … devices: Of `training.FitSettings`.
    """

    data: str
    images: int | None
    crop: int | None
    scale: str
    gain: float
    channels: tuple[int, ...]
    last_channels: int
    dropout: tuple[float, ...]
    normalise: bool
    cross_entropy: float
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
    model: ReducedUNet
    fit: training.FitResult
    settings: Settings
    channels: ClassVar[int] = 1

    @property
    def rule(self) -> postprocess.LabelRule:
        """Separation lines are cut out of the nuclei, then given back."""
        return postprocess.parted_by_lines(self.settings.min_area)

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings, as a record keeps them."""
        return asdict(self.settings)

    def labels(self, image: np.ndarray) -> np.ndarray:
        """(H, W) int32 labels of an (H, W) image of any size."""
        return self.rule.labels(self.probabilities(image))

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(3, H, W) float32 probabilities of an (H, W) image."""
        normalise = functools.partial(targets.standardise, scale=self.settings.scale)
        precision = self.settings.precision
        return inference.predict(self.model, image, normalise=normalise, precision=precision)


def train(
    variant: str,
    classes_of: ClassMap,
    train_set: SampleSet,
    validation_set: SampleSet,
    settings: Settings,
    *,
    seed: int = 0,
    device: str = "auto",
    runs: Path,
    progress: bool = True,
) -> Trained:
    """Fit one network, or take up the fit of the same name, settings, data and code.

    Args:
        variant: Names the fit, and stands for `classes_of` in the key of its folder.
        classes_of: Gives the (H, W) uint8 class map that a sample teaches.
        train_set, validation_set: Both are labelled by `classes_of`.
        settings, seed, device: See `Settings` and `training.FitSettings`.
        runs: Folder that holds the fits, one folder each.
        progress: Show progress bars.
    """
    how = fit_settings(settings, seed, device)
    key = fit_key(variant, train_set, validation_set, settings, how, code=CODE_OF_A_FIT)
    folder = runs / f"{variant}--s{seed}--{key}"
    torch.manual_seed(seed)
    model = _network(settings)
    about = (variant, seed, settings, train_set, current_code(variant))
    fit = fit_or_take_up(
        model,
        LogDiceLoss(cross_entropy=settings.cross_entropy),
        lambda samples: _items(samples, classes_of, settings, seed, progress),
        (train_set, validation_set),
        folder,
        how,
        description(__name__, *about),
        progress=progress,
    )
    return Trained(variant, ready(model, device), fit, settings)


def current_code(variant: str) -> str:
    """Digest of the code that a fit of a variant depends on, as it stands now."""
    return code_digest(CODE_OF_A_FIT)


def restored(variant: str, settings: Settings, pretrained: bool) -> ReducedUNet:
    """The network of a fit, without its weights."""
    return _network(settings)


def _network(settings: Settings) -> ReducedUNet:
    return ReducedUNet(
        channels=settings.channels,
        last_channels=settings.last_channels,
        dropout=settings.dropout,
        normalise=settings.normalise,
    )


def _items(
    samples: SampleSet, classes_of: ClassMap, settings: Settings, seed: int, progress: bool
) -> training.CornerTiles | training.RandomCrops:
    if settings.crop is not None:
        jitter = training.Jitter(gain=settings.gain)
        how = {"size": settings.crop, "scale": settings.scale, "jitter": jitter, "seed": seed}
        return random_crops(samples, classes_of, **how, progress=progress)
    images = [sample.image for sample in samples]
    classes = [classes_of(sample) for sample in samples]
    return training.CornerTiles(images, classes, samples.keys, scale=settings.scale)


def measure_network(trained: Trained, test_set: SampleSet, *, progress: bool = True) -> Measured:
    """A network on a test set, post-processed as the paper does.

    Overlap scores see the nuclei with the pixels under the separation lines given back; the
    object-wise Jaccard index sees them with the lines cut out, as the paper's does. Besides the
    time of an image, the means hold `seconds_per_postprocessing`, the share of it after the
    network, and `seconds_per_tile`, the network on 512×512 pixels.
    """

    def segment(sample: Sample) -> Segmented:
        start = time.perf_counter()
        probabilities = trained.probabilities(sample.image)
        middle = time.perf_counter()
        classes = probabilities.argmax(0)
        cut = postprocess.from_classes(classes, trained.settings.min_area)
        whole = postprocess.give_back(cut, classes != targets.BACKGROUND)
        end = time.perf_counter()
        tile = sample.image[:512, :512]
        trained.probabilities(tile)
        seconds = {
            "seconds_per_image": end - start,
            "seconds_per_postprocessing": end - middle,
            "seconds_per_tile": time.perf_counter() - end,
        }
        return Segmented(whole, seconds, _class_scores(sample, classes, cut))

    return measure(trained.variant, segment, test_set, progress=progress)


def measure_classical(
    configuration: str, test_set: SampleSet, *, progress: bool = True
) -> Measured:
    """A classical configuration on a test set; nuclei at the image's edge are kept.

    Table 2 of the paper gives object-wise Jaccard indices "after post-processing" for these too,
    so theirs is that of the same post-processing; all other scores see the labels as they are.
    """

    def segment(sample: Sample) -> Segmented:
        start = time.perf_counter()
        labels = classical.segment(sample.image, configuration, drop_border=False)
        seconds = {"seconds_per_image": time.perf_counter() - start}
        classes = targets.three_classes(labels)
        cut = postprocess.from_classes(classes)
        return Segmented(labels, seconds, _class_scores(sample, classes, cut))

    variant = f"classical-{configuration.replace('/', '-')}"
    return measure(variant, segment, test_set, progress=progress)


def _class_scores(sample: Sample, classes: np.ndarray, cut: np.ndarray) -> dict[str, np.ndarray]:
    """What the paper's own two scores look at: both class maps, and nuclei with lines cut out."""
    truth = targets.three_classes(sample.labels)
    return {
        "object_pred": cut,
        "nuclei_true": truth == targets.NUCLEUS,
        "nuclei_pred": classes == targets.NUCLEUS,
        "separations_true": truth == targets.SEPARATION,
        "separations_pred": classes == targets.SEPARATION,
    }
