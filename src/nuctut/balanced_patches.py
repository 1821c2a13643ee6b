"""Patches around single pixels, for a network that classifies the middle of a patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nuctut.targets import IGNORE, dihedral, standardise


class Patches(Dataset):
    """Patches in random orientations, as many around pixels of each class (Van Valen et al. 2016).

    DeepCell draws as many pixels of each class from an image, and so does this: the classes of an
    image take turns, and within a class every pixel is as likely as any other. Images are
    normalised as a whole and continued beyond their edges by reflection, so that pixels there
    count, which DeepCell leaves out. "Rotation" (Kromp et al., table S-II) means quarter turns.

    Args:
        images: (H, W) or (H, W, C) intensities, any real dtype, larger than half a patch.
        classes: (H, W) uint8 class maps of the same sizes, such as `borders.bordered` gives;
            `targets.IGNORE` is never the middle of a patch.
        keys: Names, for error messages.
        per_image: Patches of each image in a round.
        size: Side of a patch in pixels, odd.
        scale: Of `targets.standardise`.
        seed: Pixel and orientation are a function of it and of the number of the draw.

    Items:
        "image" (C, size, size) float32; "classes" (1, 1) int64, of the middle; "key".

    Raises:
        ValueError: When an image has no class at all, or is too small; the message names it.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        classes: Sequence[np.ndarray],
        keys: Sequence[str],
        per_image: int,
        size: int = 61,
        scale: str = "linear",
        seed: int = 0,
    ) -> None:
        self.keys, self.per_image, self.size, self.seed = keys, per_image, size, seed
        self.classes = classes
        self.pixels = [_pixels_of_each_class(one) for one in classes]
        for key, image, pixels in zip(keys, images, self.pixels, strict=True):
            if not pixels:
                raise ValueError(f"{key}: no pixel has a class, all of them are ignored.")
            if min(image.shape[:2]) <= size // 2:
                raise ValueError(
                    f"{key}: patches of {size} pixels need an image of more than {size // 2} "
                    f"pixels a side, not {image.shape[:2]}; enlarge it."
                )
        self.images = [_continued(standardise(image, scale), size // 2) for image in images]

    def __len__(self) -> int:
        return len(self.images) * self.per_image

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        which, draw = item[0] // self.per_image, item[1]
        rng = np.random.default_rng([self.seed, draw])
        of_class = self.pixels[which][item[0] % len(self.pixels[which])]
        middle = int(of_class[rng.integers(len(of_class))])
        row, column = divmod(middle, self.classes[which].shape[1])
        patch = self.images[which][row : row + self.size, column : column + self.size]
        channels = dihedral(np.atleast_3d(patch).transpose(2, 0, 1), int(rng.integers(8)))
        return {
            "image": torch.from_numpy(channels.copy()),
            "classes": torch.full((1, 1), int(self.classes[which][row, column])),
            "key": self.keys[which],
        }


def _pixels_of_each_class(classes: np.ndarray) -> list[np.ndarray]:
    """Of each class that occurs, the numbers of its pixels, row by row, (n,) int32."""
    known = np.unique(classes)
    return [np.flatnonzero(classes == one).astype(np.int32) for one in known[known != IGNORE]]


def _continued(image: np.ndarray, width: int) -> np.ndarray:
    sides = [(width, width)] * 2 + [(0, 0)] * (image.ndim - 2)
    return np.pad(image, sides, "reflect")
