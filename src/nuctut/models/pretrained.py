"""Weights that torchvision's authors publish, where they can be had."""

from __future__ import annotations

import logging

from torch import Tensor
from torchvision.models import WeightsEnum

log = logging.getLogger(__name__)


def published_weights(weights: WeightsEnum) -> dict[str, Tensor] | None:
    """The state dict of published weights, from torch's cache folder or downloaded into it.

    Only tensors are read from the file, never code, and a download must have the checksum in its
    name. None where the file is not there and cannot be downloaded; a warning then says so.

    Args:
        weights: Such as `torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1`.
    """
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:  # no network, no such host, refused, no room
        log.warning("%s cannot be had (%s): training starts from scratch.", weights.url, error)
        return None
