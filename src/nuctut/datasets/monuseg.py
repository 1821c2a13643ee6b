"""MoNuSeg: nuclei in H&E images of many organs, among them Kumar's 30 (CC BY-NC-SA 4.0).

On disk, as the publisher's two archives unpack: `MoNuSeg 2018 Training Data/` with
`Tissue Images/<key>.tif`, 1000 by 1000 pixels in colour at 40×, and `Annotations/<key>.xml`, the
outlines as polygons; and `MoNuSegTestData/` with `<key>.tif` and `<key>.xml` beside each other. A
key is the name of a slide of the Cancer Genome Atlas, `TCGA-<site>-<patient>-…`.

Of the first, 30 images are those of Kumar et al. 2017, on all of which the paper that this book
rebuilds tests (Mercadier et al., section 3.3: DS2): the split "test". A network tested elsewhere
may learn from "training" and choose on "validation", parts of the same 30. What else there may be
is in splits that nobody has to have: "further", the seven other images of the first archive, and
"challenge", the fourteen of the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nuctut.datasets.checking import plain_names
from nuctut.datasets.polygons import labels_of_xml
from nuctut.datasets.simulated.tissue import SMALL_SHAPE, VERSION, simulate_monuseg
from nuctut.datasets.spec import Archive, DatasetSpec, SmallSet, SplitCount
from nuctut.datasets.stained import read_stained
from nuctut.files import read_bytes
from nuctut.samples import Sample

TOP, CHALLENGE = "MoNuSeg 2018 Training Data", "MoNuSegTestData"
IMAGES, OUTLINES = f"{TOP}/Tissue Images", f"{TOP}/Annotations"
PARTS = ("train", "same organ", "different organ")  # Kumar's
REBUILT = b"RECONSTRUCTED"  # in the first line of outlines that are not the publisher's polygons

# Kumar's images: of the first four organs four are his part "train" and two his "same organ"; the
# last three are his "different organ". What he calls liver comes from sites of lung tissue.
KUMAR = {
    "breast": "A7-A13E-01Z-00-DX1 A7-A13F-01Z-00-DX1 AR-A1AK-01Z-00-DX1 AR-A1AS-01Z-00-DX1 "
    "E2-A1B5-01Z-00-DX1 E2-A14V-01Z-00-DX1",
    "kidney": "B0-5711-01Z-00-DX1 HE-7128-01Z-00-DX1 HE-7129-01Z-00-DX1 HE-7130-01Z-00-DX1 "
    "B0-5698-01Z-00-DX1 B0-5710-01Z-00-DX1",
    "liver": "18-5592-01Z-00-DX1 38-6178-01Z-00-DX1 49-4488-01Z-00-DX1 50-5931-01Z-00-DX1 "
    "21-5784-01Z-00-DX1 21-5786-01Z-00-DX1",
    "prostate": "G9-6336-01Z-00-DX1 G9-6348-01Z-00-DX1 G9-6356-01Z-00-DX1 G9-6363-01Z-00-DX1 "
    "G9-6362-01Z-00-DX1 CH-5767-01Z-00-DX1",
    "bladder": "DK-A2I6-01A-01-TS1 G2-A2EK-01A-02-TSB",
    "colon": "AY-A8YK-01A-01-TS1 NH-A8F7-01A-01-TS1",
    "stomach": "KB-A93J-01A-01-TS1 RD-A8N9-01A-01-TS1",
}
ORGAN = {f"TCGA-{name}": organ for organ, names in KUMAR.items() for name in names.split()}
PART = {
    f"TCGA-{name}": PARTS[2 if len(names.split()) < 6 else int(place >= 4)]
    for names in KUMAR.values()
    for place, name in enumerate(names.split())
}
VALIDATION = tuple(f"TCGA-{names.split()[-1]}" for names in KUMAR.values())

# Regions of the publisher's files that are no more than a line, by their Id: no nuclei.
KNOWN = {
    "TCGA-50-5931-01Z-00-DX1": ("180",),
    "TCGA-AR-A1AK-01Z-00-DX1": ("478",),
    "TCGA-E2-A1B5-01Z-00-DX1": ("460",),
}


def split_keys(folder: Path, split: str) -> list[str]:
    """The keys of a split, sorted; none of one that is not on disk.

    "test" is Kumar's 30, "validation" of these the last of each organ in the order of `KUMAR`
    (seven), and "training" the others. "further" is what else is in the first archive, "challenge"
    the second.

    Invented images have split, organ and part in their name.

    Raises:
        FileNotFoundError: When the folder of the images is missing.
        ValueError: When a name cannot be that of an image.
    """
    place = folder / (CHALLENGE if split == "challenge" else IMAGES)
    if not place.is_dir():
        if split == "challenge":
            return []
        raise FileNotFoundError(f"{place} is missing: it holds an image .tif for each slide.")
    keys = plain_names(sorted(path.stem for path in place.glob("[!.]*.tif")), place)
    return keys if split == "challenge" else [key for key in keys if split in _splits_of(key)]


def _splits_of(key: str) -> tuple[str, ...]:
    if key.startswith("simulated_"):
        return key.split("_")[1], "test"
    if key not in ORGAN:
        return ("further",)
    return ("validation" if key in VALIDATION else "training"), "test"


def files(folder: Path, key: str) -> list[str]:
    """The image file and the file of its outlines, below the folder."""
    image = f"{IMAGES}/{key}.tif"
    if (folder / image).is_file():
        return [image, f"{OUTLINES}/{key}.xml"]
    return [f"{CHALLENGE}/{key}.tif", f"{CHALLENGE}/{key}.xml"]


def read(folder: Path, key: str) -> Sample:
    """Reads one image and the nuclei outlined in it.

    Returns:
        A sample with image (H, W, 3) uint8, labels (H, W) int32 (see `labels_of_xml`) and the tags
        "patient"; "organ" and "part" (Kumar's, one of `PARTS`) of Kumar's 30; and "outlines",
        "original" or "rebuilt".

    Raises:
        FileNotFoundError: When one of the two files is missing.
        ValueError: When one cannot be read or is not what it should be; both name the file.
    """
    image, outlines = read_image(folder, key), folder / files(folder, key)[1]
    labels = labels_of_xml(outlines, image.shape[:2], KNOWN.get(key, ()))
    rebuilt = REBUILT in read_bytes(outlines)[:200]
    return Sample(key, image, labels, _tags(key) | {"outlines": ("original", "rebuilt")[rebuilt]})


def read_image(folder: Path, key: str) -> np.ndarray:
    """The image of a key as (H, W, 3) uint8.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it cannot be read or is no such image; both name it.
    """
    return read_stained(folder / files(folder, key)[0])


def _tags(key: str) -> dict[str, str]:
    if key.startswith("simulated_"):
        _, _, organ, part, _ = key.split("_")
        return {"patient": key, "organ": organ, "part": part}
    tags = {"patient": "-".join(key.split("-")[:3])}
    return tags | ({"organ": ORGAN[key], "part": PART[key]} if key in ORGAN else {})


def strays(folder: Path) -> Iterator[str]:
    """Outlines without an image. An image without outlines is missed where it is listed."""
    for images, outlines in ((IMAGES, OUTLINES), (CHALLENGE, CHALLENGE)):
        there = {path.stem for path in (folder / images).glob("*.tif")}
        for path in sorted((folder / outlines).glob("[!.]*.xml")):
            if path.stem not in there:
                yield f"{path} has no image {path.stem}.tif in {folder / images}."


SPEC = DatasetSpec(
    name="monuseg",
    title="MoNuSeg: nuclei in H&E of many organs, with Kumar's 30 images",
    homepage="https://monuseg.grand-challenge.org/Data/",
    licence="CC BY-NC-SA 4.0",
    citation=(
        "Kumar, Verma, Sharma, Bhargava, Vahadane and Sethi: A Dataset and a Technique for "
        "Generalized Nuclear Segmentation for Computational Pathology. IEEE Transactions on "
        "Medical Imaging 36, 2017; and Kumar et al.: A Multi-Organ Nucleus Segmentation "
        "Challenge. IEEE Transactions on Medical Imaging 39, 2020."
    ),
    base_url="https://drive.usercontent.google.com/",
    archives=(
        Archive(
            f"{TOP}.zip",
            140_000_000,
            "25d3d3185bb2970b397cafa72eb664c9b4d24294aee382e7e3df9885affce742",
            exact=False,
            folder=TOP,
            url="https://drive.usercontent.google.com/download"
            "?id=1ZgqFJomqQGNnsx7w7QBzQQMVA16lbVCA&export=download&confirm=t",
        ),
        Archive(
            f"{CHALLENGE}.zip",
            60_000_000,
            "13e522387ae8b1bcc0530e13ff9c7b4d91ec74959ef6f6e57747368d7ee6f88a",
            exact=False,
            folder=CHALLENGE,
            url="https://drive.usercontent.google.com/download"
            "?id=1NKkSQ5T0ZNQ8aUhh0a8Dt2YKYCQXIViw&export=download&confirm=t",
        ),
    ),
    unpacked_bytes=260_000_000,
    counts={
        # No nuclei: the polygons of some copies were lost and rebuilt, and their numbers differ.
        "training": SplitCount(23, None),
        "validation": SplitCount(7, None),
        "test": SplitCount(30, None),
    },
    parts=(IMAGES, OUTLINES),
    split_keys=split_keys,
    files=files,
    read=read,
    strays=strays,
    simulate=simulate_monuseg,
    small=SmallSet({"training": 6, "validation": 2, "test": 8}, SMALL_SHAPE, VERSION),
    optional=("further", "challenge"),
    all_tested=True,
    read_image=read_image,
)
