"""Records: one measured run as one small JSON file, the book's only evidence.

A record keeps the counts of every test image, so that any score, pooled or per image, can be
computed again from it, and resampled for an interval. It keeps no pixels.

Pooled scores sum the counts over images before dividing, so an image weighs by its nuclei;
per-image means divide first, so every image weighs the same. Scores whose name or definition asks
for it are means over images in either block. An image that is empty on both sides has no score
(NaN, `null` in the file): it adds nothing to the pooled counts and stays out of the means.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuctut import metrics
from nuctut.files import replacing
from nuctut.machine import environment
from nuctut.paths import results_root, runs_root
from nuctut.samples import SOURCES, SampleSet

SCHEMA = 1
PRESETS = ("smoke", "lite", "paper")
OWN_FOLDER = "NUCTUT_RECORDS"
THRESHOLD_KEYS = tuple(f"{iou:.2f}" for iou in metrics.IOU_THRESHOLDS)

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
    nuclei = metrics.pixel_scores(
        labels_true > 0 if nuclei_true is None else nuclei_true,
        labels_pred > 0 if nuclei_pred is None else nuclei_pred,
    )
    separations = None
    if separations_true is not None:
        separations = _integers(
            metrics.pixel_scores(separations_true, separations_pred), "tp", "fp", "fn", "tn"
        )
    row = {
        "key": key,
        "n_true": matches[0].tp + matches[0].fn,
        "object": _integers(objects, "n_true", "n_pred", "matched"),
        "match": {
            name: _integers(match, "tp", "fp", "fn") | {"iou_sum": round(float(match.iou_sum), 6)}
            for name, match in zip(THRESHOLD_KEYS, matches, strict=True)
        },
        "nuclei": _integers(nuclei, "tp", "fp", "fn", "tn"),
        "separations": separations,
        "aggregated_jaccard": _rounded(table.aggregated_jaccard()),
        "seconds": _rounded(seconds),
    }
    return row | {"tags": dict(tags)} if tags else row


def _integers(result: Any, *names: str) -> dict[str, int]:
    return {name: int(getattr(result, name)) for name in names}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def _values(rows: Sequence[Row], *path: str) -> np.ndarray:
    """One field of every row as (images,) float; a missing block or value is NaN."""

    def dig(value: Any) -> float:
        for name in path:
            value = None if value is None else value[name]
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


def _class_ious(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Two parts: the IoU of the background and that of the nuclei."""
    tp, fp, fn, tn = _pixels(rows, "nuclei")
    wrong = fp + fn
    return np.hstack([tn, tp]), np.hstack([tn + wrong, tp + wrong])


