"""DeepCell dense, with dilated kernels, against DeepCell patch by patch.

    python bench/deepcell.py         # less than a minute

The network of the paper, with random weights, on an image of 256 x 256 pixels. Dense, the whole
image; patch by patch, some pixels of it, in batches of 256, their time multiplied up to all of
them. Ends with status 1 if dense is not 50 times as fast, or the numbers differ.
"""

import argparse
import sys
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nuctut import machine
from nuctut.models.deepcell import SIZE, DeepCell, DenseDeepCell

GOAL = 50.0
TOLERANCE = 1e-3  # of a logit
SIDE = 256  # pixels
BATCH = 256


@torch.inference_mode()
def timed(model: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, float]:
    started = time.perf_counter()
    logits = model(pixels)
    return logits, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patches", type=int, default=BATCH, help="how many pixels one by one")
    count = parser.parse_args().patches
    torch.manual_seed(0)
    network = DeepCell().eval()
    image = torch.randn(1, 1, SIDE, SIDE)
    logits, dense = timed(DenseDeepCell(network), image)

    padded = torch.nn.functional.pad(image, (SIZE // 2,) * 4, "reflect")[0]
    places = np.random.default_rng(0).integers(0, SIDE, (count, 2))
    seconds = difference = 0.0
    for start in range(0, count, BATCH):
        some = places[start : start + BATCH]
        patches = torch.stack([padded[:, y : y + SIZE, x : x + SIZE] for y, x in some])
        found, took = timed(network, patches)
        seconds += took
        beside = logits[0, :, some[:, 0], some[:, 1]].T
        difference = max(difference, float((found[..., 0, 0] - beside).abs().max()))

    one_by_one = seconds / count * SIDE**2
    ratio = one_by_one / dense
    title = f"{SIDE} x {SIDE} pixels on {machine.device_name()}, seconds"
    table = Table("dense", f"patch by patch (from {count})", "ratio", "difference", title=title)
    table.add_row(f"{dense:.2f}", f"{one_by_one:.0f}", f"{ratio:.0f}x", f"{difference:.1e}")
    Console(width=100).print(table)
    fast, same = ratio >= GOAL, difference <= TOLERANCE
    print(f"at least {GOAL:g} times as fast: {'yes' if fast else 'NO'}")
    print(f"the same numbers: {'yes' if same else 'NO'}")
    sys.exit(not (fast and same))


if __name__ == "__main__":
    main()
