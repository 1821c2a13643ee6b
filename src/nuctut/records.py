"""Records: one measured run as one small JSON file, the book's only evidence.

A record keeps the counts of every test image, so that any score, pooled or per image, can be
computed again from it, and resampled for an interval. It keeps no pixels.

Pooled scores sum the counts over images before dividing, so an image weighs by its nuclei;
per-image means divide first, so every image weighs the same. Scores whose name or definition asks
for it are means over images in either block. An image that is empty on both sides has no score
(NaN, `null` in the file): it adds nothing to the pooled counts and stays out of the means.

A file has an object per image, or, where images are many, a table, which takes a fifth of the
space and from which the same rows are read, but for sums of IoUs that no score needs.

Records made before the book counted as Kromp et al. do lack those counts and the scores that follow
from them (`KROMP_METRICS`): these are NaN when such a record is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, with_config
from pydantic_core import PydanticCustomError
from scipy import stats
from typing_extensions import TypedDict

from nuctut import machine, metrics
from nuctut.files import (
    STRICT,
    Count,
    Malformed,
    Measure,
    Text,
    own,
    parse_json,
    read_text,
    replacing,
    shown,
)
from nuctut.paths import results_root, runs_root
from nuctut.samples import SOURCES, SampleSet

SCHEMA = 1
PRESETS = ("smoke", "read", "lite", "paper")
STAND_IN = "stand-in"  # a source, and the folder in a chapter's that keeps its records apart
NETWORKS = "networks"  # the folder of the networks that come with the book, beside the records
OWN_FOLDER = "NUCTUT_RECORDS"
PATIENT = "patient"  # a tag of images
THRESHOLD_KEYS = tuple(f"{iou:.2f}" for iou in metrics.IOU_THRESHOLDS)
LOOSE_IOU = 0.25  # at which nuclei are counted besides, where outlines are hard to see
FOCUS = "focus"  # a tag of images, "sharp" or "blurred"
ROUNDING = 1e-6  # sums of IoUs are kept to 6 digits
MANY = 200  # images; of more, a file keeps a table

Row = dict[str, Any]


# --- counts of one image, and the scores that follow from them ---------------------------------


def image_row(
    key: str,
    labels_true: np.ndarray,
    labels_pred: np.ndarray,
    *,
    separations_true: np.ndarray | None = None,
    separations_pred: np.ndarray | None = None,
    nuclei_true: np.ndarray | None = None,
    nuclei_pred: np.ndarray | None = None,
    object_pred: np.ndarray | None = None,
    seconds: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> Row:
    """Everything a record keeps of one test image.

    Args:
        key: The image's key, unique in the record.
        labels_true, labels_pred: (H, W) integer labels, 0 background.
        separations_true, separations_pred: (H, W) bool masks of the separations; give both or none.
        nuclei_true, nuclei_pred: (H, W) bool masks of the nuclei before post-processing; by
            default where the labels are not 0.
        object_pred: (H, W) labels used for the object Jaccard only, where they differ from
            `labels_pred`: the paper's post-processing cuts separation lines out of the nuclei,
            and overlaps of pixels (all other scores) should not pay for that.
        seconds: Time this image took, from pixels to labels.
        tags: What scores can be grouped by, such as {"modality": "stained"}; see `scores_by_tag`.

    Raises:
        ValueError: When only one of the two separation masks is given, or the arrays do not match.
    """
    if (separations_true is None) != (separations_pred is None):
        raise ValueError(f"{key}: give both separation masks, or none.")
    table = metrics.overlap_table(labels_true, labels_pred)
    matches = [table.match(iou) for iou in metrics.IOU_THRESHOLDS]
    objects = metrics.object_jaccard(
        labels_true, labels_pred if object_pred is None else object_pred
    )
    nuclei = _pixel_counts(
        labels_true > 0 if nuclei_true is None else nuclei_true,
        labels_pred > 0 if nuclei_pred is None else nuclei_pred,
    )
    separations = None
    if separations_true is not None:
        separations = _pixel_counts(separations_true, separations_pred)
    row = {
        "key": key,
        "n_true": matches[0].tp + matches[0].fn,
        "object": _integers(objects, "n_true", "n_pred", "matched"),
        "match": {
            name: _integers(match, "tp", "fp", "fn") | {"iou_sum": round(float(match.iou_sum), 6)}
            for name, match in zip(THRESHOLD_KEYS, matches, strict=True)
        },
        "loose": _integers(table.match(LOOSE_IOU), "tp", "fp", "fn"),
        "nuclei": nuclei,
        "separations": separations,
        "kromp": _kromp(table.detection()),
        "aggregated_jaccard": _rounded(table.aggregated_jaccard()),
        "seconds": _rounded(seconds),
    }
    return row | {"tags": dict(tags)} if tags else row


def _pixel_counts(mask_true: np.ndarray, mask_pred: np.ndarray) -> dict[str, int]:
    return _integers(metrics.pixel_scores(mask_true, mask_pred), "tp", "fp", "fn", "tn")


def _kromp(found: metrics.Detection) -> dict[str, float]:
    counts = _integers(found, "tp", "fp", "fn", "us", "os", "shared", "union")
    return counts | {"dice_sum": round(float(found.dice_sum), 6)}


def _integers(result: Any, *names: str) -> dict[str, int]:
    return {name: int(getattr(result, name)) for name in names}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def _values(rows: Sequence[Row], *path: str) -> np.ndarray:
    """One field of every row as (images,) float; a missing block or value is NaN."""

    def dig(value: Any) -> float:
        for name in path:
            value = None if value is None else value.get(name)
        return math.nan if value is None else value

    return np.array([dig(row) for row in rows], dtype=float)


# A fraction gives a numerator and a denominator, each (images, parts) float64, that are summed
# over images and then divided; the score is the mean over the parts.
Fraction = Callable[[Sequence[Row]], tuple[np.ndarray, np.ndarray]]


def _object_jaccard(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    n_true, n_pred, matched = (_values(rows, "object", n) for n in ("n_true", "n_pred", "matched"))
    return matched[:, None], (n_true + n_pred - matched)[:, None]


def _matches(rows: Sequence[Row], name: str, thresholds: Sequence[str] = ("0.50",)) -> np.ndarray:
    return np.stack([_values(rows, "match", t, name) for t in thresholds], axis=1)


def _match_fraction(thresholds: Sequence[str], weight: float) -> Fraction:
    """tp / (tp + weight·(fp + fn)) at each threshold: 1 is average precision, ½ is F1."""

    def fraction(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        tp, fp, fn = (_matches(rows, name, thresholds) for name in ("tp", "fp", "fn"))
        return tp, tp + weight * (fp + fn)

    return fraction


def _loose_f1(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """F1 at `LOOSE_IOU`; an older record did not count that, and has none."""
    tp, fp, fn = (_values(rows, "loose", name)[:, None] for name in ("tp", "fp", "fn"))
    return tp, tp + (fp + fn) / 2


def _sharp_and_blurred_f1(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Two parts: F1 at IoU 0.5 of the sharp and of the blurred images, by the tag `FOCUS`."""
    found, total = _match_fraction(("0.50",), 0.5)(rows)
    tags = np.array([row.get("tags", {}).get(FOCUS, "") for row in rows], dtype=str)
    within = tags[:, None] == np.array(["sharp", "blurred"])
    return found * within, total * within


