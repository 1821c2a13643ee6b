"""Invented stained tissue in the layouts of TNBC, MoNuSeg and Janowczyk, for their own loaders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from skimage.io import imsave
from skimage.measure import find_contours

from nuctut.datasets.simulated.canvas import new_set, write_tiff
from nuctut.datasets.simulated.kinds import KINDS, draw
from nuctut.partial import shown

VERSION = 1  # raise it when the same seed gives other images, here, in `kinds` or in `canvas`
SMALL_SHAPE = (192, 192)
TISSUE = replace(next(kind for kind in KINDS if kind.modality == "stained"), scale=(1, 1))
SHOWN = 0.2  # share of the nuclei outlined in invented images like Janowczyk's, which are small
HELD_OUT = ("04", "08")  # TNBC's patients of the validation split
OTHERS = ("01", "02", "03", "05", "06", "07", "09", "10", "11")
SORTS = (  # organ and Kumar's part, which take turns
    ("breast", "train"),
    ("colon", "different organ"),
    ("kidney", "same organ"),
    ("liver", "train"),
)


def simulate_tnbc(
    folder: Path, *, images: Mapping[str, int], shape: tuple[int, int], seed: int
) -> Path:
    """Writes a data set that has TNBC's layout; returns its folder.

    The same arguments give the same bytes. A marker file says that the set is simulated. The folder
    appears at the end, whole.

    Args:
        folder: Where to; must not exist.
        images: How many images in each of the splits "training", "validation" and "test"; the last
            is the sum of the two, which are its parts.
        shape: (H, W) of the images in pixels, each at least 64.
        seed: Not negative.

    Raises:
        ValueError: For a split, number of images, shape or seed that cannot be.
        FileExistsError: When the folder exists.
    """
    with new_set(folder, "TNBC", VERSION, images=images, shape=shape, seed=seed) as made:
        _require_sum(images)
        top = made / "TNBC_NucleiSegmentation"
        for split, patients in (("training", OTHERS), ("validation", HELD_OUT)):
            for index, image, labels in _fields(split, images[split], shape, seed):
                patient = patients[index % len(patients)]
                name = f"{patient}_{index // len(patients) + 1}.png"
                for kind, pixels in (("Slide", image), ("GT", _mask(labels))):
                    (top / f"{kind}_{patient}").mkdir(parents=True, exist_ok=True)
                    imsave(top / f"{kind}_{patient}" / name, pixels, check_contrast=False)
    return folder


def simulate_monuseg(
    folder: Path, *, images: Mapping[str, int], shape: tuple[int, int], seed: int
) -> Path:
    """As `simulate_tnbc`, with MoNuSeg's layout: outlines as polygons, some organs and parts."""
    with new_set(folder, "MoNuSeg", VERSION, images=images, shape=shape, seed=seed) as made:
        _require_sum(images)
        top = made / "MoNuSeg 2018 Training Data"
        for name in ("Tissue Images", "Annotations"):
            (top / name).mkdir(parents=True)
        for split in ("training", "validation"):
            for index, image, labels in _fields(split, images[split], shape, seed):
                organ, part = SORTS[index % len(SORTS)]
                key = f"simulated_{split}_{organ}_{part}_{index:02d}"
                write_tiff(top / "Tissue Images" / f"{key}.tif", image)
                (top / "Annotations" / f"{key}.xml").write_bytes(_xml(labels).encode())
    return folder


def simulate_janowczyk(
    folder: Path, *, images: Mapping[str, int], shape: tuple[int, int], seed: int
) -> Path:
    """Writes a data set that has Janowczyk's layout, most outlines left out; returns its folder.

    Arguments, errors and promises are those of `simulate_tnbc`, but that no split is part of
    another.
    """
    with new_set(folder, "Janowczyk", VERSION, images=images, shape=shape, seed=seed) as made:
        top = made / "nuclei"
        top.mkdir()
        for split, count in images.items():
            for index, image, labels in _fields(split, count, shape, seed):
                key = f"{split}{index:03d}_500_f00001"
                outlined = shown(labels, SHOWN, [seed, index])
                write_tiff(top / f"{key}_original.tif", image)
                imsave(top / f"{key}_mask.png", _mask(outlined), check_contrast=False)
    return folder


def _require_sum(images: Mapping[str, int]) -> None:
    parts = images["training"] + images["validation"]
    if images["test"] != parts:
        raise ValueError(
            f"the test split is the whole set here, training and validation its parts: ask for "
            f"{parts} test images, not {images['test']}."
        )


def _fields(
    split: str, count: int, shape: tuple[int, int], seed: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Number, image and labels of each field of a split: (H, W, 3) uint8, (H, W) int32."""
    for index in range(count):
        place = ("training", "validation", "test").index(split)
        yield index, *draw(TISSUE, shape, np.random.default_rng([seed, place, index]))


def _mask(labels: np.ndarray) -> np.ndarray:
    return np.where(labels > 0, np.uint8(255), np.uint8(0))


def _xml(labels: np.ndarray) -> str:
    """The outlines of the nuclei as ImageScope writes them: pixel (0, 0) has its centre at 0.5."""
    regions = []
    for number in range(1, labels.max() + 1):
        outline = find_contours(np.pad(labels == number, 1), 0.5)[0][:-1] - 1 + 0.5
        corners = "".join(f'<Vertex X="{x:g}" Y="{y:g}"/>' for y, x in outline)
        regions.append(f'<Region Id="{number}"><Vertices>{corners}</Vertices></Region>')
    head, tail = (
        '<Annotations><Annotation Id="1"><Regions>',
        "</Regions></Annotation></Annotations>",
    )
    return "\n".join([head, *regions, tail])
