"""What all simulated data sets share: nuclei drawn as blobs of light, a camera, and a safe folder.

Sizes, shapes and brightness of nuclei, blur, noise and background were set by measuring BBBC039's
images. No pixel comes from them.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

MARKER = "SIMULATED.txt"
SPLITS = ("training", "validation", "test")

OFFSET = 100  # camera counts without any light
GAIN = 0.33  # camera counts per photon
READ_NOISE = 1.7  # standard deviation, in camera counts
LARGEST = 4095  # 12 bit


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` at the end, or nothing at all.

    Raises:
        FileExistsError: When `folder` exists, before or after.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: name a new folder, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".simulating-", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        yield made
        try:
            os.replace(made, folder)
        except OSError as error:
            if folder.exists():  # someone else wrote it in the meantime
                raise FileExistsError(f"{folder} exists already: name a new folder.") from error
            raise


@contextmanager
def new_set(
    folder: Path,
    layout: str,
    version: int,
    *,
    images: Mapping[str, int],
    shape: tuple[int, int],
    seed: int,
    splits: Sequence[str] = SPLITS,
) -> Iterator[Path]:
    """A temporary folder to write a simulated set into; it becomes `folder` at the end, marked.

    Raises:
        ValueError: As `validate` does, before anything is made.
        FileExistsError: When `folder` exists, before or after.
    """
    validate(images, shape, seed, splits)
    with appearing_whole(folder) as made:
        yield made
        text = (
            f"These images are simulated. They have the layout of {layout} and none of its pixels."
            f"\nnuctut simulates {layout}, version {version}, shape {shape}, seed {seed}\n"
        )
        (made / MARKER).write_bytes(text.encode())


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    """Writes an (H, W) or (H, W, 3) image: the same pixels give the same bytes."""
    form = "minisblack" if pixels.ndim == 2 else "rgb"
    tifffile.imwrite(path, pixels, photometric=form, metadata=None, software=False)


def validate(
    images: Mapping[str, int],
    shape: tuple[int, int],
    seed: int,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Refuses a split, number of images, shape or seed that cannot be."""
    if set(images) != set(splits) or min(images.values()) < 1:
        raise ValueError(
            f"images must give each of {', '.join(splits)} at least 1 image, not {dict(images)}."
        )
    if len(shape) != 2 or min(shape) < 64:
        raise ValueError(f"shape must be (height, width), each at least 64, not {shape}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, as {seed} is.")


