"""From a probability map to labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from scipy import ndimage as ndi
from scipy.spatial import KDTree
from skimage.feature import peak_local_max
from skimage.morphology import skeletonize
from skimage.segmentation import relabel_sequential, watershed

from .neighbours import centres
from .targets import BACKGROUND, NUCLEUS, SEPARATION

CERTAIN = 3  # a class besides the three of `targets`: nucleus, and hardly anything else
SQUARE = np.ones((3, 3), bool)
CROSS = ndi.generate_binary_structure(2, 1)
SWELLING = 1  # pixels
BAND = 16  # pixels; with 8, lines differ in one image of ten by a few pixels
SMOOTHING = 2.0  # pixels
DEEPEST = 127  # pixels; the squares of two such sides, added up, fit into 16 bits
LINES_REACH = 128  # pixels; thinning a band of 16 is felt no further, see the tests


@dataclass(frozen=True)
class LabelRule:
    """How a probability map becomes labels, in steps that look at a pixel's surroundings only.

    So they can be taken window by window, of an image too large to be looked at as a whole.

    Attributes:
        classes: (C, H, W) float32 probabilities → (H, W) uint8 classes, pixel by pixel; 0 is
            background.
        cores: (H, W) classes → (H, W) bool mask of the nuclei, parted from each other. What hangs
            together in it is one nucleus.
        reach: How far around a pixel `cores` looks, in pixels.
        structure: (3, 3) bool, the neighbours that hang together.
        min_area: Cores with fewer pixels are dropped.
        small_area: Cores with fewer pixels than this are dropped too, unless half of their pixels
            are `CERTAIN`; those that stay grow by a pixel into the background.
        growth: How far labels then grow into classes other than background, in pixels.
    """

    classes: Callable[[np.ndarray], np.ndarray]
    cores: Callable[[np.ndarray], np.ndarray]
    reach: int = 0
    structure: np.ndarray = field(default_factory=lambda: CROSS)
    min_area: int = 0
    small_area: int = 0
    growth: int = 0

    @property
    def margin(self) -> int:
        """How far around a pixel `swollen` and `filled` look together, in pixels."""
        return self.growth + (SWELLING if self.small_area else 0)

    def labels(self, probabilities: np.ndarray) -> np.ndarray:
        """(H, W) int32 labels, 1…N without gaps, of (C, H, W) float32 probabilities."""
        classes = self.classes(probabilities)
        return self.filled(self.parted(classes), classes)

    def parted(self, classes: np.ndarray) -> np.ndarray:
        """(H, W) int32 labels of the cores that are kept, 1…N without gaps, of (H, W) classes."""
        labels, _ = ndi.label(self.cores(classes), self.structure)
        areas = np.bincount(labels.ravel())
        certain = np.bincount(labels[classes == CERTAIN], minlength=len(areas))
        keep = self.keeps(areas, certain)
        keep[0] = False
        labels = _renumbered(labels, keep)
        small = np.append(False, areas[keep] < self.small_area)
        return self.swollen(labels, classes, small)

    def keeps(self, areas: np.ndarray, certain: np.ndarray) -> np.ndarray:
        """(N,) bool, which cores of so many pixels, and so many certain ones, are kept."""
        return (areas >= self.min_area) & ((areas >= self.small_area) | (2 * certain >= areas))

    def swollen(self, labels: np.ndarray, classes: np.ndarray, small: np.ndarray) -> np.ndarray:
        """Labels of which the small ones, (N + 1,) bool, have grown into the background."""
        if not small.any():
            return labels
        free = (labels == 0) & (classes == BACKGROUND)
        grown = _grown(np.where(small[labels], labels, 0), free, SWELLING)
        return np.where(free, grown, labels).astype(np.int32)

    def filled(self, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Labels that have grown into what is not background."""
        if not self.growth:
            return labels
        return give_back(labels, (classes != BACKGROUND) | (labels > 0), self.growth)


def parted_by_lines(min_area: int = 0, small_area: int = 0, certainty: float = 1.0) -> LabelRule:
    """The rule of `nuclei` followed by `give_back`, for probabilities of three classes.

    Args:
        min_area, small_area: Of `LabelRule`.
        certainty: Least probability of not being background at which a pixel of a nucleus is
            certain.
    """

    def classes(probabilities: np.ndarray) -> np.ndarray:
        most = most_probable(probabilities)
        if small_area:
            most[(most == NUCLEUS) & (1 - probabilities[BACKGROUND] >= certainty)] = CERTAIN
        return most

    return LabelRule(
        classes=classes,
        cores=_parted,
        reach=LINES_REACH,
        structure=SQUARE,
        min_area=min_area,
        small_area=small_area,
        growth=3,
    )


