"""Detectors of nuclei: what they are fed, and from their detections to labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from scipy import ndimage as ndi
from scipy import sparse
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .inference import Span
from .models.mask_rcnn import Detection
from .samples import SampleSet
from .targets import Normalised, dihedral, standardise
from .training import NO_JITTER, Jitter, random_crop

Window = tuple[int, int, int, int]  # top, left, bottom, right of a tile; the latter two are outside

AGREEMENT = 0.5  # intersection over union from which on two tiles saw the same nucleus
MARGIN = 2  # pixels; a nucleus that comes so near a tile's border may go on beyond it
SLIVER = 8  # pixels; what a crop's border leaves of a nucleus, if less, is no target


class InstanceCrops(Dataset):
    """Random square crops in random orientations, with the nuclei in them as a detector wants them.

    Images are normalised as a whole, then cropped. A crop of an image that is smaller takes all of
    it. A nucleus that the border of a crop cuts down to fewer than eight pixels is left out of the
    targets; whole nuclei are kept, however small.

    For validation, leave out seed and gain: then every epoch of every fit sees the same crops.

    Args:
        images: (H, W, 3) intensities, any real dtype.
        labels: (H, W) int32 labels, 0 background.
        keys: Names, for error messages.
        size: Side of the crops in pixels.
        seed: Position, orientation and jitter are a function of it and of the number of the draw.
        jitter: How crops vary beyond their place and orientation.
        shares: How often each image is drawn, such as `training.balanced` gives; None: all alike.

    Items:
        "image" (3, h, w) float32; "key"; "target" with "boxes" (N, 4) float32 (x0, y0, x1, y1,
        half a pixel around the centres of the outermost pixels), "labels" (N,) int64, all 1, and
        "masks" (N, h, w) uint8. N may be 0.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        keys: Sequence[str],
        size: int = 256,
        seed: int = 0,
        jitter: Jitter = NO_JITTER,
        shares: np.ndarray | None = None,
    ) -> None:
        self.images, self.labels, self.keys = images, labels, keys
        self.size, self.seed, self.jitter, self.shares = size, seed, jitter, shares
        self.areas = [np.bincount(one.ravel()) for one in labels]
        self.normalised = [Normalised(image) for image in images]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        which, draw = item
        rng = np.random.default_rng([self.seed, draw])
        # Only the crop becomes floats: all images as such would fill the memory.
        pair = self.normalised[which], self.labels[which]
        image, labels, orientation = random_crop(rng, *pair, self.size, self.jitter)
        labels = np.where(self._kept(which, labels), labels, 0)
        return {
            "image": torch.from_numpy(dihedral(image.transpose(2, 0, 1), orientation).copy()),
            "target": _target(dihedral(labels, orientation)),
            "key": self.keys[which],
        }

    def _kept(self, which: int, crop: np.ndarray) -> np.ndarray:
        """Where the nuclei of a crop are that count as targets."""
        whole = self.areas[which]
        seen = np.bincount(crop.ravel(), minlength=len(whole))
        return ((seen >= SLIVER) | (seen == whole))[crop]

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        """A batch: lists of keys, images and targets, since their sizes differ."""
        return {name: [item[name] for item in items] for name in items[0]}


