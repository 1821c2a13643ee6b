"""Speed and agreement of nuctut.metrics against stardist.matching and cellpose.metrics.

    pip install -e '.[bench]'        # or, for the peers alone: pip install stardist cellpose
    python bench/metrics.py          # about a minute

Two pairs of label images of 1000 x 1000 pixels with 900 nuclei: *apart*, where a nucleus meets
few others, and *crowded*, where neighbours touch everywhere. Everything runs on one core, warmed
up first (StarDist compiles on its first call); the rivals take turns, and the best of several
rounds counts. Then the numbers are compared where the definitions agree, and the
difference is accounted for where they do not. Ends with status 1 if a goal or a number is missed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from nuctut import metrics

try:
    from cellpose import metrics as cellpose
    from stardist import matching as stardist
except ImportError as error:
    sys.exit(f"{error}: the peers are missing; install them with: pip install stardist cellpose")

GOAL = 3.0
SIZE, GRID = 1000, 30  # pixels per side, nuclei per side
THRESHOLDS = list(metrics.IOU_THRESHOLDS)
console = Console(width=100)

Pair = tuple[np.ndarray, np.ndarray]


def nuclei(rng: np.random.Generator, centres: np.ndarray, radius: float) -> np.ndarray:
    """Labels (SIZE, SIZE) int32: each pixel goes to its nearest centre within `radius`."""
    labels = np.zeros((SIZE, SIZE), np.int32)
    nearest = np.full((SIZE, SIZE), radius**2)
    reach = int(np.ceil(radius))
    for label, (row, column) in zip(rng.permutation(len(centres)) + 1, centres, strict=True):
        top, left = max(0, int(row) - reach), max(0, int(column) - reach)
        bottom, right = min(SIZE, int(row) + reach + 2), min(SIZE, int(column) + reach + 2)
        window = np.s_[top:bottom, left:right]
        rows, columns = np.ogrid[window]
        distance = (rows - row) ** 2 + (columns - column) ** 2
        closer = distance < nearest[window]
        labels[window][closer] = label
        nearest[window][closer] = distance[closer]
    return labels


def label_pair(radius: float, seed: int = 0) -> Pair:
    """Truth and prediction of GRID x GRID nuclei, each centre displaced a little on either side."""
    rng = np.random.default_rng(seed)
    axis = (np.arange(GRID) + 0.5) * SIZE / GRID
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    true = nuclei(rng, grid + rng.normal(0, 3, grid.shape), radius)
    pred = nuclei(rng, grid + rng.normal(0, 3, grid.shape), radius)
    return true, pred


def best_times(rivals: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Shortest time of each rival in milliseconds, over rounds in which they take turns."""
    best = dict.fromkeys(rivals, np.inf)
    for call in rivals.values():
        call()
    for _ in range(rounds):
        for name, call in rivals.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return best


def tasks(true: np.ndarray, pred: np.ndarray) -> dict[str, dict[str, Callable[[], object]]]:
    return {
        "match, IoU 0.5": {
            "nuctut": lambda: metrics.match(true, pred),
            "stardist": lambda: stardist.matching(true, pred, thresh=0.5),
            "cellpose": lambda: cellpose.average_precision(true, pred, threshold=[0.5]),
        },
        "match, ten thresholds": {
            "nuctut": lambda: metrics.match(true, pred, THRESHOLDS),
            "stardist": lambda: stardist.matching(true, pred, thresh=THRESHOLDS),
            "cellpose": lambda: cellpose.average_precision(true, pred, threshold=THRESHOLDS),
        },
        "AJI": {
            "nuctut": lambda: metrics.aggregated_jaccard(true, pred),
            "cellpose": lambda: cellpose.aggregated_jaccard_index([true], [pred]),
        },
        "AJI+": {
            "nuctut": lambda: metrics.aggregated_jaccard_plus(true, pred),
            "cellpose": lambda: cellpose.aggregated_jaccard_index([true], [pred]),
        },
    }


def measure_speed(pairs: dict[str, Pair], rounds: int) -> bool:
    table = Table(title=f"Best of {rounds} rounds, one core, milliseconds")
    table.add_column("labels")
    table.add_column("score")
    for name in ("nuctut", "stardist", "cellpose", "faster peer / nuctut"):
        table.add_column(name, justify="right")
    reached = True
    for labels, pair in pairs.items():
        for task, rivals in tasks(*pair).items():
            times = best_times(rivals, rounds)
            ratio = min(v for k, v in times.items() if k != "nuctut") / times["nuctut"]
            reached &= ratio >= GOAL
            cells = [f"{times[k]:.1f}" if k in times else "-" for k in ("stardist", "cellpose")]
            table.add_row(labels, task, f"{times['nuctut']:.1f}", *cells, f"{ratio:.1f}x")
    console.print(table)
    console.print("StarDist has no AJI. Cellpose's differs (below); its time stands for AJI+ too.")
    return reached


