"""TIFF files, strip by strip or tile by tile."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from nuctut.own_images import pixel_sizes
from nuctut.own_images.limits import (
    CUT_OFF,
    Refused,
    check_channels,
    check_finite,
    check_piece,
    check_shape,
    decoding,
)
from nuctut.own_images.spooled import DiskArray, Spooled

ROWS = 256  # copied together, at most
BLOCK = 2**24  # bytes that are copied together, about
NO_IMAGE = 0b101  # bits of a page's NewSubfileType: a smaller version, a mask
# Slides: their smaller versions look like other pages, but tifffile knows which the slide is.
SCANNERS = ("avs", "bif", "indica", "ndpi", "philips", "qpi", "scn", "svs")
# Such as tifffile decodes into a buffer of the size that the header says.
BOUNDED = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000}
JPEG = {6, 7}
JPEG_2000 = {33003, 33004, 33005, 34712}
JPEG_XL = {50002, 52546}

Place = tuple[int, int, int]  # (channel, top, left)


@contextmanager
def opened(path: Path) -> Iterator[Tiff]:
    """A TIFF file; the errors are those of `images.opened`."""
    with _silenced(), decoding():
        file = TiffFile(path, _multifile=False)
    with file:
        with _silenced() as complaints, decoding():
            image = Tiff(file)
        if any("offset" in text for text in complaints):
            raise Refused(CUT_OFF)
        yield image


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


class Tiff:
    """A TIFF file: its pages of full resolution, in the order of the file; see `images.ImageFile`.

    What its description says of channels, planes and times is not asked: an acquisition that was
    stopped has fewer pages than it says, and those that are there are good.
    """

    def __init__(self, file: TiffFile) -> None:
        self.file = file
        if not len(file.pages):  # which goes through all of their headers
            raise Refused(CUT_OFF)
        self._pages, self.left_out = _full_resolution(file)
        self._stack = _stack(file)
        self.pages = self._stack.pages if self._stack else len(self._pages)

    def pixel_size(self, page: int) -> pixel_sizes.Sides | None:
        """As `images.ImageFile`."""
        with _silenced(), self._refusals(page):
            return pixel_sizes.of_tiff(self.file, self._page(page))

    def shape(self, page: int) -> tuple[int, int, int]:
        """As `images.ImageFile`."""
        with _silenced(), self._refusals(page):
            return self._shape(self._page(page), page)

    def spool(self, page: int, folder: Path) -> Spooled:
        """As `images.ImageFile`."""
        with _silenced(), self._refusals(page):
            return self._spool(page, folder)

    @contextmanager
    def _refusals(self, page: int) -> Iterator[None]:
        """Says in a refusal which page it is, where there are several."""
        try:
            with decoding():
                yield
        except Refused as error:
            if self.pages == 1:
                raise
            raise Refused(f"page {page}: {error}") from error

    def _page(self, page: int) -> TiffPage:
        first, *below = self._pages[0 if self._stack else page]
        found = self.file.pages.get(first)
        return found.pages.get(below[0]) if below else found

    def _shape(self, page: TiffPage, number: int) -> tuple[int, int, int]:
        if page.imagedepth > 1:
            raise Refused("is a volume within one page; save its planes as pages of their own.")
        check_shape(page.imagelength, page.imagewidth)
        if page.dtype is None or page.dtype.kind not in "buif":
            raise Refused(
                f"has {page.dtype or 'unknown'} pixels; expected integers or real numbers."
            )
        channels = _Meaning.of(page).channels
        if self._raw(page, number) is None:
            _check_parts(page, self.file.filehandle.size)
        return page.imagelength, page.imagewidth, channels

    def _raw(self, page: TiffPage, number: int) -> int | None:
        """Where the pixels lie in the file as they are, one after the other; None if they do not.

        Raises:
            Refused: When the file ends before them.
        """
        if self._stack:
            offset = self._stack.offset + number * page.nbytes
        elif page.is_memmappable and page.dataoffsets[0] > 0:
            offset = page.dataoffsets[0]
        else:
            return None
        if offset + page.nbytes > self.file.filehandle.size:
            raise Refused(CUT_OFF)
        return offset

    def _spool(self, number: int, folder: Path) -> Spooled:
        page = self._page(number)
        *shape, channels = self._shape(page, number)
        meaning, offset = _Meaning.of(page), self._raw(page, number)
        paths = [folder / f"channel{channel}" for channel in range(channels)]
        planes = tuple(DiskArray(path, tuple(shape), meaning.dtype) for path in paths)
        parts = self._decoded(page) if offset is None else self._mapped(page, offset)
        for (channel, top, left), part in parts:
            check_finite(part)
            part = np.moveaxis(meaning.convert(part), -1, 0)
            for plane, pixels in zip(planes[channel:], part, strict=False):
                pixels = pixels[: shape[0] - top, : shape[1] - left]
                height, width = pixels.shape
                plane[top : top + height, left : left + width] = pixels
        return Spooled(planes, meaning.dtype)

    def _mapped(self, page: TiffPage, offset: int) -> Iterator[tuple[Place, np.ndarray]]:
        """Places and (h, w, channels) pixels of blocks of rows."""
        dtype = np.dtype(self.file.byteorder + page.dtype.char)
        rows = max(1, min(ROWS, BLOCK * page.imagelength // page.nbytes))
        for top in range(0, page.imagelength, rows):
            whole = np.memmap(self.file.filehandle.path, dtype, "r", offset, page.shaped)
            block = np.array(whole[:, 0, top : top + rows])
            del whole  # see DiskArray
            yield (0, top, 0), np.concatenate(list(block), -1)

    def _decoded(self, page: TiffPage) -> Iterator[tuple[Place, np.ndarray]]:
        """Places and (h, w, channels) pixels of strips or tiles."""
        parts = ("jpegtables", "jpegheader") if page.compression in JPEG else ()
        jpeg = {
            name: getattr(page, name) for name in parts
        }  # of a JPEG, kept elsewhere in the file
        for index in range(prod(page.chunked)):
            offset, size = page.dataoffsets[index], page.databytecounts[index]
            data = None
            if size:
                self.file.filehandle.seek(offset)
                data = self.file.filehandle.read(size)
                _check_stream(page, data)
            pixels, (channel, _, top, left, _), shape = page.decode(data, index, **jpeg)
            if pixels is None:  # left out, as is allowed where there is nothing to see
                pixels = np.full(shape, page.nodata, page.dtype)
            yield (channel, top, left), pixels[0]


# --- which pages ---------------------------------------------------------------------------------


def _full_resolution(file: TiffFile) -> tuple[list[tuple[int, ...]], int]:
    """The pages that are images, as indices into the tree of pages, and how many are left out.

    A page that is a smaller version is none, but it may have the image itself below it.
    """
    if any(getattr(file, f"is_{name}") for name in SCANNERS):
        slide = file.series[0].levels[0].pages
        return [page.treeindex for page in slide], len(file.series) - 1
    found = []
    for index, page in enumerate(file.pages):
        if not page.subfiletype & NO_IMAGE:
            found.append((index,))
        elif page.subifds:
            below = enumerate(page.pages)
            found += [(index, n) for n, one in below if not one.subfiletype & NO_IMAGE]
    return found or [(index,) for index in range(len(file.pages))], 0


@dataclass(frozen=True)
class _Stack:
    """Raw pages one after the other, of which only the first has a header."""

    offset: int
    pages: int


def _stack(file: TiffFile) -> _Stack | None:
    """Such as ImageJ and MetaMorph write."""
    if len(file.pages) > 1 or not (file.is_imagej or file.is_shaped or file.is_stk):
        return None
    series = file.series[0]
    pages = series.size // file.pages.first.size
    return _Stack(series.dataoffset, pages) if series.dataoffset and pages > 1 else None


# --- what the numbers mean -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Meaning:
    """What a page's numbers become.

    Attributes:
        channels: That are kept: 1 or 3.
        dtype: Of the intensities.
        convert: (h, w, samples) numbers → (h, w, channels or more) intensities.
    """

    channels: int
    dtype: np.dtype
    convert: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, page: TiffPage) -> _Meaning:
        """The page's photometric interpretation.

        Raises:
            Refused: When it is none of grey and RGB, or what can be made such.
        """
        known = 262 in page.tags  # tifffile takes white for 0 where nothing is said
        kind = page.photometric if known else PHOTOMETRIC.MINISBLACK
        channels = page.samplesperpixel - _transparency(page, kind)
        dtype = np.dtype(np.uint8 if page.dtype.kind == "b" else page.dtype).newbyteorder("=")
        if kind == PHOTOMETRIC.PALETTE and channels == 1:
            return cls(3, np.dtype(np.uint8), _palette(page))
        check_channels(channels)
        if kind == PHOTOMETRIC.MINISWHITE:
            return cls(channels, dtype, _inverted(page))
        # tifffile turns the YCbCr of a JPEG into RGB
        is_jpeg = kind == PHOTOMETRIC.YCBCR and page.compression in JPEG and channels == 3
        if kind in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB) or is_jpeg:
            return cls(channels, dtype, lambda pixels: pixels)
        name = getattr(kind, "name", kind)
        raise Refused(f"has colours of the kind {name}; expected grey or RGB: export it as RGB.")


def _transparency(page: TiffPage, kind: int) -> int:
    """How many samples of a pixel, the last ones, are no channel."""
    if kind == PHOTOMETRIC.RGB:
        return int(page.samplesperpixel == 4)
    return int(page.samplesperpixel > 1 and tuple(page.extrasamples)[-1:] in ((1,), (2,)))


def _palette(page: TiffPage) -> Callable[[np.ndarray], np.ndarray]:
    colours = page.colormap
    if page.dtype.kind not in "bu" or page.bitspersample > 16 or colours is None:
        raise Refused("has a palette without colours; export it as grey or RGB.")
    if colours.shape != (3, 2**page.bitspersample):
        raise Refused("has a palette of the wrong length; export it as grey or RGB.")
    table = np.ascontiguousarray((colours >> 8).astype(np.uint8).T)
    return lambda pixels: table[pixels[..., 0].astype(np.intp)]


def _inverted(page: TiffPage) -> Callable[[np.ndarray], np.ndarray]:
    if page.dtype.kind not in "bu" or not isinstance(page.bitspersample, int):
        raise Refused(
            f"says that white is 0, and has {page.dtype} pixels; expected integers without sign: "
            "export it with black as 0."
        )
    if page.dtype.kind == "b":
        return np.logical_not
    highest = page.dtype.type(2**page.bitspersample - 1)
    return lambda pixels: highest - pixels


# --- strips and tiles ----------------------------------------------------------------------------


def _check_parts(page: TiffPage, size: int) -> None:
    """Raise Refused for strips or tiles that are missing, too large, or not to be bounded."""
    known = BOUNDED | JPEG | JPEG_2000 | JPEG_XL
    if page.compression not in known:
        name = getattr(page.compression, "name", page.compression)
        raise Refused(f"is compressed as {name}, which is not read; save it with LZW or deflate.")
    count = prod(page.chunked)
    offsets, sizes = page.dataoffsets[:count], page.databytecounts[:count]
    if not len(offsets) == len(sizes) == count:
        raise Refused(CUT_OFF)
    for offset, length in zip(offsets, sizes, strict=True):
        if offset + length > size or (offset > 0) != (length > 0):
            raise Refused(CUT_OFF)
    check_piece(max(_piece(page), *sizes), "a tile" if page.is_tiled else "a strip")


def _piece(page: TiffPage) -> int:
    """Bytes of a decoded strip or tile."""
    values = page.samplesperpixel if page.planarconfig == 1 else 1
    if page.is_tiled:
        values *= page.tiledepth * page.tilelength * page.tilewidth
    else:
        values *= min(page.rowsperstrip, page.imagelength) * page.imagewidth
    return values * page.dtype.itemsize


def _check_stream(page: TiffPage, data: bytes) -> None:
    """Raise Refused for a JPEG that says of itself that it is too large, whatever its page says.

    Its decoder takes as much memory as the JPEG asks for: of the newer kinds, 32 bits a value.
    """
    if page.compression in JPEG:
        check_piece(_values_of_jpeg(data) * page.dtype.itemsize, "a JPEG")
    elif page.compression in JPEG_2000:
        check_piece(_values_of_jpeg_2000(data) * 4, "a JPEG")
    elif page.compression in JPEG_XL:
        check_piece(_pixels_of_jpeg_xl(data) * max(page.samplesperpixel, 4) * 4, "a JPEG")


def _values_of_jpeg(data: bytes) -> int:
    """Height × width × components from the header of its frame; 0 where there is none."""
    place = 0
    while 0 <= (place := data.find(b"\xff", place)) and place + 10 <= len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return prod(struct.unpack(">HHB", data[place + 5 : place + 10]))
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        place += 1 if marker == 0xFF else 2 if alone else 2 + length
    return 0


def _values_of_jpeg_2000(data: bytes) -> int:
    """Height × width × components from the header of its codestream; 0 where there is none."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 42 > len(data):
        return 0
    return prod(struct.unpack(">II24xH", data[start + 8 : start + 42]))


