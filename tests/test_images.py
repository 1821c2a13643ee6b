"""Image files of every kind give the pixels that were put into them, or say what is wrong."""

from __future__ import annotations

import io
import re
import tracemalloc
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from nuctut.own_images import limits, pixel_sizes, spooled, tiffs
from nuctut.own_images.images import opened
from nuctut.own_images.spooled import DiskArray, Spooled, resampling, rescaled

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 4096, (300, 70)).astype(np.uint16)  # more rows than are copied together
RGB = RNG.integers(0, 256, (300, 70, 3)).astype(np.uint8)


def read(path: Path, page: int = 0) -> np.ndarray:
    folder = path.with_suffix(f".{page}.spool")
    folder.mkdir(exist_ok=True)
    with opened(path) as image:
        spooled = image.spool(page, folder)
        channels = image.shape(page)[2]
    pixels = spooled.read((0, spooled.shape[0]))
    assert spooled.dtype == pixels.dtype
    assert (pixels.shape[2] if pixels.ndim == 3 else 1) == channels
    return pixels


def reason(path: Path, page: int = 0) -> str:
    with pytest.raises(ValueError) as raised:
        read(path, page)
    told = str(raised.value)
    assert told.count("\n") == 0 and told.endswith(".")
    return told


@pytest.fixture
def tif(tmp_path):
    def write(pixels: np.ndarray, **how) -> Path:
        path = tmp_path / "image.tif"
        if not {"photometric", "imagej", "ome"} & set(how):
            how["photometric"] = "rgb" if pixels.shape[-1] in (3, 4) else "minisblack"
        tifffile.imwrite(path, pixels, **how)
        return path

    return write


# --- arrays in files -----------------------------------------------------------------------------


def test_windows_of_an_array_in_a_file(tmp_path):
    array = DiskArray(tmp_path / "array", (7, 5), np.uint16)
    truth = np.zeros((7, 5), np.uint16)
    for top, left, bottom, right in ((0, 0, 7, 5), (2, 1, 4, 3), (6, 4, 9, 9), (1, 0, 3, 5)):
        rows, columns = slice(top, bottom), slice(left, right)
        values = RNG.integers(0, 999, truth[rows, columns].shape)
        array[rows, columns] = truth[rows, columns] = values
        np.testing.assert_array_equal(array[:], truth)
    array[1:3] = truth[1:3] = RNG.integers(0, 999, (2, 5))
    np.testing.assert_array_equal(array[0:4, 2:5], truth[0:4, 2:5])
    assert (tmp_path / "array").stat().st_size == 70


# --- formats -------------------------------------------------------------------------------------


DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", ">u2", ">f4"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "rowsperstrip": 7}])
def test_tiff_of_every_type(tif, dtype, how):
    pixels = (GREY // 64).astype(dtype)
    made = read(tif(pixels, byteorder=">" if dtype[0] == ">" else "<", **how))
    assert made.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(made, pixels)


LAYOUTS = [
    {},
    {"rowsperstrip": 7},
    {"tile": (32, 48)},
    {"compression": "zlib"},
    {"compression": "lzw", "predictor": True, "rowsperstrip": 50},
    {"compression": "zstd", "tile": (64, 16)},
    {"compression": "packbits", "rowsperstrip": 9},
    {"compression": "lzma"},
    {"bigtiff": True},
]


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_every_layout(tif, how, planar):
    np.testing.assert_array_equal(read(tif(GREY, **how)), GREY)
    pixels = RGB if planar == "contig" else np.moveaxis(RGB, -1, 0)
    how = {"photometric": "rgb", "planarconfig": planar} | how
    np.testing.assert_array_equal(read(tif(pixels, **how)), RGB)


def test_packed_pixels_of_12_bits_and_of_one(tif):
    np.testing.assert_array_equal(read(tif(GREY, bitspersample=12)), GREY)
    mask = GREY > 2000
    made = read(tif(mask))
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, mask)


def test_a_mask_compressed_as_faxes_are(tmp_path):
    mask = np.pad(GREY[:40, :40] > 2000, 10)
    for kind in ("group3", "group4"):
        Image.fromarray(mask).save(tmp_path / "image.tif", compression=kind)
        np.testing.assert_array_equal(read(tmp_path / "image.tif"), mask)


