"""Partial labels: a U-Net, fitted to the nuclei somebody did outline, and a network of patches."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import ndimage as ndi
from torch import nn
from torch.utils.data import Dataset
from torchstain.base.normalizers import MacenkoNormalizer

from nuctut import experiments, inference, postprocess
from nuctut.augmentation import Augmentation
from nuctut.background import (
    LABELLED,
    LEVELS,
    BackgroundModel,
    Clusters,
    MaskErrors,
    clusters,
    mask_errors,
    pooled_errors,
    taught,
)
from nuctut.experiments.fitting import Trained
from nuctut.experiments.measuring import Measured, Segmented
from nuctut.experiments.settings import Positive
from nuctut.files import STRICT, Measure
from nuctut.masked_loss import MaskedCrossEntropy
from nuctut.models.patch_cnn import EveryPixel, PatchCNN
from nuctut.models.unet import UNet
from nuctut.patches import PartialPatches
from nuctut.pixel_patches import PixelPatches
from nuctut.records import Record, spread
from nuctut.samples import Sample, SampleSet
from nuctut.scoreboard import Published, estimate
from nuctut.targets import NUCLEUS, standardise

CHANNELS = 3
PATCHES = "patch-cnn"
# What a network learns from, and how; the first four depend on how many nuclei are outlined.
PARTIAL = ("naive", "distance", "proposed", "balanced")
CONDITIONS = (*PARTIAL, "full-labels", "no-normalisation", "stain-jitter", PATCHES)
SHARES = ("2", "5", "10", "25", "50", "100")  # percent of the nuclei
SHARE = "5"  # of the main table
NAME = re.compile(r"(.+?)(?:-(\d+)-percent)?-(?:tnbc|kumar)")
NAMED = {"tnbc": "tnbc", "monuseg": "kumar"}  # how a variant's name ends, by what it is tested on
CODE = ("partial", "background", "masked_loss", "patches", "augmentation", "training")
CODE += ("models/unet",)
PATCH_CODE = ("partial", "background", "masked_loss", "pixel_patches", "training")
PATCH_CODE += ("models/patch_cnn",)
COLUMNS = {  # of the paper's table, by metric
    "pixel_recall": "recall",
    "pixel_precision": "precision",
    "dice_nuclei": "F1",
    "pixel_accuracy": "accuracy",
    "pixel_iou": "Jaccard",
    "aggregated_jaccard": "AJI",
}
OUTLINED = "nuclei outlined, %"
TILE, OVERLAP = 256, 128  # pixels; the paper's
WHOLE = {"tile": 512, "overlap": 32}  # for the network of patches, which sees 16 pixels far
APART = 6  # pixels, nearest that two nuclei may be that a watershed parts
CROP = 48  # pixels per side, of which the network of patches is timed


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(experiments.Settings):
    """What a preset fixes for the U-Nets, or for the network of patches.

    Attributes:
        options: Arguments of the network's constructor, but for `normalise`.
        crop: Side of the U-Nets' patches in pixels; the other's have 32.
        alpha, beta, strength, radius: Of `background.BackgroundModel`, where there is one.
        foreground: Weight of the outlined nuclei under "balanced"; of all others it is 1.
        reach: Of `patches.kept_windows`, in pixels.
        bend: Of `augmentation.Augmentation`.
        stain_gain, stain_shift: Of it, under "stain-jitter"; of all others they are 0.
        positives: Of `pixel_patches.chosen_pixels`.
        …: Those of `experiments.Settings`.
    """

    options: dict[str, Any]
    crop: Positive
    alpha: Measure
    beta: Measure
    strength: Annotated[float, Field(ge=0, le=1)]
    radius: Measure
    foreground: Annotated[float, Field(gt=0)]
    reach: Measure
    bend: Measure
    stain_gain: Measure
    stain_shift: Measure
    positives: Positive


def variant_of(condition: str, tested_on: str, share: str = SHARE) -> str:
    """The name of a network, such as "distance-tnbc", or "distance-25-percent-tnbc".

    Args:
        condition: One of `CONDITIONS`.
        tested_on: One of `NAMED`.
        share: One of `SHARES`; that of the main table is not named.
    """
    percent = "" if share == SHARE else f"-{share}-percent"
    return f"{condition}{percent}-{NAMED[tested_on]}"


def parts_of(variant: str) -> tuple[str, str]:
    """The condition and the share of the nuclei that a variant's name tells, see `variant_of`.

    Raises:
        ValueError: When it is no name of a network of this chapter.
    """
    found = NAME.fullmatch(variant)
    if not found or found[1] not in CONDITIONS:
        raise ValueError(
            f"variant must be one of {', '.join(CONDITIONS)}, then -tnbc or -kumar, "
            f"not {variant!r}."
        )
    return found[1], found[2] or SHARE


def plan(conditions: Sequence[str], shares: Sequence[str]) -> list[tuple[str, str]]:
    """Conditions and shares of the networks to train, those of the main table first.

    Only `PARTIAL` ones come with every share. Of all nuclei, what is naive is "full-labels".
    """
    pairs = [(one, share) for share in sorted(shares, key=_late) for one in conditions]
    return [
        (one, share)
        for one, share in pairs
        if share == SHARE or (one in PARTIAL and (one, share) != ("naive", "100"))
    ]


def _late(share: str) -> tuple[bool, int]:
    return share != SHARE, int(share)


# --- the interface of `experiments.Experiment` ----------------------------------------------------


def code(variant: str) -> tuple[str, ...]:
    """Modules of the package that decide what the fit of a variant computes."""
    return PATCH_CODE if parts_of(variant)[0] == PATCHES else CODE


def network(variant: str, settings: Settings, had: bool | None = None) -> nn.Module:
    """A U-Net of two classes, with batch normalisation but for one; or the network of patches.

    Raises:
        ValueError: For an unknown variant.
    """
    if (condition := parts_of(variant)[0]) == PATCHES:
        return PatchCNN(**settings.options)
    return UNet(CHANNELS, 2, normalise=condition != "no-normalisation", **settings.options)


def describe(model: nn.Module) -> str:
    """A network in words: its family and its size."""
    match model:
        case UNet():
            return f"U-Net, {model.channels[0]} to {model.channels[-1]} feature maps"
        case EveryPixel():
            return describe(model.network)
    return "network of patches" + ("" if model.padded else ", no padding")


def loss(variant: str, settings: Settings) -> nn.Module:
    """The masked cross-entropy, outlined nuclei weighing more under "balanced"."""
    balanced = parts_of(variant)[0] == "balanced"
    return MaskedCrossEntropy(settings.foreground if balanced else 1.0)


def items(
    variant: str,
    samples: SampleSet,
    settings: Settings,
    teach: experiments.ClassMap | None = None,
    *,
    seed: int,
    progress: bool,
) -> Dataset:
    """The paper's patches of images and what they teach; pixels and their surroundings of some."""
    images, learns = [one.image for one in samples], samples.split == "training"
    if (condition := parts_of(variant)[0]) == PATCHES:
        masks = [one.labels > 0 for one in samples]
        how = {"positives": settings.positives, "seed": seed, "augment": learns}
        return PixelPatches(images, masks, samples.keys, **how)
    classes = [teach(one) if teach else lesson(condition, settings, one) for one in samples]
    # which windows are kept shall not depend on what is taken for background
    outlines = [lesson("naive", settings, one) for one in samples]
    how = {"size": settings.crop, "reach": settings.reach, "kept": outlines, "seed": seed}
    # what validates need not overlap
    how["stride"] = settings.crop // 2 if learns else settings.crop
    if learns:
        stain = condition == "stain-jitter"
        colours = (settings.stain_gain, settings.stain_shift) if stain else (0.0, 0.0)
        how["augmentation"] = Augmentation(settings.bend, 64, *colours)
    return PartialPatches(images, classes, samples.keys, **how)


