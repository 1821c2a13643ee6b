"""Invented images in the layout of S-BSST265, so that its loader reads them.

They have names of real images, and with them their lines of the csv, so that the loader's rule
divides them as it divides the real ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nuctut.datasets.simulated import preparations
from nuctut.datasets.simulated.canvas import OFFSET, new_set, write_tiff
from nuctut.datasets.simulated.preparations import draw

VERSION = 1  # raise it when the same seed gives other images, here, in `preparations` or `canvas`
SMALL_IMAGES = {"training": 6, "validation": 2, "test": 4, "other": 2}
SMALL_SHAPE = (160, 192)
NUCLEUS = 0.5  # pixels of a nucleus's diameter per magnification

COLUMNS = (
    "Image_Name;Diagnosis;Preparation;Train-/Testset split;Testset class;Magnification;Modality;"
    "Device;Software;Mean BG signal;Mean FG signal;Signal/Noise;S/N Class"
)

# By what the csv calls a preparation: how it looks.
LOOKS = {
    "tissue section": preparations.SECTION,
    "BM cytospin": preparations.MARROW,
    "Tumor touch imprint": preparations.IMPRINT,
    "cellline cytospin": preparations.CYTOSPIN,
    "cellline grown": preparations.GROWN,
}

# Keys of each split in the order in which they are taken, with diagnosis and preparation.
_NB, _GNB, _HACAT = "Neuroblastoma", "Ganglioneuroblastoma", "normal (HaCaT)"
_IMPRINT, _MARROW = (_NB, "Tumor touch imprint"), (_NB, "BM cytospin")
_SECTION, _GROWN = (_GNB, "tissue section"), (_HACAT, "cellline grown")
_CYTOSPIN = (_HACAT, "cellline cytospin")
IMAGES = {
    "training": {
        "Neuroblastoma_0": _IMPRINT,
        "normal_0": _GROWN,
        "Neuroblastoma_1": _MARROW,
        "Ganglioneuroblastoma_0": _SECTION,
        "normal_2": _CYTOSPIN,
        "Neuroblastoma_3": _MARROW,
        "normal_3": _GROWN,
        "Neuroblastoma_4": _MARROW,
        "Ganglioneuroblastoma_2": _SECTION,
        "normal_5": _CYTOSPIN,
        "Neuroblastoma_5": _MARROW,
        "Neuroblastoma_7": _MARROW,
        "Neuroblastoma_9": _MARROW,
    },
    "validation": {
        "Neuroblastoma_6": _IMPRINT,
        "Ganglioneuroblastoma_1": _SECTION,
        "Neuroblastoma_2": _MARROW,
        "normal_4": _CYTOSPIN,
        "normal_1": _GROWN,
        "Neuroblastoma_8": _MARROW,
    },
    "test": {
        "Neuroblastoma_12": _IMPRINT,
        "Ganglioneuroblastoma_4": _SECTION,
        "Neuroblastoma_15": _MARROW,
        "normal_26": _CYTOSPIN,
        "normal_28": _GROWN,
        "Neuroblastoma_13": _IMPRINT,
        "Neuroblastoma_14": _IMPRINT,
    },
    "other": {
        "normal_35": _CYTOSPIN,
        "Neuroblastoma_16": _MARROW,
        "Ganglioneuroblastoma_10": _SECTION,
        "normal_34": _CYTOSPIN,
        "Neuroblastoma_17": _MARROW,
    },
}
MAGNIFICATIONS = {"normal_34": "10x", "normal_35": "40x", "Ganglioneuroblastoma_10": "63x"}


def simulate_sbsst265(
    folder: Path,
    *,
    images: Mapping[str, int] = SMALL_IMAGES,
    shape: tuple[int, int] = SMALL_SHAPE,
    seed: int = 0,
    begin: str = "",
) -> Path:
    """Writes a data set that has S-BSST265's layout and preparations; returns its folder.

    The same arguments give the same bytes. An image depends on the seed and its name, so a larger
    set holds the images of a smaller one. A marker file says that the set is simulated. The folder
    appears at the end, whole.

    Args:
        folder: Where to; must not exist.
        images: How many images in each of "training", "validation", "test" and "other".
        shape: (H, W) of the images in pixels, each at least 64.
        seed: Not negative.
        begin: How the keys begin, where only a part of the set is wanted.

    Raises:
        ValueError: For a split, shape or seed that cannot be, or more images than there are names.
        FileExistsError: When the folder exists.
    """
    about = {"images": images, "shape": shape, "seed": seed, "splits": tuple(IMAGES)}
    with new_set(folder, "S-BSST265", VERSION, **about) as made:
        lines = [COLUMNS]
        for name in ("rawimages", "groundtruth"):
            (made / name).mkdir()
        for split, count in images.items():
            named = {key: kind for key, kind in IMAGES[split].items() if key.startswith(begin)}
            if count > len(named):
                raise ValueError(
                    f"images must ask for at most {len(named)} of {split}, not {count}: simulated "
                    "images have names of real ones."
                )
            for key, kind in list(named.items())[:count]:
                lines.append(_write(made, key, split, *kind, shape, seed))
        (made / "image_description.csv").write_bytes("\n".join([*lines, ""]).encode())
    return folder


def _write(
    folder: Path,
    key: str,
    split: str,
    diagnosis: str,
    preparation: str,
    shape: tuple[int, int],
    seed: int,
) -> str:
    """Writes one image and its labels; returns its line of the csv."""
    magnification = MAGNIFICATIONS.get(key, "20x" if diagnosis == _GNB else "63x")
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    diameter = NUCLEUS * int(magnification.removesuffix("x"))
    counts, labels = draw(LOOKS[preparation], diameter, shape, rng)
    grey = np.clip((counts - float(OFFSET)) / 6, 0, 255).astype(np.uint8)
    # in the real set, too, some files repeat the one plane
    image = np.dstack([grey] * 3) if diagnosis == _GNB else grey
    write_tiff(folder / "rawimages" / f"{key}.tif", image)
    write_tiff(folder / "groundtruth" / f"{key}.tif", labels.astype(np.uint16))
    inside = labels > 0
    dark, bright = grey[~inside].mean(), grey[inside].mean()
    numbers = ";".join(f"{x:.1f}".replace(".", ",") for x in (dark, bright, bright / dark))
    suggested = "train" if split in ("training", "validation") else "test"
    return (
        f"{key};{diagnosis};{preparation};{suggested};-;{magnification};FM;simulated;nuctut;"
        f"{numbers};-"
    )
