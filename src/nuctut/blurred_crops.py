"""Crops that are blurred as they are drawn: pairs for two answers, blind spots, and patches for QC.

All are items for `training.fit`, and a function of the seed and of the number of the draw. What
blurs is the caller's: a callable (image, rng) → image of the same shape in camera counts, such as a
random defocus with its photons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .targets import dihedral, standardise

Blur = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Window = tuple[slice, slice]

CELL = 8  # pixels; one in 64 is hidden, 1.6 %: DenoiSeg's public code hides 1.5 %
REACH = 5  # pixels, as there


class BlurredPairs(Dataset):
    """Random square crops of blurred images, each with its sharp self and its classes.

    A crop is cut from the sharp image with a margin, blurred together with it, so that light from
    outside reaches it, and normalised with it; the sharp one is normalised over the same pixels.
    Then the margin is cut away. Normalising only what is near costs a fraction of an image's time,
    and differs from normalising the image as a whole, as for prediction, the less the wider the
    margin is.

    Args:
        images: (H, W) intensities in camera counts, any real dtype.
        classes: (H, W) uint8 class maps of the same sizes.
        keys: Names, for error messages.
        blur: See the module. An image as it is belongs among its results, if that is wanted.
        size: Side of the crops in pixels; 512 in the paper.
        margin: In pixels, on each side as far as the image goes; no less than the blur reaches.
        scale: Of `targets.standardise`.
        seed: Position, orientation, blur and gain are a function of it and of the draw.
        gain: Half-width of a random factor on both images.

    Items:
        "image" and "sharp" (1, size, size) float32; "classes" (size, size) uint8; "key".

    Raises:
        ValueError: When an image is smaller than a crop, naming it.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        classes: Sequence[np.ndarray],
        keys: Sequence[str],
        blur: Blur,
        size: int = 512,
        margin: int = 64,
        scale: str = "linear",
        seed: int = 0,
        gain: float = 0.0,
    ) -> None:
        _check_sizes(images, keys, size)
        self.images, self.classes, self.keys, self.blur = images, classes, keys, blur
        self.size, self.margin, self.scale = size, margin, scale
        self.seed, self.gain = seed, gain

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        which, draw = item
        rng = np.random.default_rng([self.seed, draw])
        crop = _window(rng, self.classes[which].shape, self.size)
        orientation = int(rng.integers(8))
        factor = np.float32(1 + self.gain * rng.uniform(-1, 1))
        around, inside = _with_margin(crop, self.images[which].shape, self.margin)
        sharp = self.images[which][around]
        pair = self.blur(sharp, rng), sharp
        image, sharp = (factor * standardise(one, self.scale)[inside] for one in pair)
        return {
            "image": _tensor(image[None], orientation),
            "sharp": _tensor(sharp[None], orientation),
            "classes": _tensor(self.classes[which][crop], orientation),
            "key": self.keys[which],
        }


class BlindSpots(Dataset):
    """Items of another data set, some pixels of whose images are hidden (see `hide`).

    Args:
        items: Such as `BlurredPairs`.
        seed: What is hidden is a function of it and of the draw.

    Items:
        Those of the other, "image" with pixels hidden; "seen" (1, H, W) float32, the image before;
        "hidden" (1, H, W) bool.
    """

    def __init__(self, items: Dataset, seed: int = 0) -> None:
        self.items, self.seed = items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        made = self.items[item]
        # the third number keeps these draws apart from those of the crops
        rng = np.random.default_rng([self.seed, item[1], 1])
        image, hidden = hide(made["image"][0].numpy(), rng)
        new = {"image": torch.from_numpy(image)[None], "hidden": torch.from_numpy(hidden)[None]}
        return made | {"seen": made["image"]} | new