def rule(variant: str, settings: Settings) -> postprocess.LabelRule:
    """The more probable of two classes; whatever hangs together of nuclei is one nucleus."""
    return postprocess.LabelRule(
        classes=lambda probabilities: probabilities.argmax(0).astype(np.uint8),
        cores=lambda classes: classes == NUCLEUS,
        min_area=settings.min_area,
    )


# --- what is taught -------------------------------------------------------------------------------


def background_of(condition: str, settings: Settings) -> BackgroundModel:
    """What counts as background: all else, what is near, or that and what the colours say."""
    if condition in ("naive", "full-labels"):
        return BackgroundModel(math.inf, strength=0)
    strength = 0.0 if condition == "distance" else settings.strength
    return BackgroundModel(settings.alpha, settings.beta, strength, settings.radius)


def lesson(
    condition: str, settings: Settings, sample: Sample, colours: Clusters | None = None
) -> np.ndarray:
    """(H, W) uint8, the map of `background.taught` that a sample gives.

    Args:
        condition: One of `CONDITIONS`.
        settings: Of the background.
        sample: Its labels are the nuclei that are outlined.
        colours: Of its image, where they are known; else they are found.
    """
    model, mask = background_of(condition, settings), sample.labels > 0
    if model.strength and colours is None:
        colours = clusters(sample.image, sample.key)
    return taught(mask, model.weights(mask, colours, sample.key))


