"""Invented images in the layout of DSB2018, of as many `kinds` as the real ones have.

Four kinds take turns: small and large fields of fluorescence, tissue stained like H&E, and smears
of cells in grey bright light.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from skimage.io import imsave

from nuctut.datasets.simulated.canvas import new_set
from nuctut.datasets.simulated.kinds import draw, kind_of

VERSION = 1  # raise it when the same seed gives other images, here, in `kinds` or in `canvas`
SMALL_IMAGES = {"training": 12, "validation": 4, "test": 8}
SMALL_SHAPE = (128, 128)


def simulate_dsb2018(
    folder: Path,
    *,
    images: Mapping[str, int] = SMALL_IMAGES,
    shape: tuple[int, int] = SMALL_SHAPE,
    seed: int = 0,
) -> Path:
    """Writes a data set that has DSB2018's layout and kinds of image; returns its folder.

    The same arguments give the same bytes. The images of "training" and "validation" lie together
    in stage1_train, as in the real set, and which is which is for the loader's rule to say. A
    marker file says that the set is simulated. The folder appears at the end, whole.

    Args:
        folder: Where to; must not exist.
        images: How many images in each of the splits "training", "validation" and "test".
        shape: (H, W) of the smallest kind of image in pixels, each at least 64; the others are up
            to two and a half times as large.
        seed: Not negative.

    Raises:
        ValueError: For a split, number of images, shape or seed that cannot be.
        FileExistsError: When the folder exists.
    """
    with new_set(folder, "DSB2018", VERSION, images=images, shape=shape, seed=seed) as made:
        _write_train(made / "stage1_train", images["training"] + images["validation"], shape, seed)
        _write_test(made, images["test"], shape, seed)
    return folder


def _write_train(folder: Path, count: int, shape: tuple[int, int], seed: int) -> None:
    for index in range(count):
        key = _identifier(seed, "train", index)
        image, labels = draw(kind_of(index), shape, np.random.default_rng([seed, 0, index]))
        _write_image(folder / key, image)
        (folder / key / "masks").mkdir()
        for number in range(1, labels.max() + 1):
            mask = np.where(labels == number, np.uint8(255), np.uint8(0))
            path = folder / key / "masks" / f"{_identifier(key, number)}.png"
            imsave(path, mask, check_contrast=False)


def _write_test(folder: Path, count: int, shape: tuple[int, int], seed: int) -> None:
    lines = ["ImageId,EncodedPixels,Height,Width,Usage"]
    for index in range(count):
        key = _identifier(seed, "test", index)
        image, labels = draw(kind_of(index), shape, np.random.default_rng([seed, 1, index]))
        _write_image(folder / "stage1_test" / key, image)
        height, width = labels.shape
        lines += [
            f"{key},{encode_runs(labels == number)},{height},{width},Public"
            for number in range(1, labels.max() + 1)
        ]
    (folder / "stage1_solution.csv").write_bytes("\n".join([*lines, ""]).encode())


def _write_image(folder: Path, image: np.ndarray) -> None:
    """An RGBA file that is opaque everywhere, like nearly all the real ones."""
    (folder / "images").mkdir(parents=True)
    opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
    path = folder / "images" / f"{folder.name}.png"
    imsave(path, np.concatenate([image, opaque], axis=2), check_contrast=False)


def encode_runs(mask: np.ndarray) -> str:
    """Run lengths of an (H, W) mask: "start length …", counted from 1 down the columns."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    runs = zip(turns[::2] + 1, turns[1::2] - turns[::2], strict=True)
    return " ".join(f"{start} {length}" for start, length in runs)


def _identifier(*parts: object) -> str:
    """64 hexadecimal digits, like the ids of the real images and masks."""
    return hashlib.sha256("/".join(map(str, ("simulated", *parts))).encode()).hexdigest()
