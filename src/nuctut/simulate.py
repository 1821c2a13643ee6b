"""Small invented data sets, written in the layout of the real ones so that their loaders read them.

The images look like BBBC039's where it matters to a segmentation: sizes, shapes and brightness of
nuclei, how many touch, debris, mitotic and dim cells, blur, noise and background were set by
measuring the real images. No pixel comes from them.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from skimage.io import imsave

VERSION = 1  # raise it when the same seed gives other images than before
MARKER = "SIMULATED.txt"
SPLITS = ("training", "validation", "test")
FULL_SHAPE = (520, 696)
SMALL_SHAPE = (260, 348)
SMALL_IMAGES = {"training": 12, "validation": 4, "test": 6}

OFFSET = 100  # camera counts without any light
GAIN = 0.33  # camera counts per photon
READ_NOISE = 1.7  # standard deviation, in camera counts
LARGEST = 4095  # 12 bit
NUCLEI = (135, 35)  # per image of FULL_SHAPE: mean and standard deviation
PEAK = 565  # typical brightness of a nucleus above the background, in camera counts


def simulate_bbbc039(
    folder: Path,
    *,
    images: Mapping[str, int] = SMALL_IMAGES,
    shape: tuple[int, int] = FULL_SHAPE,
    seed: int = 0,
) -> Path:
    """Writes a data set that looks like BBBC039 and has its layout; returns its folder.

    The same arguments give the same bytes. An image depends on the seed, its split and its place
    in it, so a larger set begins with the images of a smaller one. A marker file says that the
    set is simulated. The folder appears at the end, whole.

    Args:
        folder: Where to; must not exist.
        images: How many images in each of the splits "training", "validation" and "test".
        shape: (H, W) of the images in pixels, each at least 64.
        seed: Not negative.

    Raises:
        ValueError: For a split, number of images, shape or seed that cannot be.
        FileExistsError: When the folder exists.
    """
    validate(images, shape, seed)
    with appearing_whole(folder) as made:
        _write(made, images, shape, seed)
    return folder


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` at the end, or nothing at all.

    Raises:
        FileExistsError: When `folder` exists, before or after.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: name a new folder, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".simulating-", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        yield made
        try:
            os.replace(made, folder)
        except OSError as error:
            if folder.exists():  # someone else wrote it in the meantime
                raise FileExistsError(f"{folder} exists already: name a new folder.") from error
            raise


def field_of_view(
    rng: np.random.Generator, shape: tuple[int, int], *, empty: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """One image and the colours of the nuclei in it.

    Returns:
        (H, W) uint16 image with values from 0 to 4095; (H, W) uint8 colours: 0 is background,
        and touching nuclei have different values among 1, 2, 3.
    """
    canvas = Canvas(shape, rng)
    if not empty:
        _populate(canvas)
    return photograph(canvas.signal, rng), canvas.red


def validate(images: Mapping[str, int], shape: tuple[int, int], seed: int) -> None:
    """Refuses a split, number of images, shape or seed that cannot be."""
    if set(images) != set(SPLITS) or min(images.values()) < 1:
        raise ValueError(
            f"images must give each of {', '.join(SPLITS)} at least 1 image, not {dict(images)}."
        )
    if len(shape) != 2 or min(shape) < 64:
        raise ValueError(f"shape must be (height, width), each at least 64, not {shape}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, as {seed} is.")


def _write(folder: Path, images: Mapping[str, int], shape: tuple[int, int], seed: int) -> None:
    for name in ("images", "masks", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, split in enumerate(SPLITS):
        keys = [f"simulated_{split}_{index:03d}" for index in range(images[split])]
        for index, key in enumerate(keys):
            rng = np.random.default_rng([seed, number, index])
            # BBBC039 has three images without a nucleus; one in forty here, the first early
            image, red = field_of_view(rng, shape, empty=index % 40 == 5)
            rgba = np.zeros((*shape, 4), np.uint8)
            rgba[..., 0], rgba[..., 3] = red, 255
            path = folder / "images" / f"{key}.tif"
            tifffile.imwrite(path, image, photometric="minisblack", metadata=None, software=False)
            imsave(folder / "masks" / f"{key}.png", rgba, check_contrast=False)
        lines = "".join(f"{key}.png\n" for key in keys)
        (folder / "metadata" / f"{split}.txt").write_bytes(lines.encode())
    (folder / MARKER).write_bytes(
        b"These images are simulated. They have the layout of BBBC039v1 and none of its pixels.\n"
        + f"nuctut.simulate version {VERSION}, shape {shape}, seed {seed}\n".encode()
    )


@dataclass
class Blob:
    """An outline in polar form around (y, x): an ellipse with waves on its edge."""

    y: float
    x: float
    radius: float  # of the circle of the same area, in pixels
    axis_ratio: float = 1.0
    angle: float = 0.0
    waves: tuple[tuple[int, float, float], ...] = ()  # (per turn, amplitude, phase)
    spots: tuple[tuple[float, float, float], ...] = ()  # nucleoli: (y, x, depth), radius 1 = edge
    peak: float = 0.0

    def reach(self, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
        """Distance from the centre as a share of the edge's: below 1 inside."""
        theta = np.arctan2(dy, dx) - self.angle
        stretch = math.sqrt(self.axis_ratio)
        edge = self.radius / np.hypot(stretch * np.cos(theta), np.sin(theta) / stretch)
        for turns, amplitude, phase in self.waves:
            edge *= 1 + amplitude * np.cos(turns * theta + phase)
        return np.hypot(dy, dx) / edge

    @property
    def extent(self) -> int:
        """No pixel of the blob is further from its centre, along either axis."""
        waves = math.prod(1 + abs(amplitude) for _, amplitude, _ in self.waves)
        return math.ceil(self.radius / math.sqrt(self.axis_ratio) * waves) + 1


