"""Fields of view of U2OS cells, their DNA stained with Hoechst: what BBBC039's images show.

Sizes, shapes and brightness of nuclei, how many touch, debris, mitotic and dim cells were set by
measuring the real images. No pixel comes from them.
"""

from __future__ import annotations

import math

import numpy as np

from nuctut.datasets.simulated.canvas import Blob, Canvas, photograph

FULL_SHAPE = (520, 696)
NUCLEI = (135, 35)  # per image of FULL_SHAPE: mean and standard deviation
PEAK = 565  # typical brightness of a nucleus above the background, in camera counts


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
        populate(canvas)
    return photograph(canvas.signal, rng), canvas.red


def populate(canvas: Canvas) -> None:
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
                add_neighbour(canvas, first, _nucleus(rng, y, x, brightness))


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


def add_neighbour(canvas: Canvas, first: Blob, second: Blob) -> None:
    """Puts `second` at the edge of `first` so that they touch or overlap a little, if it fits."""
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
            add_neighbour(canvas, body, part)


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
