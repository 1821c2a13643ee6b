"""Outlines as polygons: read from an XML file, and filled in."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import numpy as np

from nuctut.files import read_bytes

HALF = 0.5  # of a pixel: an image's first pixel has its centre at (0.5, 0.5) of the files


@dataclass(frozen=True)
class Region:
    """One outline: the name it has in its file, and its (n, 2) float64 corners, x before y."""

    name: str
    corners: np.ndarray


def labels_of_xml(path: Path, shape: tuple[int, int], known: Collection[str] = ()) -> np.ndarray:
    """The nuclei outlined in an XML file as Aperio's ImageScope writes it.

    The rule: a pixel belongs to the first region of the file that its centre lies in. Pixel (0, 0)
    has its centre at (0.5, 0.5) of the file's coordinates.

    Args:
        path: Of the file.
        shape: (H, W) of its image.
        known: Names of regions that are known to be no nucleus.

    Returns:
        (H, W) int32 labels in the order of the regions. A region that gets no pixel (fewer than
        three corners, outside of the image, hidden behind others) is no nucleus, and a warning
        names it unless it is known.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it cannot be read, or no region of it gets a pixel; naming it.
    """
    regions = read_regions(path)
    filled = fill([region.corners - HALF for region in regions], shape)
    found = np.bincount(filled.ravel(), minlength=len(regions) + 1) > 0
    found[0] = False
    if not found.any():
        raise ValueError(
            f"{path}: none of its {len(regions)} regions lies in its image of {shape[0]} × "
            f"{shape[1]} pixels; it belongs to another image, or its outlines are damaged."
        )
    for number in np.flatnonzero(~found[1:]):
        if regions[number].name not in known:
            warnings.warn(_why_none(path, regions[number], shape), stacklevel=2)
    return np.where(found, np.cumsum(found), 0).astype(np.int32)[filled]


def _why_none(path: Path, region: Region, shape: tuple[int, int]) -> str:
    """A sentence on a region that got no pixel."""
    low, high = region.corners.min(axis=0), region.corners.max(axis=0)
    if len(region.corners) < 3:
        fault = f"has {len(region.corners)} corners, and an outline has three or more"
    elif (high < 0).any() or (low > shape[::-1]).any():
        fault = f"lies outside of its image of {shape[0]} × {shape[1]} pixels"
    else:
        fault = "has no pixel of its own"
    return f"{path}: region {region.name} {fault}; it is left out."


def read_regions(path: Path) -> list[Region]:
    """The regions of an XML file, in its order: `Region` elements of `Vertex` elements.

    Raises:
        FileNotFoundError: When the file is missing.
        ValueError: When it is no XML, has no regions, or a region without a corner or with one that
            is no pair of finite numbers X and Y; naming the file and the region.
    """
    try:
        content = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing.") from None
    found = _parse(path, content)
    if not found:
        raise ValueError(f"{path} outlines no region: expected are elements Region with Vertex.")
    return [Region(name, _corners(path, name, texts)) for name, texts in found]


def _parse(path: Path, content: bytes) -> list[tuple[str, list[tuple[str, str]]]]:
    """The name of each region, and its corners as they are written."""
    found: list[tuple[str, list[tuple[str, str]]]] = []

    def start(element: str, values: dict[str, str]) -> None:
        if element == "Region":
            found.append((values.get("Id", str(len(found) + 1)), []))
        elif element == "Vertex" and found:
            found[-1][1].append((values.get("X", ""), values.get("Y", "")))

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read, it is damaged or cut off ({error}): fetch the data again."
        ) from error
    return found


def _corners(path: Path, name: str, texts: Sequence[tuple[str, str]]) -> np.ndarray:
    try:
        corners = np.array(texts, np.float64).reshape(-1, 2)
    except ValueError:
        corners = np.array([[np.nan, np.nan]])
    if not len(corners) or not np.isfinite(corners).all():
        raise ValueError(
            f"{path}: region {name} has a corner that is no pair of numbers X and Y, or none at "
            "all: correct it, or fetch the data again."
        )
    return corners


def fill(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fills polygons in: a pixel gets the number of the first one that its centre lies in.

    Inside is what an odd number of edges has to be crossed to get out of (even-odd rule); of a
    centre on an edge, the left and upper sides belong to the polygon. All polygons are filled at
    once, along the rows.

    Args:
        polygons: (n, 2) float64 corners each, x before y, in pixels: centres of pixels are whole
            numbers. The last corner joins the first.
        shape: (H, W) in pixels; what lies outside is cut off.

    Returns:
        (H, W) int32: 0, or the number of a polygon counted from 1.
    """
    owner, row, x = _crossings(polygons, shape[0])
    order = np.lexsort((x, row, owner))
    owner, row = owner[order][::2], row[order][::2]
    ends = np.clip(np.ceil(x[order]), 0, shape[1]).astype(np.int64)
    begin, length = ends[::2], ends[1::2] - ends[::2]
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    pixels = np.repeat(row * shape[1] + begin, length) + within
    filled = np.zeros(shape, np.int32)
    filled.ravel()[pixels[::-1]] = np.repeat(owner, length)[::-1]  # the last written stays
    return filled


def _crossings(
    polygons: Sequence[np.ndarray], height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where edges cross rows of pixel centres: number of the polygon, row, and x."""
    owner = np.repeat(np.arange(1, len(polygons) + 1), [len(corners) for corners in polygons])
    x0, y0 = np.concatenate(polygons).T
    x1, y1 = np.concatenate([np.roll(corners, -1, axis=0) for corners in polygons]).T
    first, last = (
        np.clip(np.ceil(side(y0, y1)), 0, height).astype(np.int64) for side in (np.fmin, np.fmax)
    )
    count = last - first
    edge = np.repeat(np.arange(len(owner)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    along = (row - y0[edge]) / (y1 - y0)[edge]
    return owner[edge], row, x0[edge] + along * (x1 - x0)[edge]
