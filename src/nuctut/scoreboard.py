"""The scoreboard: every published number and claim, and what was measured of it.

A published number gets a verdict. The rule looks at the 95 % interval of measured minus published,
and at how far apart the paper's own rows are: half the smallest gap between two of a column, where
a gap below `SMALLEST_GAP` counts as that.

* *not yet run*: there is no record of it;
* *not comparable*: there is one, but from simulated or stand-in data, other images, a smoke run,
  or a checkout that differed from its commit; or the paper leaves open what was measured;
* *reproduced*: the whole interval is within half the gap, so that the measured number could not be
  taken for another row's;
* *higher* or *lower*: the whole interval is further away;
* *inconclusive*: anything else; also where there is but one field of view, and so no interval.

A claim ("this beats that") is judged on how much better the one is than the other on the same
images with the same seeds. It *holds* or *fails* when that differs from zero at a level of 5 %, all
claims of a paper taken together (`uncertainty.holm`), and is *unclear* otherwise. *Not yet run* and
*not comparable* mean what they do above. A claim `against` a second metric says that the first
shows the difference more: the effect is what the one is better by in the first, less what it is
better by in the second. A claim with a `floor` says that the one is not far behind the other: it
is nearer to it than to the floor, so the effect is how far above the middle of both it is. A claim
with `rival` says that the one gains more on the other than the one of a second pair does.

Where a paper names a stand-in, claims may be tried on that while there is no record of the paper's
own data; the verdict then says so. Published numbers never stand beside a stand-in's.

Intervals are those of `uncertainty`: fields of view, or patients, are drawn anew, and the score is
computed again from the drawn images' counts; the scatter of the seeds is added. With fewer than
`ENOUGH_SEEDS` of a trained network a verdict is provisional, and says so. Whatever is compared is
paired by the images' keys, so the order of rows in a file changes nothing.

A goal is what this book set itself, and every seed is held against it: *met* by all of them,
*partly met*, or *missed*.
"""

from __future__ import annotations

import html
import json
import math
import re
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pandas as pd
import yaml
from pandas.io.formats.style import Styler
from pydantic import AfterValidator, Field

from nuctut.files import STRICT, Count, Malformed, Measure, Text, parse_json, read_text
from nuctut.paths import project_root, results_root, runs_root
from nuctut.records import (
    ERRORS,
    PATIENT,
    PRESETS,
    STAND_IN,
    UNBOUNDED,
    Record,
    files_in,
    pooled,
    read,
    read_all,
)
from nuctut.records import scores as scores_of
from nuctut.samples import SOURCES
from nuctut.uncertainty import LEVEL, Estimate, draws, holm

SMALLEST_GAP = 0.01
ENOUGH_SEEDS = 3
AGAIN = "method"  # a parameter of records that measure the networks of other chapters once more
MINUS = "\N{MINUS SIGN}"
METRIC_NAMES = {
    "object_jaccard": "object Jaccard",
    "f1_50": "F1 at IoU 0.5",
    "average_precision_50": "AP at IoU 0.5",
    "mean_average_precision": "mean AP, IoU 0.5 to 0.95",
    "dice_nuclei": "Dice, nuclei",
    "dice_separations": "Dice, separations",
    "aggregated_jaccard": "aggregated Jaccard, by image",
    "mean_average_precision_per_image": "mean AP, by image",
    "panoptic_quality": "panoptic quality",
    "count_error": "count error",
    "pixel_accuracy": "pixel accuracy",
    "pixel_iou": "pixel IoU, pooled",
    "pixel_iou_per_image": "pixel IoU, by image",
    "mean_class_iou": "pixel IoU, two classes",
    "recall": "recall",
    "precision": "precision",
    "f1_kromp": "F1 by Kromp's rule",
    "us_rate": "share of nuclei merged",
    "os_rate": "share of nuclei split",
    "dice_found": "Dice of the nuclei found",
    "aggregated_jaccard_kromp": "aggregated Jaccard, Kromp's",
    "pixel_recall_per_image": "pixel recall, by image",
    "pixel_precision_per_image": "pixel precision, by image",
    "dice_nuclei_per_image": "Dice, nuclei, by image",
    "pixel_accuracy_per_image": "pixel accuracy, by image",
    "jaccard_with_background_per_image": "Jaccard with the background, by image",
    "pixel_recall_per_patient": "pixel recall, by patient",
    "pixel_precision_per_patient": "pixel precision, by patient",
    "dice_nuclei_per_patient": "Dice, nuclei, by patient",
    "pixel_accuracy_per_patient": "pixel accuracy, by patient",
    "pixel_iou_per_patient": "pixel IoU, by patient",
    "jaccard_with_background_per_patient": "Jaccard with the background, by patient",
    "aggregated_jaccard_per_patient": "aggregated Jaccard, by patient",
    "f1_25": "F1 at IoU 0.25",
    "nhm": "harmonic mean of F1, sharp and blurred",
}
Metric = Literal[*METRIC_NAMES]


# --- what a paper published ---------------------------------------------------------------------


Part = dict[Text, Text]  # images are of it whose tags are these


@dataclass(frozen=True)
class PublishedScore:
    """One cell of a paper's table; `variant` names the record set beside it.

    `table` names the column too, where there are several. One that can be read as several metrics
    stands here once for each.
    `note` says how the cell was read where the paper leaves that open; `obstacle` says why it
    cannot be compared at all. `split` and `images` are what it was measured on, where that is not
    what the paper's other numbers were measured on. A number of some images alone is that of the
    `part` that bears these tags, `part_images` in the paper; `subset` names the `Subset` whose
    records may speak for it, too. `fold` is the table that a page shows it under.
    """

    __pydantic_config__ = STRICT

    table: Text
    row: Text
    variant: Text
    metric: Metric
    value: Measure
    note: str = ""
    obstacle: str = ""
    split: str = ""
    images: Count = 0
    part: Part = field(default_factory=dict)
    part_images: Count = 0
    subset: str = ""
    fold: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper, or a block of one: a number for every variant in every column.

    `of` says in words what the block is of, and `values` holds its columns by the paper's names for
    them. All else is as in `PublishedScore`.
    """

    __pydantic_config__ = STRICT

    name: Text
    variants: tuple[Text, ...]
    values: dict[Text, tuple[Measure, ...]]
    of: str = ""
    images: Count = 0
    part: Part = field(default_factory=dict)
    part_images: Count = 0
    subset: str = ""
    note: str = ""
    obstacle: str = ""

    def cells(self, paper: Published) -> Iterator[PublishedScore]:
        """Its numbers, column by column.

        Raises:
            ValueError: For a column or a variant that the paper does not name, or a column of
                another length than there are variants.
        """
        where = ", ".join(filter(None, (self.name, self.of)))
        for column, values in self.values.items():
            if column not in paper.columns:
                raise ValueError(f"{where}: columns does not say which metric {column} is.")
            if len(values) != len(self.variants):
                raise ValueError(
                    f"{where}: {column} must hold a number for each of {len(self.variants)} "
                    f"variants, not {len(values)}."
                )
            for variant, value in zip(self.variants, values, strict=True):
                if variant not in paper.names:
                    raise ValueError(f"{where}: names does not say what {variant} is.")
                yield PublishedScore(
                    table=f"{where}, {column}",
                    row=paper.names[variant],
                    variant=variant,
                    metric=paper.columns[column],
                    value=value,
                    note=self.note,
                    obstacle=self.obstacle,
                    images=self.images,
                    part=self.part,
                    part_images=self.part_images,
                    subset=self.subset,
                    fold=self.name,
                )


@dataclass(frozen=True)
class Subset:
    """A part of the paper's data that stands on disk by itself, with methods that saw no more.

    Or one of several data sets that the paper tests on. Records of it bear its name behind the
    variant's, such as "u-net-scaled-neuroblastoma", and speak for the numbers that name the subset
    while none of the whole does. `data`, `split` and `images` are what they are measured on;
    `caution` goes with every verdict that rests on them.
    """

    __pydantic_config__ = STRICT

    name: Text
    data: Text
    split: Text
    images: Count
    caution: Text


@dataclass(frozen=True)
class StandIn:
    """Other real data, on which the paper's claims may be tried: its name, split and title."""

    __pydantic_config__ = STRICT

    data: Text
    split: Text
    title: Text


