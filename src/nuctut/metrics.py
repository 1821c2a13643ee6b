"""Scores for labels against labels: the yardstick of the whole book.

Every instance score is read off one `OverlapTable`, which counts the pixels that each pair of
objects shares in a single pass over the image pair. Nothing here loops over objects, but for one
index whose inventors made the order of the objects part of it (`aggregated_jaccard_kromp`).

Three habits hold throughout. Two empty sides score NaN, which means leave out; one empty side
scores 0. A result carries its counts, and every score is a named property computed from them.
Averaging is never implied: `pool` sums counts over images, `per_image_mean` averages scores.

The definitions, and where published codes disagree on them, are in ``book/metrics.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

__all__ = [
    "IOU_THRESHOLDS",
    "Detection",
    "Match",
    "ObjectJaccard",
    "OverlapTable",
    "PixelScores",
    "aggregated_jaccard",
    "aggregated_jaccard_kromp",
    "aggregated_jaccard_plus",
    "detection",
    "match",
    "mean_average_precision",
    "object_jaccard",
    "overlap_table",
    "per_image_mean",
    "pixel_scores",
    "pool",
]

# Divided, not summed up in steps: an IoU of 12/20 must reach the threshold 0.60 exactly.
IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))

# An array with a cell for every pair of ids is the fastest counter, unless it outgrows the image.
_FEW_CELLS = 2**16
_CELLS_PER_PIXEL = 4


# ---------------------------------------------------------------------------- results


def _ratio(part: float, whole: float, counted: int) -> float:
    """part / whole; NaN where neither side holds anything, 0 where only `whole` is empty."""
    if counted == 0:
        return math.nan
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Match:
    """Objects matched one to one at IoU >= `iou`, for one image or, pooled, for several.

    `tp` matched pairs, `fp` predictions and `fn` truths left over, `iou_sum` the matched pairs'
    IoUs added up. Scores are NaN where both sides are empty and 0 where one is.
    """

    iou: float
    tp: int
    fp: int
    fn: int
    iou_sum: float

    def _score(self, part: float, whole: float) -> float:
        return _ratio(part, whole, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """tp / (tp + fp)."""
        return self._score(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """tp / (tp + fn)."""
        return self._score(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn)."""
        return self._score(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def average_precision(self) -> float:
        """tp / (tp + fp + fn), as StarDist, Cellpose and Kaggle mean it: no area under a curve."""
        return self._score(self.tp, self.tp + self.fp + self.fn)

    @property
    def mean_matched_iou(self) -> float:
        """Mean IoU of the matched pairs; 0 where objects exist but none match."""
        return self._score(self.iou_sum, self.tp)

    @property
    def panoptic_quality(self) -> float:
        """iou_sum / (tp + fp/2 + fn/2) = f1 x mean_matched_iou (Kirillov et al. 2019, eq. 1)."""
        return self._score(self.iou_sum, self.tp + self.fp / 2 + self.fn / 2)


@dataclass(frozen=True)
class ObjectJaccard:
    """Counts behind the object-wise Jaccard index of Matuszewski & Ranefall (eq. 3).

    `n_true` and `n_pred` objects away from the border, of which `matched` overlap one to one.
    """

    n_true: int
    n_pred: int
    matched: int

    @property
    def jaccard(self) -> float:
        """matched / (n_true + n_pred - matched); NaN where both sides are empty."""
        either = self.n_true + self.n_pred - self.matched
        return _ratio(self.matched, either, either)


@dataclass(frozen=True)
class Detection:
    """Nuclei found, missed, merged and split as Kromp et al. count them; see `detection`.

    `tp` truths found and `fn` not, `fp` predictions that found none; of the truths, `us` are
    under-segmented (merged with others) and `os` over-segmented (split). `dice_sum` adds up the
    Dice coefficients of what was found; `shared` and `union` are the pixels above and below the
    fraction of the paper's AJI. For one image or, pooled, for several, as in the paper's tables.
    Scores are NaN where both sides are empty and 0 where one is.
    """

    tp: int
    fp: int
    fn: int
    us: int
    os: int
    dice_sum: float
    shared: int
    union: int

    def _score(self, part: float, whole: float) -> float:
        return _ratio(part, whole, self.tp + self.fp + self.fn)

    @property
    def recall(self) -> float:
        """tp / (tp + fn)."""
        return self._score(self.tp, self.tp + self.fn)

    @property
    def precision(self) -> float:
        """tp / (tp + fp)."""
        return self._score(self.tp, self.tp + self.fp)

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn)."""
        return self._score(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def us_rate(self) -> float:
        """us / (tp + fn), the share of the truths that were merged; less is better."""
        return self._score(self.us, self.tp + self.fn)

    @property
    def os_rate(self) -> float:
        """os / (tp + fn), the share of the truths that were split; less is better."""
        return self._score(self.os, self.tp + self.fn)

    @property
    def mean_dice(self) -> float:
        """Mean Dice coefficient of the truths found; 0 where there are objects but none is."""
        return self._score(self.dice_sum, self.tp)

    @property
    def aggregated_jaccard(self) -> float:
        """shared / union, the paper's AJI; see `aggregated_jaccard_kromp`."""
        return self._score(self.shared, self.union)


