"""TNBC: nuclei in triple-negative breast cancer, 50 H&E images of 11 patients (CC BY 4.0).

On disk, as the publisher's archive unpacks: `TNBC_NucleiSegmentation/Slide_<patient>/<key>.png`,
512 by 512 pixels in colour, and `GT_<patient>/<key>.png`, 255 in nuclei and 0 elsewhere. A key
reads `<patient>_<number>`, such as `09_6`.

The publisher has no splits. The paper that this book rebuilds tests on all 50 (Mercadier et al.,
section 3.3: DS1), which is the split "test"; a network tested elsewhere may learn from "training"
and choose on "validation", parts of the same 50 by patient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from nuctut.datasets.simulated.tissue import SMALL_SHAPE, VERSION, simulate_tnbc
from nuctut.datasets.spec import Archive, DatasetSpec, SmallSet, SplitCount
from nuctut.datasets.stained import read_with_mask
from nuctut.samples import Sample

TOP = "TNBC_NucleiSegmentation"
NAME = re.compile(r"(\d\d)_\d{1,3}")
FOLDS = 4
HELD_OUT = 4  # the fold that is the validation split: patients 4 and 8

COUNTS = {
    "training": SplitCount(38, 3_006),
    "validation": SplitCount(12, 1_050),
    "test": SplitCount(50, 4_056),
}


def fold(key: str) -> int:
    """The fold of a key's patient, 1 to 4: patients are dealt out in turn, 1, 5 and 9 to fold 1.

    The folds have 17, 10, 11 and 12 images.
    """
    return (int(key[:2]) - 1) % FOLDS + 1


def split_keys(folder: Path, split: str) -> list[str]:
    """The keys of a split, by patient and number.

    "test" is all of them, "validation" those of fold 4, "training" the others.

    Raises:
        FileNotFoundError: When the folder of the slides is missing.
        ValueError: When there is none, or a file has a name that is no key or another patient's.
    """
    place = folder / TOP
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is missing: it holds the folders Slide_01 to Slide_11.")
    images = _by_key(place, "Slide")
    if not images:
        raise ValueError(f"{place} holds no images Slide_<patient>/<patient>_<number>.png.")
    held_out = {"test": {True, False}, "validation": {True}, "training": {False}}[split]
    return [key for key in images if (fold(key) == HELD_OUT) in held_out]


def _by_key(place: Path, kind: str) -> dict[str, Path]:
    """The files of one kind of folder, "Slide" or "GT", by key and in the order of keys."""
    found = {}
    for path in place.glob(f"{kind}_*/[!.]*.png"):
        name = NAME.fullmatch(path.stem)
        if not name or path.parent.name != f"{kind}_{name[1]}":
            raise ValueError(
                f"{path} should read {kind}_<patient>/<patient>_<number>.png with two digits for "
                "the patient: rename it, or fetch the data again."
            )
        found[path.stem] = path
    return dict(sorted(found.items(), key=lambda item: (item[0][:2], int(item[0][3:]))))


def files(folder: Path, key: str) -> list[str]:
    """The image file and the mask file of a key, below the folder."""
    return [f"{TOP}/{kind}_{key[:2]}/{key}.png" for kind in ("Slide", "GT")]


def read(folder: Path, key: str) -> Sample:
    """Reads one image and the nuclei marked in it.

    Returns:
        A sample with image (H, W, 3) uint8, labels (H, W) int32 and the tags "patient" and "fold".

    Raises:
        FileNotFoundError: When one of the two files is missing.
        ValueError: When one cannot be read or is not what it should be; both name the file.
    """
    image, labels = read_with_mask(*(folder / name for name in files(folder, key)))
    return Sample(key, image, labels, {"patient": key[:2], "fold": str(fold(key))})


def strays(folder: Path) -> Iterator[str]:
    """Images without a mask and masks without an image."""
    try:
        images, masks = (_by_key(folder / TOP, kind) for kind in ("Slide", "GT"))
    except ValueError as error:
        yield str(error)
        return
    for key in sorted(images.keys() - masks.keys()):
        yield f"{images[key]} has no mask GT_{key[:2]}/{key}.png."
    for key in sorted(masks.keys() - images.keys()):
        yield f"{masks[key]} has no image Slide_{key[:2]}/{key}.png."


SPEC = DatasetSpec(
    name="tnbc",
    title="TNBC: nuclei in triple-negative breast cancer, H&E",
    homepage="https://doi.org/10.5281/zenodo.1175282",
    licence="CC BY 4.0",
    citation=(
        "Naylor, Laé, Reyal and Walter: Segmentation of Nuclei in Histopathology Images by Deep "
        "Regression of the Distance Map. IEEE Transactions on Medical Imaging, 2018. Data: "
        "doi.org/10.5281/zenodo.1175282, CC BY 4.0."
    ),
    base_url="https://zenodo.org/records/1175282/files/",
    archives=(
        Archive(
            f"{TOP}.zip",
            24_000_000,
            "da708c3a988f4ad4b9bbb9283b387faf703f0bc0e5e689927306bd27ea13a57f",
            exact=False,
            folder=TOP,
        ),
    ),
    unpacked_bytes=24_000_000,
    counts=COUNTS,
    parts=(TOP,),
    split_keys=split_keys,
    files=files,
    read=read,
    strays=strays,
    simulate=simulate_tnbc,
    small=SmallSet({"training": 6, "validation": 2, "test": 8}, SMALL_SHAPE, VERSION),
    all_tested=True,
)