@dataclass(frozen=True)
class PublishedTime:
    """A processing time in seconds; `budget` names the field of a record's budget beside it.

    Where it is the time of several, `count` says of how many.
    """

    __pydantic_config__ = STRICT

    what: Text
    variant: Text
    budget: Annotated[str, Field(pattern="^seconds")]
    seconds: Annotated[float, Field(gt=0)]
    machine: Text
    count: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True)
class Claim:
    """A comparison the paper makes: `better` beats `worse` by `published_effect` in `metric`.

    With `against`, another metric, by that much more than in it. With `floor`, a third variant,
    `better` need only be nearer to `worse` than to that, by `published_effect` above the middle.
    With `rival`, two more variants, it beats `worse` by that much more than the first of them beats
    the second. A `headline` is among the few that a reader is told first.

    `part` and `subset` are as in `PublishedScore`. Where the paper has a stand-in, `counterpart` is
    the part of it that a claim about a part may be tried on, {} being the whole; without one, such
    a claim is not.
    """

    __pydantic_config__ = STRICT

    text: Text
    better: Text
    worse: Text
    metric: Metric
    published_effect: float
    against: Literal["", *METRIC_NAMES] = ""
    floor: str = ""
    note: str = ""
    headline: bool = False
    rival: tuple[Text, ...] = ()
    part: Part = field(default_factory=dict)
    subset: str = ""
    counterpart: Part | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        """Whose records it takes to judge it."""
        return (*filter(None, (self.better, self.worse, self.floor)), *self.rival)

    @property
    def weights(self) -> tuple[float, ...]:
        """How much the score of each of `variants` counts in the effect."""
        if self.rival:
            return (1, -1, -1, 1)
        return (1, -0.5, -0.5) if self.floor else (1, -1)

    @property
    def stands_in(self) -> Part | None:
        """The part of a stand-in that it may be tried on; None where it may not be."""
        return self.counterpart if self.part else {}


@dataclass(frozen=True)
class Goal:
    """What this book set itself: a score that a variant shall reach under a preset.

    Or a time in seconds that it shall not exceed, on CPUs with so many `cores`: on other machines
    nothing is asked of it. One of some images alone is that of the `part` that bears these tags.
    With `stand_in`, it is held against records of the paper's stand-in.
    """

    __pydantic_config__ = STRICT

    variant: Text
    preset: Literal[*PRESETS]
    measure: Literal[*METRIC_NAMES, "seconds_per_image"]
    value: Annotated[float, Field(gt=0)]
    cores: Count = 0
    part: Part = field(default_factory=dict)
    stand_in: bool = False

    @property
    def is_limit(self) -> bool:
        """Whether less is better."""
        return self.measure in ERRORS or self.measure.startswith("seconds")


@dataclass(frozen=True)
class Published:
    """What one paper printed: whose it is, what it was measured on, its numbers and claims.

    And the goals of the chapter that rebuilds it. What a file has in `tables`, with the metrics
    that their `columns` are and the `names` of their variants, stands in `scores` once it is read.
    """

    __pydantic_config__ = STRICT

    name: Text
    title: Text
    authors: Text
    chapter: Text
    data: Text
    split: Text
    images: Count
    scores: tuple[PublishedScore, ...] = ()
    tables: tuple[PublishedTable, ...] = ()
    columns: dict[Text, Metric] = field(default_factory=dict)
    names: dict[Text, Text] = field(default_factory=dict)
    subsets: tuple[Subset, ...] = ()
    stand_in: StandIn | None = None
    times: tuple[PublishedTime, ...] = ()
    claims: tuple[Claim, ...] = ()
    goals: tuple[Goal, ...] = ()

    def measured_on(self, variant: str) -> tuple[str, int]:
        """The split, and the number of its images, that a variant's numbers are of."""
        if subset := self.subset_of(variant):
            return subset.split, subset.images
        of_variant = (score for score in self.scores if score.variant == variant)
        cell = next(of_variant, None)
        return (cell and cell.split) or self.split, (cell and cell.images) or self.images

    def subset_of(self, variant: str) -> Subset | None:
        """The subset that a variant's records are of, if they are of one."""
        return next((one for one in self.subsets if variant.endswith(f"-{one.name}")), None)


def papers() -> tuple[str, ...]:
    """The names of the papers whose numbers are here, in the order of their chapters."""
    return tuple(sorted(_files(), key=lambda name: published(name).chapter))


def published(name: str) -> Published:
    """What a paper published, by its name such as "labels_for_free".

    Raises:
        ValueError: For an unknown name, naming those there are.
    """
    known = _files()
    if name not in known:
        raise ValueError(f"No paper is named {name!r}; those there are: {', '.join(known)}.")
    return read_published(known[name])


def rebuilt(experiment: str) -> str:
    """What the chapter of an experiment rebuilds, in words: a paper, or what all have to say."""
    if experiment not in _files():
        return "the ideas of five papers in one network"
    paper = published(experiment)
    return f"{paper.authors}, *{paper.title}*"


def _files() -> dict[str, Path]:
    folder = Path(__file__).with_name("published")
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_published(path: Path) -> Published:
    """Read one paper's numbers from a TOML file.

    Raises:
        Malformed: Naming the file, the entry and the field at fault.
    """
    text = read_text(path)
    try:
        content = tomllib.loads(text) | {"name": path.stem}
        as_json = json.dumps(content, default=str)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path}: not a TOML file ({error}).") from error
    checks = AfterValidator(_with_cells), AfterValidator(_check_published)
    return parse_json(as_json, Annotated[Published, *checks], str(path))


def _with_cells(paper: Published) -> Published:
    """The paper with the numbers of its tables among its scores."""
    cells = (cell for table in paper.tables for cell in table.cells(paper))
    return replace(paper, scores=(*paper.scores, *cells), tables=())


