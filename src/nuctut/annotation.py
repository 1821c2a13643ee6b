"""How a less careful annotation of the same image would look (Kromp et al.)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage as ndi
from skimage.segmentation import relabel_sequential

from nuctut.samples import Sample


def silver(sample: Sample, dimmest: float = 0.5, visible: float = 0.5) -> np.ndarray:
    """The labels that the paper's students would have left, of those that its experts drew.

    "Annotate only intact nuclei or nuclei where more than 50% of the nucleus is visible, as occurs
    at image borders", and no "nuclei with low intensities" (section "Dataset description"). What is
    low is not said, and how much of a cut nucleus is visible cannot be seen, so:

    * a nucleus is dim when its mean above the background (the median of all pixels that are none
      of a nucleus) is less than `dimmest` × the median of that of all nuclei of the image;
    * a nucleus that touches the image's edge is cut when its area is at most `visible` × the median
      area of those that do not; where all touch it, of all.

    Only what is left out is simulated, no other carelessness of a first annotation.

    Args:
        sample: A grey image and its careful labels.
        dimmest, visible: Shares, see above; 0 leaves no nucleus out for that reason.

    Returns:
        (H, W) int32 labels, 1…N without gaps.

    Raises:
        ValueError: Naming the image, when it is coloured or has no nucleus; naming the share, when
            it is none.
    """
    for name, share in (("dimmest", dimmest), ("visible", visible)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share from 0 to 1, not {share}.")
    _check(sample)
    labels, ids = sample.labels, np.arange(1, sample.count + 1)
    outside = sample.image[labels == 0]
    light = ndi.mean(sample.image, labels, ids) - (np.median(outside) if outside.size else 0)
    areas = np.bincount(labels.ravel())[1:]
    frame = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    at_edge = np.isin(ids, frame)
    whole = areas[~at_edge] if not at_edge.all() else areas
    left_out = light < dimmest * np.median(light)
    left_out |= at_edge & (areas <= visible * np.median(whole))
    kept = np.where(np.isin(labels, ids[left_out]), 0, labels)
    return relabel_sequential(kept)[0].astype(np.int32)


def as_silver(sample: Sample) -> Sample:
    """The sample with the labels that `silver` leaves; errors as there."""
    return replace(sample, labels=silver(sample))


def _check(sample: Sample) -> None:
    if sample.image.ndim != 2:
        raise ValueError(f"{sample.key}: only grey images, (H, W), can be looked at in this way.")
    if not sample.count:
        raise ValueError(f"{sample.key}: it has no nucleus to look at.")
