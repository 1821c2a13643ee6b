"""Image files of many kinds, page by page, without more than a part of a page in memory.

A page is copied to files of raw pixels first, in which any window can be looked at. TIFF files are
decoded strip by strip or tile by tile on the way; other formats, whose images are smaller, as a
whole.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from nuctut.own_images import tiffs
from nuctut.own_images.limits import Refused
from nuctut.own_images.pictures import Picture
from nuctut.own_images.pixel_sizes import Sides
from nuctut.own_images.spooled import Spooled

SUFFIXES = (".tif", ".tiff", ".btf", ".png", ".jpg", ".jpeg", ".bmp")
MAGIC = {
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"BM": "bmp",
}


class ImageFile(Protocol):
    """An open image file.

    Attributes:
        pages: Number of pages, each an image by itself: all of full resolution that the file
            holds, in its order.
        left_out: Number of pictures in the file of a scanned slide that are not the slide.
    """

    pages: int
    left_out: int

    def pixel_size(self, page: int) -> Sides | None:
        """Height and width of a pixel in µm, where the file says so in a way to be believed."""

    def shape(self, page: int) -> tuple[int, int, int]:
        """Height, width and number of channels that are kept of a page, counted from 0.

        It is told by headers; nothing is decoded.

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
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
        raise Refused("is no file; give an image.")
    with path.open("rb") as file:
        start = file.read(4)
    kinds = [kind for magic, kind in MAGIC.items() if start.startswith(magic)]
    if not kinds:
        empty = "it is empty" if not start else "it is none of TIFF, PNG, JPEG and BMP"
        raise Refused(f"is no image: {empty}; give an image, or leave this file out.")
    if kinds[0] == "tiff":
        with tiffs.opened(path) as image:
            yield image
    else:
        yield Picture(path, kinds[0])
