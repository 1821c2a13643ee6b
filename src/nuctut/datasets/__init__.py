"""Data sets by name: load a split, fetch the files, check them, simulate them.

The real files live under `data_root()`, one folder per data set, unpacked as the publisher packs
them. A few of them come with the checkout in the same layout: what lies below `excerpts_root()` is
an excerpt, and nothing else is. Simulated ones have that layout too, and a marker file that keeps
them from passing as real.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nuctut.datasets import (
    bbbc006,
    bbbc039,
    bitdepth,
    checking,
    dsb2018,
    fetching,
    janowczyk,
    monuseg,
    sbsst265,
    tnbc,
)
from nuctut.datasets.cache import cache_root, content_fingerprint, open_split
from nuctut.datasets.checking import Listing
from nuctut.datasets.spec import CheckReport, DatasetSpec, is_simulated
from nuctut.paths import excerpts_root, project_root
from nuctut.samples import SampleSet

__all__ = [
    "REGISTRY",
    "SOURCES",
    "CheckReport",
    "DatasetSpec",
    "Status",
    "check",
    "data_root",
    "fetch",
    "load",
    "simulate",
    "simulated_root",
    "status",
]

REGISTRY: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        bbbc039.SPEC,
        dsb2018.SPEC,
        sbsst265.SPEC,
        sbsst265.NEUROBLASTOMA,
        bitdepth.SPEC,
        tnbc.SPEC,
        monuseg.SPEC,
        janowczyk.SPEC,
        bbbc006.SPEC,
    )
}
SOURCES = ("auto", "real", "excerpt", "simulated")
REMEMBERED = 1500  # samples of a split, 3 GB of BBBC006; a larger one is read anew each time


@dataclass(frozen=True)
class Status:
    """What is on disk of a data set.

    Attributes:
        name: Of the data set.
        folder: Where its files are, or would be.
        state: "real", "simulated", "incomplete" (files are missing), "excerpt" (that alone) or
            "missing".
        problem: For "incomplete": one sentence naming the first missing file.
    """

    name: str
    folder: Path
    state: str
    problem: str = ""


def data_root() -> Path:
    """The folder of the real data sets: $NUCTUT_DATA, or `data/` in the checkout.

    A relative $NUCTUT_DATA is looked for below the working directory first, then below the
    checkout, because chapters run in `book/` whatever folder the build was started in. Outside a
    checkout the default is `data/` in the working directory.
    """
    chosen = os.environ.get("NUCTUT_DATA")
    named = Path(chosen or "data").expanduser()
    if chosen and named.exists():
        return named.resolve()
    try:
        return (project_root() / named).resolve()
    except FileNotFoundError:
        return named.resolve()


def simulated_root() -> Path:
    """The folder of simulated data sets: below $NUCTUT_CACHE or the user's cache folder."""
    return cache_root() / "simulated"


def specs(name: str) -> list[DatasetSpec]:
    """The data sets that samples of this name are of, see `SampleSet.joined`; none if unknown."""
    return [REGISTRY[one] for one in name.split(" and ") if one in REGISTRY]


def pixel_size(name: str) -> float | None:
    """Side of a pixel in samples of this name, in µm; None where it differs or is not known."""
    sides = {spec.pixel_size for spec in specs(name)}
    return sides.pop() if len(sides) == 1 else None


def load(name: str, split: str, source: str = "auto", annotation: str | None = None) -> SampleSet:
    """A split of a data set; images are read when asked for.

    Labels that are spread over thousands of files are read the first time, and kept in a cache.

    Args:
        name: One of `REGISTRY`.
        split: One of the data set's splits, such as "training".
        source: "real" takes the paper's own data, "excerpt" the few images of it that come with the
            checkout, "simulated" invented images in the same layout (made on first use), "auto" the
            first of these that there is. The result's `source` says which it was: of a data set
            that no paper used, "stand-in" instead of "real".
        annotation: Another annotation of the same images, where the data set has one, such as
            "first" of bitdepth_nucseg.

    Raises:
        ValueError: For an unknown name, split, source or annotation; the message names what exists.
        FileNotFoundError: When what is asked for is missing, or the real data lack files.
    """
    spec = _spec(name)
    if split not in spec.splits:
        raise ValueError(f"{name} has no split {split!r}, but {', '.join(spec.splits)}.")
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, not {source!r}.")
    if annotation is not None and annotation not in spec.annotations:
        others = ", ".join(spec.annotations) or "none"
        raise ValueError(f"{name} has no annotation {annotation!r} beside its own, but {others}.")
    folder, found, listings = _folder(spec, source)
    listing = listings.get(split) or checking.list_split(spec, folder, split)
    if not listing:
        raise FileNotFoundError(
            f"{folder} holds no image of the {split} split: get it with "
            f"`nuctut data fetch {name}`, or see data/README.md."
        )
    if spec.read_image:
        read, fingerprint = open_split(spec, folder, split, listing)
    else:
        read, fingerprint = partial(spec.read, folder), content_fingerprint(folder, listing)
    if annotation is not None:
        read = partial(spec.annotations[annotation], folder)
        fingerprint = hashlib.sha256(f"{fingerprint}:{annotation}".encode()).hexdigest()
    kind = "stand-in" if found == "real" and spec.stand_in else found
    about = {"name": name, "split": split, "source": kind, "fingerprint": fingerprint}
    whole = spec.counts[split].images if split in spec.counts else None
    if found == "simulated" or (found == "real" and len(listing) == whole):
        whole = None
    remember = len(listing) <= REMEMBERED
    return SampleSet(list(listing), read, **about, whole=whole, remember=remember)


