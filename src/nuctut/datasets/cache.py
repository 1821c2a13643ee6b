"""Labels kept ready: what took thousands of files to put together is one file per image after.

A split's cache is a folder below the cache folder with `<key>.npy` for each image and an index. Its
name holds a digest of the names, sizes and times of the files it was made from, so a change to any
of them leads to another cache. It is written to a temporary place and renamed, whole; one that is
damaged is made anew. Nothing depends on it but time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pooch
from tqdm.auto import tqdm

from nuctut.datasets.spec import DatasetSpec
from nuctut.samples import Sample

VERSION = 1  # raise it when a reader gives other labels or tags for the same files
INDEX = "index.json"
BUILDING = ".building-"
ABANDONED = 3600  # seconds after which a half-made cache is one that a killed process left
THREADS = min(8, os.cpu_count() or 1)  # the decoder works without Python's lock
PATIENCE = 2  # seconds of work before a progress bar appears


def cache_root() -> Path:
    """The folder of what can be made again: $NUCTUT_CACHE, or the user's cache folder."""
    cache = os.environ.get("NUCTUT_CACHE") or pooch.os_cache("nuctut")
    return Path(cache).expanduser().resolve()


def content_fingerprint(paths: Iterable[Path]) -> str:
    """sha256 over the contents of the files, in order; one that comes again counts once."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def open_split(
    spec: DatasetSpec, folder: Path, split: str, keys: Sequence[str]
) -> tuple[CachedReader, str]:
    """A reader of the split's samples, and the content fingerprint of its files.

    The first time all of them are read, which takes a while; later only the files' names, sizes
    and times are looked at.

    Raises:
        ValueError, FileNotFoundError: As `spec.read` does, for a file at fault.
    """
    files = [path for key in keys for path in spec.files(folder, key)]
    owner = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    family = f"{spec.name}-{split}-{owner}-"
    place = cache_root() / "labels" / (family + _stat_fingerprint(folder, files)[:16])
    index = _read_index(place, keys)
    if index is None:
        shutil.rmtree(place, ignore_errors=True)
        with _building(place) as store:
            for sample in _read_all(spec, folder, split, keys):
                store.add(sample)
            index = store.finish(content_fingerprint(files))
        for other in set(place.parent.glob(f"{family}*")) - {place}:
            shutil.rmtree(other, ignore_errors=True)  # the files it was made from have changed
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
        labels = self._labels(key)
        if labels is None:
            return self.spec.read(self.folder, key)
        image = self.spec.read_image(self.folder, key)
        return Sample(key, image, labels, self.entries[key].tags)

    def _labels(self, key: str) -> np.ndarray | None:
        try:
            stored = np.load(self.place / f"{key}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            stored = None
        if stored is None or zlib.crc32(stored) != self.entries[key].crc32:
            shutil.rmtree(self.place, ignore_errors=True)  # the next load makes it anew
            return None
        return stored.astype(np.int32)


@dataclass(frozen=True)
class _Entry:
    """What the index says of one image: the checksum of its labels, and its tags."""

    crc32: int
    tags: Mapping[str, str]


@dataclass(frozen=True)
class _Index:
    """What a cache says of the files it was made from."""

    fingerprint: str
    entries: Mapping[str, _Entry]


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
                entries = {key: (entry.crc32, entry.tags) for key, entry in self.entries.items()}
                text = json.dumps({"fingerprint": fingerprint, "entries": entries})
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
        if time.time() - path.stat().st_mtime > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


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


def _stat_fingerprint(folder: Path, files: Sequence[Path]) -> str:
    """Digest of the names, sizes and times of the files."""
    digest = hashlib.sha256(f"{VERSION}\n".encode())
    for path in files:
        stat = os.stat(path)
        name = str(path).removeprefix(str(folder))
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_index(place: Path, keys: Sequence[str]) -> _Index | None:
    """The index of a cache, or None where there is none that is whole."""
    try:
        checksum, text = (place / INDEX).read_text("utf-8").split("\n", 1)
    except (OSError, ValueError):
        return None
    if checksum != _checksum(text) or not all((place / f"{key}.npy").is_file() for key in keys):
        return None
    stored = json.loads(text)
    entries = {key: _Entry(*entry) for key, entry in stored["entries"].items()}
    return _Index(stored["fingerprint"], entries)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
