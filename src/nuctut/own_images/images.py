"""Image files of many kinds, page by page, without more than a part of a page in memory.

A page is copied to files of raw pixels first, in which any window can be looked at. TIFF files are
decoded strip by strip or tile by tile on the way; other formats, whose images are smaller, as a
whole.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import tifffile
from scipy import sparse
from skimage.io import imread

from nuctut.inference import Span

SUFFIXES = (".tif", ".tiff", ".btf", ".png", ".jpg", ".jpeg", ".bmp")
MAGIC = {
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "other",  # JPEG
    b"BM": "other",  # BMP
}
ROWS = 256  # copied together
BUFFER = 2**24  # bytes of a file that are read together

MICROMETRES = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0}
MICROMETRES |= {"mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0}
# Of a microscope's pixel, in µm. Software that knows nothing writes 72 or 96 dots per inch.
PLAUSIBLE = (0.02, 5.0)
SQUARE = 0.01  # by how much the sides of a pixel may differ


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


class ImageFile(Protocol):
    """An open image file.

    Attributes:
        pages: Number of pages, each an image by itself.
        left_out: Number of images in the file that are not among the pages.
    """

    pages: int
    left_out: int

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel in µm, where the file says so in a way that can be believed.

        Raises:
            ValueError: When the pixels are not square.
        """

    def shape(self, page: int) -> tuple[int, int, int]:
        """Height, width and number of channels that are kept of a page, counted from 0.

        Raises:
            ValueError: When the page is not one that can be read, in one sentence.
        """

    def spool(self, page: int, folder: Path) -> Spooled:
        """Copy a page to files in a folder.

        Raises:
            ValueError: As `shape`, and when pixels are missing or are no numbers.
        """


@contextmanager
def opened(path: Path) -> Iterator[ImageFile]:
    """An image file, whatever its name: TIFF, PNG, JPEG or BMP.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no image, or damaged; one sentence that does not name it.
    """
    with path.open("rb") as file:
        start = file.read(4)
    kinds = [kind for magic, kind in MAGIC.items() if start.startswith(magic)]
    if not kinds:
        empty = "it is empty" if not start else "it is none of TIFF, PNG, JPEG and BMP"
        raise ValueError(f"is no image: {empty}; give an image, or leave this file out.")
    if kinds[0] != "tiff":
        yield _Picture(path, kinds[0])
        return
    with _silenced(), _decoding():
        file = tifffile.TiffFile(path, _multifile=False)
    with file:
        with _silenced() as complaints, _decoding():
            image = _Tiff(file)
        if any("offset" in text for text in complaints):
            raise ValueError(CUT_OFF)
        yield image


CUT_OFF = "is cut off: the file says that it holds more than it does; copy or export it again."


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever a decoder raises, which is a great many things, as one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, _Refused) or getattr(error, "errno", None) is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"cannot be read ({reason}): the file is damaged or of a kind that is not known here; "
            "copy or export it again."
        ) from error


class _Refused(ValueError):
    """A sentence of this module, which needs no other around it."""


@contextmanager
def _silenced() -> Iterator[list[str]]:
    """What tifffile would log, as a list: what matters of it is told by an error."""
    told: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


# --- TIFF ----------------------------------------------------------------------------------------


class _Tiff:
    """A TIFF file: the pages of its first series, at full resolution."""

    def __init__(self, file: tifffile.TiffFile) -> None:
        self.file = file
        if not len(file.pages):  # which goes through all of their headers
            raise _Refused(CUT_OFF)
        self.series = file.series[0]
        self.frames = self.series.levels[0].pages
        self.key = self.series.keyframe
        # All pages of a file over 4 GB, or of a stack, may follow the first one without a header.
        self.offset = self.series.dataoffset
        self.pages = len(self.frames)
        if self.offset is not None:
            self.pages = self.series.size // self.key.size
        self.left_out = sum(len(other.pages) for other in file.series[1:])

    @property
    def pixel_size(self) -> float | None:
        with _decoding():
            return _pixel_size(self.file)

    def shape(self, page: int) -> tuple[int, int, int]:
        key = self.key
        if key.imagedepth > 1:
            raise _Refused("is a volume within one page; save its planes as pages of their own.")
        samples = key.samplesperpixel
        if samples == 4 and key.photometric == tifffile.PHOTOMETRIC.RGB:
            samples = 3  # the fourth is transparency
        _check(samples, key.dtype)
        return key.imagelength, key.imagewidth, samples

    def spool(self, page: int, folder: Path) -> Spooled:
        *shape, samples = self.shape(page)
        dtype = np.dtype(np.uint8 if self.key.dtype.kind == "b" else self.key.dtype)
        dtype = dtype.newbyteorder("=")
        paths = [folder / f"channel{channel}" for channel in range(samples)]
        planes = tuple(DiskArray(path, tuple(shape), dtype) for path in paths)
        with _silenced():
            parts = self._mapped(page) if self._is_raw(page) else self._decoded(page)
            for (channel, top, left), part in parts:
                _check_finite(part, page)
                for plane, pixels in zip(planes[channel:], np.moveaxis(part, -1, 0), strict=False):
                    pixels = pixels[: shape[0] - top, : shape[1] - left]
                    height, width = pixels.shape
                    plane[top : top + height, left : left + width] = pixels
        return Spooled(planes, dtype)

    def _is_raw(self, page: int) -> bool:
        """Whether the pixels lie in the file as they are, one after the other."""
        return self.offset is not None or self.frames[page].is_memmappable

    def _mapped(self, page: int) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
        """(channel, top, left) and (h, w, channels) pixels of blocks of rows."""
        key = self.key
        dtype = np.dtype(self.file.byteorder + key.dtype.char)
        if self.offset is not None:
            offset = self.offset + page * key.size * dtype.itemsize
        else:
            offset = self.frames[page].dataoffsets[0]
        if offset + key.size * dtype.itemsize > self.file.filehandle.size:
            raise _Refused(CUT_OFF)
        for top in range(0, key.imagelength, ROWS):
            whole = np.memmap(self.file.filehandle.path, dtype, "r", offset, key.shaped)
            block = np.array(whole[:, 0, top : top + ROWS])
            del whole  # see DiskArray
            yield (0, top, 0), np.concatenate(list(block), -1)

    def _decoded(self, page: int) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
        """(channel, top, left) and (h, w, channels) pixels of strips or tiles."""
        frame = self.frames[page]
        if frame is None:
            raise _Refused(f"lacks page {page}, which its description names; export it again.")
        size = self.file.filehandle.size
        ends = [a + b for a, b in zip(frame.dataoffsets, frame.databytecounts, strict=True)]
        if max(ends, default=0) > size:
            raise _Refused(CUT_OFF)
        with _decoding():
            for part, (channel, _, top, left, _), _ in frame.segments(
                maxworkers=1, buffersize=BUFFER
            ):
                if part is None:
                    raise _Refused(CUT_OFF)
                yield (channel, top, left), part[0]