def _pixels_of_jpeg_xl(data: bytes) -> int:
    """Height × width from the header of its codestream (ISO/IEC 18181-1, SizeHeader).

    Raises:
        Refused: For an animation or a preview, whose pixels are not counted in these.
    """
    header = int.from_bytes(_codestream_of_jpeg_xl(data)[2:18], "little")

    def read(bits: int) -> int:
        nonlocal header
        value, header = header & ((1 << bits) - 1), header >> bits
        return value

    def side() -> int:
        return 8 * (read(5) + 1) if small else 1 + read((9, 13, 18, 30)[read(2)])

    small = read(1)
    height, ratio = side(), read(3)
    ratios = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
    width = height * ratios[ratio - 1][0] // ratios[ratio - 1][1] if ratio else side()
    plain = read(1) or not read(1)  # all as usual, or without what is unusual in an image
    if not plain:
        raise Refused("has a JPEG XL that is more than an image; save it with LZW or deflate.")
    return height * width


def _codestream_of_jpeg_xl(data: bytes) -> bytes:
    """Where it begins: at once, or in the first box that holds it; empty where there is none."""
    if data[:2] == b"\xff\x0a":
        return data
    place = 0
    while place + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        start = place + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        if kind in (b"jxlc", b"jxlp"):
            return data[start + 4 * (kind == b"jxlp") :]
        if size < start - place:  # 0: the rest of the file
            break
        place += size
    return b""