def _aggregated_jaccard(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    values = _values(rows, "aggregated_jaccard")[:, None]
    return values, np.ones_like(values)


def _mean_over_images(fraction: Fraction) -> Fraction:
    """The mean of the images' own scores: 1 is the weight of an image, 0 where it has no score."""

    def mean(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        own = _divide(*fraction(rows)).mean(axis=1, keepdims=True)
        return np.nan_to_num(own), np.where(np.isnan(own), 0.0, 1.0)

    return mean


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the denominator is 0, since nothing was there to be found."""
    nothing = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) > 0)


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
}
METRICS = tuple(FRACTIONS)
ERRORS = frozenset({"count_error"})
"""The metrics of which less is better; they may exceed 1, and no other does."""


def pooled(
    rows: Sequence[Row], metric: str, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """A score from counts summed over images.

    Args:
        rows: The images of a record.
        metric: One of `METRICS`. Those that are means over images by definition, such as the
            aggregated Jaccard index, sum up the images' scores.
        weights: (resamples, images), how often each image is drawn; None draws each once.

    Returns:
        The score, or with weights (resamples,) float64. NaN where nothing was there to be found
        and nothing was found; the count error is NaN wherever nothing was there to be found.

    Raises:
        ValueError: For an unknown metric.
    """
    numerator, denominator = _fraction(metric)(rows)
    drawn = np.ones((1, len(rows))) if weights is None else np.asarray(weights, dtype=float)
    score = _divide(drawn @ numerator, drawn @ denominator).mean(axis=1)
    return float(score[0]) if weights is None else score


def per_image(rows: Sequence[Row], metric: str) -> np.ndarray:
    """(images,) float64 scores, one of `METRICS` for each image; NaN for an image without one."""
    return _divide(*_fraction(metric)(rows)).mean(axis=1)


def _fraction(metric: str) -> Fraction:
    if metric not in FRACTIONS:
        raise ValueError(f"{metric!r} is no metric; those there are: {', '.join(METRICS)}.")
    return FRACTIONS[metric]


def scores(rows: Sequence[Row]) -> dict[str, float]:
    """All `METRICS` of a record's images, from counts summed over the images."""
    return {metric: pooled(rows, metric) for metric in METRICS}


def scores_per_image_mean(rows: Sequence[Row]) -> dict[str, float]:
    """All `METRICS` of a record's images, averaged over the images that have one."""
    means = {}
    for metric in METRICS:
        values = per_image(rows, metric)
        values = values[~np.isnan(values)]
        means[metric] = float(values.mean()) if values.size else math.nan
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
        ValueError: When an image lacks the tag, naming it.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if tag not in row.get("tags", {}):
            raise ValueError(
                f"{row['key']}: the row has no tag {tag!r}; measure it again with one."
            )
        groups.setdefault(row["tags"][tag], []).append(row)
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


@dataclass(frozen=True)
class Record:
    """One measured run: one variant of a chapter, under one preset and seed.

    Attributes:
        chapter, variant: Such as "01_labels_for_free" and "dl-ground-truth".
        preset: One of `PRESETS`.
        seed: The run's random seed.
        data: What was measured on, see `describe_data`.
        images: One row per test image, see `image_row`.
        budget: updates, images_seen, seconds, device, precision, peak_memory_gb,
            seconds_per_image; more keys are kept as they are.
        parameters: The run's settings.
        versions, git_commit: See `environment`.
        created: ISO 8601 time, UTC.
        scores, scores_per_image_mean: Computed from `images`.
        path: The file it was read from or written to; None for one that has not met a disk.
    """

    chapter: str
    variant: str
    preset: str
    seed: int
    created: str
    data: dict[str, Any]
    scores: dict[str, float]
    scores_per_image_mean: dict[str, float]
    images: list[Row]
    budget: dict[str, Any]
    versions: dict[str, str | None]
    git_commit: str | None
    parameters: dict[str, Any]
    path: Path | None = field(default=None, compare=False)

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
        device: str = "cpu",
    ) -> Record:
        """A record of what has just been measured: scores and environment are filled in.

        `budget` needs updates, images_seen, seconds and precision; device, peak_memory_gb and
        seconds_per_image (mean of the rows' seconds) are added unless given.
        """
        here = environment(device)
        added = {
            "device": here["device"],
            "peak_memory_gb": here["peak_memory_gb"],
            "seconds_per_image": _rounded(float(np.mean(_values(images, "seconds")))),
        }
        return cls(
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
        )

    @property
    def name(self) -> str:
        """The record's file name without its ending."""
        return f"{self.variant}--{self.preset}--s{self.seed}"

    @property
    def is_evidence(self) -> bool:
        """Whether a published number may stand beside it: real data, and no smoke run."""
        return _is_evidence(self.preset, self.data["source"])


def _is_evidence(preset: str, source: str) -> bool:
    return source == "real" and preset in ("lite", "paper")


def folder_for(preset: str, source: str, swept: str = "") -> Path:
    """Where a record belongs: `results/` (committed) for evidence, else below `runs/`.

    A run of a sweep is told in $NUCTUT_RECORDS to keep its records to itself, whatever they are.

    Args:
        preset, source: Of the run.
        swept: What the run changes of its preset, as a folder's name; then it is no evidence.
    """
    if own := os.environ.get(OWN_FOLDER):
        return Path(own)
    if swept:
        return runs_root() / "swept" / swept
    return results_root() if _is_evidence(preset, source) else runs_root() / "results"


# --- files --------------------------------------------------------------------------------------


def write(record: Record, folder: Path | None = None) -> Path:
    """Write a record, whole or not at all.

    The file is `<folder>/<chapter>/<variant>--<preset>--s<seed>.json`.

    Args:
        record: What to write; an older file of the same name is replaced.
        folder: By default the one `folder_for` names.

    Returns:
        The file's path.

    Raises:
        ValueError: When the record is malformed; nothing is written then.
    """
    payload = {"schema": SCHEMA} | _plain(
        {name: value for name, value in asdict(record).items() if name != "path"}
    )
    name = f"{record.name}.json"
    _validate(payload, name)
    folder = folder_for(record.preset, record.data["source"]) if folder is None else Path(folder)
    path = folder / record.chapter / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(_as_text(payload), encoding="utf-8")
    return path


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
        if name == "images":
            lines = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in value)
            text = f"[\n{lines}\n  ]"
        else:
            text = json.dumps(value, indent=2, allow_nan=False).replace("\n", "\n  ")
        blocks.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def read(path: Path | str) -> Record:
    """Read one record.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is malformed, naming the file, the field and what was expected there.
    """
    path = Path(path)
    try:
        payload = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:  # also broken UTF-8
        raise ValueError(f"{path}: not a JSON file ({error}).") from error
    _validate(payload, str(path))
    record = Record(path=path, **{name: payload[name] for name in payload if name != "schema"})
    if path.stem != record.name:
        raise ValueError(f"{path}: its content belongs into a file named {record.name}.json.")
    for block in (record.scores, record.scores_per_image_mean):
        block.update({name: math.nan for name, value in block.items() if value is None})
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number; write null")