@dataclass(frozen=True)
class PixelScores:
    """Pixels counted by what each of two masks says of them, for one image or, pooled, several.

    Scores are NaN where both masks are empty and 0 where one is. `accuracy` alone also credits
    the background, so one empty mask leaves it above 0 wherever background agrees.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def _score(self, part: int, whole: int) -> float:
        return _ratio(part, whole, self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float:
        """(tp + tn) / all pixels."""
        return self._score(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def precision(self) -> float:
        """tp / (tp + fp)."""
        return self._score(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """tp / (tp + fn)."""
        return self._score(self.tp, self.tp + self.fn)

    @property
    def dice(self) -> float:
        """2 tp / (2 tp + fp + fn)."""
        return self._score(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def jaccard(self) -> float:
        """tp / (tp + fp + fn)."""
        return self._score(self.tp, self.tp + self.fp + self.fn)


Result = TypeVar("Result", Match, ObjectJaccard, Detection, PixelScores)


# ---------------------------------------------------------------------- overlap table


@dataclass(frozen=True, eq=False)
class OverlapTable:
    """Who overlaps whom, and by how many pixels: everything the instance scores need.

    Objects: `true_ids`, `true_areas` (N,) and `pred_ids`, `pred_areas` (M,), ids ascending as in
    the labels, areas in pixels. Overlapping pairs, sorted by truth: pair k joins truth number
    `true_index[k]` and prediction number `pred_index[k]`, which share `intersections[k]` > 0
    pixels; all three (K,). Background is in none of them. All arrays hold integers.
    """

    true_ids: NDArray[np.integer]
    pred_ids: NDArray[np.integer]
    true_areas: NDArray[np.int64]
    pred_areas: NDArray[np.int64]
    true_index: NDArray[np.int64]
    pred_index: NDArray[np.int64]
    intersections: NDArray[np.int64]

    @property
    def ious(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, (K,) float64."""
        areas = self.true_areas[self.true_index] + self.pred_areas[self.pred_index]
        return self.intersections / (areas - self.intersections)

    def matched_pairs(self, iou: float = 0.5) -> NDArray[np.int64]:
        """Which of the K pairs `match` counts as true positives: their positions, ascending."""
        if not 0 < iou <= 1:
            raise ValueError(f"iou must lie above 0 and not above 1, got {iou}.")
        ious = self.ious
        close = np.flatnonzero(ious >= iou)
        rows, columns = self.true_index[close], self.pred_index[close]
        # Above one half an object has room for one partner only, so this is the usual end.
        if _all_different(rows) and _all_different(columns):
            return close
        # The bonuses sum to at most one half: they choose among, never against, larger counts.
        bonus = ious[close] / (2 * close.size)
        return close[_assign(rows, columns, 1 + bonus)]

    def match(self, iou: float = 0.5) -> Match:
        """See the function `match`."""
        ious = self.ious[self.matched_pairs(iou)]
        tp = ious.size
        return Match(
            iou=float(iou),
            tp=tp,
            fp=self.pred_ids.size - tp,
            fn=self.true_ids.size - tp,
            iou_sum=math.fsum(ious),  # exactly rounded: the order of the ids cannot show
        )

    def aggregated_jaccard(self) -> float:
        """See the function `aggregated_jaccard`."""
        best = np.flatnonzero(_is_largest(self.true_index, self.ious))
        best = best[_is_largest(self.true_index[best], self.intersections[best])]
        # Pairs still tied share as many pixels with predictions of equal area: any one will do,
        # except that the choice decides which predictions are left unused.
        _, first = np.unique(self.true_index[best], return_index=True)
        chosen = best[first]
        used = self.pred_index[chosen]
        if chosen.size < best.size:
            rows, columns = self.true_index[best], self.pred_index[best]
            used = columns[_assign(rows, columns, np.ones(best.size))]
        unused_area = self.pred_areas.sum() - self.pred_areas[np.unique(used)].sum()
        shared = self.intersections[chosen].sum()
        partner_area = self.pred_areas[self.pred_index[chosen]].sum()
        union = self.true_areas.sum() + partner_area - shared + unused_area
        return _ratio(int(shared), int(union), int(union))

    def aggregated_jaccard_plus(self) -> float:
        """See the function `aggregated_jaccard_plus`."""
        # Equal sums of IoU may share different numbers of pixels; the larger number wins.
        nudge = 1e-6 * self.intersections / max(1, self.intersections.sum())
        chosen = _assign(self.true_index, self.pred_index, self.ious + nudge)
        shared = self.intersections[chosen].sum()
        union = self.true_areas.sum() + self.pred_areas.sum() - shared
        return _ratio(int(shared), int(union), int(union))

    def detection(self) -> Detection:
        """See the function `detection`."""
        shared, truth = self.intersections, self.true_areas[self.true_index]
        pred = self.pred_areas[self.pred_index]
        held, piece = 2 * shared > truth, 2 * shared > pred
        holds = np.bincount(self.pred_index[held], minlength=self.pred_ids.size)
        # 3 I > A + B is a Jaccard index above one half, in whole numbers
        found = held & (3 * shared > truth + pred) & (holds[self.pred_index] == 1)
        merged = _joined(self.pred_index, self.pred_areas, held, truth, shared)
        split = _joined(self.true_index, self.true_areas, piece, pred, shared)
        tp = int(np.count_nonzero(found))
        aji_shared, aji_union = self._kromp_pixels()
        return Detection(
            tp=tp,
            fp=self.pred_ids.size - tp,
            fn=self.true_ids.size - tp,
            us=int(merged.sum()),
            os=int(np.count_nonzero(split)),
            dice_sum=math.fsum(2 * shared[found] / (truth + pred)[found]),
            shared=aji_shared,
            union=aji_union,
        )

    def _kromp_pixels(self) -> tuple[int, int]:
        """Pixels above and below the fraction of `aggregated_jaccard_kromp`."""
        shared = union = 0
        used: set[int] = set()
        last, best = -1, 0.0
        pairs = (self.true_index, self.pred_index, self.intersections, self.ious)
        for truth, pred, pixels, iou in zip(*(of.tolist() for of in pairs), strict=True):
            if truth != last:
                last, best = truth, 0.0
            if pred not in used and iou > best:
                best = iou
                used.add(pred)
                shared += pixels
                union += int(self.true_areas[truth] + self.pred_areas[pred]) - pixels
        unused = self.pred_areas.sum() - self.pred_areas[sorted(used)].sum()
        return shared, union + int(unused)


