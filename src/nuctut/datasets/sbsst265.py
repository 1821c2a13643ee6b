"""S-BSST265: nuclei of many specimens, prepared in five ways (Kromp et al. 2019; CC0).

On disk, as the publisher's archive unpacks: `rawimages/<key>.tif`, grey in one plane or repeated as
RGB or RGBA; `groundtruth/<key>.tif`, an id for each nucleus; `image_description.csv`, a line for
each image, with semicolons between its columns and commas in its numbers. Other folders of the
archive are not read.

There are two data sets of this layout. `SPEC` is the archive, 79 images. `NEUROBLASTOMA` is what
can be had of it elsewhere, images 0 to 17 of neuroblastoma: 17 from JPEG copies and one from TIFF,
with labels that were rebuilt from the publisher's drawings of the outlines. It holds the paper's
whole test set for neuroblastoma, nucleus for nucleus.

**Splits.** The paper uses 53 images, of which it names none. They follow from its counts (Kromp et
al. 2019, "Dataset description", Tables III and IV) and the csv:

- The 42 images that the csv calls "train" are the paper's training and validation images. Which
  were for validation it does not say: here it is `VALIDATION`, of each diagnosis and preparation,
  in the order of their numbers, the second and then every fifth.
- The 11 images `TEST` are its test images: the next ones by number of each specimen. Only so there
  are 6, 4 and 1 of HaCaT, neuroblastoma and ganglioneuroma, 5 cytospins and 1 of grown cells, 3
  touch imprints and 1 of bone marrow. Of neuroblastoma the nuclei were counted too: 218, of which
  94 in touch imprints, 124 in bone marrow, as the paper has it. The other seven are inferred.
- The split "other" is the rest of the csv's "test", which the paper does not use.

**Unsure.** Of images 0 to 15 of neuroblastoma the paper counts 8 (390 nuclei) as bone marrow and 8
(310) as touch imprints; by the csv there are 11 (550) and 5 (150), and tags go by the csv. The sum,
700 nuclei, agrees, and so does the test set: the difference is in the training images. The paper
gives ganglioneuroma 10×, the csv 20×.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nuctut.datasets.challenge import challenge
from nuctut.datasets.checking import plain_names
from nuctut.datasets.pixels import read_labels, read_tiff
from nuctut.datasets.simulated.sbsst265 import (
    SMALL_IMAGES,
    SMALL_SHAPE,
    VERSION,
    simulate_sbsst265,
)
from nuctut.datasets.spec import Archive, DatasetSpec, SmallSet, SplitCount
from nuctut.files import read_text, shown
from nuctut.samples import Sample

IMAGES, LABELS, TABLE = "rawimages", "groundtruth", "image_description.csv"
ONE_SPECIMEN = "Neuroblastoma_"  # how keys of the part at hand begin

TEST = (
    "Ganglioneuroblastoma_4",
    *(f"Neuroblastoma_{number}" for number in range(12, 16)),
    *(f"normal_{number}" for number in range(26, 32)),
)
VALIDATION = (
    "Ganglioneuroblastoma_1",
    *(f"Neuroblastoma_{number}" for number in (2, 6, 8)),
    *(f"normal_{number}" for number in (1, 4, 12, 16, 20)),
)

# What the csv says, and what the paper calls it.
SPECIMENS = {
    "Ganglioneuroblastoma": "ganglioneuroma",
    "Neuroblastoma": "neuroblastoma",
    "normal (HaCaT)": "HaCaT",
    "Wilms": "Wilms tumour",
}
PREPARATIONS = {
    "tissue section": "tissue section",
    "BM cytospin": "bone marrow cytospin",
    "Tumor touch imprint": "touch imprint",
    "cellline cytospin": "cell line cytospin",
    "cellline grown": "cell line grown",
}
SUGGESTED = ("train", "test")


# --- which images --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One line of the csv."""

    line: int
    key: str
    diagnosis: str
    preparation: str
    suggested: str
    test_class: str
    magnification: str
    microscope: str
    signal_to_noise: float

    @property
    def split(self) -> str:
        if self.suggested == "train":
            return "validation" if self.key in VALIDATION else "training"
        return "test" if self.key in TEST else "other"

    @property
    def tags(self) -> dict[str, str]:
        tags = {
            "specimen": SPECIMENS[self.diagnosis],
            "diagnosis": self.diagnosis,
            "preparation": PREPARATIONS[self.preparation],
            "magnification": self.magnification,
            "microscope": self.microscope,
            "signal to noise": f"{self.signal_to_noise:g}",
        }
        return tags | ({} if self.test_class == "-" else {"test class": self.test_class})


