"""How hard an image is to take apart, told from its pixels and its labels.

Kromp et al. 2019 ("Dataset description") had three experts rate each image from 1 to 3, for nuclei
that are packed, weak, or of unusual form. Their ratings were not published, so this is another
measure with the same three names.
"""

from __future__ import annotations

import math

import numpy as np

from nuctut.neighbours import touching

LEVELS = ("low", "medium", "high")
NEAR = 0.03  # of the mean diameter: nuclei this near to each other touch
CROWDED = 0.5  # share of the nuclei that touch another one
WEAK = 3.0  # mean brightness of the nuclei over that of the rest


def challenge(image: np.ndarray, labels: np.ndarray) -> str:
    """One of `LEVELS`.

    "low", and one level more for each of these that is so: at least half of the nuclei touch
    another one (`share_near`), and nuclei are less than three times as bright as the rest, on
    average. Of the images whose level follows from the paper's Tables III to V, this agrees with
    all four that are at hand: "low" for Neuroblastoma 12 to 14, "medium" for 15.

    Args:
        image: (H, W), in any units that are 0 in the dark.
        labels: (H, W) int32; without a nucleus the level is "low".
    """
    inside = labels > 0
    if not inside.any() or inside.all():
        return LEVELS[0]
    weak = image[inside].mean() < WEAK * image[~inside].mean()
    return LEVELS[int(share_near(labels) >= CROWDED) + int(weak)]


def share_near(labels: np.ndarray) -> float:
    """Share of the nuclei that come as near to another one as 3 % of the mean diameter.

    The distance is rounded to whole pixels along rows and columns, and at least one.

    Args:
        labels: (H, W) int32 with at least one nucleus.
    """
    areas = np.bincount(labels.ravel())[1:]
    distance = max(1, round(NEAR * math.sqrt(4 / math.pi * areas.mean())))
    return float(touching(labels, distance).mean())