def overlap_table(labels_true: ArrayLike, labels_pred: ArrayLike) -> OverlapTable:
    """Count the pixels every pair of objects shares, in one pass over the two label images.

    Both are integer arrays of one shape, 0 background, any other value an object's id; gaps
    between ids, any integer dtype and any memory layout will do. To take several scores of one
    pair, build the table once and call its methods.

    Raises ValueError for different shapes, for floats, booleans or other non-integers, and for
    negative ids.
    """
    true, pred = _checked_pair(labels_true, labels_pred)
    rows, columns, counts = _pair_counts(true.ravel(), pred.ravel())
    true_ids, true_areas = _areas(rows, counts)
    pred_ids, pred_areas = _areas(columns, counts)
    pairs = (rows > 0) & (columns > 0)
    return OverlapTable(
        true_ids=true_ids,
        pred_ids=pred_ids,
        true_areas=true_areas,
        pred_areas=pred_areas,
        true_index=np.searchsorted(true_ids, rows[pairs]),
        pred_index=np.searchsorted(pred_ids, columns[pairs]),
        intersections=counts[pairs],
    )


# ----------------------------------------------------------------- scores of label pairs


def match(
    labels_true: ArrayLike, labels_pred: ArrayLike, iou: float | Sequence[float] = 0.5
) -> Match | list[Match]:
    """Match objects one to one where their intersection over union is at least `iou`.

    `labels_true`, `labels_pred` as for `overlap_table`. A threshold gives a `Match`; a sequence
    of them, such as `IOU_THRESHOLDS`, a list in the same order, at the cost of one table.

    IoU equal to the threshold counts, as in StarDist and Cellpose. Above one half no object can
    have two such partners. At or below one half it can: then as many pairs as possible are
    formed, and among those choices the one with the largest sum of IoU.

    Raises ValueError for refused labels (see `overlap_table`) or a threshold outside (0, 1].
    """
    table = overlap_table(labels_true, labels_pred)
    if np.ndim(iou) == 0:
        return table.match(iou)
    return [table.match(threshold) for threshold in iou]


