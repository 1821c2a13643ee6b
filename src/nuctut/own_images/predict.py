"""Nuclei in images of one's own: label files, overlays, and a table of the objects.

Images are read, predicted and written in parts, so that memory does not grow with them. Everything
of an image is made in a hidden folder beside the results, then its rows are added to the table, and
at last its files get their names, the label file after the others. So an image whose label file is
there is done, whenever the program was killed.
"""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import imagecodecs
import numpy as np
import pandas as pd
import tifffile
from matplotlib.colors import to_rgb
from rich.filesize import decimal
from tqdm.auto import tqdm

from nuctut import datasets, detection, experiments, figures, fits, inference, views
from nuctut.files import locked
from nuctut.inference import Span
from nuctut.own_images import images, pixel_sizes
from nuctut.own_images.bands import bands, labels_in_bands
from nuctut.own_images.images import ImageFile
from nuctut.own_images.pixel_sizes import Sides
from nuctut.own_images.spooled import DiskArray, Spooled, rescaled
from nuctut.own_images.tables import COLUMNS, add_rows, cell_of, drop_rows
from nuctut.running import runs
from nuctut.targets import Blocks, Normalisation

TABLE = "objects.csv"
SCRATCH = ".predicting-"  # beginning of the names of folders that a killed process leaves
SAME_SCALE = 0.03  # a nucleus larger or smaller by less looks the same to a network
SCALES = (1 / 20, 20)  # a pixel size further from the network's is a mistake
LENGTHS = (1e-3, 1e3)  # of a pixel, in µm
SIDE = 2048  # pixels of an overlay, at most
LOOKED_AT = 2**20  # pixels
STRIP = 2**18  # bytes of a label file that are compressed together, about
CLASSIC = 2**32 - 2**25  # bytes that fit into a TIFF file with offsets of 32 bits

Bar = Callable[..., Iterable]
Pixels = Callable[[Span, Span], np.ndarray]


