"""What `training.fit` adds to the updates themselves, and how near these come to the hardware.

    python bench/training.py                  # about three minutes on a CPU
    python bench/training.py --device gpu

The U-Net of chapter 01 and the Mask R-CNN of chapter 02, on made images: by `fit`, and by a bare
loop of PyTorch that has all batches at hand, the same number of updates each. On a CPU they have
the size of the `lite` presets, on a GPU that of `paper`. PyTorch counts the floating point
operations of an update, so that what is reached can be held against the hardware's data sheet.
*A batch made* is what one CPU core needs for a batch: beside the time of an update it tells how
many of them a card must have at its side not to wait.
Ends with status 1 if `fit` takes more than the goal's share of the bare loop.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from nuctut import machine, training
from nuctut.detection import InstanceCrops
from nuctut.losses import LogDiceLoss
from nuctut.models.mask_rcnn import MaskRCNN
from nuctut.models.unet import ReducedUNet
from nuctut.targets import three_classes

GOAL = 1.15  # times as long as the bare loop
RATE = 1e-4


@dataclass(frozen=True)
class Work:
    """A network, its loss (None for its own) and what it is fed."""

    name: str
    model: Callable[[], nn.Module]
    loss: nn.Module | None
    items: Any
    batch: int


def scenes(count: int, shape: tuple[int, int], seed: int = 0) -> tuple[list, list, list]:
    """Grey images of bright discs, their labels and their keys."""
    rng, (rows, columns) = np.random.default_rng(seed), np.ogrid[: shape[0], : shape[1]]
    images, labels = [], []
    for _ in range(count):
        one = np.zeros(shape, np.int32)
        for number in range(1, 81):
            y, x = (int(rng.integers(length)) for length in shape)
            one[(rows - y) ** 2 + (columns - x) ** 2 < 144] = number
        images.append(rng.normal(200 + 800 * (one > 0), 60).clip(0).astype(np.uint16))
        labels.append(one)
    return images, labels, [f"scene {i}" for i in range(count)]


def works(gpu: bool) -> list[Work]:
    """Those of the presets `lite` on a CPU, `paper` on a GPU."""
    images, labels, keys = scenes(4, (520, 696))
    classes = [three_classes(one) for one in labels]
    if gpu:
        unet = {"channels": (32, 64, 128, 256, 512), "last_channels": 64}
        tiles, batch = training.CornerTiles(images, classes, keys), 1
    else:
        unet = {"channels": (16, 32, 64, 128, 192), "last_channels": 16, "normalise": True}
        tiles, batch = training.RandomCrops(images, classes, keys), 4
    coloured = [np.repeat(image[..., None], 3, -1) for image in images]
    crops = InstanceCrops(coloured, labels, keys)
    rcnn = {"depth": 50} if gpu else {"depth": 18, "width": 24}
    rcnn["pretrained"] = False
    return [
        Work("U-Net", partial(ReducedUNet, **unet), LogDiceLoss(), tiles, batch),
        Work("Mask R-CNN", partial(MaskRCNN, **rcnn), None, crops, 8 if gpu else 4),
    ]


def batches(work: Work, count: int, device: str) -> list[dict[str, Any]]:
    """The first batches of a fit, where the network is."""
    collate = getattr(work.items, "collate", default_collate)
    draws = range(count * work.batch)
    made = [work.items[draw % len(work.items), draw] for draw in draws]
    groups = [made[i : i + work.batch] for i in range(0, len(made), work.batch)]
    return [moved(collate(group), device) for group in groups]


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    return [moved(one, device) for one in value] if isinstance(value, list) else value


def bare(work: Work, updates: int, device: str, precision: str) -> tuple[list[float], float]:
    """Seconds of each update without `fit`, and 10⁹ floating point operations of one."""
    torch.manual_seed(0)
    model = work.model().to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=device == "cuda")
    made, times = batches(work, updates + 1, device), []

    def update(batch: dict[str, Any]) -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            if work.loss is None:
                loss = model.loss(batch)
            else:
                image = batch["image"].contiguous(memory_format=torch.channels_last)
                loss = work.loss(model(image), batch["classes"])
        loss.backward()
        optimiser.step()

    with FlopCounterMode(display=False) as counted:
        update(made[0])
    for batch in made[1:]:
        begun = now(device)
        update(batch)
        times.append(now(device) - begun)
    return times, counted.get_total_flops() / 1e9


def now(device: str) -> float:
    """A clock that has waited for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def by_fit(work: Work, updates: int, device: str, precision: str) -> float:
    """Seconds of an update by `fit`, from one fit of many and one of a single one."""
    seconds = []
    for count in (1, updates + 1):
        torch.manual_seed(0)
        how = {"batch_size": work.batch, "learning_rate": RATE, "precision": precision}
        kind = "gpu" if device == "cuda" else device
        settings = training.FitSettings(epochs=1, updates=count, device=kind, **how)
        with tempfile.TemporaryDirectory() as folder:
            sets = work.items, Subset(work.items)
            made = training.fit(
                work.model(), work.loss, *sets, Path(folder), settings, progress=False
            )
        seconds.append(made.seconds)
    return (seconds[1] - seconds[0]) / updates


class Subset(torch.utils.data.Dataset):
    """The first item alone, to validate by."""

    def __init__(self, items: Any) -> None:
        self.items = items
        if collate := getattr(items, "collate", None):
            self.collate = collate

    def __len__(self) -> int:
        return 1

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        return self.items[item]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--updates", type=int, default=0, help="of each; 0: 8, on a GPU 200")
    asked = parser.parse_args()
    device = "cuda" if asked.device == "gpu" else "cpu"
    updates = asked.updates or (200 if device == "cuda" else 8)
    precision = machine.precision_on(device, "auto")
    console = Console(width=100)
    console.print(f"{machine.device_name(device)}, torch {torch.__version__}, {precision}")
    table = Table(title=f"Milliseconds of an update, {updates} of each")
    heads = (
        "network",
        "bare",
        "fit",
        "fit / bare",
        "a batch made",
        "10⁹ operations",
        "10⁹ a second",
    )
    for name in heads:
        table.add_column(name, justify="left" if name == "network" else "right")
    slow = []
    for work in works(device == "cuda"):
        times, operations = bare(work, updates, device, precision)
        alone = float(np.median(times))
        fitted = by_fit(work, updates, device, precision)
        ratio = fitted / float(np.mean(times))
        slow += [work.name] if ratio > GOAL else []
        begun = time.perf_counter()
        batches(work, updates, "cpu")
        making = (time.perf_counter() - begun) / updates
        cells = (f"{1000 * np.mean(times):.1f}", f"{1000 * fitted:.1f}", f"{ratio:.2f}")
        cells += (f"{1000 * making:.1f}",)
        table.add_row(work.name, *cells, f"{operations:.1f}", f"{operations / alone:.0f}")
    console.print(table)
    console.print(f"fit adds at most {GOAL - 1:.0%}: {'NO: ' + ', '.join(slow) if slow else 'yes'}")
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