def mean_average_precision(matches: Iterable[Match]) -> float:
    """Mean of `average_precision` over the thresholds of one image, or of one pool.

    `matches` as `match(..., IOU_THRESHOLDS)` gives them. NaN where both sides are empty.
    """
    matches = list(matches)
    if not matches:
        raise ValueError("matches is empty: give one Match per threshold.")
    return math.fsum(at.average_precision for at in matches) / len(matches)


def aggregated_jaccard(labels_true: ArrayLike, labels_pred: ArrayLike) -> float:
    """Kumar's aggregated Jaccard index (AJI; Kumar et al. 2017, algorithm 1).

    Each truth takes the prediction of highest IoU, which another truth may take as well. The
    shared pixels of all these pairs are divided by their unions' pixels plus the areas of the
    truths without any overlap and of the predictions nobody took. Not symmetric in its sides.
    Never above the pixel Jaccard of the two foregrounds.

    The paper leaves ties open, and codes let the order of the ids decide. Here equal IoUs go to
    the larger intersection, then to the choice that leaves the fewest predictions unused.

    NaN if both sides are empty, 0 if one is. Labels and errors as for `overlap_table`.
    """
    return overlap_table(labels_true, labels_pred).aggregated_jaccard()


def aggregated_jaccard_plus(labels_true: ArrayLike, labels_pred: ArrayLike) -> float:
    """AJI+, the aggregated Jaccard index with one-to-one pairs (Graham et al. 2019, HoVer-Net).

    Overlapping objects are paired one to one so that their IoUs sum to the most (sums closer
    than 1e-6 count as equal and go to the larger intersection). The pairs' shared pixels are
    divided by their unions' pixels plus the areas of all objects left over. Symmetric.

    NaN if both sides are empty, 0 if one is. Labels and errors as for `overlap_table`.
    """
    return overlap_table(labels_true, labels_pred).aggregated_jaccard_plus()


def aggregated_jaccard_kromp(labels_true: ArrayLike, labels_pred: ArrayLike) -> float:
    """The AJI of Kromp et al.'s tables, as their public code has it: another index than Kumar's.

    Truths are taken in the order of their ids, and so are the predictions that meet each. Every
    prediction not yet used that is better (in IoU) than those before it is paired with the truth
    and used up, not the best alone. The shared pixels of all these pairs are divided by their
    unions' pixels plus the areas of the predictions nobody used. A truth without a pair costs
    nothing, so that missing nuclei can raise the index, and the order of the ids matters.

    For several images, sum up the two numbers (`pool` of `detection`): so does the paper.

    NaN if both sides are empty, 0 if one is. Labels and errors as for `overlap_table`.
    """
    return overlap_table(labels_true, labels_pred).detection().aggregated_jaccard


