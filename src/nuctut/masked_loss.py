"""The loss of a network that learns from the nuclei somebody did outline."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nuctut.background import LABELLED, LEVELS
from nuctut.targets import BACKGROUND, NUCLEUS


class MaskedCrossEntropy(nn.Module):
    """Cross-entropy in which unlabelled pixels weigh as they may be background (Mercadier, eq. 1).

    L = −(1/n) Σ f · y · log ŷ_fg + m · (1 − y) · log ŷ_bg, the sum running over all n pixels of the
    batch. The paper prints the sum without the minus sign, without which it would have to be made
    as large as possible, and does not divide by n; as it is fitted by Adam, which cares for no
    factor, that changes its share in equation 5 alone. The other part of that, γ Σ w² with
    γ = 10⁻⁵, is `l2` of `training.FitSettings`.

    Args:
        foreground: f, weight of the outlined nuclei; 1 in the paper.
    """

    def __init__(self, foreground: float = 1.0) -> None:
        super().__init__()
        if not 0 < foreground < math.inf:
            raise ValueError(f"foreground must be a weight above 0, not {foreground}.")
        self.foreground = foreground

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The loss of (B, 2, H, W) float logits, against a map of `background.taught`.

        Args:
            logits: Of background and nucleus.
            classes: (B, H, W) uint8, `LABELLED` or a weight in `LEVELS` steps.

        Raises:
            ValueError: When the network has not two classes.
        """
        if logits.shape[1] != 2:
            raise ValueError(f"MaskedCrossEntropy wants two logits a pixel, not {logits.shape[1]}.")
        chances = logits.float().log_softmax(1)
        outlined = classes == LABELLED
        weights = torch.where(outlined, 0, classes.float() / LEVELS)
        gain = self.foreground * (chances[:, NUCLEUS] * outlined).sum()
        return -(gain + (chances[:, BACKGROUND] * weights).sum()) / classes.numel()
