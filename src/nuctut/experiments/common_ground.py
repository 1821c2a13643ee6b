"""Common ground: every method of the book on the test images of every data set, inference alone.

A method is a network that comes with the book, or the classical pipeline. No image is tested on
that any of the networks has seen in training, whichever set it saw it in:

- of BBBC039, the fields that DSB2018's training images show too (`dsb2018.in_bbbc039`);
- of DSB2018, the test images whose field is in its training images (`ALSO_IN_TRAIN`), and those of
  which an edge goes on there (`GOES_ON_IN_TRAIN`);
- of Kumar's 30 images, which are within MoNuSeg, his part "train";
- a network that learned from a set of which all images are tested on has no cell in it.

What a method learned from says how it is shown an image. Its ground: see `views.view`. Its size:
one that learned from nuclei of one size is shown other data sets at that size, which the labels of
an image tell, or an estimate from the image alone; one that learned from nuclei of many sizes, and
every one on images as it learned from, sees the image as taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from skimage.segmentation import relabel_sequential
from tqdm.auto import tqdm

from nuctut import classical, datasets, fits, focus, records, views
from nuctut.datasets import dsb2018, monuseg
from nuctut.experiments import many_tissues, shipping, through_blur
from nuctut.experiments.fitting import Trained, load
from nuctut.machine import peak_memory_gb, reset_peak_memory
from nuctut.rescaling import LARGEST, estimated_factor, mean_diameter, segment_rescaled
from nuctut.samples import Sample, SampleSet

CHAPTER = "06_common_ground"
CLASSICAL = "classical"
CONFIGURATION = "shape/intensity"
AS_TAKEN, TRUE_SIZE, ESTIMATED = "as taken", "true size", "estimated size"
Way = Literal["as taken", "true size", "estimated size"]

# The mean diameter of the training nuclei in pixels, of sets whose images have one pixel size.
SIZES = {"bbbc039": 27.6, "tnbc": 22.2, "monuseg": 22.1}
# Sets whose images have the pixels that others' have, too: 40×, where SIZES would change nothing.
ALIKE = {"tnbc": ("tnbc", "monuseg"), "monuseg": ("tnbc", "monuseg")}
GROUNDS: dict[str, views.Ground] = {"dsb2018": "both", "tnbc": "bright", "monuseg": "bright"}
TEST_SETS = (
    *("bbbc039", "dsb2018", "sbsst265_neuroblastoma", "bitdepth_nucseg", "bbbc006"),
    *("tnbc", "monuseg"),
)
KEPT_TAGS = ("modality", "objective", "field", "patient")


# --- what is tested on ---------------------------------------------------------------------------


def was_seen(name: str, key: str) -> bool:
    """Whether a network of the book may have seen this test image, or what it shows.

    Args:
        name: Of the data set, one of `TEST_SETS`.
        key: Of one of its test images.
    """
    match name:
        case "bbbc039":
            return key in dsb2018.in_bbbc039().values()
        case "dsb2018":
            return key in dsb2018.ALSO_IN_TRAIN or key.startswith(dsb2018.GOES_ON_IN_TRAIN)
        case "monuseg":
            return monuseg.PART.get(key) == "train"
    return False


def test_set(name: str, source: str = "real", side: int | None = None) -> SampleSet:
    """What the methods are tested on of a data set: its test images that no network has seen.

    Of BBBC006 these are the fields with labels at plane 0, 32 µm from focus.

    Args:
        name: One of `TEST_SETS`.
        source: See `datasets.load`.
        side: Of a window at the centre of each image, to be quick; None takes whole images.

    Raises:
        FileNotFoundError, ValueError: As `datasets.load`.
    """
    if name == "bbbc006":
        samples = through_blur.z0_fields(source)
    else:
        samples = datasets.load(name, "test", source)
        samples = samples.picked([key for key in samples.keys if not was_seen(name, key)])
    if side is None:
        return samples
    return samples.changed(f"centre of {side} px", partial(_centre, side))


def _centre(side: int, sample: Sample) -> Sample:
    starts = [max(0, (length - side) // 2) for length in sample.labels.shape]
    window = tuple(slice(start, start + side) for start in starts)
    labels = relabel_sequential(sample.labels[window])[0].astype(np.int32)
    return Sample(sample.key, sample.image[window], labels, sample.tags)


# --- what is tested ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way from an image to labels, and what it learned from.

    Attributes:
        name: As in records.
        knows: The ground that nuclei have in what it learned from.
        size: Mean diameter of the nuclei that it learned from, in pixels; None of many sizes.
        learned_from: Names of those data sets; none of the classical pipeline.
        as_taken: Data sets whose images have the size that it learned from.
        labels: Image at its size → (h, w) int32 labels.
        estimate: Image → factor to its size.
        record: The evidence that it ships with; None for the classical pipeline.
    """

    name: str
    knows: views.Ground
    size: float | None
    learned_from: tuple[str, ...]
    as_taken: tuple[str, ...]
    labels: Callable[[np.ndarray], np.ndarray]
    estimate: Callable[[np.ndarray], float] | None
    record: records.Record | None

    def may_be_tested_on(self, data: str) -> bool:
        """Whether it has not seen what is tested on of this set; see the head of this module."""
        spec = datasets.REGISTRY.get(data)
        return data not in self.learned_from or not (spec and spec.all_tested)

    def way(self, data: str = "") -> Way:
        """How it is shown images of a data set; of one that is not known, as of any other."""
        return AS_TAKEN if self.size is None or data in self.as_taken else TRUE_SIZE