def _check_published(paper: Published) -> Published:
    """Cells must be unique, values possible, effects what the tables give."""
    values: dict[tuple, PublishedScore] = {}
    printed: dict[tuple[str, str], float] = {}
    subsets = {"", *(subset.name for subset in paper.subsets)}
    for index, score in enumerate(paper.scores):
        where = f"{score.table}, {score.row}" if score.fold else f"scores.{index}"
        most = math.inf if score.metric in UNBOUNDED else 1
        if score.subset not in subsets:
            raise ValueError(f"{where}: the paper has no subset {score.subset!r}.")
        if score.value > most:
            raise ValueError(f"{where}.value must lie from 0 to {most}, not {score.value}.")
        if (score.split or paper.split, score.images or paper.images) != paper.measured_on(
            score.variant
        ):
            raise ValueError(
                f"{where}: {score.variant} has other split or images in an earlier entry; "
                "what was measured on other images is a variant of its own."
            )
        if printed.setdefault((score.table, score.row), score.value) != score.value:
            raise ValueError(
                f"{where}: {score.table}, {score.row} has another value in an earlier entry; "
                "the table's name must tell its columns apart."
            )
        first = values.setdefault(_place(score, score.variant, score.metric), score)
        # a paper may print a number again in another table
        again = first.table != score.table and first.value == score.value
        if first is not score and not again:
            raise ValueError(f"{where}: {score.variant} has a {score.metric} already.")
    for index, claim in enumerate(paper.claims):
        if len(claim.rival) not in (0, 2) or (claim.rival and claim.floor):
            raise ValueError(f"claims.{index}.rival must be two variants, and without a floor.")
        if claim.subset not in subsets:
            raise ValueError(f"claims.{index}: the paper has no subset {claim.subset!r}.")
        effect = _effect(claim, _published_value(claim, values), claim.variants)
        if abs(effect - claim.published_effect) > 5e-4:
            raise ValueError(
                f"claims.{index}.published_effect must be {effect:.3f}, as the tables give, "
                f"not {claim.published_effect}."
            )
    for index, goal in enumerate(paper.goals):
        where = f"goals.{index}"
        if not goal.is_limit and goal.value > 1:
            raise ValueError(f"{where}.value must lie from 0 to 1, not {goal.value}.")
        if goal.measure.startswith("seconds") is not (goal.cores > 0):
            raise ValueError(f"{where}.cores must be said of a time, and of nothing else.")
        if goal.stand_in and paper.stand_in is None:
            raise ValueError(f"{where}.stand_in: the paper has none.")
    return paper


def _place(of: PublishedScore | Claim, variant: str, metric: str) -> tuple:
    """What tells a number of the paper from all others."""
    return variant, metric, tuple(sorted(of.part.items()))


def _published_value(
    claim: Claim, values: Mapping[tuple, PublishedScore]
) -> Callable[[str, str], float]:
    """Gives the paper's number for a variant in a metric, on the claim's part of the data."""

    def value(variant: str, metric: str) -> float:
        cell = values.get(_place(claim, variant, metric))
        return cell.value if cell else math.nan

    return value


Side = TypeVar("Side")
Scores = TypeVar("Scores", float, np.ndarray)


def _effect(claim: Claim, score: Callable[[Side, str], Scores], sides: Sequence[Side]) -> Scores:
    """How much better the first side is than the second; below zero where it is worse.

    `score` gives a side's score, or resampled scores, in a metric. Of a claim with a floor: than
    the middle of the second and the third; of one with rivals: than the third is than the fourth.
    """

    def gain(metric: str) -> Scores:
        weighed = zip(claim.weights, sides, strict=True)
        difference = sum(weight * score(side, metric) for weight, side in weighed)
        return -difference if metric in ERRORS else difference

    return gain(claim.metric) - gain(claim.against) if claim.against else gain(claim.metric)


# --- which records speak for a variant ----------------------------------------------------------


def evidence() -> list[Record]:
    """All records of this checkout: the committed ones, and those of runs that prove nothing.

    Of the latter, malformed ones are passed over with a warning.

    Raises:
        Malformed: For a malformed committed record, by name.
    """
    leftovers = []
    for path in files_in(runs_root() / "results"):
        try:
            leftovers.append(read(path))
        except (Malformed, OSError) as error:  # or gone meanwhile
            warnings.warn(f"Passed over: {error}", stacklevel=2)
    return read_all(results_root()) + leftovers


def _speaking_for(
    records: Iterable[Record],
    paper: Published,
    variant: str,
    preset: str | None = None,
    subset: str = "",
) -> list[Record]:
    """The records of a variant at its best preset, one per seed, by seed; comparable ones first.

    Of leftovers that prove nothing, those measured on the same images as the newest. With a
    `subset`, its records may speak where none of the whole data does.

    Raises:
        ValueError: When evidence was not all measured on the same images, naming two records.
    """
    own = [
        record
        for record in records
        if record.chapter == paper.chapter
        and record.variant in (variant, f"{variant}-{subset}")
        and preset in (None, record.preset)
    ]
    if not own:
        return []

    def rank(record: Record) -> tuple:
        comparable = not _obstacle(record, paper)
        source = -SOURCES.index(record.data["source"])
        whole = record.variant == variant
        return comparable, whole, PRESETS.index(record.preset), source

    best = max(rank(record) for record in own)
    chosen = sorted((r for r in own if rank(r) == best), key=lambda record: record.seed)
    if _obstacle(chosen[0], paper):
        newest = max(chosen, key=lambda record: datetime.fromisoformat(record.created))
        images = newest.data["fingerprint"]
        chosen = [record for record in chosen if record.data["fingerprint"] == images]
    for record in chosen[1:]:
        if record.data["fingerprint"] != chosen[0].data["fingerprint"]:
            raise ValueError(
                f"{file_of(chosen[0])} and {file_of(record)} were measured on different images; "
                "remove or repeat one of them."
            )
    if len({record.seed for record in chosen}) < len(chosen):
        raise ValueError(f"{file_of(chosen[0])}: two records of the same run; remove one of them.")
    return chosen


def _obstacle(record: Record, paper: Published) -> str:
    """Why a record may not stand beside the paper's number; empty when it may."""
    data, subset = record.data, paper.subset_of(record.variant)
    name = subset.data if subset else paper.data
    split, images = paper.measured_on(record.variant)
    if record.obstacle:
        return record.obstacle
    if (data["name"], data["split"]) != (name, split):
        return f"measured on {data['name']} {data['split']}, not {name} {split}"
    if data["count"] != images:
        return f"measured on {data['count']} of {images} images"
    return ""


def _stands_in(record: Record, paper: Published) -> bool:
    """Whether claims of the paper may be tried on the data of a record, which are a stand-in."""
    stand_in, data = paper.stand_in, record.data
    return (
        stand_in is not None
        and not record.flaw
        and data["source"] == STAND_IN
        and (data["name"], data["split"]) == (stand_in.data, stand_in.split)
    )


def _part_of(records: Sequence[Record], part: Part) -> list[Record]:
    """The records as if only the images with these tags had been measured.

    Raises:
        LookupError: When no image of a record has them, saying so.
    """
    if not part:
        return list(records)
    words = ", ".join(part.values())
    found = []
    for record in records:
        rows = [row for row in record.images if part.items() <= row.get("tags", {}).items()]
        if not rows:
            raise LookupError(f"no image of it is tagged as {words}")
        data = record.data | {"count": len(rows), "part": words}
        found.append(replace(record, images=rows, data=data, scores=scores_of(rows)))
    return found


# --- how sure a number is -----------------------------------------------------------------------


def estimate(records: Sequence[Record], metric: str, by: str = "field") -> Estimate:
    """A pooled score, the mean over the seeds, and what it could have been.

    Args:
        records: One per seed, all of the same images.
        metric: One of `METRIC_NAMES`.
        by: The tag of an image that says with which others it is drawn; one without it is drawn
            with all of its patient, and one that does not say whose it is by itself.

    Returns:
        The estimate; without an interval where all images are of one field.

    Raises:
        ValueError: When two records hold different images, naming both.
    """
    drawn = _drawn_scores(records, by)(records, metric)
    return Estimate(_mean_score(records, metric), drawn, _by_seed(records, metric))


