"""PNG, JPEG and BMP files: one page, decoded as a whole, and no pixel size to be believed."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from nuctut.own_images.limits import (
    Refused,
    check_channels,
    check_piece,
    check_shape,
    decoding,
)
from nuctut.own_images.spooled import DiskArray, Spooled

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
        shape = self.shape(page)
        with decoding():
            pixels = self._decode()
            pixels = np.atleast_3d(pixels.view(np.uint8) if pixels.dtype == bool else pixels)
        pixels = pixels[..., : shape[2]]
        if pixels.shape != shape:
            raise Refused("cannot be read: its header and its pixels differ; export it again.")
        planes = []
        for channel in range(shape[2]):
            plane = DiskArray(folder / f"channel{channel}", shape[:2], pixels.dtype)
            plane[:] = pixels[..., channel]
            planes.append(plane)
        return Spooled(tuple(planes), pixels.dtype)


# Each gives (height, width, channels that are kept, bytes of a value), and what decodes.
Opened = tuple[tuple[int, int, int, int], Callable[[], np.ndarray]]


def _png(content: bytes) -> Opened:
    # Pillow gives colours of 16 bits as 8.
    width, height, depth, colour = struct.unpack(">IIBB", content[16:26])
    header = height, width, PNG_CHANNELS[colour], 2 if depth == 16 else 1
    return header, lambda: imagecodecs.png_decode(content)


def _jpeg(content: bytes) -> Opened:
    # The decoder of JPEG used for TIFF fills what is missing with grey.
    return _pillow(JpegImageFile(io.BytesIO(content)))


def _bmp(content: bytes) -> Opened:
    return _pillow(BmpImageFile(io.BytesIO(content)))


def _pillow(image: ImageFile) -> Opened:
    # Made by its class, not by `Image.open`, which has limits of its own and warns of them.
    header = image.height, image.width, MODE_CHANNELS[image.mode], 1
    return header, lambda: np.asarray(image.convert("RGB") if image.mode == "P" else image)