@dataclass
class Canvas:
    """Light from the nuclei drawn so far, and their colours."""

    shape: tuple[int, int]
    rng: np.random.Generator
    blobs: list[Blob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.signal = np.zeros(self.shape, np.float32)
        self.red = np.zeros(self.shape, np.uint8)
        # chromatin: a grain of about two pixels on coarser clouds
        grain, clouds = self._noise(1.3), self._noise(4.0)
        self.texture = np.maximum(1 + 0.08 * grain + 0.08 * clouds, 0.3)

    def _noise(self, sigma: float) -> np.ndarray:
        noise = self.rng.standard_normal(self.shape, np.float32)
        noise = ndimage.gaussian_filter(noise, sigma, mode="wrap")
        return noise / noise.std()

    def is_taken(self, y: float, x: float) -> bool:
        """Whether a nucleus lies at (y, x), or beside it where that is outside the image."""
        height, width = self.shape
        row, column = min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)
        return bool(self.red[row, column])

    def add(self, blob: Blob, overlap: float = 0.0, gap: float = 3.0) -> bool:
        """Draws a blob where it finds room, and says whether it did.

        Args:
            blob: What to draw.
            overlap: Share of its area that may lie behind others; above 0 it may touch them.
            gap: Distance in pixels that it keeps from others when it may not touch.
        """
        extent = blob.extent + 2
        top, left = (max(round(at) - extent, 0) for at in (blob.y, blob.x))
        patch = np.s_[top : max(round(blob.y) + extent, 0), left : max(round(blob.x) + extent, 0)]
        red = self.red[patch]
        dy = np.arange(top, top + red.shape[0])[:, None] - blob.y
        dx = np.arange(left, left + red.shape[1])[None, :] - blob.x
        reach = blob.reach(dy, dx)
        inside = reach < 1
        hidden = inside & (red > 0)
        crowded = red[reach < 1 + gap / blob.radius].any() if overlap == 0 else False
        if crowded or inside.sum() < 6 or hidden.sum() > overlap * inside.sum():
            return False
        seen = _largest_part(inside & ~hidden) if hidden.any() else inside
        near = set(red[ndimage.binary_dilation(seen, np.ones((3, 3)))].tolist())
        free = [colour for colour in (1, 2, 3) if colour not in near]
        if not free:
            return False
        red[seen] = free[0]
        light = np.where(inside, blob.peak * (0.72 + 0.28 * (1 - reach**2)), 0)
        light *= self.texture[patch] * _nucleoli(blob, dy, dx)
        np.maximum(self.signal[patch], light, out=self.signal[patch], casting="same_kind")
        self.blobs.append(blob)
        return True


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected part: a nucleus half hidden by others must stay one object."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def _nucleoli(blob: Blob, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Factor below 1 where the nucleus has dark spots."""
    factor = np.ones(np.broadcast_shapes(dy.shape, dx.shape))
    for y, x, depth in blob.spots:
        away = (dy - y * blob.radius) ** 2 + (dx - x * blob.radius) ** 2
        factor *= 1 - depth * np.exp(-away / (2 * 1.6**2))
    return factor