def _drawn_scores(
    records: Sequence[Record], by: str
) -> Callable[[Sequence[Record], str], np.ndarray]:
    """Gives a side's score, averaged over its seeds, under draws that all sides share."""
    keys = _keys(records)
    units = _units(records[0], by)
    drawn = draws([units[key] for key in keys])
    if len(set(units.values())) == 1:  # to draw one again and again tells nothing of others
        drawn = np.full_like(drawn, math.nan)

    def score(side: Sequence[Record], metric: str) -> np.ndarray:
        rows = [{row["key"]: row for row in record.images} for record in side]
        return np.mean([pooled([of[key] for key in keys], metric, drawn) for of in rows], axis=0)

    return score


def _units(record: Record, by: str) -> dict[str, str]:
    """What every image is drawn with, by its key: its field of view, its patient, or itself."""
    tags = {row["key"]: row.get("tags", {}) for row in record.images}
    return {key: of.get(by) or of.get(PATIENT) or key for key, of in tags.items()}


def _by_seed(records: Sequence[Record], metric: str) -> tuple[float, ...]:
    return tuple(_score(record, metric) for record in records)


def _score(record: Record, metric: str) -> float:
    """A score that the record keeps, or one that follows from its images."""
    if metric in record.scores:
        return record.scores[metric]
    return pooled(record.images, metric)


def _mean_score(records: Sequence[Record], metric: str) -> float:
    return float(np.mean(_by_seed(records, metric)))


def _keys(records: Sequence[Record]) -> list[str]:
    """The sorted keys of the images, which must be the same in all records."""
    first, *others = records
    keys = {row["key"] for row in first.images}
    for other in others:
        if differing := keys ^ {row["key"] for row in other.images}:
            raise ValueError(
                f"{file_of(first)} and {file_of(other)} hold different images, such as "
                f"{min(differing)!r} in one alone; measure one of them again."
            )
    return sorted(keys)


def verdict(published: float, low: float, high: float, near: float) -> str:
    """Either "reproduced", "higher", "lower" or "inconclusive", by the rule this module opens with.

    Args:
        published: The paper's number.
        low, high: Of the measured one's interval.
        near: Half the gap between rows, see `half_gap`.
    """
    if low - published > near:
        return "higher"
    if high - published < -near:
        return "lower"
    within = low - published >= -near and high - published <= near
    return "reproduced" if within else "inconclusive"


def half_gap(paper: Published, cell: PublishedScore) -> float:
    """Half the smallest gap between two rows of the cell's column; at least half `SMALLEST_GAP`."""
    same = (one for one in paper.scores if (one.table, one.metric) == (cell.table, cell.metric))
    gaps = np.diff(sorted(one.value for one in same))
    return max(SMALLEST_GAP, min(gaps, default=0)) / 2


def claim_verdict(effect: float, p: float) -> str:
    """Either "holds", "fails" or "unclear", for an effect and its corrected p-value."""
    if p >= 1 - LEVEL:
        return "unclear"
    return "holds" if effect > 0 else "fails"


# --- the tables ---------------------------------------------------------------------------------

NO_SCORE = "nothing to score in these images"
ONE_FIELD = "one field of view: no interval"
PROVENANCE = ("network", "data", "preset", "seeds", "repeats", "device", "git_commit", "files")
PROVENANCE += ("stand_in", "caution")


def compare_scores(paper: Published, records: Iterable[Record]) -> pd.DataFrame:
    """Every cell of the paper's tables beside what was measured.

    Returns:
        One line per published cell: paper, fold, table, row, note, variant, metric, label,
        published, measured (mean over the seeds), low, high, difference (NaN where not comparable),
        verdict, reason (of a verdict that compares nothing) and `PROVENANCE`.
    """
    records = list(records)
    lines = []
    for cell in paper.scores:
        chosen = _speaking_for(records, paper, cell.variant, subset=cell.subset)
        line = {
            "paper": paper.authors,
            "fold": cell.fold,
            "table": cell.table,
            "row": cell.row,
            "note": cell.note,
            "variant": cell.variant,
            "metric": cell.metric,
            "label": f"{cell.row}\n{METRIC_NAMES[cell.metric]}",
            "published": cell.value,
        }
        lines.append(line | _measured(cell, chosen, paper))
    columns = ["paper", "fold", "table", "row", "note", "variant", "metric", "label", "published"]
    columns += ["measured", "low", "high", "difference", "verdict", "reason", *PROVENANCE]
    return pd.DataFrame(lines, columns=columns)


def _measured(cell: PublishedScore, chosen: list[Record], paper: Published) -> dict[str, Any]:
    """The measured half of a line."""
    line = dict.fromkeys(("measured", "low", "high", "difference"), math.nan)
    line |= _provenance(chosen, paper)
    if not chosen:
        return line | _no_verdict("not yet run", f"no record of {cell.variant}")
    reason = _obstacle(chosen[0], paper) or cell.obstacle
    try:
        chosen = _part_of(chosen, cell.part)
    except LookupError as error:
        return line | _no_verdict("not comparable", reason or str(error))
    if len(chosen[0].images) != (cell.part_images or len(chosen[0].images)):
        reason = reason or f"{len(chosen[0].images)} of the part's {cell.part_images} images"
    found = estimate(chosen, cell.metric)
    low, high = found.interval()
    reason = reason or (NO_SCORE if math.isnan(found.value) else "")
    line |= {"measured": found.value, "low": low, "high": high} | _provenance(chosen, paper)
    if reason:
        return line | {"difference": math.nan} | _no_verdict("not comparable", reason)
    name = verdict(cell.value, low, high, half_gap(paper, cell))
    return line | {"difference": found.value - cell.value, "verdict": name, "reason": ""}


def judge_claims(paper: Published, records: Iterable[Record], by: str = "field") -> pd.DataFrame:
    """Every claim of the paper beside what was measured, paired by image and seed.

    Args:
        paper: Whose claims.
        records: What was measured.
        by: See `estimate`.

    Returns:
        One line per claim: paper, text, note, headline, metric, against, better, worse, floor,
        published_effect, measured_effect (mean over the seeds all sides have), low, high, p
        (corrected for all claims of the paper), verdict, reason and `PROVENANCE`.
    """
    records = list(records)
    lines = []
    for claim in paper.claims:
        sides = _sides(claim, paper, records)
        line = {"paper": paper.authors} | asdict(claim)
        lines.append(line | _judged(claim, sides, paper, records, by))
    for line, p in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p"] = p
        if not math.isnan(p):
            line["verdict"] = claim_verdict(line["measured_effect"], p)
    columns = ["paper", "text", "note", "headline", "metric", "against", "better", "worse"]
    columns += ["floor", "published_effect", "measured_effect", "low", "high", "p"]
    columns += ["verdict", "reason", *PROVENANCE]
    return pd.DataFrame(lines, columns=columns)


def _sides(claim: Claim, paper: Published, records: list[Record]) -> list[list[Record]]:
    """All sides' records at the best preset that all ran, seed by seed.

    Comparable ones come first, then those of a stand-in where the claim may be tried on it.
    """
    comparable = [record for record in records if not _obstacle(record, paper)]
    standing_in = [record for record in records if _stands_in(record, paper)]
    for pool in (comparable, [] if claim.stands_in is None else standing_in, records):
        for preset in reversed(PRESETS):
            chosen = (
                _speaking_for(pool, paper, variant, preset, claim.subset)
                for variant in claim.variants
            )
            sides = [{record.seed: record for record in side} for side in chosen]
            if seeds := sorted(set.intersection(*(set(side) for side in sides))):
                return [[side[seed] for seed in seeds] for side in sides]
    return []


