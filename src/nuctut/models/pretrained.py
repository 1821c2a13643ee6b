"""Weights that torchvision's authors publish."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import WeightsEnum


def published_weights(weights: WeightsEnum) -> dict[str, Tensor]:
    """The state dict of published weights, from torch's cache folder or downloaded into it.

    Only tensors are read from the file, never code, and a download must have the checksum in its
    name.

    Args:
        weights: Such as `torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1`.

    Raises:
        OSError: When the file is not there and cannot be downloaded, saying why and what to do.
    """
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, refused, no room; damaged
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise OSError(
            f"The published weights {weights.url} cannot be had ({error}). Download the file "
            f"elsewhere and put it at {path}, or start from scratch, with pretrained=False."
        ) from error
