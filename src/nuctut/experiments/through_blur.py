"""Through blur: U-Nets that learn from sharp images alone, from blurred copies, and to deblur."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from nuctut import borders, datasets, experiments, focus, optics, postprocess, scoreboard, targets
from nuctut.blurred_crops import BlindSpots, Blur, BlurredPairs, FocusPatches
from nuctut.datasets.bbbc006 import SHARP as SHARP_PLANES
from nuctut.datasets.defocused import defocused
from nuctut.experiments.fitting import Trained
from nuctut.experiments.measuring import Measured
from nuctut.experiments.settings import Positive
from nuctut.files import STRICT, Count, Measure
from nuctut.joint_losses import CrossEntropy, DenoiSegLoss, JointLoss
from nuctut.models.alexnet import AlexNet
from nuctut.models.forked_unet import ForkedUNet, Objective, as_many_weights
from nuctut.models.unet import UNet
from nuctut.records import FOCUS, Record, Row, image_row, scores
from nuctut.samples import Sample, SampleSet

CHANNELS = 1
CLASSES = 3
SHARP = 5.0  # µm; an image nearer to focus is sharp
FARTHEST = 20  # µm; how far out of focus the stand-in is tested
BARE = ("u-net-aug", "bns-4")  # are measured without post-processing, too
Z0_FIELDS = ("z00_i05_s2", "z00_i07_s2", "z00_i16_s2")  # blurred by a microscope, and labelled

Rule = Callable[[Sample], postprocess.LabelRule]


@plain(frozen=True)
class Recipe:
    """What tells one of the networks from the others.

    Attributes:
        fork: Of `ForkedUNet`; 0 is the plain U-Net.
        objective: Gives what a forked one is fitted by.
        blur: One of `BLURS`, what its crops are changed by.
        wide: Whether the plain U-Net gets as many weights as BNS-4 has.
    """

    fork: int = 0
    objective: Callable[[], Objective] | None = None
    blur: str = "psf-and-poisson"
    wide: bool = False


# In the order of the paper's tables; then the controls, the bound, and the other augmentations.
NETWORKS: dict[str, Recipe] = {
    "u-net-standard": Recipe(blur="none"),
    "u-net-aug": Recipe(),
    **{f"bns-{fork}": Recipe(fork, JointLoss) for fork in (1, 2, 3, 4)},
    "denoiseg": Recipe(1, DenoiSegLoss),
    "u-net-aug-wide": Recipe(wide=True),
    "bns-4-without-deblurring": Recipe(4, functools.partial(JointLoss, deblurring=False)),
    "bns-4-blurred-labels": Recipe(4, JointLoss, blur="as-tested"),
    "u-net-gaussian": Recipe(blur="gaussian"),
    "u-net-poisson": Recipe(blur="poisson"),
}
QC = "qc"  # the network that finds no nuclei, but tells sharp images from blurred ones
CHANCE = "chance of blur"  # a tag, and what that network holds it to be


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(experiments.Settings):
    """What a preset fixes for the U-Nets, or for the quality control.

    Attributes:
        channels, normalise: Of `models.unet.UNet`; of AlexNet, the first of the channels is its
            width.
        crop: Side of the random crops in pixels.
        depth: Largest defocus of the augmentation in µm.
        blurred: Share of the crops that are blurred; the others stay sharp.
        rim: Width of the boundary that is taught, all around each nucleus, in pixels; 0 for lines
            between touching nuclei alone.
        distance, smoothing: Of `postprocess.parted_by_watershed`, in pixels.
        threshold: Of `postprocess.nuclei_above`; DenoiSeg's.
        …: Those of `experiments.Settings`.
    """

    channels: tuple[Positive, ...]
    normalise: bool
    crop: Positive
    depth: Measure
    blurred: Annotated[float, Field(ge=0, le=1)]
    rim: Count
    distance: Annotated[float, Field(gt=0)]
    smoothing: Measure
    threshold: Annotated[float, Field(ge=0, le=1)]


def code(variant: str) -> tuple[str, ...]:
    """Modules of the package that decide what the fit of a variant computes."""
    shared = ("targets", "optics", "blurred_crops", "training")
    if variant == QC:
        return (*shared, "models/alexnet")
    forked = ("models/forked_unet", "joint_losses")
    return (*shared, "borders", "models/unet", *forked)


def network(variant: str, settings: Settings, had: bool | None = None) -> nn.Module:
    """One of `NETWORKS`, or `QC`; see `experiments.Experiment`.

    Raises:
        ValueError: For an unknown one.
    """
    if variant == QC:
        return AlexNet(settings.channels[0], CHANNELS)
    if variant not in NETWORKS:
        known = ", ".join([*NETWORKS, QC])
        raise ValueError(f"variant must be one of {known}, not {variant!r}.")
    recipe, channels = NETWORKS[variant], settings.channels
    how = {"in_channels": CHANNELS, "classes": CLASSES, "normalise": settings.normalise}
    if recipe.fork:
        return ForkedUNet(recipe.fork, channels=channels, objective=recipe.objective(), **how)
    if recipe.wide:
        channels = as_many_weights(ForkedUNet(4, channels=channels, **how), **how)
    return UNet(channels=channels, **how)


def describe(model: nn.Module) -> str:
    """A network in words: its family and its size."""
    if isinstance(model, AlexNet):
        return f"AlexNet, {model.width} feature maps in its first layer"
    family = "U-Net"
    if isinstance(model, ForkedUNet):
        denoises = isinstance(model.objective, DenoiSegLoss)
        family = "U-Net with one more output" if denoises else f"U-Net, fork {model.fork}"
    return f"{family}, {model.channels[0]} to {model.channels[-1]} feature maps"


def loss(variant: str, settings: Settings) -> nn.Module | None:
    """A cross-entropy; None for the forked networks, which have losses of their own."""
    if variant == QC:
        return nn.CrossEntropyLoss()
    return None if NETWORKS[variant].fork else CrossEntropy()


def items(
    variant: str,
    samples: SampleSet,
    settings: Settings,
    teach: experiments.ClassMap | None = None,
    *,
    seed: int,
    progress: bool,
) -> Dataset:
    """Random crops, blurred as they are drawn; of the validation images, the same in each round."""
    learns = samples.split == "training"
    how = {"size": settings.crop, "scale": settings.scale, "seed": seed if learns else 0}
    images = [sample.image for sample in samples]
    if variant == QC:
        return FocusPatches(images, samples.keys, sharp, blurred(settings.depth), **how)

    def classes_of(sample: Sample) -> np.ndarray:
        rim = settings.rim
        return borders.bordered(sample.labels, rim) if rim else targets.three_classes(sample.labels)

    bar = tqdm(samples, f"labels for {samples.describe()}", disable=not progress)
    classes = [(teach or classes_of)(sample) for sample in bar]
    how |= {"gain": settings.gain if learns else 0.0}
    pairs = BlurredPairs(images, classes, samples.keys, blur(variant, settings), **how)
    denoises = NETWORKS[variant].objective is DenoiSegLoss
    return BlindSpots(pairs, how["seed"]) if denoises else pairs


def rule(variant: str, settings: Settings) -> postprocess.LabelRule:
    """The paper's post-processing; DenoiSeg has a threshold of its own.

    Raises:
        ValueError: For the quality control, which finds no nuclei.
    """
    if variant == QC:
        raise ValueError(f"{QC} tells sharp images from blurred ones: it finds no nuclei.")
    if variant == "denoiseg":
        return postprocess.nuclei_above(settings.threshold, settings.min_area)
    return watershed(settings)


def watershed(settings: Settings, distance: float | None = None) -> postprocess.LabelRule:
    """The paper's post-processing; with a distance of `math.inf`, all but its watershed."""
    distance = settings.distance if distance is None else distance
    return postprocess.parted_by_watershed(distance, settings.min_area, settings.smoothing)


