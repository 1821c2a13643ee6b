"""Images of stained tissue, and what is outlined in them: read one way for all that have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.measure import label

from nuctut.datasets.pixels import as_rgb, read_pixels, read_png


def read_stained(path: Path) -> np.ndarray:
    """The image of stained tissue in a PNG or TIFF file, as (H, W, 3) uint8.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it cannot be read, has other colours or is transparent; naming it.
    """
    image = read_pixels(path)
    if image.ndim != 3:
        raise ValueError(f"{path} should hold colours, not {image.dtype} of {image.shape}.")
    return as_rgb(image, path)


def read_with_mask(image_path: Path, mask_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An image, (H, W, 3) uint8, and the nuclei of its mask, (H, W) int32 labels.

    Raises:
        FileNotFoundError: When one of the two files is missing.
        ValueError: When one cannot be read or is not what it should be; both name the file.
    """
    labels, image = nuclei_of_mask(mask_path), read_stained(image_path)
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"{mask_path} has shape {labels.shape}, but its image has {image.shape[:2]}."
        )
    return image, labels


def nuclei_of_mask(path: Path) -> np.ndarray:
    """The nuclei of a mask that has 255 in all of them: its 4-connected pieces.

    Nuclei that share a side of a pixel are one piece: such a mask does not tell them apart.

    Returns:
        (H, W) int32 labels, numbered in the order of first pixels, row by row.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it cannot be read, is no such mask, or marks no nucleus; naming it.
    """
    mask = read_png(path)
    if mask.ndim != 2 or mask.dtype != np.uint8 or ((mask > 0) & (mask < 255)).any():
        raise ValueError(
            f"{path} should hold one plane of 0 and 255, not {mask.dtype} of {mask.shape} with "
            f"values up to {mask.max()}: the file is damaged or not of this data set."
        )
    if not mask.any():
        raise ValueError(
            f"{path} marks no nucleus, and every image of this data set has some: fetch the data "
            "again."
        )
    return label(mask > 0, connectivity=1).astype(np.int32)
