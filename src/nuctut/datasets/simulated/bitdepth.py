"""Invented images in the layout of BitDepth_NucSeg, so that its loader reads them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from scipy import ndimage

from nuctut.datasets.simulated import preparations
from nuctut.datasets.simulated.canvas import new_set, write_tiff
from nuctut.datasets.simulated.preparations import draw

VERSION = 1  # raise it when the same seed gives other images, here, in `preparations` or `canvas`
SMALL_IMAGES = {"training": 8, "validation": 4, "test": 5}
SMALL_SHAPE = (128, 128)
IMAGES, CURATED, FIRST = "images_16bit", "label masks modify", "label masks"

# By how it is written in a key: the folder of an objective.
OBJECTIVES = {"20x": "20x", "40x_air": "40x air", "40x_oil": "40x oil", "63x_oil": "63x oil"}

# By tissue: how it looks, and pixels of a nucleus's diameter per magnification.
TISSUES = {
    "bone": (preparations.IMPRINT, 0.5),
    "heart": (preparations.GROWN, 0.35),
    "kidney": (preparations.SECTION, 0.45),
    "liver": (preparations.CYTOSPIN, 0.55),
    "muscle": (preparations.GROWN, 0.45),
}


def simulate_bitdepth(
    folder: Path,
    *,
    images: Mapping[str, int] = SMALL_IMAGES,
    shape: tuple[int, int] = SMALL_SHAPE,
    seed: int = 0,
) -> Path:
    """Writes a data set that has BitDepth_NucSeg's layout, tissues and scales; returns its folder.

    The same arguments give the same bytes. Each tissue and objective that there is has one image
    for testing, and one at most for validation, as the loader's rule has it. A marker file says
    that the set is simulated. The folder appears at the end, whole.

    Args:
        folder: Where to; must not exist.
        images: How many images in each of the splits "training", "validation" and "test": of test
            no fewer than of validation and no more than of training, and 20 at most.
        shape: (H, W) of the images in pixels, each at least 64.
        seed: Not negative.

    Raises:
        ValueError: For a split, numbers of images, shape or seed that cannot be.
        FileExistsError: When the folder exists.
    """
    with new_set(folder, "BitDepth_NucSeg", VERSION, images=images, shape=shape, seed=seed) as made:
        for objective in OBJECTIVES.values():
            for name in (IMAGES, CURATED, FIRST):
                (made / objective / name).mkdir(parents=True)
        for (tissue, objective), count in _sizes(images).items():
            for number in range(1, count + 1):
                _write(made, tissue, objective, number, shape, seed)
    return folder


def _sizes(images: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """How many images of each tissue and objective give splits of these sizes."""
    training, validation, test = (images[name] for name in ("training", "validation", "test"))
    kinds = len(TISSUES) * len(OBJECTIVES)
    if not validation <= test <= min(training, kinds):
        raise ValueError(
            f"images must have at least as many of test as of validation ({validation}), and at "
            f"most as many as of training ({training}) and {kinds}, not {test}: the split is by "
            "tissue and objective."
        )
    turns = zip(list(TISSUES) * len(OBJECTIVES), list(OBJECTIVES) * len(TISSUES), strict=True)
    sizes = {kind: 3 if at < validation else 2 for at, kind in enumerate(islice(turns, test))}
    for kind in islice(cycle(list(sizes)[:validation]), training - test):
        sizes[kind] += 1
    return sizes


def _write(
    folder: Path, tissue: str, objective: str, number: int, shape: tuple[int, int], seed: int
) -> None:
    key = f"{tissue}_{objective}_{number}"
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    look, size = TISSUES[tissue]
    image, labels = draw(look, size * int(objective[:2]), shape, rng)
    pixels = {IMAGES: image, CURATED: labels, FIRST: _first(labels, rng)}
    for name, values in pixels.items():
        path = folder / OBJECTIVES[objective] / name / f"{key}.tif"
        write_tiff(path, values.astype(np.uint16))


def _first(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a first annotation is like: ids with gaps, and crumbs that have ids of their own."""
    ids = 2 * labels
    boxes = ndimage.find_objects(labels)
    for number in rng.permutation(len(boxes))[: len(boxes) // 3]:
        part = ids[boxes[number]]
        column = part[:, part.shape[1] // 2 :]
        column[column == 2 * (number + 1)] = 2 * number + 1
    return ids
