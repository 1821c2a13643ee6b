"""Many tissues: four networks, fitted to nuclei of any size, of one size, and to invented ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass as plain
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from skimage.segmentation import expand_labels
from torch import nn
from torch.utils.data import Dataset

from nuctut import artificial, borders, detection, experiments, postprocess, training, translation
from nuctut.balanced_patches import Patches
from nuctut.experiments import shipping
from nuctut.experiments.fitting import Trained, code_digest
from nuctut.experiments.measuring import Measured, Segmented
from nuctut.experiments.settings import Positive
from nuctut.files import STRICT, Count, Measure
from nuctut.models.deepcell import DeepCell, DenseDeepCell
from nuctut.models.mask_rcnn import MaskRCNN
from nuctut.models.pix2pix import Discriminator, Generator
from nuctut.models.resnet import WIDTH
from nuctut.models.unet import UNet
from nuctut.models.unet_resnet import UNetResNet
from nuctut.rescaling import (
    DIAMETER,
    estimated_factor,
    mean_diameter,
    segment_rescaled,
    smallest_area,
)
from nuctut.samples import Sample, SampleSet

CHANNELS = 3  # grey thrice, as two of the paper's networks want it

# In the order of the paper's tables.
NETWORKS: dict[str, type[nn.Module]] = {
    "u-net": UNet,
    "unet-resnet": UNetResNet,
    "mask-rcnn": MaskRCNN,
    "deepcell": DeepCell,
}
CODE = {
    "u-net": ("borders", "targets", "training", "models/unet"),
    "unet-resnet": ("borders", "targets", "training", "models/unet_resnet"),
    "mask-rcnn": ("targets", "detection", "training", "models/mask_rcnn", "models/resnet"),
    "deepcell": ("borders", "balanced_patches", "targets", "training", "models/deepcell"),
}
CHAPTER, PIX2PIX = "03_many_tissues", "pix2pix"
TRANSLATION_CODE = ("artificial", "translation", "models/pix2pix")
CONDITIONS = ("unscaled", "scaled", "silver", "artificial")
Way = Literal["truth", "image", "none"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(experiments.Settings):
    """What a preset fixes for one of the networks.

    Attributes:
        options: Arguments of the network's constructor, but for `pretrained`.
        pretrained: Whether it starts from published weights; of "unet-resnet" and "mask-rcnn".
        crop: Side of the random crops in pixels; DeepCell has patches of its own size.
        zoom, gamma: Of `training.Jitter`.
        erosion: Of `borders.eroded`, in pixels; of Mask R-CNN without effect.
        border: w₀ of `borders.border_weights`; of the U-Nets.
        per_image: Patches of each image in a round; of DeepCell.
        threshold: Least probability of a nucleus' pixel; of Mask R-CNN, least score of a nucleus.
        …: Those of `experiments.Settings`.
    """

    options: dict[str, Any]
    pretrained: bool
    crop: Positive
    zoom: Annotated[float, Field(ge=1)]
    gamma: Measure
    erosion: Count
    border: Measure
    per_image: Positive
    threshold: Annotated[float, Field(ge=0, le=1)]


def family(variant: str) -> str:
    """Which of `NETWORKS` a variant such as "u-net-scaled" is of.

    Raises:
        ValueError: When it is of none.
    """
    for name in NETWORKS:
        if variant.startswith(f"{name}-"):
            return name
    raise ValueError(f"variant must begin with one of {', '.join(NETWORKS)}, not {variant!r}.")


def code(variant: str) -> tuple[str, ...]:
    """Modules of the package that decide what the fit of a variant computes."""
    return CODE[family(variant)]


def diameter(variant: str) -> float | None:
    """See `experiments.Trained.diameter`; None for those that learn from images as taken."""
    return None if "-unscaled" in variant else DIAMETER


def network(variant: str, settings: Settings, had: bool | None = None) -> nn.Module:
    """One of `NETWORKS`, see `experiments.Experiment`.

    Raises:
        ValueError: For an unknown one.
        OSError: When it starts from published weights and they cannot be had.
    """
    name, options = family(variant), dict(settings.options)
    if name == "u-net":
        options |= {"normalise": True, "activation": nn.ELU}
    elif name == "deepcell":
        options |= {"in_channels": CHANNELS}
    else:
        options["pretrained"] = settings.pretrained if had is None else had
        options["restore"] = had is not None
    return NETWORKS[name](**options)


def describe(model: nn.Module) -> str:
    """A network in words: its family, its size, and what its weights started from."""
    match model:
        case UNet():
            return f"U-Net, {model.channels[0]} to {model.channels[-1]} feature maps"
        case DeepCell() | DenseDeepCell():
            return f"DeepCell, {model.channels} feature maps"
        case UNetResNet():
            family, weights = "U-Net with a ResNet-34", "ImageNet weights"
        case MaskRCNN():
            family, weights = f"Mask R-CNN, ResNet-{model.depth}", "COCO weights"
    narrow = "" if model.width == WIDTH else f" of {model.width} to {8 * model.width} feature maps"
    return f"{family}{narrow}, {weights if model.pretrained else 'from scratch'}"


def loss(variant: str, settings: Settings) -> nn.Module | None:
    """A cross-entropy, of the U-Nets with weights; None for Mask R-CNN, which has its own."""
    match family(variant):
        case "mask-rcnn":
            return None
        case "deepcell":
            return nn.CrossEntropyLoss()
    return borders.BorderCrossEntropy()


def items(
    variant: str,
    samples: SampleSet,
    settings: Settings,
    teach: experiments.ClassMap | None = None,
    *,
    seed: int,
    progress: bool,
) -> Dataset:
    """Random crops of images and masks; of nuclei one by one for Mask R-CNN; patches for DeepCell.

    Grey images are fed three times over.
    """
    samples = samples.changed("in three channels", _in_three_channels)
    jitter = training.Jitter(gain=settings.gain, zoom=settings.zoom, gamma=settings.gamma)
    how = {"size": settings.crop, "jitter": jitter, "seed": seed, "progress": progress}
    match family(variant):
        case "mask-rcnn":
            return detection.instance_crops(samples, **how)
        case "deepcell":
            classes = [borders.bordered(one.labels, settings.erosion) for one in samples]
            images = [one.image for one in samples]
            options = {"per_image": settings.per_image, "scale": settings.scale, "seed": seed}
            return Patches(images, classes, samples.keys, **options)

    def weighted(sample: Sample) -> np.ndarray:
        return borders.weighted_mask(sample.labels, settings.erosion, settings.border)

    return experiments.random_crops(samples, teach or weighted, scale=settings.scale, **how)


def rule(variant: str, settings: Settings) -> postprocess.LabelRule | None:
    """Whatever hangs together in the mask is one nucleus; None for Mask R-CNN."""
    match family(variant):
        case "mask-rcnn":
            return None
        case "deepcell":
            how = (settings.threshold, settings.min_area, settings.erosion)
            return postprocess.parted_by_borders(*how)
    return postprocess.pieces_of_a_mask(settings.threshold, settings.min_area)


def _in_three_channels(sample: Sample) -> Sample:
    return replace(sample, image=np.repeat(sample.image[..., None], CHANNELS, -1))


# --- what it sees of an image, and at which scale ------------------------------------------------


def segment(trained: Trained, sample: Sample, way: Way, times: float = 1.0) -> np.ndarray:
    """Labels of a sample on its own grid, by a network that may see it at another scale.

    Specks are dropped at the scale that it sees, by a twentieth of the mean area of nuclei there
    (`rescaling.smallest_area`).

    Args:
        trained: The network.
        sample: Its labels tell the scale under "truth", and the size of specks but under "image".
        way: Where the scale comes from: the sample's labels, as in the paper; the image alone
            (`rescaling.estimated_factor`); "none" leaves the image as it is.
        times: By how much the scale is then off, 1 being right.

    Returns:
        (H, W) int32.
    """
    own = mean_diameter(sample.labels)
    match way:
        case "truth":
            factor, seen = times * DIAMETER / own, times * DIAMETER
        case "image":
            factor, seen = times * scale_of(trained, sample.image), DIAMETER
        case "none":
            factor, seen = times, times * own
    return segment_rescaled(_without_specks(trained, seen), sample.image, factor)


def scale_of(trained: Trained, image: np.ndarray) -> float:
    """The factor to the common scale, as a network that learned at it tells from an image alone.

    The U-Nets find nuclei that are eroded as those they learned from, so theirs grow back first.
    """
    eroded = trained.settings.erosion if family(trained.variant) in ("u-net", "unet-resnet") else 0
    seen = _without_specks(trained, DIAMETER)
    return estimated_factor(lambda pixels: expand_labels(seen(pixels), eroded), image)


def _without_specks(trained: Trained, diameter: float) -> Trained:
    return replace(trained, settings=replace(trained.settings, min_area=smallest_area(diameter)))


def measure(
    trained: Trained,
    samples: SampleSet,
    way: Way,
    times: float = 1.0,
    *,
    variant: str = "",
    progress: bool = True,
) -> Measured:
    """A network on a test set, at the scale that `segment` gives, scored on the images as taken."""

    def labels_of(sample: Sample) -> Segmented:
        start = time.perf_counter()
        labels = segment(trained, sample, way, times)
        return Segmented(labels, {"seconds_per_image": time.perf_counter() - start}, {})

    return experiments.measure(variant or trained.variant, labels_of, samples, progress=progress)


def measure_annotation(variant: str, truth: SampleSet, other: SampleSet) -> Measured:
    """One annotation of the same images judged by another.

    Table S-I judges the gold one by the silver one: only so does its precision fall where gold
    has more nuclei.
    """
    labels = {sample.key: sample.labels for sample in other}
    return experiments.measure(
        variant,
        lambda sample: Segmented(labels[sample.key], {"seconds_per_image": 0.0}, {}),
        truth,
        progress=False,
    )


# --- images that were never taken ----------------------------------------------------------------


@plain(frozen=True)
class Invention:
    """How artificial images are made to look natural, and how many.

    Attributes:
        images: How many for each real one.
        width: Feature maps at the top of pix2pix' two networks; the paper's have 64.
        depth: Levels of its generator; the original's has 8.
        epochs, updates: Of `translation.TranslationSettings`.
        size: Side of the images in pixels, of pix2pix' tiles too.
    """

    images: int
    width: int
    depth: int
    epochs: int
    updates: int
    size: int = 256


@plain(frozen=True)
class Translator:
    """The half of a finished pix2pix that is used, and the checksum of its weights."""

    generator: nn.Module
    weights_sha256: str


def natural_like(
    samples: SampleSet,
    how: Invention,
    tissue: str,
    translators: Mapping[str, Translator],
    *,
    seed: int,
) -> SampleSet:
    """Artificial images of a split, translated by a pix2pix of each tissue's own.

    Args:
        samples: Real images at the common scale.
        how: See `Invention`.
        tissue: The tag by which tissues are told apart; the paper has a pix2pix for each.
        translators: See `translators` and `shipped_translators`.
        seed: Of the images.
    """

    def translated(sample: Sample) -> Sample:
        by, number = translators[sample.tags[tissue]], int(sample.key.rpartition("_")[2])
        return replace(sample, image=translation.translate(by.generator, sample.image, seed=number))

    weights = {kind: one.weights_sha256 for kind, one in translators.items()}
    by = f"translated: {code_digest(TRANSLATION_CODE)} {weights}"
    return cut_outs(samples, how, seed=seed).changed(by, translated)


def cut_outs(samples: SampleSet, how: Invention, *, seed: int) -> SampleSet:
    """Artificial images of a split, as they are before they are translated."""
    recipe = replace(artificial.RECIPE, size=how.size)
    return artificial.invented(samples, how.images * len(samples), recipe, seed=seed)


def translators(
    samples: SampleSet,
    how: Invention,
    tissue: str,
    *,
    seed: int,
    runs: Path,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Translator]:
    """The generator of each tissue's own pix2pix, fitted or taken up again.

    Args:
        samples: Real images at the common scale.
        how: See `Invention`.
        tissue: The tag by which tissues are told apart.
        seed: Of the fits.
        runs: Folder that holds the fits, one folder each, taken up again when they are of the same
            images, settings and code.
        device: "auto" (a GPU where there is one), "cpu" or "gpu".
        progress: Show progress bars.
    """
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    settings = translation.TranslationSettings(how.epochs, how.updates, place, seed)
    made = {}
    for kind in dict.fromkeys(sample.tags[tissue] for sample in samples):
        own = samples.picked([one.key for one in samples if one.tags[tissue] == kind])
        key = f"{own.fingerprint}:{how}:{code_digest(TRANSLATION_CODE)}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        folder = runs / f"{PIX2PIX}-{kind.replace(' ', '-')}--s{seed}--{digest}"
        torch.manual_seed(seed)
        generator, discriminator = Generator(how.width, how.depth), Discriminator(how.width)
        pairs = artificial.Pairs(own, how.size, seed)
        fit = translation.fit(generator, discriminator, pairs, folder, settings, progress=progress)
        made[kind] = Translator(generator, fit.weights_sha256)
    return made


def shipped_translators(how: Invention) -> dict[str, Translator]:
    """Those that come with the book, as they were fitted under `how`, by tissue.

    Raises:
        Malformed: When a file of one is damaged, or is of another `how`.
    """
    made = {}
    for folder in sorted((shipping.root() / CHAPTER).glob(f"{PIX2PIX}-*")):
        generator = Generator(how.width, how.depth)
        fit = translation.load(generator, folder)
        made[folder.name.removeprefix(f"{PIX2PIX}-")] = Translator(generator, fit.weights_sha256)
    return made
