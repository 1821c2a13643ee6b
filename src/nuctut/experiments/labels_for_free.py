"""Labels for free: a reduced U-Net that learns from classical labels, and its teachers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch.utils.data import Dataset

from nuctut import classical, experiments, postprocess, targets, training
from nuctut.files import STRICT, Count
from nuctut.losses import LogDiceLoss
from nuctut.models.unet import ReducedUNet
from nuctut.samples import Sample, SampleSet

CHANNELS = 1
TIMED = 8  # tiles; one of the same size takes as long as another


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(experiments.Settings):
    """What a preset fixes: the data's share, the network, and how it is fitted.

    Attributes:
        crop: Side of random crops in pixels; None takes the paper's corner tiles of 512.
        channels, last_channels, dropout, normalise: Of `models.unet.ReducedUNet`.
        min_area, small_area, certainty: Of `postprocess.parted_by_lines`.
        …: Those of `experiments.Settings`.
    """

    channels: tuple[int, ...]
    last_channels: int
    dropout: tuple[float, ...]
    normalise: bool
    small_area: Count = 0
    certainty: Annotated[float, Field(ge=0, le=1)] = 1.0


def code(variant: str) -> tuple[str, ...]:
    """Modules of the package that decide what a fit computes."""
    return ("classical", "targets", "losses", "training", "models/unet")


def network(variant: str, settings: Settings, had: bool | None = None) -> ReducedUNet:
    """The same network whatever it learns from; see `experiments.Experiment`."""
    return ReducedUNet(
        channels=settings.channels,
        last_channels=settings.last_channels,
        dropout=settings.dropout,
        normalise=settings.normalise,
    )


def describe(model: ReducedUNet) -> str:
    """A network in words: its family and its size."""
    return f"reduced U-Net, {model.channels[0]} to {model.channels[-1]} feature maps, from scratch"


def loss(variant: str, settings: Settings) -> LogDiceLoss:
    """The paper's loss."""
    return LogDiceLoss(cross_entropy=settings.cross_entropy)


def items(
    variant: str,
    samples: SampleSet,
    settings: Settings,
    teach: experiments.ClassMap,
    *,
    seed: int,
    progress: bool,
) -> Dataset:
    """Random crops, or the paper's tiles, of images and of the classes that `teach` gives."""
    if settings.crop is not None:
        jitter = training.Jitter(gain=settings.gain)
        how = {"size": settings.crop, "scale": settings.scale, "jitter": jitter, "seed": seed}
        return experiments.random_crops(samples, teach, **how, progress=progress)
    images = [sample.image for sample in samples]
    classes = [teach(sample) for sample in samples]
    return training.CornerTiles(images, classes, samples.keys, scale=settings.scale)


def rule(variant: str, settings: Settings) -> postprocess.LabelRule:
    """Separation lines are cut out of the nuclei, then given back."""
    return postprocess.parted_by_lines(settings.min_area, settings.small_area, settings.certainty)


def measure_network(
    trained: experiments.Trained, test_set: SampleSet, *, progress: bool = True
) -> experiments.Measured:
    """A network on a test set, post-processed as the paper does.

    Overlap scores see the nuclei with the pixels under the separation lines given back; the
    object-wise Jaccard index sees them with the lines cut out, as the paper's does. The means hold
    the times of an image, of it after the network, and of the network on 512×512 pixels, that of
    the first `TIMED` images.
    """

    def segment(sample: Sample) -> experiments.Segmented:
        start = time.perf_counter()
        probabilities = trained.probabilities(sample.image)
        middle = time.perf_counter()
        classes = trained.rule.classes(probabilities)
        cut = trained.rule.parted(classes)
        whole = trained.rule.filled(cut, classes)
        end = time.perf_counter()
        seconds = {"seconds_per_image": end - start, "seconds_per_postprocessing": end - middle}
        classes[classes == postprocess.CERTAIN] = targets.NUCLEUS
        return experiments.Segmented(whole, seconds, _class_scores(sample, classes, cut))

    measured = experiments.measure(trained.variant, segment, test_set, progress=progress)
    tiles = [sample.image[:512, :512] for sample in test_set.take(TIMED)]
    start = time.perf_counter()
    for tile in tiles:
        trained.probabilities(tile)
    per_tile = (time.perf_counter() - start) / len(tiles)
    return replace(measured, seconds=measured.seconds | {"seconds_per_tile": per_tile})


def measure_classical(
    configuration: str, test_set: SampleSet, *, progress: bool = True
) -> experiments.Measured:
    """A classical configuration on a test set; nuclei at the image's edge are kept.

    Table 2 of the paper gives object-wise Jaccard indices "after post-processing" for these too,
    so theirs is that of the same post-processing; all other scores see the labels as they are.
    """

    def segment(sample: Sample) -> experiments.Segmented:
        start = time.perf_counter()
        labels = classical.segment(sample.image, configuration, drop_border=False)
        seconds = {"seconds_per_image": time.perf_counter() - start}
        classes = targets.three_classes(labels)
        cut = postprocess.from_classes(classes)
        return experiments.Segmented(labels, seconds, _class_scores(sample, classes, cut))

    variant = f"classical-{configuration.replace('/', '-')}"
    return experiments.measure(variant, segment, test_set, progress=progress)


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