@dataclass(frozen=True)
class Network:
    """A network, and what it learned from.

    Attributes:
        trained: The network.
        about: Of its fit.
    """

    trained: experiments.Trained
    about: fits.Description

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel in the images that it learned from, in µm; None if they differ."""
        return datasets.pixel_size(self.about.data["name"])

    def __str__(self) -> str:
        data = self.about.data
        scale = "of many scales" if self.pixel_size is None else f"{self.pixel_size} µm per pixel"
        return (
            f"{self.about.variant}, seed {self.about.seed} ({self.about.experiment}), learned from "
            f"{data['images']} {data['source']} images of {data['name']}, {scale}"
        )


def load(run: str, device: str = "auto") -> Network:
    """The network of a fit.

    Args:
        run: The fit's folder, or its name or the beginning of it, see `runs.find_fit`.
        device: See `experiments.load`.

    Raises:
        ValueError, FileNotFoundError: When there is no such fit, or it is not finished.
    """
    folder = runs.find_fit(run)
    return Network(experiments.load(folder, device), fits.read_description(folder))


@functools.cache
def suited(kind: str) -> Network:
    """The network of the book for images of a kind, see `kind_of`."""
    name = "labels-for-free" if kind == views.DARK else "four-architectures"
    return load(str(experiments.folder_of(*experiments.BY_NAME[name])))


def kind_of(image: Spooled) -> str:
    """What an image looks like, see `views.kind`; of a large one, some rows are looked at."""
    step = max(1, image.shape[0] * image.shape[1] // LOOKED_AT)
    rows = range(0, image.shape[0], step)
    return views.kind(np.concatenate([image.read((row, row + 1)) for row in rows]))


@dataclass(frozen=True)
class Done:
    """An image that was predicted.

    Attributes:
        path: Of the image.
        network: That predicted it, or the last of its pages.
        why: What was seen in the image, where the network was chosen by that; else empty.
        nuclei: How many there are on all pages.
        assumed: Whether it was taken to have the network's scale, because nothing says its own.
        left_out: See `images.ImageFile`.
        oblong: Sides of its pixels, where they are not square.
    """

    path: Path
    network: Network
    why: str
    nuclei: int
    assumed: bool
    left_out: int
    oblong: Sides | None


@dataclass(frozen=True)
class Report:
    """What became of each image.

    Attributes:
        done: Those predicted.
        failed: Those not predicted, by the name they were given by, and why in one sentence.
        table: The table of objects.
        diameter: Of the nuclei, where it was given.
    """

    done: tuple[Done, ...]
    failed: dict[str, str]
    table: Path
    diameter: float | None

    @property
    def nuclei(self) -> int:
        """How many there are in all images."""
        return sum(one.nuclei for one in self.done)


def summary(report: Report) -> list[str]:
    """Lines to print at the end: what was done, by which network, and what was assumed."""
    chosen: dict[tuple[str, str], int] = {}
    for one in report.done:
        if one.why:
            pair = one.why, str(one.network)
            chosen[pair] = chosen.get(pair, 0) + 1
    lines = [f"{_images(n)}, {why}: by {network}" for (why, network), n in chosen.items()]
    lines += [
        f"{one.path} holds {one.left_out} more pictures beside the slide, which were left out."
        for one in report.done
        if one.left_out
    ]
    lines += [
        f"{one.path} has pixels of {pixel_sizes.shown(one.oblong)}: area_um2 is that of both sides."
        for one in report.done
        if one.oblong
    ]
    sizes = [one.network.pixel_size for one in report.done if one.assumed]
    for size in dict.fromkeys(sizes):
        lines.append(
            f"Nothing says the pixel size of {_images(sizes.count(size))}: the scale that the "
            f"network learned, {size} µm per pixel, was assumed; --pixel-size tells another."
        )
    unscaled = [one.network for one in report.done if one.network.pixel_size is None]
    if report.diameter is not None:
        lines.append(
            f"All images were rescaled, as their nuclei are {report.diameter:g} pixels wide."
        )
    elif any(network.trained.diameter is None for network in unscaled):
        lines.append("The network learned from images of many scales: nothing was rescaled.")
    elif unscaled:
        lines.append(
            f"The network knows nuclei {unscaled[0].trained.diameter:g} pixels wide, and nothing "
            "was rescaled: --diameter tells how wide those of the images are."
        )
    failed = f", {len(report.failed)} failed" if report.failed else ""
    counted = f"{_images(len(report.done))}, {report.nuclei:,} nuclei{failed}"
    return [*lines, f"{counted}: {report.table}" if report.done else counted]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def predict_files(
    network: Network | None,
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    page: int | None = None,
    pixel_size: float | None = None,
    diameter: float | None = None,
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Predict images, whatever their number and size; what is wrong with one stops no other.

    Of an image `x.tif`, `x_labels.tif` and `x_overlay.png` are written (`x_page0_overlay.png` and
    so on where the file has several pages), and a row per nucleus in `objects.csv`. The same image
    gives the same files, byte by byte. What is done when this is interrupted stays.

    Args:
        network: What predicts; None takes one of the book's by the kind of each page, see
            `kind_of`.
        inputs: Image files, folders of them (which are not searched further), or patterns.
        out: Folder of the results; made if need be.
        page: The only page to predict of each file, counted from 0; by default all of them.
        pixel_size: Side of a pixel in µm; by default what the file says.
        diameter: Of the images' nuclei, in pixels; of use to a network that knows nuclei of one
            size, see `experiments.Trained.diameter`.
        overwrite: Predict again what is there already.
        progress: Show progress bars.
        tell: Called with "image: why it failed" as soon as that is known.

    Raises:
        ValueError: When the pixel size, diameter or page is no such thing or of no use, `out` is
            not a folder to write to, or another process writes to it.
    """
    _check_arguments(page, pixel_size)
    factor = _factor_of(network, diameter)
    job = _Job(network, _folder(Path(out)), page, pixel_size, factor, overwrite, progress)
    done, failed = [], {}
    with locked(job.out, wait=False) as alone:
        if not alone:
            raise ValueError(f"{out} is being written to by another process: choose another one.")
        _tidy(job.out)
        found, missing = _found(inputs, job.out)
        taken: dict[str, Path] = {}
        for path in tqdm(found, "images", disable=not progress or len(found) < 2):
            reason = missing.get(path)
            other = taken.setdefault(Path(path).stem, Path(path))
            try:
                if reason is None:
                    done.append(job.predict(Path(path), other))
            except Exception as error:  # whatever it is, it is this file's
                reason = sentence(error, job.out)
                if other == Path(path):
                    del taken[other.stem]  # the name is free for another one
            except KeyboardInterrupt:
                tell(f"Stopped at {path}. What is done stays: {_images(len(done))}.")
                raise
            if reason:
                failed[path] = reason
                tell(f"{path}: {reason}")
    return Report(tuple(done), failed, job.out / TABLE, diameter)


