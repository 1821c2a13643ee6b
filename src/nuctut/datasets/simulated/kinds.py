"""The kinds of image that DSB2018 has: fluorescence, stained tissue, smears in grey bright light.

Nuclei are drawn on the `canvas` that all simulated sets share; what is done with their light or
their dye makes the kind. No pixel comes from real images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nuctut.datasets.simulated.canvas import Blob, Canvas, photograph, smooth_noise

# Optical density per unit of dye in red, green and blue (Ruifrok & Johnston 2001).
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)


@dataclass(frozen=True)
class Kind:
    """One kind of image.

    Attributes:
        modality: As the loader of the real images would tag it.
        scale: Height and width as multiples of the data set's smallest image.
        radius: Of a typical nucleus, in pixels.
        cover: Share of the image that nuclei are to cover.
        develop: (signal, rng) → (H, W, 3) uint8; the signal is (H, W) float32, about 1 in nuclei
            and 0 elsewhere.
    """

    modality: str
    scale: tuple[float, float]
    radius: float
    cover: float
    develop: Callable[[np.ndarray, np.random.Generator], np.ndarray]


def kind_of(index: int) -> Kind:
    """The kind of the image at a place in its stage: they take turns."""
    return KINDS[index % len(KINDS)]


def draw(
    kind: Kind, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One image and its nuclei.

    Args:
        kind: What it looks like.
        shape: (H, W) of the data set's smallest kind of image.
        rng: Where chance comes from.

    Returns:
        (H, W, 3) uint8 image; (H, W) int32 labels.
    """
    size = tuple(int(side * factor) for side, factor in zip(shape, kind.scale, strict=True))
    canvas = Canvas(size, rng)
    area = math.pi * kind.radius**2
    wanted = max(round(kind.cover * math.prod(size) / area * rng.uniform(0.7, 1.3)), 2)
    _scatter(canvas, wanted, kind.radius)
    return kind.develop(canvas.signal, rng), canvas.labels


def _scatter(canvas: Canvas, wanted: int, radius: float) -> None:
    """Draws nuclei at random places; one in three has a neighbour that touches it."""
    rng, (height, width) = canvas.rng, canvas.shape
    for _ in range(20 * wanted):
        if len(canvas.blobs) >= wanted:
            return
        first = _nucleus(rng, rng.uniform(0, height), rng.uniform(0, width), radius)
        if canvas.add(first) and rng.random() < 0.35:
            turn = rng.uniform(0, 2 * math.pi)
            away = 1.8 * radius
            y, x = first.y + away * math.sin(turn), first.x + away * math.cos(turn)
            canvas.add(_nucleus(rng, y, x, radius), overlap=0.25)


def _nucleus(rng: np.random.Generator, y: float, x: float, radius: float) -> Blob:
    return Blob(
        y,
        x,
        radius=radius * math.exp(rng.normal(0, 0.15)),
        axis_ratio=rng.uniform(0.6, 0.95),
        angle=rng.uniform(0, math.pi),
        waves=((2, rng.normal(0, 0.04), 0.0), (3, rng.normal(0, 0.03), 1.0)),
        peak=math.exp(rng.normal(0, 0.15)),
    )


# --- what becomes of the nuclei ------------------------------------------------------------------


def _fluorescence(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright nuclei on a dark ground; some exposures are far too short, as in the real set."""
    counts = photograph(signal * rng.uniform(200, 800), rng)
    return _rgb(counts / rng.uniform(4, 10))


def stained(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nuclei blue with haematoxylin in tissue pink with eosin."""
    tissue = 0.2 + 0.1 * _clouds(signal.shape, 6.0, rng) + 0.04 * _clouds(signal.shape, 1.0, rng)
    nuclei = ndimage.gaussian_filter(signal, 0.9) * rng.uniform(0.7, 1.1)
    density = nuclei[..., None] * HAEMATOXYLIN + np.maximum(tissue, 0)[..., None] * EOSIN
    return _rgb(240 * np.exp(-density) + rng.normal(0, 3, density.shape))


def _bright_field(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small dark nuclei, each in the pale grey body of its cell."""
    bodies = np.minimum(ndimage.gaussian_filter((signal > 0).astype(np.float32), 7) * 4, 1)
    grain = 1 + 0.1 * _clouds(signal.shape, 2.0, rng)
    density = 0.2 * bodies * grain + 0.8 * ndimage.gaussian_filter(signal, 0.9)
    return _rgb(228 * np.exp(-density) + rng.normal(0, 2, signal.shape))


def _clouds(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1."""
    noise = smooth_noise(shape, sigma, rng)
    return (noise - noise.mean()) / noise.std()


def _rgb(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from grey or coloured values."""
    image = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


KINDS = (
    Kind("fluorescence", (1, 1), radius=8, cover=0.12, develop=_fluorescence),
    Kind("fluorescence", (2, 2.5), radius=12, cover=0.15, develop=_fluorescence),
    Kind("stained", (1, 1.25), radius=8, cover=0.25, develop=stained),
    Kind("bright-field", (2, 2), radius=6, cover=0.04, develop=_bright_field),
)
