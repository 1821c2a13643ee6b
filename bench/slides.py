"""A slide of 2000 x 2000 pixels: a U-Net by tiles, MONAI's sliding window, a network of patches.

    pip install -e '.[bench]'        # or, for the peer alone: pip install monai
    python bench/slides.py           # about three minutes on two cores

Mercadier et al. (section 3.2) took 10 s where a network that looks at a patch around every pixel
(Janowczyk & Madabhushi) took 3.5 h. Here both have random weights and run on the same machine in
the same precision. The U-Net is that of the `lite` preset; it takes the paper's tiles (256 pixels,
every 128, of which the middle counts) and larger ones; of these MONAI gets the same, in turns, and
the best of several rounds counts. The network of patches is timed on a crop, and its time for the
slide is extrapolated by the number of pixels. Beside it stands the fairer rival, the same layers
without padding, evaluated densely: the same answer for every pixel, without doing it all again for
its neighbours. Ends with status 1 if a goal is missed.
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
from nuctut.models.patch_cnn import EveryPixel, PatchCNN
from nuctut.models.unet import UNet
from nuctut.targets import standardise

try:
    from monai.inferers import sliding_window_inference
except ImportError as error:
    sys.exit(f"{error}: the peer is missing; install it with: pip install monai")

GOAL, RATIO = 4.0, 500.0  # seconds for the slide on two cores; how much faster than by patches
CHANNELS = (16, 32, 64, 128, 192)
# Side and overlap in pixels, and tiles per forward pass: the paper's, and four for a slide.
TILES = {"the paper's tiles": (256, 128, 4), "four large tiles": (1120, 224, 1)}
CROP = 48  # pixels per side: 2304 patches

Predict = Callable[[], np.ndarray]
normalise = partial(standardise, scale="range")


def ours(
    model: torch.nn.Module, slide: np.ndarray, tile: int, overlap: int, batch_size: int
) -> np.ndarray:
    """(2, H, W) probabilities by nuctut."""
    how = {"tile": tile, "overlap": overlap, "batch_size": batch_size, "precision": "bf16"}
    return inference.predict(model, slide, normalise=normalise, **how)


@torch.inference_mode()
def theirs(
    model: torch.nn.Module, slide: np.ndarray, tile: int, overlap: int, batch_size: int
) -> np.ndarray:
    """(2, H, W) probabilities by MONAI, in the memory layout that suits a CPU."""
    pixels = torch.from_numpy(normalise(slide)).movedim(-1, 0)[None]
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = sliding_window_inference(pixels, tile, batch_size, model, overlap=overlap / tile)
    return logits.float().softmax(1)[0].numpy()


def best_times(rivals: dict[str, Predict], rounds: int) -> dict[str, float]:
    """Shortest time of each rival in seconds; the first round warms up."""
    times = dict.fromkeys(rivals, np.inf)
    for turn in range(rounds + 1):
        for name, predict in rivals.items():
            start = time.perf_counter()
            predict()
            if turn:
                times[name] = min(times[name], time.perf_counter() - start)
    return times


def by_tiles(slide: np.ndarray, rounds: int) -> tuple[Table, dict[str, dict[str, float]]]:
    """The U-Net on a slide, by nuctut and by MONAI."""
    torch.manual_seed(0)
    model = UNet(classes=2, channels=CHANNELS, normalise=True).eval()
    folded = inference.fold_normalisation(model.to(memory_format=torch.channels_last))
    table = Table(title=f"U-Net, best of {rounds} rounds, seconds")
    for name in ("tiles", "nuctut", "monai", "monai / nuctut"):
        table.add_column(name, justify="left" if name == "tiles" else "right")
    times = {}
    for name, how in TILES.items():
        rivals = {"nuctut": partial(ours, folded, slide, *how)}
        rivals["monai"] = partial(theirs, folded, slide, *how)
        times[name] = best_times(rivals, rounds)
        cells = [f"{seconds:.2f}" for seconds in times[name].values()]
        ratio = times[name]["monai"] / times[name]["nuctut"]
        table.add_row(f"{name} ({how[0]} pixels)", *cells, f"{ratio:.2f}x")
    return table, times


def by_patches(slide: np.ndarray, rounds: int) -> dict[str, float]:
    """Seconds of the network of patches for a slide, patch by patch and densely."""
    torch.manual_seed(0)
    crop = slide[:CROP, :CROP]
    alone = EveryPixel(PatchCNN(padded=True)).eval()
    dense = EveryPixel(PatchCNN()).eval()
    rivals = {
        "patch by patch (extrapolated)": partial(ours, alone, crop, CROP, 0, 1),
        "dense": partial(ours, dense, slide, 512, 2 * dense.reach, 1),
    }
    times = {name: best_times({name: rival}, rounds)[name] for name, rival in rivals.items()}
    times["patch by patch (extrapolated)"] *= slide[..., 0].size / crop[..., 0].size
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="repeats, of which the best counts")
    parser.add_argument("--side", type=int, default=2000, help="of the slide, in pixels")
    asked = parser.parse_args()
    slide = np.random.default_rng(0).integers(0, 256, (asked.side, asked.side, 3), np.uint8)
    console = Console(width=100)
    console.print(f"monai {version('monai')}, torch {torch.__version__}, bf16, CPU")
    console.print(f"{torch.get_num_threads()} threads, {asked.side} x {asked.side} pixels")
    table, unet = by_tiles(slide, asked.rounds)
    console.print(table)

    papers, large = (unet[name]["nuctut"] for name in TILES)
    table = Table(title="Network of patches, seconds for the slide")
    for name in ("evaluated", "seconds", "to the U-Net in the paper's tiles", "in large tiles"):
        table.add_column(name, justify="left" if name == "evaluated" else "right")
    patches = by_patches(slide, asked.rounds)
    for name, seconds in patches.items():
        table.add_row(name, f"{seconds:.1f}", f"{seconds / papers:.1f}x", f"{seconds / large:.1f}x")
    console.print(table)

    best = min(papers, large)
    faster = max(patches.values()) / best
    level = all(one["nuctut"] <= one["monai"] for one in unet.values())
    goals = {
        f"a slide in at most {GOAL:g} s": best <= GOAL,
        "no slower than MONAI": level,
        f"at least {RATIO:g}x faster than patch by patch": faster >= RATIO,
    }
    for goal, met in goals.items():
        console.print(f"{goal}: {'yes' if met else 'NO'}")
    sys.exit(not all(goals.values()))


if __name__ == "__main__":
    main()