def _check_arguments(page: int | None, pixel_size: float | None) -> None:
    if pixel_size is not None and not LENGTHS[0] <= pixel_size <= LENGTHS[1]:
        raise ValueError(
            f"pixel_size must be a length in µm, from {LENGTHS[0]:g} to {LENGTHS[1]:g}, not "
            f"{pixel_size}."
        )
    if page is not None and page < 0:
        raise ValueError(f"page must be 0, the first one, or more, not {page}.")


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be a folder of results: {error.strerror}.") from error
    return out


def sentence(error: Exception, out: Path) -> str:
    """What went wrong with a file, for whoever gave it; `out` is where results go."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left where {out} is: free some, or choose another folder."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    if isinstance(error, MemoryError):
        return "there is not enough memory for it."
    told = (str(error).splitlines() or [""])[0]
    if isinstance(error, (ValueError, OSError, RuntimeError)) and told:
        return told
    return f"failed in a way that nobody expected ({type(error).__name__}: {told})."


def _found(inputs: Sequence[Path | str], out: Path) -> tuple[list[str], dict[str, str]]:
    """What to predict, each file once, and what is wrong with names that stand for no file."""
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for given in map(str, inputs):
        try:
            paths = _meant(given, out)
        except (OSError, ValueError) as error:  # a loop of links, too long a name, no permission
            missing[given] = sentence(error, out)
            continue
        for path in paths:
            found.setdefault(os.path.realpath(path), str(path))
    return [*found.values(), *missing], missing


def _meant(given: str, out: Path) -> list[Path]:
    """The files that a name stands for, at least one.

    Raises:
        ValueError, OSError: When there are none.
    """
    if not given:
        raise ValueError("is no name; give a file, a folder or a pattern.")
    try:
        mode = Path(given).stat().st_mode
    except FileNotFoundError:
        paths = sorted(map(Path, glob.glob(given)))
        if not paths or Path(given).is_symlink():  # to what is not there
            raise ValueError("there is no such file or folder.") from None
        return paths
    if stat.S_ISREG(mode):
        return [Path(given)]
    if not stat.S_ISDIR(mode):
        raise ValueError("is neither a file nor a folder; give an image.")
    paths = [path for path in sorted(Path(given).iterdir()) if _is_image(path, out)]
    if not paths:
        kinds = ", ".join(images.SUFFIXES)
        raise ValueError(f"holds no images; expected files that end in {kinds}.")
    return paths


def _is_image(path: Path, out: Path) -> bool:
    """Whether a file in a folder is meant: the results of earlier images are not."""
    ours = path.name.endswith(("_labels.tif", "_overlay.png")) and path.parent.samefile(out)
    named = path.suffix.lower() in images.SUFFIXES and not path.name.startswith(".")
    return named and path.is_file() and not ours


# --- one image -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Page:
    """What became of one page: its labels, a row per nucleus, and the picture of both.

    Attributes:
        size: Sides of its pixels, if they are known.
        network, why: As in `Done`.
    """

    labels: DiskArray
    objects: pd.DataFrame
    overlay: Path
    size: Sides | None
    network: Network
    why: str


@dataclass(frozen=True)
class _Job:
    """A network, where its results go, and how; see `predict_files`."""

    network: Network | None
    out: Path
    page: int | None
    pixel_size: float | None
    factor: float | None
    overwrite: bool
    progress: bool

    def predict(self, path: Path, same_name: Path) -> Done:
        """Predict all pages of a file, and write what becomes of them; the errors are sentences."""
        if same_name != path:
            raise ValueError(
                f"its results would take the names of those of {same_name}: predict it into "
                "another folder."
            )
        target = self.out / f"{path.stem}_labels.tif"
        if target.exists() and not self.overwrite:
            raise ValueError(f"{target} exists: choose another folder, or --overwrite.")
        with (
            TemporaryDirectory(prefix=SCRATCH, dir=self.out) as scratch,
            images.opened(path) as image,
        ):
            numbers = self._numbers(image)
            names = [_name(path, image, number) for number in numbers]
            self._check_names(path, names)
            pages = [
                self._predict_page(path, name, image, number, Path(scratch))
                for name, number in zip(names, numbers, strict=True)
            ]
            labels = Path(scratch, target.name)
            _write_labels(labels, pages)
            self._keep(path, [*(page.overlay for page in pages), labels], pages)
            return self._done(path, image, pages)

    def _done(self, path: Path, image: ImageFile, pages: Sequence[_Page]) -> Done:
        sizes = [page.size for page in pages]
        network, why = pages[-1].network, pages[-1].why
        assumed = None in sizes and network.pixel_size is not None
        oblong = (size for size in sizes if size and not pixel_sizes.is_square(size))
        nuclei = sum(len(page.objects) for page in pages)
        return Done(path, network, why, nuclei, assumed, image.left_out, next(oblong, None))

    def _numbers(self, image: ImageFile) -> list[int]:
        if self.page is None:
            return list(range(image.pages))
        if self.page >= image.pages:
            raise ValueError(
                f"there is no page {self.page}: it has {image.pages}, counted from 0; choose one."
            )
        return [self.page]

    def _check_names(self, path: Path, names: Sequence[str]) -> None:
        """Raise ValueError where an overlay would take the place of another image's.

        That of `x_page0.tif` and that of page 0 of `x.tif` have one name.
        """
        for name in names:
            owner = name
            if name == path.stem and self._has(name, "overlay.png"):
                # without labels of its own, the overlay is that of a page
                own = self._has(name, "labels.tif")
                owner = name if own else re.sub(r"_page\d+$", "", name)
            if owner != path.stem and self._has(owner, "labels.tif"):
                raise ValueError(
                    f"its {name}_overlay.png would take the place of that of {owner}: predict it "
                    "into another folder."
                )

    def _has(self, name: str, what: str) -> bool:
        return (self.out / f"{name}_{what}").exists()

    def _predict_page(
        self, path: Path, name: str, image: ImageFile, number: int, scratch: Path
    ) -> _Page:
        bar = _bars(name, self.progress)
        size = (self.pixel_size,) * 2 if self.pixel_size else image.pixel_size(number)
        network, why, factor = self.network, "", 1.0
        if network is not None:
            factor = _factor(network, size) if self.factor is None else self.factor
        self._check_room(image, number, factor)
        folder = scratch / f"page{number}"
        folder.mkdir()
        spooled = image.spool(number, folder)
        if network is None:
            why = kind_of(spooled)
            network = suited(why)
            factor = _factor(network, size)
            self._check_room(image, number, factor)
        labels = DiskArray(scratch / f"labels{number}", spooled.shape, np.int32)
        for rows, part in _labels(network.trained, spooled, factor, folder, bar):
            labels[slice(*rows)] = part
        count = _without_gaps(labels) if factor != 1 else _highest(labels)
        overlay = scratch / f"{name}_overlay.png"
        objects = _measured(spooled, labels, count, overlay, bar)
        shutil.rmtree(folder)
        objects.insert(0, "image", cell_of(path.name))
        objects.insert(1, "page", number)
        objects["area_um2"] = objects["area"] * (np.prod(size) if size else np.nan)
        return _Page(labels, objects[list(COLUMNS)], overlay, size, network, why)

    def _check_room(self, image: ImageFile, number: int, factor: float) -> None:
        """Say that the disk is too small before an hour is spent, not after."""
        height, width, channels = image.shape(number)
        pixels = height * width
        need = pixels * (4 * channels + 4) + pixels * factor**2 * (4 * channels * (factor != 1) + 9)
        free = shutil.disk_usage(self.out).free
        if free < need:
            raise ValueError(
                f"needs up to {decimal(int(need))} where {self.out} is, while it is predicted, and "
                f"{decimal(free)} are free: free some, or choose another folder."
            )

    def _keep(self, path: Path, made: list[Path], pages: list[_Page]) -> None:
        """Put the results of an image in their places; `made` ends with the labels."""
        if (self.out / made[-1].name).exists():
            self._forget(path)
        try:
            add_rows(self.out / TABLE, pd.concat([page.objects for page in pages]))
            for file in made:
                file.replace(self.out / file.name)
        except BaseException:
            for file in made:
                (self.out / file.name).unlink(missing_ok=True)
            self._drop_rows(path)
            raise

    def _forget(self, path: Path) -> None:
        """Remove what an earlier prediction of an image left, but what is another one's."""
        (self.out / f"{path.stem}_labels.tif").unlink()
        name = glob.escape(path.stem)
        for pattern in (f"{name}_overlay.png", f"{name}_page*_overlay.png"):
            for overlay in self.out.glob(pattern):
                owner = overlay.name.removesuffix("_overlay.png")
                if not (self.out / f"{owner}_labels.tif").exists():
                    overlay.unlink()
        self._drop_rows(path)

    def _drop_rows(self, path: Path) -> None:
        drop_rows(self.out / TABLE, lambda image: Path(image).stem == path.stem)


