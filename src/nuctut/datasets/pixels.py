"""Images as they are in their files, which may be damaged: one error then, naming the file."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from skimage.segmentation import relabel_sequential

from nuctut.files import read_bytes

LARGEST = 2**27  # numbers in an image; what a file declares beyond that is not decoded
PNG = b"\x89PNG\r\n\x1a\n"


def read_png(path: Path) -> np.ndarray:
    """The pixels of a PNG file: (H, W) or (H, W, channels), uint8 or uint16.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it is no PNG, damaged, cut off, or too large; the message names it.
    """
    content = _content(path)
    try:
        _refuse_size(_png_shape(content))
        return imagecodecs.png_decode(content)
    except Exception as error:  # decoders raise whatever they meet in a damaged file
        raise _damaged(path, error) from error


def read_tiff(path: Path) -> np.ndarray:
    """The pixels of a TIFF file, of whatever shape and type it declares.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it is no TIFF, damaged, cut off, too large, or in CMYK; the message names
            it.
    """
    content = _content(path)
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            _refuse_size(series.shape)
            inks = series.keyframe.photometric == tifffile.PHOTOMETRIC.SEPARATED
            pixels = series.asarray()
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    if inks:
        raise ValueError(
            f"{path} holds inks (CMYK), of which no microscope's colours can be told: save it as "
            "RGB, or fetch the data again."
        )
    return pixels


def read_pixels(path: Path) -> np.ndarray:
    """The pixels of a file whose name says whether it is a PNG, else a TIFF.

    Raises:
        FileNotFoundError, ValueError: As `read_png` and `read_tiff` do.
    """
    return read_png(path) if path.suffix == ".png" else read_tiff(path)


def as_rgb(image: np.ndarray, path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8, whatever form its file has.

    RGBA loses its alpha channel where that is 255 everywhere and so says nothing. Grey becomes
    three equal channels.

    Args:
        image: (H, W) or (H, W, channels) uint8.
        path: Of its file, for errors.

    Raises:
        ValueError: When it is anything else, or transparent somewhere.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] > (4,):
        raise ValueError(
            f"{path} should hold 8-bit grey, RGB or RGBA, not {image.dtype} of {image.shape}: "
            "the file is not of this data set."
        )
    planes = [image] if image.ndim == 2 else list(np.moveaxis(image, 2, 0))
    alpha = planes.pop() if len(planes) in (2, 4) else None
    if alpha is not None and alpha.min() < 255:
        raise ValueError(
            f"{path} is transparent in places, which no image of this data set is: what it shows "
            "there is not known. Fetch the data again, or save the file without transparency."
        )
    # plane by plane, which is eight times as fast as a copy of image[..., :3]
    return np.dstack(planes if len(planes) == 3 else planes * 3)


def read_labels(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The nuclei of a TIFF or PNG file in which each has an id of its own.

    An id is one nucleus, also where its pixels are in several parts: that is what the annotator
    says, and no pixel is dropped for it.

    Args:
        path: Of the file.
        shape: (H, W) of its image.

    Returns:
        (H, W) int32 labels: the ids in their order, without gaps.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it cannot be read, holds no ids, or has another shape; naming it.
    """
    ids = read_pixels(path)
    if ids.ndim != 2 or ids.dtype.kind not in "ui" or ids.min() < 0:
        raise ValueError(
            f"{path} should hold one plane of ids from 0 up, not {ids.dtype} of {ids.shape}: "
            "the file is damaged or not of this data set."
        )
    if ids.shape != shape:
        raise ValueError(f"{path} has shape {ids.shape}, but its image has {shape}.")
    return relabel_sequential(ids.astype(np.int64))[0].astype(np.int32)


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing.") from None


def _png_shape(content: bytes) -> tuple[int, int, int]:
    """Height, width and the most channels there can be, from the header."""
    if not content.startswith(PNG) or content[12:16] != b"IHDR" or len(content) < 24:
        raise ValueError("it does not begin as a PNG file does")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    return height, width, 4


def _refuse_size(shape: Sequence[int]) -> None:
    if not 0 < math.prod(shape) <= LARGEST:
        size = " × ".join(f"{side:,}" for side in shape)
        raise ValueError(f"it declares {size} values, and images here have 1 to {LARGEST:,}")


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()).removesuffix(".")
    return ValueError(
        f"{path} cannot be read, it is damaged or cut off ({reason}): fetch the data again."
    )
