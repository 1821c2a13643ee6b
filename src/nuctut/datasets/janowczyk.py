"""Janowczyk & Madabhushi's nuclei: 143 H&E images of which some nuclei are outlined.

On disk, as the publisher's archive unpacks into a folder `nuclei`: `<key>_original.tif`, 2000 by
2000 pixels in colour at 40×, and `<key>_mask.png`, 255 in the nuclei that somebody outlined. All
else is *unknown*, not background. A key reads `<patient>_500_f<number>`.

Mercadier et al. (section 3.1) use 141 of the images, 121 to learn from, 5 to choose on and 15 to
test on. Which, they do not say: see `split_keys`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nuctut.datasets.simulated.tissue import SMALL_SHAPE, VERSION, simulate_janowczyk
from nuctut.datasets.spec import Archive, DatasetSpec, SmallSet, SplitCount
from nuctut.datasets.stained import read_with_mask
from nuctut.samples import Sample

TOP = "nuclei"
IMAGE, MASK = "_original.tif", "_mask.png"
NAME = re.compile(r"([A-Za-z0-9]+)_500_f\d+")
COUNTS = {
    "training": SplitCount(121, None),
    "validation": SplitCount(5, None),
    "test": SplitCount(15, None),
}


def split_keys(folder: Path, split: str) -> list[str]:
    """The keys of a split, sorted.

    Patients are put in an order of chance that never changes, that of the sha256 of their names.
    In it, they fill first "test" (15 images), then "validation" (5), then "training" (121); one
    with more images than there is room for is passed over for the next split. What is left, two
    images of the 143, is in no split. So no patient is in two.

    Invented patients have the split in their name.

    Raises:
        FileNotFoundError: When the folder of the images is missing.
        ValueError: When it holds none, or one whose name is no key.
    """
    place = folder / TOP
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is missing: it holds <key>{IMAGE} and <key>{MASK}.")
    keys = sorted(_keys(place, IMAGE))
    if not keys:
        raise ValueError(f"{place} holds no images <key>{IMAGE}.")
    if invented := [key for key in keys if key.startswith(split)]:
        return invented
    return _deal(keys)[split]


def patient(key: str) -> str:
    """Whose tissue an image shows: what its key begins with."""
    return key.partition("_")[0]


def _deal(keys: Sequence[str]) -> dict[str, list[str]]:
    """The keys of each split, all of a patient in one."""
    dealt: dict[str, list[str]] = {}
    patients = sorted(
        set(map(patient, keys)), key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    for split in ("test", "validation", "training"):
        dealt[split] = []
        for name in list(patients):
            own = [key for key in keys if patient(key) == name]
            if len(dealt[split]) + len(own) <= COUNTS[split].images:
                dealt[split] += own
                patients.remove(name)
    return {split: sorted(own) for split, own in dealt.items()}


def _keys(place: Path, end: str) -> set[str]:
    keys = {path.name.removesuffix(end) for path in place.glob(f"[!.]*{end}")}
    for key in keys:
        if not NAME.fullmatch(key):
            raise ValueError(
                f"{place / (key + end)} should read <patient>_500_f<number>{end}: rename it, or "
                "fetch the data again."
            )
    return keys


def files(folder: Path, key: str) -> list[str]:
    """The image file and the mask file of a key, below the folder."""
    return [f"{TOP}/{key}{IMAGE}", f"{TOP}/{key}{MASK}"]


def read(folder: Path, key: str) -> Sample:
    """Reads one image and the nuclei that are outlined in it.

    Returns:
        A sample with image (H, W, 3) uint8, labels (H, W) int32 and the tag "patient". In the
        labels 0 is *unknown*: most nuclei are there. Outlined nuclei that touch are one.

    Raises:
        FileNotFoundError: When one of the two files is missing.
        ValueError: When one cannot be read, is not what it should be, or nothing is outlined; both
            name the file.
    """
    image, labels = read_with_mask(*(folder / name for name in files(folder, key)))
    return Sample(key, image, labels, {"patient": patient(key)})


def strays(folder: Path) -> Iterator[str]:
    """Images without a mask and masks without an image, and names that are no key."""
    try:
        images, masks = (_keys(folder / TOP, end) for end in (IMAGE, MASK))
    except ValueError as error:
        yield str(error)
        return
    for key in sorted(images - masks):
        yield f"{folder / TOP / key}{IMAGE} has no mask {key}{MASK}."
    for key in sorted(masks - images):
        yield f"{folder / TOP / key}{MASK} has no image {key}{IMAGE}."


SPEC = DatasetSpec(
    name="janowczyk",
    title="Janowczyk & Madabhushi: some of the nuclei of ER+ breast cancer, H&E",
    homepage="https://andrewjanowczyk.com/deep-learning/",
    licence="none stated",
    citation=(
        "Janowczyk and Madabhushi: Deep learning for digital pathology image analysis: A "
        "comprehensive tutorial with selected use cases. Journal of Pathology Informatics 7, 2016."
    ),
    base_url="https://andrewjanowczyk.com/wp-static/",
    archives=(
        Archive(
            "nuclei.tgz",
            1_500_000_000,
            "cb881c29d9f0ae5ad1d953160a4e00be70af329e0351eed614d51b4b66c65e6b",
            exact=False,
            folder=TOP,
        ),
    ),
    unpacked_bytes=1_750_000_000,
    counts=COUNTS,
    parts=(TOP,),
    split_keys=split_keys,
    files=files,
    read=read,
    strays=strays,
    simulate=simulate_janowczyk,
    small=SmallSet({"training": 6, "validation": 2, "test": 2}, SMALL_SHAPE, VERSION),
)
