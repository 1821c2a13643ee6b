"""From labels to what a network learns: classes, tiles, normalised intensities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import ndimage as ndi

BACKGROUND, NUCLEUS, SEPARATION, IGNORE = 0, 1, 2, 255
BLOCK = 128  # rows of an image that are looked at together when its intensities are summed


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
    return Normalised(image, scale)[:]


@dataclass(frozen=True)
class Blocks:
    """An image that is looked at in blocks of rows, so that it need not fit into memory.

    Attributes:
        read: (start, stop) → those rows, (n, W) or (n, W, C), any real dtype.
        height: Number of rows.
        dtype: Of the intensities as they were measured, whatever that of the rows.
    """

    read: Callable[[int, int], np.ndarray]
    height: int
    dtype: np.dtype

    def __iter__(self) -> Iterator[np.ndarray]:
        """All rows in blocks that depend on the height alone, and so do sums over them."""
        for start in range(0, self.height, BLOCK):
            yield self.read(start, min(start + BLOCK, self.height))


@dataclass(frozen=True)
class Normalisation:
    """What `standardise` does to every pixel of one image, known from all of them.

    Attributes:
        scale: See `standardise`.
        lowest, mean, deviation: (1,) or (C,) float32. The lowest is taken off first, so that the
            mean of a constant image is exact; mean and deviation are those of what follows.
    """

    scale: str
    lowest: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, blocks: Blocks, scale: str = "linear") -> Normalisation:
        """The normalisation of an image, which is gone through three times.

        Raises:
            ValueError: When there is no such scale, or it is "range" and the image not of integers.
        """
        if scale not in ("linear", "log", "range"):
            raise ValueError(f'scale must be "linear", "log" or "range", not {scale!r}.')
        none, one = np.zeros(1, np.float32), np.ones(1, np.float32)
        if scale == "range":
            if not np.issubdtype(blocks.dtype, np.integer):
                raise ValueError(f'scale="range" needs an integer image, not {blocks.dtype}.')
            return cls(scale, none, none, one * np.iinfo(blocks.dtype).max)
        lows = [np.atleast_3d(block).min((0, 1)) for block in blocks]
        lifted = cls(scale, np.min(lows, 0).astype(np.float32), none, one)
        mean, _ = _moments(lifted.apply(block) for block in blocks)
        centred = replace(lifted, mean=mean.astype(np.float32))
        _, square = _moments(centred.apply(block) for block in blocks)
        deviation = np.sqrt(square).astype(np.float32)
        return replace(centred, deviation=np.where(deviation > 0, deviation, one))

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Any pixels of the image, (..., W) or (..., W, C), normalised; float32."""
        pixels = pixels.astype(np.float32) - self.lowest
        if self.scale == "log":
            np.log1p(pixels, out=pixels)
        pixels -= self.mean
        pixels /= self.deviation
        return pixels


class Normalised:
    """An image as `standardise` would give it, of which only what is looked at is computed.

    Args:
        image, scale: See `standardise`.
    """

    def __init__(self, image: np.ndarray, scale: str = "linear") -> None:
        blocks = Blocks(lambda start, stop: image[start:stop], len(image), image.dtype)
        self.image, self.normalisation = image, Normalisation.of(blocks, scale)

    def __getitem__(self, where: slice | tuple[slice, ...]) -> np.ndarray:
        return self.normalisation.apply(self.image[where])

    def min(self, axis: tuple[int, ...]) -> np.ndarray:
        return self.normalisation.apply(self.image.min(axis))

    def max(self, axis: tuple[int, ...]) -> np.ndarray:
        return self.normalisation.apply(self.image.max(axis))


def _moments(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square of each channel, (C,) float64."""
    count, total, squares = 0, 0.0, 0.0
    for block in blocks:
        pixels = np.atleast_3d(block).astype(np.float64)
        count += pixels.shape[0] * pixels.shape[1]
        total = total + pixels.sum((0, 1))
        squares = squares + np.square(pixels, out=pixels).sum((0, 1))
    return total / count, squares / count
