"""What the chapters' experiments share: settings by preset, and the way from a method to a record.

One module per chapter holds what only that chapter needs: its settings, how a network of it is
trained, and how an image becomes labels.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from nuctut import inference, records, training
from nuctut.files import replacing
from nuctut.postprocess import LabelRule
from nuctut.samples import Sample, SampleSet

Settings = TypeVar("Settings")
ClassMap = Callable[[Sample], np.ndarray]

# Settings that a fit knows nothing of: it is taken up again when they change.
AFTER_THE_FIT = ("threshold", "min_area")

# The modules beside this one, each named as the notebook of its chapter, without the number.
NAMES = ("labels_for_free", "four_architectures")
DESCRIPTION = "network.json"


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


def select(names: str, known: Iterable[str], parameter: str) -> list[str]:
    """Those of `known` that a text names, such as "simple-cnn,u-net"; "all" stands for all of them.

    Raises:
        ValueError: For an unknown name; the message says which parameter it was given for.
    """
    known = list(known)
    chosen = known if names == "all" else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise ValueError(f"{parameter} must be among {', '.join(known)}, not {name!r}.")
    return chosen


def fit_settings(settings: Any, seed: int, device: str) -> training.FitSettings:
    """The part of a chapter's settings that `training.fit` needs: the fields of the same name."""
    names = {f.name for f in fields(training.FitSettings)} & {f.name for f in fields(settings)}
    chosen = {name: getattr(settings, name) for name in names}
    return training.FitSettings(**chosen, seed=seed, device=device)


# --- fits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """What a fit's folder says of the network in it, so that anybody can build it again.

    Attributes:
        experiment: One of `NAMES`.
        variant, seed: Of the fit.
        settings: All fields of the experiment's `Settings`.
        pretrained: Whether the network started from published weights.
        data: Name, source, fingerprint and number of the images it learned from.
        code: Digest of the code that decided what the fit computes, see `code_digest`.
    """

    experiment: str
    variant: str
    seed: int
    settings: dict[str, Any]
    pretrained: bool
    data: dict[str, Any]
    code: str


def describe_fit(folder: Path) -> Description:
    """What a fit's folder says of its network.

    Raises:
        FileNotFoundError: When the folder holds no fit.
        ValueError: When its description is malformed, naming the file.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no fit of a chapter: there is no {DESCRIPTION}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made = Description(**content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not the description of a fit ({error}).") from error
    if made.experiment not in NAMES:
        known = ", ".join(NAMES)
        raise ValueError(f"{path}: experiment must be one of {known}, not {made.experiment!r}.")
    return made


class Trained(Protocol):
    """A fitted network of any chapter, ready to predict.

    Attributes:
        variant: Names it.
        model: The network, in evaluation mode.
        fit: How it came to be.
        settings: The chapter's settings; `scale` is that of the intensities and `precision` the
            arithmetic that it predicts with.
        channels: Of the images it takes, 1 or 3.
        rule: From its probabilities to labels; None for a network that gives nuclei.
    """

    variant: str
    model: nn.Module
    fit: training.FitResult
    settings: Any
    channels: int

    @property
    def rule(self) -> LabelRule | None: ...

    @property
    def parameters(self) -> dict[str, Any]:
        """Its settings, as a record keeps them."""

    def labels(self, image: np.ndarray) -> np.ndarray:
        """(H, W) int32 labels of an image of any size, (H, W) or (H, W, 3) as `channels` says."""


def load(folder: Path | str, device: str = "auto") -> Trained:
    """The network of a finished fit, from its folder alone.

    Args:
        folder: As `train` of a chapter's experiment leaves it.
        device: "auto" (a GPU where there is one), "cpu" or "gpu".

    Raises:
        FileNotFoundError, ValueError: When there is no such fit, it is not finished, or its
            checkpoint is not one of the network that it describes; the message names the file.
    """
    folder = Path(folder)
    made = describe_fit(folder)
    module = importlib.import_module(f"nuctut.experiments.{made.experiment}")
    try:
        settings = module.Settings(**{n: _as_tuples(v) for n, v in made.settings.items()})
        model = module.restored(made.variant, settings, made.pretrained)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION}: {made.experiment} has no such network now ({error})."
        ) from error
    try:
        fit = training.finished(model, folder)
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder}: its checkpoint cannot be read ({reason}).") from error
    if fit is None:
        raise ValueError(f"{folder} is not finished: run its chapter again, and it goes on.")
    return module.Trained(made.variant, ready(model, device), fit, settings)


def _as_tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(value, dict):
        return {name: _as_tuples(one) for name, one in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def ready(model: nn.Module, device: str = "auto") -> nn.Module:
    """A fitted network for prediction alone, where `training.FitSettings.device` says."""
    if device != "cpu" and torch.cuda.is_available():
        model.cuda()
    return inference.fold_normalisation(model)


def fit_or_take_up(
    model: nn.Module,
    loss: nn.Module | None,
    items: Callable[[SampleSet], Dataset],
    sets: tuple[SampleSet, SampleSet],
    folder: Path,
    how: training.FitSettings,
    description: Description,
    *,
    progress: bool = True,
) -> training.FitResult:
    """A fit that is finished, be it now or before; the best weights are in `model`.

    Args:
        model, loss, folder, how, progress: See `training.fit`.
        items: Makes what the network is fed from a split; called only where there is work to do.
        sets: What it learns from, and what chooses its checkpoint.
        description: Kept in the folder.
    """
    if (fit := training.finished(model, folder)) is not None:
        return fit
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / DESCRIPTION) as path:
        path.write_text(json.dumps(asdict(description), indent=1), encoding="utf-8")
    fed = [items(samples) for samples in sets]
    return training.fit(model, loss, *fed, folder, how, progress=progress)


def description(
    module: str,
    variant: str,
    seed: int,
    settings: Any,
    samples: SampleSet,
    code: str,
    pretrained: bool = False,
) -> Description:
    """What a fit's folder is to say of its network.

    Args:
        module: `__name__` of the experiment's module.
        variant, seed, settings, code, pretrained: See `Description`.
        samples: What the network learns from.
    """
    about = ("name", "source", "fingerprint")
    return Description(
        experiment=module.rpartition(".")[2],
        variant=variant,
        seed=seed,
        settings=asdict(settings),
        pretrained=pretrained,
        data={name: getattr(samples, name) for name in about} | {"images": len(samples)},
        code=code,
    )


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
    digest.update(code_digest(code).encode())
    return digest.hexdigest()[:16]


def code_digest(code: Iterable[str]) -> str:
    """Sixteen hex digits that change with what modules of the package, by name, compute."""
    digest = hashlib.sha256()
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
