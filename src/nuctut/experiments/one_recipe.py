"""One recipe: one network for all data sets, made of the chapters' ideas, each left out once.

What it learns from is the training images of five sets together (`SETS`), and what chooses its
checkpoint, and which ideas are kept, their validation images. Test images are left to the chapter
on common ground: none of them, and no image that shows the same field, is among these.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.data import Dataset

from nuctut import comparison, datasets, experiments, postprocess, targets, training, views
from nuctut.background import BackgroundModel, clusters
from nuctut.datasets import dsb2018
from nuctut.datasets.defocused import defocused
from nuctut.experiments.fitting import Trained
from nuctut.experiments.measuring import Measured, Segmented
from nuctut.experiments.settings import Positive
from nuctut.files import STRICT, Measure
from nuctut.losses import LogDiceLoss
from nuctut.models.unet import UNet
from nuctut.records import Row, scores_by_tag
from nuctut.rescaling import mean_diameter, rescaled
from nuctut.samples import Sample, SampleSet
from nuctut.uncertainty import Estimate

CHANNELS = 3
DIAMETER = 28.0  # pixels; BBBC039's own, so that nothing of it is lost
FARTHEST_FROM_REAL = ("real", "stand-in", "excerpt", "simulated")
SETS = {  # and what a picture calls them
    "bbbc039": "BBBC039",
    "dsb2018": "DSB2018",
    "sbsst265_neuroblastoma": "neuroblastoma",
    "bitdepth_nucseg": "BitDepth",
    "tnbc": "TNBC",
}
DEPTHS = (8.0, 16.0, 24.0, 32.0)  # µm out of focus, of the blurred copies
# What each chapter found, in their order.
IDEAS = {
    "separations": "lines between touching nuclei are a class of their own",
    "balance": "rare sorts of image are drawn more often, and vary in contrast and colour",
    "one-size": "all images are rescaled to nuclei of one size",
    "masking": "of stained tissue, what looks like a nucleus that nobody outlined is left out",
    "blur": "copies of sharp images are put out of focus by the optical model",
}
KEPT = tuple(IDEAS)  # that the recipe is made of, as the validation images say
WHOLE, COMMON = "all-ideas", "common"  # with all ideas, and the recipe itself
VARIANTS = (WHOLE, *(f"without-{idea}" for idea in IDEAS), COMMON)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(experiments.Settings):
    """What a preset fixes.

    Attributes:
        channels: Of `models.unet.UNet`.
        crop: Side of the random crops in pixels.
        zoom: Of `training.Jitter`.
        colour, gamma: Of it, unless "balance" is left out.
        distance, smoothing: Of `postprocess.parted_by_watershed`, in pixels.
        …: Those of `experiments.Settings`.
    """

    channels: tuple[Positive, ...]
    crop: Positive
    zoom: Annotated[float, Field(ge=1)]
    colour: Measure
    gamma: Measure
    distance: Annotated[float, Field(gt=0)]
    smoothing: Measure


def has(variant: str, idea: str) -> bool:
    """Whether a variant makes use of an idea.

    Raises:
        ValueError: When the variant is not one of `VARIANTS`.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}.")
    return idea in KEPT if variant == COMMON else variant != f"without-{idea}"


# --- the interface of `experiments.Experiment` ----------------------------------------------------


def code(variant: str) -> tuple[str, ...]:
    """Modules of the package that decide what the fit of a variant computes."""
    return ("targets", "optics", "rescaling", "background", "losses", "training", "models/unet")


def diameter(variant: str) -> float | None:
    """See `experiments.Trained.diameter`."""
    return DIAMETER if has(variant, "one-size") else None


def network(variant: str, settings: Settings, had: bool | None = None) -> UNet:
    """A U-Net of three classes; of two where separations are left out."""
    return UNet(CHANNELS, 3 if has(variant, "separations") else 2, channels=settings.channels)


def describe(model: UNet) -> str:
    """A network in words: its family and its size."""
    return f"U-Net, {model.channels[0]} to {model.channels[-1]} feature maps"


def loss(variant: str, settings: Settings) -> nn.Module:
    """Log Dice with a cross-entropy, as the chapter that brought the separations has it."""
    classes = 3 if has(variant, "separations") else 2
    return LogDiceLoss((0.2, 0.4, 0.4)[:classes], settings.cross_entropy)