def _factor_of(network: Network | None, diameter: float | None) -> float | None:
    """By which all images are enlarged; None where no diameter of their nuclei was given."""
    if diameter is None:
        return None
    if network is None:
        raise ValueError(
            "--diameter is of use to a network that knows nuclei of one size alone: choose one by "
            "--run; `nuctut networks` lists them."
        )
    return network.trained.factor(diameter)


def _factor(network: Network, size: Sides | None) -> float:
    """By which an image is enlarged so that nuclei are as large as the network knows them."""
    if size is None or network.pixel_size is None:
        return 1.0
    factors = [side / network.pixel_size for side in size]
    if all(abs(factor - 1) < SAME_SCALE for factor in factors):
        return 1.0
    if not pixel_sizes.is_square(size):
        raise ValueError(
            f"has pixels of {pixel_sizes.shown(size)}, but they should be square, since it has "
            "to be rescaled; resample it, or give one --pixel-size for both sides."
        )
    if not SCALES[0] <= factors[1] <= SCALES[1]:
        raise ValueError(
            f"its pixels of {size[1]:g} µm are {factors[1]:.3g} times as large as those the "
            f"network learned from, expected {SCALES[0]:g} to {SCALES[1]:g}: check the "
            "--pixel-size."
        )
    return factors[1]


