"""From an image of any size to a probability map, by overlapping tiles."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .targets import standardise


@torch.inference_mode()
def predict(
    model: nn.Module,
    image: np.ndarray,
    *,
    normalise: Callable[[np.ndarray], np.ndarray] = standardise,
    tile: int = 1024,
    overlap: int = 224,
    batch_size: int = 4,
    precision: str = "fp32",
) -> np.ndarray:
    """Class probabilities of every pixel.

    The image is normalised as a whole, padded by reflection to a multiple of the network's
    `stride`, and cut into tiles that overlap; each pixel is taken from the tile in which it lies
    deepest. Tiles start at multiples of the stride, so that, where half the overlap is no less
    than the network's `reach`, the grid leaves no trace.

    Args:
        model: Network with (B, channels, H, W) → (B, C, H, W) logits and an integer `stride`; it
            is run on the device where its parameters are, in evaluation mode.
        image: (H, W) or (H, W, channels) intensities, any real dtype.
        normalise: Applied to the whole image first.
        tile: Side of a tile in pixels, a multiple of the stride; smaller images are one tile.
        overlap: How far neighbouring tiles overlap, in pixels, a multiple of twice the stride.
        batch_size: Tiles per forward pass.
        precision: "fp32" or "bf16" (autocast).

    Returns:
        (C, H, W) float32 probabilities. Of several classes they sum to 1 over C (softmax); a single
        one is that of being foreground (sigmoid).

    Raises:
        ValueError: When the image is of another shape, tile and overlap do not fit the stride, or
            the precision is unknown.
    """
    stride = model.stride
    if image.ndim not in (2, 3):
        raise ValueError(f"image must be (H, W) or (H, W, channels), not {image.shape}.")
    if tile % stride or overlap % (2 * stride) or not 0 <= overlap < tile:
        raise ValueError(
            f"tile must be a multiple of {stride}, and overlap one of {2 * stride} below it; "
            f"got tile={tile}, overlap={overlap}."
        )
    if precision not in ("fp32", "bf16"):
        raise ValueError(f'precision must be "fp32" or "bf16", not {precision!r}.')
    weights = next(model.parameters())
    padded = _pad(np.atleast_3d(normalise(image)), stride)
    spans = [list(_spans(length, tile, overlap)) for length in padded.shape[:2]]
    windows = [(y, x) for y in spans[0] for x in spans[1]]
    result: np.ndarray | None = None
    was_training = model.training
    model.eval()
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        stack = np.stack([padded[y[0] : y[1], x[0] : x[1]] for y, x in batch])
        # channels last in memory as they are in the image
        tensor = torch.from_numpy(stack).movedim(-1, 1).to(weights.device)
        with torch.autocast(weights.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tensor)
        logits = logits.float()
        chances = logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()
        chances = chances.cpu().numpy()
        if result is None:
            result = np.empty((chances.shape[1], *padded.shape[:2]), np.float32)
        for (y, x), one in zip(batch, chances, strict=True):
            inner = one[:, y[2] - y[0] : y[3] - y[0], x[2] - x[0] : x[3] - x[0]]
            result[:, y[2] : y[3], x[2] : x[3]] = inner
    model.train(was_training)
    return result[:, : image.shape[0], : image.shape[1]]


def fold_normalisation(model: nn.Module) -> nn.Module:
    """A copy for prediction alone, batch normalisation folded into the convolution before it.

    It gives the same probabilities up to rounding, with fewer passes over memory. Networks without
    batch normalisation come back as they are, copied.
    """
    folded = copy.deepcopy(model).eval()
    for block in folded.modules():
        if not isinstance(block, nn.Sequential):
            continue
        for index, (first, second) in enumerate(pairwise(list(block))):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                block[index] = fuse_conv_bn_eval(first, second)
                block[index + 1] = nn.Identity()
    return folded


def _pad(image: np.ndarray, stride: int) -> np.ndarray:
    extra = [-length % stride for length in image.shape[:2]]
    mode = "reflect" if all(e < n for e, n in zip(extra, image.shape, strict=False)) else "edge"
    return np.pad(image, [*((0, e) for e in extra), (0, 0)], mode=mode)


def _spans(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Start and end of each tile along one axis, and of the part that is taken from it."""
    if length <= tile:
        yield 0, length, 0, length
        return
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    cuts = [(a + tile + b) // 2 for a, b in pairwise(starts)]
    for start, low, high in zip(starts, [0, *cuts], [*cuts, length], strict=True):
        yield start, start + tile, low, high