def read_all(folder: Path | str) -> list[Record]:
    """Every record under a folder, sorted by path; none when the folder does not exist.

    Raises:
        ValueError: For the first malformed one, by name.
    """
    return [read(path) for path in sorted(Path(folder).rglob("*.json"))]


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
    return float(1e6 * _values(rows, "seconds").sum() / pixels)


# --- validation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What a field must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_moment(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).utcoffset() is not None
    except (TypeError, ValueError):
        return False


def _one_of(names: Sequence[str]) -> _Kind:
    return _Kind(f"one of {', '.join(names)}", lambda value: value in names)


_TEXT = _Kind("a text", lambda value: isinstance(value, str) and value != "")
_SLUG = _Kind(
    "a name of lower-case letters, digits, '-' and '_'",
    lambda value: (
        isinstance(value, str) and re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*", value) is not None
    ),
)
_COUNT = _Kind("a whole number, 0 or more", _is_count)
_MEASURE = _Kind("a number, 0 or more, or null", lambda v: v is None or (_is_number(v) and v >= 0))
_SCORE = _Kind(
    "a number from 0 to 1, or null", lambda v: v is None or (_is_number(v) and 0 <= v <= 1)
)
_SCORES = {metric: _MEASURE if metric in ERRORS else _SCORE for metric in METRICS}
_MAPPING = _Kind("an object", lambda value: isinstance(value, dict))
_OPTIONAL_MAPPING = _Kind("an object or null", lambda v: v is None or isinstance(v, dict))
_TEXT_OR_NULL = _Kind("a text or null", lambda v: v is None or isinstance(v, str))

_FIELDS: dict[str, _Kind] = {
    "schema": _Kind(f"the number {SCHEMA}", lambda value: value == SCHEMA),
    "chapter": _SLUG,
    "variant": _SLUG,
    "preset": _one_of(PRESETS),
    "seed": _COUNT,
    "created": _Kind("an ISO 8601 time with its zone", _is_moment),
    "data": _MAPPING,
    "data.name": _TEXT,
    "data.source": _one_of(SOURCES),
    "data.split": _TEXT,
    "data.fingerprint": _TEXT,
    "data.count": _COUNT,
    "data.training": _OPTIONAL_MAPPING,
    "scores": _MAPPING,
    **{f"scores.{metric}": kind for metric, kind in _SCORES.items()},
    "scores_per_image_mean": _MAPPING,
    **{f"scores_per_image_mean.{metric}": kind for metric, kind in _SCORES.items()},
    "images": _Kind("a list of at least one object", lambda v: isinstance(v, list) and len(v) > 0),
    "budget": _MAPPING,
    "budget.updates": _COUNT,
    "budget.images_seen": _COUNT,
    "budget.seconds": _MEASURE,
    "budget.device": _TEXT,
    "budget.precision": _TEXT,
    "budget.peak_memory_gb": _MEASURE,
    "budget.seconds_per_image": _MEASURE,
    "versions": _MAPPING,
    "versions.python": _TEXT,
    "versions.nuctut": _TEXT,
    "git_commit": _TEXT_OR_NULL,
    "parameters": _MAPPING,
}
_TRAINING_FIELDS = {"split": _TEXT, "fingerprint": _TEXT, "count": _COUNT, "labels": _TEXT}
_IMAGE_FIELDS = {
    "key": _TEXT,
    "n_true": _COUNT,
    "object": _MAPPING,
    "match": _MAPPING,
    "nuclei": _MAPPING,
    "separations": _OPTIONAL_MAPPING,
    "aggregated_jaccard": _SCORE,
    "seconds": _MEASURE,
}
_OBJECT_FIELDS = {"n_true": _COUNT, "n_pred": _COUNT, "matched": _COUNT}
_MATCH_FIELDS = {"tp": _COUNT, "fp": _COUNT, "fn": _COUNT, "iou_sum": _MEASURE}
_PIXEL_FIELDS = {"tp": _COUNT, "fp": _COUNT, "fn": _COUNT, "tn": _COUNT}