def _name(path: Path, image: ImageFile, number: int) -> str:
    """Of a page, as its overlay is called."""
    return f"{path.stem}_page{number}" if image.pages > 1 else path.stem


def _bars(name: str, progress: bool) -> Bar:
    """Makes a progress bar with the time left for each step of an image."""

    def bar(steps: Iterable, what: str, total: int | None = None) -> Iterable:
        return tqdm(steps, f"{name}: {what}", total, disable=not progress, leave=False)

    return bar


# --- labels --------------------------------------------------------------------------------------


def _labels(
    trained: experiments.Trained, image: Spooled, factor: float, folder: Path, bar: Bar
) -> Iterator[tuple[Span, np.ndarray]]:
    """Rows and (h, W) int32 labels of an image, which may have gaps where the scale is another."""
    if factor == 1:
        yield from _labels_as_learned(trained, image, folder, bar)
        return
    scaled = rescaled(image, factor, folder)
    labels = DiskArray(folder / "scaled_labels", scaled.shape, np.int32)
    for rows, part in _labels_as_learned(trained, scaled, folder, bar):
        labels[slice(*rows)] = part
    down, across = (
        ((np.arange(n) + 0.5) * m / n).astype(int)
        for n, m in zip(image.shape, scaled.shape, strict=True)
    )
    for start, stop in bands(image.shape):
        rows = down[start:stop]
        some = labels[rows[0] : rows[-1] + 1]
        yield (start, stop), some[np.ix_(rows - rows[0], across)]


