"""The presets that the chapters' notebooks state, and whether a network under them learns."""

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch
from torch import nn

from nuctut import fits
from nuctut.experiments import Trained

BOOK = Path(__file__).parents[1] / "book"


def presets_of(chapter: str) -> dict[str, Any]:
    """What a notebook calls `presets`: its code is run up to there."""
    names: dict[str, Any] = {}
    for cell in nbformat.read(BOOK / f"{chapter}.ipynb", as_version=4).cells:
        if cell.cell_type == "code" and "colab" not in cell.metadata.get("tags", []):
            exec(cell.source, names)
            if "presets" in names:
                return names["presets"]
    raise AssertionError(f"{chapter} has no presets")


def assert_it_learned(made: Trained, start: nn.Module, updates: int) -> None:
    """All losses of a fit are finite, and every kernel that may change has changed."""
    assert made.fit.updates == updates and np.isfinite(made.fit.history).all(axis=None)
    state = torch.load(made.fit.best.parent / fits.LAST, weights_only=True)["state_dict"]
    for name, weight in start.named_parameters():
        assert torch.isfinite(state[f"model.{name}"]).all(), name
        if weight.ndim > 1:
            changed = not torch.equal(state[f"model.{name}"], weight)
            assert changed is weight.requires_grad, name
