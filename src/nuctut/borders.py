"""What a network is taught of the borders of nuclei: a gap that weighs much, or a class.

Two ways to have touching nuclei come apart (Kromp et al.): the U-Nets learn a mask of eroded nuclei
in which the narrow places between them weigh most; DeepCell learns the border as a third class.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage as ndi
from skimage.morphology import disk
from torch import Tensor, nn
from torch.nn import functional as F

from nuctut.targets import NUCLEUS

BORDER = 2  # where `targets` has its separations
REACH = 5  # times sigma; farther off, a border adds less than a ten-thousandth of its weight


def eroded(labels: np.ndarray, radius: int = 1) -> np.ndarray:
    """Nuclei without the rim where they meet anything else, so that no two of them touch.

    "To transform originally labeled masks into binary masks where nuclear borders are represented
    as background pixels, nuclear objects within masks have to be shrunk by a morphological erosion
    operation" (Kromp et al., section on the pipeline; by how much, they do not say). The edge of
    the image is no border. A nucleus of which nothing would be left stays as it is.

    Args:
        labels: (H, W) integer labels, 0 background.
        radius: Of the disc that must fit into a nucleus around each of its pixels, in pixels.

    Returns:
        (H, W) labels of the same dtype; the same ids.
    """
    around = disk(radius)
    high = ndi.maximum_filter(labels, footprint=around)
    inside = np.where(high == ndi.minimum_filter(labels, footprint=around), labels, 0)
    left = np.bincount(inside.ravel(), minlength=int(labels.max(initial=0)) + 1)
    return np.where(left[labels] > 0, inside, labels)


def border_weights(labels: np.ndarray, weight: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """Weights of pixels, high where the background between two nuclei is narrow.

    w = 1 + w₀ exp(-(d₁ + d₂)² / 2σ²) on the background, with the distances d₁ and d₂ to the nearest
    nucleus and to the second nearest (Ronneberger et al. 2015, equation 2, with their w₀ = 10 and
    σ = 5 pixels, which Kromp et al. refer to). The original's term for the frequency of classes is
    1 here, and so is the weight of a nucleus' own pixels.

    Args:
        labels: (H, W) integer labels, 0 background.
        weight: w₀.
        sigma: σ in pixels.

    Returns:
        (H, W) float32, 1 and more.
    """
    reach = int(np.ceil(REACH * sigma))
    nearest, second = np.full((2, *labels.shape), np.inf, np.float32)
    for number, span in enumerate(ndi.find_objects(labels), start=1):
        if span is None:
            continue
        near = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in span)
        distance = ndi.distance_transform_edt(labels[near] != number).astype(np.float32)
        second[near] = np.minimum(second[near], np.maximum(nearest[near], distance))
        nearest[near] = np.minimum(nearest[near], distance)
    rise = np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(labels == 0, 1 + weight * rise, 1).astype(np.float32)


def weighted_mask(
    labels: np.ndarray, radius: int = 1, weight: float = 10.0, sigma: float = 5.0
) -> np.ndarray:
    """Class and weight of each pixel in one map, for `BorderCrossEntropy`.

    Args:
        labels: (H, W) integer labels, 0 background.
        radius: Of `eroded`.
        weight, sigma: Of `border_weights`, which are those around the eroded nuclei.

    Returns:
        (H, W) float32: the weight of a pixel, with a plus in eroded nuclei and a minus outside.
    """
    inner = eroded(labels, radius)
    weights = border_weights(inner, weight, sigma)
    return np.where(inner > 0, weights, -weights)


class BorderCrossEntropy(nn.Module):
    """Binary cross-entropy of weighted pixels (Kromp et al.; Ronneberger et al. 2015, equation 1).

    The mean over all pixels of weight times cross-entropy. Pixels of weight 0 are not learned from.
    """

    def forward(self, logits: Tensor, weighted: Tensor) -> Tensor:
        """The loss of (B, 1, H, W) float logits against (B, H, W) maps of `weighted_mask`."""
        if logits.shape[1] != 1:
            raise ValueError(
                f"BorderCrossEntropy wants one logit per pixel, not {logits.shape[1]}."
            )
        mask = (weighted > 0).float()
        weights = weighted.abs().float()
        return F.binary_cross_entropy_with_logits(logits.float().squeeze(1), mask, weights)


def bordered(labels: np.ndarray, radius: int = 2) -> np.ndarray:
    """Background, nucleus and border, the classes of DeepCell (Van Valen et al. 2016).

    The border is what `eroded` takes: a rim within each nucleus, so that there are two of them
    between nuclei that touch. DeepCell's own borders are lines drawn by hand, three pixels wide.

    Args:
        labels: (H, W) integer labels, 0 background.
        radius: Width of the rim in pixels.

    Returns:
        (H, W) uint8: 0 background, 1 nucleus, 2 border.
    """
    classes = (labels > 0).astype(np.uint8) * BORDER
    classes[eroded(labels, radius) > 0] = NUCLEUS
    return classes
