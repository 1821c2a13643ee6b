"""DSB2018 (BBBC038v1): nuclei of many kinds, from the 2018 Data Science Bowl (CC0).

On disk, as the publisher's files unpack: `stage1_train/<id>/images/<id>.png` with one 0/255 PNG
per nucleus in `stage1_train/<id>/masks/`; `stage1_test/<id>/images/<id>.png`; and the nuclei of
the test images as run lengths in `stage1_solution.csv`.

The publisher has no validation split: ours are the sorts of image in stage1_train that `HELD_OUT`
names.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from nuctut.datasets.checking import plain_names
from nuctut.datasets.pixels import as_rgb, read_png
from nuctut.datasets.simulated.canvas import validate
from nuctut.datasets.simulated.dsb2018 import (
    SMALL_IMAGES,
    SMALL_SHAPE,
    VERSION,
    simulate_dsb2018,
)
from nuctut.datasets.simulated.kinds import kind_of
from nuctut.datasets.spec import Archive, DatasetSpec, SmallSet, SplitCount
from nuctut.files import read_text, shown
from nuctut.samples import Sample

TRAIN, TEST, SOLUTION = "stage1_train", "stage1_test", "stage1_solution.csv"
COLUMNS = ("ImageId", "EncodedPixels", "Height", "Width")
MODALITIES = ("fluorescence", "stained", "bright-field")
DARK = 100  # grey values; see modality()
COLOURED = 5  # grey values; see modality()
WHITE = 34  # grey values; see sort()
INVENTED_STEP = 4  # of invented images of one sort, every fourth is for validation

# Sorts of images of stage1_train that are the validation split, all of them: none is learned from.
HELD_OUT = (
    "fluorescence 256×320",
    "fluorescence 360×360",
    "fluorescence 1040×1388",
    "stained 256×320 on white",
)

COUNTS = {
    "training": SplitCount(536, 25_281),
    "validation": SplitCount(134, 4_180),
    "test": SplitCount(65, 4_152),
}

# Test images whose field of view is in stage1_train too, about half as bright and outlined another
# time: a score on these four says what a network remembers.
ALSO_IN_TRAIN = {
    "0a849e0eb15faa8a6d7329c3dd66aabe9a294cccb52ed30a90c8ca99092ae732": (
        "7c318172e976ae5a962c9c7a4e9fe46d7fb985765ddd3a3e2108e893a90b92b2"
    ),
    "4be73d68f433869188fe5e7f09c7f681ed51003da6aa5d19ce368726d8e271ee": (
        "9cdac2870cfe65b6cb61bd151020068a3b427118a27343767b07ea39483fee32"
    ),
    "697a05c6fe4a07c601d46da80885645ad574ea19b47ee795ccff216c9f1f1808": (
        "0287e7ee5b007c91ae2bd7628d09735e70496bc6127ecb7f3dd043e04ce37426"
    ),
    "7f4cbe0b36b5d09466476a7d4e01f4f976c67872d549f4ff47b3e1e3a2b403af": (
        "abbfff07379bceb69dba41dad8b0db5eb80cc8baf3d4af87b7ee20b0dac32215"
    ),
}

# Test images of which an edge goes on in a training image, beside those of `ALSO_IN_TRAIN`.
GOES_ON_IN_TRAIN = ("1cdbfee1", "31f1fbe8", "4727d94c", "ab298b96")  # how their ids begin


# --- which images --------------------------------------------------------------------------------


def split_keys(folder: Path, split: str) -> list[str]:
    """The keys of a split: names of image folders, sorted.

    Raises:
        FileNotFoundError: When a folder is missing.
        ValueError: When the csv lists an image that is not there.
    """
    if split == "test":
        return _test_keys(folder)
    keys = _image_folders(folder / TRAIN)
    listed = listed_validation()
    if listed.isdisjoint(keys):  # invented images, which no list can know
        listed = _invented_validation(folder, keys)
    return [key for key in keys if (key in listed) == (split == "validation")]


def _invented_validation(folder: Path, keys: Sequence[str]) -> set[str]:
    """Of invented images every fourth of each modality and size."""
    alike: dict[tuple, list[str]] = {}
    for key in keys:
        image = read_image(folder, key)
        alike.setdefault((modality(image), image.shape), []).append(key)
    return {key for same in alike.values() for key in same[INVENTED_STEP - 1 :: INVENTED_STEP]}


def listed_validation() -> frozenset[str]:
    """The ids of the real validation split, as written down in `dsb2018_validation.txt`.

    They are the images of the sorts `HELD_OUT`, all of each sort, because images of one sort may be
    tiles of one field of view, and look alike where they are not. The split is to say what travels
    to images of a sort that was not learned from, as 25 of the 65 test images are.
    """
    return frozenset(_listed("dsb2018_validation.txt"))


@cache
def _fields() -> dict[str, str]:
    """The field of view of each test image that shares its field with another.

    Images are pieces of one field where the edge of one goes on at the edge of the other: the two
    rows or columns of pixels have a correlation of more than 0.95.
    """
    lines = [line.split() for line in _listed("dsb2018_fields.txt")]
    return {key: keys[0][:8] for keys in lines for key in keys}


@cache
def in_bbbc039() -> dict[str, str]:
    """The images of stage1_train that are fields of BBBC039, and the key that they have there.

    Of the 43 fields, BBBC039 has 25 in its training split, 9 in its validation and 9 in its test
    split. A score on those 9 says what a network remembers that learned from stage1_train.
    """
    return dict(line.split() for line in _listed("bbbc039_in_dsb2018.txt"))


def _listed(name: str) -> list[str]:
    text = resources.files(__package__).joinpath(name).read_text("utf-8")
    return [line for line in text.split("\n") if line and not line.startswith("#")]


def files(folder: Path, key: str) -> list[str]:
    """The files of a sample, below the folder: its image, then its masks by name, or the csv.

    Raises:
        FileNotFoundError: When nothing says where the nuclei of the image are.
    """
    image = _image_file(folder, key)
    is_test = image.startswith(TEST)
    if is_test and key in _solution_of(folder):
        return [image, SOLUTION]
    masks = image.replace(f"images/{key}.png", "masks")
    try:
        names = sorted(name for name in os.listdir(folder / masks) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    if not names:
        sources = f"no masks in {folder / masks}"
        if is_test:
            sources += f" and no line in {folder / SOLUTION}"
        raise FileNotFoundError(f"{folder / image} has no labels, {sources}: fetch the data again.")
    return [image, *(f"{masks}/{name}" for name in names)]


def _image_file(folder: Path, key: str) -> str:
    stage = TRAIN if (folder / TRAIN / key).is_dir() else TEST
    return f"{stage}/{key}/images/{key}.png"


def _image_folders(stage: Path) -> list[str]:
    if not stage.is_dir():
        raise FileNotFoundError(f"{stage} is missing: it holds a folder for each image.")
    with os.scandir(stage) as entries:
        keys = sorted(entry.name for entry in entries if entry.is_dir())
    if not keys:
        raise ValueError(f"{stage} holds no image folders.")
    return plain_names(keys, stage)


def _test_keys(folder: Path) -> list[str]:
    keys = _image_folders(folder / TEST)
    for key in sorted(_solution_of(folder).keys() - set(keys)):
        raise ValueError(
            f"{folder / SOLUTION} has nuclei for {key}, but there is no image "
            f"{folder / _image_file(folder, key)}."
        )
    return keys


# --- one image -----------------------------------------------------------------------------------


def read(folder: Path, key: str) -> Sample:
    """Reads one image and the nuclei marked in it.

    Labels are numbered in the order of the nuclei's first pixels, row by row, so that they do not
    depend on the names of mask files or the order of run lengths.

    Returns:
        A sample with image (H, W, 3) uint8, labels (H, W) int32 and the tags "modality"; "group",
        modality and size; "sort" (see there); and, of a test image that is a piece of a field of
        view of which there are others, "field", a name that they share.

    Raises:
        FileNotFoundError: When a file is missing.
        ValueError: When one cannot be read or is not what it should be; both name the file.
    """
    image = read_image(folder, key)
    _, *sources = files(folder, key)
    if sources == [SOLUTION]:
        nuclei = _nuclei_from_runs(folder, key, image.shape[:2])
    else:
        nuclei = _nuclei_from_masks([folder / name for name in sources], image.shape[:2])
    kind, (height, width, _) = modality(image), image.shape
    tags = {"modality": kind, "group": f"{kind} {height}×{width}", "sort": sort(image)}
    if key in _fields():
        tags["field"] = _fields()[key]
    return Sample(key, image, _paint(nuclei, image.shape[:2]), tags)


def read_image(folder: Path, key: str) -> np.ndarray:
    """The image of a key as (H, W, 3) uint8, whatever form its file has: see `pixels.as_rgb`.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it cannot be read or is no such image; both name it.
    """
    path = folder / _image_file(folder, key)
    return as_rgb(read_png(path), path)


def modality(image: np.ndarray) -> str:
    """How an image was made, told from its pixels alone.

    With the brightness of a pixel as the mean of its channels, and its colour as the largest
    minus the smallest of them:

    - "fluorescence" when the median brightness is below 100: nuclei on a dark ground;
    - "stained" when it is not, and the mean colour is at least 5: H&E and other dyes;
    - "bright-field" when it is not, and the mean colour is below 5: grey on a bright ground.

    Neither threshold is near any real image: median brightness is at most 63 on dark grounds and
    at least 149 on bright ones; mean colour is 0 in grey images and at least 11.9 in the others.

    Args:
        image: (H, W, 3) uint8.
    """
    # sums of three channels fit into uint16, and are faster than means
    if np.median(image.sum(axis=2, dtype=np.uint16)) < 3 * DARK:
        return "fluorescence"
    colour = image.max(axis=2) - image.min(axis=2)
    return "stained" if colour.mean() >= COLOURED else "bright-field"


def sort(image: np.ndarray) -> str:
    """Which images are alike: of one modality and size, such as "fluorescence 256×320".

    Stained ones also by the colour of the ground, the median of each channel: "on white" where
    these are less than 34 apart, else "on purple" where there is less red than blue in it, else
    "on pink". A piece without much ground may be told another colour than the rest of its field.

    Args:
        image: (H, W, 3) uint8.
    """
    kind = modality(image)
    name = f"{kind} {image.shape[0]}×{image.shape[1]}"
    if kind != "stained":
        return name
    red, green, blue = np.median(image, axis=(0, 1))
    if max(red, green, blue) - min(red, green, blue) < WHITE:
        return f"{name} on white"
    return f"{name} on {'purple' if red < blue else 'pink'}"


# --- nuclei --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Nucleus:
    """One nucleus: the flat indices of its pixels, ascending, and where it was read from."""

    pixels: np.ndarray
    origin: str


def _nuclei_from_masks(masks: Sequence[Path], shape: tuple[int, int]) -> Iterator[_Nucleus]:
    for path in masks:
        mask = read_png(path)
        if mask.shape != shape:
            raise ValueError(f"{path} has shape {mask.shape}, but its image has {shape}.")
        inside = mask > 0
        pixels = np.flatnonzero(inside)
        if not pixels.size:
            raise ValueError(f"{path} marks no pixel: an empty mask is no nucleus, remove it.")
        if mask.dtype != np.uint8 or mask.ravel()[pixels].min() != 255:
            raise ValueError(f"{path} holds other values than 0 and 255 in 8 bits.")
        yield _Nucleus(pixels, str(path))


def _nuclei_from_runs(folder: Path, key: str, shape: tuple[int, int]) -> Iterator[_Nucleus]:
    for row in _solution_of(folder)[key]:
        origin = f"{folder / SOLUTION}, line {row.line} ({key})"
        if (row.height, row.width) != shape:
            raise ValueError(
                f"{origin} is for an image of {row.height} × {row.width}, but the image has "
                f"{shape[0]} × {shape[1]}."
            )
        try:
            yield _Nucleus(decode_runs(row.runs, shape), origin)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error


def decode_runs(text: str, shape: tuple[int, int]) -> np.ndarray:
    """The pixels of a nucleus from its run lengths.

    Args:
        text: "start length start length …": pixels counted from 1 down the columns, left to
            right; runs ascending, and none beginning before the last has ended.
        shape: (H, W) of the image.

    Returns:
        Ascending int64 indices into the image's pixels row by row, counted from 0.

    Raises:
        ValueError: For anything else, saying what.
    """
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"run lengths are whole numbers, which {text[:40]!r} is not.") from error
    if not numbers:
        raise ValueError("there are no run lengths: an empty nucleus is none, remove the line.")
    if len(numbers) % 2:
        raise ValueError(
            f"run lengths come in pairs of start and length, here are {len(numbers)} numbers."
        )
    if min(numbers) < 1:
        raise ValueError("run lengths count pixels from 1, and no run is shorter than one pixel.")
    height, width = shape
    if max(numbers) > height * width or numbers[-2] + numbers[-1] - 1 > height * width:
        raise ValueError(f"a run ends past the image's end at pixel {height * width:,}.")
    starts = np.array(numbers[::2]) - 1
    ends = starts + numbers[1::2]
    if (starts[1:] < ends[:-1]).any():
        raise ValueError("the runs are not in ascending order, or run into each other.")
    down = np.concatenate([np.arange(*run) for run in zip(starts, ends, strict=True)])
    return np.sort(down % height * width + down // height)


def _paint(nuclei: Iterable[_Nucleus], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) int32 labels, numbered in the order of the nuclei's first pixels.

    Raises:
        ValueError: Where two nuclei overlap, naming both.
    """
    ordered = sorted(nuclei, key=lambda nucleus: int(nucleus.pixels[0]))
    labels = np.zeros(shape, np.int32)
    flat = labels.ravel()
    for number, nucleus in enumerate(ordered, start=1):
        taken = flat[nucleus.pixels]
        if taken.any():
            other = ordered[int(taken.max()) - 1].origin
            raise ValueError(
                f"{nucleus.origin} overlaps {other} in {np.count_nonzero(taken):,} pixels: "
                "a pixel belongs to one nucleus. Correct one of them."
            )
        flat[nucleus.pixels] = number
    return labels


