"""What the tests share: one thread for torch, a clean checkout, scenes drawn on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from nuctut import datasets, machine

Scene = Callable[..., tuple[np.ndarray, np.ndarray]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: begun last, one of them would keep the other processes waiting."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks of four channels are slower on many threads, and less repeatable."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_checkout(monkeypatch) -> None:
    """What is measured here counts as measured from a commit, also while somebody works on it."""
    monkeypatch.setattr(machine, "git_commit", lambda: "c0ffee" + 34 * "0")


@pytest.fixture
def no_checkout(monkeypatch) -> None:
    """As after `pip install` alone: there is no checkout, and so no excerpt of any data set."""

    def missing() -> Path:
        raise FileNotFoundError("no checkout")

    monkeypatch.setattr(datasets, "excerpts_root", missing)


@pytest.fixture(scope="session")
def scene() -> Scene:
    """Draws bright discs with a camera's blur and noise."""

    def draw(
        shape: tuple[int, int],
        discs: Sequence[tuple[float, float, float]],
        *,
        noise: float = 5.0,
        seed: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A uint16 image (background 200, nuclei 1000) and int32 labels of (y, x, radius) discs.

        Where discs overlap, a pixel belongs to the one whose centre is nearer.
        """
        y, x = np.mgrid[: shape[0], : shape[1]]
        labels = np.zeros(shape, np.int32)
        nearest = np.full(shape, np.inf)
        for index, (cy, cx, radius) in enumerate(discs, start=1):
            distance = np.hypot(y - cy, x - cx)
            mine = (distance <= radius) & (distance < nearest)
            labels[mine], nearest[mine] = index, distance[mine]
        light = ndi.gaussian_filter(200.0 + 800.0 * (labels > 0), 0.7)
        noisy = light + np.random.default_rng(seed).normal(0, noise, shape)
        return noisy.round().clip(0, 4095).astype(np.uint16), labels

    return draw
