"""From an image of any size to a probability map, by overlapping tiles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nuctut.machine import precision_on
from nuctut.targets import standardise

Span = tuple[int, int]  # first row or column, and the one after the last
Tile = tuple[int, int, int, int]  # along one side: the span of it, and of what is taken from it
OVERLAP = 224  # pixels, or the next that fits the network's stride


def predict(
    model: nn.Module,
    image: np.ndarray,
    *,
    normalise: Callable[[np.ndarray], np.ndarray] = standardise,
    tile: int = 1024,
    overlap: int | None = None,
    batch_size: int = 1,
    precision: str = "fp32",
) -> np.ndarray:
    """Class probabilities of every pixel, see `predict_tiles`.

    Args:
        model: Network with (B, channels, H, W) → (B, C, H, W) logits and an integer `stride`; it
            is run on the device where its parameters are, in evaluation mode.
        image: (H, W) or (H, W, channels) intensities, any real dtype.
        normalise: Applied to the whole image first.
        tile: Side of a tile in pixels, a multiple of the stride; smaller images are one tile.
        overlap: How far neighbouring tiles overlap, in pixels, a multiple of twice the stride. None
            is the first such multiple from 224 on; tiles are then made as small as their number
            allows, since what they overlap further is predicted for nothing.
        batch_size: Tiles per forward pass.
        precision: Of `machine.precision_on`; bf16 is autocast.

    Returns:
        (C, H, W) float32 probabilities. Of several classes they sum to 1 over C (softmax); a single
        one is that of being foreground (sigmoid).

    Raises:
        ValueError: When the image is of another shape, tile and overlap do not fit the stride, or
            the precision is unknown.
    """
    if image.ndim not in (2, 3):
        raise ValueError(f"image must be (H, W) or (H, W, channels), not {image.shape}.")
    pixels = normalise(image)
    how = {"tile": tile, "overlap": overlap, "batch_size": batch_size, "precision": precision}
    result: np.ndarray | None = None
    for rows, columns, chances in predict_tiles(
        model, lambda y, x: pixels[slice(*y), slice(*x)], image.shape[:2], **how
    ):
        if chances.shape[1:] == image.shape[:2]:  # the only tile
            result = chances
            continue
        if result is None:
            result = np.empty((len(chances), *image.shape[:2]), np.float32)
        result[:, slice(*rows), slice(*columns)] = chances
    return result


def predict_tiles(
    model: nn.Module,
    pixels: Callable[[Span, Span], np.ndarray],
    shape: tuple[int, int],
    *,
    tile: int = 1024,
    overlap: int | None = None,
    batch_size: int = 1,
    precision: str = "fp32",
) -> Iterator[tuple[Span, Span, np.ndarray]]:
    """Class probabilities of an image of any size, tile by tile.

    The image is padded by reflection to a multiple of the network's `stride`, and cut into tiles
    that overlap; each pixel is taken from the tile in which it lies deepest. Tiles start at
    multiples of the stride, so that, where half the overlap is no less than the network's `reach`,
    the grid leaves no trace.

    Args:
        model, tile, overlap, batch_size, precision: See `predict`.
        pixels: (rows, columns) → (h, w) or (h, w, channels) float32, normalised as a whole.
        shape: (H, W) of the image.

    Yields:
        Rows, columns and (C, h, w) float32 probabilities of the window that a tile is responsible
        for. The windows cover the image, each pixel once, from top to bottom.

    Raises:
        ValueError: When tile and overlap do not fit the stride, or the precision is unknown.
    """
    lines = _padded(shape, model.stride)
    tiles = _tiles(model, lines, tile, overlap)
    precision = precision_on(str(next(model.parameters()).device), precision)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(tiles), batch_size):
            batch = tiles[start : start + batch_size]
            seen = [_at(pixels, lines[0][y[0] : y[1]], lines[1][x[0] : x[1]]) for y, x in batch]
            for (y, x), chances in zip(batch, _chances(model, seen, precision), strict=True):
                rows, columns = (y[2], min(y[3], shape[0])), (x[2], min(x[3], shape[1]))
                inner = slice(rows[0] - y[0], rows[1] - y[0])
                yield rows, columns, chances[:, inner, columns[0] - x[0] : columns[1] - x[0]]
    finally:
        model.train(was_training)


def number_of_tiles(
    model: nn.Module, shape: tuple[int, int], *, tile: int = 1024, overlap: int | None = None
) -> int:
    """How many tiles `predict_tiles` makes of an image."""
    return len(_tiles(model, _padded(shape, model.stride), tile, overlap))


def _tiles(
    model: nn.Module, lines: Iterable[np.ndarray], tile: int, overlap: int | None
) -> list[tuple[Tile, Tile]]:
    """Rows and columns of each tile of a padded image; for the rest, see `predict`."""
    stride, even = model.stride, overlap is None
    if overlap is None:
        overlap = _up_to(2 * stride, OVERLAP)
    if tile % stride or overlap % (2 * stride) or not 0 <= overlap < tile:
        raise ValueError(
            f"tile must be a multiple of {stride}, and overlap one of {2 * stride} below it; "
            f"got tile={tile}, overlap={overlap}."
        )

    def side(length: int) -> int:
        number = max(1, math.ceil((length - overlap) / (tile - overlap)))
        return _up_to(stride, (length + (number - 1) * overlap) / number) if even else tile

    lengths = [len(line) for line in lines]
    return list(product(*(list(_spans(length, side(length), overlap)) for length in lengths)))


def _up_to(multiple: int, length: float) -> int:
    return math.ceil(length / multiple) * multiple


def _chances(model: nn.Module, tiles: list[np.ndarray], precision: str) -> np.ndarray:
    """(B, C, h, w) float32 probabilities of tiles that are (h, w, channels)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        # channels last in memory as they are in the image
        tensor = torch.from_numpy(np.stack(tiles)).movedim(-1, 1).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tensor)
        logits = logits.float()
        chances = logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()
        return chances.cpu().numpy()


