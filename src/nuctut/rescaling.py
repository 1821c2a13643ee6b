"""One size of nuclei for all images (Kromp et al., "Pipeline for architecture comparison").

Images are resized so that their nuclei have the same mean size, networks learn and predict at that
scale, and what they predict goes back to the grid of the image, where it is scored. The paper
takes the scale of a test image from its ground truth, which nobody else has;
`estimated_factor` takes it from the image alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from skimage.segmentation import relabel_sequential
from skimage.transform import resize

from nuctut.samples import Sample, SampleSet

DIAMETER = 34.0  # pixels; the paper's public code aims at it, the paper gives no number
LARGEST = 8.0  # factor, and its inverse the smallest
SPECK = 0.05  # of the mean area of nuclei: what is smaller is none
ROUNDS = 2  # a first prediction, and once more at the scale that it gave

Segment = Callable[[np.ndarray], np.ndarray]


# --- how large nuclei are ------------------------------------------------------------------------


def mean_diameter(labels: np.ndarray) -> float:
    """The diameter of a disc of the mean area of all nuclei: √(4 mean(A) / π), in pixels.

    Args:
        labels: (H, W) integer labels, 0 background; a nucleus may have several parts.

    Raises:
        ValueError: When there is no nucleus.
    """
    return _diameter(_areas(labels).mean())


def typical_diameter(labels: np.ndarray) -> float:
    """`mean_diameter` of the labels that are no specks, in pixels.

    A prediction at the wrong scale may hold more specks than nuclei, so that neither a mean nor a
    median over labels tells how large nuclei are. Half of all labelled pixels lie in labels that
    are as large as the area-weighted median or larger, and specks have few pixels. What is smaller
    than a twentieth of it (`SPECK`) does not count. That median itself is no measure of size: where
    sizes vary it is larger, in the true labels of BitDepth_NucSeg by a sixth in diameter.

    Args:
        labels: (H, W) integer labels, 0 background.

    Raises:
        ValueError: When there is no label.
    """
    areas = np.sort(_areas(labels))
    pixels = np.cumsum(areas)
    median = areas[np.searchsorted(pixels, pixels[-1] / 2)]
    return _diameter(areas[areas >= SPECK * median].mean())


def smallest_area(diameter: float = DIAMETER) -> int:
    """Fewest pixels of a nucleus, where nuclei have this mean diameter.

    "The only post-processing step we apply is to remove small artifacts that do not fit the size
    of nuclei, where the threshold depends on the image magnification"; by which rule, the paper
    does not say. (Its public code takes the smallest nucleus of the test image's ground truth.)
    Here it is a twentieth of the mean area, π/4 · diameter²: 45 pixels at the common scale. On an
    image's own grid the diameter is `DIAMETER` over its factor, or what the training images of
    the same magnification have.

    Args:
        diameter: In pixels of the grid on which labels are dropped.
    """
    return math.floor(SPECK * math.pi / 4 * diameter**2)


def _areas(labels: np.ndarray) -> np.ndarray:
    areas = np.bincount(labels.ravel())[1:]
    if not areas.any():
        raise ValueError("labels hold no nucleus, so that nothing tells the scale of their image.")
    return areas[areas > 0]


def _diameter(area: float) -> float:
    return math.sqrt(4 * area / math.pi)


# --- to the common scale and back ----------------------------------------------------------------


def scale_factor(labels: np.ndarray, diameter: float = DIAMETER) -> float:
    """By what an image must be multiplied for its nuclei to have this mean diameter, in pixels.

    Args:
        labels: (H, W) integer labels of the image, 0 background.
        diameter: Aimed at.

    Raises:
        ValueError: When there is no nucleus, or the factor is out of bounds; see `rescaled_image`.
    """
    return _checked(diameter / mean_diameter(labels))


def rescaled_image(image: np.ndarray, factor: float) -> np.ndarray:
    """An image resized by linear interpolation; one that shrinks is smoothed first.

    The smoothing is a Gaussian of σ = (1 / factor - 1) / 2 pixels, so that no detail finer than
    the new pixels comes back as another one.

    Args:
        image: (H, W) or (H, W, C), any real dtype.
        factor: New side over old side.

    Returns:
        (h, w) or (h, w, C) in the image's dtype; h and w are rounded, and at least 1.

    Raises:
        ValueError: When the factor is not from 1/8 to 8.
    """
    return _resized(image, _scaled(image.shape, factor))


def rescaled_labels(labels: np.ndarray, factor: float) -> np.ndarray:
    """Labels resized as `rescaled_image` resizes, each pixel from the nearest one.

    Returns:
        (h, w) int32 labels, 1…N without gaps: nuclei that fall between the new pixels are gone.

    Raises:
        ValueError: When the factor is not from 1/8 to 8.
    """
    return labels_on(labels, _scaled(labels.shape, factor))


def rescaled(sample: Sample, factor: float) -> Sample:
    """A sample at another scale, which its tag "factor" names.

    Raises:
        ValueError: When the factor is not from 1/8 to 8.
    """
    return replace(
        sample,
        image=rescaled_image(sample.image, factor),
        labels=rescaled_labels(sample.labels, factor),
        tags={**sample.tags, "factor": f"{factor:.4g}"},
    )


def equally_sized(samples: SampleSet, diameter: float = DIAMETER) -> SampleSet:
    """A split at the common scale: each sample by the factor that its own labels give.

    Raises:
        ValueError: When a sample is read that holds no nucleus, or whose factor is out of bounds;
            the message names it.
    """

    def resized(sample: Sample) -> Sample:
        try:
            return rescaled(sample, scale_factor(sample.labels, diameter))
        except ValueError as error:
            raise ValueError(f"{sample.key}: {error}") from None

    return samples.changed(f"nuclei of {diameter:g} px", resized)


def labels_on(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Labels on the grid of another size of the same image, each pixel from the nearest one.

    Args:
        labels: (h, w) integer labels, 0 background.
        shape: (H, W) of the grid.

    Returns:
        (H, W) int32 labels, 1…N without gaps.
    """
    lines = [
        np.floor((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in zip(labels.shape, shape, strict=True)
    ]
    return relabel_sequential(labels[np.ix_(*lines)])[0].astype(np.int32)


def segment_rescaled(segment: Segment, image: np.ndarray, factor: float) -> np.ndarray:
    """Labels of an image on its own grid, from a segmentation at another scale.

    Args:
        segment: Image → (h, w) integer labels of the same height and width.
        image: (H, W) or (H, W, C), any real dtype.
        factor: See `rescaled_image`.

    Returns:
        (H, W) int32 labels, 1…N without gaps.

    Raises:
        ValueError: When the factor is not from 1/8 to 8.
    """
    return labels_on(segment(rescaled_image(image, factor)), image.shape[:2])


def estimated_factor(segment: Segment, image: np.ndarray, diameter: float = DIAMETER) -> float:
    """The factor to the common scale, from the image alone.

    A first prediction, of the image as it is, gives a diameter (`typical_diameter`) and so a
    factor; a second one, at that scale, corrects it. What the segmentation makes too small, such as
    a network that learned from eroded nuclei, comes out too small here: let it grow them back.

    Args:
        segment: Image → (h, w) integer labels of the same height and width.
        image: (H, W) or (H, W, C), any real dtype.
        diameter: Mean diameter of nuclei at the common scale, in pixels.

    Returns:
        The factor, held within 1/8 and 8. It stays as it is, 1 at first, where nothing is found.
    """
    factor = 1.0
    for _ in range(ROUNDS):
        labels = segment(rescaled_image(image, factor))
        if not labels.any():
            break
        factor *= diameter / typical_diameter(labels)
        factor = min(max(factor, 1 / LARGEST), LARGEST)
    return factor


def _checked(factor: float) -> float:
    if not 1 / LARGEST <= factor <= LARGEST:
        raise ValueError(
            f"factor must be from {1 / LARGEST:g} to {LARGEST:g}, not {factor:.4g}: look at the "
            "labels that it comes from, whose nuclei are specks, or fill the image."
        )
    return factor


def _scaled(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    _checked(factor)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    smaller = shape[0] < image.shape[0] or shape[1] < image.shape[1]
    pixels = image.astype(np.float32 if image.dtype.itemsize <= 2 else np.float64)
    how = {"order": 1, "mode": "reflect", "anti_aliasing": smaller, "preserve_range": True}
    pixels = resize(pixels, shape, **how)
    whole = np.issubdtype(image.dtype, np.integer)
    return (np.rint(pixels) if whole else pixels).astype(image.dtype)