def _panoptic_quality(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    tp, fp, fn = (_matches(rows, name) for name in ("tp", "fp", "fn"))
    return _matches(rows, "iou_sum"), tp + (fp + fn) / 2


def _count_error(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """|n_pred - n_true| / n_true: what is matched wrongly counts all the same."""
    tp, fp, fn = (_matches(rows, name) for name in ("tp", "fp", "fn"))
    return np.abs(fp - fn), tp + fn


def _pixels(rows: Sequence[Row], block: str) -> tuple[np.ndarray, ...]:
    """tp, fp, fn, tn, each (images, 1); no true negatives where there is no foreground at all.

    An image that is empty on both sides has no score, so its background must not count either.
    """
    tp, fp, fn, tn = (_values(rows, block, name)[:, None] for name in ("tp", "fp", "fn", "tn"))
    return tp, fp, fn, np.where(tp + fp + fn == 0, 0, tn)


def _dice(block: str) -> Fraction:
    def fraction(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        tp, fp, fn, _ = _pixels(rows, block)
        return 2 * tp, 2 * tp + fp + fn

    return fraction


def _pixel_accuracy(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    tp, fp, fn, tn = _pixels(rows, "nuclei")
    return tp + tn, tp + fp + fn + tn


def _pixel_iou(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    tp, fp, fn, _ = _pixels(rows, "nuclei")
    return tp, tp + fp + fn


def _pixel_recall(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    tp, fp, fn, _ = _pixels(rows, "nuclei")
    return tp, np.maximum(tp + fn, fp > 0)


def _pixel_precision(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    tp, fp, fn, _ = _pixels(rows, "nuclei")
    return tp, np.maximum(tp + fp, fn > 0)


def _jaccard_with_background(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """accuracy / (2 − accuracy): the background is one object, and all nuclei are another.

    Both overlaps are added up, and so are both unions, as in an aggregated Jaccard index.
    """
    tp, fp, fn, tn = _pixels(rows, "nuclei")
    return tp + tn, tp + tn + 2 * (fp + fn)


def _class_ious(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Two parts: the IoU of the background and that of the nuclei."""
    tp, fp, fn, tn = _pixels(rows, "nuclei")
    wrong = fp + fn
    return np.hstack([tn, tp]), np.hstack([tn + wrong, tp + wrong])


def _aggregated_jaccard(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    values = _values(rows, "aggregated_jaccard")[:, None]
    return values, np.ones_like(values)


def _kromp_fraction(part: str, *whole: str, doubled: bool = False) -> Fraction:
    """A score from Kromp's counts: `part` over the sum of `whole`; `doubled` weighs tp twice."""

    def fraction(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        of = {name: _values(rows, "kromp", name)[:, None] for name in (*whole, part, *COUNTED)}
        twice = of["tp"] if doubled else 0
        anything = sum(of[name] for name in COUNTED) > 0
        total = sum(of[name] for name in whole) + twice
        return of[part] + twice, np.where(anything, np.maximum(total, TRACE), total)

    return fraction


def _kromp_rate(count: str) -> Fraction:
    """A share of the true nuclei; as of the count error, none where there are none."""

    def fraction(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        wrong, tp, fn = (_values(rows, "kromp", name)[:, None] for name in (count, "tp", "fn"))
        return wrong, tp + fn

    return fraction


def _mean_over_images(fraction: Fraction) -> Fraction:
    """The mean of the images' own scores: 1 is the weight of an image, 0 where it has no score."""

    def mean(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        own = _divide(*fraction(rows)).mean(axis=1, keepdims=True)
        return np.nan_to_num(own), np.where(np.isnan(own), 0.0, 1.0)

    return mean


def _mean_over_patients(fraction: Fraction) -> Fraction:
    """The mean of the patients' means: an image weighs as one of its patient's that have a score.

    Without the tag "patient" an image has no score.
    """

    def mean(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        own, scored = _mean_over_images(fraction)(rows)
        patients = [row.get("tags", {}).get(PATIENT, "") for row in rows]
        scored = scored * np.array([[float(bool(one))] for one in patients])
        counts: Counter[str] = Counter()
        for patient, one in zip(patients, scored[:, 0], strict=True):
            counts[patient] += one
        weights = scored / np.array([[max(1.0, counts[one])] for one in patients])
        return own * weights, weights

    return mean


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the denominator is 0, since nothing was there to be found."""
    nothing = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) > 0)


COUNTED = ("tp", "fp", "fn")
# Where one side is empty there is nothing to divide by, but the score is 0 and not missing: such an
# image counts this much, which is lost beside any image that counts at all.
TRACE = 1e-300

# By the rule of `metrics.detection`, pooled over images as in the paper's tables.
KROMP_FRACTIONS: dict[str, Fraction] = {
    "recall": _kromp_fraction("tp", "tp", "fn"),
    "precision": _kromp_fraction("tp", "tp", "fp"),
    "f1_kromp": _kromp_fraction("tp", "tp", "fp", "fn", doubled=True),
    "us_rate": _kromp_rate("us"),
    "os_rate": _kromp_rate("os"),
    "dice_found": _kromp_fraction("dice_sum", "tp"),
    "aggregated_jaccard_kromp": _kromp_fraction("shared", "union"),
}
KROMP_METRICS = tuple(KROMP_FRACTIONS)
FRACTIONS: dict[str, Fraction] = {
    "object_jaccard": _object_jaccard,
    "f1_50": _match_fraction(("0.50",), 0.5),
    "average_precision_50": _match_fraction(("0.50",), 1.0),
    "mean_average_precision": _match_fraction(THRESHOLD_KEYS, 1.0),
    "dice_nuclei": _dice("nuclei"),
    "dice_separations": _dice("separations"),
    "aggregated_jaccard": _mean_over_images(_aggregated_jaccard),
    "mean_average_precision_per_image": _mean_over_images(_match_fraction(THRESHOLD_KEYS, 1.0)),
    "panoptic_quality": _panoptic_quality,
    "count_error": _count_error,
    "pixel_accuracy": _pixel_accuracy,
    "pixel_iou": _pixel_iou,
    "pixel_iou_per_image": _mean_over_images(_pixel_iou),
    "mean_class_iou": _class_ious,
    **KROMP_FRACTIONS,
}
METRICS = tuple(FRACTIONS)
"""What a record stores."""
BY_IMAGE: dict[str, Fraction] = {
    "pixel_recall": _pixel_recall,
    "pixel_precision": _pixel_precision,
    "dice_nuclei": _dice("nuclei"),
    "pixel_accuracy": _pixel_accuracy,
    "pixel_iou": _pixel_iou,
    "jaccard_with_background": _jaccard_with_background,
}
DERIVED: dict[str, Fraction] = {
    **{f"{name}_per_image": _mean_over_images(of) for name, of in BY_IMAGE.items()},
    **{f"{name}_per_patient": _mean_over_patients(of) for name, of in BY_IMAGE.items()},
    "aggregated_jaccard_per_patient": _mean_over_patients(_aggregated_jaccard),
    "f1_25": _loose_f1,
    "nhm": _sharp_and_blurred_f1,
}
"""Further scores of a record's images, which are computed when they are asked for and not stored.

So older records have them, too. They are the columns of Mercadier et al., table 1: means over
images, and over the images' patients; F1 at `LOOSE_IOU`; and the harmonic mean of Mandal et al.
"""
HARMONIC = frozenset({"nhm"})
"""The metrics that are the harmonic mean of their parts, and not the plain one."""
UNBOUNDED = frozenset({"count_error"})
"""The metrics that may exceed 1."""
ERRORS = UNBOUNDED | {"us_rate", "os_rate"}
"""The metrics of which less is better."""


def pooled(
    rows: Sequence[Row], metric: str, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """A score from counts summed over images.

    Args:
        rows: The images of a record.
        metric: One of `METRICS` or `DERIVED`. Those that are means over images by definition, such
            as the aggregated Jaccard index, sum up the images' scores.
        weights: (resamples, images), how often each image is drawn; None draws each once.

    Returns:
        The score, or with weights (resamples,) float64. NaN where nothing was there to be found
        and nothing was found; the count error is NaN wherever nothing was there to be found.

    Raises:
        ValueError: For an unknown metric.
    """
    numerator, denominator = _fraction(metric)(rows)
    mean = stats.hmean if metric in HARMONIC else np.mean
    if weights is None:
        return float(mean(_divide(_sum(numerator), _sum(denominator)), axis=0))
    drawn = np.asarray(weights, dtype=float)
    return mean(_divide(drawn @ numerator, drawn @ denominator), axis=1)


def _sum(values: np.ndarray) -> np.ndarray:
    """(images, parts) summed over the images; exactly rounded, so that their order cannot show."""
    return np.array([math.fsum(part) for part in values.T])


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """As `_sum`; NaN of nothing."""
    return math.fsum(values) / len(values) if len(values) else math.nan


def per_image(rows: Sequence[Row], metric: str) -> np.ndarray:
    """(images,) float64 scores of each image; NaN for an image without one.

    Args:
        rows: The images of a record.
        metric: One of `METRICS` or `DERIVED`.
    """
    return _divide(*_fraction(metric)(rows)).mean(axis=1)


def _fraction(metric: str) -> Fraction:
    known = FRACTIONS | DERIVED
    if metric not in known:
        raise ValueError(f"{metric!r} is no metric; those there are: {', '.join(known)}.")
    return known[metric]


class Spread(NamedTuple):
    """A score of several images or groups of them: how many have one, its mean, and its SD.

    The standard deviation is that of a sample; NaN of fewer than two.
    """

    count: int
    mean: float
    deviation: float


def spread(rows: Sequence[Row], metric: str, by: str = "") -> Spread:
    """Mean and standard deviation of a score over images, as tables print them.

    Args:
        rows: The images of a record.
        metric: One of `METRICS` or `DERIVED`.
        by: A tag, such as "patient": over the means of the images that share it. By default over
            images.

    Raises:
        ValueError: When an image lacks the tag, naming it.
    """
    values = per_image(rows, metric)
    if by:
        groups = pd.Series(values).groupby([_tag(row, by) for row in rows])
        values = groups.mean().to_numpy()
    values = values[~np.isnan(values)]
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Spread(len(values), _mean(values), deviation)


def _tag(row: Row, tag: str) -> str:
    if tag not in row.get("tags", {}):
        raise ValueError(f"{row['key']}: the row has no tag {tag!r}; measure it again with one.")
    return row["tags"][tag]


def scores(rows: Sequence[Row]) -> dict[str, float]:
    """All `METRICS` of a record's images, from counts summed over the images."""
    return {metric: pooled(rows, metric) for metric in METRICS}


def scores_per_image_mean(rows: Sequence[Row]) -> dict[str, float]:
    """All `METRICS` of a record's images, averaged over the images that have one."""
    means = {}
    for metric in METRICS:
        values = per_image(rows, metric)
        means[metric] = _mean(values[~np.isnan(values)])
    return means


def scores_by_tag(rows: Sequence[Row], tag: str) -> pd.DataFrame:
    """The scores of the images that share a tag's value, such as those of one modality.

    Args:
        rows: The images of a record, or of several, one per seed.
        tag: A name in every row's "tags".

    Returns:
        One line per value, in alphabetical order and named by it: `images`, how many different
        ones, and all `METRICS`, pooled over these images alone.

    Raises:
        ValueError: When an image lacks the tag, or when not every record holds it, naming it.
    """
    times = Counter(row["key"] for row in rows)
    for key, count in times.items():
        if count != max(times.values()):
            raise ValueError(
                f"{key}: {count} rows of this image, and {max(times.values())} of others; "
                "give records that were measured on the same images."
            )
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_tag(row, tag), []).append(row)
    lines = {
        value: {"images": len({row["key"] for row in own})} | scores(own)
        for value, own in sorted(groups.items())
    }
    table = pd.DataFrame.from_dict(lines, orient="index", columns=["images", *METRICS])
    return table.rename_axis(tag)


# --- the record ---------------------------------------------------------------------------------


def describe_data(
    test: SampleSet, training: SampleSet | None = None, labels: str = "ground truth"
) -> dict[str, Any]:
    """The `data` block of a record.

    Args:
        test: What the scores were measured on.
        training: What the network learned from; None for a method that does not learn.
        labels: Where the training labels came from, such as "ground truth".
    """
    block = {
        "name": test.name,
        "source": test.source,
        "split": test.split,
        "fingerprint": test.fingerprint,
        "count": len(test),
        "training": None,
    }
    if training is not None:
        block["training"] = {
            "split": training.split,
            "fingerprint": training.fingerprint,
            "count": len(training),
            "labels": labels,
        }
    return block


# What a file must hold. The blocks stay plain dicts in memory, and a missing score is NaN there.


def _text(expected: str, holds: Callable[[str], Any]) -> Any:
    """A text of which more is asked, in words and as a test."""

    def check(value: str) -> str:
        if not holds(value):
            raise PydanticCustomError("text", expected)
        return value

    return Annotated[str, AfterValidator(check)]


def _is_moment(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).utcoffset() is not None
    except ValueError:
        return False


def _hexadecimal(digits: int) -> Any:
    return _text(f"{digits} hexadecimal digits", re.compile(f"[0-9a-f]{{{digits}}}").fullmatch)


def _block(config: ConfigDict = STRICT, **fields: Any) -> Any:
    """An object of the file with these fields, which stays a dict."""
    return with_config(config)(TypedDict("Block", fields))


_Slug = _text(
    "a name of lower-case letters, digits, '-' and '_'",
    re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*").fullmatch,
)
_Moment = _text("an ISO 8601 time with its zone", _is_moment)
_Share = Annotated[float, Field(ge=0, le=1)]
_Score = Annotated[Measure | None, AfterValidator(lambda v: math.nan if v is None else v)]
_OPEN = STRICT | ConfigDict(extra="allow")

_Training = _block(split=Text, fingerprint=Text, count=Count, labels=Text)
_Data = _block(
    name=Text,
    source=Literal[*SOURCES],
    split=Text,
    fingerprint=Text,
    count=Count,
    training=_Training | None,
)
_Budget = _block(
    _OPEN,
    device=Text,
    peak_memory_gb=Measure | None,
    seconds_per_image=Measure | None,
    updates=Count,
    images_seen=Count,
    seconds=Measure,
    weights=NotRequired[Count],
    precision=Text,
)
_Fit = _block(
    git_commit=Text | None,
    code=_hexadecimal(16),
    weights_sha256=_hexadecimal(64),
    started=_Moment,
    ended=_Moment,
    accepted_old_code=bool,
)
_Pixels = _block(tp=Count, fp=Count, fn=Count, tn=Count)
_Kromp = _block(
    **dict.fromkeys(("tp", "fp", "fn", "us", "os", "shared", "union"), Count), dice_sum=Measure
)
_Match = _block(tp=Count, fp=Count, fn=Count, iou_sum=Measure)
_MatchAbove = _block(tp=Count, fp=Count, fn=Count, iou_sum=NotRequired[Measure])
_Row = _block(
    key=Text,
    n_true=Count,
    object=_block(n_true=Count, n_pred=Count, matched=Count),
    match=_block(**dict.fromkeys(THRESHOLD_KEYS, _MatchAbove) | {"0.50": _Match}),
    loose=NotRequired[_block(tp=Count, fp=Count, fn=Count)],
    nuclei=_Pixels,
    separations=_Pixels | None,
    kromp=NotRequired[_Kromp],
    aggregated_jaccard=_Share | None,
    seconds=Measure | None,
    tags=NotRequired[dict[str, Text]],
)
_Scores = Annotated[
    _block(
        **dict.fromkeys(METRICS, _Score) | dict.fromkeys(KROMP_METRICS, NotRequired[_Score]),
    ),
    AfterValidator(lambda given: dict.fromkeys(METRICS, math.nan) | given),
]


def _check_row(row: Row) -> Row:
    """The counts of an image must be such as one pair of label images can give."""
    _check_matches(row)
    _check_loose(row)
    _check_kromp(row)
    objects, half = row["object"], row["match"]["0.50"]
    empty = half["tp"] + half["fp"] + half["fn"] == 0
    pixels = [sum(row[block].values()) for block in ("nuclei", "separations") if row[block]]
    if objects["n_true"] > row["n_true"]:
        raise ValueError(f"object.n_true must be at most n_true = {row['n_true']}.")
    if objects["matched"] > min(objects["n_true"], objects["n_pred"]):
        raise ValueError("object.matched must be at most object.n_true and object.n_pred.")
    if min(pixels) < 1 or pixels[0] != pixels[-1]:
        raise ValueError("nuclei and separations must count equally many pixels, 1 or more.")
    if (row["aggregated_jaccard"] is None) != empty:
        raise ValueError("aggregated_jaccard must be null where both sides are empty, only there.")
    return row


def _check_matches(row: Row) -> None:
    """Both sides hold equally many nuclei at all thresholds; of pairs, some are lost to the next.

    Those that are lost have IoUs from the one threshold to the next.
    """
    at = row["match"]
    n_true, n_pred = row["n_true"], at["0.50"]["tp"] + at["0.50"]["fp"]
    for name, match in at.items():
        if match["tp"] + match["fn"] != n_true:
            raise ValueError(f"match.{name}: tp + fn must be n_true = {n_true}.")
        if match["tp"] + match["fp"] != n_pred:
            raise ValueError(f"match.{name}: tp + fp must be {n_pred}, as at 0.50.")
    low = high = 0.0  # of the sum of IoUs, as far as it is known
    steps = pairwise([*at.items(), ("1.00", {"tp": 0})])
    for (name, match), (above, stricter) in reversed(list(steps)):
        lost = match["tp"] - stricter["tp"]
        if lost < 0:
            raise ValueError(f"match.{above}.tp must be at most that of {name}.")
        low, high = low + float(name) * lost, high + float(above) * lost
        if (iou_sum := match.get("iou_sum")) is None:
            continue
        if not low - ROUNDING <= iou_sum <= high + ROUNDING:
            raise ValueError(
                f"match.{name}.iou_sum must lie from {low:.6f} to {high:.6f}, as its tp and the "
                f"next threshold give, not {iou_sum}."
            )
        low = high = iou_sum


def _check_loose(row: Row) -> None:
    """At a lower IoU the same nuclei are matched, and no fewer of them."""
    if (loose := row.get("loose")) is None:
        return
    half = row["match"]["0.50"]
    if loose["tp"] < half["tp"] or any(
        loose["tp"] + loose[side] != half["tp"] + half[side] for side in ("fp", "fn")
    ):
        raise ValueError("loose must count the nuclei that match counts, with no smaller tp.")


def _check_kromp(row: Row) -> None:
    """Kromp's counts are of the same nuclei; who finds by them also matches at IoU 0.5."""
    if (counts := row.get("kromp")) is None:
        return
    half = row["match"]["0.50"]
    for side, total in (("fn", row["n_true"]), ("fp", half["tp"] + half["fp"])):
        if counts["tp"] + counts[side] != total:
            raise ValueError(f"kromp: tp + {side} must be {total}, as match counts.")
    most = {"tp": half["tp"], "us": counts["fn"], "os": row["n_true"], "shared": counts["union"]}
    for name, limit in most.items():
        if counts[name] > limit:
            raise ValueError(f"kromp.{name} must be at most {limit}.")
    # of what is found, the Jaccard index lies above 1/2, and so the Dice coefficient above 2/3
    if not 2 / 3 * counts["tp"] - ROUNDING <= counts["dice_sum"] <= counts["tp"] + ROUNDING:
        raise ValueError("kromp.dice_sum must lie from two thirds of tp to tp.")


def _check_budget(budget: dict[str, Any]) -> dict[str, Any]:
    """What a budget holds besides is reckoned with, too: the seconds of steps."""
    for name in budget.keys() - _Budget.__annotations__:
        value = budget[name]
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= 1e300):
            raise ValueError(f"{name} must be a number, 0 or more, or null, not {shown(value)}.")
    return budget


def _check_record(record: Record) -> Record:
    """The images must be those of the data, and the scores follow from them: none is typed."""
    rows, count = record.images, record.data["count"]
    if len(rows) != count:
        raise ValueError(f"images must hold data.count = {count} rows, not {len(rows)}.")
    key, times = Counter(row["key"] for row in rows).most_common(1)[0]
    if times > 1:
        raise ValueError(f"images hold the key {shown(key)} more than once.")
    if len({row["separations"] is None for row in rows}) > 1:
        raise ValueError("images must have separations in every row, or null in every row.")
    if len({"kromp" in row for row in rows}) > 1:
        raise ValueError("images must have kromp in every row, or in none.")
    for block, compute in (("scores", scores), ("scores_per_image_mean", scores_per_image_mean)):
        for metric, given in compute(rows).items():
            stored = getattr(record, block)[metric]
            if math.isnan(stored) and math.isnan(given):
                continue
            if not math.isclose(stored, given, abs_tol=1e-6):
                expected, found = (shown(_plain(one)) for one in (given, stored))
                raise ValueError(
                    f"{block}.{metric} must be {expected}, as the images give, not {found}."
                )
    return record


def _no_field(_: Any) -> None:
    raise PydanticCustomError("extra_forbidden", "of no file")


# Rows as a table: names stand once, and so do texts.

_Path = tuple[str, ...]  # of the names that lead to a value of a row


def _packed(rows: Sequence[Row]) -> dict[str, list] | None:
    """Rows as a table, without what follows from the rest; None where they do not have the same."""
    lines = [dict(_values_of(_without_what_follows(row))) for row in rows]
    columns = list(lines[0])
    if any(line.keys() != lines[0].keys() for line in lines):
        return None
    texts = sorted({value for line in lines for value in line.values() if isinstance(value, str)})
    number = {text: index for index, text in enumerate(texts)}
    values = [
        [number[line[at]] if isinstance(line[at], str) else line[at] for at in columns]
        for line in lines
    ]
    return {"columns": list(map(list, columns)), "texts": texts, "rows": values}


def _without_what_follows(row: Row) -> Row:
    """A row with the number of predicted nuclei in place of all that are found wrongly or missed.

    And without the sums of IoUs above 0.50, of which no score is made.
    """
    found = row["match"]["0.50"]
    row = row | {"n_pred": found["tp"] + found["fp"]}
    match = {name: {"tp": of["tp"]} for name, of in row["match"].items()}
    row["match"] = match | {"0.50": match["0.50"] | {"iou_sum": found["iou_sum"]}}
    for name in row.keys() & {"loose", "kromp"}:
        row[name] = {key: n for key, n in row[name].items() if key not in ("fp", "fn")}
    return row


def _values_of(row: Any, path: _Path = ()) -> Iterable[tuple[_Path, Any]]:
    """Each value of an object within objects, and the names that lead to it."""
    if not isinstance(row, dict):
        return [(path, row)]
    return [pair for name, value in row.items() for pair in _values_of(value, (*path, name))]


def _unpacked(images: Any) -> Any:
    """The rows of a table; anything else as it is."""
    if not isinstance(images, dict) or images.keys() != {"columns", "texts", "rows"}:
        return images
    try:
        return [_row(images["columns"], images["texts"], values) for values in images["rows"]]
    except (TypeError, ValueError, LookupError, AttributeError):
        raise ValueError(
            "expected a list, or a table whose rows have a value for each of its columns, "
            "and a number of its texts where a text is."
        ) from None


def _row(columns: list[list[str]], texts: list[str], values: list) -> Row:
    row: Row = {}
    for path, value in zip(columns, values, strict=True):
        place = row
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = texts[value] if path[0] in ("key", "tags") else value
    n_true, n_pred = row["n_true"], row.pop("n_pred")
    for counts in (*row["match"].values(), *(row[of] for of in ("loose", "kromp") if of in row)):
        counts |= {"fp": n_pred - counts["tp"], "fn": n_true - counts["tp"]}
    return row


@dataclass(frozen=True)
class Record:
    """One measured run: one variant of a chapter, under one preset and seed.

    Attributes:
        schema: `SCHEMA`.
        chapter, variant: Such as "01_labels_for_free" and "dl-ground-truth".
        preset: One of `PRESETS`.
        seed: The run's random seed.
        data: What was measured on, see `describe_data`.
        images: One row per test image, see `image_row`.
        budget: updates, images_seen, seconds, device, precision, peak_memory_gb,
            seconds_per_image; more numbers are kept as they are.
        parameters: The run's settings.
        versions, git_commit: See `environment`.
        created: ISO 8601 time, UTC.
        scores, scores_per_image_mean: Computed from `images`.
        fit: Where the network came from: `git_commit` it was trained at, `code` (digest of the
            code that trains, 16 hexadecimal digits), `weights_sha256`, `started` and `ended` (ISO
            8601 times with their zone) and `accepted_old_code` (whether it was taken although that
            code had changed). None for a method that does not learn, and in older records.
        path: The file it was read from; None for one that has not met a disk.
    """

    __pydantic_config__ = STRICT

    schema: Literal[1]
    chapter: _Slug
    variant: _Slug
    preset: Literal[*PRESETS]
    seed: Count
    created: _Moment
    data: _Data
    scores: _Scores
    scores_per_image_mean: _Scores
    images: Annotated[
        list[Annotated[_Row, AfterValidator(_check_row)]],
        Field(min_length=1),
        BeforeValidator(_unpacked),
    ]
    budget: Annotated[_Budget, AfterValidator(_check_budget)]
    versions: _block(_OPEN, python=Text, nuctut=Text)
    git_commit: Text | None
    parameters: dict[str, Any]
    fit: _Fit | None = None
    path: Annotated[Path | None, BeforeValidator(_no_field)] = field(default=None, compare=False)

    @classmethod
    def of_run(
        cls,
        *,
        chapter: str,
        variant: str,
        preset: str,
        seed: int,
        data: Mapping[str, Any],
        images: Sequence[Row],
        budget: Mapping[str, Any],
        parameters: Mapping[str, Any],
        fit: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> Record:
        """A record of what has just been measured: scores and environment are filled in.

        `budget` needs updates, images_seen, seconds and precision; device, peak_memory_gb and
        seconds_per_image (mean of the rows' seconds) are added unless given. `fit` is as in
        `Record`.
        """
        here = machine.environment(device)
        added = {
            "device": here["device"],
            "peak_memory_gb": here["peak_memory_gb"],
            "seconds_per_image": _rounded(_mean(_values(images, "seconds"))),
        }
        return cls(
            schema=SCHEMA,
            chapter=chapter,
            variant=variant,
            preset=preset,
            seed=seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            data=dict(data),
            scores=scores(images),
            scores_per_image_mean=scores_per_image_mean(images),
            images=list(images),
            budget=added | dict(budget),
            versions=here["versions"],
            git_commit=here["git_commit"],
            parameters=dict(parameters),
            fit=None if fit is None else dict(fit),
        )

    @property
    def name(self) -> str:
        """The record's file name without its ending."""
        return f"{self.variant}--{self.preset}--s{self.seed}"

    @property
    def obstacle(self) -> str:
        """Why no published number may stand beside it, in words; empty where one may."""
        source = self.data["source"]
        return f"{source} data" if source != "real" else self.flaw

    @property
    def flaw(self) -> str:
        """Why it does not belong into `results/`, in words; empty where it does.

        There belong evidence, and what would be evidence but for a stand-in: a claim may be tried
        on that, and is then marked so, but no published number stands beside it.
        """
        trained = self.fit["git_commit"] if self.fit else None
        return _flaw(self.preset, self.data["source"], self.git_commit, trained)

    @property
    def is_evidence(self) -> bool:
        """Whether a published number may stand beside it.

        The data are real, the run is no smoke run, and neither the measuring nor the training
        was done from a checkout that differed from its commit.
        """
        return not self.obstacle


def _flaw(preset: str, source: str, measured: str | None, trained: str | None = None) -> str:
    """What keeps the record of a run of these commits out of `results/`; empty where nothing."""
    if source not in ("real", STAND_IN):
        return f"{source} data"
    if preset not in ("lite", "paper"):
        return f"{preset} preset"
    for how, commit in (("measured", measured), ("trained", trained)):
        if commit and machine.DIRTY in commit:  # several where a fit went on under another
            return f"{how} from a changed checkout"
    return ""


def folder_for(preset: str, source: str, swept: str = "") -> Path:
    """Where a record belongs: `results/` (committed) where nothing keeps it out, else `runs/`.

    What can keep it out, see `Record.flaw`. Of a changed checkout alone there is a warning.
    A run of a sweep is told in $NUCTUT_RECORDS to keep its records to itself, whatever they are.

    Args:
        preset, source: Of the run.
        swept: What the run changes of its preset, as a folder's name; then it is no evidence.
    """
    if swept and not os.environ.get(OWN_FOLDER):
        return runs_root() / "swept" / swept
    return _folder(_flaw(preset, source, machine.git_commit()))


def _folder(flaw: str) -> Path:
    """Where a record belongs that this keeps out of `results/`."""
    if own := os.environ.get(OWN_FOLDER):
        return Path(own)
    if not flaw:
        return results_root()
    if flaw.endswith("checkout"):
        warnings.warn(
            f"No evidence: {flaw}. The record goes below {runs_root()}; commit the changes "
            "and run again.",
            stacklevel=3,
        )
    return runs_root() / "results"


# --- files --------------------------------------------------------------------------------------


def write(record: Record, folder: Path | None = None) -> Path:
    """Write a record, whole or not at all.

    The file is `<folder>/<chapter>/<variant>--<preset>--s<seed>.json`; that of a stand-in lies one
    folder deeper, in `stand-in/`, so that it is told apart and never takes a real one's place.

    Args:
        record: What to write; an older file of the same name is replaced.
        folder: By default `results/` or below `runs/`, see `folder_for`.

    Returns:
        The file's path.

    Raises:
        ValueError: When the record is malformed; nothing is written then.
    """
    content = {name: value for name, value in asdict(record).items() if name != "path"}
    name, text = f"{record.name}.json", _as_text(_plain(content))
    _parse(text, name)
    chosen = _folder(record.flaw) if folder is None else Path(folder)
    chosen = chosen / record.chapter
    path = (chosen / STAND_IN if record.data["source"] == STAND_IN else chosen) / name
    if _is_below_runs(path):
        own(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _is_below_runs(path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(runs_root())
    except FileNotFoundError:  # outside of a checkout
        return False


def _parse(text: str, name: str) -> Record:
    return parse_json(text, Annotated[Record, AfterValidator(_check_record)], name)


def _plain(value: Any) -> Any:
    """The value in JSON's own types: NaN becomes null, numpy scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _as_text(payload: Mapping[str, Any]) -> str:
    """JSON with one line per image, so that files stay short and differences readable."""
    blocks = []
    for name, value in payload.items():
        table = _packed(value) if name == "images" and len(value) > MANY else None
        if table:
            parts = [f"{json.dumps(part)}: {_lines(of, (',', ':'))}" for part, of in table.items()]
            text = "{" + ", ".join(parts) + "}"
        elif name == "images":
            text = _lines(value, (", ", ": "))
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        blocks.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _lines(items: Sequence[Any], separators: tuple[str, str]) -> str:
    """A list with one line per item."""
    lines = ",\n".join(f"    {json.dumps(item, separators=separators)}" for item in items)
    return f"[\n{lines}\n  ]"


def read(path: Path | str) -> Record:
    """Read one record.

    Raises:
        FileNotFoundError: When there is no such file.
        Malformed: Naming the file, the field and what was expected there.
    """
    path = Path(path)
    record = _parse(read_text(path), str(path))
    if path.stem != record.name:
        raise Malformed(f"{path}: its content belongs into a file named {record.name}.json.")
    return replace(record, path=path)


def read_all(folder: Path | str) -> list[Record]:
    """Every record under a folder, sorted by path; none when the folder does not exist.

    Raises:
        Malformed: For the first malformed one, by name: evidence must not go missing unsaid.
    """
    try:
        return [read(path) for path in files_in(folder)]
    except Malformed as error:
        raise Malformed(f"{error} Restore it, or remove it and measure again.") from error


def files_in(folder: Path | str) -> Iterable[Path]:
    """The files under a folder that should be records, sorted."""
    folder = Path(folder)
    paths = folder.rglob("*.json")
    return sorted(path for path in paths if NETWORKS not in path.relative_to(folder).parts)


def as_table(records: Sequence[Record]) -> pd.DataFrame:
    """One line per record, for a table of scores or of costs: pick the columns it needs.

    Returns:
        What was run (chapter, variant, preset, seed, network), measured on what (data, source,
        images), all `METRICS`, its cost and its provenance (git_commit, created, file). The cost:
        `weights` (learned numbers of the network), `updates`, `seconds` (of training),
        `seconds_per_image`, `seconds_per_megapixel` (from pixels to labels), `peak_memory_gb` and
        `device`. Empty or NaN where a record does not say.
    """
    lines = [
        {
            "chapter": record.chapter,
            "variant": record.variant,
            "preset": record.preset,
            "seed": record.seed,
            "network": record.parameters.get("network", ""),
            "data": f"{record.data['name']} {record.data['split']}",
            "source": record.data["source"],
            "images": record.data["count"],
            **record.scores,
            "weights": record.budget.get("weights"),
            "updates": record.budget["updates"],
            "seconds": record.budget["seconds"],
            "seconds_per_image": record.budget["seconds_per_image"],
            "seconds_per_megapixel": seconds_per_megapixel(record.images),
            "peak_memory_gb": record.budget["peak_memory_gb"],
            "device": record.budget["device"],
            "git_commit": record.git_commit,
            "created": record.created,
            "file": record.path.name if record.path else "",
        }
        for record in records
    ]
    columns = ["chapter", "variant", "preset", "seed", "network", "data", "source", "images"]
    columns += [*METRICS, "weights", "updates", "seconds", "seconds_per_image"]
    columns += ["seconds_per_megapixel", "peak_memory_gb", "device", "git_commit", "created"]
    return pd.DataFrame(lines, columns=[*columns, "file"])


def seconds_per_megapixel(rows: Sequence[Row]) -> float:
    """Seconds from pixels to labels for a million pixels; NaN where a row has no time."""
    pixels = sum(sum(row["nuclei"].values()) for row in rows)
    return 1e6 * math.fsum(_values(rows, "seconds")) / pixels