def _populate(canvas: Canvas) -> None:
    """Draws nuclei and what lies between them."""
    rng, (height, width) = canvas.rng, canvas.shape
    crowd = height * width / math.prod(FULL_SHAPE)
    brightness = PEAK * math.exp(rng.normal(0, 0.15))
    wanted = round(crowd * max(rng.normal(*NUCLEI), 25))
    bare = _bare_patch(rng, canvas.shape)
    for _ in range(40 * wanted):  # a crowded field takes several tries per nucleus
        if len(canvas.blobs) >= wanted:
            break
        y, x = rng.uniform(-8, height + 8), rng.uniform(-8, width + 8)
        if (y - bare.y) ** 2 + (x - bare.x) ** 2 < bare.radius**2 or canvas.is_taken(y, x):
            continue
        _add_cell(canvas, y, x, brightness)
    for _ in range(rng.poisson(0.065 * len(canvas.blobs))):
        _add_debris(canvas, brightness)
    _add_unlabelled(canvas, round(crowd * rng.poisson(14)))


def _bare_patch(rng: np.random.Generator, shape: tuple[int, int]) -> Blob:
    """A round area without cells, as every third field has one."""
    size = rng.uniform(0.25, 0.6) * min(shape) if rng.random() < 0.35 else 0.0
    return Blob(rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), size)


def _add_cell(canvas: Canvas, y: float, x: float, brightness: float) -> None:
    """One cell at (y, x): a nucleus, alone or with a neighbour, or a cell dividing or dying."""
    rng = canvas.rng
    kind = rng.random()
    if kind < 0.008:
        _add_mitosis(canvas, y, x, brightness)
    elif kind < 0.018:
        _add_fragments(canvas, y, x, brightness)
    else:
        first = _nucleus(rng, y, x, brightness)
        if canvas.add(first):
            while rng.random() < 0.17:
                _add_neighbour(canvas, first, _nucleus(rng, y, x, brightness))


def _nucleus(rng: np.random.Generator, y: float, x: float, brightness: float) -> Blob:
    area = min(max(rng.normal(680, 170), 280), 1400) * (2 if rng.random() < 0.015 else 1)
    rough = 0.13 if rng.random() < 0.25 else 0.03  # one in five has dents and lobes
    dim = rng.uniform(0.25, 0.5) if rng.random() < 0.07 else 1.0
    return Blob(
        y,
        x,
        radius=math.sqrt(area / math.pi),
        axis_ratio=min(max(rng.normal(0.67, 0.13), 0.38), 0.95),
        angle=rng.uniform(0, math.pi),
        waves=tuple(
            (turns, rng.normal(0, rough * share), rng.uniform(0, 2 * math.pi))
            for turns, share in ((2, 1.0), (3, 0.6), (4, 0.3))
        ),
        spots=tuple(
            (*rng.uniform(-0.45, 0.45, 2), rng.uniform(0.1, 0.35)) for _ in range(rng.poisson(1.2))
        ),
        peak=brightness * dim * math.exp(rng.normal(0, 0.25)),
    )


def _add_neighbour(canvas: Canvas, first: Blob, second: Blob) -> None:
    """Puts `second` at the edge of `first` so that they touch or overlap a little."""
    direction = canvas.rng.uniform(0, 2 * math.pi)
    step = np.array([math.sin(direction), math.cos(direction)])
    edges = [1 / blob.reach(*step[:, None]).item() for blob in (first, second)]
    distance = sum(edges) * canvas.rng.uniform(0.82, 0.97)
    second.y, second.x = first.y + distance * step[0], first.x + distance * step[1]
    canvas.add(second, overlap=0.2)


