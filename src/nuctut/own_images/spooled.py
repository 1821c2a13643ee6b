"""Images as files of raw pixels, in which any window can be looked at; and their scale changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from nuctut.inference import Span

ROWS = 256  # written together


class DiskArray:
    """A two-dimensional array in a file; in memory is only what is being looked at.

    It is indexed by a slice of rows, or by slices of rows and columns. What was never written is 0.

    Args:
        path: Of the file, which is written anew.
        shape: (H, W).
        dtype: Of the values.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype | type) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        with path.open("wb") as file:
            file.truncate(shape[0] * shape[1] * self.dtype.itemsize)

    def __getitem__(self, window: slice | tuple[slice, slice]) -> np.ndarray:
        # Mapped for the moment only: pages that stay mapped count as this process' memory.
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[window])

    def __setitem__(self, window: slice | tuple[slice, slice], values: np.ndarray) -> None:
        # Written, not mapped: on a full disk that raises an error, and the other one kills.
        both = window if isinstance(window, tuple) else (window, slice(None))
        rows, columns = (range(n)[s] for n, s in zip(self.shape, both, strict=True))
        values = np.ascontiguousarray(values, self.dtype)
        if len(columns) == self.shape[1]:
            rows, values = rows[:1], values.reshape(1, -1)
        with self.path.open("r+b") as file:
            for row, line in zip(rows, values, strict=True):
                file.seek((row * self.shape[1] + columns.start) * self.dtype.itemsize)
                file.write(line)


@dataclass(frozen=True)
class Spooled:
    """One page of an image file, copied to files of raw pixels.

    Attributes:
        planes: One (H, W) array per channel: one of a grey image, three of a coloured one.
        dtype: Of the intensities in the image file; that of the planes differs after `rescaled`.
    """

    planes: tuple[DiskArray, ...]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.planes[0].shape

    def read(self, rows: Span, columns: Span | None = None) -> np.ndarray:
        """A window, (h, w) of a grey image or (h, w, 3); by default all columns."""
        window = slice(*rows), slice(*columns) if columns else slice(None)
        planes = [plane[window] for plane in self.planes]
        return np.stack(planes, -1) if len(planes) > 1 else planes[0]


# --- another scale -------------------------------------------------------------------------------


def rescaled(image: Spooled, factor: float, folder: Path) -> Spooled:
    """An image with `factor` times as many rows and columns, at least one, in float32.

    Linear interpolation, and towards fewer pixels an average over all that fall into one, so that
    nothing is missed. It is the same whatever is looked at together.
    """
    shape = tuple(max(1, round(length * factor)) for length in image.shape)
    rows, columns = (resampling(a, b) for a, b in zip(image.shape, shape, strict=True))
    paths = [folder / f"rescaled{channel}" for channel in range(len(image.planes))]
    planes = tuple(DiskArray(path, shape, np.float32) for path in paths)
    for start in range(0, shape[0], ROWS):
        some = rows[start : start + ROWS]
        low, high = int(some.indices.min()), int(some.indices.max()) + 1
        for old, new in zip(image.planes, planes, strict=True):
            high_rows = some[:, low:high] @ old[low:high].astype(np.float32)
            new[start : start + ROWS] = (columns @ high_rows.T).T
    return Spooled(planes, image.dtype)


def resampling(before: int, after: int) -> sparse.csr_array:
    """(after, before) float32 weights that resample a line of pixels.

    A triangle around the centre of each new pixel, as wide as the larger of both pixels to either
    side; beyond the line there is nothing. Each row sums to 1.
    """
    step = before / after
    width = max(1.0, step)
    centres = (np.arange(after) + 0.5) * step - 0.5
    nearest = np.floor(centres - width).astype(int)[:, None] + np.arange(int(2 * width) + 3)
    weights = np.clip(1 - np.abs(nearest - centres[:, None]) / width, 0, None)
    weights[(nearest < 0) | (nearest >= before)] = 0
    weights /= weights.sum(1, keepdims=True)
    rows, places = np.nonzero(weights)
    entries = weights[rows, places].astype(np.float32)
    return sparse.csr_array((entries, (rows, nearest[rows, places])), (after, before))
