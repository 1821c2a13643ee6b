"""One way to a fitted network for all chapters: fitted, or taken up again, or loaded."""

from __future__ import annotations

import ast
import functools
import glob
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from nuctut import detection, fits, inference, postprocess, targets, training
from nuctut.experiments.settings import AFTER_THE_FIT, Settings, fit_settings
from nuctut.files import Malformed, own, sentence, write_json
from nuctut.rescaling import LARGEST, segment_rescaled
from nuctut.samples import Sample, SampleSet

ClassMap = Callable[[Sample], np.ndarray]

# The modules beside this one, each named as the notebook of its chapter, without the number.
NAMES = (
    "labels_for_free",
    "four_architectures",
    "many_tissues",
    "partial_labels",
    "through_blur",
    "one_recipe",
)
ACCEPT = "NUCTUT_ACCEPT_OLD_FIT"
CODE_DIGITS = 6  # at the end of a fit's key


class Experiment(Protocol):
    """A module beside this one: what a chapter does in its own way.

    Attributes:
        CHANNELS: Of the images that its networks take, 1 or 3.
        Settings: What its presets fix.

    One whose variants learn from nuclei of one size says of which, see `Trained.diameter`, by a
    function `diameter(variant)`.
    """

    __name__: str
    CHANNELS: int
    Settings: type[Settings]

    def code(self, variant: str) -> tuple[str, ...]:
        """Modules of the package that decide what the fit of a variant computes."""

    def network(self, variant: str, settings: Settings, had: bool | None = None) -> nn.Module:
        """The network of a variant, as its training starts.

        With `had`, without published weights: it had them at its start, or not, and the caller
        loads others.

        Raises:
            ValueError: For an unknown variant.
        """

    def describe(self, model: nn.Module) -> str:
        """A network in words: its family, its size, and what its weights started from."""

    def loss(self, variant: str, settings: Settings) -> nn.Module | None:
        """What it is fitted by; None where the network has a loss of its own."""

    def items(
        self, variant: str, samples: SampleSet, settings: Settings, teach: ClassMap | None, **how
    ) -> Dataset:
        """What it is fed from a split, with `seed` and `progress`; see `train` for `teach`."""

    def rule(self, variant: str, settings: Settings) -> postprocess.LabelRule | None:
        """From its probabilities to labels; None for a network that gives nuclei."""


