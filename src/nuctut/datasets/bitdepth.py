"""BitDepth_NucSeg: nuclei of five mouse tissues through four objectives (Mahbod et al. 2021).

On disk, as in the folder `data` of the public repository, one folder per objective ("20x",
"40x air", "40x oil", "63x oil") with three in it: `images_16bit/<key>.tif`, DAPI, 512 by 512 pixels
of uint16; `label masks modify/<key>.tif`, the curated annotation, an id for each nucleus; and
`label masks/<key>.tif`, the first annotation of the same images. What else lies there is not read.
A key is `<tissue>_<objective>_<number>`, such as "heart_40x_air_2".

It is no paper's data set in this book. It stands in for those of S-BSST265's tissues that are not
to be had, so its source is "stand-in".

**Labels** are the curated ones. `datasets.load(..., annotation="first")` gives the same images with
the first ones, which are to the curated what silver is to gold. An id that has several parts is one
nucleus in both: 14 of 3,394 ids (parts that meet at corners are one), and 283 of 3,632.

**Splits.** The publisher has none. Thirteen images show places that another one shows, too, through
another objective; `FIELDS` names those that were found. All of them are for training. Of the others
of each tissue and objective, in the order of their numbers, the last is for testing and, where
there are three images or more (those of `FIELDS` counted), the last but one for validation. So
every tissue and objective is in all three parts, but for 20×: there two images of each tissue are
one for training and one for testing, and the single one of bone is for training. Images of one
section may be on both sides, and so may fields that meet by less than was looked for: the split
measures more of the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nuctut.datasets.challenge import challenge
from nuctut.datasets.pixels import read_labels, read_tiff
from nuctut.datasets.simulated.bitdepth import (
    CURATED,
    FIRST,
    IMAGES,
    OBJECTIVES,
    SMALL_IMAGES,
    SMALL_SHAPE,
    TISSUES,
    VERSION,
    simulate_bitdepth,
)
from nuctut.datasets.spec import DatasetSpec, SmallSet, SplitCount
from nuctut.samples import Sample

KEY = re.compile(rf"({'|'.join(TISSUES)})_({'|'.join(OBJECTIVES)})_([1-9]\d*)")

COUNTS = {
    "training": SplitCount(36, 1_666),
    "validation": SplitCount(15, 495),
    "test": SplitCount(19, 1_233),
}

# Images of one place. Brought to one scale, the logarithms of their pixels, without what is smooth
# over 12 pixels at 20×, correlate by 0.8 or more where they overlap; overlaps of less than 15 % of
# the smaller one were not looked for.
FIELDS = (
    ("bone_40x_oil_4", "bone_63x_oil_6"),
    ("heart_40x_air_4", "heart_63x_oil_4"),
    ("kidney_40x_air_1", "kidney_40x_oil_1"),
    ("kidney_40x_air_3", "kidney_63x_oil_2"),
    ("muscle_40x_air_2", "muscle_40x_oil_2", "muscle_63x_oil_5"),
    ("muscle_40x_air_3", "muscle_40x_oil_3"),
)
FIELD_OF = {key: keys[0] for keys in FIELDS for key in keys}


# --- which images --------------------------------------------------------------------------------


def split_keys(folder: Path, split: str) -> list[str]:
    """The keys of a split, sorted.

    Raises:
        FileNotFoundError: When there are no images.
        ValueError: For an image with the name of none, or in the folder of another objective.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob(f"*/{IMAGES}/[!.]*.tif")):
        tissue, objective, _ = _parts(path.stem)
        if path != folder / _file(IMAGES, path.stem):
            raise ValueError(f"{path} lies among images of another objective: move it.")
        alike.setdefault((tissue, objective), []).append(path.stem)
    if not alike:
        raise FileNotFoundError(f"{folder} holds no images: none in */{IMAGES}/.")
    splits = {key: name for keys in alike.values() for key, name in _divided(keys).items()}
    return sorted(key for key, name in splits.items() if name == split)


def _divided(keys: list[str]) -> dict[str, str]:
    """The split of each image of one tissue and objective."""
    free = sorted((key for key in keys if key not in FIELD_OF), key=lambda key: _parts(key)[2])
    held_out = free[::-1][: min(len(keys) - 1, 2)]
    return dict.fromkeys(keys, "training") | dict(
        zip(held_out, ("test", "validation"), strict=False)
    )