def pieces_of_a_mask(threshold: float = 0.5, min_area: int = 0) -> LabelRule:
    """The rule of `components`, for the probability of one class, which must exceed `threshold`."""
    return LabelRule(
        classes=lambda probabilities: (probabilities[0] > threshold).astype(np.uint8),
        cores=lambda classes: classes > 0,
        min_area=min_area,
    )


def parted_by_borders(threshold: float = 0.5, min_area: int = 0, growth: int = 3) -> LabelRule:
    """The rule for background, nucleus and border (DeepCell in Kromp et al.).

    What hangs together (4-connected) of pixels whose probability of the class nucleus exceeds
    `threshold` is one nucleus; then it gets back its border.

    Args:
        threshold: Kromp et al. take 0.5.
        min_area: Of `LabelRule`; without borders.
        growth: How far a nucleus grows into the border, in pixels; the corners of a border of two
            pixels are nearly three away.
    """

    def classes(probabilities: np.ndarray) -> np.ndarray:
        border = most_probable(probabilities) != BACKGROUND
        sure = probabilities[NUCLEUS] > threshold
        return np.where(sure, NUCLEUS, border * SEPARATION).astype(np.uint8)

    return LabelRule(
        classes=classes,
        cores=lambda classes: classes == NUCLEUS,
        min_area=min_area,
        growth=growth,
    )


def parted_by_watershed(
    distance: float, min_area: int = 0, smoothing: float = SMOOTHING, growth: int = 3
) -> LabelRule:
    """The post-processing of Mandal et al. (section II, figures 3 and 4), for three classes.

    What is most probably boundary is subtracted, and what is still joined is cut apart, see
    `part_by_watershed`. The paper does not say whether a nucleus gets its boundary back; here
    labels grow into it.

    Args:
        distance: Nearest that two markers of one nucleus may be, in pixels, such as
            `marker_distance` learns; `math.inf` leaves the watershed out.
        min_area, growth: Of `LabelRule`.
        smoothing: Of `part_by_watershed`.

    Raises:
        ValueError: When the distance is not above 0.
    """
    if not distance > 0:
        raise ValueError(f"distance must be above 0 pixels, not {distance}.")
    return LabelRule(
        classes=most_probable,
        cores=lambda classes: part_by_watershed(classes == NUCLEUS, distance, smoothing),
        reach=LINES_REACH,  # a nucleus that is larger may be parted otherwise at a window's edge
        min_area=min_area,
        growth=growth,
    )


def nuclei_above(threshold: float, min_area: int = 0) -> LabelRule:
    """The rule of DenoiSeg's public code: what exceeds a probability of nucleus hangs together.

    Args:
        threshold: On (3, H, W) probabilities; chosen on validation images, see
            `focus.best_threshold`.
        min_area: Of `LabelRule`.
    """
    return parted_by_borders(threshold, min_area, growth=0)


def nuclei(probabilities: np.ndarray, min_area: int = 0) -> np.ndarray:
    """Nuclei parted along the predicted separation lines (Matuszewski & Ranefall, section 2.4).

    The separation lines are dilated by a 3×3 square and merged with the background; the skeleton
    of that, dilated by one pixel, is the set of new lines; they are subtracted from the nuclei
    (nucleus or separation as the most probable class), and what still hangs together, diagonals
    included, is one nucleus. The paper also drops nuclei at the image's edge: `drop_border`.

    Args:
        probabilities: (3, H, W) float: background, nucleus, separation.
        min_area: Labels with fewer pixels are dropped; the paper does not say that it does.

    Returns:
        (H, W) int32 labels, 1…N without gaps.

    Raises:
        ValueError: When the map is not (3, H, W).
    """
    if probabilities.ndim != 3 or probabilities.shape[0] != 3:
        raise ValueError(f"probabilities must be (3, H, W), not {probabilities.shape}.")
    return from_classes(most_probable(probabilities), min_area)


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """(H, W) uint8, the most probable of the classes of (C, H, W); of equal ones, the first.

    It is `argmax` over the classes, in passes that a processor takes many pixels at a time.
    """
    highest = probabilities[0]
    most = np.zeros(highest.shape, np.uint8)
    for number, chance in enumerate(probabilities[1:], start=1):
        np.copyto(most, number, where=chance > highest)
        highest = np.maximum(highest, chance)
    return most


def from_classes(classes: np.ndarray, min_area: int = 0) -> np.ndarray:
    """`nuclei`, from an (H, W) map of the most probable classes."""
    return _large_enough(ndi.label(_parted(classes), SQUARE)[0], min_area)


def _parted(classes: np.ndarray) -> np.ndarray:
    """(H, W) bool mask of nucleus or separation, without the separation lines."""
    return (classes != BACKGROUND) & ~separation_lines(classes)


