"""What the book knows of a data set before it has a single file of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nuctut.datasets.simulated.canvas import MARKER
from nuctut.samples import Sample


@dataclass(frozen=True)
class Archive:
    """One file as its publisher offers it: a zip or tgz file, or one that is kept as it is.

    Attributes:
        name: Of the file; a zip file's ends in ".zip", a gzipped tar file's in ".tgz".
        bytes: Its size.
        sha256: Of its content, in hex digits; None where nobody has pinned it, and the sums that a
            zip file keeps of its members have to do.
        exact: Whether the size is known to the byte; otherwise it is about right.
        folder: What it unpacks into, below the data set's folder, whether or not its
            members' names begin with it.
        url: Where it is, if that is not its name below the data set's `base_url`.
    """

    name: str
    bytes: int
    sha256: str | None
    exact: bool = True
    folder: str = ""
    url: str = ""


@dataclass(frozen=True)
class SplitCount:
    """How many images a split holds, and how many nuclei are marked in them.

    Attributes:
        images: How many.
        nuclei: How many; None in what is expected of a data set whose nuclei nobody has counted.
    """

    images: int
    nuclei: int | None


@dataclass(frozen=True)
class CheckReport:
    """What a look through a data set's folder found.

    Attributes:
        folder: The folder looked through.
        counts: Images and nuclei found, by split.
        problems: One sentence per fault, each naming its file.
        notes: One sentence for each thing that is no fault, but worth knowing.
        simulated: Whether the folder says that its files are simulated.
    """

    folder: Path
    counts: Mapping[str, SplitCount] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    simulated: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def summary(self) -> list[str]:
        """Lines to print: what is there, then what is wrong with it."""
        kind = "simulated" if self.simulated else "real"
        lines = [f"{self.folder} ({kind})" if self.counts else str(self.folder)]
        lines += [
            f"{split}: {count.images:,} images, {count.nuclei:,} nuclei"
            for split, count in self.counts.items()
        ]
        lines += [f"note: {note}" for note in self.notes]
        return lines + [f"problem: {problem}" for problem in self.problems]


@dataclass(frozen=True)
class SmallSet:
    """The size of a simulated data set that is enough for a first look.

    Attributes:
        images: How many, by split.
        shape: (H, W) in pixels.
        version: Another number means that the same seed gives other images.
    """

    images: Mapping[str, int]
    shape: tuple[int, int]
    version: int


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: where it comes from, what is in it, and how its files are read.

    Attributes:
        name: Short name, also of its folder in the data folder.
        title, homepage, licence, citation: For the data card and for whoever uses the data.
        base_url: Where the archives are; ends in a slash.
        archives: The files to download; none where nobody offers files that can be checked.
        unpacked_bytes: What the archives take on disk once unpacked.
        counts: Images and nuclei of the real data set, by split.
        parts: Folders and files at the top of the data set's folder without which it is none.
        split_keys: (folder, split) → the keys of a split, in an order that does not change: plain
            names, none twice. Raises ValueError or FileNotFoundError naming the file.
        files: (folder, key) → names of the files that a sample is read from, below the folder, with
            "/" between their parts.
        read: (folder, key) → the sample. Raises ValueError or FileNotFoundError naming the file.
        strays: (folder) → a sentence for each file that no key leads to and that should not be.
        simulate: (folder, *, images, shape, seed) → the folder, now holding simulated data.
        small: What `simulate` makes unless told otherwise.
        pixel_size: Side of a pixel in µm; None where the images differ or it is not known.
        by_hand: Where there are no archives: sentences that say where the files are to be had, and
            how to place them.
        stand_in: Whether the set is no paper's own, and stands in for one that is not to be had.
        annotations: Other annotations of the same images: by name, what reads a sample with it.
        pieces: (planes) → what is fetched one after the other, the archives of each whole folders.
            A data set that has it is too large for most, and any part of it is a data set too.
        notes: (folder) → a sentence for each thing worth knowing of a part that is no fault.
        optional: Splits that some have on disk and others have not.
        all_tested: Whether "test" is the whole set, for networks that learned from another one.
            Then "training" and "validation" are its parts, for networks tested on another one.
        read_image: (folder, key) → the image alone. A data set that has it keeps its labels in a
            cache, because putting them together takes long.
    """

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    base_url: str
    archives: tuple[Archive, ...]
    unpacked_bytes: int
    counts: Mapping[str, SplitCount]
    parts: tuple[str, ...]
    split_keys: Callable[[Path, str], list[str]]
    files: Callable[[Path, str], list[str]]
    read: Callable[[Path, str], Sample]
    strays: Callable[[Path], Iterable[str]]
    simulate: Callable[..., Path]
    small: SmallSet
    pixel_size: float | None = None
    by_hand: str = ""
    stand_in: bool = False
    annotations: Mapping[str, Callable[[Path, str], Sample]] = field(default_factory=dict)
    pieces: Callable[[Sequence[int]], list[DatasetSpec]] | None = None
    notes: Callable[[Path], Iterable[str]] | None = None
    optional: tuple[str, ...] = ()
    all_tested: bool = False
    read_image: Callable[[Path, str], np.ndarray] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, those last that may be missing."""
        return (*self.counts, *self.optional)


def is_simulated(folder: Path) -> bool:
    """Whether `folder` carries the marker that `simulate` leaves in what it writes.

    Anything of that name is one: nothing passes as real by making a folder of it.
    """
    return os.path.lexists(folder / MARKER)