def balance(lessons: Iterable[np.ndarray], colours: Sequence[Clusters]) -> float:
    """By how much outlined nuclei must weigh more, so that they weigh as all nuclei would.

    That is, beside the background, as the cluster of the nuclei beside the other one: no truth is
    looked at. At least 1.

    Args:
        lessons: Maps of `background.taught`.
        colours: Of the same images.

    Returns:
        f of `masked_loss.MaskedCrossEntropy`.
    """
    outlined = background = nuclear = pixels = 0.0
    for classes, parted in zip(lessons, colours, strict=True):
        outlined += np.count_nonzero(classes == LABELLED)
        background += np.where(classes == LABELLED, 0.0, classes / LEVELS).sum()
        nuclear += np.count_nonzero(parted.nuclei)
        pixels += classes.size
    return max(1.0, round(background / outlined * nuclear / (pixels - nuclear), 1))


def mistakes(
    condition: str,
    settings: Settings,
    samples: SampleSet,
    truth: SampleSet,
    colours: Mapping[str, Clusters],
) -> MaskErrors:
    """How much of the weight of some images lies on nuclei that nobody outlined.

    Args:
        condition, settings: Of `background_of`.
        samples: Partly outlined.
        truth: The same with all nuclei.
        colours: By the keys of the images.
    """
    model = background_of(condition, settings)
    return pooled_errors(
        mask_errors(model, one.labels > 0, whole.labels > 0, colours[one.key])
        for one, whole in zip(samples, truth, strict=True)
    )


# --- what is measured -----------------------------------------------------------------------------


def segment(trained: Trained, image: np.ndarray) -> np.ndarray:
    """(H, W) int32 labels, by the paper's tiles: 256 pixels every 128, of which the middle counts.

    The network of patches, which makes no difference between tiles, takes larger ones.

    Args:
        trained: The network.
        image: (H, W, 3) uint8.
    """
    tiles = WHOLE if isinstance(trained.model, EveryPixel) else {"tile": TILE, "overlap": OVERLAP}
    how = {"precision": trained.settings.precision, **tiles}
    probabilities = inference.predict(trained.model, image, normalise=_in_range, **how)
    return trained.rule.labels(probabilities)


def _in_range(image: np.ndarray) -> np.ndarray:
    return standardise(image, "range")


def measure(
    trained: Trained,
    samples: SampleSet,
    *,
    variant: str = "",
    before: Callable[[np.ndarray], np.ndarray] | None = None,
    after: Callable[[np.ndarray], np.ndarray] | None = None,
    times: Mapping[str, float] = MappingProxyType({}),
    progress: bool = True,
) -> Measured:
    """A network on a test set, by `segment`.

    Args:
        trained, samples, variant, progress: Of `experiments.measure_network`.
        before: What is done to an image first, such as `stained_like` gives.
        after: What is done to the labels, such as `parted`.
        times: What else is told of its seconds, such as `clocked` gives.
    """

    def labels_of(sample: Sample) -> Segmented:
        start = time.perf_counter()
        labels = segment(trained, before(sample.image) if before else sample.image)
        labels = after(labels) if after else labels
        seconds = {"seconds_per_image": time.perf_counter() - start, **times}
        return Segmented(labels, seconds, {})

    return experiments.measure(variant or trained.variant, labels_of, samples, progress=progress)


def measure_clusters(samples: SampleSet, variant: str, *, progress: bool = True) -> Measured:
    """K-means alone, without any learning: what hangs together of the nuclei's cluster."""

    def labels_of(sample: Sample) -> Segmented:
        start = time.perf_counter()
        labels, _ = ndi.label(clusters(sample.image, sample.key).nuclei)
        seconds = {"seconds_per_image": time.perf_counter() - start}
        return Segmented(labels.astype(np.int32), seconds, {})

    return experiments.measure(variant, labels_of, samples, progress=progress)


def parted(labels: np.ndarray) -> np.ndarray:
    """Labels after one watershed on their distance to the edge; no pixel of the mask changes."""
    return postprocess.divide(labels, APART)