def components(mask: np.ndarray, min_area: int = 0) -> np.ndarray:
    """What hangs together along its sides (4-connected) is one nucleus.

    Args:
        mask: (H, W) bool.
        min_area: Nuclei with fewer pixels are dropped.

    Returns:
        (H, W) int32 labels, 1…N without gaps.
    """
    return _large_enough(ndi.label(mask)[0], min_area)


def divide(labels: np.ndarray, radius: int = 4) -> np.ndarray:
    """Labels cut where they are narrow: a watershed from the maxima of the distance to the edge.

    No pixel changes between nucleus and background, so measures of masks stay what they were.

    Args:
        labels: (H, W) int32 labels.
        radius: Nearest that two maxima of one nucleus may be, in pixels.

    Returns:
        (H, W) int32 labels, 1…N without gaps.
    """
    mask = labels > 0
    depth = ndi.distance_transform_edt(mask)
    # each of the labels gets a maximum at least, at the image's edge too
    peaks = peak_local_max(depth, min_distance=radius, labels=labels, exclude_border=False)
    seeds = np.zeros(labels.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, seeds, mask=mask).astype(np.int32)


def part_by_watershed(
    mask: np.ndarray, distance: float, smoothing: float = SMOOTHING
) -> np.ndarray:
    """A mask of nuclei, cut where several seem to hang together (Mandal et al., section II).

    Markers are the maxima of the distance to the background. Of two in one piece that are too
    near, the lower one goes. Pieces with several markers left are cut by a watershed from these;
    all others stay as they are. The paper does not smooth the distances; without, the dents of an
    outline make maxima of their own, and far more nuclei are cut in pieces.

    Args:
        mask: (H, W) bool. What hangs together along its sides (4-connected) is one piece.
        distance: Markers nearer than this are too near, in pixels.
        smoothing: σ of a Gaussian on the distances, in pixels; 0 for none.

    Returns:
        (H, W) bool mask, without the pixels of the cuts, one pixel wide.
    """
    result = mask.copy()
    if math.isinf(distance):  # leaves one marker in each piece
        return result
    depth = ndi.gaussian_filter(_depth(mask), smoothing, truncate=3)
    pieces, count = ndi.label(mask)
    tops, of_piece = _markers(depth, pieces, distance)
    several = (np.bincount(of_piece, minlength=count + 1) > 1)[pieces]
    for box in ndi.find_objects(several.view(np.uint8)):  # one around all of them, or none
        basins = watershed(-depth[box], tops[box], mask=several[box])
        result[box] &= ~_first_of_two(basins)
    return result


def _depth(mask: np.ndarray) -> np.ndarray:
    """(H, W) float32 distances to the background, in pixels; the image's edge is none.

    They are those of `distance_transform_edt`, found by columns and then by rows, which for pieces
    no higher than nuclei takes a fraction of the time.
    """
    rows, far = np.arange(len(mask), dtype=np.int32)[:, None], len(mask) + DEEPEST
    above = np.maximum.accumulate(np.where(mask, -far, rows), axis=0)
    below = np.minimum.accumulate(np.where(mask, 2 * far, rows)[::-1], axis=0)[::-1]
    away = np.minimum(rows - above, below - rows)
    if away.max(initial=0) > DEEPEST:
        return ndi.distance_transform_edt(mask).astype(np.float32)
    column = np.square(away.astype(np.int16))
    squares, step = column.copy(), 1
    while step**2 < squares.max(initial=0) and step < mask.shape[1]:
        beside = column + np.int16(step**2)
        np.minimum(squares[:, step:], beside[:, :-step], out=squares[:, step:])
        np.minimum(squares[:, :-step], beside[:, step:], out=squares[:, :-step])
        step += 1
    return np.sqrt(squares, dtype=np.float32)