COLUMNS = {
    "key": "Image_Name",
    "diagnosis": "Diagnosis",
    "preparation": "Preparation",
    "suggested": "Train-/Testset split",
    "test_class": "Testset class",
    "magnification": "Magnification",
    "microscope": "Modality",
    "signal_to_noise": "Signal/Noise",
}
KNOWN = {"diagnosis": SPECIMENS, "preparation": PREPARATIONS, "suggested": SUGGESTED}


def split_keys(folder: Path, split: str, begin: str = "") -> list[str]:
    """The keys of a split, sorted.

    Args:
        folder: Of the data set.
        split: "training", "validation", "test" or "other".
        begin: How the keys of the data set begin, where it is a part of the archive.

    Raises:
        FileNotFoundError: When the csv is missing, or an image that it describes.
        ValueError: When the csv cannot be read, or an image is there that it does not describe;
            both name the file, the second also the line where there is one.
    """
    rows = {key: row for key, row in _rows(folder).items() if key.startswith(begin)}
    if not rows:
        raise ValueError(f"{folder / TABLE} describes no image{begin and f' {begin}…'}.")
    images = {
        path.stem for path in (folder / IMAGES).glob("*.tif") if not path.name.startswith(".")
    }
    for key in sorted(rows.keys() - images):
        raise FileNotFoundError(
            f"{folder / TABLE}, line {rows[key].line}, describes {key}, but there is no image "
            f"{folder / IMAGES / key}.tif."
        )
    for key in sorted(images - rows.keys()):
        raise ValueError(
            f"{folder / IMAGES / key}.tif is no image of this data set that {TABLE} describes: "
            "add its line, or move it away."
        )
    return sorted(key for key, row in rows.items() if row.split == split)


def files(folder: Path, key: str) -> list[str]:
    """The image, its labels and the csv, below the folder."""
    return [f"{IMAGES}/{key}.tif", f"{LABELS}/{key}.tif", TABLE]


def strays(folder: Path) -> Iterator[str]:
    """Labels without an image."""
    for path in sorted((folder / LABELS).glob("[!.]*.tif")):
        if not (folder / IMAGES / path.name).exists():
            yield f"{path} has no image {path.name} in {folder / IMAGES}."


def _rows(folder: Path) -> dict[str, _Row]:
    """The lines of the csv by key.

    Raises:
        FileNotFoundError: When there is no csv.
        ValueError: Naming it and the line that cannot be understood.
    """
    path = folder / TABLE
    try:
        text = read_text(path).removeprefix("\ufeff")
        lines = csv.DictReader(io.StringIO(text), delimiter=";", restval="")
        if not set(COLUMNS.values()) <= set(lines.fieldnames or ()):
            raise ValueError(
                f"{path} should have the columns {', '.join(COLUMNS.values())}, "
                f"not {shown(lines.fieldnames)}."
            )
        rows = [_row(path, lines.line_num, line) for line in lines]
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing: it describes the images.") from None
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read, it is damaged ({error}).") from error
    plain_names([row.key for row in rows], path)
    return {row.key: row for row in rows}


def _row(path: Path, number: int, line: dict[str, str]) -> _Row:
    values = {name: line[column].strip() for name, column in COLUMNS.items()}
    origin = f"{path}, line {number} ({values['key'][:64]})"
    for name, known in KNOWN.items():
        if values[name] not in known:
            raise ValueError(
                f"{origin}: {COLUMNS[name]} is {shown(values[name])}, expected is one of "
                f"{', '.join(known)}."
            )
    ratio = values.pop("signal_to_noise")
    try:
        return _Row(number, **values, signal_to_noise=float(ratio.replace(",", ".")))
    except ValueError as error:
        raise ValueError(
            f"{origin}: {COLUMNS['signal_to_noise']} is {shown(ratio)}, expected is a number with "
            "a decimal comma."
        ) from error


# --- one image -----------------------------------------------------------------------------------