def _add_mitosis(canvas: Canvas, y: float, x: float, brightness: float) -> None:
    """A bright plate of condensed chromatin, or the two of a cell that is coming apart."""
    rng = canvas.rng
    angle, peak = rng.uniform(0, math.pi), brightness * rng.uniform(2, 5)
    half = rng.uniform(5, 9) if rng.random() < 0.5 else 0.0
    for side in (-1, 1) if half else (0,):
        plate = Blob(
            y + side * half * math.cos(angle),
            x - side * half * math.sin(angle),
            radius=rng.uniform(6, 8) if half else rng.uniform(8, 11),
            axis_ratio=rng.uniform(0.35, 0.55),
            angle=angle,
            waves=((3, rng.normal(0, 0.05), 0.0), (5, rng.normal(0, 0.04), 1.0)),
            peak=peak,
        )
        canvas.add(plate, overlap=0.1)


def _add_fragments(canvas: Canvas, y: float, x: float, brightness: float) -> None:
    """What a dying cell leaves: a few small bodies that touch."""
    rng = canvas.rng
    peak = brightness * rng.uniform(0.9, 1.8)
    body = Blob(y, x, rng.uniform(6, 9), rng.uniform(0.6, 1), rng.uniform(0, 3), peak=peak)
    if canvas.add(body):
        for _ in range(rng.integers(1, 4)):
            size, ratio = rng.uniform(4, 8), rng.uniform(0.6, 1)
            part = Blob(0, 0, size, ratio, rng.uniform(0, 3), peak=peak * rng.uniform(0.7, 1.2))
            _add_neighbour(canvas, body, part)


def _add_debris(canvas: Canvas, brightness: float) -> None:
    """A labelled speck of 6 to 60 pixels, half of the time close to a nucleus."""
    rng, (height, width) = canvas.rng, canvas.shape
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    if canvas.blobs and rng.random() < 0.5:
        host = canvas.blobs[rng.integers(len(canvas.blobs))]
        away, direction = host.radius * rng.uniform(1.3, 2), rng.uniform(0, 2 * math.pi)
        y, x = host.y + away * math.sin(direction), host.x + away * math.cos(direction)
    radius = math.sqrt(math.exp(rng.uniform(math.log(7), math.log(58))) / math.pi)
    peak = brightness * rng.uniform(0.25, 1)
    canvas.add(Blob(y, x, radius, rng.uniform(0.6, 1), rng.uniform(0, 3), peak=peak), gap=1.0)


def _add_unlabelled(canvas: Canvas, count: int) -> None:
    """Dust and cells far out of focus, which an annotator leaves out."""
    rng, (height, width) = canvas.rng, canvas.shape
    rows, columns = np.arange(height), np.arange(width)
    for index in range(count):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        far = index % 7 == 0
        sigma = rng.uniform(5, 9) if far else rng.uniform(0.6, 1.2)
        light = rng.uniform(8, 30) if far else rng.uniform(20, 120)
        profile = [np.exp(-((a - at) ** 2) / (2 * sigma**2)) for a, at in ((rows, y), (columns, x))]
        canvas.signal += (light * np.outer(*profile)).astype(np.float32)


def photograph(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a 12-bit camera sees of the light: blur, haze, uneven lamp, noise, offset."""
    out_of_focus = rng.uniform(1.2, 2.5) if rng.random() < 0.06 else abs(rng.normal(0, 0.3))
    sharp = ndimage.gaussian_filter(signal, math.hypot(1.15, out_of_focus))
    halo = ndimage.gaussian_filter(signal, 4.5)
    # the widest part of the haze carries no detail: blurring it coarsely is 16 times cheaper
    coarse = ndimage.gaussian_filter(signal[::4, ::4], 12).repeat(4, 0).repeat(4, 1)
    haze = ndimage.uniform_filter(coarse[: signal.shape[0], : signal.shape[1]], 9)
    medium = 49 * math.exp(rng.normal(0, 0.13))
    light = _illumination(signal.shape, rng) * (0.9 * sharp + 0.1 * halo + 0.07 * haze + medium)
    counts = OFFSET + GAIN * rng.poisson(light / GAIN)
    counts += READ_NOISE * rng.standard_normal(signal.shape)
    return np.clip(np.rint(counts), 0, LARGEST).astype(np.uint16)


def _illumination(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Factor around 1, brightest near the middle of the field."""
    centre, fall = rng.uniform(0.4, 0.6, 2), rng.uniform(0.1, 0.35)
    y, x = (np.linspace(0, 1, size) - at for size, at in zip(shape, centre, strict=True))
    return 1.08 - fall * (y[:, None] ** 2 + x[None, :] ** 2)
