"""What the chapters' experiments share: settings by preset, and the way from a method to a record.

One module per chapter holds what only that chapter needs: its settings, how a network of it is
trained, and how an image becomes labels.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from nuctut import records, training
from nuctut.samples import Sample, SampleSet

Settings = TypeVar("Settings")
ClassMap = Callable[[Sample], np.ndarray]

# Settings that a fit knows nothing of: it is taken up again when they change.
AFTER_THE_FIT = ("threshold", "min_area")


# --- settings ------------------------------------------------------------------------------------


def presets(kind: type[Settings], **values: Sequence[Any]) -> dict[str, Settings]:
    """The presets smoke, lite and paper from one row of three values per field of `kind`."""
    columns = zip(records.PRESETS, zip(*values.values(), strict=True), strict=True)
    return {name: kind(**dict(zip(values, row, strict=True))) for name, row in columns}


def choose(presets: Mapping[str, Settings], preset: str, **overrides: Any) -> Settings:
    """A preset with single values changed; overrides that are None change nothing.

    Raises:
        ValueError: When the preset is unknown.
    """
    if preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, not {preset!r}.")
    changed = {name: value for name, value in overrides.items() if value is not None}
    return replace(presets[preset], **changed)


def fit_settings(settings: Any, seed: int, device: str) -> training.FitSettings:
    """The part of a chapter's settings that `training.fit` needs: the fields of the same name."""
    names = {f.name for f in fields(training.FitSettings)} & {f.name for f in fields(settings)}
    chosen = {name: getattr(settings, name) for name in names}
    return training.FitSettings(**chosen, seed=seed, device=device)


def fit_key(*parts: Any, code: Iterable[str]) -> str:
    """Sixteen hex digits that change with the settings, the data and the code of a fit.

    Args:
        parts: Sample sets, which stand for their fingerprints, and anything with a stable `repr`.
            Of a chapter's settings, those that act after the fit (`AFTER_THE_FIT`) do not count.
        code: Modules of the package that decide what a fit computes, such as "models/unet".
    """
    digest = hashlib.sha256()
    for part in parts:
        if is_dataclass(part):
            part = {f.name: getattr(part, f.name) for f in fields(part)}
            part = {name: value for name, value in part.items() if name not in AFTER_THE_FIT}
        digest.update(getattr(part, "fingerprint", repr(part)).encode() + b"\0")
    for name in code:
        source = (Path(training.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        digest.update(_meaning(source).encode())
    return digest.hexdigest()[:16]


def _meaning(source: str) -> str:
    """Python source as its syntax tree, without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant):
                body[0] = ast.Pass()
    return ast.dump(tree)


# --- what a network is fed -----------------------------------------------------------------------


def random_crops(
    samples: SampleSet,
    classes_of: ClassMap,
    *,
    size: int,
    scale: str = "linear",
    jitter: training.Jitter = training.NO_JITTER,
    seed: int = 0,
    progress: bool = True,
) -> Dataset:
    """Crops of a split: random ones to learn from, the same large one of every image to validate.

    Args:
        samples: A split; "training" is the one that is learned from.
        classes_of: Gives the (H, W) uint8 class map that a sample teaches.
        size, scale, jitter, seed: Of `training.RandomCrops`; validation ignores all but the scale.
        progress: Show a progress bar.
    """
    bar = tqdm(samples, f"labels for {samples.describe()}", disable=not progress)
    classes = [classes_of(sample) for sample in bar]
    images = [sample.image for sample in samples]
    common = (images, classes, samples.keys)
    if samples.split == "training":
        return training.RandomCrops(*common, size=size, scale=scale, seed=seed, jitter=jitter)
    # The same large crop of every image at every epoch, whatever the seed.
    size = min(512, *(16 * (length // 16) for one in classes for length in one.shape))
    return training.RandomCrops(*common, size=size, scale=scale)


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segmented:
    """What a method made of one image.

    Attributes:
        labels: (H, W) int32; every score sees these, but for what follows.
        seconds: By step: `seconds_per_image` from pixels to labels, and others.
        row: What else `records.image_row` is told.
    """

    labels: np.ndarray
    seconds: Mapping[str, float]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a method made of a test set.

    Attributes:
        variant: Names the method.
        test_set: What it was measured on.
        rows: Counts of every image, see `records.image_row`.
        seconds: Mean seconds by step, the steps being those of `Segmented`.
    """

    variant: str
    test_set: SampleSet
    rows: list[records.Row]
    seconds: dict[str, float]

    @property
    def scores(self) -> dict[str, float]:
        """Every score, pooled over the images."""
        return records.scores(self.rows)


def measure(
    variant: str,
    segment: Callable[[Sample], Segmented],
    test_set: SampleSet,
    *,
    progress: bool = True,
) -> Measured:
    """A method on a test set, image by image."""
    rows, timings = [], []
    for sample in tqdm(test_set, f"{variant} on {test_set.describe()}", disable=not progress):
        made = segment(sample)
        seconds = made.seconds["seconds_per_image"]
        row = records.image_row(
            sample.key, sample.labels, made.labels, seconds=seconds, tags=sample.tags, **made.row
        )
        rows.append(row)
        timings.append(made.seconds)
    means = {name: float(np.mean([one[name] for one in timings])) for name in timings[0]}
    return Measured(variant, test_set, rows, means)


class Fitted(Protocol):
    """What a record wants to know of a trained network."""

    fit: training.FitResult

    @property
    def parameters(self) -> dict[str, Any]:
        """Its settings, as a record keeps them."""


def record(
    chapter: str,
    measured: Measured,
    *,
    preset: str,
    seed: int,
    trained: Fitted | None = None,
    train_set: SampleSet | None = None,
    labels: str = "ground truth",
    folder: Path | None = None,
) -> records.Record:
    """The record of a measured variant, written.

    Args:
        chapter: Name of the chapter's notebook, without its ending.
        measured: What was measured.
        preset, seed: Of the run.
        trained, train_set, labels: Of a network: itself, what it learned from, and where the
            labels of that came from.
        folder: Where to; by default where records of its kind belong.
    """
    budget: dict[str, Any] = {"updates": 0, "images_seen": 0, "seconds": 0.0, "precision": "none"}
    if trained is not None:
        budget = vars(trained.fit).copy()
        del budget["best"], budget["history"]
    made = records.Record.of_run(
        chapter=chapter,
        variant=measured.variant,
        preset=preset,
        seed=seed,
        data=records.describe_data(measured.test_set, train_set, labels),
        images=measured.rows,
        budget=budget | measured.seconds,
        parameters=trained.parameters if trained else {},
    )
    records.write(made, folder)
    return made
