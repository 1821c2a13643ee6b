"""Sixteen pairs of labels on which counting nuclei is hard: the case figure of Kromp et al.

The paper's supplementary figure 3 shows cases A to P and says in its caption what each counts as.
It gives no sizes, so the boxes here are ours, drawn to what the caption says of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPE = (20, 40)
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        says: What it shows, in a few words.
        true, pred: Boxes (top, left, bottom, right) in pixels, ends not included; those of one
            side do not overlap.
        counts: The paper's verdict: tp, fp, fn, us, os.
    """

    says: str
    true: Sequence[Box]
    pred: Sequence[Box]
    counts: tuple[int, int, int, int, int]

    @property
    def labels_true(self) -> np.ndarray:
        """(20, 40) int32 labels of the truth."""
        return _labels(self.true)

    @property
    def labels_pred(self) -> np.ndarray:
        """(20, 40) int32 labels of the prediction."""
        return _labels(self.pred)


def _labels(boxes: Sequence[Box]) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        labels[top:bottom, left:right] = number
    return labels


ONE: Box = (4, 4, 14, 14)
TWO: tuple[Box, Box] = (ONE, (4, 14, 14, 24))  # side by side, touching

CASES = {
    "A": Case("exact", [ONE], [ONE], (1, 0, 0, 0, 0)),
    "B": Case("too large", [ONE], [(3, 3, 16, 15)], (1, 0, 0, 0, 0)),
    "C": Case("too small", [ONE], [(5, 6, 14, 14)], (1, 0, 0, 0, 0)),
    "D": Case("one found, its neighbour touched", TWO, [(4, 4, 14, 17)], (1, 0, 1, 0, 0)),
    "E": Case("shifted too far", [ONE], [(4, 10, 14, 20)], (0, 1, 1, 0, 0)),
    "F": Case("covered, far too large", [ONE], [(1, 2, 18, 20)], (0, 1, 1, 0, 0)),
    "G": Case("covered, far too small", [(2, 2, 16, 16)], [(5, 5, 11, 11)], (0, 1, 1, 0, 0)),
    "H": Case(
        "covered by two that lie elsewhere",
        [(4, 10, 14, 20)],
        [(2, 2, 16, 14), (2, 16, 16, 28)],
        (0, 2, 1, 0, 0),
    ),
    "I": Case(
        "cut in halves", [(4, 4, 16, 20)], [(4, 4, 16, 12), (4, 12, 16, 20)], (0, 2, 1, 0, 1)
    ),
    "J": Case(
        "in three loose pieces",
        [(4, 4, 16, 20)],
        [(2, 2, 9, 12), (10, 4, 16, 12), (4, 13, 16, 20)],
        (0, 3, 1, 0, 1),
    ),
    "K": Case("two as one", TWO, [(4, 4, 14, 24)], (0, 1, 2, 2, 0)),
    "L": Case(
        "two apart as one, loosely",
        [ONE, (4, 18, 14, 28)],
        [(3, 3, 15, 29)],
        (0, 1, 2, 2, 0),
    ),
    "M": Case(
        "one found beside one half covered",
        [(4, 4, 14, 16), (4, 18, 14, 30)],
        [(2, 2, 9, 8), (6, 10, 14, 21), (4, 21, 14, 30)],
        (1, 2, 1, 0, 0),
    ),
    "N": Case(
        "two specks inside, one from outside",
        [(4, 6, 16, 22)],
        [(5, 7, 9, 11), (11, 7, 15, 11), (2, 14, 18, 36)],
        (0, 3, 1, 0, 0),
    ),
    "O": Case(
        "two as one, a third touched",
        [*TWO, (4, 24, 14, 34)],
        [(4, 4, 14, 27)],
        (0, 1, 3, 2, 0),
    ),
    "P": Case(
        "two as one, a third in halves",
        [(4, 4, 14, 12), (4, 12, 14, 20), (4, 22, 14, 34)],
        [(4, 4, 14, 20), (4, 22, 14, 28), (4, 28, 14, 34)],
        (0, 3, 3, 2, 1),
    ),
}