def instance_crops(
    samples: SampleSet,
    *,
    size: int,
    jitter: Jitter = NO_JITTER,
    shares: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> InstanceCrops:
    """Crops of a split: random ones to learn from, the same one of every image to validate.

    Args:
        samples: A split of (H, W, 3) images; "training" is the one that is learned from.
        size, jitter, shares, seed: Of `InstanceCrops`. Validation ignores them: its crops are the
            largest that all images have room for, 512 pixels at most.
        progress: Show a progress bar.
    """
    bar = tqdm(samples, f"nuclei of {samples.describe()}", disable=not progress)
    labels = [sample.labels for sample in bar]
    common = ([sample.image for sample in samples], labels, samples.keys)
    if samples.split == "training":
        return InstanceCrops(*common, size=size, seed=seed, jitter=jitter, shares=shares)
    return InstanceCrops(*common, size=min(512, *(side for one in labels for side in one.shape)))


class Detector(Protocol):
    """What finds nuclei in a tile, such as `models.mask_rcnn.MaskRCNN`."""

    def detect(self, images: Sequence[Tensor], mask_threshold: float) -> list[list[Detection]]:
        """The nuclei of each (3, H, W) image."""


def segment(
    model: Detector,
    image: np.ndarray,
    *,
    tile: int = 512,
    overlap: int = 128,
    min_score: float = 0.5,
    mask_threshold: float = 0.5,
    min_area: int = 0,
) -> np.ndarray:
    """Labels of an image of any size: `detections`, then `labels_from`, where the arguments are.

    Returns:
        (H, W) int32 labels, 0 background and 1…N without gaps.
    """
    found = detections(model, image, tile=tile, overlap=overlap, mask_threshold=mask_threshold)
    return labels_from(found, image.shape[:2], min_score=min_score, min_area=min_area)


def detections(
    model: Detector,
    image: np.ndarray,
    *,
    tile: int = 512,
    overlap: int = 128,
    mask_threshold: float = 0.5,
) -> list[Detection]:
    """The nuclei of an image, each once, from overlapping tiles, see `detections_in_tiles`.

    Args:
        model, tile, overlap, mask_threshold: See there.
        image: (H, W, 3) intensities, any real dtype; it is normalised as a whole.

    Returns:
        See there.

    Raises:
        ValueError: When the image is not (H, W, 3), or overlap is not in 1…tile - 1.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3), not {image.shape}.")
    pixels = standardise(image)
    how = {"tile": tile, "overlap": overlap, "mask_threshold": mask_threshold}
    return detections_in_tiles(
        model, lambda y, x: pixels[slice(*y), slice(*x)], image.shape[:2], **how
    )


def detections_in_tiles(
    model: Detector,
    pixels: Callable[[Span, Span], np.ndarray],
    shape: tuple[int, int],
    *,
    tile: int = 512,
    overlap: int = 128,
    mask_threshold: float = 0.5,
    each: Callable[[list[Window]], Iterable[Window]] = iter,
) -> list[Detection]:
    """The nuclei of an image of any size, each once; in memory are a tile and what was found.

    Detections of two tiles are one nucleus when, within the pixels that both tiles see, their masks
    have an intersection over union above ½; what agrees with the same detection belongs together
    too. Of such a group the detection that no tile cuts stands for the nucleus (the one of highest
    score, if several). Where all are cut, the nucleus is larger than the overlap, and their union
    stands for it.

    Args:
        model: The detector.
        pixels: (rows, columns) → (h, w, 3) float32, normalised as a whole.
        shape: (H, W) of the image.
        tile: Side of a tile in pixels; smaller images are one tile.
        overlap: By how much neighbouring tiles overlap, in pixels: at least.
        mask_threshold: Passed to the detector.
        each: Called with the windows of the tiles, and gives them: a progress bar.

    Returns:
        All detections whatever their score, in pixels of the image. `cut` marks those that only
        reach the border of a tile: pieces of nuclei, or unions of such.

    Raises:
        ValueError: When overlap is not in 1…tile - 1.
    """
    if not 0 < overlap < tile:
        raise ValueError(f"overlap must be from 1 to {tile - 1} (tile - 1), not {overlap}.")
    sides = [list(_spans(length, tile, overlap)) for length in shape]
    windows = [(y[0], x[0], y[1], x[1]) for y, x in product(*sides)]
    found = []
    for window in each(windows):
        top, left, bottom, right = window
        tensor = torch.from_numpy(pixels((top, bottom), (left, right)).transpose(2, 0, 1).copy())
        inside = model.detect([tensor], mask_threshold)[0]
        placed = (replace(one, top=one.top + top, left=one.left + left) for one in inside)
        found.append([replace(one, cut=_is_cut(one, window, shape)) for one in placed])
    return _merged(found, windows)


def labels_from(
    found: Sequence[Detection],
    shape: tuple[int, int],
    *,
    min_score: float = 0.5,
    min_area: int = 0,
) -> np.ndarray:
    """One label image from masks that may overlap.

    A pixel goes to the nucleus of highest score that claims it; pieces cut by a tile's border come
    after whole nuclei. A nucleus that loses more than half of its pixels so is dropped, and so is
    one that keeps fewer than `min_area`.

    Args:
        found: Detections; those that score less than `min_score` are ignored.
        shape: (H, W) of the image.
        min_score: Best chosen on validation images; `found` can be used again for each choice.
        min_area: In pixels.

    Returns:
        (H, W) int32 labels, 0 background and 1…N without gaps, by falling score.
    """
    labels = np.zeros(shape, np.int32)
    paint(found, labels, min_score=min_score, min_area=min_area)
    return labels


class Canvas(Protocol):
    """(H, W) int32 pixels, in memory or in a file; what is read may be a copy."""

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray: ...

    def __setitem__(self, window: tuple[slice, slice], values: np.ndarray) -> None: ...


def paint(found: Sequence[Detection], labels: Canvas, *, min_score: float, min_area: int) -> None:
    """`labels_from`, into zeros."""
    count = 0
    for one in sorted(found, key=lambda one: (one.cut, -one.score)):
        if one.score < min_score:
            continue
        height, width = one.mask.shape
        window = slice(one.top, one.top + height), slice(one.left, one.left + width)
        place = labels[window]
        free = one.mask & (place == 0)
        area = np.count_nonzero(free)
        if 2 * area >= np.count_nonzero(one.mask) and area >= max(1, min_area):
            count += 1
            place[free] = count
            labels[window] = place


def _spans(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Start and end of each tile along one axis; the last one ends with the image."""
    for start in range(0, max(1, length - overlap), tile - overlap):
        start = max(0, min(start, length - tile))
        yield start, min(start + tile, length)


def _is_cut(one: Detection, window: Window, shape: tuple[int, ...]) -> bool:
    """Whether a detection comes near a border of its tile that is not one of the image."""
    height, width = one.mask.shape
    top, left, bottom, right = window
    return bool(
        (top > 0 and one.top < top + MARGIN)
        or (left > 0 and one.left < left + MARGIN)
        or (bottom < shape[0] and one.top + height > bottom - MARGIN)
        or (right < shape[1] and one.left + width > right - MARGIN)
    )


def _merged(found: list[list[Detection]], windows: list[Window]) -> list[Detection]:
    """Each nucleus once, from the detections of each tile; see `detections_in_tiles`."""
    everything = [one for inside in found for one in inside]
    numbers = np.split(np.arange(len(everything)), np.cumsum([len(one) for one in found])[:-1])
    pairs = [
        pair
        for first, second in _overlapping(windows)
        for pair in _same(
            everything, numbers[first], numbers[second], windows[first], windows[second]
        )
    ]
    ends = np.array(pairs, int).reshape(-1, 2).T
    links = sparse.coo_array((np.ones(len(pairs)), tuple(ends)), 2 * (len(everything),))
    _, groups = sparse.csgraph.connected_components(links, directed=False)
    members: dict[int, list[Detection]] = {}
    for one, group in zip(everything, groups, strict=True):
        members.setdefault(int(group), []).append(one)
    return [_one_of(same) for same in members.values()]


def _overlapping(windows: list[Window]) -> Iterator[tuple[int, int]]:
    """Pairs of windows, by number, that share pixels; windows come row by row, from the top."""
    for first, here in enumerate(windows):
        for second in range(first + 1, len(windows)):
            there = windows[second]
            if there[0] >= here[2]:
                break  # and so do all that follow
            if there[1] < here[3] and here[1] < there[3]:
                yield first, second


def _same(
    everything: list[Detection], mine: np.ndarray, theirs: np.ndarray, here: Window, there: Window
) -> Iterator[tuple[int, int]]:
    """Pairs of two tiles' detections, by number, that are one nucleus."""
    common = _common(here, there)
    for a, b in _near(everything, mine, theirs, common):
        if _agree(everything[a], everything[b], common):
            yield a, b


def _near(
    everything: list[Detection], mine: np.ndarray, theirs: np.ndarray, common: Window
) -> list[tuple[int, int]]:
    """Pairs of two tiles' detections whose boxes overlap within the window both tiles see."""
    if not mine.size or not theirs.size:
        return []
    a, b = (np.array([_box(everything[i]) for i in those]) for those in (mine, theirs))
    low = np.maximum(np.maximum(a[:, None, :2], b[None, :, :2]), common[:2])
    high = np.minimum(np.minimum(a[:, None, 2:], b[None, :, 2:]), common[2:])
    return [(mine[i], theirs[j]) for i, j in np.argwhere((low < high).all(-1))]


def _agree(a: Detection, b: Detection, common: Window) -> bool:
    """Whether two masks are much the same within a window."""
    a_mask, b_mask = _seen(a, common), _seen(b, common)
    # The boxes share a window, and outside of it the masks share nothing.
    shared = _common(_common(_box(a), _box(b)), common)
    both = np.count_nonzero(_seen(a, shared) & _seen(b, shared))
    either = np.count_nonzero(a_mask) + np.count_nonzero(b_mask) - both
    return both > AGREEMENT * either


def _seen(one: Detection, window: Window) -> np.ndarray:
    """The part of a detection's mask that lies in a window."""
    top, left, bottom, right = _common(_box(one), window)
    return one.mask[top - one.top : bottom - one.top, left - one.left : right - one.left]


def _box(one: Detection) -> Window:
    height, width = one.mask.shape
    return one.top, one.left, one.top + height, one.left + width


def _common(a: Window, b: Window) -> Window:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _one_of(same: list[Detection]) -> Detection:
    """What stands for a group of detections of one nucleus."""
    best = min(same, key=lambda one: (one.cut, -one.score))
    if not best.cut or len(same) == 1:
        return best
    boxes = np.array([_box(one) for one in same])
    (top, left), (bottom, right) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    union = np.zeros((bottom - top, right - left), bool)
    for one, (y0, x0, y1, x1) in zip(same, boxes, strict=True):
        union[y0 - top : y1 - top, x0 - left : x1 - left] |= one.mask
    return Detection(union, int(top), int(left), best.score, cut=True)


def _target(labels: np.ndarray) -> dict[str, Tensor]:
    ids = np.unique(labels)
    ids = ids[ids > 0]
    spans = [span for span in ndi.find_objects(labels) if span is not None]
    boxes = [(x.start - 0.5, y.start - 0.5, x.stop - 0.5, y.stop - 0.5) for y, x in spans]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(ids), dtype=torch.int64),
        "masks": torch.from_numpy((labels == ids[:, None, None]).astype(np.uint8)),
    }
