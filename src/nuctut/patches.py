"""Patches of partially labelled images, where there is enough to learn from (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from skimage.morphology import isotropic_dilation
from torch.utils.data import Dataset

from nuctut.augmentation import Augmentation
from nuctut.background import LABELLED

FOREGROUND, BACKGROUND = 0.10, 0.40
REACH = 25.0  # pixels


def kept_windows(
    classes: np.ndarray, size: int = 256, stride: int = 128, reach: float = REACH
) -> list[tuple[int, int]]:
    """Where the windows begin whose masks, dilated, exceed 10 % and 40 % (section 3.1).

    How far the paper dilates is not said. Its 71,842 patches are more than 121 images of 2000×2000
    have windows, so it counts augmented copies; if those are eight of each window, 74 windows of an
    image are kept. In 15 of the images' masks, 73 windows hold enough nuclei if these are dilated
    by 24 pixels, and 78 if by 26.

    Nor is it said which weights are the background mask: here those of at least half the image's
    largest.

    Args:
        classes: (H, W) uint8 map of `background.taught`, no smaller than `size`.
        size, stride: Of the windows, in pixels. Where they leave a rim, one more ends at the edge.
        reach: How far both masks are dilated, in pixels.

    Returns:
        Rows and columns of the windows' first pixels, from top to bottom.
    """
    outlined = classes == LABELLED
    weights = np.where(outlined, 0, classes)
    background = weights >= max(1, weights.max() / 2)
    masks = ((outlined, FOREGROUND), (background, BACKGROUND))
    enough = [_sums(_dilated(mask, reach), size) > least * size**2 for mask, least in masks]
    rows, columns = (_starts(length, size, stride) for length in classes.shape)
    return [(y, x) for y in rows for x in columns if all(one[y, x] for one in enough)]


def _dilated(mask: np.ndarray, reach: float) -> np.ndarray:
    # of an empty mask skimage's distance is not defined
    return isotropic_dilation(mask, reach) if mask.any() else mask


def _sums(mask: np.ndarray, size: int) -> np.ndarray:
    """(H − size + 1, W − size + 1) int64, how much of a mask each window holds."""
    table = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows = table[size:] - table[:-size]
    return rows[:, size:] - rows[:, :-size]


def _starts(length: int, size: int, stride: int) -> list[int]:
    return sorted({*range(0, length - size + 1, stride), length - size})


class PartialPatches(Dataset):
    """The paper's patches: every kept window of every image, augmented batch by batch.

    Args:
        images: (H, W, 3) uint8; those smaller than `size` are mirrored at their edges.
        classes: (H, W) uint8 maps of `background.taught`.
        keys: Names, for error messages.
        size, stride, reach: Of `kept_windows`.
        kept: Maps that it decides by, in place of `classes`.
        augmentation: How batches vary; None for validation, which does not.
        seed: Of the augmentation, together with the number of the draw.

    Raises:
        ValueError: When no window of any image is kept.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        classes: Sequence[np.ndarray],
        keys: Sequence[str],
        *,
        size: int = 256,
        stride: int = 128,
        reach: float = REACH,
        kept: Sequence[np.ndarray] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.images = [_at_least(image, size) for image in images]
        self.classes = [_at_least(one, size) for one in classes]
        self.keys, self.size = keys, size
        self.augmentation, self.seed = augmentation, seed
        self.windows = [
            (which, y, x)
            for which, one in enumerate(_at_least(one, size) for one in kept or classes)
            for y, x in kept_windows(one, size, stride, reach)
        ]
        if not self.windows:
            raise ValueError(
                f"no window of {size}×{size} pixels holds enough outlined nuclei and background "
                f"(more than {FOREGROUND:.0%} and {BACKGROUND:.0%}, dilated by {reach:g} pixels): "
                "dilate them further, or outline more nuclei."
            )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """The window of a number, for the given draw: its bytes as they are, and its key."""
        (which, y, x), draw = self.windows[item[0]], item[1]
        window = np.s_[y : y + self.size, x : x + self.size]
        return {
            "image": self.images[which][window],
            "classes": self.classes[which][window],
            "key": self.keys[which],
            "draw": draw,
        }

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch: (B, 3, size, size) float32 images from 0 to 1, (B, size, size) uint8 classes."""
        images = torch.from_numpy(np.stack([item["image"] for item in items]))
        images = images.movedim(-1, 1).float() / 255
        classes = torch.from_numpy(np.stack([item["classes"] for item in items]))
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, items[0]["draw"]])
            images, classes = self.augmentation(images, classes, rng)
        return {"image": images, "classes": classes, "key": [item["key"] for item in items]}


def _at_least(array: np.ndarray, size: int) -> np.ndarray:
    extra = [(0, max(0, size - length)) for length in array.shape[:2]]
    return np.pad(array, extra + [(0, 0)] * (array.ndim - 2), mode="symmetric")