def _labels_as_learned(
    trained: experiments.Trained, image: Spooled, folder: Path, bar: Bar
) -> Iterator[tuple[Span, np.ndarray]]:
    """Rows and labels of an image that has the network's scale: those of the whole, exactly."""
    pixels = _normalised(trained, image)
    if trained.rule is None:
        labels = _labels_of_detector(trained, pixels, image.shape, folder, bar)
        yield from (((start, stop), labels[start:stop]) for start, stop in bands(image.shape))
        return
    classes = DiskArray(folder / "classes", image.shape, np.uint8)
    precision = trained.settings.precision
    tiles = inference.predict_tiles(trained.model, pixels, image.shape, precision=precision)
    count = inference.number_of_tiles(trained.model, image.shape)
    for rows, columns, chances in bar(tiles, "network", count):
        classes[slice(*rows), slice(*columns)] = trained.rule.classes(chances)
    scratch = DiskArray(folder / "ids", image.shape, np.int32)
    yield from labels_in_bands(trained.rule, classes, scratch, each=bar)


def _labels_of_detector(
    trained: experiments.Trained, pixels: Pixels, shape: tuple[int, int], folder: Path, bar: Bar
) -> DiskArray:
    """What `detection.segment` makes of the whole, of a network that gives nuclei."""
    found = detection.detections_in_tiles(
        trained.model, pixels, shape, each=lambda windows: bar(windows, "network")
    )
    labels = DiskArray(folder / "painted", shape, np.int32)
    settings = trained.settings
    detection.paint(found, labels, min_score=settings.threshold, min_area=settings.min_area)
    return labels


def _normalised(trained: experiments.Trained, image: Spooled) -> Pixels:
    """Gives any window of an image as the network takes it, normalised as a whole."""
    width = image.shape[1]

    def rows(start: int, stop: int) -> np.ndarray:
        return _as_learned(trained, image, (start, stop), (0, width))

    scale = "linear" if trained.rule is None else trained.settings.scale  # see `detection`
    normalisation = Normalisation.of(Blocks(rows, image.shape[0], image.dtype), scale)
    return lambda rows, columns: normalisation.apply(_as_learned(trained, image, rows, columns))


def _as_learned(
    trained: experiments.Trained, image: Spooled, rows: Span, columns: Span
) -> np.ndarray:
    """A window with the channels that the network takes."""
    return trained.channelled(image.read(rows, columns))


def _highest(labels: DiskArray) -> int:
    return max(int(labels[start:stop].max()) for start, stop in bands(labels.shape))


def _without_gaps(labels: DiskArray) -> int:
    """Renumber labels of which some may have got lost, being small; gives their number."""
    seen = np.zeros(_highest(labels) + 1, bool)
    for start, stop in bands(labels.shape):
        seen[labels[start:stop]] = True
    seen[0] = False
    numbers = np.where(seen, np.cumsum(seen), 0).astype(np.int32)
    for start, stop in bands(labels.shape):
        labels[start:stop] = numbers[labels[start:stop]]
    return int(seen.sum())