def _judged(
    claim: Claim, sides: list[list[Record]], paper: Published, records: list[Record], by: str
) -> dict[str, Any]:
    """The measured half of a claim's line; a verdict follows where p is a number."""
    everything = [record for side in sides for record in side]
    nothing = dict.fromkeys(("measured_effect", "low", "high", "p"), math.nan)
    nothing |= _provenance(everything, paper)
    if not sides:
        ran = {record.variant for record in records if record.chapter == paper.chapter}
        missing = [one for one in claim.variants if not {one, f"{one}-{claim.subset}"} & ran]
        if missing:
            return nothing | _no_verdict("not yet run", f"no record of {' and '.join(missing)}")
        return nothing | _no_verdict("not comparable", "no preset and seed that all sides ran")
    if len({side[0].data["fingerprint"] for side in sides}) > 1:
        return nothing | _no_verdict("not comparable", "the sides ran on different images")
    tried = claim.stands_in is not None and _stands_in(everything[0], paper)
    reason = "" if tried else next(filter(None, (_obstacle(s[0], paper) for s in sides)), "")
    try:
        sides = [_part_of(side, claim.stands_in if tried else claim.part) for side in sides]
    except LookupError as error:
        return nothing | _no_verdict("not comparable", reason or str(error))
    everything = [record for side in sides for record in side]
    seed_by_seed = [_effect(claim, _score, of_seed) for of_seed in zip(*sides, strict=True)]
    found = Estimate(
        _effect(claim, _mean_score, sides),
        _effect(claim, _drawn_scores(everything, by), sides),
        seed_by_seed,
    )
    low, high = found.interval()
    reason = reason or (NO_SCORE if math.isnan(found.value) else "")
    line = nothing | {"measured_effect": found.value, "low": low, "high": high}
    line |= _provenance(everything, paper)
    if reason:
        return line | _no_verdict("not comparable", reason)
    return line | {"p": found.p_value()} | _no_verdict("unclear", "")


def judge_goals(paper: Published, records: Iterable[Record]) -> pd.DataFrame:
    """Every goal of the paper's chapter beside what each seed came to.

    Args:
        paper: Whose chapter.
        records: What was measured; what may not stand beside the paper's numbers does not count,
            nor, of a goal on the stand-in, what was measured on anything else.

    Returns:
        One line per goal: variant, measure, cores, goal, by_seed (a value for every seed that
        measured the goal's part),
        verdict ("met", "partly met", "missed" or "not yet run"), reason and `PROVENANCE`.
    """
    records = list(records)
    evidence = [record for record in records if not _obstacle(record, paper)]
    standing_in = [record for record in records if _stands_in(record, paper)]
    lines = []
    for goal in paper.goals:
        pool = standing_in if goal.stand_in else evidence
        fitting = [one for one in pool if not goal.cores or _cores(one) == goal.cores]
        chosen = _speaking_for(fitting, paper, goal.variant, goal.preset)
        line = {"variant": goal.variant, "measure": goal.measure, "cores": goal.cores}
        line |= {"goal": goal.value} | _reached(goal, chosen)
        lines.append(line | _provenance(chosen, paper))
    columns = ["variant", "measure", "cores", "goal", "by_seed", "verdict", "reason"]
    return pd.DataFrame(lines, columns=[*columns, *PROVENANCE])


def _cores(record: Record) -> int:
    """The cores of the CPU that a record was measured on; 0 of a GPU."""
    found = re.search(r"(\d+) (?:cores?|threads?)$", record.budget["device"])
    return int(found[1]) if found else 0


def _reached(goal: Goal, chosen: Sequence[Record]) -> dict[str, Any]:
    """What every seed came to, and whether that is what was asked for."""
    if goal.cores:
        values = {one.seed: one.budget.get(goal.measure, math.nan) for one in chosen}
    else:
        try:
            chosen = _part_of(chosen, goal.part)
        except LookupError as error:
            return {"by_seed": {}} | _no_verdict("not yet run", str(error))
        values = {one.seed: _score(one, goal.measure) for one in chosen}
    if not values:
        where = f"{goal.preset}, {goal.cores} CPU cores" if goal.cores else goal.preset
        return {"by_seed": values} | _no_verdict("not yet run", f"no record of {where}")
    reached = [v <= goal.value if goal.is_limit else v >= goal.value for v in values.values()]
    name = "met" if all(reached) else "partly met" if any(reached) else "missed"
    return {"by_seed": values, "verdict": name, "reason": ""}


def training_times(records: Iterable[Record]) -> pd.DataFrame:
    """How long the networks of a chapter took to train, by preset, device and seed.

    Of several records of one network, such as that on training images, the time counts once.

    Returns:
        One line per chapter, preset, device and seed that trained anything, from the records that
        belong into `results/`: these four, networks (how many) and seconds (of all of them).
    """
    times = [
        {
            "chapter": record.chapter,
            "preset": record.preset,
            "device": record.budget["device"],
            "seed": record.seed,
            "network": (record.fit or {}).get("weights_sha256", record.budget["seconds"]),
            "seconds": record.budget["seconds"],
        }
        for record in records
        if not record.flaw and record.budget["updates"] and AGAIN not in record.parameters
    ]
    columns = ["chapter", "preset", "device", "seed", "network", "seconds"]
    table = pd.DataFrame(times, columns=columns).drop_duplicates(columns[:5])
    grouped = table.groupby(columns[:4])["seconds"]
    return grouped.agg(networks="count", seconds="sum").reset_index()


def prediction_times(records: Iterable[Record]) -> pd.DataFrame:
    """How long one image took, from pixels to labels, by method, preset and device.

    Returns:
        One line per chapter, variant, preset and device, from the records that belong into
        `results/`: these four, data, seeds (which) and seconds (mean over images and seeds).
    """
    times = [
        {
            "chapter": record.chapter,
            "variant": record.variant,
            "preset": record.preset,
            "device": record.budget["device"],
            "data": describe(record),
            "seed": str(record.seed),
            "seconds": record.budget["seconds_per_image"],
        }
        for record in records
        if not record.flaw
        if "seconds_per_image" in record.budget and AGAIN not in record.parameters
    ]
    columns = ["chapter", "variant", "preset", "device", "data", "seed", "seconds"]
    grouped = pd.DataFrame(times, columns=columns).groupby(columns[:5])
    return grouped.agg(seeds=("seed", ", ".join), seconds=("seconds", "mean")).reset_index()


def readings(cells: pd.DataFrame) -> pd.DataFrame:
    """Which reading of an undefined score fits the paper: its numbers under each, side by side.

    Args:
        cells: Those lines of `compare_scores` in which one printed number per row stands beside
            several metrics. Cells that are not comparable are left out.

    Returns:
        One line per metric, named by it, the one that fits best first: `rows` (how many numbers
        were compared), `mean_difference` (measured minus published) and
        `mean_absolute_difference`. A network trained better or worse than the paper's shifts
        every reading, so only a clear gap between two of them tells anything.
    """
    by_metric = cells.dropna(subset="difference").groupby("metric")["difference"]
    table = pd.DataFrame(
        {
            "rows": by_metric.count(),
            "mean_difference": by_metric.mean(),
            "mean_absolute_difference": by_metric.agg(lambda values: values.abs().mean()),
        }
    )
    return table.sort_values("mean_absolute_difference", kind="stable")