def methods(chapter: int = 0, device: str = "auto") -> dict[str, Method]:
    """The classical pipeline, and every network that comes with the book and finds nuclei.

    Args:
        chapter: The number of a chapter, whose networks alone are wanted; 0 is all.
        device: See `load`.

    Raises:
        ValueError: When two networks have one name, or no evidence is of one.
        Malformed: When a file of one is damaged.
    """
    made = [_classical()] if chapter in (0, 1) else []
    known = records.read_all(shipping.results_root())
    for folder in shipping.folders():
        if chapter in (0, int(folder.parent.name[:2])) and folder.name != through_blur.QC:
            made.append(_of_network(folder, shipping.record_of(folder, known), device))
    found = {one.name: one for one in made}
    if len(found) < len(made):
        raise ValueError(f"Two networks below {shipping.root()} have one name: rename one.")
    return found


def _classical() -> Method:
    def labels(image: np.ndarray) -> np.ndarray:
        grey = image if image.ndim == 2 else image.mean(-1)
        return classical.segment(grey, CONFIGURATION, drop_border=False)

    size = SIZES["bbbc039"]
    estimate = partial(estimated_factor, labels, diameter=size)
    return Method(CLASSICAL, "dark", size, (), ("bbbc039",), labels, estimate, None)


def _of_network(folder: Path, record: records.Record, device: str) -> Method:
    data, trained = fits.read_description(folder).data["name"], load(folder, device)
    sets = tuple(spec.name for spec in datasets.specs(data))
    size = trained.diameter or SIZES.get(data)
    as_taken = () if trained.diameter else ALIKE.get(data, sets)
    grounds = {GROUNDS.get(name, "dark") for name in sets}
    ground = grounds.pop() if len(grounds) == 1 else "both"
    estimate = _estimate(trained, size)
    how = (ground, size, sets, as_taken, trained, estimate, record)
    return Method(folder.name, *how)


def _estimate(trained: Trained, size: float | None) -> Callable[[np.ndarray], float] | None:
    if size is None:
        return None
    if trained.experiment is many_tissues and trained.diameter:
        return lambda image: many_tissues.scale_of(trained, trained.channelled(image))
    return lambda image: estimated_factor(
        lambda pixels: trained.labels(trained.channelled(pixels)), image, size
    )


def segment(
    method: Method, sample: Sample, way: Way, dye: views.Dye = "haematoxylin"
) -> tuple[np.ndarray, str]:
    """Labels of a sample on its own grid, and how the method was shown it.

    Args:
        method: What finds the nuclei.
        sample: Its labels are looked at under "true size" alone, for the mean diameter; without a
            nucleus it is shown as taken.
        way: See the head of this module.
        dye: See `views.view`.

    Returns:
        (H, W) int32, and one of the answers of `views.view`.
    """
    how = views.view(sample.image, method.knows, dye)
    image = views.shown(sample.image, how)
    factor = 1.0
    if way == TRUE_SIZE and sample.count:
        factor = method.size / mean_diameter(sample.labels)
    elif way == ESTIMATED:
        factor = method.estimate(image)
    if factor == 1:
        return method.labels(image), how
    return segment_rescaled(method.labels, image, min(max(factor, 1 / LARGEST), LARGEST)), how