def _parts(key: str) -> tuple[str, str, int]:
    """Tissue, objective and number.

    Raises:
        ValueError: For a name that is no image's.
    """
    found = KEY.fullmatch(key)
    if not found:
        raise ValueError(
            f"{key}.tif is no image of bitdepth_nucseg: expected is <tissue>_<objective>_<number> "
            f"with one of {', '.join(TISSUES)} and one of {', '.join(OBJECTIVES)}."
        )
    return found[1], found[2], int(found[3])


def _file(kind: str, key: str) -> str:
    """A file of a key below the folder; `kind` is the folder in that of its objective."""
    return f"{OBJECTIVES[_parts(key)[1]]}/{kind}/{key}.tif"


def files(folder: Path, key: str) -> list[str]:
    """The image, the curated and the first annotation of a key, below the folder."""
    return [_file(kind, key) for kind in (IMAGES, CURATED, FIRST)]


def strays(folder: Path) -> Iterator[str]:
    """Labels without an image, and first annotations that cannot be read, which `read` does not."""
    for kind in (CURATED, FIRST):
        for path in sorted(folder.glob(f"*/{kind}/[!.]*.tif")):
            image = path.parents[1] / IMAGES / path.name
            if not image.exists():
                yield f"{path} has no image {image}."
            elif kind == FIRST:
                curated = path.parents[1] / CURATED / path.name
                try:
                    read_labels(path, read_tiff(curated).shape)
                except (OSError, ValueError) as error:
                    yield str(error)


# --- one image -----------------------------------------------------------------------------------


def read(folder: Path, key: str) -> Sample:
    """Reads one image with its curated annotation.

    Returns:
        A sample with image (H, W) uint16, labels (H, W) int32 and the tags "tissue", "objective"
        ("20x", "40x air", …), "magnification", "challenge" (see `challenge`; of the curated labels,
        also with the first ones) and, of an image whose place others show, "field", a name that
        they share.

    Raises:
        FileNotFoundError: When a file is missing.
        ValueError: When one cannot be read or is not what it should be; both name the file.
    """
    path = folder / _file(IMAGES, key)
    image = read_tiff(path)
    if image.ndim != 2 or image.dtype != np.uint16:
        raise ValueError(
            f"{path} should hold one uint16 plane, not {image.dtype} of shape {image.shape}: the "
            "file is damaged or not of this data set."
        )
    labels = read_labels(folder / _file(CURATED, key), image.shape)
    tissue, objective, _ = _parts(key)
    tags = {
        "tissue": tissue,
        "objective": OBJECTIVES[objective],
        "magnification": objective.partition("_")[0],
        "challenge": challenge(image, labels),
    }
    if key in FIELD_OF:
        tags["field"] = FIELD_OF[key]
    return Sample(key, image, labels, tags)


def read_first(folder: Path, key: str) -> Sample:
    """As `read`, with the first annotation in place of the curated one."""
    curated = read(folder, key)
    labels = read_labels(folder / _file(FIRST, key), curated.image.shape)
    return Sample(key, curated.image, labels, curated.tags)


SPEC = DatasetSpec(
    name="bitdepth_nucseg",
    title="BitDepth_NucSeg: nuclei of five mouse tissues through four objectives",
    homepage="https://github.com/masih4/BitDepth_NucSeg",
    licence="Apache-2.0",
    citation=(
        "We used the data set BitDepth_NucSeg (Mahbod et al. 2021, Diagnostics 11:967), with the "
        "licence Apache-2.0."
    ),
    base_url="https://github.com/masih4/BitDepth_NucSeg/",
    archives=(),
    unpacked_bytes=40_000_000,
    counts=COUNTS,
    parts=tuple(OBJECTIVES.values()),
    split_keys=split_keys,
    files=files,
    read=read,
    strays=strays,
    simulate=simulate_bitdepth,
    small=SmallSet(SMALL_IMAGES, SMALL_SHAPE, VERSION),
    by_hand=(
        "no checked archive of it is known. Clone https://github.com/masih4/BitDepth_NucSeg and "
        f"copy the folders {', '.join(OBJECTIVES.values())} from its folder data there (from "
        "data/data.zip, where they are packed)."
    ),
    stand_in=True,
    annotations={"first": read_first},
)
