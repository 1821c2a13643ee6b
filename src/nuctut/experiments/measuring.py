"""From a method to a record: every image of a test set, its scores, and where they come from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from nuctut import records
from nuctut.experiments.fitting import Trained, accepts_old_fits, current_code
from nuctut.samples import Sample, SampleSet


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


def measure_network(
    trained: Trained,
    samples: SampleSet,
    *,
    variant: str = "",
    after: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: bool = True,
) -> Measured:
    """A network on a set of samples: every score sees its labels.

    Args:
        trained: The network.
        samples: What to measure on.
        variant: Names the measurement; by default as the network.
        after: What is done to the network's labels, such as `postprocess.divide`.
        progress: Show a progress bar.
    """

    def segment(sample: Sample) -> Segmented:
        start = time.perf_counter()
        labels = trained.labels(sample.image)
        labels = labels if after is None else after(labels)
        return Segmented(labels, {"seconds_per_image": time.perf_counter() - start}, {})

    return measure(variant or trained.variant, segment, samples, progress=progress)


def record(
    chapter: str,
    measured: Measured,
    *,
    preset: str,
    seed: int,
    trained: Trained | None = None,
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

    Raises:
        ValueError: When it would be evidence of a network that other code than today's fitted, and
            such fits were not asked for (`ACCEPT`).
    """
    budget: dict[str, Any] = {"updates": 0, "images_seen": 0, "seconds": 0.0, "precision": "none"}
    made = records.Record.of_run(
        chapter=chapter,
        variant=measured.variant,
        preset=preset,
        seed=seed,
        data=records.describe_data(measured.test_set, train_set, labels),
        images=measured.rows,
        budget=(trained.fit.budget if trained else budget) | measured.seconds,
        parameters=trained.parameters if trained else {},
        fit=_provenance(trained) if trained else None,
    )
    if made.is_evidence and made.fit and made.fit["accepted_old_code"] and not accepts_old_fits():
        raise ValueError(
            f"{trained.fit.best.parent} was fitted by other code than today's, so what is measured "
            "of it is no evidence of today's: delete the folder and run the chapter again, or say "
            "--accept-old-fit, which the record will then tell."
        )
    records.write(made, folder)
    return made


def _provenance(trained: Trained) -> dict[str, Any]:
    """Where a network's weights come from, as a record keeps it."""
    code = current_code(trained.experiment, trained.variant)
    return trained.fit.provenance | {"accepted_old_code": trained.fit.code != code}