def test_transparency_is_dropped(tif, tmp_path):
    alpha = np.concatenate([RGB, RGB[..., :1]], -1)
    np.testing.assert_array_equal(read(tif(alpha, extrasamples=["unassalpha"])), RGB)
    path = tmp_path / "image.png"
    path.write_bytes(imagecodecs.png_encode(alpha))
    np.testing.assert_array_equal(read(path), RGB)
    path.write_bytes(imagecodecs.png_encode(alpha[..., :2].copy()))
    np.testing.assert_array_equal(read(path), RGB[..., 0])


@pytest.mark.parametrize("pixels", [GREY, RGB, RGB[..., 0], RGB.astype(np.uint16) * 257])
def test_png(tmp_path, pixels):
    path = tmp_path / "no_suffix"
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    made = read(path)
    assert made.dtype == pixels.dtype
    np.testing.assert_array_equal(made, pixels)


@pytest.mark.parametrize("kind", ["BMP", "JPEG"])
@pytest.mark.parametrize("pixels", [RGB, RGB[..., 0]])
def test_other_formats(tmp_path, kind, pixels):
    path = tmp_path / "image"
    smooth = np.broadcast_to(np.arange(70, dtype=np.uint8)[:, None], (300, 70, 3))
    smooth = smooth if pixels.ndim == 3 else smooth[..., 0]
    Image.fromarray(np.ascontiguousarray(smooth)).save(path, kind)
    np.testing.assert_allclose(read(path).astype(int), smooth, atol=0 if kind == "BMP" else 2)


