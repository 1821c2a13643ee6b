"""Which method for images of one's own: all of the book's on images that somebody has outlined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from skimage.segmentation import relabel_sequential
from tqdm.auto import tqdm

from nuctut.comparison import FEWEST, LEVEL, METRICS, difference, estimate
from nuctut.experiments.common_ground import Method, row
from nuctut.files import replacing
from nuctut.own_images.images import SUFFIXES, opened
from nuctut.own_images.predict import sentence
from nuctut.records import Row, per_image, seconds_per_megapixel
from nuctut.samples import Sample

TABLE, BY_IMAGE = "judged.csv", "judged_by_image.csv"
ENDINGS = ("", "_labels")  # of a label file's name, after that of its image
OURS = ("_labels", "_overlay")  # endings of what is no image


@dataclass(frozen=True)
class Judged:
    """What became of the images, and of the methods.

    Attributes:
        rows: By method, what `records.image_row` keeps of each image.
        failed: Images that were not judged, by name, and why in one sentence.
    """

    rows: Mapping[str, Sequence[Row]]
    failed: Mapping[str, str]

    @property
    def images(self) -> int:
        """How many were judged."""
        return len(next(iter(self.rows.values())))

    @property
    def enough(self) -> bool:
        """Whether they are enough to say anything of others."""
        return self.images >= FEWEST

    def table(self) -> pd.DataFrame:
        """A line per method, highest F1 first.

        Returns:
            method, sees (how it was shown the images), `seconds_per_megapixel`, and each of
            `METRICS` with the ends of its interval, `…_low` and `…_high`: NaN of too few images.
        """
        lines = []
        for method, rows in self.rows.items():
            sees = ", ".join(sorted({one["tags"]["sees"] for one in rows}))
            line = {"method": method, "sees": sees}
            line["seconds_per_megapixel"] = seconds_per_megapixel(rows)
            for metric in METRICS:
                found = estimate(rows, metric)
                ends = found.interval(LEVEL) if self.enough else (math.nan, math.nan)
                line |= {metric: found.value, f"{metric}_low": ends[0], f"{metric}_high": ends[1]}
            lines.append(line)
        table = pd.DataFrame(lines).sort_values("f1_50", ascending=False, kind="stable")
        return table.reset_index(drop=True)

    def by_image(self) -> pd.DataFrame:
        """A line per method and image: method, image, and each of `METRICS`."""
        lines = []
        for method, rows in self.rows.items():
            names = {"method": method, "image": [one["key"] for one in rows]}
            lines.append(pd.DataFrame(names | {m: per_image(rows, m) for m in METRICS}))
        return pd.concat(lines, ignore_index=True)


def judge(
    images: Path,
    labels: Path,
    methods: Mapping[str, Method],
    *,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> Judged:
    """Every method on every image that has labels; what is wrong with one costs no other.

    Methods that know nuclei of one size are shown the images at that size, which the labels tell.

    Args:
        images: Folder of images, each of one page.
        labels: Folder of their labels, an integer for each nucleus and 0 for the background: of
            `x.tif`, `x.png` and the like, or `x_labels.tif` as `nuctut predict` writes it.
        methods: See `common_ground.methods`.
        progress: Show a progress bar.
        tell: Called with "image: why it failed" as soon as that is known.

    Raises:
        ValueError: When a folder is none, or not one image could be judged.
    """
    samples, failed = [], {}
    for path in _images(images):
        try:
            samples.append(_read(path, _labels_of(path, labels)))
        except Exception as error:  # whatever it is, it is this file's
            failed[path.name] = sentence(error, path.parent)
            tell(f"{path.name}: {failed[path.name]}")
    if not samples:
        raise ValueError(f"No image of {images} has labels in {labels} that fit: see above.")
    rows: dict[str, list[Row]] = {name: [] for name in methods}
    for name, method in tqdm(methods.items(), "methods", disable=not progress):
        rows[name] = [row(method, sample, method.way()) for sample in samples]
    return Judged(rows, failed)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: --images takes a folder of images.")
    paths = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not path.stem.endswith(OURS)
    ]
    if not paths:
        raise ValueError(f"{folder} holds no images; expected files that end in {SUFFIXES}.")
    return paths


def _labels_of(image: Path, folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: --labels takes a folder of label files.")
    wanted = [image.stem + ending for ending in ENDINGS]
    for path in sorted(folder.iterdir()):
        named = path.stem in wanted and path.suffix.lower() in SUFFIXES
        if named and not path.samefile(image):
            return path
    raise ValueError(
        f"has no labels: expected {image.stem}.tif, .png or {image.stem}_labels.tif in {folder}."
    )


def _read(image: Path, labels: Path) -> Sample:
    pixels, ids = _pixels(image), _pixels_of_labels(labels)
    if ids.shape != pixels.shape[:2]:
        raise ValueError(
            f"has {_size(pixels)} pixels, but its labels {labels.name} have {_size(ids)}: they "
            "must be of the same size."
        )
    return Sample(image.name, pixels, relabel_sequential(ids)[0].astype(np.int32))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} × {pixels.shape[0]}"


def _pixels_of_labels(path: Path) -> np.ndarray:
    try:
        ids = _one_page(path)
    except Exception as error:
        raise ValueError(f"its labels {path.name}: {sentence(error, path.parent)}") from error
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.min() < 0:
        raise ValueError(
            f"its labels {path.name} are {ids.dtype} of shape {ids.shape}: expected one plane of "
            "whole numbers, 0 for the background and one for each nucleus."
        )
    return ids.astype(np.int64)


def _pixels(path: Path) -> np.ndarray:
    """In 8 or 16 bits, as all images that the networks learned from."""
    pixels = _one_page(path)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return pixels
    pixels = pixels.astype(np.float64) - pixels.min()
    return np.rint(pixels * (65535 / max(pixels.max(), 1e-12))).astype(np.uint16)


def _one_page(path: Path) -> np.ndarray:
    with opened(path) as file, TemporaryDirectory() as folder:
        if file.pages != 1:
            raise ValueError(f"has {file.pages} pages: save the one that is labelled by itself.")
        spooled = file.spool(0, Path(folder))
        return spooled.read((0, spooled.shape[0]))


# --- what is told --------------------------------------------------------------------------------


def write(judged: Judged, out: Path) -> list[Path]:
    """Both tables as CSV files in a folder, which is made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    made = {out / TABLE: judged.table(), out / BY_IMAGE: judged.by_image()}
    for path, table in made.items():
        with replacing(path) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    return list(made)


def summary(judged: Judged) -> list[str]:
    """Lines to print below the table: what to take, and how far that is to be trusted."""
    best, *others = judged.table()["method"]
    if not judged.enough:
        images = "1 image is" if judged.images == 1 else f"{judged.images} images are"
        return [
            f"{images} too few to say anything of others: the numbers hold for these alone, and "
            f"have no intervals. Outline nuclei in at least {FEWEST}."
        ]
    level = [name for name in others if _level(judged, name, best)]
    lines = [f"Highest F1 on {judged.images} images: {best}."]
    if level:
        lines.append(f"Not to be told apart from it (95 %): {', '.join(level)}.")
        fastest = min([best, *level], key=lambda name: seconds_per_megapixel(judged.rows[name]))
        lines.append(f"The fastest of these: {fastest}.")
    return lines


def _level(judged: Judged, one: str, best: str) -> bool:
    low, high = difference(judged.rows[one], judged.rows[best], "f1_50").interval(LEVEL)
    return low <= 0 <= high