def compare_times(paper: Published, records: Iterable[Record]) -> pd.DataFrame:
    """The paper's processing times beside measured ones: other machines, so no verdict of speed.

    Returns:
        One line per published time: what, published and measured (seconds, mean over the seeds),
        ratio (published / measured), verdict (never more than "not comparable"), reason, machine
        (the paper's) and `PROVENANCE`.
    """
    records = list(records)
    lines = []
    for time in paper.times:
        chosen = _speaking_for(records, paper, time.variant)
        seconds = [_budget_seconds(record, time.budget) for record in chosen]
        seconds = [time.count * value for value in seconds if value is not None]
        measured = float(np.mean(seconds)) if seconds else math.nan
        line = {"what": time.what, "published": time.seconds, "measured": measured}
        line |= {"ratio": time.seconds / measured if seconds else math.nan}
        if seconds:
            line |= _no_verdict("not comparable", "other machines")
        else:
            line |= _no_verdict("not yet run", f"no record holds {time.budget}")
        line |= {"machine": time.machine} | _provenance(chosen if seconds else [], paper)
        lines.append(line)
    columns = ["what", "published", "measured", "ratio", "verdict", "reason", "machine"]
    return pd.DataFrame(lines, columns=[*columns, *PROVENANCE])


def _budget_seconds(record: Record, name: str) -> float | None:
    """A time of the record's budget; that of an update, unless kept, from the whole fit's."""
    if name == "seconds_per_update" and name not in record.budget and record.budget["updates"]:
        return record.budget["seconds"] / record.budget["updates"]
    return record.budget.get(name)


def _no_verdict(name: str, reason: str) -> dict[str, str]:
    return {"verdict": name, "reason": reason}


def _provenance(records: Sequence[Record], paper: Published) -> dict[str, str]:
    """What a line rests on; several different values of one field stand side by side."""
    first = records[0] if records else None
    subset = paper.subset_of(first.variant) if first else None
    one_field = first and len(set(_units(first, "field").values())) == 1
    cautions = (subset.caution if subset else "", ONE_FIELD if one_field else "")

    def joined(values: Iterable[str], between: str = ", ") -> str:
        return between.join(dict.fromkeys(values))

    networks = (record.parameters.get("network", "") for record in records)
    return {
        "network": joined(filter(None, networks), "; "),
        "data": joined(describe(record) for record in records),
        "preset": joined(record.preset for record in records),
        "seeds": joined(str(record.seed) for record in records),
        "repeats": _repeats(records),
        "device": joined(record.budget["device"] for record in records),
        "git_commit": joined(record.git_commit or "none" for record in records),
        "files": joined(file_of(record) for record in records),
        "stand_in": f"on the stand-in {paper.stand_in.title}"
        if first and _stands_in(first, paper)
        else "",
        "caution": "; ".join(filter(None, cautions)),
    }


def _repeats(records: Sequence[Record]) -> str:
    """How many seeds of a trained network there were, and whether those are enough."""
    seeds = {record.seed for record in records if record.budget["updates"]}
    if not seeds:
        return "nothing trained" if records else ""
    if len(seeds) == 1:
        return "single seed: provisional"
    return f"{len(seeds)} seeds" + ": provisional" * (len(seeds) < ENOUGH_SEEDS)


def describe(record: Record) -> str:
    """What a record was measured on, such as "bbbc039 test (real, 50 images)"."""
    data = record.data
    split = data["split"] + _prefixed_one(", ", data.get("part", ""))
    images = f"{data['count']} image{'s' * (data['count'] != 1)}"
    return f"{data['name']} {split} ({data['source']}, {images})"


def file_of(record: Record) -> str:
    """The record's file as seen from the checkout's top folder."""
    if record.path is not None and record.path.resolve().is_relative_to(project_root()):
        return record.path.resolve().relative_to(project_root()).as_posix()
    return f"{record.chapter}/{record.name}.json"


def tally(table: pd.DataFrame) -> str:
    """How often each verdict was given, by preset, such as "lite: holds 5 · unclear 1".

    What was tried on a stand-in is told apart. A printed number that stands beside several readings
    of a score counts once: as its verdict where all readings have the same, else as "depends on the
    reading".
    """
    counted = table if "stand_in" in table else table.assign(stand_in="")
    if "row" in counted:
        verdict = {"verdict": lambda v: v.iloc[0] if v.nunique() == 1 else DEPENDS}
        counted = counted.groupby(["paper", "table", "row"], sort=False).agg(
            {"preset": "first", "stand_in": "first"} | verdict
        )
    parts = []
    for where, lines in counted.groupby(["preset", "stand_in"], sort=False):
        counts = lines["verdict"].value_counts()
        said = " · ".join(f"{name} {counts[name]}" for name in VERDICT_TINTS if name in counts)
        label = ", ".join(filter(None, where))
        parts.append(f"{label}: {said}" if label else said)
    return "; ".join(parts)


def told(claim: Any) -> str:
    """A line of `judge_claims` in a few words, for a sentence: the verdict and what it rests on."""
    if math.isnan(claim.measured_effect):
        return claim.verdict
    effect = _signed(claim.measured_effect) + _prefixed_one(", ", _interval(claim, _signed))
    return f"{claim.verdict} ({effect}{_prefixed_one('; ', _share(claim))}; {rests_on(claim)})"


def finding(claim: Any) -> str:
    """A line of `judge_claims` as a sentence for a reader who knows nothing of the book yet."""
    said = f"{claim.verdict.capitalize()}: {claim.text}"
    if math.isnan(claim.measured_effect):
        return f"{said}."
    score = METRIC_NAMES[claim.metric] + _prefixed_one(", against ", _name(claim.against))
    found = f"measured {_signed(claim.measured_effect)} in {score}"
    found += _prefixed_one(", 95 % interval ", _interval(claim, _signed))
    found += f"; published {_signed(claim.published_effect)}"
    rests_on = filter(None, (claim.preset, claim.stand_in, claim.repeats, claim.caution))
    return f"{said} ({found}; {', '.join(rests_on)})."


def sources(table: pd.DataFrame) -> str:
    """What a table's measured numbers rest on, for a figure's title."""
    return ", ".join(dict.fromkeys(filter(None, table["data"]))) or "nothing yet"


# --- the tables as a page shows them ------------------------------------------------------------

DEPENDS = "depends on the reading"

# Behind the text, and half transparent, so that they suit a light page and a dark one.
VERDICT_TINTS = {
    "reproduced": "rgba(0, 158, 115, 0.28)",
    "holds": "rgba(0, 158, 115, 0.28)",
    "met": "rgba(0, 158, 115, 0.28)",
    "higher": "rgba(0, 114, 178, 0.30)",
    "lower": "rgba(213, 94, 0, 0.30)",
    "fails": "rgba(213, 94, 0, 0.30)",
    "missed": "rgba(213, 94, 0, 0.30)",
    "partly met": "rgba(230, 159, 0, 0.28)",
    "unclear": "rgba(230, 159, 0, 0.28)",
    "inconclusive": "rgba(230, 159, 0, 0.28)",
    DEPENDS: "rgba(230, 159, 0, 0.28)",
    "not comparable": "rgba(140, 140, 140, 0.22)",
    "not yet run": "rgba(140, 140, 140, 0.22)",
}