def stained_like(image: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What stains images like another one (Macenko et al. 2009), by torchstain.

    Args:
        image: (H, W, 3) uint8, the one that others shall be like.

    Returns:
        (H, W, 3) uint8 → (H, W, 3) uint8.
    """
    normaliser = MacenkoNormalizer(backend="numpy")
    normaliser.fit(image)
    return lambda other: normaliser.normalize(other, stains=False)[0]


# --- tables of it ---------------------------------------------------------------------------------


def printed(paper: Published) -> pd.DataFrame:
    """The paper's Table 1, without the times: a line per block and method, a column per score."""
    cells = [cell for cell in paper.scores if not cell.note]
    lines = [
        {
            "of": ("DS 2" if cell.variant.endswith("-kumar") else "DS 1")
            + ", by patient" * cell.metric.endswith("_per_patient"),
            "method": cell.row,
            "score": COLUMNS[re.sub("_per_(image|patient)$", "", cell.metric)],
            "value": cell.value,
        }
        for cell in cells
    ]
    table = pd.DataFrame(lines).pivot(index=["of", "method"], columns="score", values="value")
    return table[list(COLUMNS.values())].rename_axis(columns=None)


def means(measured: Mapping[str, Record], by: str = "") -> pd.DataFrame:
    """Means and, in brackets, standard deviations as the paper's table has them, a line a record.

    Args:
        measured: The records by name.
        by: "patient" for those over the means of the patients' images; by default over images.
    """
    return pd.DataFrame(
        {
            name: {
                column: "{1:.2f} ({2:.2f})".format(*spread(one.images, _by_image(metric), by))
                for metric, column in COLUMNS.items()
            }
            for name, one in measured.items()
        }
    ).T


def _by_image(metric: str) -> str:
    return metric if metric == "aggregated_jaccard" else f"{metric}_per_image"


def share_curves(measured: Iterable[Record], tested_on: str) -> pd.DataFrame:
    """The Jaccard index of the pixels against the share outlined, for `figures.sweep_chart`.

    Where all nuclei are outlined, what is naive is right: full labels stand there for it.

    Args:
        measured: Records, of which those of the `PARTIAL` conditions and of full labels count.
        tested_on: One of `NAMED`.
    """
    lines = []
    for one in measured:
        found = NAME.fullmatch(one.variant)
        condition, share = (found[1], found[2] or SHARE) if found else ("", SHARE)
        if condition == "full-labels":
            condition, share = "naive", "100"
        if condition in PARTIAL and one.variant.endswith(f"-{NAMED[tested_on]}"):
            score = estimate([one], "pixel_iou_per_image")
            line = {"variant": condition, OUTLINED: int(share), "seed": one.seed, "run": one.name}
            line |= dict(zip(("low", "high"), score.interval(), strict=True))
            lines.append(line | {"score": score.value})
    columns = ["variant", OUTLINED, "seed", "run", "low", "high", "score"]
    return pd.DataFrame(lines, columns=columns)


# --- how fast it is -------------------------------------------------------------------------------


def clocked(trained: Trained, side: int, image_pixels: float) -> dict[str, float]:
    """Seconds for a square slide, and of the network of patches for an image, patch by patch.

    A network of patches is timed as its authors and the paper do it, each patch looked at by
    itself: on a crop of 48×48 pixels, from which the rest is extrapolated. The pixels are of
    chance.

    Args:
        trained: The network.
        side: Of the slide, in pixels.
        image_pixels: Of an image.

    Returns:
        `seconds_per_slide`, and `seconds_patch_by_patch` of the network of patches alone.
    """
    if not isinstance(trained.model, EveryPixel):
        return {"seconds_per_slide": _seconds(lambda pixels: segment(trained, pixels), side)}
    alone = EveryPixel(trained.model.network, one_by_one=True)
    how = {"tile": CROP, "overlap": 0, "precision": trained.settings.precision}

    def crop(pixels: np.ndarray) -> None:
        inference.predict(alone, pixels, normalise=_in_range, **how)

    of_a_pixel = _seconds(crop, CROP) / CROP**2
    times = {"seconds_per_slide": side**2, "seconds_patch_by_patch": image_pixels}
    return {name: of_a_pixel * pixels for name, pixels in times.items()}


def _seconds(work: Callable[[np.ndarray], object], side: int) -> float:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    start = time.perf_counter()
    work(pixels)
    return time.perf_counter() - start
