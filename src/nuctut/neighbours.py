"""Where the nuclei of an image lie, and which of them are next to each other."""

from __future__ import annotations

import numpy as np
from scipy import ndimage as ndi


def centres(labels: np.ndarray) -> np.ndarray:
    """(N, 2) float64 rows and columns of the centres of mass of labels 1…N without gaps.

    Args:
        labels: (H, W) integers.
    """
    rows, columns = np.nonzero(labels)
    ids = labels[rows, columns]
    areas = np.bincount(ids)[1:]
    return np.stack([np.bincount(ids, at)[1:] / areas for at in (rows, columns)], axis=1)


def touching(labels: np.ndarray, distance: int = 1) -> np.ndarray:
    """Which nuclei have a pixel of another one within a distance.

    Args:
        labels: (H, W) int32 labels, 1…N without gaps.
        distance: Along rows and columns, in whole pixels; of 1, they touch by a side or a corner.

    Returns:
        (N,) bool.
    """
    count, window = labels.max(initial=0), 2 * distance + 1
    largest = ndi.maximum_filter(labels, window)
    smallest = ndi.minimum_filter(np.where(labels, labels, count + 1), window)
    near = (labels > 0) & ((largest != labels) | (smallest != labels))
    touches = np.zeros(count + 1, bool)
    touches[labels[near]] = True
    return touches[1:]


def touching_pairs(labels: np.ndarray) -> np.ndarray:
    """Pairs of nuclei with pixels next to each other, straight or diagonally.

    Returns:
        (P, 2) array of label pairs, smaller label first, each pair once, in order.
    """
    steps = (
        (labels[:, :-1], labels[:, 1:]),
        (labels[:-1], labels[1:]),
        (labels[:-1, :-1], labels[1:, 1:]),
        (labels[:-1, 1:], labels[1:, :-1]),
    )
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in steps])
    meeting = (pairs[:, 0] != pairs[:, 1]) & (pairs > 0).all(axis=1)
    return np.unique(np.sort(pairs[meeting], axis=1), axis=0)
