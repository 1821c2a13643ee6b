"""One variant of a chapter, from samples to a record: train or reuse, predict, score."""

from __future__ import annotations

import ast
import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from . import classical, inference, postprocess, records, targets, training
from .losses import LogDiceLoss
from .models.unet import ReducedUNet
from .samples import Sample, SampleSet

ClassMap = Callable[[Sample], np.ndarray]
CODE_OF_A_FIT = ("classical", "targets", "losses", "training", "models/unet")


@dataclass(frozen=True)
class Settings:
    """What a preset fixes: the data's share, the network, and how it is fitted.

    Attributes:
        data: Source asked for: "auto", "real" or "simulated".
        images: Most images per split; None takes all.
        crop: Side of random crops in pixels; None takes the paper's corner tiles of 512.
        scale: Intensity scale, "linear" or "log".
        gain: Half-width of the random factor on the intensities of crops.
        channels, last_channels, dropout, normalise: Of `models.unet.ReducedUNet`.
        cross_entropy: Weight of a cross-entropy added to the log-Dice loss.
        min_area: Predicted nuclei with fewer pixels than this, separations cut out, are dropped.
        epochs … devices: Of `training.FitSettings`.
    """

    data: str
    images: int | None
    crop: int | None
    scale: str
    gain: float
    channels: tuple[int, ...]
    last_channels: int
    dropout: tuple[float, ...]
    normalise: bool
    cross_entropy: float
    min_area: int
    epochs: int
    updates: int | None
    batch_size: int
    learning_rate: float
    schedule: str
    l2: float
    precision: str
    patience: int | None
    devices: int = 1

    def fit_settings(self, seed: int, device: str) -> training.FitSettings:
        """The part that `training.fit` needs."""
        names = {f.name for f in fields(training.FitSettings)} & {f.name for f in fields(self)}
        chosen = {name: getattr(self, name) for name in names}
        return training.FitSettings(**chosen, seed=seed, device=device)


def presets(**values: Sequence[Any]) -> dict[str, Settings]:
    """The presets smoke, lite and paper from one row of three values per field of `Settings`."""
    columns = zip(records.PRESETS, zip(*values.values(), strict=True), strict=True)
    return {name: Settings(**dict(zip(values, row, strict=True))) for name, row in columns}


def choose(presets: Mapping[str, Settings], preset: str, **overrides: Any) -> Settings:
    """A preset with single values changed; overrides that are None change nothing.

    Raises:
        ValueError: When the preset is unknown.
    """
    if preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, not {preset!r}.")
    changed = {name: value for name, value in overrides.items() if value is not None}
    return replace(presets[preset], **changed)