def _pixel_size(file: tifffile.TiffFile) -> float | None:
    """Side of a pixel in µm, from what TIFF files say in three different ways.

    Raises:
        ValueError: When the pixels are not square.
    """
    sides: Sequence[float] | None = None
    if file.is_ome:
        sides = _ome_sides(file.ome_metadata)
    elif file.is_imagej:
        unit = str((file.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
        sides = _sides_of_tags(file.pages.first, MICROMETRES.get(unit))
    if sides is None:
        units = {2: MICROMETRES["inch"], 3: MICROMETRES["cm"]}
        tag = file.pages.first.tags.get("ResolutionUnit")
        sides = _sides_of_tags(file.pages.first, units.get(int(tag.value)) if tag else None)
        if sides and not all(PLAUSIBLE[0] <= side <= PLAUSIBLE[1] for side in sides):
            sides = None
    if sides is None:
        return None
    if abs(sides[0] / sides[1] - 1) > SQUARE:
        raise _Refused(
            f"has pixels of {sides[0]:.4g} × {sides[1]:.4g} µm, but they should be square; "
            "resample it, or give one --pixel-size for both sides."
        )
    return sides[0]


def _ome_sides(text: str) -> tuple[float, float] | None:
    """Width and height of a pixel in µm, from OME-XML."""
    for element in ElementTree.fromstring(text).iter():
        if element.tag.rpartition("}")[2] == "Pixels":
            known = element.attrib
            sides = [
                float(known.get(f"PhysicalSize{axis}", 0))
                * MICROMETRES.get(known.get(f"PhysicalSize{axis}Unit", "µm"), 0)
                for axis in "XY"
            ]
            return (sides[0], sides[1]) if min(sides) > 0 else None
    return None


def _sides_of_tags(page: tifffile.TiffPage, unit: float | None) -> tuple[float, float] | None:
    """Width and height of a pixel in µm, from its resolution in pixels per unit of so many µm."""
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if unit is None or None in tags:
        return None
    pairs = [tag.value for tag in tags]
    if not all(pixels > 0 and units > 0 for pixels, units in pairs):
        return None
    across, down = (unit * units / pixels for pixels, units in pairs)
    return across, down


# --- other formats -------------------------------------------------------------------------------


class _Picture:
    """A PNG, JPEG or BMP file: one page, and no pixel size that could be believed."""

    pages, pixel_size, left_out = 1, None, 0

    def __init__(self, path: Path, kind: str) -> None:
        content = path.read_bytes()
        with _decoding():
            # Other readers of PNG give colours of 16 bits as 8; the decoder of JPEG used for TIFF
            # fills what is missing with grey.
            self.pixels = (
                imagecodecs.png_decode(content) if kind == "png" else imread(io.BytesIO(content))
            )
        if kind == "png" and self.pixels.ndim == 3 and self.pixels.shape[2] in (2, 4):
            self.pixels = self.pixels[..., :-1]  # the last is transparency
        self.pixels = np.atleast_3d(self.pixels)

    def shape(self, page: int) -> tuple[int, int, int]:
        _check(self.pixels.shape[2], self.pixels.dtype)
        return self.pixels.shape

    def spool(self, page: int, folder: Path) -> Spooled:
        *shape, channels = self.shape(page)
        pixels = self.pixels.astype(np.uint8) if self.pixels.dtype == bool else self.pixels
        planes = []
        for channel in range(channels):
            plane = DiskArray(folder / f"channel{channel}", tuple(shape), pixels.dtype)
            plane[:] = pixels[..., channel]
            planes.append(plane)
        return Spooled(tuple(planes), pixels.dtype)


def _check(channels: int, dtype: np.dtype | None) -> None:
    if channels not in (1, 3):
        raise _Refused(
            f"has {channels} channels; expected grey or RGB: save the channel that shows nuclei."
        )
    if dtype is None or dtype.kind not in "buif":
        raise _Refused(f"has {dtype or 'unknown'} pixels; expected integers or real numbers.")


def _check_finite(pixels: np.ndarray, page: int) -> None:
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise _Refused(
            f"holds pixels that are NaN or infinite (page {page}); expected numbers: replace them."
        )


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
