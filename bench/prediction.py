"""Speed and agreement of the way from pixels to labels, against MONAI and against plain libraries.

    pip install -e '.[bench]'        # or, for the peer alone: pip install monai
    python bench/prediction.py       # about a minute

nuctut.inference beside MONAI's sliding windows: the U-Net of the `lite` preset, with random
weights, on a coloured image of 1024 x 1024 pixels, as a whole, and in overlapping tiles. Both sides
get the same network, tiles and precision. Then nuctut.postprocess beside itself with the steps of
scipy and scikit-image that it does without, on a map of 520 x 696 pixels with touching nuclei.
Rivals run in turns; the best of several rounds counts. Ends with status 1 if a goal or the numbers
are missed: a second for the large image and the same probabilities as without tiles; labels
1.5 times as fast as by the plain steps, and the same ones.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import ndimage as ndi
from skimage.segmentation import expand_labels

from nuctut import inference, postprocess
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
FASTER = 1.5  # times as fast as with plain steps
FIELD = (520, 696)
RULES = {
    "parted by lines": lambda: postprocess.parted_by_lines(6, 40, 0.97),
    "parted by watershed": lambda: postprocess.parted_by_watershed(15, 30, 3.0),
}
PLAIN = {
    "most_probable": lambda chances: chances.argmax(0).astype(np.uint8),
    "_depth": lambda mask: ndi.distance_transform_edt(mask).astype(np.float32),
    "_dilated": lambda image, reach=1: ndi.maximum_filter(image, size=2 * reach + 1),
    "_grown": lambda labels, free, reach: np.where(free, expand_labels(labels, reach), labels),
}

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


def nuclei() -> np.ndarray:
    """(3, H, W) probabilities of 120 discs, some of which overlap, and of lines between them."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: FIELD[0], : FIELD[1]]
    away = [
        np.hypot(rows - y, columns - x) / rng.uniform(8, 16)
        for y, x in rng.uniform(0, 1, (120, 2)) * FIELD
    ]
    first, second = np.partition(away, 1, axis=0)[:2]
    inside, line = (1 / (1 + np.exp(12 * (one - 1))) for one in (first, second))
    return np.stack([1 - inside, inside * (1 - line), inside * line]).astype(np.float32)


def with_plain_steps(rule: Callable[[], postprocess.LabelRule], chances: np.ndarray) -> np.ndarray:
    with mock.patch.multiple(postprocess, **PLAIN):
        return rule().labels(chances)


def best_times(rivals: dict[str, Predict], rounds: int) -> dict[str, float]:
    times = dict.fromkeys(rivals, np.inf)
    for turn in range(rounds + 1):
        for name, predict in rivals.items():
            start = time.perf_counter()
            predict()
            if turn:  # the first round warms up
                times[name] = min(times[name], time.perf_counter() - start)
    return times


def compare_tiles(console: Console, rounds: int) -> bool:
    """Print the first table; whether all is as it should be."""
    torch.manual_seed(0)
    model = UNet(channels=CHANNELS, normalise=True).eval()
    model = model.to(memory_format=torch.channels_last)
    folded = inference.fold_normalisation(model)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
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
    return fast and agreed


def compare_steps(console: Console, rounds: int) -> bool:
    """Print the second table; whether all is as it should be."""
    chances = nuclei()
    table = Table(title=f"Best of {rounds} rounds, milliseconds")
    for name in ("labels", "nuctut", "plain steps", "plain / nuctut", "nuclei"):
        table.add_column(name, justify="left" if name == "labels" else "right")
    fast = agreed = True
    for name, rule in RULES.items():
        rivals = {"nuctut": lambda rule=rule: rule().labels(chances)}
        rivals["plain"] = partial(with_plain_steps, rule, chances)
        times = best_times(rivals, rounds)
        found, expected = (one() for one in rivals.values())
        ratio = times["plain"] / times["nuctut"]
        fast &= ratio >= FASTER
        agreed &= np.array_equal(found, expected)
        cells = [f"{1000 * time:.1f}" for time in times.values()]
        table.add_row(name, *cells, f"{ratio:.2f}x", str(found.max()))
    console.print(table)
    console.print(f"{FASTER:g} times as fast as plain steps: {'yes' if fast else 'NO'}")
    console.print(f"the same labels: {'yes' if agreed else 'NO'}")
    return fast and agreed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="repeats, of which the best counts")
    rounds = parser.parse_args().rounds
    console = Console(width=100)
    console.print(f"monai {version('monai')}, torch {torch.__version__}, bf16, CPU")
    good = [compare(console, rounds) for compare in (compare_tiles, compare_steps)]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