# --- the csv of the test images ------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One line of the csv."""

    line: int
    runs: str
    height: int
    width: int


def _solution_of(folder: Path) -> Mapping[str, list[_Row]]:
    """The lines of the csv by image id; nothing where there is no csv."""
    path = folder / SOLUTION
    if not path.is_file():
        return {}
    stamp = path.stat()
    return _solution(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=4)
def _solution(path: Path, modified: int, size: int) -> Mapping[str, list[_Row]]:
    """Reads the csv once for as long as its file does not change."""
    lines = io.StringIO(read_text(path))
    try:
        return _rows(path, csv.DictReader(lines, restval=""))
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read, it is damaged ({error}): fetch the data again."
        ) from error


def _rows(path: Path, lines: csv.DictReader) -> dict[str, list[_Row]]:
    if not set(COLUMNS) <= set(lines.fieldnames or ()):
        raise ValueError(
            f"{path} should have the columns {', '.join(COLUMNS)}, not {shown(lines.fieldnames)}."
        )
    rows: dict[str, list[_Row]] = {}
    for line in lines:
        key, runs, height, width = (line[name] for name in COLUMNS)
        try:
            row = _Row(lines.line_num, runs, int(height), int(width))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {lines.line_num} ({key[:64]}) is cut off or damaged: "
                f"height {shown(height)}, width {shown(width)}."
            ) from error
        rows.setdefault(key, []).append(row)
    return rows


