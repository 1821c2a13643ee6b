"""Fields of view as ways of preparing a sample give them: cytospins, grown cells, imprints, tissue.

Nuclei are drawn on the `canvas` that all simulated sets share. How densely they lie, how many touch
and how they differ in size and brightness were set by looking at the images of S-BSST265 and
BitDepth_NucSeg. No pixel comes from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nuctut.datasets.simulated.canvas import Blob, Canvas, photograph
from nuctut.datasets.simulated.cells import add_neighbour

TRIES = 12  # places tried per nucleus: a dense field is full before all have found one


@dataclass(frozen=True)
class Preparation:
    """How nuclei look on a slide that was prepared in one way.

    Attributes:
        cover: Share of the image that they are to cover.
        company: Chance that a nucleus has a further neighbour that touches it.
        roundness: The least ratio of the axes; nuclei are between it and round.
        rough: Standard deviation of the waves on the outline, as a share of the radius.
        variety: Standard deviation of the logarithms of size and brightness.
        peak: Typical brightness above the background, in camera counts.
    """

    cover: float
    company: float
    roundness: float
    rough: float
    variety: float
    peak: float


CYTOSPIN = Preparation(0.15, 0.10, 0.80, 0.02, 0.15, 700)
MARROW = Preparation(0.30, 0.50, 0.70, 0.05, 0.30, 450)
GROWN = Preparation(0.20, 0.20, 0.60, 0.03, 0.15, 500)
IMPRINT = Preparation(0.22, 0.40, 0.70, 0.06, 0.30, 600)
SECTION = Preparation(0.40, 0.55, 0.45, 0.10, 0.25, 350)


def draw(
    how: Preparation, diameter: float, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One image and its nuclei, at least one.

    Args:
        how: The preparation.
        diameter: Of a typical nucleus, in pixels; it follows the magnification.
        shape: (H, W) of the image in pixels.
        rng: Where chance comes from.

    Returns:
        (H, W) uint16 camera counts from 0 to 4095; (H, W) int32 labels.
    """
    canvas, (height, width) = Canvas(shape, rng), shape
    canvas.add(_nucleus(how, diameter, height / 2, width / 2, rng))
    wanted = how.cover * height * width / (math.pi * diameter**2 / 4)
    for _ in range(round(TRIES * wanted)):
        if len(canvas.blobs) >= wanted:
            break
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        first = _nucleus(how, diameter, y, x, rng)
        if canvas.add(first):
            while rng.random() < how.company:
                add_neighbour(canvas, first, _nucleus(how, diameter, y, x, rng))
    return photograph(canvas.signal, rng), canvas.labels


def _nucleus(
    how: Preparation, diameter: float, y: float, x: float, rng: np.random.Generator
) -> Blob:
    return Blob(
        y,
        x,
        radius=diameter / 2 * math.exp(rng.normal(0, how.variety / 2)),
        axis_ratio=rng.uniform(how.roundness, 1),
        angle=rng.uniform(0, math.pi),
        waves=tuple((turns, rng.normal(0, how.rough), rng.uniform(0, 6)) for turns in (2, 3)),
        peak=how.peak * math.exp(rng.normal(0, how.variety)),
    )