def detection(labels_true: ArrayLike, labels_pred: ArrayLike) -> Detection:
    """Count found, missed, merged and split nuclei by the rule of Kromp et al.

    The paper's section *Evaluation metrics* and supplementary figure 3 state the rule, and its
    public code (`objectBasedMeasures4`) settles what they leave open. A prediction *holds* a
    truth if it covers more than half of it, and is a *piece* of one if more than half of it lies
    inside.

    * A truth is found (TP) by a prediction that holds it and no other truth, if their Jaccard
      index exceeds one half. All other truths are missed (FN), all other predictions are FP.
    * Truths held by one prediction, two or more, are under-segmented (US) if the Jaccard index of
      that prediction and of them together exceeds one half.
    * A truth with two or more pieces is over-segmented (OS) if the Jaccard index of it and of the
      pieces together exceeds one half. One of the pieces may have found it all the same: then it
      is TP and OS. (The paper's caption of case M reads as if it could not; its code lets it.)

    Every threshold must be exceeded: equal does not count. Against `match` at 0.5 this is
    stricter in one thing: a prediction that holds a second, smaller truth finds neither.

    Labels and errors as for `overlap_table`.
    """
    return overlap_table(labels_true, labels_pred).detection()


def object_jaccard(labels_true: ArrayLike, labels_pred: ArrayLike) -> ObjectJaccard:
    """The object-wise Jaccard index J of Matuszewski & Ranefall (section 3.1, eq. 3).

    1. Objects that touch the image border are dropped, on each side by itself.
    2. The rest are counted: `n_true` (the paper's |G|) and `n_pred` (|R|).
    3. Each object is eroded by a 3x3 square: a pixel stays if its eight neighbours bear its id.
    4. `matched` (|M|): pairs in which each overlaps the other and nobody else.

    An object too thin to survive the erosion has been counted but cannot match, nor does it
    stand in the way of others. The paper does not say; this reading lets no debris go unpunished.

    Labels (H, W); otherwise labels and errors as for `overlap_table`.
    """
    true, pred = _checked_pair(labels_true, labels_pred)
    if true.ndim != 2:
        raise ValueError(
            f"labels_true and labels_pred must be images (H, W), got shape {true.shape}."
        )
    n_true, true = _without_border_objects(true)
    n_pred, pred = _without_border_objects(pred)
    table = overlap_table(_eroded(true), _eroded(pred))
    true_degree = np.bincount(table.true_index)[table.true_index]
    pred_degree = np.bincount(table.pred_index)[table.pred_index]
    matched = int(np.count_nonzero((true_degree == 1) & (pred_degree == 1)))
    return ObjectJaccard(n_true=n_true, n_pred=n_pred, matched=matched)


def pixel_scores(mask_true: ArrayLike, mask_pred: ArrayLike) -> PixelScores:
    """Compare two masks pixel by pixel.

    Boolean arrays of one shape, or integers >= 0 of which any but 0 is foreground (so labels
    may be given as they are). Raises ValueError for different shapes, floats and negatives.
    """
    true, pred = _checked_pair(mask_true, mask_pred, kind="mask")
    true, pred = true != 0, pred != 0
    tp = int(np.count_nonzero(true & pred))
    fp = int(np.count_nonzero(pred)) - tp
    fn = int(np.count_nonzero(true)) - tp
    return PixelScores(tp=tp, fp=fp, fn=fn, tn=true.size - tp - fp - fn)


# ------------------------------------------------------------------------- many images


def pool(results: Iterable[Result]) -> Result:
    """Sum the counts of several images into one result, whose scores weigh every object alike.

    `results` are all `Match` (at one threshold), or all of another kind of result. For several
    thresholds, pool each: ``[pool(at) for at in zip(*matches_of_images)]``.

    Raises ValueError if there are none, or if kinds or thresholds are mixed.
    """
    results = _results_of_one_kind(results)
    first = results[0]
    if isinstance(first, Match) and len({result.iou for result in results}) > 1:
        raise ValueError("results hold matches at different IoU thresholds; pool each by itself.")
    counts = [field.name for field in fields(first) if field.name != "iou"]
    return replace(first, **{name: sum(getattr(r, name) for r in results) for name in counts})


