"""The networks that come with the book: each as it was measured, with its record's checksum."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from nuctut import datasets, fits, records, scoreboard
from nuctut.experiments.fitting import Trained, diameter_of, experiment_of, load
from nuctut.experiments.settings import AFTER_THE_FIT
from nuctut.files import write_json
from nuctut.paths import results_root
from nuctut.records import NETWORKS, Record

CARD = "README.md"
# By the name that `nuctut.load` knows it by: chapter and variant.
BY_NAME = {
    "labels-for-free": ("01_labels_for_free", "dl-ground-truth"),
    "four-architectures": ("02_four_architectures", "mask-rcnn"),
}
LARGEST = 6 * 10**6  # bytes of weights
SCORES = ("f1_50", "mean_average_precision", "object_jaccard", "pixel_iou_per_image")

WORDS = """# {variant}: {network}

Finds the nuclei of cells in microscope images. It comes with the book *nuctut*, whose chapter
`{chapter}` rebuilds {rebuilt}.

**Learned from** {images} images of {data} ({licence}), preset {preset}, seed {seed}, at commit
{commit}. {pixel}

**Measured** on {test}, record `{record}`:

| {head} |
| {line} |
| {row} |
{by_kind}
**Not good for** images unlike those it learned from: other stains, magnifications or microscopes
were not tried, nor sections, nor stacks. It counts and outlines; it does not diagnose. Look at what
it finds in some images of yours before you count on it.

**Licence** BSD-3-Clause. {citation}

