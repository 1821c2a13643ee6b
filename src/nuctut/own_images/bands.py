"""Labels of images too large to be looked at as a whole: the same ones, band by band."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
from scipy import ndimage as ndi
from scipy import sparse

from nuctut.inference import Span
from nuctut.postprocess import CERTAIN, LabelRule

PIXELS = 2**23  # of a band

Each = Callable[[list[Span], str], Iterable[Span]]


class Rows(Protocol):
    """(H, W) pixels of which rows can be read, be they in memory or in a file."""

    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> np.ndarray: ...


class WritableRows(Rows, Protocol):
    """Such as can be written too."""

    def __setitem__(self, rows: slice, values: np.ndarray) -> None: ...


def bands(shape: tuple[int, int], pixels: int = PIXELS) -> list[Span]:
    """First row, and row after the last, of bands of about so many pixels, from top to bottom."""
    rows = max(1, min(shape[0], pixels // shape[1]))
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def labels_in_bands(
    rule: LabelRule,
    classes: Rows,
    scratch: WritableRows,
    *,
    pixels: int = PIXELS,
    each: Each = lambda spans, what: spans,
) -> Iterator[tuple[Span, np.ndarray]]:
    """What `rule` makes of a class map, exactly as of the whole.

    Args:
        rule: Its classes are given here; the other steps are taken.
        classes: (H, W) uint8.
        scratch: (H, W) int32, which is overwritten.
        pixels: About how many make a band.
        each: Called with the bands and what is done to them, and gives the bands: a progress bar.

    Yields:
        A band, and its (h, W) int32 labels. Over the image they run from 1 to N without gaps, in
        the order of their cores' first pixels.
    """
    numbers, small = _numbers(rule, classes, scratch, each(bands(classes.shape, pixels), "nuclei"))
    height = classes.shape[0]
    for start, stop in each(bands(classes.shape, pixels), "labels"):
        low, high = max(0, start - rule.margin), min(height, stop + rule.margin)
        window = classes[low:high]
        labels = rule.swollen(numbers[scratch[low:high]], window, small)
        yield (start, stop), rule.filled(labels, window)[start - low : stop - low]


def _numbers(
    rule: LabelRule, classes: Rows, scratch: WritableRows, spans: Iterable[Span]
) -> tuple[np.ndarray, np.ndarray]:
    """Each band labelled for itself in `scratch`.

    Returns:
        The final label of each of these ids, 0 where its nucleus is not kept; and of each final
        label, whether its nucleus is small.
    """
    areas, certain, seams = [np.zeros(1, int)], [np.zeros(1, int)], []
    above = np.zeros((0, classes.shape[1]), np.int32)
    count = 0
    for start, stop in spans:
        low, high = max(0, start - rule.reach), min(classes.shape[0], stop + rule.reach)
        window = classes[low:high]
        cores = rule.cores(window)[start - low : stop - low]
        ids, found = ndi.label(cores, rule.structure)
        areas.append(np.bincount(ids.ravel(), minlength=found + 1)[1:])
        is_certain = window[start - low : stop - low] == CERTAIN
        certain.append(np.bincount(ids[is_certain], minlength=found + 1)[1:])
        ids = np.where(ids > 0, ids + np.int32(count), np.int32(0))
        seams.append(_meeting(above, ids, rule.structure))
        scratch[start:stop] = ids
        above = ids[-1:]
        count += found
    return _joined(rule, np.concatenate(areas), np.concatenate(certain), np.concatenate(seams))


def _meeting(above: np.ndarray, below: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """(P, 2) pairs of ids that hang together across a seam, of the rows above and below it."""
    pairs = [np.zeros((0, 2), np.int32)]
    if len(above):
        upper, lower = np.pad(above[0], 1), below[0]
        for step in np.flatnonzero(structure[0]):  # from the pixel above left to that above right
            both = np.stack([upper[step : step + len(lower)], lower], 1)
            pairs.append(np.unique(both[both.all(1)], axis=0))
    return np.concatenate(pairs)


def _joined(
    rule: LabelRule, areas: np.ndarray, certain: np.ndarray, seams: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `_numbers` returns, from the pixels of each id and the pairs that hang together.

    Ids and labels count in the order of first pixels, so a nucleus comes where the first of its ids
    does.
    """
    edges = sparse.coo_array((np.ones(len(seams)), tuple(seams.T)), (len(areas), len(areas)))
    _, nucleus = sparse.csgraph.connected_components(edges, directed=False)
    _, first, nucleus = np.unique(nucleus, return_index=True, return_inverse=True)
    whole = np.bincount(nucleus, weights=areas)
    kept = rule.keeps(whole, np.bincount(nucleus, weights=certain))
    kept &= first > 0  # the background is an id too
    order = np.argsort(first)
    numbers = np.zeros(len(first), np.int32)
    numbers[order] = np.where(kept[order], np.cumsum(kept[order]), 0)
    small = np.append(False, whole[order][kept[order]] < rule.small_area)
    return numbers[nucleus], small