def items(
    variant: str,
    samples: SampleSet,
    settings: Settings,
    teach: experiments.ClassMap | None = None,
    *,
    seed: int,
    progress: bool,
) -> Dataset:
    """Random crops; of the validation images, the same large one of each in every round."""
    how = {"size": settings.crop, "scale": settings.scale, "seed": seed, "progress": progress}
    how["jitter"] = training.Jitter(gain=settings.gain, zoom=settings.zoom)
    if has(variant, "balance"):
        how["jitter"] = replace(how["jitter"], colour=settings.colour, gamma=settings.gamma)
        how["shares"] = training.balanced([one.tags["sort"] for one in samples])
    return experiments.random_crops(samples, teach or partial(lesson, variant), **how)


def rule(variant: str, settings: Settings) -> postprocess.LabelRule:
    """Separation lines are cut out, what still hangs together is parted by a watershed."""
    how = (settings.distance, settings.min_area, settings.smoothing)
    return postprocess.parted_by_watershed(*how)


# --- what is learned from -------------------------------------------------------------------------


def union(split: str, source: str, images: int | None = None) -> SampleSet:
    """The images of a split of all `SETS`, in three channels, as taken.

    DSB2018's images of fields that BBBC039 shows too are left out. Keys are the set's name and the
    image's; two tags are added: "set", and "sort", which names a set's images of one kind.

    Args:
        split: "training" or "validation".
        source: See `datasets.load`.
        images: Most of each set; None takes all.

    Raises:
        FileNotFoundError, ValueError: As `datasets.load`.
    """
    parts = {name: datasets.load(name, split, source) for name in SETS}
    twice = dsb2018.in_bbbc039()
    once = [key for key in parts["dsb2018"].keys if key not in twice]
    parts["dsb2018"] = parts["dsb2018"].picked(once)
    return _united({name: part.take(images or len(part)) for name, part in parts.items()}, split)


def out_of_focus(samples: SampleSet) -> SampleSet:
    """The images of BBBC039 in a union, each at one of `DEPTHS`, in turn.

    Only these are from a camera and a microscope that `optics` models.
    """
    keys = [key for key in samples.keys if key.startswith("bbbc039/")]
    grey = samples.picked(keys).changed("grey", lambda one: replace(one, image=one.image[..., 0]))
    stacks = defocused(grey, DEPTHS)
    planes = [stacks.keys[at * len(DEPTHS) + at % len(DEPTHS)] for at in range(len(keys))]

    def tagged(one: Sample) -> Sample:
        tags = {**one.tags, "sort": "bbbc039 out of focus"}
        return replace(one, image=_in_three_channels(one.image), tags=tags)

    return stacks.picked(planes).changed("in three channels", tagged, samples.source)


def equally_sized(samples: SampleSet) -> SampleSet:
    """At the common scale, each by its own labels; an image without nuclei stays as it is."""

    def resized(one: Sample) -> Sample:
        return rescaled(one, DIAMETER / mean_diameter(one.labels)) if one.count else one

    return samples.changed(f"nuclei of {DIAMETER:g} px", resized)


def lessons(variant: str, samples: SampleSet) -> SampleSet:
    """What a variant is taught with: the images of a union as its ideas make them.

    Args:
        variant: One of `VARIANTS`.
        samples: A `union`.
    """
    sized = equally_sized if has(variant, "one-size") else (lambda same: same)
    made = sized(samples)
    if has(variant, "blur") and samples.split == "training":
        made = made.joined(sized(out_of_focus(samples)))
    return made


def lesson(variant: str, sample: Sample) -> np.ndarray:
    """(H, W) uint8, the classes that a sample teaches.

    What nobody outlined may have been overlooked. So of stained tissue, under "masking", only what
    is near an outline or has the colours of background is background (`BackgroundModel`); what
    is left, the colours of nuclei far from any outline, is ignored.

    Args:
        variant: One of `VARIANTS`.
        sample: One of `lessons`.
    """
    mask = sample.labels > 0
    classes = mask.astype(np.uint8)
    if has(variant, "separations"):
        classes = targets.three_classes(sample.labels)
    if has(variant, "masking") and mask.any() and views.kind(sample.image) == views.COLOURED:
        model, colours = BackgroundModel(), clusters(sample.image, sample.key)
        unsure = model.weights(mask, colours, sample.key) < model.strength
        classes[unsure & (classes == targets.BACKGROUND)] = targets.IGNORE
    return classes