@dataclass(frozen=True)
class Trained:
    """A fitted network of any chapter, ready to predict, and how it came to be.

    Attributes:
        experiment: The module of its chapter.
        variant: Names it.
        model: The network, in evaluation mode.
        fit: How it came to be.
        settings: Of its chapter.
        seed: Of the fit.
        learned_from: In words, such as "bbbc039 training (real, 100 images)".
    """

    experiment: Experiment
    variant: str
    model: nn.Module
    fit: fits.FitResult
    settings: Settings
    seed: int = 0
    learned_from: str = ""

    @property
    def channels(self) -> int:
        """Of the images it takes, 1 or 3."""
        return self.experiment.CHANNELS

    @property
    def rule(self) -> postprocess.LabelRule | None:
        """From its probabilities to labels; None for a network that gives nuclei."""
        return self.experiment.rule(self.variant, self.settings)

    @property
    def name(self) -> str:
        """What was really trained, such as "Mask R-CNN, ResNet-18, from scratch"."""
        return self.experiment.describe(self.model)

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings and the network's name, as a record keeps them."""
        return asdict(self.settings) | {"network": self.name}

    @property
    def diameter(self) -> float | None:
        """Mean of the nuclei that it knows, in pixels; None where they were not of one size."""
        return diameter_of(self.experiment, self.variant)

    def factor(self, diameter: float) -> float:
        """By which an image is to be enlarged whose nuclei have this mean diameter, in pixels.

        Raises:
            ValueError: When the factor is not from 1/8 to 8 (`rescaling.LARGEST`), or the network
                does not know nuclei of one size.
        """
        if self.diameter is None:
            raise ValueError(
                f"{self.variant} did not learn from nuclei of one size, so that a diameter tells "
                "nothing: leave it out."
            )
        least, most = self.diameter / LARGEST, self.diameter * LARGEST
        if not least <= diameter <= most:
            raise ValueError(
                f"diameter must be that of nuclei in pixels, from {least:g} to {most:g}, not "
                f"{diameter}."
            )
        return self.diameter / diameter

    def __call__(self, image: np.ndarray, diameter: float | None = None) -> np.ndarray:
        """(H, W) int32 labels of an image, grey (H, W) or coloured (H, W, 3), any real dtype.

        Args:
            image: As said.
            diameter: Of its nuclei, in pixels, on which a network that knows nuclei of one size
                is shown the image rescaled; None leaves the image as it is.

        Raises:
            ValueError: See `factor`.
        """
        pixels = self.channelled(image)
        if diameter is None:
            return self.labels(pixels)
        return segment_rescaled(self.labels, pixels, self.factor(diameter))

    def channelled(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels with the channels that it takes: grey thrice, or the mean of colours, float32."""
        if self.channels == 1 and pixels.ndim == 3:
            return pixels.mean(-1, dtype=np.float64).astype(np.float32)
        if self.channels == 3 and pixels.ndim == 2:
            return np.repeat(pixels[..., None], 3, -1)
        return pixels

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(C, H, W) float32 probabilities of an image of any size; not of one that gives nuclei.

        Args:
            image: (H, W) or (H, W, 3), as `channels` says, any real dtype.
        """
        normalise = functools.partial(targets.standardise, scale=self.settings.scale)
        precision = self.settings.precision
        return inference.predict(self.model, image, normalise=normalise, precision=precision)

    def labels(self, image: np.ndarray) -> np.ndarray:
        """(H, W) int32 labels of an image of any size, (H, W) or (H, W, 3) as `channels` says."""
        if self.rule is not None:
            return self.rule.labels(self.probabilities(image))
        how = {"min_score": self.settings.threshold, "min_area": self.settings.min_area}
        return detection.segment(self.model, image, **how)


# --- fitting -------------------------------------------------------------------------------------


def train(
    experiment: Experiment,
    variant: str,
    sets: tuple[SampleSet, SampleSet],
    settings: Settings,
    *,
    teach: ClassMap | None = None,
    seed: int = 0,
    device: str = "auto",
    runs: Path,
    progress: bool = True,
) -> Trained:
    """Fit a network, or take up the fit of the same name, settings, data and code.

    Args:
        experiment: The module of its chapter.
        variant: Names the fit, and stands for `teach` in the key of its folder.
        sets: What it learns from, and what chooses its checkpoint.
        settings, seed, device: See `Settings` and `training.FitSettings`.
        teach: Gives the (H, W) uint8 class map that a sample teaches; None leaves that to the
            chapter's module.
        runs: Folder that holds the fits, one folder each.
        progress: Show progress bars.

    Raises:
        ValueError: For an unknown variant.
        Malformed: When a file of the fit is damaged; the message names it.
    """
    how = fit_settings(settings, seed, device)
    torch.manual_seed(seed)
    model = experiment.network(variant, settings)
    pretrained = getattr(model, "pretrained", False)
    parts = (variant, *sets, settings, how, pretrained)
    name = f"{variant}--s{seed}--{fit_key(*parts, code=experiment.code(variant))}"
    folder = _older(own(runs), name) or runs / name
    fit = fits.finished(model, folder)
    if fit is None:
        write_json(own(folder) / fits.DESCRIPTION, _described(experiment, parts, seed))
        feed = functools.partial(experiment.items, variant, settings=settings, teach=teach)
        fed = [feed(samples, seed=seed, progress=progress) for samples in sets]
        options = {"code": current_code(experiment, variant), "progress": progress}
        loss = experiment.loss(variant, settings)
        fit = training.fit(model, loss, *fed, folder, how, **options)
    learned_from = sets[0].describe()
    return Trained(experiment, variant, ready(model, device), fit, settings, seed, learned_from)


def accepts_old_fits() -> bool:
    """Whether `nuctut run --accept-old-fit` was asked for: finished fits of other code are good."""
    return bool(os.environ.get(ACCEPT))


def _older(runs: Path, name: str) -> Path | None:
    """Of a fit that is not finished: the last one that is and differs by its code alone.

    None unless such fits are accepted.
    """
    if not accepts_old_fits() or (runs / name / fits.DONE).exists():
        return None
    alike = runs.glob(f"{glob.escape(name[:-CODE_DIGITS])}{'?' * CODE_DIGITS}/{fits.DONE}")
    folders = [path.parent for path in alike]
    return max(folders, key=lambda folder: fits.read_summary(folder).ended, default=None)


def _described(experiment: Experiment, parts: tuple, seed: int) -> fits.Description:
    variant, samples, _, settings, _, pretrained = parts
    about = ("name", "source", "fingerprint")
    return fits.Description(
        experiment=experiment.__name__.rpartition(".")[2],
        variant=variant,
        seed=seed,
        settings=asdict(settings),
        pretrained=pretrained,
        data={name: getattr(samples, name) for name in about} | {"images": len(samples)},
        code=current_code(experiment, variant),
    )


def ready(model: nn.Module, device: str = "auto") -> nn.Module:
    """A fitted network for prediction alone, where `training.FitSettings.device` says.

    One that was fitted on patches comes as it takes whole images, which its method `dense` tells.
    """
    model = model.dense() if hasattr(model, "dense") else model
    if device != "cpu" and torch.cuda.is_available():
        model.cuda()
    return inference.fold_normalisation(model)


def load(folder: Path | str, device: str = "auto") -> Trained:
    """The network of a finished fit, from its folder alone.

    Args:
        folder: As `train` leaves it.
        device: "auto" (a GPU where there is one), "cpu" or "gpu".

    Raises:
        FileNotFoundError, ValueError: When there is no such fit, it is not finished, or a file of
            it is damaged or not what it should be; the message names the file.
    """
    folder = Path(folder)
    made = fits.read_description(folder)
    experiment = experiment_of(made, folder)
    try:
        settings = experiment.Settings(**{n: _as_tuples(v) for n, v in made.settings.items()})
        model = experiment.network(made.variant, settings, had=made.pretrained)
    except (TypeError, ValueError, KeyError) as error:
        told = isinstance(error, ValidationError)
        reason = sentence(error, made.settings) if told else f"{error}."
        raise Malformed(
            f"{folder / fits.DESCRIPTION}: {made.experiment} has no such network now: {reason}"
        ) from error
    fit = fits.finished(model, folder)
    if fit is None:
        raise ValueError(f"{folder} is not finished: run its chapter again, and it goes on.")
    learned_from = "{name} training ({source}, {images} images)".format(**made.data)
    how = {"seed": made.seed, "learned_from": learned_from}
    return Trained(experiment, made.variant, ready(model, device), fit, settings, **how)


def experiment_of(made: fits.Description, folder: Path) -> Experiment:
    """The module of the chapter that a fit in a folder is of.

    Raises:
        Malformed: When there is none of that name.
    """
    if made.experiment not in NAMES:
        raise Malformed(
            f"{folder / fits.DESCRIPTION}: experiment must be one of {', '.join(NAMES)}, "
            f"not {made.experiment!r}."
        )
    return importlib.import_module(f"nuctut.experiments.{made.experiment}")


def diameter_of(experiment: Experiment, variant: str) -> float | None:
    """See `Trained.diameter`."""
    of = getattr(experiment, "diameter", None)
    return of(variant) if of else None


def _as_tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(value, dict):
        return {name: _as_tuples(one) for name, one in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


# --- the key of a fit ----------------------------------------------------------------------------


def fit_key(*parts: Any, code: Iterable[str]) -> str:
    """Sixteen hex digits that change with the settings, the data and the code of a fit.

    The last `CODE_DIGITS` of them are of the code.

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
    return digest.hexdigest()[: 16 - CODE_DIGITS] + code_digest(code)[:CODE_DIGITS]


def current_code(experiment: Experiment, variant: str) -> str:
    """Digest of the code that a fit of a variant depends on, as it stands now."""
    return code_digest(experiment.code(variant))


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
    shares: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Dataset:
    """Crops of a split: random ones to learn from, the same large one of every image to validate.

    Args:
        samples: A split; "training" is the one that is learned from.
        classes_of: Gives the (H, W) uint8 class map that a sample teaches.
        size, scale, jitter, shares, seed: Of `training.RandomCrops`; validation ignores all but
            the scale.
        progress: Show a progress bar.
    """
    bar = tqdm(samples, f"labels for {samples.describe()}", disable=not progress)
    classes = [classes_of(sample) for sample in bar]
    images = [sample.image for sample in samples]
    common = (images, classes, samples.keys)
    if samples.split == "training":
        how = {"size": size, "scale": scale, "seed": seed, "jitter": jitter, "shares": shares}
        return training.RandomCrops(*common, **how)
    # The same large crop of every image at every epoch, whatever the seed.
    size = min(512, *(16 * (length // 16) for one in classes for length in one.shape))
    return training.RandomCrops(*common, size=size, scale=scale)