@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}, {"imagej": True}, {"ome": True}])
def test_every_page_is_an_image(tif, how):
    stack = np.stack([GREY, GREY[::-1], GREY // 2])
    path = tif(stack, **how)
    with opened(path) as image:
        assert (image.pages, image.left_out) == (3, 0)
    for number, page in enumerate(stack):
        np.testing.assert_array_equal(read(path, number), page)


def test_a_stack_of_which_only_the_first_page_has_a_header(tmp_path):
    stack = np.stack([GREY, GREY[::-1]])
    tifffile.imwrite(tmp_path / "image.tif", stack, imagej=True, metadata={"axes": "TYX"})
    with tifffile.TiffWriter(tmp_path / "image.tif", imagej=True) as file:
        file.write(stack, truncate=True)
    assert len(tifffile.TiffFile(tmp_path / "image.tif").pages) == 1
    np.testing.assert_array_equal(read(tmp_path / "image.tif", 1), stack[1])


def test_smaller_versions_are_no_pages_and_other_images_are(tmp_path):
    path = tmp_path / "image.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GREY, subifds=1, photometric="minisblack")
        file.write(GREY[::2, ::2], subfiletype=1, photometric="minisblack")
        file.write(GREY[::4, ::4], subfiletype=1, photometric="minisblack")
        file.write(GREY > 9, subfiletype=4, photometric="mask")
        file.write(RGB[:50], photometric="rgb")
    with opened(path) as image:
        assert (image.pages, image.left_out) == (2, 0)
    np.testing.assert_array_equal(read(path), GREY)
    np.testing.assert_array_equal(read(path, 1), RGB[:50])


def test_images_of_one_size_written_one_by_one_are_all_pages(tmp_path):
    for ome in (False, True):
        path = tmp_path / "image.tif"
        with tifffile.TiffWriter(path, ome=ome) as file:
            for turn in range(3):
                file.write(np.roll(GREY, turn), photometric="minisblack", metadata={"axes": "YX"})
        with opened(path) as image:
            assert (image.pages, image.left_out) == (3, 0)
        for turn in range(3):
            np.testing.assert_array_equal(read(path, turn), np.roll(GREY, turn))


def test_a_thumbnail_that_comes_first_is_not_the_image(tmp_path):
    path = tmp_path / "image.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GREY[::4, ::4], subfiletype=1, photometric="minisblack")
        file.write(GREY, photometric="minisblack")
    np.testing.assert_array_equal(read(path), GREY)
    with tifffile.TiffWriter(path) as file:  # as cameras write it
        file.write(GREY[::4, ::4], subfiletype=1, subifds=1, photometric="minisblack")
        file.write(GREY, photometric="minisblack")
    with opened(path) as image:
        assert image.pages == 1
    np.testing.assert_array_equal(read(path), GREY)
    with tifffile.TiffWriter(path) as file:  # nothing but a thumbnail
        file.write(GREY[::4, ::4], subfiletype=1, photometric="minisblack")
    np.testing.assert_array_equal(read(path), GREY[::4, ::4])


def test_a_slide_is_told_from_what_is_beside_it(tmp_path):
    path = tmp_path / "slide.tif"
    about = "Aperio Image Library v1.0\r\n80x96 [0,0 80x96] (16x16) JPEG/RGB Q=30|MPP = 0.5"
    slide = RGB[:96, :64]
    how = {"photometric": "rgb", "tile": (16, 16), "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(slide, description=about, **how)
        file.write(slide[::4, ::4], description=about, photometric="rgb", metadata=None)
        file.write(slide[::2, ::2], description=about, **how)
        file.write(RGB[:30], subfiletype=1, description="label 9x9", photometric="rgb")
    with opened(path) as image:
        assert (image.pages, image.left_out) == (1, 2)
    np.testing.assert_array_equal(read(path), slide)


def test_an_acquisition_that_was_stopped_has_the_pages_that_are_there(tmp_path):
    path = tmp_path / "image.tif"
    stack = np.stack([GREY, GREY[::-1]])
    tifffile.imwrite(path, stack, ome=True, metadata={"axes": "TYX"}, photometric="minisblack")
    content = path.read_bytes()
    for number in (b"5", b"9"):
        path.write_bytes(content.replace(b'SizeT="2"', b'SizeT="%s"' % number))
        with opened(path) as image:
            assert image.pages == 2
        for number, page in enumerate(stack):
            np.testing.assert_array_equal(read(path, number), page)
    path.write_bytes(content.replace(b"<OME ", b"<OMA "))  # no XML at all
    np.testing.assert_array_equal(read(path, 1), stack[1])


# --- what the numbers mean -----------------------------------------------------------------------


COLOURS = RNG.integers(0, 256, (3, 256)).astype(np.uint16)


@pytest.mark.parametrize("scale", [256, 257])  # both are written: 255 is 65280, or 65535
@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "tile": (64, 64)}])
def test_a_palette_is_expanded_as_that_of_a_png(tif, tmp_path, scale, how):
    pixels = (GREY % 256).astype(np.uint8)
    path = tif(pixels, photometric="palette", colormap=COLOURS * scale, **how)
    picture = Image.fromarray(pixels).convert("L").convert("P")
    picture.putpalette(COLOURS.T.astype(np.uint8).tobytes())
    picture.save(tmp_path / "same.png")
    np.testing.assert_array_equal(read(path), read(tmp_path / "same.png"))
    np.testing.assert_array_equal(read(path), COLOURS.T[pixels])


def test_a_palette_of_16_bits_and_a_broken_one(tif):
    colours = RNG.integers(0, 65536, (3, 65536)).astype(np.uint16)
    path = tif(GREY, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read(path), colours.T[GREY] >> 8)
    path = tif((GREY % 256).astype(np.uint8), photometric="palette", colormap=COLOURS)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[320].overwrite(COLOURS[:, :9].ravel())
    assert "palette" in reason(path)


@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "rowsperstrip": 7}])
def test_white_that_is_0_is_inverted(tif, how):
    for pixels, highest in ((GREY, 65535), (RGB[..., 0], 255)):
        made = read(tif(pixels, photometric="miniswhite", **how))
        assert made.dtype == pixels.dtype
        np.testing.assert_array_equal(made, highest - pixels)
    made = read(tif(GREY, photometric="miniswhite", bitspersample=12))
    np.testing.assert_array_equal(made, 4095 - GREY)
    np.testing.assert_array_equal(read(tif(GREY > 9, photometric="miniswhite", **how)), GREY <= 9)
    assert "white is 0" in reason(tif(GREY.astype("f4"), photometric="miniswhite", **how))


def test_where_nothing_says_what_the_numbers_mean_black_is_0(tif):
    path = tif(GREY)
    content = path.read_bytes()
    tag = (262).to_bytes(2, "little") + (3).to_bytes(2, "little")
    path.write_bytes(content.replace(tag, (60000).to_bytes(2, "little") + tag[2:], 1))
    np.testing.assert_array_equal(read(path), GREY)