def _validate(payload: Any, name: str) -> None:
    """Raise ValueError, naming file and field, unless the payload is a sound record."""
    if not isinstance(payload, dict):
        raise ValueError(f"{name}: a record is a JSON object, not {_shown(payload)}.")
    _check_fields(payload, _FIELDS, f"{name}: ")
    unknown = sorted(set(payload) - {path.split(".")[0] for path in _FIELDS})
    if unknown:
        raise ValueError(f"{name}: {unknown[0]} is no field of a record; remove it.")
    if payload["data"]["training"] is not None:
        _check_fields(payload["data"]["training"], _TRAINING_FIELDS, f"{name}: data.training.")
    _check_images(payload["images"], payload["data"]["count"], name)
    for block, computed in (("scores", scores), ("scores_per_image_mean", scores_per_image_mean)):
        _check_scores(payload[block], computed(payload["images"]), f"{name}: {block}.")


def _check_fields(payload: Any, fields: Mapping[str, _Kind], where: str) -> None:
    for path, kind in fields.items():
        value = payload
        for part in path.split("."):
            value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
        if not kind.holds(value):
            raise ValueError(f"{where}{path} must be {kind.expected}, not {_shown(value)}.")


def _check_images(rows: list[Any], count: int, name: str) -> None:
    if len(rows) != count:
        raise ValueError(f"{name}: images must hold data.count = {count} rows, not {len(rows)}.")
    for index, row in enumerate(rows):
        _check_row(row, f"{name}: images[{index}].")
    keys = [row["key"] for row in rows]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ValueError(f"{name}: images hold the key {twice[0]!r} more than once.")
    if len({row["separations"] is None for row in rows}) > 1:
        raise ValueError(
            f"{name}: images must have separations in every row, or null in every row."
        )


def _check_row(row: Any, where: str) -> None:
    _check_fields(row, _IMAGE_FIELDS, where)
    _check_fields(row["object"], _OBJECT_FIELDS, f"{where}object.")
    _check_fields(row["nuclei"], _PIXEL_FIELDS, f"{where}nuclei.")
    if row["separations"] is not None:
        _check_fields(row["separations"], _PIXEL_FIELDS, f"{where}separations.")
    if "tags" in row:
        _check_tags(row["tags"], f"{where}tags")
    for threshold in THRESHOLD_KEYS:
        match = row["match"].get(threshold)
        _check_fields(match, _MATCH_FIELDS, f"{where}match.{threshold}.")


def _check_tags(tags: Any, where: str) -> None:
    if not (_MAPPING.holds(tags) and all(_TEXT.holds(value) for value in tags.values())):
        raise ValueError(f"{where} must be an object of texts, not {_shown(tags)}.")


def _check_scores(stored: Mapping[str, Any], computed: Mapping[str, float], where: str) -> None:
    """A score must follow from the images, so that nobody can type one."""
    for metric, value in computed.items():
        expected = None if math.isnan(value) else value
        agree = (
            stored[metric] is expected
            if expected is None or stored[metric] is None
            else math.isclose(stored[metric], expected, abs_tol=1e-6)
        )
        if not agree:
            raise ValueError(
                f"{where}{metric} must be {_shown(expected)}, as the images give, "
                f"not {_shown(stored[metric])}."
            )


_MISSING = object()


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "missing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
