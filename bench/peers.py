"""What a user would take instead: the networks of StarDist and of Cellpose-SAM, beside ours.

    pip install -e '.[bench]'        # or, for the peers alone: stardist cellpose tensorflow
    python bench/peers.py            # about five minutes on two cores
    python bench/peers.py --write    # and keeps what it found in results/peers.csv

All three look at one field of BBBC039's size, in 32 bits, from pixels to what the network says of
them; what comes after that is left out, since peers' weights are not to be had here and random ones
find no nuclei. StarDist's is the network of its `2D_versatile_fluo` (32 rays, a grid of two pixels,
32 feature maps), Cellpose's its current default, a ViT-L. Rivals run in turns; the best of several
rounds counts. Scores of the peers on the test images of BBBC039 are public ones, not measured here;
the table says whose. Ends with status 1 if the network that comes with the book is not the fastest.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from nuctut import experiments, machine
from nuctut.files import replacing
from nuctut.paths import results_root
from nuctut.targets import standardise

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
try:
    from cellpose import core
    from cellpose.vit import CPSAM
    from stardist.models import Config2D, StarDist2D
except ImportError as error:
    sys.exit(
        f"{error}: the peers are missing; install them with: pip install stardist cellpose "
        "tensorflow"
    )

FIELD = (520, 696)
OURS = ("01_labels_for_free", "dl-ground-truth")
TEJAS = "results files of github.com/Tejas-Sukesh/bbbc039-nuclei-segmentation"
# AP at an IoU of 0.5 and its mean from 0.5 to 0.95, TP / (TP + FP + FN), on BBBC039's test images.
PUBLIC = {"Cellpose-SAM": (0.918, 0.791, TEJAS), "StarDist": (np.nan, np.nan, "")}

Network = Callable[[np.ndarray], np.ndarray]


def ours() -> tuple[Network, int]:
    """The book's network for BBBC039, and how many weights it has."""
    trained = experiments.shipped(*OURS, device="cpu")
    trained = replace(trained, settings=replace(trained.settings, precision="fp32"))
    weights = sum(one.numel() for one in trained.model.parameters())
    return trained.probabilities, weights


def stardist(scratch: str) -> tuple[Network, int]:
    """StarDist's network with random weights."""
    config = Config2D(n_rays=32, grid=(2, 2), n_channel_in=1)
    model = StarDist2D(config, name="random", basedir=scratch)

    def predict(image: np.ndarray) -> np.ndarray:
        return model.predict(standardise(image), show_tile_progress=False)[0]

    return predict, model.keras_model.count_params()


def cellpose() -> tuple[Network, int]:
    """Cellpose-SAM's network with random weights."""
    network = CPSAM(dtype=torch.float32).eval()

    def predict(image: np.ndarray) -> np.ndarray:
        pixels = np.repeat(standardise(image)[None, ..., None], 3, -1)
        return core.run_net(network, pixels, batch_size=1, bsize=256)[0]

    return predict, sum(one.numel() for one in network.parameters())


def best_times(rivals: dict[str, Network], image: np.ndarray, rounds: int) -> dict[str, float]:
    """Shortest time of each rival in seconds; the first round warms up."""
    times = dict.fromkeys(rivals, np.inf)
    for turn in range(rounds + 1):
        for name, predict in rivals.items():
            start = time.perf_counter()
            predict(image)
            if turn:
                times[name] = min(times[name], time.perf_counter() - start)
    return times


def as_frame(seconds: dict[str, float], weights: dict[str, int]) -> pd.DataFrame:
    """What is kept: a line per network."""
    here = machine.environment("cpu")
    lines = []
    for name, taken in seconds.items():
        half, mean, source = PUBLIC.get(name, (np.nan, np.nan, ""))
        line = {"network": name, "seconds_per_megapixel": taken / np.prod(FIELD) * 1e6}
        line |= {"times_ours": taken / seconds["nuctut"], "weights": weights[name]}
        line |= {"average_precision_50": half, "mean_average_precision": mean, "scored_by": source}
        lines.append(line | {"device": here["device"], "git_commit": here["git_commit"]})
    return pd.DataFrame(lines).round({"seconds_per_megapixel": 4, "times_ours": 3})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="repeats, of which the best counts")
    parser.add_argument("--write", action="store_true", help="keep it in results/peers.csv")
    asked = parser.parse_args()
    console = Console(width=100)
    image = np.random.default_rng(0).integers(0, 4096, FIELD, np.uint16)
    with tempfile.TemporaryDirectory() as scratch:
        made = {"nuctut": ours(), "StarDist": stardist(scratch), "Cellpose-SAM": cellpose()}
        rivals = {name: network for name, (network, _) in made.items()}
        seconds = best_times(rivals, image, asked.rounds)
    found = as_frame(seconds, {name: weights for name, (_, weights) in made.items()})
    names = ("stardist", "cellpose", "tensorflow", "torch")
    console.print(*(f"{name} {version(name)} " for name in names), found["device"][0])
    table = Table(title=f"{FIELD[0]} x {FIELD[1]} pixels, fp32, best of {asked.rounds} rounds")
    for name in ("network", "ms", "times ours", "weights", "AP at 0.5", "mean AP"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for line in found.itertuples():
        scores = (line.average_precision_50, line.mean_average_precision)
        cells = [f"{1000 * seconds[line.network]:.0f}", f"{line.times_ours:.1f}x"]
        cells += [f"{line.weights:,}", *("" if np.isnan(s) else f"{s:.3f}" for s in scores)]
        table.add_row(line.network, *cells)
    console.print(table)
    if asked.write:
        with replacing(results_root() / "peers.csv") as path:
            found.to_csv(path, index=False)
    sys.exit(bool((found["times_ours"] < 1).any()))


if __name__ == "__main__":
    main()