# --- records -------------------------------------------------------------------------------------


def row(method: Method, sample: Sample, way: Way, dye: views.Dye = "haematoxylin") -> records.Row:
    """What a record keeps of one image, without the counts that this chapter has no use for."""
    start = time.perf_counter()
    labels, how = segment(method, sample, way, dye)
    seconds = time.perf_counter() - start
    tags = {name: sample.tags[name] for name in KEPT_TAGS if name in sample.tags}
    tags |= {"sees": how, "crowded": "yes" if focus.is_crowded(sample.labels) else "no"}
    made = records.image_row(sample.key, sample.labels, labels, seconds=seconds, tags=tags)
    return {name: value for name, value in made.items() if name not in ("loose", "kromp")}


def record(
    method: Method,
    samples: SampleSet,
    way: Way,
    dye: views.Dye = "haematoxylin",
    *,
    preset: str,
    folder: Path | None = None,
    progress: bool = True,
) -> records.Record:
    """A method measured on a data set, and the record of it written.

    What it cost to train, and where its weights come from, is that of the record it ships with. Its
    memory is the most that the process held at a time beyond what it held before, which on a CPU
    Linux alone can tell.

    Args:
        method, way, dye: See `segment`.
        samples: What `test_set` gives.
        preset: Of the run.
        folder: Where to; by default where records of its kind belong.
        progress: Show a progress bar.
    """
    ending = "-estimated" * (way == ESTIMATED) + "-inverted" * (dye == "inverted")
    variant = f"{method.name}-on-{samples.name}{ending}"
    bar = tqdm(samples, f"{variant}: {samples.describe()}", disable=not progress)
    own = method.record
    reset_peak_memory()
    before = peak_memory_gb()
    images = [row(method, sample, way, dye) for sample in bar]
    memory = None if before is None else round(peak_memory_gb() - before, 3)
    made = records.Record.of_run(
        chapter=CHAPTER,
        variant=variant,
        preset=preset,
        seed=own.seed if own else 0,
        data=records.describe_data(samples) | {"training": own.data["training"] if own else None},
        images=images,
        budget=_budget(own) | {"peak_memory_gb": memory},
        parameters=_parameters(method, way, dye),
        fit=own.fit if own else None,
    )
    records.write(made, folder)
    return made


def _budget(own: records.Record | None) -> dict[str, Any]:
    if own is None:
        return {"updates": 0, "images_seen": 0, "seconds": 0.0, "precision": "none"}
    names = ("updates", "images_seen", "seconds", "precision", "weights")
    return {name: own.budget[name] for name in names if name in own.budget}


def _parameters(method: Method, way: Way, dye: views.Dye) -> dict[str, Any]:
    own = method.record
    return {
        "method": method.name,
        "network": own.parameters["network"] if own else CONFIGURATION,
        "of_chapter": own.chapter if own else "01_labels_for_free",
        "learned_from": method.learned_from,
        "size": method.size,
        "way": way,
        "dye": dye,
    }


def plan(
    tested: Iterable[Method], names: Iterable[str], besides: Mapping[str, str]
) -> list[tuple[Method, str, Way, views.Dye]]:
    """What is measured: every method on every set that it may be tested on.

    Args:
        tested: The methods.
        names: Of `TEST_SETS`.
        besides: By method, what of it is measured besides: "estimated", with the size from the
            image alone wherever its size matters, "inverted", with inverted brightness in place of
            the haematoxylin on sets of stained tissue, or both, with a comma.

    Returns:
        Method, data set, way and dye of each record.
    """
    made = []
    for method in tested:
        more = besides.get(method.name, "")
        for name in filter(method.may_be_tested_on, names):
            way = method.way(name)
            made.append((method, name, way, "haematoxylin"))
            if "estimated" in more and way == TRUE_SIZE:
                made.append((method, name, ESTIMATED, "haematoxylin"))
            if "inverted" in more and GROUNDS.get(name) == "bright":
                made.append((method, name, way, "inverted"))
    return made
