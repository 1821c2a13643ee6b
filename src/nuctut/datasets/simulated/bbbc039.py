"""Invented images in the layout of BBBC039, so that its loader reads them.

They show `cells` like its own, seen through the same kind of microscope.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from skimage.io import imsave

from nuctut.datasets.simulated.canvas import SPLITS, new_set, write_tiff
from nuctut.datasets.simulated.cells import FULL_SHAPE, field_of_view

VERSION = 1  # raise it when the same seed gives other images, here, in `cells` or in `canvas`
SMALL_SHAPE = (260, 348)
SMALL_IMAGES = {"training": 12, "validation": 4, "test": 6}


def simulate_bbbc039(
    folder: Path,
    *,
    images: Mapping[str, int] = SMALL_IMAGES,
    shape: tuple[int, int] = FULL_SHAPE,
    seed: int = 0,
) -> Path:
    """Writes a data set that looks like BBBC039 and has its layout; returns its folder.

    The same arguments give the same bytes. An image depends on the seed, its split and its place
    in it, so a larger set begins with the images of a smaller one. A marker file says that the
    set is simulated. The folder appears at the end, whole.

    Args:
        folder: Where to; must not exist.
        images: How many images in each of the splits "training", "validation" and "test".
        shape: (H, W) of the images in pixels, each at least 64.
        seed: Not negative.

    Raises:
        ValueError: For a split, number of images, shape or seed that cannot be.
        FileExistsError: When the folder exists.
    """
    with new_set(folder, "BBBC039v1", VERSION, images=images, shape=shape, seed=seed) as made:
        _write(made, images, shape, seed)
    return folder


def _write(folder: Path, images: Mapping[str, int], shape: tuple[int, int], seed: int) -> None:
    for name in ("images", "masks", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, split in enumerate(SPLITS):
        keys = [f"simulated_{split}_{index:03d}" for index in range(images[split])]
        for index, key in enumerate(keys):
            rng = np.random.default_rng([seed, number, index])
            # BBBC039 has three images without a nucleus; one in forty here, the first early
            image, red = field_of_view(rng, shape, empty=index % 40 == 5)
            rgba = np.zeros((*shape, 4), np.uint8)
            rgba[..., 0], rgba[..., 3] = red, 255
            path = folder / "images" / f"{key}.tif"
            write_tiff(path, image)
            imsave(folder / "masks" / f"{key}.png", rgba, check_contrast=False)
        lines = "".join(f"{key}.png\n" for key in keys)
        (folder / "metadata" / f"{split}.txt").write_bytes(lines.encode())
