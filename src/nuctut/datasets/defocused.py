"""A sharp data set out of focus: z-stacks with exact labels, where there are no real ones.

The stand-in for BBBC006 in the chapter on blur: BBBC039 has the same cells, dye and magnification,
was outlined by hand, and is in focus. What blurs it is `nuctut.optics`, which knows no data sets.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nuctut import optics
from nuctut.samples import Sample, SampleSet

VERSION = 1  # raise it when the same arguments give other images
SUFFIX = "-defocused"  # of the split's name


def defocused(
    samples: SampleSet,
    depths: Sequence[float],
    microscope: optics.Microscope = optics.MICROSCOPE,
    camera: optics.Camera = optics.CAMERA,
    seed: int = 0,
) -> SampleSet:
    """Each sample at each depth: `optics.out_of_focus`, and at 0 µm the image as it is.

    The model blurs alike on both sides of focus, so z and −z differ in their noise alone. Images
    are made when asked for, the same each time, and not kept; labels are shared between depths.

    Args:
        samples: Grey images in counts, in focus.
        depths: In µm, each once.
        microscope, camera: What blurs, and what adds the noise.
        seed: Of the noise; not negative.

    Returns:
        A set ordered by sample, then as `depths`; keys end in "_z" and the depth. Tags beside the
        sample's own are "z" (µm, such as "-20") and "field", the same for all depths of a sample:
        what is to be drawn together when scores are resampled. Its source is "stand-in" where the
        samples are real, else theirs.

    Raises:
        ValueError: For depths that come twice, are no numbers, or none.
    """
    names = [f"{depth:+g}" for depth in depths]
    if not names or len(set(names)) < len(names) or not np.isfinite(depths).all():
        raise ValueError(f"depths must be different numbers of µm, at least one, not {depths}.")
    made = {
        f"{key}_z{name}": (index, float(depth))
        for index, key in enumerate(samples.keys)
        for name, depth in zip(names, depths, strict=True)
    }
    about = repr((VERSION, samples.fingerprint, names, microscope, camera, seed))
    return SampleSet(
        list(made),
        _Reader(samples, made, microscope, camera, seed),
        name=samples.name,
        split=samples.split + SUFFIX,
        source=samples.stood_in,
        fingerprint=hashlib.sha256(about.encode()).hexdigest(),
        whole=None if samples.whole is None else samples.whole * len(names),
        remember=False,
    )


@dataclass(frozen=True)
class _Reader:
    """Makes the sample of a key; a class, so that it travels to other processes."""

    samples: SampleSet
    made: dict[str, tuple[int, float]]
    microscope: optics.Microscope
    camera: optics.Camera
    seed: int

    def __call__(self, key: str) -> Sample:
        index, z = self.made[key]
        sharp = self.samples[index]
        image = sharp.image
        if z:
            rng = np.random.default_rng([self.seed, zlib.crc32(key.encode())])
            image = optics.out_of_focus(image, z, rng, self.microscope, self.camera)
        tags = {"field": sharp.key} | dict(sharp.tags) | {"z": f"{z:g}"}
        return replace(sharp, key=key, image=image, tags=tags)
