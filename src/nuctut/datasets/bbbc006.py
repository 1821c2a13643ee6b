"""BBBC006v1: nuclei of U2OS cells at 34 distances from focus, 768 fields of view (CC0).

On disk, as the publisher's 35 archives unpack: `BBBC006_v1_images_z_<plane>/` with one TIFF for
each field and channel, 520 by 696 pixels, 12-bit values in uint16, w1 Hoechst and w2 phalloidin;
`BBBC006_v1_labels/` with one PNG of ids for each field. File names hold a uuid that differs from
plane to plane, so image and labels are joined by well and site.

The labels are not drawn by hand, as Mandal et al. say (section III.A): a CellProfiler pipeline made
them from plane 16. All planes and fields are 28 GB, so any part of them is a data set too.

Mandal et al. train and test on "independent acquisition sites", and do not say which: here site 1
of each well is for training, every tenth well of it for validation, and site 2 for the test. Both
sites of a well hold the same cells under the same treatment. Planes 11 to 23 are sharp, the others
blurred (section III.A); those of a split end in "-blurred".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from nuctut.datasets.pixels import read_labels, read_tiff
from nuctut.datasets.simulated.bbbc006 import (
    FOCUS,
    LABELS,
    PREFIX,
    SMALL_FIELDS,
    SMALL_SHAPE,
    STEP,
    VERSION,
    folder_of,
    simulate_bbbc006,
)
from nuctut.datasets.simulated.canvas import validate
from nuctut.datasets.spec import Archive, DatasetSpec, SmallSet, SplitCount
from nuctut.samples import Sample

PLANES = range(34)
SHARP = range(11, 24)
BLURRED = "-blurred"

FIELD = r"(?P<field>[a-p](?:0[1-9]|1\d|2[0-4])_s[12])"
IMAGE_NAME = re.compile(rf"{PREFIX}{FIELD}_w(?P<channel>[12])[0-9a-f-]+\.tif")
LABELS_NAME = re.compile(rf"{PREFIX}{FIELD}\.png")
KEY = re.compile(rf"z(?P<plane>\d\d)_{FIELD}")

ROWS, COLUMNS = "abcdefghijklmnop", range(1, 25)
HELD_OUT = 10  # of the wells, row by row, the images of every tenth are for validation

FIELDS = {"training": 346, "validation": 38, "test": 384}
SHA256 = {
    0: "ca6a7c023fd3258c0175ec74fe4568203fc158c5022b765e07d0b202ab5c19bc",
    15: "bf17883413e4625b942753773db53b8f30b94c8177c978402f0e29e5aef44697",
    16: "6e1515d08f6365c075e4ce813d7d1670e620b51d5b87339c7f02d9fa56313d0e",
}


# --- which images --------------------------------------------------------------------------------


def split_keys(folder: Path, split: str, planes: Iterable[int] = PLANES) -> list[str]:
    """The keys of a split: its labelled images on disk, such as "z16_a01_s1", plane by plane.

    Raises:
        FileNotFoundError: When there is no folder of labels.
        ValueError: When two files are of one image, or a stack has a hole; the message names it.
    """
    stacks, labelled = _stacks(folder), _labels(folder)
    wanted, blurred = split.removesuffix(BLURRED), split.endswith(BLURRED)
    return [
        f"z{plane:02d}_{field}"
        for plane in sorted(stacks.keys() & set(planes))
        if blurred == (plane not in SHARP)
        for field in sorted(stacks[plane].keys() & labelled.keys())
        if part_of(field) == wanted
    ]


def files(folder: Path, key: str) -> list[str]:
    """The image file of a key, and the file of its labels, below the folder.

    Raises:
        FileNotFoundError: When there is no such image.
    """
    plane, field = _parted(key)
    name = _images(folder, plane).get(field)
    if name is None:
        raise FileNotFoundError(f"{folder / folder_of(plane)} has no image of field {field}.")
    return [f"{folder_of(plane)}/{name}", f"{LABELS}/{PREFIX}{field}.png"]


def part_of(field: str) -> str:
    """The split of a field such as "a01_s1", by the rule that this module begins with."""
    well, site = field.split("_s")
    if site == "2":
        return "test"
    number = len(COLUMNS) * ROWS.index(well[0]) + int(well[1:])  # from 1
    return "training" if number % HELD_OUT else "validation"


def _parted(key: str) -> tuple[int, str]:
    found = KEY.fullmatch(key)
    if not found:
        raise ValueError(f"A key of BBBC006 is like z16_a01_s1, which {key!r} is not.")
    return int(found["plane"]), found["field"]


def _stacks(folder: Path) -> Mapping[int, Mapping[str, str]]:
    """The image of each field in each plane that is on disk.

    Raises:
        ValueError: As `split_keys` does.
    """
    planes = [plane for plane in PLANES if (folder / folder_of(plane)).is_dir()]
    stacks = {plane: _images(folder, plane) for plane in planes}
    for field in sorted(set().union(*stacks.values())):
        here = [place for place, plane in enumerate(planes) if field in stacks[plane]]
        hole = set(range(here[0], here[-1])) - set(here)
        if hole:
            raise ValueError(
                f"{folder / folder_of(planes[min(hole)])} has no image of field {field}, though "
                "planes before and after it have: fetch the plane again."
            )
    return stacks


def _images(folder: Path, plane: int) -> Mapping[str, str]:
    return _joined(folder / folder_of(plane), IMAGE_NAME)


def _labels(folder: Path) -> Mapping[str, str]:
    return _joined(folder / LABELS, LABELS_NAME)


def _joined(place: Path, pattern: re.Pattern[str]) -> Mapping[str, str]:
    """The names of a folder's files by field."""
    try:
        return _by_field(place, pattern, place.stat().st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{place} is missing.") from None


@lru_cache(maxsize=2 * len(PLANES))
def _by_field(place: Path, pattern: re.Pattern[str], modified: int) -> Mapping[str, str]:
    """Looks through a folder once for as long as no file is added or taken away."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(place)):
        match = pattern.fullmatch(name)
        if match and match.groupdict().get("channel") != "2":
            other = found.setdefault(match["field"], name)
            if other != name:
                raise ValueError(
                    f"{place} has two images of field {match['field']}, {other} and {name}: "
                    "remove one of the two."
                )
    return found


# --- one image -----------------------------------------------------------------------------------


def read(folder: Path, key: str) -> Sample:
    """Reads one image and the nuclei of its field.

    Returns:
        A sample with image (H, W) uint16, labels (H, W) int32 of the publisher's order, and the
        tags "field" (what is to be drawn together when scores are resampled: its planes show the
        same nuclei), "well", "site", "plane", "z" (µm from plane 16) and "labels", "automatic".

    Raises:
        FileNotFoundError: When one of the two files is missing.
        ValueError: When one cannot be read or is not what it should be; both name the file.
    """
    plane, field = _parted(key)
    image_path, labels_path = (folder / name for name in files(folder, key))
    image = _read_image(image_path)
    labels = read_labels(labels_path, image.shape)
    well, site = field.split("_s")
    tags = {"field": field, "well": well, "site": site, "plane": str(plane)}
    tags |= {"z": f"{STEP * (plane - FOCUS):g}", "labels": "automatic"}
    return Sample(key, image, labels, tags)


def _read_image(path: Path) -> np.ndarray:
    image = read_tiff(path)
    if image.ndim == 2 and image.dtype == np.uint8:
        raise ValueError(
            f"{path} holds 8 bits a pixel, but the camera gave 12, in a file of 16: it was "
            "converted. Take the publisher's file."
        )
    if image.ndim != 2 or image.dtype != np.uint16:
        raise ValueError(
            f"{path} should hold one uint16 plane, not {image.dtype} of shape {image.shape}: the "
            "file is damaged or not of this data set."
        )
    return image


def unlabelled(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Key and image, (H, W) uint16, of all that is on disk without labels: pictures to look at.

    Raises:
        FileNotFoundError, ValueError: As `read` and `split_keys` do.
    """
    labelled = _labels(folder)
    for plane, images in sorted(_stacks(folder).items()):
        for field in sorted(images.keys() - labelled.keys()):
            yield f"z{plane:02d}_{field}", _read_image(folder / folder_of(plane) / images[field])


# --- the whole -----------------------------------------------------------------------------------


def strays(folder: Path) -> Iterator[str]:
    """Images and labels that are of no well and site of the plate."""
    kinds = [(folder / folder_of(plane), "*.tif", IMAGE_NAME) for plane in PLANES]
    for place, glob, pattern in [*kinds, (folder / LABELS, "*.png", LABELS_NAME)]:
        for path in sorted(place.glob(glob)):
            if not (pattern.fullmatch(path.name) or path.name.startswith(".")):
                yield f"{path} is of no field of the plate: wells are a01 to p24, sites 1 and 2."


def notes(folder: Path) -> Iterator[str]:
    """Labels without a field to go with, and fields without labels, as a part of the set has."""
    shown = set().union(*_stacks(folder).values())
    labelled = set(_labels(folder))
    for fields, what in [
        (labelled - shown, "labels of fields without an image"),
        (shown - labelled, "fields without labels, which are in no split"),
    ]:
        if fields:
            more = f" and {len(fields) - 1} more" if len(fields) > 1 else ""
            yield f"{folder} has {what}: {min(fields)}{more}."


def simulate(folder: Path, *, images: Mapping[str, int], shape: tuple[int, int], seed: int) -> Path:
    """Writes simulated stacks, as `simulate_bbbc006` does, of so many fields in each split.

    Raises:
        ValueError: When the plate has fewer, or another argument cannot be.
        FileExistsError: When the folder exists.
    """
    validate(images, shape, seed)
    plate = [f"{row}{column:02d}_s{site}" for row in ROWS for column in COLUMNS for site in (1, 2)]
    fields = {split: [one for one in plate if part_of(one) == split] for split in FIELDS}
    for split, count in images.items():
        if count > len(fields[split]):
            raise ValueError(f"The {split} split has {len(fields[split])} fields, not {count}.")
        del fields[split][count:]
    return simulate_bbbc006(folder, fields=fields, shape=shape, seed=seed)


def _counts(planes: Sequence[int]) -> dict[str, SplitCount]:
    sharp = len(set(planes) & set(SHARP))
    kinds = {"": sharp, BLURRED: len(planes) - sharp}
    return {
        f"{part}{kind}": SplitCount(fields * count, None)
        for kind, count in kinds.items()
        for part, fields in FIELDS.items()
    }


def pieces(planes: Sequence[int] = PLANES) -> list[DatasetSpec]:
    """The data set plane by plane, as it is fetched: each with the labels.

    Raises:
        ValueError: For no plane, or one that there is not.
    """
    for plane in planes or [None]:
        if plane not in PLANES:
            raise ValueError(f"BBBC006 has the planes 0 to {PLANES[-1]}, but no plane {plane}.")
    return [
        replace(
            SPEC,
            archives=(_LABELS_ARCHIVE, _archive(plane)),
            unpacked_bytes=_PLANE_BYTES + _LABELS_ARCHIVE.bytes,
            counts=_counts([plane]),
            split_keys=partial(split_keys, planes=[plane]),
        )
        for plane in dict.fromkeys(planes)
    ]


_PLANE_BYTES = 840_000_000
_LABELS_ARCHIVE = Archive(
    "BBBC006_v1_labels.zip",
    10_099_211,
    "2d3ec4e5a3ec0bb94820c9bcd6f102821862f526df2552ff9065a75b1c5e33ac",
    folder=LABELS,
)


def _archive(plane: int) -> Archive:
    name = folder_of(plane)
    return Archive(f"{name}.zip", _PLANE_BYTES, SHA256.get(plane), exact=False, folder=name)


SPEC = DatasetSpec(
    name="bbbc006",
    pixel_size=0.645,  # 20×
    title="BBBC006v1: nuclei of U2OS cells, in and out of focus",
    homepage="https://bbbc.broadinstitute.org/BBBC006",
    licence="CC0 1.0",
    citation=(
        "We used image set BBBC006v1 from the Broad Bioimage Benchmark Collection "
        "(Ljosa et al., Nature Methods, 2012)."
    ),
    base_url="https://data.broadinstitute.org/bbbc/BBBC006/",
    archives=(_LABELS_ARCHIVE, *(_archive(plane) for plane in PLANES)),
    unpacked_bytes=_PLANE_BYTES * len(PLANES) + _LABELS_ARCHIVE.bytes,
    counts=_counts(PLANES),
    parts=(LABELS,),
    split_keys=split_keys,
    files=files,
    read=read,
    strays=strays,
    simulate=simulate,
    small=SmallSet(SMALL_FIELDS, SMALL_SHAPE, VERSION),
    pieces=pieces,
    notes=notes,
)