def show_scores(table: pd.DataFrame) -> Styler:
    """`compare_scores` as a page shows it: intervals, verdict, and links to the records."""
    score = _names(table["metric"]) + ", " + table["table"]
    return _compared("Row", table["row"], score, table, "", _number)


def show_scores_by_table(table: pd.DataFrame) -> str:
    """`compare_scores` of a paper with many tables as HTML: each in a fold, under its tally."""
    folds = []
    for name, cells in table.groupby("fold", sort=False):
        said = html.escape(f"{name}: {tally(cells)}")
        shown = show_scores(cells).to_html()
        folds.append(f"<details><summary>{said}</summary>{shown}</details>")
    return "\n".join(folds)


def show_claims(table: pd.DataFrame) -> Styler:
    """`judge_claims` as a page shows it."""
    score = _names(table["metric"]) + _prefixed(", against ", _names(table["against"]))
    return _compared("Claim", table["text"], score, table, "_effect", _signed)


def _compared(
    head: str,
    what: pd.Series,
    score: pd.Series,
    table: pd.DataFrame,
    ending: str,
    shown: Callable[[float], str],
) -> Styler:
    """What both tables share; `ending` of the columns with the numbers, `shown` by a function."""
    under = score + _prefixed(". ", table["note"])
    columns = {
        head: _two_lines(what, under),
        "Verdict": _verdicts(table),
        "Published": table[f"published{ending}"].map(shown),
        "Measured": _with_interval(table, f"measured{ending}", shown),
    }
    if "p" in table:
        columns["p"] = table["p"].map(_p_value)
    if "difference" in table:
        columns["Difference"] = table["difference"].map(_signed)
    columns["Records"] = table["files"].map(_links)
    return _styled(pd.DataFrame(columns), table, head.lower() + "s")


def _names(metrics: pd.Series) -> pd.Series:
    return metrics.map(_name)


def _name(metric: str) -> str:
    return METRIC_NAMES.get(metric, "")


def _prefixed(prefix: str, texts: pd.Series) -> pd.Series:
    """Every text behind the prefix; an empty one stays empty."""
    return texts.map(lambda text: _prefixed_one(prefix, text))


def _prefixed_one(prefix: str, text: str) -> str:
    return f"{prefix}{text}" * bool(text)


def _interval(line: Any, shown: Callable[[float], str]) -> str:
    """From its low end to its high one; nothing where there is none."""
    return "" if math.isnan(line.low) else f"{shown(line.low)} to {shown(line.high)}"


def _share(claim: Any) -> str:
    """The measured effect as a share of the published one, where it goes the same way."""
    if claim.published_effect <= 0 or not claim.measured_effect > 0:
        return ""
    return f"{100 * claim.measured_effect / claim.published_effect:.0f} % of the published effect"


def rests_on(line: Any) -> str:
    """Preset, network and seeds that a verdict rests on, and what else is to be known of it."""
    known = (line.preset, line.stand_in, line.network, line.repeats, line.caution)
    return ", ".join(filter(None, known))


def show_claims_at_a_glance(table: pd.DataFrame) -> Styler:
    """The claims and their verdicts alone, for a page that holds no records to link to.

    Claims of several papers, put together with `pandas.concat(…, ignore_index=True)`, may share
    the table.
    """
    shown = {"Claim": _two_lines(table["text"], table["paper"]), "Verdict": _verdicts(table)}
    return _styled(pd.DataFrame(shown), table, "glance")


def show_times(table: pd.DataFrame) -> Styler:
    """`compare_times` as a page shows it, with both machines."""
    machines = "there: " + table["machine"]
    machines += _prefixed("; here: ", table["device"])
    shown = {
        "Step": _two_lines(table["what"], machines),
        "Verdict": _verdicts(table),
        "Published": table["published"].map(_seconds),
        "Measured": table["measured"].map(_seconds),
        "Ratio": table["ratio"].map(lambda ratio: "" if math.isnan(ratio) else f"{ratio:.3g}"),
        "Records": table["files"].map(_links),
    }
    return _styled(pd.DataFrame(shown), table, "times")


def show_findings(table: pd.DataFrame) -> str:
    """The headlines among the claims as a list in HTML, one sentence each, where there is evidence.

    Of which papers there is none yet, is said below.
    """
    headlines = table[table["headline"]]
    tried = headlines["verdict"].isin(["holds", "fails", "unclear"])
    lines = []
    for claim in headlines[tried].itertuples():
        verdict, _, said = html.escape(finding(claim)).partition(":")
        paper = html.escape(claim.paper)
        lines.append(f"<li><b>{verdict}:</b>{said} <small>{paper}</small></li>")
    if waiting := [html.escape(paper) for paper in dict.fromkeys(headlines[~tried]["paper"])]:
        lines.append(f"<li>The main claims of {', '.join(waiting)} are not measured yet.</li>")
    return f"<ul>{''.join(lines)}</ul>"


def show_goals(paper: Published, records: Iterable[Record]) -> Styler:
    """`judge_goals` as a page shows it: what was asked, and what every seed came to."""
    table = judge_goals(paper, records)
    asked, on = [], []
    for goal in paper.goals:
        least = "at most" if goal.is_limit else "at least"
        shown = f"{1000 * goal.value:g} ms" if goal.cores else f"{goal.value:g}"
        asked.append(f"{METRIC_NAMES.get(goal.measure, 'one image')}: {least} {shown}")
        cores = f"{goal.cores} CPU cores" if goal.cores else ""
        where = f"on the stand-in {paper.stand_in.title}" if goal.stand_in else ""
        said = (in_words(goal.variant), goal.preset, cores, *goal.part.values(), where)
        on.append(", ".join(filter(None, said)))
    measured = [
        "<br>".join(
            f"seed {seed}: {1000 * value:.1f} ms" if line.cores else f"seed {seed}: {value:.4f}"
            for seed, value in line.by_seed.items()
        )
        for line in table.itertuples()
    ]
    shown = {
        "Goal": _two_lines(pd.Series(asked, dtype=str), pd.Series(on, dtype=str)),
        "Verdict": _verdicts(table),
        "Measured": measured,
        "Records": table["files"].map(_links),
    }
    return _styled(pd.DataFrame(shown), table, "goals")


def show_training_times(table: pd.DataFrame) -> Styler:
    """`training_times` as a page shows it."""
    shown = {
        "Chapter": _two_lines(table["chapter"], table["preset"] + ", " + table["device"]),
        "Seed": table["seed"],
        "Networks": table["networks"],
        "Training": table["seconds"].map(_seconds),
    }
    return _listing(shown)


def show_prediction_times(table: pd.DataFrame) -> Styler:
    """`prediction_times` as a page shows it."""
    what = table["chapter"].str.cat(table[["preset", "device", "data"]], sep=", ")
    shown = {
        "Method": _two_lines(table["variant"].map(in_words), what),
        "Seeds": table["seeds"],
        "One image": table["seconds"].map(_seconds),
    }
    return _listing(shown)


def _listing(columns: Mapping[str, pd.Series]) -> Styler:
    """A table without verdicts as a page shows it."""
    table = Styler(pd.DataFrame(columns), cell_ids=False).hide(axis="index")
    return table.set_table_attributes('class="table dataframe"')


_TABLES = count()