def per_image_mean(results: Iterable[Result] | Iterable[float], score: str | None = None) -> float:
    """Average one score over images, each image weighing alike; NaNs are left out.

    `results` are one result per image and `score` the name of a property ("f1"), or plain
    numbers, one per image, without `score` (for scores that are numbers: the AJIs). NaN if every
    image is left out. Raises ValueError if there are no images or the score is unknown.
    """
    if score is None:
        values = [float(value) for value in results]
    else:
        results = _results_of_one_kind(results)
        kind = type(results[0])
        known = [name for name, value in vars(kind).items() if isinstance(value, property)]
        if score not in known:
            raise ValueError(f"{kind.__name__} has no score {score!r}; it has {', '.join(known)}.")
        values = [getattr(result, score) for result in results]
    if not values:
        raise ValueError("results is empty: there is no image to average over.")
    kept = [value for value in values if not math.isnan(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


# ------------------------------------------------------------------------------ helpers


def _results_of_one_kind(results: Iterable[Result]) -> list[Result]:
    results = list(results)
    kinds = {type(result) for result in results}
    if len(kinds) != 1 or not kinds <= set(Result.__constraints__):
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        known = ", ".join(kind.__name__ for kind in Result.__constraints__)
        raise ValueError(f"results must all be of one kind ({known}), got {found}.")
    return results


def _checked_pair(
    true: ArrayLike, pred: ArrayLike, kind: str = "labels"
) -> tuple[NDArray, NDArray]:
    true = _checked(true, f"{kind}_true", kind)
    pred = _checked(pred, f"{kind}_pred", kind)
    if true.shape != pred.shape:
        raise ValueError(
            f"{kind}_true and {kind}_pred must have the same shape, "
            f"got {true.shape} and {pred.shape}."
        )
    return true, pred


def _checked(array: ArrayLike, name: str, kind: str) -> NDArray:
    array = np.asarray(array)
    if array.dtype == bool:
        if kind == "mask":
            return array
        raise ValueError(
            f"{name} must hold integer ids, not booleans: a mask does not say which pixels "
            "belong to one object; label it first."
        )
    if not np.issubdtype(array.dtype, np.integer):
        remedy = "threshold it first" if kind == "mask" else "convert them with astype(int)"
        wanted = "booleans or integers" if kind == "mask" else "integer ids"
        raise ValueError(f"{name} must hold {wanted}, not {array.dtype}; {remedy}.")
    if array.min(initial=0) < 0:
        raise ValueError(
            f"{name} must not be negative (found {array.min()}): 0 is background, "
            "and pixels to be ignored cannot be scored."
        )
    return array


def _pair_counts(true: NDArray, pred: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The distinct pairs (true[i], pred[i]), ascending, and how often each occurs.

    `true` and `pred` (P,) are label images unrolled: background included, ids of any size.
    """
    # Unrolled images are runs of equal pairs, ten times fewer than pixels; count whole runs.
    change = np.ones(true.size, bool)
    change[1:] = (true[1:] != true[:-1]) | (pred[1:] != pred[:-1])
    starts = np.flatnonzero(change)
    lengths = np.diff(starts, append=true.size)
    true, pred = true[starts], pred[starts]

    height, width = int(true.max(initial=0)) + 1, int(pred.max(initial=0)) + 1
    if height * width <= _FEW_CELLS + _CELLS_PER_PIXEL * change.size:
        counts = np.bincount(true.astype(np.int64) * width + pred.astype(np.int64), lengths)
        codes = np.flatnonzero(counts)
        rows, columns = np.divmod(codes, width)
        return rows, columns, counts[codes].astype(np.int64)

    # Wide gaps between ids, or very many objects: number the ids, then the pairs.
    true_ids, true_number = np.unique(true, return_inverse=True)
    pred_ids, pred_number = np.unique(pred, return_inverse=True)
    codes, pair_number = np.unique(true_number * pred_ids.size + pred_number, return_inverse=True)
    rows, columns = np.divmod(codes, pred_ids.size)
    counts = np.bincount(pair_number, lengths).astype(np.int64)
    return true_ids[rows], pred_ids[columns], counts


def _areas(ids: NDArray, counts: NDArray) -> tuple[NDArray, NDArray]:
    """The distinct ids but 0, ascending, and the sum of each one's counts."""
    ids, numbers = np.unique(ids, return_inverse=True)
    areas = np.bincount(numbers, weights=counts, minlength=ids.size).astype(np.int64)
    return ids[ids > 0], areas[ids > 0]


def _all_different(numbers: NDArray) -> bool:
    return np.unique(numbers).size == numbers.size


def _joined(
    groups: NDArray, areas: NDArray, chosen: NDArray, of_other: NDArray, shared: NDArray
) -> NDArray:
    """How many partners each object has that together match it; 0 where fewer than two do, or none.

    `groups` (K,) is the object of every pair, `areas` (objects,) its area, `chosen` (K,) which
    pairs count, `of_other` (K,) the partner's area and `shared` (K,) the pixels in common. Partners
    match an object together if the Jaccard index of it and of them all exceeds one half.
    """

    def total(weights: NDArray) -> NDArray:
        return np.bincount(groups[chosen], weights[chosen], areas.size).astype(np.int64)

    count = total(np.ones_like(shared))
    return np.where((count >= 2) & (3 * total(shared) > areas + total(of_other)), count, 0)


def _is_largest(groups: NDArray, values: NDArray) -> NDArray:
    """True where a value is the largest, or ties for the largest, of its group. Values > 0."""
    largest = np.zeros(groups.max(initial=-1) + 1)
    np.maximum.at(largest, groups, values)
    return values == largest[groups]


def _assign(rows: NDArray, columns: NDArray, weights: NDArray) -> NDArray:
    """Choose pairs (rows[k], columns[k]), no row or column twice, of largest total weight > 0.

    Returns the chosen k. The pairs stay sparse. The solver insists on a column for every row,
    so each row also gets a column of its own at weight 0; as explicit zeros are lost in a sparse
    array, every weight is raised by the same step, which changes no choice.
    """
    if rows.size == 0:
        return np.arange(0)
    n_rows, n_columns = rows.max() + 1, columns.max() + 1
    own = np.arange(n_rows)
    step = weights.max()
    graph = csr_array(
        (
            np.concatenate([weights + step, np.full(n_rows, step, float)]),
            (np.concatenate([rows, own]), np.concatenate([columns, n_columns + own])),
        ),
        shape=(n_rows, n_columns + n_rows),
    )
    row_order, partner = min_weight_full_bipartite_matching(graph, maximize=True)
    column_of = np.empty(n_rows, np.int64)
    column_of[row_order] = partner
    return np.flatnonzero(column_of[rows] == columns)


def _without_border_objects(labels: NDArray) -> tuple[int, NDArray]:
    """How many objects stay clear of the image border, and labels (H, W) of those alone."""
    edges = [labels[:1], labels[-1:], labels[:, :1], labels[:, -1:]]
    at_border = np.unique(np.concatenate([edge.ravel() for edge in edges]))
    inside = np.where(np.isin(labels, at_border), 0, labels)
    return int(np.count_nonzero(np.unique(inside))), inside


def _eroded(labels: NDArray) -> NDArray:
    """Labels (H, W) without the pixels that have another id among their eight neighbours.

    The outermost pixels, whose neighbours are not all known, must be background.
    """
    centre = labels[:, 1:-1]
    alike_in_row = (centre == labels[:, :-2]) & (centre == labels[:, 2:])
    middle = centre[1:-1]
    alike = (middle == centre[:-2]) & (middle == centre[2:])
    alike &= alike_in_row[:-2] & alike_in_row[1:-1] & alike_in_row[2:]
    eroded = np.zeros_like(labels)
    eroded[1:-1, 1:-1][alike] = middle[alike]
    return eroded
