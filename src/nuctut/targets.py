"""From labels to what a network learns: classes, tiles, normalised intensities."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy import ndimage as ndi

BACKGROUND, NUCLEUS, SEPARATION, IGNORE = 0, 1, 2, 255


def separations(labels: np.ndarray) -> np.ndarray:
    """The pixels where two nuclei meet.

    A pixel separates when its 3×3 neighbourhood holds at least two different nuclei: between
    touching nuclei that is a line two pixels wide, across a one-pixel gap it includes the gap.

    Args:
        labels: (H, W) integer labels, 0 background.

    Returns:
        (H, W) bool mask.
    """
    highest = ndi.maximum_filter(labels, size=3)
    lowest = ndi.minimum_filter(np.where(labels == 0, labels.max(), labels), size=3)
    return (highest > 0) & (lowest < highest)


def three_classes(labels: np.ndarray, ignore: np.ndarray | None = None) -> np.ndarray:
    """Background, nucleus and separation line (Matuszewski & Ranefall, section 2.3).

    The paper does not say how thick its separation lines are nor whether the outline against the
    background belongs to them. Here a line stands only between touching nuclei.

    Args:
        labels: (H, W) integer labels, 0 background.
        ignore: (H, W) bool mask of pixels that must not be learnt from, or None.

    Returns:
        (H, W) uint8 map: 0 background, 1 nucleus, 2 separation, 255 ignored.
    """
    classes = (labels > 0).astype(np.uint8)
    classes[separations(labels)] = SEPARATION
    if ignore is not None:
        classes[ignore] = IGNORE
    return classes


def corner_tiles(shape: tuple[int, int], size: int = 512) -> list[tuple[slice, slice]]:
    """Four overlapping tiles, one in each corner of an image (section 2.1).

    Args:
        shape: (H, W) of the image, in pixels.
        size: Side of the square tiles; where the image is smaller, the tile is as large as it.

    Returns:
        Pairs of slices; corners that coincide are given once.
    """
    starts = [sorted({0, max(0, length - size)}) for length in shape]
    return [
        (slice(y, min(y + size, shape[0])), slice(x, min(x + size, shape[1])))
        for y, x in product(*starts)
    ]


def dihedral(array: np.ndarray, which: int) -> np.ndarray:
    """One of the eight flips and quarter turns of the last two axes (section 2.1).

    Args:
        array: (..., H, W).
        which: 0…7; 0 leaves the array as it is, 4…7 mirror it before turning.

    Returns:
        A view, (..., H, W) or (..., W, H).
    """
    if which >= 4:
        array = array[..., ::-1]
    return np.rot90(array, which % 4, axes=(-2, -1))


def standardise(image: np.ndarray, scale: str = "linear") -> np.ndarray:
    """Mean 0 and standard deviation 1 over the image or tile given, each channel by itself.

    A coloured ground or another white balance so disappears, and so does an exposure.

    Args:
        image: (H, W) or (H, W, C) intensities in camera counts, any real dtype.
        scale: "linear" as in Matuszewski & Ranefall (section 2.1), "log" (of 1 + counts above the
            darkest pixel), which lifts dim nuclei and small debris, or "range", which does not
            standardise at all: 0…1 over the range of an integer dtype, the same for every image.

    Returns:
        float32 of the image's shape; a constant channel becomes zeros (but for "range").
    """
    if scale == "range":
        if not np.issubdtype(image.dtype, np.integer):
            raise ValueError(f'scale="range" needs an integer image, not {image.dtype}.')
        return image.astype(np.float32) / np.iinfo(image.dtype).max
    pixels = image.astype(np.float32)
    pixels -= pixels.min((0, 1))  # so that the mean of a constant image is exact
    if scale == "log":
        pixels = np.log1p(pixels)
    elif scale != "linear":
        raise ValueError(f'scale must be "linear", "log" or "range", not {scale!r}.')
    pixels -= pixels.mean((0, 1))
    deviation = pixels.std((0, 1))
    return pixels / np.where(deviation > 0, deviation, np.float32(1))
