"""What a network is fitted to minimise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .targets import IGNORE


class LogDiceLoss(nn.Module):
    """Class-weighted sum of the negative log Dice coefficients (Matuszewski & Ranefall, eq. 1, 2).

    λ = −Σ_C w_C · log δ_C with δ_C = (2 Σ y ŷ + 1) / (Σ y + Σ ŷ + 1), the sums running over all
    pixels of the batch that are not ignored. The paper trains on batches of one tile.

    Args:
        weights: One weight per class; the paper's are (0.2, 0.4, 0.4).
        cross_entropy: Weight of a pixel-wise cross-entropy added to it; 0 in the paper.
    """

    def __init__(
        self, weights: Sequence[float] = (0.2, 0.4, 0.4), cross_entropy: float = 0.0
    ) -> None:
        super().__init__()
        self.cross_entropy = cross_entropy
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The loss of (B, C, H, W) float logits against (B, H, W) integer classes."""
        logits = logits.float()
        known = (classes != IGNORE).unsqueeze(1)
        target = F.one_hot(classes.long().clamp(max=logits.shape[1] - 1), logits.shape[1])
        target = target.movedim(-1, 1) * known
        predicted = logits.softmax(1) * known
        axes = (0, 2, 3)
        overlap = (target * predicted).sum(axes)
        dice = (2 * overlap + 1) / (target.sum(axes) + predicted.sum(axes) + 1)
        loss = -(self.weights * dice.log()).sum()
        if self.cross_entropy:
            per_pixel = -(logits.log_softmax(1) * target).sum(1)
            loss = loss + self.cross_entropy * per_pixel.sum() / known.sum().clamp(min=1)
        return loss


class IoULoss(nn.Module):
    """1 − I/U of a probability map and a mask (Wang & Song, figure 7), or cross-entropy.

    I = Σ X·Y and U = Σ (X + Y − X·Y), X the probabilities and Y the mask, the sums running over
    all pixels of the batch that are not ignored; 1 is added to both, so that an empty batch has a
    loss. The paper prints this loss, and writes beside it
    that cross-entropy is the common proxy, but not which of its networks had which.

    Args:
        iou: Weight of 1 − I/U.
        cross_entropy: Weight of the pixel-wise binary cross-entropy.
    """

    def __init__(self, iou: float = 1.0, cross_entropy: float = 0.0) -> None:
        super().__init__()
        if min(iou, cross_entropy) < 0 or iou + cross_entropy <= 0:
            raise ValueError(
                "iou and cross_entropy are weights of which at least one is above 0; "
                f"got {iou} and {cross_entropy}."
            )
        self.iou, self.cross_entropy = iou, cross_entropy

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The loss of (B, 1, H, W) float logits against (B, H, W) classes, any but 0 foreground."""
        if logits.shape[1] != 1:
            raise ValueError(f"IoULoss wants one logit per pixel, not {logits.shape[1]}.")
        logits = logits.float().squeeze(1)
        known = classes != IGNORE
        mask = ((classes != 0) & known).float()
        loss = logits.new_zeros(())
        if self.iou:
            predicted = logits.sigmoid() * known
            overlap = (predicted * mask).sum()
            union = (predicted + mask).sum() - overlap
            loss = loss + self.iou * (1 - (overlap + 1) / (union + 1))
        if self.cross_entropy:
            per_pixel = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
            mean = (per_pixel * known).sum() / known.sum().clamp(min=1)
            loss = loss + self.cross_entropy * mean
        return loss
