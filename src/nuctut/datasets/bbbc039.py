"""BBBC039v1: nuclei of U2OS cells in a chemical screen, 200 fields of view (CC0).

On disk, as the publisher's three archives unpack: `images/<key>.tif`, 520 by 696 pixels, 12-bit
values in uint16; `masks/<key>.png`, colour-coded nuclei; `metadata/<split>.txt`, one mask file
name per line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from skimage.measure import label

from nuctut.datasets.checking import plain_names
from nuctut.datasets.pixels import read_png, read_tiff
from nuctut.datasets.simulated.bbbc039 import (
    SMALL_IMAGES,
    SMALL_SHAPE,
    VERSION,
    simulate_bbbc039,
)
from nuctut.datasets.spec import Archive, DatasetSpec, SmallSet, SplitCount
from nuctut.files import read_text
from nuctut.samples import Sample

COUNTS = {
    "training": SplitCount(100, 12_001),
    "validation": SplitCount(50, 5_896),
    "test": SplitCount(50, 5_720),
}


def split_keys(folder: Path, split: str) -> list[str]:
    """The keys of a split: the mask file names of its list without `.png`, sorted.

    Copies of the lists differ in their order, and nothing should hang on it.

    Raises:
        FileNotFoundError: When there is no such list.
        ValueError: When it is none, or names what cannot be; both name the list.
    """
    path = folder / "metadata" / f"{split}.txt"
    try:
        lines = [line.strip() for line in read_text(path).split("\n")]
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{path} is missing: it lists the images of the {split} split."
        ) from None
    names = plain_names([line for line in lines if line], path)
    if not names:
        raise ValueError(f"{path} lists no images.")
    return sorted(name.removesuffix(".png") for name in names)


def files(folder: Path, key: str) -> list[str]:
    """The image file and the mask file of a key, below the folder."""
    return [f"images/{key}.tif", f"masks/{key}.png"]


def read(folder: Path, key: str) -> Sample:
    """Reads one image and the nuclei marked in it.

    Returns:
        A sample with image (H, W) uint16, labels (H, W) int32 and the tags "well" and "site"
        where the key tells them.

    Raises:
        FileNotFoundError: When one of the two files is missing.
        ValueError: When one cannot be read or is not what it should be; both name the file.
    """
    image_path, mask_path = (folder / name for name in files(folder, key))
    image = read_tiff(image_path)
    if image.ndim != 2 or image.dtype != np.uint16:
        raise ValueError(
            f"{image_path} should hold one uint16 plane, not {image.dtype} of shape "
            f"{image.shape}: the file is damaged or not of this data set."
        )
    mask = read_png(mask_path)
    try:
        labels = instances_from_mask(mask)
    except ValueError as error:
        raise ValueError(f"{mask_path}: {error}") from error
    if labels.shape != image.shape:
        raise ValueError(
            f"{mask_path} has shape {labels.shape}, but its image {image_path.name} "
            f"has {image.shape}."
        )
    return Sample(key, image, labels, _tags(key))


def instances_from_mask(rgba: np.ndarray) -> np.ndarray:
    """Labels from a colour-coded mask.

    The red channel is a graph colouring, not an id: 0 is background, and nuclei that touch have
    different values among 1, 2, 3. So one nucleus is one 4-connected component of one red value.

    Args:
        rgba: (H, W, 4) uint8, green and blue all 0.

    Returns:
        (H, W) int32 labels, numbered in the order of their first pixels, row by row.

    Raises:
        ValueError: When the array is no such mask.
    """
    if rgba.ndim != 3 or rgba.shape[2] != 4 or rgba.dtype != np.uint8:
        raise ValueError(
            f"a colour-coded mask is (H, W, 4) of uint8, not {rgba.shape} of {rgba.dtype}."
        )
    if rgba[..., 1:3].any():
        raise ValueError("a colour-coded mask uses the red channel alone, this one others too.")
    return label(rgba[..., 0], background=0, connectivity=1).astype(np.int32)


def strays(folder: Path) -> Iterator[str]:
    """Images without a mask and masks without an image, whatever the split lists say."""
    images = {path.stem: path for path in sorted((folder / "images").glob("*.tif"))}
    masks = {path.stem: path for path in sorted((folder / "masks").glob("*.png"))}
    for key in sorted(images.keys() - masks.keys()):
        yield f"{images[key]} has no mask {key}.png in {folder / 'masks'}."
    for key in sorted(masks.keys() - images.keys()):
        yield f"{masks[key]} has no image {key}.tif in {folder / 'images'}."


def _tags(key: str) -> dict[str, str]:
    """Well and site from a key such as `IXMtest_A06_s6_w1…`; nothing from any other."""
    parts = key.split("_")
    if parts[0] != "IXMtest" or len(parts) != 4:
        return {}
    return {"well": parts[1], "site": parts[2].removeprefix("s")}


SPEC = DatasetSpec(
    name="bbbc039",
    pixel_size=0.656,  # 20×; from the camera's pitch, since the files do not say
    title="BBBC039v1: nuclei of U2OS cells in a chemical screen",
    homepage="https://bbbc.broadinstitute.org/BBBC039",
    licence="CC0 1.0",
    citation=(
        "We used image set BBBC039v1 (Caicedo et al. 2018), available from the "
        "Broad Bioimage Benchmark Collection (Ljosa et al., Nature Methods, 2012)."
    ),
    base_url="https://data.broadinstitute.org/bbbc/BBBC039/",
    archives=(
        Archive(
            "images.zip",
            77_915_748,
            "6f30a5d4fe38c928ded972704f085975f8dc0d65d9aa366df00e5a9d449fddd7",
        ),
        Archive(
            "masks.zip",
            2_753_811,
            "f9e6043d8ca56344a4886f96a700d804d6ee982f31e2b2cd3194af2a053c2710",
        ),
        Archive(
            "metadata.zip",
            17_816,
            "a2c1f900bed9ba92a99553efd4c2ae98598433691c7401d818653ab61110deb2",
        ),
    ),
    unpacked_bytes=150_000_000,
    counts=COUNTS,
    parts=("images", "masks", "metadata"),
    split_keys=split_keys,
    files=files,
    read=read,
    strays=strays,
    simulate=simulate_bbbc039,
    small=SmallSet(SMALL_IMAGES, SMALL_SHAPE, VERSION),
)