def _padded(shape: tuple[int, int], stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the image at each row and column of the padded one."""
    extra = [-length % stride for length in shape]
    mode = "reflect" if all(e < n for e, n in zip(extra, shape, strict=True)) else "edge"
    rows, columns = (np.pad(np.arange(n), (0, e), mode) for n, e in zip(shape, extra, strict=True))
    return rows, columns


def _at(
    pixels: Callable[[Span, Span], np.ndarray], rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """(h, w, channels) pixels at rows and columns, of which only the padded ones come twice."""
    spans = [(int(line.min()), int(line.max()) + 1) for line in (rows, columns)]
    window = np.atleast_3d(pixels(*spans))
    if window.shape[:2] == (len(rows), len(columns)):
        return window
    return window[np.ix_(rows - spans[0][0], columns - spans[1][0])]


def fold_normalisation(model: nn.Module) -> nn.Module:
    """A copy for prediction alone, batch normalisation folded into the convolution before it.

    It gives the same probabilities up to rounding, with fewer passes over memory; so do activations
    that overwrite what a convolution gave. Networks without batch normalisation come back with the
    same weights, copied.
    """
    folded = copy.deepcopy(model).eval()
    for block in folded.modules():
        if not isinstance(block, nn.Sequential):
            continue
        for index, (first, second) in enumerate(pairwise(list(block))):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                block[index] = fuse_conv_bn_eval(first, second)
                block[index + 1] = nn.Identity()
        for first, second in pairwise(one for one in block if not isinstance(one, nn.Identity)):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.ReLU | nn.SELU):
                second.inplace = True
    return folded


def _spans(length: int, tile: int, overlap: int) -> Iterator[Tile]:
    """Start and end of each tile along one axis, and of the part that is taken from it."""
    if length <= tile:
        yield 0, length, 0, length
        return
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    cuts = [(a + tile + b) // 2 for a, b in pairwise(starts)]
    for start, low, high in zip(starts, [0, *cuts], [*cuts, length], strict=True):
        yield start, start + tile, low, high
