"""Coloured images and what they teach, bent, turned and stained anew, a whole batch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Tensor
from torch.nn import functional as F

DARKEST = 1 / 255  # what a black pixel is taken for, since its logarithm must be finite


@dataclass(frozen=True)
class Augmentation:
    """How the items of a batch vary.

    The paper names quarter turns, flips and elastic deformation (section 3.1) and no number; the
    colours are not in it.

    Attributes:
        bend: Largest displacement at a knot of the elastic deformation, in pixels; 0 for none.
        knots: Distance of the knots, in pixels.
        stain_gain: Half-width of a random factor on the amount of each stain; 0 for none.
        stain_shift: Half-width of what is added to it, in units of optical density (natural
            logarithm); 0 for none.
    """

    bend: float = 6.0
    knots: int = 64
    stain_gain: float = 0.0
    stain_shift: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bend", "stain_gain", "stain_shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}.")
        if self.knots < 1:
            raise ValueError(f"knots must be 1 or more, not {self.knots}.")

    def __call__(
        self, images: Tensor, classes: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """A batch, each item varied by itself.

        Args:
            images: (B, 3, H, H) float from 0 to 1.
            classes: (B, H, H) uint8.
            rng: Decides.

        Returns:
            Both, in their shapes and dtypes.
        """
        if self.stain_gain or self.stain_shift:
            images = stained_anew(images, rng, self.stain_gain, self.stain_shift)
        return moved(images, classes, rng, self.bend, self.knots)


def moved(
    images: Tensor, classes: Tensor, rng: np.random.Generator, bend: float, knots: int
) -> tuple[Tensor, Tensor]:
    """Each item in one of eight orientations, and bent: displacements at knots, smooth in between.

    What comes from beyond the edge is mirrored there. Images are interpolated, classes are not.

    Args:
        images, classes, rng: Of `Augmentation`.
        bend, knots: Of `Augmentation`.

    Raises:
        ValueError: When the items are not square.
    """
    count, _, height, width = images.shape
    if height != width:
        raise ValueError(f"items must be square to be turned, not {height}×{width}.")
    turns = torch.from_numpy(_ORIENTATIONS[rng.integers(8, size=count)])
    # (x, y) of each pixel of the result in the item, from −1 to 1
    grid = F.affine_grid(turns, [count, 1, height, width], align_corners=False)
    if bend:
        along = -(-height // knots) + 3  # the outermost ones lie outside
        # as `grid_sample` counts, a pixel is 2 / height
        pulls = (2 * bend / height) * rng.uniform(-1, 1, (count, 2, along, along))
        grid = grid + _smooth(torch.from_numpy(pulls.astype(np.float32)), height, knots)
    how = {"padding_mode": "reflection", "align_corners": False}
    images = F.grid_sample(images, grid, mode="bilinear", **how)
    bent = F.grid_sample(classes[:, None].float(), grid, mode="nearest", **how)[:, 0]
    return images, bent.to(classes.dtype)


def _orientations() -> np.ndarray:
    """(8, 2, 3) float32 affine maps: quarter turns, and quarter turns of the mirror image."""
    turn = np.array([[0, -1], [1, 0]])
    maps = [
        np.linalg.matrix_power(turn, k) @ np.diag([flip, 1]) for flip in (1, -1) for k in range(4)
    ]
    return np.pad(np.array(maps), ((0, 0), (0, 0), (0, 1))).astype(np.float32)


_ORIENTATIONS = _orientations()


def _smooth(values: Tensor, length: int, knots: int) -> Tensor:
    """(B, length, length, C) of (B, C, n, n) values at knots, by a cubic B-spline.

    The spline stays within the range of the values.
    """
    weights = _spline(length, values.shape[-1], knots)
    return torch.einsum("bcij,yi,xj->byxc", values, weights, weights)


def _spline(length: int, count: int, knots: int) -> Tensor:
    """(length, count) float32 weights of the knots at each pixel; those of a pixel sum to 1."""
    place = (torch.arange(length) + 0.5) / knots + 1  # in knots, the first of which is outside
    away = (place[:, None] - torch.arange(count)).abs()
    inner = 2 / 3 - away**2 * (1 - away / 2)
    outer = (2 - away).clamp(min=0) ** 3 / 6
    return torch.where(away < 1, inner, outer)


def stained_anew(images: Tensor, rng: np.random.Generator, gain: float, shift: float) -> Tensor:
    """Images with more or less of each stain, as from another laboratory.

    The stains are those of `skimage.color.rgb2hed`, but none is cut off at 0, so that a factor of 1
    and a shift of 0 change nothing.

    Args:
        images: (B, 3, H, W) float from 0 to 1.
        rng: Decides, for each item and stain.
        gain, shift: `stain_gain` and `stain_shift` of `Augmentation`.

    Returns:
        (B, 3, H, W) float from 0 to 1.
    """
    factors, offsets = rng.uniform(-1, 1, (2, len(images), 3))
    factors, offsets = 1 + gain * factors, shift * offsets
    # density → stains → factors and offsets → density, as one linear map of an item
    maps = np.einsum("cs,bs,sd->bdc", hed_from_rgb, factors, rgb_from_hed)
    added = offsets @ rgb_from_hed
    # channel by channel in memory, or the product below is three times as slow
    density = images.contiguous().clamp(min=DARKEST).log_().neg_()
    maps, added = (torch.from_numpy(one.astype(np.float32)) for one in (maps, added))
    changed = torch.baddbmm(added[:, :, None], maps, density.flatten(2))
    return changed.neg_().exp_().clamp_(max=1).view_as(images)
