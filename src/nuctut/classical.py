"""Segmentation without learning: CellProfiler's IdentifyPrimaryObjects, rebuilt.

The steps are those of CellProfiler 3.1.9 (McQuin et al. 2018) under the settings that Matuszewski &
Ranefall name in section 2.2; what they leave at CellProfiler's defaults is at its defaults here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi
from skimage.filters import threshold_li
from skimage.segmentation import clear_border, relabel_sequential, watershed

EIGHT = np.ones((3, 3), bool)
# Ordered as the paper's table 2 ranks them.
CONFIGURATIONS = ("shape/intensity", "intensity/shape", "shape/shape", "intensity/intensity")
CONSENSUS_OF = CONFIGURATIONS[:3]

SMOOTHING_SIGMA = 1.3488 / 0.6744 / 2  # the default smoothing scale, in pixels


def segment(
    image: np.ndarray, configuration: str = "shape/intensity", *, drop_border: bool = True
) -> np.ndarray:
    """`identify_primary_objects` by the name of its configuration, "<seeds>/<lines>".

    Raises:
        ValueError: When the configuration is none of `CONFIGURATIONS`.
    """
    if configuration not in CONFIGURATIONS:
        raise ValueError(
            f"configuration must be one of {', '.join(CONFIGURATIONS)}, not {configuration!r}."
        )
    seeds, lines = configuration.split("/")
    return identify_primary_objects(image, seeds, lines, drop_border=drop_border)


def identify_primary_objects(
    image: np.ndarray,
    seeds: str = "shape",
    lines: str = "intensity",
    diameter: tuple[float, float] = (10, 50),
    *,
    drop_border: bool = True,
) -> np.ndarray:
    """Bright blobs of a plausible size, touching ones divided.

    Args:
        image: (H, W) intensities, any real dtype.
        seeds: What finds the nuclei of a clump: maxima of the distance to the background ("shape")
            or of the smoothed image ("intensity").
        lines: What the watershed floods from the seeds: the negative distance ("shape") or the
            inverted image ("intensity").
        diameter: Smallest and largest diameter of a nucleus, in pixels; areas outside those of
            the two discs are dropped.
        drop_border: Leave out nuclei that touch the edge of the image.

    Returns:
        (H, W) int32 labels, 1…N without gaps. An image of one constant value has none.

    Raises:
        ValueError: When the image is not (H, W) or a name is unknown.
    """
    if image.ndim != 2:
        raise ValueError(f"image must be (H, W), not {image.shape}.")
    for name, value in (("seeds", seeds), ("lines", lines)):
        if value not in ("shape", "intensity"):
            raise ValueError(f'{name} must be "shape" or "intensity", not {value!r}.')
    smallest, largest = diameter
    pixels = image.astype(np.float32)
    mask = _fill_holes(foreground(image), largest**2)
    if not mask.any():
        return np.zeros(image.shape, np.int32)
    clumps, _ = ndi.label(mask, EIGHT)
    distance = ndi.distance_transform_edt(mask) if "shape" in (seeds, lines) else None
    if seeds == "shape":
        # Noise far below a pixel makes the maxima unique, as in CellProfiler.
        height = distance + np.random.default_rng(0).uniform(0, 1e-3, image.shape)
    else:
        height = ndi.gaussian_filter(pixels, smallest / 3.5)
    markers = _markers(height, clumps, radius=max(1, smallest / 1.5 - 0.5))
    relief = -distance if lines == "shape" else -pixels
    labels = watershed(relief, markers, connectivity=EIGHT, mask=mask)
    if drop_border:
        labels = clear_border(labels)
    return _keep_areas(labels, math.pi * smallest**2 / 4, math.pi * largest**2 / 4)


def foreground(image: np.ndarray) -> np.ndarray:
    """The pixels above the minimum cross-entropy threshold (Li & Lee 1993), as a bool mask.

    The threshold is that of the raw image; the image is smoothed (σ = 1 px) before the comparison.
    """
    if image.min() == image.max():
        return np.zeros(image.shape, bool)
    return ndi.gaussian_filter(image.astype(np.float32), SMOOTHING_SIGMA) >= threshold_li(image)


def consensus(labels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The first segmentation, without the clusters that the others count differently (section 2.2).

    A cluster is an 8-connected region of the union of all foregrounds.

    Args:
        labels: Segmentations of one image, (H, W) integer labels each, the most trusted first.

    Returns:
        labels: The first one, unchanged; and
        ignore: (H, W) bool, true in every cluster whose counts of nuclei disagree.
    """
    clusters, count = ndi.label(np.any([one > 0 for one in labels], axis=0), EIGHT)
    counts = []
    for one in labels:
        ids, first = np.unique(one, return_index=True)
        counts.append(np.bincount(clusters.ravel()[first[ids > 0]], minlength=count + 1))
    agreed = np.all(np.equal(counts, counts[0]), axis=0)
    return labels[0], ~agreed[clusters]


def _fill_holes(mask: np.ndarray, largest: float) -> np.ndarray:
    """Holes below `largest` pixels that do not touch the image's edge, filled."""
    holes, count = ndi.label(~mask)
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    fill = sizes < largest
    fill[0] = False
    for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        fill[edge] = False
    return mask | fill[holes]


def _markers(height: np.ndarray, clumps: np.ndarray, radius: float) -> np.ndarray:
    """One numbered pixel at every maximum of `height` within `radius`, clump by clump."""
    # The background beside a dim clump may be brighter than it, next to a bright one.
    inside = np.where(clumps > 0, height, -np.inf)
    peaked = height >= ndi.maximum_filter(inside, size=3)
    rows, columns = np.nonzero(peaked & (clumps > 0))
    reach = int(radius)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = dy**2 + dx**2 <= radius**2
    padded_height = np.pad(height, reach, constant_values=-np.inf)
    padded_clumps = np.pad(clumps, reach)
    y = rows[:, None] + reach + dy[disc]
    x = columns[:, None] + reach + dx[disc]
    mine = padded_clumps[y, x] == clumps[rows, columns, None]
    highest = np.where(mine, padded_height[y, x], -np.inf).max(1) <= height[rows, columns]
    peaks = np.zeros(height.shape, bool)
    peaks[rows[highest], columns[highest]] = True
    plateaus, _ = ndi.label(peaks, EIGHT)
    ids, first = np.unique(plateaus, return_index=True)
    markers = np.zeros(height.shape, np.int32)
    markers.ravel()[first[ids > 0]] = ids[ids > 0]
    return markers


def _keep_areas(labels: np.ndarray, smallest: float, largest: float) -> np.ndarray:
    """Labels with an area within the limits (pixels, both included), holes filled, renumbered."""
    areas = np.bincount(labels.ravel())
    keep = (areas >= smallest) & (areas <= largest)
    keep[0] = False
    labels = np.where(keep[labels], labels, 0)
    for index, box in enumerate(ndi.find_objects(labels), start=1):
        if box is not None:
            filled = ndi.binary_fill_holes(labels[box] == index)
            labels[box][filled & (labels[box] == 0)] = index
    return relabel_sequential(labels)[0].astype(np.int32)