def _write_labels(path: Path, pages: Sequence[_Page]) -> None:
    """A TIFF file with the labels of all pages, in strips: ImageJ itself cannot read tiles.

    Pages of one shape and pixel size are one stack, others are images of their own.
    """
    count = max(len(page.objects) for page in pages)
    dtype = np.dtype(np.uint16 if count <= np.iinfo(np.uint16).max else np.uint32)
    alike = len({(page.labels.shape, page.size) for page in pages}) == 1
    bytes_ = dtype.itemsize * sum(prod(page.labels.shape) for page in pages)
    identity = _identity(path.name, pages)
    with tifffile.TiffWriter(path, bigtiff=bytes_ > CLASSIC, ome=True) as file:
        for stack in [pages] if alike else [[page] for page in pages]:
            _write_stack(file, stack, dtype, identity)


def _write_stack(
    file: tifffile.TiffWriter, pages: Sequence[_Page], dtype: np.dtype, identity: str
) -> None:
    (height, width), size = pages[0].labels.shape, pages[0].size
    rows = max(1, STRIP // (width * dtype.itemsize))

    def strips() -> Iterator[bytes]:
        for page in pages:
            for start, stop in bands((height, width), width * rows):
                yield imagecodecs.zlib_encode(page.labels[start:stop].astype(dtype).tobytes())

    metadata: dict[str, Any] = {"axes": "YX" if len(pages) == 1 else "TYX", "UUID": identity}
    resolution = {}
    if size is not None:
        for axis, side in zip("YX", size, strict=True):
            metadata |= {f"PhysicalSize{axis}": side, f"PhysicalSize{axis}Unit": "µm"}
        resolution = {"resolution": (1e4 / size[1], 1e4 / size[0]), "resolutionunit": "CENTIMETER"}
    file.write(
        strips(),
        shape=(height, width) if len(pages) == 1 else (len(pages), height, width),
        dtype=dtype,
        photometric="minisblack",
        compression="zlib",
        rowsperstrip=rows,
        metadata=metadata,
        **resolution,
    )


def _identity(name: str, pages: Sequence[_Page]) -> str:
    """An OME-TIFF's UUID, which is otherwise drawn by chance: of its name and what it holds."""
    content = hashlib.sha256(name.encode("utf-8", "surrogateescape"))
    for page in pages:
        content.update(repr((page.labels.shape, page.size)).encode())
        for start, stop in bands(page.labels.shape):
            content.update(page.labels[start:stop])
    return str(uuid5(NAMESPACE_OID, content.hexdigest()))


# --- objects -------------------------------------------------------------------------------------


def _measured(
    image: Spooled, labels: DiskArray, count: int, overlay: Path, bar: Bar
) -> pd.DataFrame:
    """A row per nucleus, in the order of labels; the overlay is written to its file."""
    objects, picture = _Objects(labels.shape, count), _Reduced(labels.shape, len(image.planes))
    spans = bands(labels.shape)
    for start, stop in bar(spans, "objects"):
        low, high = max(0, start - 1), min(labels.shape[0], stop + 1)
        around, pixels = labels[low:high], image.read((start, stop))
        edges = figures.outlines(around)[start - low : stop - low]
        objects.add(start, around[start - low : stop - low], pixels)
        picture.add(start, pixels, edges)
    overlay.write_bytes(imagecodecs.png_encode(picture.drawn()))
    return objects.table()


class _Objects:
    """What is known of each nucleus, gathered from bands of rows."""

    def __init__(self, shape: tuple[int, int], count: int) -> None:
        self.shape = shape
        self.area = np.zeros(count + 1, int)
        self.sums = np.zeros((3, count + 1))  # of rows, columns and intensities
        self.low = np.full((2, count + 1), max(shape))  # row and column
        self.high = np.zeros((2, count + 1), int)

    def add(self, start: int, labels: np.ndarray, pixels: np.ndarray) -> None:
        """A band that begins with the row `start`: (h, W) labels and the image's pixels."""
        rows, columns = np.nonzero(labels)
        if not rows.size:
            return
        ids, inside = labels[rows, columns], pixels[rows, columns]
        light = inside.mean(-1, dtype=float) if inside.ndim == 2 else inside.astype(float)
        rows += start
        first, last = int(ids.min()), int(ids.max())
        near, span = ids - first, slice(first, last + 1)
        self.area[span] += np.bincount(near)
        for total, values in zip(self.sums, (rows, columns, light), strict=True):
            total[span] += np.bincount(near, values)
        for low, high, places in zip(self.low, self.high, (rows, columns), strict=True):
            np.minimum.at(low, ids, places)
            np.maximum.at(high, ids, places)

    def table(self) -> pd.DataFrame:
        """A row per nucleus, in the order of labels."""
        (top, left), (bottom, right) = self.low[:, 1:], self.high[:, 1:] + 1
        height, width = self.shape
        touches = (top == 0) | (left == 0) | (bottom == height) | (right == width)
        area = self.area[1:]
        y, x, light = self.sums[:, 1:] / area
        return pd.DataFrame(
            {
                "label": np.arange(1, len(area) + 1),
                "area": area,
                "centroid_y": y,
                "centroid_x": x,
                "top": top,
                "left": left,
                "bottom": bottom,
                "right": right,
                "mean_intensity": light,
                "touches_border": np.where(touches, "true", "false"),
            }
        )


class _Reduced:
    """An image and outlines over it, by a whole number smaller, gathered from bands of rows."""

    def __init__(self, shape: tuple[int, int], channels: int) -> None:
        self.step = -(-max(shape) // SIDE)
        firsts = [np.arange(0, length, self.step) for length in shape]
        self.columns = firsts[1]
        self.pixels = np.zeros((*map(len, firsts), channels))
        self.edges = np.zeros(tuple(map(len, firsts)), bool)
        rows, columns = (
            np.diff(first, append=length) for first, length in zip(firsts, shape, strict=True)
        )
        self.areas = np.outer(rows, columns)[..., None]

    def add(self, start: int, pixels: np.ndarray, edges: np.ndarray) -> None:
        """A band that begins with the row `start`: the image's pixels, and (h, W) bool outlines."""
        cells = np.arange(start, start + len(edges)) // self.step
        cells, first = np.unique(cells, return_index=True)
        sums = np.add.reduceat(np.atleast_3d(pixels), first, dtype=float)
        self.pixels[cells] += np.add.reduceat(sums, self.columns, 1)
        some = np.logical_or.reduceat(edges, first)
        self.edges[cells] |= np.logical_or.reduceat(some, self.columns, 1)

    def drawn(self) -> np.ndarray:
        """(h, w, 3) uint8: the image from black to white, the outlines in a colour of their own."""
        image = self.pixels / self.areas
        view = figures.display_range(image)
        bright = np.median(view) > 127
        if not bright:
            view = figures.display_range(image, gamma=0.6)  # dim nuclei show
        picture = np.broadcast_to(view, (*self.edges.shape, 3)).copy()
        colour = figures.GREEN if bright else figures.ORANGE
        picture[self.edges] = np.round(255 * np.array(to_rgb(colour)))
        return picture


# --- what a killed process left ------------------------------------------------------------------


def _tidy(out: Path) -> None:
    """Remove its folder, and rows of an image that was not done."""
    for folder in out.glob(f"{SCRATCH}*"):
        shutil.rmtree(folder)
    for file in out.glob(f".{TABLE}.*"):
        file.unlink()
    drop_rows(out / TABLE, lambda image: not (out / f"{Path(image).stem}_labels.tif").exists())