def _united(parts: Mapping[str, SampleSet], split: str) -> SampleSet:
    place = {
        f"{name}/{key}": (name, at) for name, of in parts.items() for at, key in enumerate(of.keys)
    }

    def read(key: str) -> Sample:
        name, at = place[key]
        one = parts[name][at]
        kind = one.tags.get("sort") or one.tags.get("objective") or ""
        tags = {**one.tags, "set": name, "sort": f"{name} {kind}".strip()}
        image = one.image if one.image.ndim == 3 else _in_three_channels(one.image)
        return Sample(key, image, one.labels, tags)

    digest = "+".join(one.fingerprint for one in parts.values())
    return SampleSet(
        list(place),
        read,
        name=" and ".join(parts),
        split=split,
        source=max((one.source for one in parts.values()), key=FARTHEST_FROM_REAL.index),
        fingerprint=hashlib.sha256(digest.encode()).hexdigest(),
    )


def _in_three_channels(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], CHANNELS, -1)


# --- what is measured -----------------------------------------------------------------------------


def measure(
    trained: Trained, samples: SampleSet, *, variant: str = "", progress: bool = True
) -> Measured:
    """A network on images as taken; one that knows nuclei of one size is told that of each image.

    Args:
        trained, samples, variant, progress: Of `experiments.measure_network`.
    """

    def labels_of(sample: Sample) -> Segmented:
        width = mean_diameter(sample.labels) if trained.diameter and sample.count else None
        start = time.perf_counter()
        labels = trained(sample.image, width)
        return Segmented(labels, {"seconds_per_image": time.perf_counter() - start}, {})

    return experiments.measure(variant or trained.variant, labels_of, samples, progress=progress)


def parted_at(trained: Trained, distance: float, samples: SampleSet) -> list[Row]:
    """What `measure` finds when two markers may be no nearer than this, in pixels."""
    changed = replace(trained.settings, distance=distance)
    return measure(replace(trained, settings=changed), samples, progress=False).rows


def by_set(rows: Mapping[str, Sequence[Row]], metric: str) -> pd.DataFrame:
    """A score of the images of each set, and the mean of these: a line per variant.

    Args:
        rows: Images of each variant, of one seed or several.
        metric: One of `records.METRICS` or `records.DERIVED`.
    """
    lines = {name: scores_by_tag(of, "set")[metric] for name, of in rows.items()}
    table = pd.DataFrame(lines).T.reindex(columns=list(SETS))
    return table.assign(mean=table.mean(axis=1))


def worth(one: Sequence[Row], other: Sequence[Row], metric: str) -> Estimate:
    """By how much the one is better than the other in the mean over the sets.

    Args:
        one, other: Images of the same union, of one seed each.
        metric: See `by_set`.

    Returns:
        The difference, with what it could have been, had other fields of each set been taken.
    """
    found = []
    for at, name in enumerate(SETS):
        sides = ([row for row in of if row["tags"]["set"] == name] for of in (one, other))
        apart = comparison.difference(*sides, metric)
        # the draws of two sets of as many fields shall have nothing to do with each other
        drawn = np.random.default_rng(at).permutation(apart.drawn)
        found.append(replace(apart, drawn=drawn))
    mean = float(np.mean([each.value for each in found]))
    return Estimate(mean, np.mean([each.drawn for each in found], axis=0), ())


def worths(rows: Mapping[str, Sequence[Row]]) -> pd.DataFrame:
    """What each idea is `worth` beside all of them, in every metric of the matrix.

    Args:
        rows: Images of the variants that were measured, of one seed.

    Returns:
        A line per idea and metric: worth, from, to (the 95 % interval) and kept (whether it is
        in `KEPT`). None of an idea without which nothing was measured.
    """
    lines = {}
    for idea, about in IDEAS.items():
        if {WHOLE, f"without-{idea}"} <= rows.keys():
            for metric, name in comparison.METRICS.items():
                found = worth(rows[WHOLE], rows[f"without-{idea}"], metric)
                line = dict(zip(("from", "to"), found.interval(), strict=True))
                lines[about, name] = {"worth": found.value, **line, "kept": idea in KEPT}
    return pd.DataFrame.from_dict(lines, orient="index", columns=["worth", "from", "to", "kept"])
