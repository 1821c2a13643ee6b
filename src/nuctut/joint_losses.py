"""What a network with two answers is fitted to minimise: classes, and an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .targets import IGNORE


class CrossEntropy(nn.Module):
    """The pixel-wise cross-entropy (Mandal et al., eq. 2), its mean over pixels not ignored.

    Args:
        weights: One factor per class on the pixels of that class; the sum is divided by the
            number of pixels, not by that of the factors, as in DenoiSeg's public code. None: all 1.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        # not among the weights of a network that it is an objective of
        given = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("weights", given, persistent=False)

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The loss of (B, C, H, W) float logits against (B, H, W) integer classes."""
        how = {"weight": self.weights, "ignore_index": IGNORE, "reduction": "sum"}
        total = F.cross_entropy(logits.float(), classes.long(), **how)
        return total / (classes != IGNORE).sum().clamp(min=1)


class JointLoss(nn.Module):
    """L_total = L_nuc + L_deblur (Mandal et al., equations 1 to 3), for `models.forked_unet`.

    L_nuc is the cross-entropy of the classes, L_deblur the mean squared plus the mean absolute
    difference between the restored and the sharp image. The paper gives the terms no weights.

    Args:
        deblurring: False leaves L_deblur out: the control that tells what deblurring teaches.
    """

    def __init__(self, deblurring: bool = True) -> None:
        super().__init__()
        self.deblurring = deblurring
        self.cross_entropy = CrossEntropy()

    def forward(self, logits: Tensor, restored: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch of `blurred_crops.BlurredPairs`.

        Args:
            logits: (B, C, H, W) float.
            restored: (B, 1, H, W) float.
            batch: "classes" (B, H, W) integers, and "sharp" (B, 1, H, W) float.
        """
        loss = self.cross_entropy(logits, batch["classes"])
        if self.deblurring:
            restored, sharp = restored.float(), batch["sharp"].float()
            loss = loss + F.mse_loss(restored, sharp) + F.l1_loss(restored, sharp)
        return loss


class DenoiSegLoss(nn.Module):
    """α · Noise2Void + (1 − α) · weighted cross-entropy (Buchholz et al. 2020, its public code).

    The first is the mean squared difference between the restored image and the image as it was
    seen, at the pixels alone that were hidden from the network: no sharp image is needed.

    Args:
        alpha: α; 0.5 in DenoiSeg.
        weights: Of background, nucleus and boundary.

    Raises:
        ValueError: When alpha is not from 0 to 1.
    """

    def __init__(self, alpha: float = 0.5, weights: Sequence[float] = (1, 1, 5)) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie from 0 to 1, not {alpha}.")
        super().__init__()
        self.alpha = alpha
        self.cross_entropy = CrossEntropy(weights)

    def forward(self, logits: Tensor, restored: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch of `blurred_crops.BlindSpots`.

        Args:
            logits: (B, 3, H, W) float.
            restored: (B, 1, H, W) float.
            batch: "classes" (B, H, W) integers, "seen" (B, 1, H, W) float, the image before pixels
                were hidden, and "hidden" (B, 1, H, W) bool.
        """
        hidden = batch["hidden"]
        squares = (restored.float() - batch["seen"].float()).square() * hidden
        denoising = squares.sum() / hidden.sum().clamp(min=1)
        classes = self.cross_entropy(logits, batch["classes"])
        return self.alpha * denoising + (1 - self.alpha) * classes