def read(folder: Path, key: str) -> Sample:
    """Reads one image and the nuclei marked in it.

    An id that has several parts is one nucleus.

    Returns:
        A sample with image (H, W) uint8 or uint16, labels (H, W) int32 and the tags "specimen" and
        "preparation" in the paper's words, "diagnosis", "magnification", "microscope" ("FM", "LSM")
        and "signal to noise" in the csv's, "test class" where the csv has one, and "challenge"
        (see `challenge`). Nothing says which images are of one slide or patient, so there is no
        tag for it: each is drawn by itself.

    Raises:
        FileNotFoundError: When a file is missing.
        ValueError: When one cannot be read or is not what it should be; both name the file.
    """
    row = _rows(folder).get(key)
    if row is None:
        raise ValueError(f"{folder / TABLE} does not describe {key}.")
    image_path, labels_path = folder / IMAGES / f"{key}.tif", folder / LABELS / f"{key}.tif"
    image = _grey(image_path)
    labels = read_labels(labels_path, image.shape)
    return Sample(key, image, labels, row.tags | {"challenge": challenge(image, labels)})


def _grey(path: Path) -> np.ndarray:
    """The one plane of an image that may be written as three equal ones, with or without alpha."""
    image = read_tiff(path)
    planes = 1 if image.ndim == 2 else image.shape[-1]
    if image.dtype not in (np.uint8, np.uint16) or image.ndim > 3 or planes not in (1, 3, 4):
        raise ValueError(
            f"{path} should hold grey, RGB or RGBA in 8 or 16 bits, not {image.dtype} of "
            f"{image.shape}: the file is damaged or not of this data set."
        )
    if image.ndim == 2:
        return image
    if (image[..., :3] != image[..., :1]).any():
        raise ValueError(
            f"{path} is coloured, and images of this data set are grey: of which channel the "
            "nuclei are is not known. Fetch the data again, or save the right channel alone."
        )
    if planes == 4 and image[..., 3].min() != image[..., 3].max():
        raise ValueError(
            f"{path} is transparent in places: what it shows there is not known. Fetch the data "
            "again, or save the file without transparency."
        )
    return np.ascontiguousarray(image[..., 0])


# --- the whole, and the part at hand -------------------------------------------------------------

CITATION = (
    "We used image set S-BSST265 (Kromp et al. 2020), An annotated fluorescence image dataset for "
    "training nuclear segmentation methods, BioStudies."
)

SPEC = DatasetSpec(
    name="sbsst265",
    title="S-BSST265: nuclei of tumours and cell lines, prepared in five ways",
    homepage="https://www.ebi.ac.uk/biostudies/studies/S-BSST265",
    licence="CC0 1.0",
    citation=CITATION,
    base_url="https://www.ebi.ac.uk/biostudies/files/S-BSST265/",
    archives=(
        Archive(
            "dataset.zip",
            300_000_000,  # a guess: the checksum is known, the size is not
            "8285987ed4d57c46a46a55a33c1c085875ea41f429b59cde31d249741aa07ad1",
            exact=False,
        ),
    ),
    unpacked_bytes=1_000_000_000,  # a guess, too
    counts={
        "training": SplitCount(33, None),
        "validation": SplitCount(9, None),
        "test": SplitCount(11, None),  # 750 in the paper
        "other": SplitCount(26, None),
    },
    parts=(IMAGES, LABELS, TABLE),
    split_keys=split_keys,
    files=files,
    read=read,
    strays=strays,
    simulate=simulate_sbsst265,
    small=SmallSet(SMALL_IMAGES, SMALL_SHAPE, VERSION),
)

NEUROBLASTOMA = DatasetSpec(
    name="sbsst265_neuroblastoma",
    title="S-BSST265, neuroblastoma alone (JPEG copy, labels rebuilt)",
    homepage=SPEC.homepage,
    licence=SPEC.licence,
    citation=f"{CITATION} Its images of neuroblastoma, from JPEG copies, with labels rebuilt from "
    "the publisher's drawings.",
    base_url=SPEC.base_url,
    archives=(),
    unpacked_bytes=7_000_000,
    counts={
        "training": SplitCount(9, 356),
        "validation": SplitCount(3, 126),
        "test": SplitCount(4, 218),
        "other": SplitCount(2, 27),
    },
    parts=SPEC.parts,
    split_keys=partial(split_keys, begin=ONE_SPECIMEN),
    files=files,
    read=read,
    strays=strays,
    simulate=partial(simulate_sbsst265, begin=ONE_SPECIMEN),
    small=SmallSet(SMALL_IMAGES, SMALL_SHAPE, VERSION),
    by_hand=(
        f"no checked file of it is offered. Put {IMAGES}/{ONE_SPECIMEN}0.tif to 17.tif, their "
        f"label images in {LABELS}/, and {TABLE} there; data/README.md says from where. Or run "
        "`nuctut data fetch sbsst265`, which has the publisher's own files of all specimens."
    ),
)