`network.json` says how to build it, `history.csv` how it learned, `done.json` what it came to. The
weights are sha256 `{sha256}`.
"""


def shipped(chapter: str, variant: str, device: str = "auto") -> Trained:
    """A network that comes with the book.

    Args:
        chapter: Name of the chapter's notebook, without its ending.
        variant: As its record has it, such as "dl-ground-truth".
        device: See `load`.

    Raises:
        FileNotFoundError: When there is none, naming those there are.
        Malformed: When a file of it is damaged.
    """
    return load(folder_of(chapter, variant), device)


def folder_of(chapter: str, variant: str) -> Path:
    """Where a network that comes with the book lies; see `shipped`."""
    folder = root() / chapter / variant
    if not folder.is_dir():
        known = ", ".join(path.name for path in folders() if path.parent.name == chapter) or "none"
        raise FileNotFoundError(
            f"No network {variant} of {chapter} comes with the book (it has {known}): "
            "say preset=lite, and the chapter trains it."
        )
    return folder


def named(name: str, device: str = "auto") -> Trained:
    """A network that comes with the book, by name.

    Args:
        name: One of `BY_NAME`, or chapter and variant such as "02_four_architectures/u-net".
        device: See `load`.

    Raises:
        ValueError: For another name.
        FileNotFoundError, Malformed: See `shipped`.
    """
    chapter, _, variant = name.partition("/")
    if name in BY_NAME:
        chapter, variant = BY_NAME[name]
    elif not variant:
        raise ValueError(
            f"No network is named {name!r}: say one of {', '.join(BY_NAME)}, or a chapter and a "
            "variant, such as 02_four_architectures/u-net."
        )
    return shipped(chapter, variant, device)


def root() -> Path:
    """Where they lie, in a folder for each chapter."""
    return results_root() / NETWORKS


def folders() -> list[Path]:
    """Those that there are, one folder each, sorted."""
    return sorted(path.parent for path in root().glob(f"*/*/{fits.DESCRIPTION}"))


def record_of(folder: Path, known: Sequence[Record] | None = None) -> Record:
    """The record that a fit was measured by, on real data: of several, that of the shortest name.

    Real data may stand in for others here: the record says so, and no paper is judged by it.

    Args:
        folder: Of the fit.
        known: Records to look through; by default all that are committed.

    Raises:
        ValueError: When no evidence holds the checksum of its weights.
    """
    sha256 = fits.read_summary(folder).weights_sha256
    measured = [
        record
        for record in (records.read_all(results_root()) if known is None else known)
        if not record.flaw and record.fit and record.fit["weights_sha256"] == sha256
    ]
    if not measured:
        raise ValueError(
            f"{folder}: no record in {results_root()} is of these weights; run the chapter from a "
            "clean checkout first, and what it measures becomes evidence."
        )
    return min(measured, key=lambda record: len(record.variant))


def ship(folder: Path) -> Path:
    """Put a finished fit among the networks that come with the book; an older one is replaced.

    Args:
        folder: Of the fit, whose measurement is evidence.

    Returns:
        Its folder: the fit's files but for the state to go on from, the settings as they were
        measured, and a card for people.

    Raises:
        ValueError: When no evidence is of this fit, it was measured with another training, or it
            is too large.
    """
    record, made = record_of(folder), fits.read_description(folder)
    known = fields(experiment_of(made, folder).Settings)
    settings = {field.name: record.parameters[field.name] for field in known}
    for name in settings.keys() & made.settings.keys() - set(AFTER_THE_FIT):
        if settings[name] != made.settings[name]:
            raise ValueError(f"{folder}: its record has another {name}.")
    size = (folder / fits.WEIGHTS).stat().st_size
    if size > LARGEST:
        raise ValueError(
            f"{folder / fits.WEIGHTS} has {size / 1e6:.1f} MB, more than the {LARGEST / 1e6:.0f} "
            "that a network of the book may have."
        )
    target = root() / record.chapter / record.variant
    making = target.with_name(f".{target.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for name in (fits.WEIGHTS, fits.HISTORY, fits.DONE):
        shutil.copyfile(folder / name, making / name)
    made = replace(made, settings=settings)
    write_json(making / fits.DESCRIPTION, made)
    (making / CARD).write_text(_card(record, made), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    return making.rename(target)


def _card(record: Record, made: fits.Description) -> str:
    specs = datasets.specs(made.data["name"])
    names = [scoreboard.METRIC_NAMES[name] for name in SCORES]
    kinds = ""
    if all("modality" in row.get("tags", {}) for row in record.images):
        by_kind = records.scores_by_tag(record.images, "modality")[list(SCORES)]
        lines = [f"{kind} {_shown(scores)}" for kind, scores in by_kind.T.items()]
        kinds = f"\nIn this order by kind of image: {'; '.join(lines)}.\n"
    return WORDS.format(
        variant=record.variant,
        network=record.parameters["network"],
        chapter=record.chapter,
        rebuilt=scoreboard.rebuilt(made.experiment),
        images=made.data["images"],
        data=", ".join(spec.title for spec in specs),
        licence=", ".join(dict.fromkeys(spec.licence for spec in specs)),
        preset=record.preset,
        seed=made.seed,
        commit=record.fit["git_commit"],
        pixel=_scale(
            datasets.pixel_size(made.data["name"]),
            diameter_of(experiment_of(made, root()), record.variant),
        ),
        test=scoreboard.describe(record),
        record=scoreboard.file_of(record),
        head=" | ".join(names),
        line=" | ".join("---:" for _ in names),
        row=" | ".join(f"{record.scores[name]:.3f}" for name in SCORES),
        by_kind=kinds,
        citation=" ".join(spec.citation for spec in specs),
        sha256=record.fit["weights_sha256"],
    )


def _scale(pixel_size: float | None, diameter: float | None) -> str:
    """What it knows of the size of nuclei, as a sentence for the card."""
    if diameter is None:
        return f"It knows pixels of {pixel_size} µm." if pixel_size else ""
    return (
        f"It knows nuclei {diameter:g} pixels wide: say how wide those of your images are "
        "(`nuctut predict --diameter`), and they are rescaled."
    )


def _shown(scores: dict[str, float]) -> str:
    return ", ".join(f"{value:.3f}" for value in scores)