# --- the whole -----------------------------------------------------------------------------------


def strays(folder: Path) -> Iterator[str]:
    """Images that no key leads to: beside the image of a folder, or under another name."""
    for path in sorted(folder.glob("stage1_*/*/images/[!.]*")):
        if path.stem != path.parent.parent.name or path.suffix != ".png":
            yield f"{path} is not the image of its folder, {path.parent.parent.name}.png."


def simulate(folder: Path, *, images: Mapping[str, int], shape: tuple[int, int], seed: int) -> Path:
    """Writes simulated images, as `simulate_dsb2018` does, whose splits have these numbers.

    Raises:
        ValueError: When the rule of the validation split gives another number.
        FileExistsError: When the folder exists.
    """
    validate(images, shape, seed)
    count = images["training"] + images["validation"]
    kinds = Counter((kind_of(i).modality, kind_of(i).scale) for i in range(count))
    given = sum(number // INVENTED_STEP for number in kinds.values())
    if given != images["validation"]:
        raise ValueError(
            f"Of {count} images outside the test split the rule takes {given} for validation, "
            f"not {images['validation']}: ask for {count - given} and {given}."
        )
    return simulate_dsb2018(folder, images=images, shape=shape, seed=seed)


SPEC = DatasetSpec(
    name="dsb2018",
    title="DSB2018 (BBBC038v1): nuclei of many kinds, 2018 Data Science Bowl",
    homepage="https://bbbc.broadinstitute.org/BBBC038",
    licence="CC0 1.0",
    citation=(
        "We used image set BBBC038v1 (Caicedo et al. 2019), available from the "
        "Broad Bioimage Benchmark Collection (Ljosa et al., Nature Methods, 2012)."
    ),
    base_url="https://data.broadinstitute.org/bbbc/BBBC038/",
    archives=(
        Archive(
            "stage1_train.zip",
            82_900_000,
            "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
            exact=False,
            folder=TRAIN,
        ),
        Archive(
            "stage1_test.zip",
            9_500_000,
            "c097954151884341448a5c77aab21f581815ad9cad203ff2ff38d6947c9f0733",
            exact=False,
            folder=TEST,
        ),
        Archive(
            SOLUTION,
            1_189_505,
            "b697d9ae093d72079f45adea7e9823204d3f67dd5ab657f68ce86ab988fc32f9",
        ),
    ),
    unpacked_bytes=100_000_000,
    counts=COUNTS,
    parts=(TRAIN, TEST),
    split_keys=split_keys,
    files=files,
    read=read,
    strays=strays,
    simulate=simulate,
    small=SmallSet(SMALL_IMAGES, SMALL_SHAPE, VERSION),
    read_image=read_image,
)