def fetch(
    name: str,
    root: Path | str | None = None,
    progress: bool = True,
    planes: Sequence[int] | None = None,
) -> Path:
    """Downloads a data set into `root` (default `data_root()`) and returns its folder.

    Nothing is downloaded where the whole data set is there already. See `fetching.fetch`.

    Args:
        planes: Of a data set that comes in planes: those wanted, by default all.

    Raises:
        ValueError: For an unknown name, or planes that there are not.
    """
    spec = _spec(name)
    if planes is not None and not spec.pieces:
        raise ValueError(f"{name} comes whole: planes cannot be chosen of it.")
    pieces = [spec]
    if spec.pieces:
        pieces = spec.pieces() if planes is None else spec.pieces(planes)
    for piece in pieces:
        folder = fetching.fetch(piece, _root(root), progress=progress)
    return folder


def check(name: str, root: Path | str | None = None) -> CheckReport:
    """Reads every file of a data set in `root` (default `data_root()`) and says what is wrong.

    A folder of simulated data may hold any number of images; the real one must be whole, but of a
    data set that is fetched in pieces.
    """
    spec = _spec(name)
    folder = _root(root) / name
    if not folder.is_dir():
        problem = f"{folder} is missing: get it with `nuctut data fetch {name}`."
        return CheckReport(folder, problems=(problem,))
    whole = not (is_simulated(folder) or spec.pieces)
    return checking.check(spec, folder, spec.counts if whole else None)


def simulate(
    name: str,
    folder: Path | str | None = None,
    seed: int = 0,
    images: Mapping[str, int] | None = None,
    shape: tuple[int, int] | None = None,
) -> Path:
    """Writes a simulated data set in the layout of the real one and returns its folder.

    Args:
        name: One of `REGISTRY`.
        folder: Where to; it must not exist. By default the place where `load` looks for it,
            and nothing is written where the same set is there already.
        seed: Other seeds give other images; the same one gives the same bytes.
        images: Number of images by split; by default a handful.
        shape: (H, W) of the images; by default smaller than the real ones.

    Raises:
        ValueError: For an unknown name, split or a bad number.
        FileExistsError: When `folder` exists.
    """
    spec = _spec(name)
    images = dict(spec.small.images if images is None else images)
    shape = spec.small.shape if shape is None else shape
    if folder is not None:
        return spec.simulate(Path(folder), images=images, shape=shape, seed=seed)
    counts = "-".join(str(images.get(split, 0)) for split in spec.splits)
    place = simulated_root() / (
        f"{name}-v{spec.small.version}-{shape[0]}x{shape[1]}-{counts}-seed{seed}"
    )
    if not place.is_dir():
        try:
            spec.simulate(place, images=images, shape=shape, seed=seed)
        except FileExistsError:
            pass  # another process made the same set in the meantime
    return place


def status(name: str) -> Status:
    """What is on disk of a data set, without reading its files."""
    return _look(_spec(name))[0]


def _spec(name: str) -> DatasetSpec:
    if name not in REGISTRY:
        raise ValueError(f"There is no data set {name!r}, but {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def _root(root: Path | str | None) -> Path:
    return data_root() if root is None else Path(root).expanduser().resolve()


def _excerpt(spec: DatasetSpec) -> Path | None:
    """The folder of the excerpt of a data set; None where none comes with this installation."""
    try:
        folder = excerpts_root() / spec.name
    except FileNotFoundError:
        return None
    return folder if folder.is_dir() else None


def _look(spec: DatasetSpec) -> tuple[Status, dict[str, Listing]]:
    """What is on disk of a data set, and where that is the real one whole, its files by split."""
    folder, excerpt = data_root() / spec.name, _excerpt(spec)
    if folder == excerpt or not folder.is_dir() or not any(folder.iterdir()):
        return Status(spec.name, excerpt or folder, "excerpt" if excerpt else "missing"), {}
    if is_simulated(folder):
        return Status(spec.name, folder, "simulated"), {}
    try:
        listings = checking.list_real(spec, folder)
    except (OSError, ValueError) as error:
        return Status(spec.name, folder, "incomplete", str(error)), {}
    return Status(spec.name, folder, "real"), listings


def _folder(spec: DatasetSpec, source: str) -> tuple[Path, str, dict[str, Listing]]:
    """Where to read from, which source that is, and the files of the real one."""
    on_disk, listings = _look(spec)
    excerpt = _excerpt(spec)
    if source == "auto" and on_disk.state not in ("real", "incomplete"):
        source = "excerpt" if excerpt else "simulated"
    if source == "excerpt":
        if excerpt is None:
            raise FileNotFoundError(
                f"There is no excerpt of {spec.name} here: run this inside a clone of the book's "
                f"repository, or get the whole with `nuctut data fetch {spec.name}`."
            )
        return excerpt, source, {}
    if source == "simulated":
        own = on_disk.state == "simulated"
        return (on_disk.folder if own else simulate(spec.name)), source, {}
    if on_disk.state == "real":
        return on_disk.folder, "real", listings
    raise FileNotFoundError(_why_not_real(on_disk))


def _why_not_real(found: Status) -> str:
    """One sentence: what is on disk in place of the real data, and what to do."""
    get_it = f"`nuctut data fetch {found.name}`"
    if found.state == "simulated":
        fault = f"{found.folder} holds simulated data, not the real {found.name}"
        return f"{fault}: move it away and run {get_it}."
    if found.state == "incomplete":
        look = f"see `nuctut data check {found.name}`"
        return (
            f"{found.problem.removesuffix('.')}: {look}, or move the folder away and run {get_it}."
        )
    return f"{found.name} is not in {data_root()}: get it with {get_it}, or set NUCTUT_DATA."