def hide(
    image: np.ndarray, rng: np.random.Generator, cell: int = CELL, reach: int = REACH
) -> tuple[np.ndarray, np.ndarray]:
    """Blind spots: one random pixel of every cell shows another pixel near it instead of itself.

    What a network says of such a pixel it has from the surroundings (Noise2Void, Krull et al.
    2019). Unlike the default of DenoiSeg's public code, none is ever replaced by itself.

    Args:
        image: (H, W), at least two pixels.
        rng: Decides which pixels, and what each shows.
        cell: Side of the cells in pixels, from the upper left corner.
        reach: How far away the other pixel may be along each side, in pixels; all alike likely.

    Returns:
        The image with pixels replaced, a copy; and an (H, W) bool mask of them.

    Raises:
        ValueError: When the image is not (H, W), or too small to show another pixel.
    """
    if image.ndim != 2 or image.size < 2:
        raise ValueError(f"image must be (H, W) with two pixels or more, not {image.shape}.")
    corners = np.meshgrid(*(np.arange(0, side, cell) for side in image.shape), indexing="ij")
    place, low, span = [], [], []
    for corner, side in zip(corners, image.shape, strict=True):
        at = rng.integers(corner.ravel(), np.minimum(corner.ravel() + cell, side))
        place.append(at)
        low.append(np.maximum(at - reach, 0))
        span.append(np.minimum(at + reach + 1, side) - low[-1])
    # Of the pixels within reach, numbered row by row, any but the own one.
    own = (place[0] - low[0]) * span[1] + place[1] - low[1]
    other = rng.integers(span[0] * span[1] - 1)
    other += other >= own
    hidden = np.zeros(image.shape, bool)
    hidden[tuple(place)] = True
    changed = image.copy()
    changed[tuple(place)] = image[low[0] + other // span[1], low[1] + other % span[1]]
    return changed, hidden


class FocusPatches(Dataset):
    """Random patches, half of them sharp and half blurred, for the network that tells which.

    Every patch is normalised by itself, so that it can be judged by itself (`focus.blurred`).

    Args:
        images, keys, scale, seed: As for `BlurredPairs`.
        sharp, blurred: What is done to a patch that counts as the one or the other; see the module.
        size: Side of the patches in pixels; 224 in AlexNet.
        margin: As for `BlurredPairs`.

    Items:
        "image" (1, size, size) float32; "classes" (), int64: 0 sharp, 1 blurred; "key". The loss is
        `torch.nn.CrossEntropyLoss()`.

    Raises:
        ValueError: When an image is smaller than a patch, naming it.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        keys: Sequence[str],
        sharp: Blur,
        blurred: Blur,
        size: int = 224,
        margin: int = 64,
        scale: str = "linear",
        seed: int = 0,
    ) -> None:
        _check_sizes(images, keys, size)
        self.images, self.keys, self.made = images, keys, (sharp, blurred)
        self.size, self.margin, self.scale, self.seed = size, margin, scale, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        which, draw = item
        rng = np.random.default_rng([self.seed, draw])
        image = self.images[which]
        around, inside = _with_margin(
            _window(rng, image.shape, self.size), image.shape, self.margin
        )
        orientation, verdict = int(rng.integers(8)), int(rng.integers(2))
        patch = self.made[verdict](image[around], rng)[inside]
        return {
            "image": _tensor(standardise(patch, self.scale)[None], orientation),
            "classes": torch.tensor(verdict),
            "key": self.keys[which],
        }


def _check_sizes(images: Sequence[np.ndarray], keys: Sequence[str], size: int) -> None:
    for image, key in zip(images, keys, strict=True):
        if min(image.shape) < size:
            raise ValueError(
                f"{key}: an image of {image.shape} has no room for crops of {size}×{size} pixels; "
                "give a smaller size."
            )


def _window(rng: np.random.Generator, shape: tuple[int, ...], size: int) -> Window:
    """A random square of an image."""
    starts = [int(rng.integers(length - size + 1)) for length in shape]
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)


def _with_margin(crop: Window, shape: tuple[int, ...], margin: int) -> tuple[Window, Window]:
    """A window and what is around it in an image; and the window within that."""
    around = tuple(
        slice(max(0, span.start - margin), min(length, span.stop + margin))
        for span, length in zip(crop, shape, strict=True)
    )
    inside = tuple(
        slice(span.start - outer.start, span.stop - outer.start)
        for span, outer in zip(crop, around, strict=True)
    )
    return around, inside


def _tensor(array: np.ndarray, orientation: int) -> torch.Tensor:
    return torch.from_numpy(dihedral(array, orientation).copy())
