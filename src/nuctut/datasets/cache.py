"""Labels kept ready: what took thousands of files to put together is one file per image after.

A split's cache is a folder below the cache folder with `<key>.npy` for each image and an index. Its
name holds a digest of the names, sizes and times of the files it was made from, so a change to any
of them leads to another cache. It is written to a temporary place and renamed, whole; one that is
damaged is made anew. Nothing depends on it but time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pooch
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass
from tqdm.auto import tqdm

from nuctut.datasets.checking import Listing
from nuctut.datasets.spec import DatasetSpec
from nuctut.files import STRICT, Count, Text, parse_json, read_text
from nuctut.samples import Sample

VERSION = 3  # raise it when a reader gives other labels or tags, or the index has another form
INDEX = "index.json"
BUILDING = ".building-"
ABANDONED = 3600  # seconds after which a half-made cache is one that a killed process left
THREADS = min(8, os.cpu_count() or 1)  # the decoder works without Python's lock
PATIENCE = 2  # seconds of work before a progress bar appears


def cache_root() -> Path:
    """The folder of what can be made again: $NUCTUT_CACHE, or the user's cache folder."""
    cache = os.environ.get("NUCTUT_CACHE") or pooch.os_cache("nuctut")
    return Path(cache).expanduser().resolve()


def content_fingerprint(folder: Path, listing: Listing) -> str:
    """sha256 over the contents of the files, in order."""
    digest = hashlib.sha256()
    for name in _names(listing):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def open_split(
    spec: DatasetSpec, folder: Path, split: str, listing: Listing
) -> tuple[CachedReader, str]:
    """A reader of the split's samples, and the content fingerprint of its files.

    The first time all of them are read, which takes a while; later nothing is but the cache, for as
    long as the listing (names, sizes and times of the files) is the same.

    Raises:
        ValueError, FileNotFoundError: As `spec.read` does, for a file at fault.
    """
    owner = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    family = f"{spec.name}-{split}-{owner}-"
    place = cache_root() / "labels" / (family + _stat_fingerprint(folder, listing)[:16])
    index = _read_index(place, listing)
    if index is None:
        _remove(place)
        with _building(place) as store:
            for sample in _read_all(spec, folder, split, list(listing)):
                store.add(sample)
            index = store.finish(content_fingerprint(folder, listing))
        for other in set(place.parent.glob(f"{family}*")) - {place}:
            _remove(other)  # the files it was made from have changed
    return CachedReader(spec, folder, place, index.entries), index.fingerprint


@dataclass(frozen=True)
class CachedReader:
    """Gives the samples of a split: images from their files, labels and tags from the cache."""

    spec: DatasetSpec
    folder: Path
    place: Path
    entries: Mapping[str, _Entry]

    def __call__(self, key: str) -> Sample:
        """The sample of a key; all from its own files where the cache is damaged or gone."""
        image = self.spec.read_image(self.folder, key)
        try:
            return Sample(key, image, self._labels(key), self.entries[key].tags)
        except Exception:  # numpy raises whatever it meets in a damaged file
            _remove(self.place)  # the next load makes it anew
            return self.spec.read(self.folder, key)

    def _labels(self, key: str) -> np.ndarray:
        path = self.place / f"{key}.npy"
        if not path.is_file():
            raise FileNotFoundError(path)
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if stored.dtype.kind != "u" or zlib.crc32(stored) != self.entries[key].crc32:
            raise ValueError(f"{path} does not hold what was stored in it.")
        return stored.astype(np.int32)


@pydantic_dataclass(config=STRICT, frozen=True)
class _Entry:
    """What the index says of one image: the checksum of its labels, and its tags."""

    crc32: Count
    tags: dict[str, str]


@pydantic_dataclass(config=STRICT, frozen=True)
class _Index:
    """What a cache says of the files it was made from."""

    fingerprint: Text
    entries: dict[str, _Entry]


@dataclass
class _Store:
    """A cache being written in `scratch`; None once it turned out that it cannot be."""

    place: Path
    scratch: Path | None
    entries: dict[str, _Entry] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        """Keeps the labels of a sample in the smallest type that holds them."""
        labels = sample.labels.astype(np.min_scalar_type(sample.count))
        self.entries[sample.key] = _Entry(zlib.crc32(labels), dict(sample.tags))
        if self.scratch:
            with self._giving_up():
                np.save(self.scratch / f"{sample.key}.npy", labels, allow_pickle=False)

    def finish(self, fingerprint: str) -> _Index:
        """Puts the cache in its place, unless another process was faster."""
        if self.scratch:
            with self._giving_up():
                text = TypeAdapter(_Index).dump_json(_Index(fingerprint, self.entries)).decode()
                (self.scratch / INDEX).write_text(f"{_checksum(text)}\n{text}", "utf-8")
                self.scratch.chmod(0o755)
                try:
                    os.replace(self.scratch, self.place)
                except OSError:
                    if not self.place.is_dir():
                        raise
        return _Index(fingerprint, self.entries)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """A cache that cannot be written costs time, and nothing else."""
        try:
            yield
        except OSError as error:
            _warn(self.place.parent, error)
            self.scratch = None


@contextmanager
def _building(place: Path) -> Iterator[_Store]:
    """A store for a new cache; whatever happens, nothing half-made stays."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place.parent)
        scratch = Path(tempfile.mkdtemp(prefix=BUILDING, dir=place.parent))
    except OSError as error:
        _warn(place.parent, error)
        yield _Store(place, None)
        return
    try:
        yield _Store(place, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(f"{BUILDING}*"):
        with suppress(FileNotFoundError):  # its process has just finished
            if time.time() - path.lstat().st_mtime > ABANDONED:
                _remove(path)


def _warn(folder: Path, error: OSError) -> None:
    warnings.warn(
        f"Nothing can be kept in {folder} ({error}), so all masks are read each time: make room "
        "there, or set NUCTUT_CACHE to a folder that you may write to.",
        stacklevel=2,
    )


def _read_all(spec: DatasetSpec, folder: Path, split: str, keys: Sequence[str]) -> Iterator[Sample]:
    """All samples of a split in order, read by several threads, with a bar if it takes long."""
    with ThreadPoolExecutor(THREADS) as pool:
        samples = pool.map(lambda key: spec.read(folder, key), keys)
        name = f"reading {spec.name} {split} for the first time"
        yield from tqdm(samples, name, total=len(keys), unit="image", delay=PATIENCE)


def _stat_fingerprint(folder: Path, listing: Listing) -> str:
    """Digest of the names, sizes and times of the files."""
    digest = hashlib.sha256(f"{VERSION}\n".encode())
    top = str(folder)  # a path for each of 30,000 files takes longer than to look at them
    for name in _names(listing):
        found = os.stat(f"{top}/{name}")
        line = f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _names(listing: Listing) -> Iterable[str]:
    """The files of a listing in order; one that comes again counts once."""
    return dict.fromkeys(name for files in listing.values() for name in files)


def _read_index(place: Path, keys: Collection[str]) -> _Index | None:
    """The index of a cache, or None where there is none that is whole."""
    path = place / INDEX
    try:
        checksum, text = read_text(path).split("\n", 1)
        index = parse_json(text, _Index, str(path))
    except (OSError, ValueError):
        return None
    whole = checksum == _checksum(text) and index.entries.keys() == set(keys)
    return index if whole and all((place / f"{key}.npy").is_file() for key in keys) else None


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _remove(place: Path) -> None:
    """Removes a cache, or what lies in its place; where a link leads to stays as it is."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:  # not with rmtree, which waits at a pipe for somebody to write into it
        with suppress(OSError):
            place.unlink()
