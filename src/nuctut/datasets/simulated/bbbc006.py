"""Invented z-stacks in the layout of BBBC006, so that its loader reads them.

They show `cells` like its own, out of focus as `nuctut.optics` has it: the one thing that a
simulation needs from outside the data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.io import imsave
from skimage.measure import label
from skimage.morphology import remove_small_objects

from nuctut import optics
from nuctut.datasets.simulated.canvas import (
    GAIN,
    LARGEST,
    OFFSET,
    READ_NOISE,
    Canvas,
    new_set,
    write_tiff,
)
from nuctut.datasets.simulated.cells import populate

VERSION = 1  # raise it when the same seed gives other images, here, in `cells` or in `optics`
SMALL_SHAPE = (130, 174)
SMALL_FIELDS = {"training": 4, "validation": 1, "test": 3}
PLANES = range(0, 34, 4)
FOCUS, STEP = 16, 2.0  # the plane in focus, and µm from one to the next
LABELS, PREFIX = "BBBC006_v1_labels", "mcf-z-stacks-03212011_"
MEDIUM = 25  # camera counts of light that comes from everywhere
SMALLEST = 100  # pixels of a labelled nucleus: CellProfiler was told to drop what is smaller
MICROSCOPE = optics.Microscope(pixel_size=0.645)
CAMERA = optics.Camera(GAIN, OFFSET)


def folder_of(plane: int) -> str:
    """The folder of a plane's images."""
    return f"BBBC006_v1_images_z_{plane:02d}"


def simulate_bbbc006(
    folder: Path, *, fields: Mapping[str, Sequence[str]], shape: tuple[int, int], seed: int = 0
) -> Path:
    """Writes z-stacks that look like BBBC006's and have its layout; returns their folder.

    Each field has every fourth plane, which hold the same nuclei at different distances from focus.
    There is no second channel. The same arguments give the same bytes. A marker file says that the
    set is simulated. The folder appears at the end, whole.

    Args:
        folder: Where to; must not exist.
        fields: Well and site of each, such as "a01_s1", by split.
        shape: (H, W) of the images in pixels, each at least 64.
        seed: Not negative.

    Raises:
        ValueError: For a split, number of fields, shape or seed that cannot be.
        FileExistsError: When the folder exists.
    """
    counts = {split: len(names) for split, names in fields.items()}
    with new_set(folder, "BBBC006v1", VERSION, images=counts, shape=shape, seed=seed) as made:
        for name in (LABELS, *map(folder_of, PLANES)):
            (made / name).mkdir()
        for number, names in enumerate(fields.values()):
            for index, field in enumerate(names):
                _write(made, field, shape, np.random.default_rng([seed, number, index]))
    return folder


def _write(folder: Path, field: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    canvas = Canvas(shape, rng)
    populate(canvas)
    labels = label(canvas.red, background=0, connectivity=1)
    kept = remove_small_objects(labels > 0, max_size=SMALLEST - 1, connectivity=1)
    ids = label(labels * kept, background=0, connectivity=1)
    ids = ids.astype(np.min_scalar_type(ids.max()))
    imsave(folder / LABELS / f"{PREFIX}{field}.png", ids, check_contrast=False)
    sharp = OFFSET + MEDIUM + ndimage.gaussian_filter(canvas.signal, 1.15)
    for plane in PLANES:
        uuid = rng.bytes(16).hex()
        name = f"{PREFIX}{field}_w1{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
        image = _photograph(sharp, STEP * (plane - FOCUS), rng)
        write_tiff(folder / folder_of(plane) / f"{name}.tif", image)


def _photograph(sharp: np.ndarray, z: float, rng: np.random.Generator) -> np.ndarray:
    """What a 12-bit camera sees of the light z µm out of focus."""
    counts = optics.shot_noise(optics.defocus(sharp, z, None, MICROSCOPE), rng, CAMERA)
    counts += READ_NOISE * rng.standard_normal(sharp.shape)
    return optics.as_counts(np.minimum(counts, LARGEST), np.dtype(np.uint16))
