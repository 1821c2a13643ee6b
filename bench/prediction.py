"""Speed and agreement of nuctut.inference against MONAI's sliding windows.

    pip install -e '.[bench]'        # or, for the peer alone: pip install monai
    python bench/prediction.py       # about a minute

The U-Net of the `lite` preset, with random weights, on a coloured image of 1024 x 1024 pixels:
as a whole, and in overlapping tiles. Both sides get the same network, tiles and precision and run
in turns; the best of several rounds counts. Ends with status 1 if the goal or the numbers are
missed: a second for the image, and the same probabilities as without tiles.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nuctut import inference
from nuctut.models.unet import UNet
from nuctut.targets import standardise

try:
    from monai.inferers import sliding_window_inference
except ImportError as error:
    sys.exit(f"{error}: the peer is missing; install it with: pip install monai")

GOAL = 1.0  # seconds for the whole image
TOLERANCE = 0.02  # of a probability, in bf16
SIZE, TILE, OVERLAP = 1024, 512, 224
CHANNELS = (16, 32, 64, 128, 192)

Predict = Callable[[], np.ndarray]


def ours(model: torch.nn.Module, image: np.ndarray, tile: int) -> np.ndarray:
    """(SIZE, SIZE) probabilities by nuctut."""
    return inference.predict(model, image, tile=tile, overlap=OVERLAP, precision="bf16")[0]


@torch.inference_mode()
def theirs(model: torch.nn.Module, image: np.ndarray, tile: int) -> np.ndarray:
    """(SIZE, SIZE) probabilities by MONAI, in the memory layout that suits a CPU."""
    pixels = torch.from_numpy(standardise(image)).movedim(-1, 0)[None]
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = sliding_window_inference(pixels, tile, 4, model, overlap=OVERLAP / TILE)
    return logits.float().sigmoid()[0, 0].numpy()


def best_times(rivals: dict[str, Predict], rounds: int) -> dict[str, float]:
    times = dict.fromkeys(rivals, np.inf)
    for turn in range(rounds + 1):
        for name, predict in rivals.items():
            start = time.perf_counter()
            predict()
            if turn:  # the first round warms up
                times[name] = min(times[name], time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="repeats, of which the best counts")
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    model = UNet(channels=CHANNELS, normalise=True).eval()
    model = model.to(memory_format=torch.channels_last)
    folded = inference.fold_normalisation(model)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    console = Console(width=100)
    console.print(f"monai {version('monai')}, torch {torch.__version__}, bf16, CPU")
    console.print(f"{torch.get_num_threads()} threads, {SIZE} x {SIZE} pixels")

    whole = ours(folded, image, SIZE)
    table = Table(title=f"Best of {rounds} rounds, seconds")
    for name in ("image", "nuctut", "monai", "monai / nuctut", "largest difference to whole"):
        table.add_column(name, justify="left" if name == "image" else "right")
    fast = agreed = True
    for name, tile in (("as a whole", SIZE), (f"in tiles of {TILE}", TILE)):
        rivals = {"nuctut": partial(ours, folded, image, tile)}
        rivals["monai"] = partial(theirs, model, image, tile)
        times = best_times(rivals, rounds)
        difference = float(np.abs(rivals["nuctut"]() - whole).max())
        fast &= tile != SIZE or times["nuctut"] <= GOAL
        agreed &= difference <= TOLERANCE
        ratio = f"{times['monai'] / times['nuctut']:.2f}x"
        cells = [f"{times[one]:.2f}" for one in ("nuctut", "monai")]
        table.add_row(name, *cells, ratio, f"{difference:.4f}")
    console.print(table)
    console.print(f"an image in at most {GOAL:g} s: {'yes' if fast else 'NO'}")
    console.print(f"tiles leave no trace: {'yes' if agreed else 'NO'}")
    sys.exit(not (fast and agreed))


if __name__ == "__main__":
    main()