def test_colours_of_a_jpeg_are_rgb_and_other_kinds_are_refused_by_name(tif, tmp_path):
    smooth = np.broadcast_to(np.arange(70, dtype=np.uint8)[:, None], (300, 70, 3))
    smooth = np.ascontiguousarray(smooth * [1, 2, 3], np.uint8)
    jpeg = imagecodecs.jpeg8_encode(smooth, 95, colorspace="RGB", outcolorspace="YCBCR")
    how = {"shape": smooth.shape, "dtype": "uint8", "rowsperstrip": 300, "compression": "jpeg"}
    tifffile.imwrite(tmp_path / "jpeg.tif", iter([jpeg]), photometric="ycbcr", **how)
    with tifffile.TiffFile(tmp_path / "jpeg.tif") as file:
        assert file.pages[0].photometric == 6
    np.testing.assert_allclose(read(tmp_path / "jpeg.tif").astype(int), smooth, atol=12)
    how = {"planarconfig": "contig", "compression": "zlib"}
    for kind in ("ycbcr", "cielab"):
        told = reason(tif(RGB, photometric=kind, **how))
        assert f"colours of the kind {kind.upper()}; expected grey or RGB" in told


# --- what is left out ----------------------------------------------------------------------------


def sparse(path: Path, fill: str | None = None) -> Path:
    """Tiles of which the second, third and last are empty."""
    tiles = [GREY[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16, 32)]
    packed = [imagecodecs.zlib_encode(np.ascontiguousarray(tile).tobytes()) for tile in tiles]
    packed[1] = packed[2] = packed[5] = b""
    how = {"shape": (32, 48), "dtype": "uint16", "tile": (16, 16), "compression": "zlib"}
    extra = [(42113, "s", 0, fill, True)] if fill else None
    tifffile.imwrite(path, iter(packed), photometric="minisblack", extratags=extra, **how)
    return path


@pytest.mark.parametrize("fill", [None, "7"])
def test_tiles_that_are_left_out_are_zeros_or_the_fill_of_the_file(tmp_path, fill):
    expected = GREY[:32, :48].copy()
    expected[:16, 16:] = expected[16:, 32:] = int(fill or 0)
    np.testing.assert_array_equal(read(sparse(tmp_path / "image.tif", fill)), expected)


def test_strips_that_are_left_out_and_the_only_one(tmp_path):
    path = tmp_path / "image.tif"
    strips = [imagecodecs.zlib_encode(GREY[:150].tobytes()), b""]
    how = {"shape": (300, 70), "dtype": "uint16", "rowsperstrip": 150, "compression": "zlib"}
    tifffile.imwrite(path, iter(strips), photometric="minisblack", **how)
    np.testing.assert_array_equal(read(path), np.where(np.arange(300)[:, None] < 150, GREY, 0))
    tifffile.imwrite(path, GREY, photometric="minisblack")
    for tag in (273, 279):
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags[tag].overwrite([0])
    assert not read(path).any()


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "is no image: it is empty"), (b"hello, world", "is no image: it is none of TIFF")],
)
def test_what_is_no_image(tmp_path, content, told):
    path = tmp_path / "image.tif"
    path.write_bytes(content)
    assert told in reason(path)


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_tiff_that_is_cut_off(tif, how, kept):
    path = tif(np.stack([GREY, GREY]), **how)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert re.search("cut off|cannot be read", reason(path, 0) if kept < 0.5 else reason(path, 1))


