"""The data type of the whole book: one image with its nuclei, and a sequence of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np

SOURCES = ("real", "excerpt", "stand-in", "simulated")


@dataclass(frozen=True)
class Sample:
    """One image and the nuclei marked in it.

    Attributes:
        key: Name of the image, unique in its data set.
        image: (H, W) or (H, W, 3) array in the file's own dtype and units (camera counts).
        labels: (H, W) int32, 0 background and 1…N nuclei without gaps; N may be 0.
        tags: What else the data set says of the image (plate, specimen, plane …).

    Raises:
        ValueError: Naming the key, when the arrays do not fit this description.
    """

    key: str
    image: np.ndarray
    labels: np.ndarray
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        image, labels = self.image, self.labels
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(f"{self.key}: an image is (H, W) or (H, W, 3), not {image.shape}.")
        if labels.shape != image.shape[:2]:
            raise ValueError(
                f"{self.key}: labels of shape {labels.shape} do not fit "
                f"an image of shape {image.shape}."
            )
        if labels.dtype != np.int32:
            raise ValueError(f"{self.key}: labels must be int32, not {labels.dtype}.")
        if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
            raise ValueError(f"{self.key}: the image holds NaN or infinite values.")
        if labels.size and labels.min() < 0:
            raise ValueError(f"{self.key}: labels hold negative values.")
        if labels.size and not np.bincount(_run_starts(labels))[1:].all():
            raise ValueError(f"{self.key}: label ids must run from 1 to N without gaps.")
        object.__setattr__(self, "tags", MappingProxyType(dict(self.tags)))

    @property
    def count(self) -> int:
        """Number of nuclei."""
        return int(self.labels.max(initial=0))


def _run_starts(labels: np.ndarray) -> np.ndarray:
    """Each id that occurs, where a run of it along the rows begins: far fewer than all pixels."""
    flat = labels.ravel()
    return np.append(flat[:1], flat[1:][flat[1:] != flat[:-1]])


class SampleSet(Sequence[Sample]):
    """A split of a data set: samples read when asked for, and remembered.

    Args:
        keys: The samples' keys, in the publisher's order.
        read: Gives the sample of a key.
        name, split: Of the data set, such as "bbbc039" and "test".
        source: "real" (the paper's own data), "excerpt" (a few of its images), "stand-in" (other
            real data) or "simulated".
        fingerprint: Hex digest of what the samples were read from.
        whole: Of an excerpt or another part: how many images the split has in the real data set.
        remember: Whether to keep what was read. A set too large for memory is read anew each time.
    """

    def __init__(
        self,
        keys: Sequence[str],
        read: Callable[[str], Sample],
        *,
        name: str,
        split: str,
        source: str,
        fingerprint: str,
        whole: int | None = None,
        remember: bool = True,
    ) -> None:
        if source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, not {source!r}.")
        self.keys = tuple(keys)
        self.name, self.split, self.source = name, split, source
        self.fingerprint, self.whole = fingerprint, whole
        self.remember, self._read = remember, read
        self._samples: dict[str, Sample] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        key = self.keys[index]
        if key in self._samples:
            return self._samples[key]
        sample = self._read(key)
        if self.remember:
            self._samples[key] = sample
        return sample

    def take(self, count: int) -> SampleSet:
        """The first `count` samples (all of them when there are fewer) as a set of its own."""
        if count < 1:
            raise ValueError(f"take() needs a count of at least 1, not {count}.")
        if count >= len(self):
            return self
        return self._with(self.keys[:count], self._at, f"{self.fingerprint}:{count}")

    def picked(self, keys: Sequence[str]) -> SampleSet:
        """The samples of these keys, in this order, as a set of its own.

        Raises:
            ValueError: When there are none, or one of them is not in this set.
        """
        if not keys or (unknown := set(keys) - set(self.keys)):
            missing = f"{min(unknown)} is not in" if keys else "no key was given of"
            raise ValueError(f"{missing} {self.describe()}.")
        return self._with(keys, self._at, f"{self.fingerprint}:{' '.join(keys)}")

    def changed(
        self, how: str, change: Callable[[Sample], Sample], source: str | None = None
    ) -> SampleSet:
        """The samples as `change` makes them, each when it is asked for.

        Args:
            how: Tells this change from all others; it is part of the fingerprint.
            change: Gives a sample of the same key.
            source: Of the changed samples, by default that of these; see `stood_in`.
        """
        digested = f"{self.fingerprint}:{how}"
        return self._with(self.keys, partial(self._changed, change), digested, source)

    @property
    def stood_in(self) -> str:
        """The source of what is made of these samples to stand in for other data.

        Real ones become a "stand-in"; an excerpt or simulated ones are no more than before.
        """
        return "stand-in" if self.source == "real" else self.source

    def _at(self, key: str) -> Sample:
        return self[self.keys.index(key)]

    def _changed(self, change: Callable[[Sample], Sample], key: str) -> Sample:
        return change(self._at(key))

    def _with(
        self,
        keys: Sequence[str],
        read: Callable[[str], Sample],
        digested: str,
        source: str | None = None,
    ) -> SampleSet:
        return SampleSet(
            keys,
            read,
            name=self.name,
            split=self.split,
            source=source or self.source,
            fingerprint=hashlib.sha256(digested.encode()).hexdigest(),
            whole=self.whole,
            remember=self.remember,
        )

    def joined(self, other: SampleSet) -> SampleSet:
        """Both sets as one, first these samples, then those; split and source are this set's.

        Raises:
            ValueError: When a key is in both.
        """
        if both := set(self.keys) & set(other.keys):
            raise ValueError(f"{min(both)} is in {self.name} and in {other.name}.")
        digest = hashlib.sha256(f"{self.fingerprint}+{other.fingerprint}".encode()).hexdigest()
        place = {key: (part, at) for part in (self, other) for at, key in enumerate(part.keys)}
        names = dict.fromkeys((self.name, other.name))
        return SampleSet(
            self.keys + other.keys,
            lambda key: place[key][0][place[key][1]],
            name=" and ".join(names),
            split=self.split,
            source=self.source,
            fingerprint=digest,
            whole=None if self.whole is None else self.whole + (other.whole or len(other)),
            remember=self.remember and other.remember,
        )

    def describe(self) -> str:
        """One line that says what this is, such as "bbbc039 test (real, 50 images)".

        Of an excerpt: "bbbc039 test (real, excerpt: 4 of 50 images)"; of another part of the real
        data: "(real, part: 3 of 8064 images)".
        """
        if self.whole is None:
            return f"{self.name} {self.split} ({self.source}, {len(self)} images)"
        images = f"{len(self)} of {self.whole} images"
        excerpt = self.source == "excerpt"
        kind, part = ("real", "excerpt") if excerpt else (self.source, "part")
        return f"{self.name} {self.split} ({kind}, {part}: {images})"
