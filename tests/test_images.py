"""Image files of every kind give the pixels that were put into them, or say what is wrong."""

from __future__ import annotations

import io
import re
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from nuctut.own_images import pixel_sizes, spooled
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


def test_smaller_versions_are_no_pages_and_others_are_counted(tmp_path):
    path = tmp_path / "image.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GREY, subifds=1, photometric="minisblack")
        file.write(GREY[::2, ::2], subfiletype=1, photometric="minisblack")
        file.write(RGB[:50], photometric="rgb")
    with opened(path) as image:
        assert (image.pages, image.left_out) == (1, 1)
    np.testing.assert_array_equal(read(path), GREY)


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


def test_missing_strips(tmp_path):
    path = tmp_path / "image.tif"
    strips = iter([imagecodecs.zlib_encode(GREY[:150].tobytes()), b""])
    how = {"shape": (300, 70), "dtype": "uint16", "rowsperstrip": 150, "compression": "zlib"}
    tifffile.imwrite(path, strips, photometric="minisblack", **how)
    assert "cut off" in reason(path)


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


@pytest.mark.parametrize(("value", "unit"), [(0.325, "µm"), (325.0, "nm"), (0.000325, "mm")])
def test_the_pixel_size_of_ome_tiff(tif, value, unit):
    assert size(tif(GREY, ome=True, metadata=physical(value, value, unit))) == pytest.approx(0.325)


def test_an_ome_tiff_whose_pixel_size_has_no_length(tif):
    assert size(tif(GREY, ome=True, metadata={"axes": "YX"})) is None
    assert size(tif(GREY, ome=True, metadata=physical(1, 1, "pixel"))) is None


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m"])
def test_the_pixel_size_of_imagej(tif, unit):
    how = {"imagej": True, "resolution": (1 / 0.325, 1 / 0.325)}
    assert size(tif(GREY, metadata={"unit": unit}, **how)) == pytest.approx(0.325)
    assert size(tif(GREY, metadata={"unit": "pixel"}, **how)) is None


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
