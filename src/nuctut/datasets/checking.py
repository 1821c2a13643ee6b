"""What is in a data set's folder: which files, whether any is missing, whether all can be read.

All data sets are looked through here. What is their own, a `DatasetSpec` says: which keys a split
has, which files a key has, and how they are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nuctut.datasets.spec import CheckReport, DatasetSpec, SplitCount, is_simulated

# The files of a split: by key, their names below the data set's folder in the order of reading.
Listing = Mapping[str, Sequence[str]]


def plain_names(names: Sequence[str], origin: Path) -> list[str]:
    """The names, where each can be that of a file in a folder, and none comes twice.

    Args:
        names: From a list that a data set brings, or from a folder.
        origin: Of the names; errors begin with it.

    Raises:
        ValueError: For a name that leads elsewhere, cannot be printed, or comes again.
    """
    seen = set()
    for name in names:
        if name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\:"):
            raise ValueError(f"{origin} names {name!r}, which is no plain file name: correct it.")
        if name in seen:
            raise ValueError(f"{origin} names {name!r} twice: remove one of the two.")
        seen.add(name)
    return list(names)


# --- which files ---------------------------------------------------------------------------------


def list_split(spec: DatasetSpec, folder: Path, split: str) -> Listing:
    """The files of a split. None of them is read, and each folder is looked through once.

    Raises:
        FileNotFoundError, ValueError: For the first file that is missing, or a damaged list.
    """
    listing = {key: spec.files(folder, key) for key in spec.split_keys(folder, split)}
    inside = _Folders(folder)
    for files in listing.values():
        for name in files:
            place, _, file = name.rpartition("/")
            if file not in inside[place]:
                raise FileNotFoundError(f"{folder / name} is missing.")
    return listing


def list_real(spec: DatasetSpec, folder: Path) -> dict[str, Listing]:
    """The files of all splits of the real data set, as `list_split`.

    Raises:
        FileNotFoundError, ValueError: For the first thing that is missing or not as it should be.
    """
    for problem in _missing_parts(spec, folder):
        raise FileNotFoundError(problem)
    listings = {}
    for split, expected in spec.counts.items():
        listings[split] = list_split(spec, folder, split)
        found = len(listings[split])
        if found != expected.images and not spec.pieces:
            raise ValueError(
                f"{folder}: the {split} split lists {found} images, not {expected.images}."
            )
    if not any(listings.values()):
        raise FileNotFoundError(f"{folder} holds no image with labels.")
    for problem in _shared(spec, folder, listings):
        raise ValueError(problem)
    return listings


class _Folders(dict[str, set[str]]):
    """The names of the files in a folder below `root`, looked through when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, folder: str) -> set[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                self[folder] = {entry.name for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            self[folder] = set()
        return self[folder]


def _missing_parts(spec: DatasetSpec, folder: Path) -> list[str]:
    return [f"{folder / part} is missing." for part in spec.parts if not (folder / part).exists()]


def _shared(
    spec: DatasetSpec, folder: Path, splits: Mapping[str, Sequence[str] | Listing]
) -> Iterator[str]:
    """A sentence for each key that two splits have: what is trained on must not be tested on."""
    owners: dict[str, str] = {}
    for split, keys in splits.items():
        for key in () if split == "test" and spec.all_tested else keys:
            if (other := owners.setdefault(key, split)) != split:
                yield f"{folder}: {key} is in the {other} split and in the {split} split."


# --- what is in them -----------------------------------------------------------------------------


def check(
    spec: DatasetSpec, folder: Path, counts: Mapping[str, SplitCount] | None = None
) -> CheckReport:
    """Reads every file of a data set and says all that is wrong.

    Args:
        spec: Of the data set.
        folder: Where it is.
        counts: What should be found, by split; None expects no particular number.
    """
    simulated = is_simulated(folder)
    if problems := _missing_parts(spec, folder):
        return CheckReport(folder, {}, tuple(problems), simulated=simulated)
    problems += spec.strays(folder)
    keys, found = {}, {}
    for split in spec.splits:
        keys[split], found[split], faults = _check_split(spec, folder, split)
        problems += faults
    problems += _shared(spec, folder, keys)
    found = {split: n for split, n in found.items() if n.images or split not in spec.optional}
    for split, expected in (counts or {}).items():
        if not problems and not _fits(found[split], expected):
            nuclei = "any number" if expected.nuclei is None else f"{expected.nuclei:,}"
            problems.append(
                f"{folder}: the {split} split has {found[split].images:,} images with "
                f"{found[split].nuclei:,} nuclei, expected are {expected.images:,} with {nuclei}."
            )
    problems = list(dict.fromkeys(problems))  # a fault that stops two splits is still one
    notes = () if problems or not spec.notes else tuple(spec.notes(folder))
    return CheckReport(folder, found, tuple(problems), notes, simulated)


def _fits(found: SplitCount, expected: SplitCount) -> bool:
    return found.images == expected.images and expected.nuclei in (None, found.nuclei)


def _check_split(
    spec: DatasetSpec, folder: Path, split: str
) -> tuple[list[str], SplitCount, list[str]]:
    """The keys of a split, what can be read of it, and a sentence for each that cannot."""

    def count(key: str) -> int | str:
        try:
            return spec.read(folder, key).count
        except (OSError, ValueError) as error:
            return str(error)

    try:
        keys = spec.split_keys(folder, split)
    except (OSError, ValueError) as error:
        return [], SplitCount(0, 0), [str(error)]
    with ThreadPoolExecutor() as pool:  # the decoders work without Python's lock
        counts = list(pool.map(count, keys))
    good = [count for count in counts if isinstance(count, int)]
    faults = [count for count in counts if isinstance(count, str)]
    return keys, SplitCount(len(good), sum(good)), faults
