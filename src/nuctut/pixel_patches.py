"""What a network of patches learns from partial labels (Janowczyk & Madabhushi 2016, use case 1).

Each pixel that is learned from is the middle of a patch of 32×32. The rules are those of the code
that the authors published with it (choosehappy/public): nuclei, a ring around them, and what is
surely no nucleus by its colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage as ndi
from skimage.morphology import isotropic_dilation
from torch.utils.data import Dataset

from nuctut.background import LABELLED, LEVELS
from nuctut.models.patch_cnn import AFTER, BEFORE

POSITIVES = 2500  # at most, of an image
RING = 3  # pixels
RING_SHARE, BACKGROUND_SHARE = 1.0, 0.3  # negatives of each kind to a positive one

DARK, SMALLEST, FAR = 0.3, 100, 25  # of a stretched red channel; pixels of area; pixels


def surely_background(image: np.ndarray) -> np.ndarray:
    """Where no nucleus is near, as far as the red light tells.

    The red channel is stretched so that its lowest 5 % are dark and the upper half bright. What
    is darker than 0.3 may be a nucleus, unless it is smaller than 100 pixels, and so may its holes.
    The rest is background, except within 25 pixels (in rows and in columns) of that.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (H, W) bool.
    """
    red = image[..., 0].astype(np.float32)
    low, high = np.quantile(red, (0.05, 0.5))
    dark = red < low + DARK * (high - low)
    pieces, count = ndi.label(dark, np.ones((3, 3), bool))
    large = np.bincount(pieces.ravel(), minlength=count + 1) >= SMALLEST
    large[0] = False
    nuclei = ndi.binary_fill_holes(large[pieces])
    return ~ndi.maximum_filter(nuclei, size=2 * FAR)


def chosen_pixels(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, positives: int = POSITIVES
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of an image that are learned from.

    Of the outlined nuclei up to so many; of a ring of 3 pixels around them as many, and of
    `surely_background` 0.3 times as many; fewer where there are no more. No pixel comes twice
    within a kind.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, the nuclei that somebody outlined.
        rng: Decides.
        positives: Most pixels of nuclei.

    Returns:
        places: (N, 2) int64 rows and columns; and
        classes: (N,) uint8, as in a map of `background.taught`: `LABELLED`, or `LEVELS` for what is
        background beyond doubt.

    Raises:
        ValueError: When nobody outlined a nucleus.
    """
    if not mask.any():
        raise ValueError("mask: no nucleus is outlined, so there is none to learn from.")
    ring = isotropic_dilation(mask, RING) & ~mask
    count = min(positives, np.count_nonzero(mask))
    kinds = (
        (mask, 1.0, LABELLED),
        (ring, RING_SHARE, LEVELS),
        (surely_background(image) & ~mask, BACKGROUND_SHARE, LEVELS),
    )
    places, classes = [], []
    for where, share, kind in kinds:
        candidates = np.flatnonzero(where)
        some = rng.permutation(candidates)[: round(share * count)]
        places.append(np.stack(np.unravel_index(some, mask.shape), -1))
        classes.append(np.full(len(some), kind, np.uint8))
    return np.concatenate(places), np.concatenate(classes)


class PixelPatches(Dataset):
    """Patches around chosen pixels, each in one of two orientations, mirrored or not.

    The authors keep every patch twice, once turned by a quarter, and mirror at random; here both
    are drawn.

    Args:
        images: (H, W, 3) uint8.
        masks: (H, W) bool, the nuclei that somebody outlined.
        keys: Names, for error messages.
        positives: Of `chosen_pixels`.
        seed: Of the choice, and with the number of the draw of the orientations.
        augment: Whether orientations are drawn at all.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        keys: Sequence[str],
        *,
        positives: int = POSITIVES,
        seed: int = 0,
        augment: bool = True,
    ) -> None:
        edges = ((BEFORE, AFTER), (BEFORE, AFTER), (0, 0))
        self.images = [np.pad(image, edges, mode="reflect") for image in images]
        self.keys, self.seed, self.augment = keys, seed, augment
        self.items: list[tuple[int, int, int, int]] = []
        for which, (image, mask) in enumerate(zip(images, masks, strict=True)):
            rng = np.random.default_rng([seed, which])
            places, classes = chosen_pixels(image, mask, rng, positives)
            kinds = classes.tolist()
            self.items += [
                (which, y, x, kind) for (y, x), kind in zip(places.tolist(), kinds, strict=True)
            ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """(3, 32, 32) float32 pixels from 0 to 1, and the (1, 1) class of the middle one."""
        which, y, x, kind = self.items[item[0]]
        patch = self.images[which][y : y + BEFORE + AFTER + 1, x : x + BEFORE + AFTER + 1]
        if self.augment:
            turned, mirrored = np.random.default_rng([self.seed, item[1]]).integers(2, size=2)
            patch = np.rot90(patch, turned)
            patch = patch[:, ::-1] if mirrored else patch
        pixels = np.moveaxis(patch, -1, 0).astype(np.float32) / 255
        return {
            "image": torch.from_numpy(pixels),
            "classes": torch.full((1, 1), kind, dtype=torch.uint8),
            "key": self.keys[which],
        }