@dataclass(frozen=True)
class Trained:
    """A fitted network, ready to predict, and how it came to be."""

    variant: str
    model: ReducedUNet
    fit: training.FitResult
    settings: Settings
    seed: int

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(3, H, W) float32 probabilities of an (H, W) image."""
        normalise = functools.partial(targets.standardise, scale=self.settings.scale)
        precision = self.settings.precision
        return inference.predict(self.model, image, normalise=normalise, precision=precision)


def train(
    variant: str,
    classes_of: ClassMap,
    train_set: SampleSet,
    validation_set: SampleSet,
    settings: Settings,
    *,
    seed: int = 0,
    device: str = "auto",
    runs: Path,
    progress: bool = True,
) -> Trained:
    """Fit one network, or take up the fit of the same name, settings, data and code.

    Args:
        variant: Names the fit, and stands for `classes_of` in the key of its folder.
        classes_of: Gives the (H, W) uint8 class map that a sample teaches.
        train_set, validation_set: Both are labelled by `classes_of`.
        settings, seed, device: See `Settings` and `training.FitSettings`.
        runs: Folder that holds the fits, one folder each.
        progress: Show progress bars.
    """
    fit_settings = settings.fit_settings(seed, device)
    key = _key(variant, train_set, validation_set, settings, fit_settings)
    folder = runs / f"{variant}--s{seed}--{key}"
    torch.manual_seed(seed)
    model = ReducedUNet(
        channels=settings.channels,
        last_channels=settings.last_channels,
        dropout=settings.dropout,
        normalise=settings.normalise,
    )
    if (fit := training.finished(model, folder)) is None:
        loss = LogDiceLoss(cross_entropy=settings.cross_entropy)
        items = [
            _items(samples, classes_of, settings, seed, progress)
            for samples in (train_set, validation_set)
        ]
        fit = training.fit(model, loss, *items, folder, fit_settings, progress=progress)
    if fit_settings.device != "cpu" and torch.cuda.is_available():
        model.cuda()
    return Trained(variant, inference.fold_normalisation(model), fit, settings, seed)


@dataclass(frozen=True)
class Measured:
    """What a method made of a test set.

    Attributes:
        variant: Names the method.
        test_set: What it was measured on.
        rows: Counts of every image, see `records.image_row`.
        seconds: Mean seconds by step: `seconds_per_image` from pixels to labels; of a network also
            `seconds_per_postprocessing`, the share of an image's time after the network, and
            `seconds_per_tile`, the network on 512x512 pixels.
    """

    variant: str
    test_set: SampleSet
    rows: list[records.Row]
    seconds: dict[str, float]

    @property
    def scores(self) -> dict[str, float]:
        """Every score, pooled over the images."""
        return records.scores(self.rows)


def measure_network(trained: Trained, test_set: SampleSet, *, progress: bool = True) -> Measured:
    """A network on a test set, post-processed as the paper does.

    Overlap scores see the nuclei with the pixels under the separation lines given back; the
    object-wise Jaccard index sees them with the lines cut out, as the paper's does.
    """

    def segment(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
        start = time.perf_counter()
        probabilities = trained.probabilities(sample.image)
        middle = time.perf_counter()
        classes = probabilities.argmax(0)
        cut = postprocess.from_classes(classes, trained.settings.min_area)
        whole = postprocess.give_back(cut, classes != targets.BACKGROUND)
        end = time.perf_counter()
        tile = sample.image[:512, :512]
        trained.probabilities(tile)
        seconds = {
            "seconds_per_image": end - start,
            "seconds_per_postprocessing": end - middle,
            "seconds_per_tile": time.perf_counter() - end,
        }
        return classes, cut, whole, seconds

    return _measure(segment, test_set, trained.variant, progress)


def measure_classical(
    configuration: str, test_set: SampleSet, *, progress: bool = True
) -> Measured:
    """A classical configuration on a test set; nuclei at the image's edge are kept.

    Table 2 of the paper gives object-wise Jaccard indices "after post-processing" for these too,
    so theirs is that of the same post-processing; all other scores see the labels as they are.
    """

    def segment(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
        start = time.perf_counter()
        labels = classical.segment(sample.image, configuration, drop_border=False)
        seconds = {"seconds_per_image": time.perf_counter() - start}
        classes = targets.three_classes(labels)
        return classes, postprocess.from_classes(classes), labels, seconds

    variant = f"classical-{configuration.replace('/', '-')}"
    return _measure(segment, test_set, variant, progress)


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
    """
    budget: dict[str, Any] = {"updates": 0, "images_seen": 0, "seconds": 0.0, "precision": "none"}
    parameters: dict[str, Any] = {}
    if trained is not None:
        names = ("updates", "images_seen", "seconds", "device", "precision", "peak_memory_gb")
        budget = {name: getattr(trained.fit, name) for name in names}
        parameters = asdict(trained.settings)
    made = records.Record.of_run(
        chapter=chapter,
        variant=measured.variant,
        preset=preset,
        seed=seed,
        data=records.describe_data(measured.test_set, train_set, labels),
        images=measured.rows,
        budget=budget | measured.seconds,
        parameters=parameters,
    )
    records.write(made, folder)
    return made


def _measure(
    segment: Callable[[Sample], tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]],
    test_set: SampleSet,
    variant: str,
    progress: bool,
) -> Measured:
    rows, timings = [], []
    for sample in tqdm(test_set, f"{variant} on {test_set.describe()}", disable=not progress):
        classes, cut, whole, seconds = segment(sample)
        truth = targets.three_classes(sample.labels)
        row = records.image_row(
            sample.key,
            sample.labels,
            whole,
            object_pred=cut,
            nuclei_true=truth == targets.NUCLEUS,
            nuclei_pred=classes == targets.NUCLEUS,
            separations_true=truth == targets.SEPARATION,
            separations_pred=classes == targets.SEPARATION,
            seconds=seconds["seconds_per_image"],
        )
        rows.append(row)
        timings.append(seconds)
    means = {name: float(np.mean([one[name] for one in timings])) for name in timings[0]}
    return Measured(variant, test_set, rows, means)


def _items(
    samples: SampleSet, classes_of: ClassMap, settings: Settings, seed: int, progress: bool
) -> training.CornerTiles | training.RandomCrops:
    bar = tqdm(samples, f"labels for {samples.describe()}", disable=not progress)
    classes = [classes_of(sample) for sample in bar]
    images = [sample.image for sample in samples]
    common = (images, classes, samples.keys)
    if settings.crop is None:
        return training.CornerTiles(*common, scale=settings.scale)
    if samples.split == "training":
        size, gain = settings.crop, settings.gain
        return training.RandomCrops(*common, size=size, scale=settings.scale, seed=seed, gain=gain)
    # Validation sees the same large crop of every image at every epoch, whatever the seed.
    size = min(512, *(16 * (length // 16) for image in images for length in image.shape))
    return training.RandomCrops(*common, size=size, scale=settings.scale)


def _key(*parts: Any) -> str:
    """Sixteen hex digits that change with the settings, the data and the code of a fit."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(getattr(part, "fingerprint", repr(part)).encode() + b"\0")
    for name in CODE_OF_A_FIT:
        source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
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