def _first_of_two(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool, pixels of labels with another label to the right or below."""
    inside = labels > 0
    first = np.zeros(labels.shape, bool)
    first[:-1] = (labels[:-1] != labels[1:]) & inside[:-1] & inside[1:]
    first[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & inside[:, :-1] & inside[:, 1:]
    return first


def _markers(
    depth: np.ndarray, pieces: np.ndarray, distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The maxima that are kept, (H, W) int32, each a numbered plateau; and the piece of each."""
    tops, count = ndi.label((depth == _dilated(depth)) & (pieces > 0), SQUARE)
    inside = np.flatnonzero(tops)
    at = np.empty(count + 1, int)
    at[tops.flat[inside]] = inside  # a pixel of each
    height, piece = depth.flat[at[1:]], pieces.flat[at[1:]]
    places = centres(tops)
    near = KDTree(places).query_ball_point(places, np.nextafter(distance, 0))
    kept = np.ones(count, bool)
    for top in np.argsort(-height, kind="stable"):
        if kept[top]:
            rivals = np.array(near[top])
            kept[rivals[(piece[rivals] == piece[top]) & (rivals != top)]] = False
    return _renumbered(tops, np.append(False, kept)), piece[kept]


def marker_distance(labels: Iterable[np.ndarray], quantile: float = 0.05) -> float:
    """How near to each other the centres of two nuclei come, in pixels.

    Mandal et al. (section II) set the threshold on markers "by studying the minimum distance
    between the nuclei centers in the training data". The very smallest is that of a few pieces of
    debris, so here it is a low quantile of every nucleus's distance to the nearest one.

    Args:
        labels: (H, W) int32 labels of the training images, 1…N without gaps.
        quantile: From 0, which is the paper's minimum, to 1.

    Raises:
        ValueError: When no image holds two nuclei.
    """
    nearest = [
        KDTree(places).query(places, k=2)[0][:, 1]
        for places in map(centres, labels)
        if len(places) > 1
    ]
    if not nearest:
        raise ValueError("labels hold no image with two nuclei: there is no distance to learn.")
    return float(np.quantile(np.concatenate(nearest), quantile))


def give_back(labels: np.ndarray, mask: np.ndarray, reach: float = 3) -> np.ndarray:
    """Let labels grow into the mask, each pixel going to the nearest nucleus.

    `nuclei` leaves a gap of three pixels along every line; measures of overlap do better with
    outlines where the network put them. The paper does not do this.

    Args:
        labels: (H, W) int32 labels.
        mask: (H, W) bool, true where a nucleus may be.
        reach: How far a label may grow, in pixels.

    Returns:
        (H, W) int32 labels.
    """
    return np.where(mask, _grown(labels, mask & (labels == 0), reach), 0).astype(np.int32)


def _grown(labels: np.ndarray, free: np.ndarray, reach: float) -> np.ndarray:
    """Labels grown into the pixels of a mask, each of which goes to the nearest one within reach.

    Of labels as near as each other, that of the pixel furthest to the left is taken, then of the
    topmost: `expand_labels` gives the same, by way of every pixel's distance to its nucleus.
    """
    margin = int(reach)
    sides = range(-margin, margin + 1)
    steps = [(dy**2 + dx**2, dx, dy) for dy, dx in product(sides, sides)]
    wide = np.pad(labels, margin)
    empty = np.flatnonzero(free & _dilated(labels > 0, margin))
    place = empty + margin * (1 + wide.shape[1] + 2 * (empty // labels.shape[1]))
    grown = labels.copy()
    for square, dx, dy in sorted(steps):
        if square <= reach**2:
            found = wide.ravel()[place + dy * wide.shape[1] + dx]
            grown.ravel()[empty] = found
            empty, place = empty[found == 0], place[found == 0]
    return grown


def drop_border(labels: np.ndarray) -> np.ndarray:
    """Labels without those that touch the image's edge, renumbered; (H, W) int32."""
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    kept = np.where(np.isin(labels, edge), 0, labels)
    return relabel_sequential(kept)[0].astype(np.int32)


def separation_lines(classes: np.ndarray) -> np.ndarray:
    """The new lines: skeleton of background and dilated separations, dilated by one pixel.

    Args:
        classes: (H, W) class map: 0 background, 1 nucleus, 2 separation.

    Returns:
        (H, W) bool mask.
    """
    inside = classes != BACKGROUND
    inside &= ~_dilated(classes == SEPARATION)
    # Far from the nuclei the skeleton is of no concern, and thinning a wide background takes most
    # of the time: a band around them gives the same lines inside the nuclei.
    near = _dilated(inside, BAND)
    return _dilated(skeletonize(~inside & near))


def _large_enough(labels: np.ndarray, min_area: int) -> np.ndarray:
    """Labels of at least so many pixels, renumbered; (H, W) int32."""
    keep = np.bincount(labels.ravel()) >= min_area
    keep[0] = False
    return _renumbered(labels, keep)


def _renumbered(labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Labels without those that are not to be kept, 1…N without gaps; (H, W) int32."""
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]


def _dilated(image: np.ndarray, reach: int = 1) -> np.ndarray:
    """The highest value, 0 or more, in the square around each pixel; of a mask, its dilation.

    As a maximum filter of 2·reach + 1 pixels, but by shifts that double.
    """
    size = 2 * reach + 1
    for axis in (0, 1):
        margins = [(reach, reach) if side == axis else (0, 0) for side in (0, 1)]
        lines, seen = np.moveaxis(np.pad(image, margins), axis, 0), 1
        while seen < size:
            shift = min(seen, size - seen)
            lines, seen = np.maximum(lines[:-shift], lines[shift:]), seen + shift
        image = np.moveaxis(lines, 0, axis)
    return image
