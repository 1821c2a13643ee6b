"""Sharp and blurred: the scores of both, the verdict of a network, and how good a deblurring is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from .metrics import Match, overlap_table, pool
from .neighbours import touching
from .postprocess import LabelRule
from .targets import standardise


@dataclass(frozen=True)
class FocusScores:
    """F1 of sharp and of blurred images, and their harmonic mean (Mandal et al., section III.A).

    The paper does not say at which IoU a nucleus counts as found, nor whether counts are pooled;
    here `iou` says the one, and counts are.

    Attributes:
        iou: Threshold of the matches.
        sharp, blurred: F1 by counts pooled over the images of either set; NaN where those hold no
            nucleus and none was found.
    """

    iou: float
    sharp: float
    blurred: float

    @property
    def nhm(self) -> float:
        """Nuclei segmentation harmonic mean, 2 sharp · blurred / (sharp + blurred).

        0 where both are, NaN where one is.
        """
        both = self.sharp + self.blurred
        return 0.0 if both == 0 else 2 * self.sharp * self.blurred / both


def focus_scores(sharp: Iterable[Match], blurred: Iterable[Match]) -> FocusScores:
    """The scores of a test set in its two parts.

    Args:
        sharp, blurred: One match per image, all at one threshold.

    Raises:
        ValueError: When a part has no image, or thresholds differ.
    """
    first, second = pool(sharp), pool(blurred)
    if first.iou != second.iou:
        raise ValueError(
            f"sharp and blurred must be matched at one IoU, not {first.iou} and {second.iou}."
        )
    return FocusScores(first.iou, first.f1, second.f1)


def relative_gain(ours: float, baseline: float) -> float:
    """(ours − baseline) / baseline, which the paper prints in %; NaN where the baseline is 0.

    The paper's text takes them in this order, and names them the other way round.
    """
    return math.nan if baseline == 0 else (ours - baseline) / baseline


# --- images with touching nuclei -----------------------------------------------------------------


def is_crowded(labels: np.ndarray) -> bool:
    """Whether more than half of the nuclei touch another: the paper's "difficult" test images."""
    touches = touching(labels)
    return bool(2 * np.count_nonzero(touches) > touches.size)


# --- choices made on validation images -----------------------------------------------------------


def best_threshold(
    rule: Callable[[float], LabelRule],
    probabilities: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    thresholds: Sequence[float],
) -> float:
    """The threshold under which a rule finds most, by average precision at IoU 0.5.

    So DenoiSeg chooses the threshold of its nuclei, on validation images.

    Args:
        rule: A threshold → from probabilities to labels, such as `postprocess.nuclei_above`.
        probabilities: (C, H, W) float32 maps of the validation images.
        labels: (H, W) int32, their truths.
        thresholds: To choose from; of equally good ones, the first is taken.

    Raises:
        ValueError: When there are no images, or no thresholds.
    """
    if not len(thresholds):
        raise ValueError("thresholds is empty: give those to choose from.")

    def found(threshold: float) -> float:
        pairs = zip(probabilities, labels, strict=True)
        made = rule(threshold)
        return pool(overlap_table(t, made.labels(p)).match() for p, t in pairs).average_precision

    return max(thresholds, key=found)


def chance_of_blur(
    model: nn.Module, image: np.ndarray, size: int = 224, scale: str = "linear"
) -> float:
    """How blurred a network holds an image to be: the mean over patches that cover it.

    Args:
        model: (B, 1, size, size) → (B, 2) logits, of sharp and of blurred; left in evaluation mode.
        image: (H, W) in camera counts, no smaller than a patch.
        size, scale: As the network was trained, see `blurred_crops.FocusPatches`.

    Returns:
        From 0, sharp, to 1, blurred; above ½, post-process.

    Raises:
        ValueError: When the image is not (H, W) or has no room for a patch.
    """
    if image.ndim != 2 or min(image.shape) < size:
        raise ValueError(f"image must be (H, W), {size} or more each, not {image.shape}.")
    patches = [
        standardise(image[y : y + size, x : x + size], scale)
        for y, x in product(*(_starts(length, size) for length in image.shape))
    ]
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(np.stack(patches))[:, None].to(device))
    return float(logits.float().softmax(1)[:, 1].mean())


def _starts(length: int, size: int) -> list[int]:
    """Where as few patches as cover a side begin, evenly spread."""
    return np.linspace(0, length - size, -(-length // size)).round().astype(int).tolist()


# --- deblurred images ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Restoration:
    """How near a restored image comes to the sharp one.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB, the range being that of the sharp image.
        ssim: Structural similarity, from −1 to 1, in windows of 7×7 pixels.
    """

    psnr: float
    ssim: float


def restoration(sharp: np.ndarray, restored: np.ndarray) -> Restoration:
    """PSNR and SSIM of a restored image whose brightness may be in any unit.

    A deconvolution keeps the unit of the blurred image, a network gives normalised intensities, and
    both lose the offset of the camera. So gain and offset of the restored image are first chosen
    to bring it nearest to the sharp one in squares (as in CARE, Weigert et al. 2018).

    Args:
        sharp, restored: (H, W), any real dtype.

    Raises:
        ValueError: When the shapes differ, or the sharp image is constant.
    """
    if sharp.shape != restored.shape:
        raise ValueError(f"both images must be of one shape, not {sharp.shape}, {restored.shape}.")
    truth, found = sharp.astype(np.float64), restored.astype(np.float64)
    span = float(np.ptp(truth))
    if span == 0:
        raise ValueError("sharp is constant: there is nothing to restore.")
    off = found - found.mean()
    spread = np.mean(off**2)
    gain = np.mean(off * truth) / spread if spread else 0.0
    found = gain * off + truth.mean()
    return Restoration(
        psnr=float(peak_signal_noise_ratio(truth, found, data_range=span)),
        ssim=float(structural_similarity(truth, found, data_range=span)),
    )
