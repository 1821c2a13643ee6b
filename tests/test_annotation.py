"""Careless labels from careful ones, and how hard an image is: hand-made scenes."""

from __future__ import annotations

import numpy as np
import pytest

from nuctut.annotation import silver
from nuctut.samples import Sample

BOXES = {  # top, bottom, left, right, light above the background
    "bright": (5, 15, 5, 15, 100),
    "dim": (5, 15, 20, 30, 30),
    "cut": (0, 4, 35, 45, 100),
    "cut in half": (20, 30, 0, 6, 100),
    "other": (20, 30, 15, 25, 100),
}


def scene(boxes=BOXES, shape=(40, 50)) -> Sample:
    image, labels = np.full(shape, 50, np.uint16), np.zeros(shape, np.int32)
    for label, (top, bottom, left, right, light) in enumerate(boxes.values(), start=1):
        image[top:bottom, left:right] = 50 + light
        labels[top:bottom, left:right] = label
    return Sample("scene", image, labels)


def kept(labels: np.ndarray) -> set[str]:
    """Which boxes labels hold; that each is whole is checked by the way."""
    careful = scene().labels
    names = list(BOXES)
    found = {int(careful[labels == one][0]) for one in range(1, labels.max() + 1)}
    assert np.array_equal(labels > 0, np.isin(careful, list(found)))
    return {names[one - 1] for one in found}


@pytest.mark.parametrize(
    ("how", "left_out"),
    [
        ({}, {"dim", "cut"}),
        ({"dimmest": 0}, {"cut"}),
        ({"visible": 0}, {"dim"}),
        ({"dimmest": 0.25}, {"cut"}),
        ({"visible": 0.6}, {"dim", "cut", "cut in half"}),
        ({"dimmest": 0, "visible": 0}, set()),
    ],
)
def test_silver_leaves_out_the_dim_and_the_cut(how, left_out):
    labels = silver(scene(), **how)
    assert labels.dtype == np.int32
    assert set(np.unique(labels)) == set(range(len(BOXES) - len(left_out) + 1))
    assert kept(labels) == set(BOXES) - left_out


def test_silver_does_not_depend_on_the_camera():
    sample = scene()
    other = Sample("other", sample.image * np.uint16(30) + np.uint16(7), sample.labels)
    assert np.array_equal(silver(sample), silver(other))


def test_where_all_nuclei_are_at_the_edge_the_small_ones_go():
    sample = scene(
        {"large": (0, 10, 0, 10, 9), "larger": (30, 40, 0, 12, 9), "tiny": (0, 3, 40, 50, 9)}
    )
    assert silver(sample).max() == 2


def test_silver_of_labels_without_background():
    labels = np.ones((6, 6), np.int32)
    assert silver(Sample("full", np.full((6, 6), 9, np.uint8), labels), visible=0).max() == 1


@pytest.mark.parametrize("share", ["dimmest", "visible"])
def test_a_share_that_is_none_is_named(share):
    with pytest.raises(ValueError, match=share):
        silver(scene(), **{share: 1.5})


def test_what_cannot_be_looked_at_is_named():
    empty = np.zeros((8, 8), np.int32)
    with pytest.raises(ValueError, match="bare: it has no nucleus"):
        silver(Sample("bare", np.zeros((8, 8), np.uint8), empty))
    with pytest.raises(ValueError, match="coloured: only grey"):
        silver(Sample("coloured", np.zeros((8, 8, 3), np.uint8), empty))
