"""Nuclei and their neighbours: drawn by hand, and one way of finding them against another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage as ndi
from skimage.segmentation import relabel_sequential

from nuctut.neighbours import centres, touching, touching_pairs

LABELS = np.array(
    [
        [1, 1, 0, 3, 0],
        [1, 1, 0, 3, 0],
        [2, 2, 0, 0, 4],
        [0, 0, 0, 0, 0],
        [5, 0, 0, 0, 0],
    ],
    np.int32,
)
NOTHING = np.zeros((3, 3), np.int32)
some_labels = arrays(np.int32, (7, 9), elements=st.integers(0, 6)).map(
    lambda ids: relabel_sequential(ids)[0].astype(np.int32)
)


def test_pairs_are_straight_and_diagonal_neighbours_each_once() -> None:
    assert touching_pairs(LABELS).tolist() == [[1, 2], [3, 4]]
    assert touching_pairs(LABELS.T[::-1]).tolist() == [[1, 2], [3, 4]]


def test_nuclei_touch_by_sides_and_by_corners_and_not_across_a_gap() -> None:
    assert touching(LABELS).tolist() == [True, True, True, True, False]
    assert touching(LABELS, distance=2).all()


def test_of_nothing_there_is_nothing() -> None:
    assert touching_pairs(NOTHING).shape == centres(NOTHING).shape == (0, 2)
    assert touching(NOTHING).shape == (0,)


@given(some_labels)
def test_who_touches_is_in_a_pair(labels: np.ndarray) -> None:
    assert (np.flatnonzero(touching(labels)) + 1).tolist() == np.unique(
        touching_pairs(labels)
    ).tolist()


@given(some_labels)
def test_centres_are_those_of_scipy(labels: np.ndarray) -> None:
    ids = range(1, labels.max() + 1)
    expected = np.array(ndi.center_of_mass(labels > 0, labels, ids)).reshape(-1, 2)
    assert centres(labels) == pytest.approx(expected)