def cellpose_aji(true: np.ndarray, pred: np.ndarray) -> float:
    """Cellpose's index rebuilt on our overlap table, to show where it parts from Kumar's.

    One-to-one like AJI+, but pairs are chosen by how many reach IoU 0.5, then by IoU; and the
    shared pixels are divided by the foreground of both images together, counted once, so that
    a pixel between two mismatched objects costs nothing twice.
    """
    table = metrics.overlap_table(true, pred)
    shape = (table.true_ids.size, table.pred_ids.size)
    iou, shared = np.zeros(shape), np.zeros(shape)
    iou[table.true_index, table.pred_index] = table.ious
    shared[table.true_index, table.pred_index] = table.intersections
    gain = (iou >= 0.5) + iou / (2 * min(shape))
    return float(
        shared[linear_sum_assignment(gain, maximize=True)].sum()
        / np.count_nonzero((true > 0) | (pred > 0))
    )


def compare_numbers(pairs: dict[str, Pair]) -> bool:
    table = Table(title="The same pairs, the same numbers?")
    for name in ("labels", "score", "nuctut", "stardist", "cellpose", "verdict"):
        table.add_column(name)
    agreed = True

    def row(labels: str, score: str, values: list[float | None], tolerance: float) -> None:
        nonlocal agreed
        given = [value for value in values if value is not None]
        same = max(given) - min(given) <= tolerance
        agreed &= same
        cells = ["-" if value is None else f"{value:.6g}" for value in values]
        table.add_row(labels, score, *cells, "same" if same else "DIFFERS")

    for labels, (true, pred) in pairs.items():
        for threshold in (0.25, 0.5, 0.75):
            ours = metrics.match(true, pred, threshold)
            theirs = stardist.matching(true, pred, thresh=threshold)
            ap, tp, fp, fn = (
                float(x[0]) for x in cellpose.average_precision(true, pred, threshold=[threshold])
            )
            name = f"{labels}, IoU {threshold}"
            row(name, "tp", [ours.tp, theirs.tp, tp], 0)
            row(name, "fp + fn", [ours.fp + ours.fn, theirs.fp + theirs.fn, fp + fn], 0)
            row(name, "average precision", [ours.average_precision, theirs.accuracy, ap], 1e-6)
            row(name, "F1", [ours.f1, theirs.f1, None], 1e-6)
            if threshold >= 0.5:  # below, StarDist's tie-break also weighs pairs it then drops
                quality = [ours.panoptic_quality, theirs.panoptic_quality, None]
                row(name, "panoptic quality", quality, 1e-6)
        theirs = float(cellpose.aggregated_jaccard_index([true], [pred])[0])
        row(labels, "Cellpose's AJI, rebuilt", [cellpose_aji(true, pred), None, theirs], 1e-9)
    console.print(table)
    return agreed


def explain_differences(pairs: dict[str, Pair]) -> None:
    table = Table(title="One name, three definitions: the aggregated Jaccard index")
    for name in ("labels", "AJI (Kumar)", "AJI+ (HoVer-Net)", "Cellpose", "pixel Jaccard"):
        table.add_column(name)
    for labels, (true, pred) in pairs.items():
        values = (
            metrics.aggregated_jaccard(true, pred),
            metrics.aggregated_jaccard_plus(true, pred),
            float(cellpose.aggregated_jaccard_index([true], [pred])[0]),
            metrics.pixel_scores(true, pred).jaccard,
        )
        table.add_row(labels, *(f"{value:.4f}" for value in values))
    console.print(table)
    console.print(
        "AJI and AJI+ divide by areas added up object by object; Cellpose divides by the joint\n"
        "foreground counted once, so what overlaps the wrong neighbour is not paid for.\n"
        "Matching: all three take IoU >= threshold, one to one, as many pairs as possible. The\n"
        "peers keep IoU in 32 bits (StarDist) or their scores (Cellpose): differences stay below\n"
        "1e-6. Two empty images: NaN here, 0 in StarDist, NaN with a warning in Cellpose."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="repeats, of which the best counts")
    rounds = parser.parse_args().rounds
    if hasattr(os, "sched_setaffinity"):  # one core for everybody, where the system can say so
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    console.print(*(f"{name} {version(name)} " for name in ("stardist", "cellpose", "numpy")))
    pairs = {"apart": label_pair(radius=13), "crowded": label_pair(radius=22)}
    for labels, pair in pairs.items():
        overlap = metrics.overlap_table(*pair)
        console.print(
            f"{labels}: {overlap.true_ids.size} and {overlap.pred_ids.size} nuclei, "
            f"{overlap.intersections.size} overlapping pairs"
        )
    fast = measure_speed(pairs, rounds)
    agreed = compare_numbers(pairs)
    explain_differences(pairs)
    console.print(f"at least {GOAL:g}x faster than the faster peer: {'yes' if fast else 'NO'}")
    console.print(f"numbers agree where definitions do: {'yes' if agreed else 'NO'}")
    sys.exit(not (fast and agreed))


if __name__ == "__main__":
    main()
