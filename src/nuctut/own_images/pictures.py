"""PNG, JPEG and BMP files: one page, decoded as a whole, and no pixel size to be believed."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from nuctut.own_images.limits import (
    check_channels,
    check_piece,
    check_shape,
    decoding,
)
from nuctut.own_images.spooled import ROWS, DiskArray, Spooled

PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # by colour type: a palette is expanded
MODE_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "RGBA": 3, "CMYK": 4}  # of the other formats


class Picture:
    """A PNG, JPEG or BMP file; see `images.ImageFile`. Transparency is dropped.

    Args:
        path: Of the file.
        kind: "png", "jpeg" or "bmp".
    """

    pages, left_out = 1, 0

    def __init__(self, path: Path, kind: str) -> None:
        check_piece(path.stat().st_size, "its file")
        self.content = path.read_bytes()
        with decoding():
            header, self._decode = {"png": _png, "jpeg": _jpeg, "bmp": _bmp}[kind](self.content)
        self._shape, self._itemsize = header[:3], header[3]

    def pixel_size(self, page: int) -> None:
        """None: dots per inch are those of a screen or a printer."""

    def shape(self, page: int) -> tuple[int, int, int]:
        """As `images.ImageFile`, from the header."""
        height, width, channels = self._shape
        check_channels(channels)
        check_shape(height, width)
        check_piece(height * width * channels * self._itemsize, "the whole image")
        return self._shape

    def spool(self, page: int, folder: Path) -> Spooled:
        """As `images.ImageFile`."""
        *shape, channels = self.shape(page)
        dtype = np.dtype(f"u{self._itemsize}")
        paths = [folder / f"channel{channel}" for channel in range(channels)]
        planes = tuple(DiskArray(path, tuple(shape), dtype) for path in paths)
        top = 0
        with decoding():
            for block in self._decode():
                rows = slice(top, top := top + len(block))
                channels_first = np.moveaxis(np.atleast_3d(block), -1, 0)
                for plane, pixels in zip(planes, channels_first, strict=False):
                    plane[rows] = pixels  # without transparency, which comes last
        return Spooled(planes, dtype)


# Each gives (height, width, channels that are kept, bytes of a value), and what decodes to blocks
# of rows.
Opened = tuple[tuple[int, int, int, int], Callable[[], Iterable[np.ndarray]]]


def _png(content: bytes) -> Opened:
    # Pillow gives colours of 16 bits as 8.
    width, height, depth, colour = struct.unpack(">IIBB", content[16:26])
    header = height, width, PNG_CHANNELS[colour], 2 if depth == 16 else 1
    return header, lambda: [imagecodecs.png_decode(content)]


def _jpeg(content: bytes) -> Opened:
    # The decoder of JPEG used for TIFF fills what is missing with grey.
    return _pillow(JpegImageFile(io.BytesIO(content)))


def _bmp(content: bytes) -> Opened:
    return _pillow(BmpImageFile(io.BytesIO(content)))


def _pillow(image: ImageFile) -> Opened:
    # Made by its class, not by `Image.open`, which has limits of its own and warns of them.
    header = image.height, image.width, MODE_CHANNELS[image.mode], 1

    def decode() -> Iterator[np.ndarray]:
        for top in range(0, image.height, ROWS):
            block = image.crop((0, top, image.width, min(top + ROWS, image.height)))
            yield np.asarray(block.convert("RGB") if image.mode == "P" else block)

    return header, decode