def test_a_tiff_whose_later_pages_are_cut_off(tmp_path):
    """Written page after page: what is left is a good file of fewer pages, but for one number."""
    path = tmp_path / "image.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(3):
            file.write(GREY, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        end = file.pages[1].offset
    path.write_bytes(path.read_bytes()[:end])
    assert "cut off" in reason(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_other_formats_that_are_cut_off(tmp_path, kind):
    path = tmp_path / "image"
    Image.fromarray(RGB).save(path, kind)
    path.write_bytes(path.read_bytes()[:-3000])
    assert "cannot be read" in reason(path)


def test_damaged_strips(tif):
    path = tif(GREY, compression="zlib", rowsperstrip=10)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    path.write_bytes(content)
    assert "cannot be read" in reason(path)


@pytest.mark.parametrize("tag", [273, 279])
def test_missing_strips(tif, tag):
    """One of which the place is told and not the length, or the other way round."""
    path = tif(GREY, rowsperstrip=150, compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        found = file.pages[0].tags[tag]
        found.overwrite([found.value[0], 0])
    assert "cut off" in reason(path)


def test_a_page_that_is_wrong_is_named(tmp_path):
    path = tmp_path / "image.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GREY, photometric="minisblack")
        file.write(np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read(path), GREY)
    assert reason(path, 1).startswith("page 1: has 5 channels")


def test_transparency_beside_grey_is_dropped(tif):
    pixels = RGB[..., :2]
    how = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    np.testing.assert_array_equal(read(tif(pixels, **how)), RGB[..., 0])


# --- what would fill the memory ------------------------------------------------------------------


def resized(path: Path, **tags: int) -> Path:
    """The file saying another size than it has."""
    for name, value in tags.items():
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags[name].overwrite(value)
    return path


SIDES = {"ImageWidth": 40_000, "ImageLength": 40_000}


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg", "packbits", "zstd"])
def test_a_strip_or_tile_that_is_too_large_is_not_decoded(tif, compression):
    pixels = RGB[..., 0].copy()
    path = resized(tif(pixels, compression=compression, rowsperstrip=300), **SIDES)
    resized(path, RowsPerStrip=40_000)
    assert "decoded in one piece (a strip) of 1.6 GB; expected at most 268.4 MB" in reason(path)
    path = tif(pixels, compression=compression, tile=(304, 80))
    resized(path, **SIDES, TileWidth=40_000, TileLength=40_000)
    assert "decoded in one piece (a tile) of 1.6 GB" in reason(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_a_picture_that_is_too_large_is_not_decoded(tmp_path, kind):
    path = tmp_path / "image"
    Image.fromarray(RGB).save(path, kind)
    content = path.read_bytes()
    height, width = (300).to_bytes(2, "big"), (70).to_bytes(2, "big")
    large = (40_000).to_bytes(2, "big")
    old = {"PNG": b"\0\0" + width + b"\0\0" + height, "JPEG": height + width}
    new = {"PNG": (b"\0\0" + large) * 2, "JPEG": large * 2}
    old["BMP"] = (70).to_bytes(4, "little") + (300).to_bytes(4, "little")
    new["BMP"] = (40_000).to_bytes(4, "little") * 2
    assert content.count(old[kind]) == 1
    path.write_bytes(content.replace(old[kind], new[kind]))
    with opened(path) as image, pytest.raises(ValueError, match=r"\(the whole image\) of 4\.8 GB"):
        image.shape(0)
    assert "one piece (the whole image) of 4.8 GB" in reason(path)


@pytest.mark.parametrize("bound", [300 * 70 * 2, 300 * 70 * 2 - 1])
def test_the_bound_is_exact(tif, tmp_path, monkeypatch, bound):
    monkeypatch.setattr(limits, "LARGEST", bound)
    one = tif(GREY, compression="zlib", rowsperstrip=300)
    picture = tmp_path / "image.png"
    picture.write_bytes(imagecodecs.png_encode(GREY // 1000))
    for path in (one, picture):
        if bound == GREY.nbytes:
            read(path)
        else:
            assert "in one piece" in reason(path)
    np.testing.assert_array_equal(read(tif(GREY)), GREY)  # copied as it is, in blocks
    np.testing.assert_array_equal(read(tif(GREY, compression="zlib", rowsperstrip=10)), GREY)


def test_a_file_that_is_too_large_for_a_picture_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "image.bmp"
    Image.fromarray(RGB).save(path)
    monkeypatch.setattr(limits, "LARGEST", RGB.nbytes)  # its header is the rest
    assert "in one piece (its file)" in reason(path)


def test_blocks_of_a_wide_image_are_no_larger_than_others(tif):
    path = tif(np.ones((96, 2**20), np.uint8))
    tracemalloc.start()
    try:
        with opened(path) as image:
            image.spool(0, path.parent)
        assert tracemalloc.get_traced_memory()[1] < 60e6  # three blocks; it has 100 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["jpeg", "jpeg2000"])
def test_a_jpeg_in_a_tile_that_says_it_is_larger(tif, kind):
    pixels = RGB[..., 0].copy()
    path = tif(pixels, compression=kind, tile=(304, 80))
    content = bytearray(path.read_bytes())
    if kind == "jpeg":
        place = content.find(b"\xff\xc0") + 5
        assert content[place : place + 4] == bytes([304 // 256, 304 % 256, 0, 80])
        content[place : place + 4] = (60_000).to_bytes(2, "big") * 2
    else:
        place = content.find(b"\xff\x4f\xff\x51") + 8
        assert content[place : place + 8] == bytes([0, 0, 0, 80, 0, 0, 1, 48])
        content[place : place + 8] = (60_000).to_bytes(4, "big") * 2
    np.testing.assert_allclose(read(path), pixels, atol=255 if kind == "jpeg" else 0)
    path.write_bytes(content)
    assert "in one piece (a JPEG)" in reason(path)


ENCODED = {"shape": (48, 48), "dtype": np.uint8, "compression": "jpegxl"}
ENCODED |= {"photometric": "minisblack", "rowsperstrip": 48}


def encoded(file: tifffile.TiffFile) -> list[bytes]:
    page = file.pages[0]
    parts = zip(page.dataoffsets, page.databytecounts, strict=True)
    return [part for part, _ in file.filehandle.read_segments(*zip(*parts, strict=True))]


@pytest.mark.parametrize("shape", [(30, 40), (32, 64), (300, 300), (600, 400), (9, 16), (3000, 2)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_jpeg_xl(tif, shape, kind):
    pixels = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    path = tif(pixels, compression="jpegxl", compressionargs={"lossless": True})
    with tifffile.TiffFile(path) as file:
        strips = [tiffs._pixels_of_jpeg_xl(data) for data in encoded(file)]
    assert sum(strips) == pixels.size
    np.testing.assert_array_equal(read(path), pixels)


@pytest.mark.parametrize("boxed", [False, True])
def test_a_jpeg_xl_that_says_it_is_larger(tif, boxed):
    huge = 60_000
    bits = [(0, 1), (2, 2), (huge - 1, 18), (0, 3), (2, 2), (huge - 1, 18), (1, 1)]
    header = place = 0
    for value, size in bits:
        header, place = header | value << place, place + size
    stream = b"\xff\x0a" + header.to_bytes(16, "little")
    if boxed:  # behind one that looks like it
        decoy = b"free\xff\x0a\x7f@jxlc\xff\x0a\x7f@"
        stream = (len(decoy) + 4).to_bytes(4, "big") + decoy + b"\0\0\0\0jxlc" + stream
    path = tif(iter([stream]), **ENCODED)
    assert "in one piece (a JPEG)" in reason(path)


def test_an_animation_is_no_image(tif):
    film = imagecodecs.jpegxl_encode(np.zeros((3, 48, 48), np.uint8), photometric="gray")
    path = tif(iter([film]), **ENCODED)
    assert "more than an image" in reason(path)


def test_a_side_that_no_image_has_and_a_compression_that_says_nothing_of_size(tif):
    path = resized(tif(GREY, compression="zlib"), ImageWidth=2**31)
    assert "has 2147483648 × 300 pixels; expected 1 to 1,048,576 a side" in reason(path)
    path = resized(tif(RGB, compression="zlib"), Compression=50001)
    assert "compressed as WEBP, which is not read" in reason(path)


@pytest.mark.parametrize("channels", [2, 5])
def test_wrong_channels(tif, channels):
    pixels = np.zeros((20, 30, channels), np.uint8)
    path = tif(pixels, photometric="minisblack", planarconfig="contig")
    assert f"has {channels} channels; expected grey or RGB" in reason(path)


def test_four_channels_are_no_colours_and_transparency_unless_said(tif):
    pixels = np.zeros((20, 30, 4), np.uint8)
    path = tif(pixels, photometric="separated", planarconfig="contig")
    assert "has 4 channels" in reason(path)


def test_complex_pixels(tif):
    assert "has complex64 pixels" in reason(tif(GREY.astype(np.complex64)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "tile": (64, 64)}])
def test_pixels_that_are_no_numbers(tif, value, how):
    stack = np.stack([GREY, GREY]).astype(np.float32)
    stack[1, 270, 60] = value
    path = tif(stack, **how)
    np.testing.assert_array_equal(read(path, 0), GREY)
    assert "page 1: holds pixels that are NaN or infinite" in reason(path, 1)


# --- pixel size ----------------------------------------------------------------------------------


def sides(path: Path, page: int = 0) -> tuple[float, float] | None:
    with opened(path) as image:
        return image.pixel_size(page)


def size(path: Path) -> float | None:
    found = sides(path)
    assert found is None or pixel_sizes.is_square(found)
    return found and found[1]


def physical(x: float, y: float, unit: str = "µm") -> dict:
    sizes = {"PhysicalSizeX": x, "PhysicalSizeY": y}
    return sizes | {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit, "axes": "YX"}


SPELLED = ["µm", "μm", "um", "micron", "Micron", "microns", "MICRONS", "micrometer", "micrometre"]
SPELLED += ["Micrometers", "micrometres", " µm ", "\\u00B5m"]
LENGTHS = [(0.325, unit) for unit in SPELLED]
LENGTHS += [(325.0, "nm"), (325.0, "nanometers"), (0.000325, "mm"), (0.325e-4, "cm")]
LENGTHS += [(0.325e-6, "m"), (3250.0, "Å"), (0.325 / 25400, "in"), (0.325 / 25400, "Inches")]


@pytest.mark.parametrize(("value", "unit"), LENGTHS)
def test_the_pixel_size_of_ome_tiff(tif, value, unit):
    assert size(tif(GREY, ome=True, metadata=physical(value, value, unit))) == pytest.approx(0.325)


@pytest.mark.parametrize(("value", "unit"), LENGTHS)
def test_the_pixel_size_of_imagej(tif, value, unit):
    plain = unit.replace("µ", "\\u00B5").replace("μ", "\\u03BC").replace("Å", "angstrom")
    made = tif(GREY, imagej=True, metadata={"unit": plain}, resolution=(1 / value, 1 / value))
    if "\\u03BC" not in plain:  # which ImageJ does not write
        assert size(made) == pytest.approx(0.325, rel=1e-4)
    how = {"imagej": True, "metadata": {"unit": "pixel"}}
    assert size(tif(GREY, resolution=(1 / value, 1 / value), **how)) is None


NONSENSE = [(1.0, "inch"), (1 / 72, "inch"), (1.0, "mm"), (1.0, "m"), (1e-9, "µm"), (100, "µm")]
NONSENSE += [(1e300, "m"), (0.001, "µm")]


@pytest.mark.parametrize(("value", "unit"), NONSENSE)
def test_a_pixel_size_that_no_microscope_has_is_unknown_whoever_says_it(tif, value, unit):
    assert size(tif(GREY, ome=True, metadata=physical(value, value, unit))) is None
    if 1e-8 < value < 1e9:
        how = {"imagej": True, "resolution": (1 / value, 1 / value)}
        assert size(tif(GREY, metadata={"unit": unit.replace("µ", "u")}, **how)) is None


@pytest.mark.parametrize("text", ["nan", "inf", "-0.3", "0", "", "wide", "1e999"])
def test_a_pixel_size_that_is_no_length_is_unknown(tif, text):
    path = tif(GREY, ome=True, metadata=physical(0.111, 0.111))
    content = path.read_bytes()
    assert size(path) == 0.111
    path.write_bytes(content.replace(b'X="0.111"', f'X="{text}"'.encode()))
    assert size(path) is None
    np.testing.assert_array_equal(read(path), GREY)


def test_every_image_of_a_file_has_its_own_pixel_size(tmp_path):
    path = tmp_path / "image.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for pixels, side in ((GREY, 0.325), (GREY[::2, ::2], 0.65)):
            file.write(pixels, photometric="minisblack", metadata=physical(side, side))
    assert [sides(path, page) for page in (0, 1)] == [(0.325, 0.325), (0.65, 0.65)]
    with tifffile.TiffWriter(path, ome=True) as file:  # nothing says which is which
        for side in (0.325, 0.65):
            file.write(GREY, photometric="minisblack", metadata=physical(side, side))
    assert [sides(path, page) for page in (0, 1)] == [None, None]
    with tifffile.TiffWriter(path) as file:
        for side in (0.325, 0.65):
            how = {"resolution": (1e4 / side, 1e4 / side), "resolutionunit": "CENTIMETER"}
            file.write(GREY, photometric="minisblack", metadata=None, **how)
    assert [sides(path, page)[0] for page in (0, 1)] == pytest.approx([0.325, 0.65])


def test_an_ome_tiff_whose_pixel_size_has_no_length(tif):
    assert size(tif(GREY, ome=True, metadata={"axes": "YX"})) is None
    assert size(tif(GREY, ome=True, metadata=physical(1, 1, "pixel"))) is None


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        (1e4 / 0.325, "CENTIMETER", 0.325),
        (25400 / 0.5, "INCH", 0.5),
        (72, "INCH", None),  # what software writes that does not know
        (96, "INCH", None),
        (1, "NONE", None),
        (1e4 / 0.001, "CENTIMETER", None),
    ],
)
def test_the_pixel_size_of_any_tiff(tif, resolution, unit, expected):
    path = tif(GREY, resolution=(resolution, resolution), resolutionunit=unit)
    assert size(path) == (expected and pytest.approx(expected, rel=1e-4))


def test_pixels_that_are_not_square(tif):
    path = tif(GREY, ome=True, metadata=physical(0.3, 0.4))
    assert sides(path) == (0.4, 0.3) and not pixel_sizes.is_square((0.4, 0.3))
    np.testing.assert_array_equal(read(path), GREY)
    assert size(tif(GREY, ome=True, metadata=physical(0.3, 0.302))) == pytest.approx(0.3)


def test_png_has_no_pixel_size(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG", dpi=(300, 300))
    (tmp_path / "image.png").write_bytes(buffer.getvalue())
    assert size(tmp_path / "image.png") is None


# --- another scale -------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [1, 2, 17, 100])
@pytest.mark.parametrize("after", [1, 3, 17, 40, 250])
def test_resampling_keeps_constants_and_loses_no_pixel(before, after):
    weights = resampling(before, after).toarray()
    assert weights.shape == (after, before) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert (weights >= 0).all() and (weights.sum(0) > 0).all()
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)
    if before == after:
        np.testing.assert_array_equal(weights, np.eye(before))


def test_resampling_keeps_slopes_where_there_are_neighbours():
    line = np.arange(40.0)
    for after in (20, 80):
        made = resampling(40, after) @ line
        centres = (np.arange(after) + 0.5) * 40 / after - 0.5
        inside = (centres > 2) & (centres < 37)
        np.testing.assert_allclose(made[inside], centres[inside], atol=1e-5)


@pytest.mark.parametrize("factor", [0.3, 0.5, 1.7])
@pytest.mark.parametrize("pixels", [GREY, RGB])
def test_blocks_of_rows_leave_no_trace_in_a_rescaled_image(tmp_path, monkeypatch, factor, pixels):
    planes = []
    for number, plane in enumerate(np.moveaxis(np.atleast_3d(pixels), -1, 0)):
        planes.append(DiskArray(tmp_path / f"{number}", plane.shape, plane.dtype))
        planes[-1][:] = plane
    image = Spooled(tuple(planes), pixels.dtype)
    monkeypatch.setattr(spooled, "ROWS", 13)
    made = rescaled(image, factor, tmp_path)
    assert made.shape == (round(300 * factor), round(70 * factor)) and made.dtype == pixels.dtype
    rows, columns = (
        resampling(a, b).toarray() for a, b in zip(image.shape, made.shape, strict=True)
    )
    expected = np.einsum(
        "ay,yxc,bx->abc", rows, np.atleast_3d(pixels).astype(float), columns, optimize=True
    )
    whole = np.atleast_3d(made.read((0, made.shape[0])))
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-2)


def test_a_file_whose_header_was_to_come_at_its_end_is_cut_off(tmp_path):
    """As microscopes write it: pixels first, and what they are behind them."""
    path = tmp_path / "late.tif"
    tifffile.imwrite(path, GREY)
    content = path.read_bytes()
    late = len(content) + 1000
    path.write_bytes(content[:4] + late.to_bytes(4, "little") + content[8:])
    assert "cut off" in reason(path)
