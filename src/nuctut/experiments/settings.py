"""Settings of a chapter by preset, with what all chapters have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from nuctut import training
from nuctut.files import STRICT, Count, Measure, sentence

Positive = Annotated[int, Field(ge=1)]
Kind = TypeVar("Kind")

# Settings that a fit knows nothing of: it is taken up again when they change.
AFTER_THE_FIT = ("threshold", "min_area", "small_area", "certainty", "distance", "smoothing")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """What a preset fixes in every chapter: the data's share, the crops, and how is fitted.

    Attributes:
        data: Source asked for, one of `datasets.SOURCES`.
        images: Most images per split; None takes all.
        crop: Side of random crops in pixels; None takes what the paper takes.
        scale: Of intensities, see `targets.standardise`.
        gain: Of `training.Jitter`.
        cross_entropy: Weight of a cross-entropy beside the loss that the paper names.
        min_area: Predicted nuclei with fewer pixels than this are dropped.
        epochs … devices: Of `training.FitSettings`.
    """

    data: Literal["auto", "real", "excerpt", "simulated"]
    images: Positive | None
    crop: Positive | None
    scale: Literal["linear", "log", "range"]
    gain: Measure
    cross_entropy: Measure
    min_area: Count
    epochs: Positive
    updates: Positive | None
    batch_size: Positive
    learning_rate: Measure
    schedule: Literal["constant", "one-cycle", "stepwise"]
    l2: Measure
    precision: Literal["auto", "fp32", "bf16"]
    patience: Positive | None
    devices: Positive = 1


def presets(kind: type[Kind], **values: Sequence[Any]) -> dict[str, Kind]:
    """The presets smoke, lite and paper from one row of three values per field of `kind`.

    And read, which is lite on whatever data there are, and trains nothing: see `shipping`.
    """
    columns = zip(("smoke", "lite", "paper"), zip(*values.values(), strict=True), strict=True)
    made = {name: kind(**dict(zip(values, row, strict=True))) for name, row in columns}
    return {"read": replace(made["lite"], data="auto")} | made


def choose(presets: Mapping[str, Kind], preset: str, **overrides: Any) -> Kind:
    """A preset with single values changed; overrides that are None change nothing.

    Raises:
        ValueError: When the preset is unknown, or a value is not one that it can have.
    """
    if preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, not {preset!r}.")
    changed = {name: value for name, value in overrides.items() if value is not None}
    try:
        return replace(presets[preset], **changed)
    except ValidationError as error:
        raise ValueError(sentence(error, vars(presets[preset]) | changed)) from None


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


def fit_settings(settings: Settings, seed: int, device: str) -> training.FitSettings:
    """The part of a chapter's settings that `training.fit` needs: the fields of the same name."""
    names = {f.name for f in fields(training.FitSettings)} & {f.name for f in fields(settings)}
    chosen = {name: getattr(settings, name) for name in names}
    return training.FitSettings(**chosen, seed=seed, device=device)