def _styled(shown: pd.DataFrame, table: pd.DataFrame, name: str) -> Styler:
    """The words of the first column and of the verdict may wrap, all others stay on their lines."""
    tints = table["verdict"].map(
        lambda v: f"background-color: {VERDICT_TINTS[v]}; font-weight: 600"
    )
    first, *others = shown.columns.drop("Verdict")
    # the tints go by the table's name, so no two tables of a page may share one
    return (
        Styler(shown, uuid=f"{name}-{next(_TABLES)}", cell_ids=False)
        .hide(axis="index")
        .set_caption(f"Measured: {html.escape(sources(table))}")
        .apply(lambda column: tints, subset=["Verdict"])
        .set_properties(subset=[first], **{"text-align": "left", "min-width": "14em"})
        .set_properties(subset=["Verdict"], **{"text-align": "left", "min-width": "8em"})
        .set_properties(subset=others, **{"white-space": "nowrap"})
        # the theme lays out tables of the first class, and leaves those of the second their
        # transparent ground in dark mode
        .set_table_attributes('class="table dataframe"')
    )


def _two_lines(upper: pd.Series, lower: pd.Series) -> pd.Series:
    small = lower.map(html.escape).str.replace("\n", "<br>")
    return upper.map(html.escape) + "<br><small>" + small + "</small>"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    """With a sign and three digits, or with as many as it takes to see that it is not zero."""
    if math.isnan(value):
        return ""
    if abs(value) < 1e-5:
        return "0.000"
    digits = 3 if abs(value) >= 5e-4 else math.ceil(-math.log10(abs(value)))
    return f"{value:+.{digits}f}".replace("-", MINUS)


def _seconds(value: float) -> str:
    if math.isnan(value):
        return ""
    for unit, size, least in (("h", 3600, 7200), ("min", 60, 600), ("s", 1, 1)):
        if value >= least:
            return f"{value / size:.3g} {unit}"
    return f"{1000 * value:.3g} ms"


def _p_value(p: float) -> str:
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _with_interval(table: pd.DataFrame, name: str, shown: Callable[[float], str]) -> list[str]:
    """A number, under it its interval, and of a claim its share of the published effect."""
    texts = []
    for line in table.itertuples():
        value = getattr(line, name)
        under = [_interval(line, shown)]
        if "published_effect" in table:
            under.append(_share(line))
        small = "<br>".join(filter(None, under))
        texts.append("" if math.isnan(value) else f"{shown(value)}<br><small>{small}</small>")
    return texts


def _verdicts(table: pd.DataFrame) -> list[str]:
    """The verdict, under it what it rests on, or why there is none."""
    return [
        f"{line.verdict}<br><small>{html.escape(line.reason or rests_on(line))}</small>"
        for line in table.itertuples()
    ]


def _links(files: str) -> str:
    """Links to the scoreboard's `record_cards`, one line per variant, such as "lite s1 s2"."""
    lines: dict[str, str] = {}
    for file in filter(None, files.split(", ")):
        name = Path(file).stem
        variant, preset, seed = name.split("--")
        target = f"scoreboard.html#{_anchor(file)}"  # other chapters show these tables too
        title = html.escape(f"{in_words(variant)}, {preset}, seed {seed.removeprefix('s')}")
        link = f'<a href="{target}" aria-label="{title}" title="{title}">{seed}</a>'
        lines[variant] = f"{lines.get(variant, preset)} {link}"
    return "<br>".join(lines.values())


def _anchor(file: str) -> str:
    return "record-" + file.removesuffix(".json").replace("/", "-")


def record_cards(records: Iterable[Record], *tables: pd.DataFrame) -> str:
    """The records that the tables rest on as HTML, one closed fold each, links' targets inside.

    A browser opens a fold by itself when a link leads into it.
    """
    used = {file for table in tables for files in table["files"] for file in files.split(", ")}
    cards = [_card(record) for record in records if file_of(record) in used]
    return "\n".join(cards) or "<p>No record yet.</p>"


def _card(record: Record) -> str:
    training = record.data["training"]
    budget = {name: value for name, value in record.budget.items() if value is not None}
    file = file_of(record)
    entries = {
        "file": _in_repository(file, f"blob/{_repository()['branch']}/{file}"),
        "data": html.escape(describe(record)),
        "fingerprint": record.data["fingerprint"],
        "trained on": html.escape(f"{training['count']} images, {training['labels']}")
        if training
        else "nothing",
        **_origin(record.fit),
        "preset": record.preset,
        "seed": str(record.seed),
        "git commit": _commit(record.git_commit),
        "created": record.created,
        **{name.replace("_", " "): html.escape(_rounded(value)) for name, value in budget.items()},
        "versions": _listed({name: v for name, v in record.versions.items() if v}, " "),
        "parameters": _listed(record.parameters, " = "),
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{shown}</td></tr>" for name, shown in entries.items()
    )
    return (
        f"<details><summary>{html.escape(title_of(record))}</summary>"
        f'<table class="dataframe" id="{_anchor(file)}">{rows}</table></details>'
    )


def title_of(record: Record) -> str:
    """A record's name for a reader, such as "U-Net, lite, seed 1"."""
    return f"{in_words(record.variant)}, {record.preset}, seed {record.seed}"


def in_words(variant: str) -> str:
    """A variant by the name that it has in its paper's table, such as "U-Net, cut" for "u-net-cut".

    One of no paper is its own name, without hyphens.
    """
    rows = _rows_of_papers()
    known = [name for name in rows if f"{variant}-".startswith(f"{name}-")]
    if not known:
        return variant.replace("-", " ")
    longest = max(known, key=len)
    rest = variant.removeprefix(longest).replace("-", " ").strip()
    return rows[longest] + _prefixed_one(", ", rest)


@cache
def _rows_of_papers() -> Mapping[str, str]:
    return {score.variant: score.row for name in papers() for score in published(name).scores}


def _repository() -> Mapping[str, str]:
    """The repository's address and branch, which stand in the book's settings."""
    settings = (project_root() / "_config.yml").read_text(encoding="utf-8")
    return yaml.safe_load(settings)["repository"]


def _in_repository(text: str, place: str) -> str:
    return f'<a href="{_repository()["url"]}/{html.escape(place)}">{html.escape(text)}</a>'


def link_to_issues(text: str) -> str:
    """A link in HTML to where readers tell what is wrong or missing."""
    return _in_repository(text, "issues")


def _commit(commit: str | None) -> str:
    """What is said of a commit, or of several, with links to them."""
    return re.sub(
        "[0-9a-f]{40}",
        lambda one: _in_repository(one[0], f"commit/{one[0]}"),
        html.escape(commit or "none"),
    )


def _rounded(value: Any) -> str:
    """Three digits of a measured number are enough to read; counts and words stay whole."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return value if isinstance(value, str) else f"{value:,}"


def _listed(values: Mapping[str, Any], between: str) -> str:
    return html.escape(", ".join(f"{name}{between}{value}" for name, value in values.items()))


def _origin(fit: Mapping[str, Any] | None) -> dict[str, str]:
    """Where a record's network came from, as an entry of its card."""
    if fit is None:
        return {}
    said = f"trained at commit {_commit(fit['git_commit'])}"
    said += f", weights sha256 {fit['weights_sha256']}, code {fit['code']}"
    said += f", from {fit['started']} to {fit['ended']}"
    return {"network": said + ", taken although the code had changed" * fit["accepted_old_code"]}
