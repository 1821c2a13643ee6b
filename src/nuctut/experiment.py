"""One variant of a chapter, from samples to a record: train or reuse, predict, score."""

from __future__ import annotations

import ast
import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from . import inference, postprocess, records, targets, training
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
        epochs … patience: Of `training.FitSettings`.
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

    def fit_settings(self, seed: int, device: str) -> training.FitSettings:
        """The part that `training.fit` needs."""
        names = {f.name for f in fields(training.FitSettings)} & {f.name for f in fields(self)}
        chosen = {name: getattr(self, name) for name in names}
        return training.FitSettings(**chosen, seed=seed, device=device)


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
    """A fitted network and how it came to be."""

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
    return Trained(variant, model, fit, settings, seed)


def measure_network(
    trained: Trained, test_set: SampleSet, *, progress: bool = True
) -> list[records.Row]:
    """Counts of every test image under a network, post-processed as the paper does.

    Overlap scores see the nuclei with the pixels under the separation lines given back; the
    object-wise Jaccard index sees them with the lines cut out, as the paper's does. Seconds are
    those from pixels to labels.
    """

    def segment(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        classes = trained.probabilities(sample.image).argmax(0)
        cut = postprocess.from_classes(classes, trained.settings.min_area)
        return classes, cut, postprocess.give_back(cut, classes != targets.BACKGROUND)

    return _measure(segment, test_set, trained.variant, progress)


def measure_classical(
    segment: Callable[[np.ndarray], np.ndarray], test_set: SampleSet, name: str, *, progress=True
) -> list[records.Row]:
    """Counts of every test image under a method without learning, image → labels."""

    def one(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = segment(sample.image)
        return targets.three_classes(labels), labels, labels

    return _measure(one, test_set, name, progress)


def record(
    chapter: str,
    variant: str,
    rows: list[records.Row],
    test_set: SampleSet,
    *,
    preset: str,
    seed: int,
    trained: Trained | None = None,
    train_set: SampleSet | None = None,
    labels: str = "ground truth",
) -> records.Record:
    """The record of a measured variant, written where records of its kind belong."""
    budget: dict[str, Any] = {"updates": 0, "images_seen": 0, "seconds": 0.0, "precision": "none"}
    parameters: dict[str, Any] = {}
    if trained is not None:
        names = ("updates", "images_seen", "seconds", "device", "precision", "peak_memory_gb")
        budget = {name: getattr(trained.fit, name) for name in names}
        parameters = asdict(trained.settings)
    made = records.Record.of_run(
        chapter=chapter,
        variant=variant,
        preset=preset,
        seed=seed,
        data=records.describe_data(test_set, train_set, labels),
        images=rows,
        budget=budget,
        parameters=parameters,
    )
    records.write(made)
    return made


def _measure(
    segment: Callable[[Sample], tuple[np.ndarray, np.ndarray, np.ndarray]],
    test_set: SampleSet,
    name: str,
    progress: bool,
) -> list[records.Row]:
    rows = []
    for sample in tqdm(test_set, f"{name} on {test_set.describe()}", disable=not progress):
        start = time.perf_counter()
        classes, cut, whole = segment(sample)
        seconds = time.perf_counter() - start
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
            seconds=seconds,
        )
        rows.append(row)
    return rows


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