# --- what crops are changed by --------------------------------------------------------------------


def sharp(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What counts as sharp: every other one as it is, the others up to `SHARP` µm from focus."""
    return image if rng.integers(2) else optics.psf_and_poisson(image, rng, SHARP)


def blurred(depth: float) -> Blur:
    """What counts as blurred: farther from focus than `SHARP`, up to `depth` µm."""
    far = np.arange(SHARP + optics.STEP, depth + optics.STEP, optics.STEP)
    return lambda image, rng: optics.out_of_focus(image, rng.choice(far), rng)


def as_tested(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As `stack` has it, at any of its depths."""
    z = float(rng.choice(depths(2)))
    return optics.out_of_focus(image, z, rng) if z else image


# (image, rng, largest defocus in µm) → the image as a network meets it
BLURS: dict[str, Callable[[np.ndarray, np.random.Generator, float], np.ndarray]] = {
    "none": lambda image, rng, depth: image,
    "gaussian": optics.gaussian,
    "poisson": lambda image, rng, depth: optics.poisson(image, rng),
    "psf-and-poisson": optics.psf_and_poisson,
    "as-tested": lambda image, rng, depth: as_tested(image, rng),
}


def blur(variant: str, settings: Settings) -> Blur:
    """What a network's crops are changed by: a share of them, all where it learns as tested."""
    name = NETWORKS[variant].blur
    share = 1.0 if name == "as-tested" else settings.blurred

    def changed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return BLURS[name](image, rng, settings.depth) if rng.random() < share else image

    return changed


# --- what is tested on ----------------------------------------------------------------------------


def depths(step: int) -> list[int]:
    """From `FARTHEST` below focus to as far above, in µm: each distance on one side, in turn.

    The model blurs alike on both sides, so that a second image at a distance would say the same.

    Args:
        step: From one distance to the next.
    """
    away = range(0, FARTHEST + 1, step)
    return sorted(-z if number % 2 else z for number, z in enumerate(away))


def stack(samples: SampleSet, step: int) -> SampleSet:
    """The stand-in for a stack of planes: sharp images, defocused to all `depths`, and tagged."""
    return tagged(defocused(samples, depths(step)))


def z0_fields(source: str) -> SampleSet:
    """The fields of BBBC006 that have labels and a picture at plane 0; else, simulated ones.

    Raises:
        FileNotFoundError, ValueError: As `datasets.load` does.
    """
    planes = datasets.load("bbbc006", "test-blurred", source)
    known = [key for key in Z0_FIELDS if key in planes.keys]
    return tagged(planes.picked(known or [key for key in planes.keys if key.startswith("z00")]))


def tagged(samples: SampleSet) -> SampleSet:
    """Samples with the tags "focus", sharp or blurred, and "crowded", yes or no.

    Planes of BBBC006 are sharp where the paper says so (section III.A), others within `SHARP` µm.
    """

    def with_tags(sample: Sample) -> Sample:
        plane = sample.tags.get("plane")
        z = abs(float(sample.tags["z"]))
        near = z <= SHARP if plane is None else int(plane) in SHARP_PLANES
        crowded = "yes" if focus.is_crowded(sample.labels) else "no"
        new = {FOCUS: "sharp" if near else "blurred", "crowded": crowded}
        return replace(sample, tags=dict(sample.tags) | new)

    return samples.changed("tagged by focus and crowd", with_tags)


# --- measuring ------------------------------------------------------------------------------------


def measure(
    trained: Trained,
    samples: SampleSet,
    rules: Mapping[str, Rule],
    verdicts: Mapping[str, float] = MappingProxyType({}),
    *,
    progress: bool = True,
) -> list[Measured]:
    """A network on a test set, its answer to each image turned into labels in several ways.

    Args:
        trained: The network.
        samples: What to measure on.
        rules: By the name of what is measured: a sample's way from probabilities to labels.
        verdicts: `chances` of the samples, which images keep as the tag `CHANCE` where the way is
            that of the quality control.
        progress: Show a progress bar.
    """
    rows: dict[str, list] = {name: [] for name in rules}
    bar = tqdm(samples, f"{trained.variant} on {samples.describe()}", disable=not progress)
    for sample in bar:
        start = time.perf_counter()
        probabilities = trained.probabilities(sample.image)
        predicting = time.perf_counter() - start
        for name, of in rules.items():
            start = time.perf_counter()
            labels = of(sample).labels(probabilities)
            how = {"seconds": predicting + time.perf_counter() - start, "tags": sample.tags}
            if name.endswith(f"-{QC}"):
                how["tags"] = {**sample.tags, CHANCE: f"{verdicts[sample.key]:.3f}"}
            rows[name].append(image_row(sample.key, sample.labels, labels, **how))
    return [
        Measured(
            name, samples, of, {"seconds_per_image": float(np.mean([r["seconds"] for r in of]))}
        )
        for name, of in rows.items()
    ]


def ways(variant: str, settings: Settings, verdicts: Mapping[str, float]) -> dict[str, Rule]:
    """What is measured of a network: as it is; of some, without post-processing and as QC tells.

    Args:
        variant: The network.
        settings: Its own.
        verdicts: `chances` of the test images; empty, nothing is measured that needs them.
    """
    own, whole = rule(variant, settings), watershed(settings)
    cut = watershed(settings, float("inf"))
    if variant == "denoiseg":
        return {variant: lambda _: own, f"{variant}-postprocessed": lambda _: whole}
    made: dict[str, Rule] = {variant: lambda _: own}
    if variant in BARE:
        made[f"{variant}-without-postprocessing"] = lambda _: cut
    if variant == "bns-4" and verdicts:
        made[f"{variant}-qc"] = lambda sample: own if verdicts[sample.key] > 0.5 else cut
    return made


def chances(qc: Trained, samples: Iterable[Sample]) -> dict[str, float]:
    """How blurred the quality control holds each image to be, by its key; see `focus`."""

    def chance(image: np.ndarray) -> float:
        size = min(qc.settings.crop, *image.shape)
        return focus.chance_of_blur(qc.model, image, size, qc.settings.scale)

    return {one.key: chance(one.image) for one in samples}


def with_threshold(
    trained: Trained, samples: Iterable[Sample], thresholds: Sequence[float]
) -> Trained:
    """DenoiSeg with the threshold that finds most in validation images, as its public code does."""
    samples = list(samples)
    probabilities = [trained.probabilities(one.image) for one in samples]
    made = functools.partial(postprocess.nuclei_above, min_area=trained.settings.min_area)
    labels = [one.labels for one in samples]
    best = focus.best_threshold(made, probabilities, labels, thresholds)
    return replace(trained, settings=replace(trained.settings, threshold=float(best)))


# --- from records ---------------------------------------------------------------------------------


def judged_by_control(rows: Iterable[Row]) -> pd.DataFrame:
    """What the quality control said of images of a stack, and whether that was right.

    Args:
        rows: Images with the tags "z" and `CHANCE`.

    Returns:
        One line per image: key, z (µm), chance (of blur), called blurred (above a half) and right
        (whether it is so, beyond `SHARP`).
    """
    lines = [
        {"key": row["key"], "z": float(row["tags"]["z"]), "chance": float(row["tags"][CHANCE])}
        for row in rows
    ]
    table = pd.DataFrame(lines, columns=["key", "z", "chance"])
    called = table["chance"] > 0.5
    return table.assign(**{"called blurred": called, "right": called == (table["z"].abs() > SHARP)})


def by_depth(records: Iterable[Record], metric: str = "f1_50") -> pd.DataFrame:
    """A score at each defocus, with its interval, for `figures.sweep_chart` (figure 5).

    Args:
        records: Whose images have the tag "z", the defocus in µm.
        metric: One of `records.METRICS` or `records.DERIVED`.

    Returns:
        One line per record and depth: variant (in words), seed, run, z, score, low, high.
    """
    lines = []
    for one in records:
        about = {"variant": scoreboard.in_words(one.variant), "seed": one.seed, "run": one.name}
        for z in sorted({float(row["tags"]["z"]) for row in one.images}):
            rows = [row for row in one.images if float(row["tags"]["z"]) == z]
            plane = replace(one, images=rows, scores=scores(rows))
            found = scoreboard.estimate([plane], metric)
            low, high = found.interval()
            ends = {"score": found.value, "low": low, "high": high}
            lines.append(about | {"z": z} | ends)
    columns = ["variant", "seed", "run", "z", "score", "low", "high"]
    return pd.DataFrame(lines, columns=columns)