@dataclass
class Blob:
    """An outline in polar form around (y, x): an ellipse with waves on its edge."""

    y: float
    x: float
    radius: float  # of the circle of the same area, in pixels
    axis_ratio: float = 1.0
    angle: float = 0.0
    waves: tuple[tuple[int, float, float], ...] = ()  # (per turn, amplitude, phase)
    spots: tuple[tuple[float, float, float], ...] = ()  # nucleoli: (y, x, depth), radius 1 = edge
    peak: float = 0.0

    def reach(self, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
        """Distance from the centre as a share of the edge's: below 1 inside."""
        theta = np.arctan2(dy, dx) - self.angle
        stretch = math.sqrt(self.axis_ratio)
        edge = self.radius / np.hypot(stretch * np.cos(theta), np.sin(theta) / stretch)
        for turns, amplitude, phase in self.waves:
            edge *= 1 + amplitude * np.cos(turns * theta + phase)
        return np.hypot(dy, dx) / edge

    @property
    def extent(self) -> int:
        """No pixel of the blob is further from its centre, along either axis."""
        waves = math.prod(1 + abs(amplitude) for _, amplitude, _ in self.waves)
        return math.ceil(self.radius / math.sqrt(self.axis_ratio) * waves) + 1


@dataclass
class Canvas:
    """Light from the nuclei drawn so far, and their colours."""

    shape: tuple[int, int]
    rng: np.random.Generator
    blobs: list[Blob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.signal = np.zeros(self.shape, np.float32)
        self.red = np.zeros(self.shape, np.uint8)
        # chromatin: a grain of about two pixels on coarser clouds
        grain, clouds = self._noise(1.3), self._noise(4.0)
        self.texture = np.maximum(1 + 0.08 * grain + 0.08 * clouds, 0.3)

    def _noise(self, sigma: float) -> np.ndarray:
        noise = smooth_noise(self.shape, sigma, self.rng)
        return noise / noise.std()

    @property
    def labels(self) -> np.ndarray:
        """(H, W) int32 labels: touching nuclei differ in colour, so each is a piece of one."""
        labels, count = np.zeros(self.shape, np.int32), 0
        for colour in (1, 2, 3):
            pieces, found = ndimage.label(self.red == colour)
            labels[pieces > 0] = pieces[pieces > 0] + count
            count += found
        return labels

    def is_taken(self, y: float, x: float) -> bool:
        """Whether a nucleus lies at (y, x), or beside it where that is outside the image."""
        height, width = self.shape
        row, column = min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)
        return bool(self.red[row, column])

    def add(self, blob: Blob, overlap: float = 0.0, gap: float = 3.0) -> bool:
        """Draws a blob where it finds room, and says whether it did.

        Args:
            blob: What to draw.
            overlap: Share of its area that may lie behind others; above 0 it may touch them.
            gap: Distance in pixels that it keeps from others when it may not touch.
        """
        extent = blob.extent + 2
        top, left = (max(round(at) - extent, 0) for at in (blob.y, blob.x))
        patch = np.s_[top : max(round(blob.y) + extent, 0), left : max(round(blob.x) + extent, 0)]
        red = self.red[patch]
        dy = np.arange(top, top + red.shape[0])[:, None] - blob.y
        dx = np.arange(left, left + red.shape[1])[None, :] - blob.x
        reach = blob.reach(dy, dx)
        inside = reach < 1
        hidden = inside & (red > 0)
        crowded = red[reach < 1 + gap / blob.radius].any() if overlap == 0 else False
        if crowded or inside.sum() < 6 or hidden.sum() > overlap * inside.sum():
            return False
        seen = _largest_part(inside & ~hidden) if hidden.any() else inside
        near = set(red[ndimage.binary_dilation(seen, np.ones((3, 3)))].tolist())
        free = [colour for colour in (1, 2, 3) if colour not in near]
        if not free:
            return False
        red[seen] = free[0]
        light = np.where(inside, blob.peak * (0.72 + 0.28 * (1 - reach**2)), 0)
        light *= self.texture[patch] * _nucleoli(blob, dy, dx)
        np.maximum(self.signal[patch], light, out=self.signal[patch], casting="same_kind")
        self.blobs.append(blob)
        return True


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected part: a nucleus half hidden by others must stay one object."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def smooth_noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 noise around 0 without details finer than sigma pixels; of any scale."""
    noise = rng.standard_normal(shape, np.float32)
    return ndimage.gaussian_filter(noise, sigma, mode="wrap")


def _nucleoli(blob: Blob, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Factor below 1 where the nucleus has dark spots."""
    factor = np.ones(np.broadcast_shapes(dy.shape, dx.shape))
    for y, x, depth in blob.spots:
        away = (dy - y * blob.radius) ** 2 + (dx - x * blob.radius) ** 2
        factor *= 1 - depth * np.exp(-away / (2 * 1.6**2))
    return factor


def photograph(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a 12-bit camera sees of the light: blur, haze, uneven lamp, noise, offset."""
    out_of_focus = rng.uniform(1.2, 2.5) if rng.random() < 0.06 else abs(rng.normal(0, 0.3))
    sharp = ndimage.gaussian_filter(signal, math.hypot(1.15, out_of_focus))
    halo = ndimage.gaussian_filter(signal, 4.5)
    # the widest part of the haze carries no detail: blurring it coarsely is 16 times cheaper
    coarse = ndimage.gaussian_filter(signal[::4, ::4], 12).repeat(4, 0).repeat(4, 1)
    haze = ndimage.uniform_filter(coarse[: signal.shape[0], : signal.shape[1]], 9)
    medium = 49 * math.exp(rng.normal(0, 0.13))
    light = _illumination(signal.shape, rng) * (0.9 * sharp + 0.1 * halo + 0.07 * haze + medium)
    counts = OFFSET + GAIN * rng.poisson(light / GAIN)
    counts += READ_NOISE * rng.standard_normal(signal.shape)
    return np.clip(np.rint(counts), 0, LARGEST).astype(np.uint16)


def _illumination(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Factor around 1, brightest near the middle of the field."""
    centre, fall = rng.uniform(0.4, 0.6, 2), rng.uniform(0.1, 0.35)
    y, x = (np.linspace(0, 1, size) - at for size, at in zip(shape, centre, strict=True))
    return 1.08 - fall * (y[:, None] ** 2 + x[None, :] ** 2)
