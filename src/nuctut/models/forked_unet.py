"""A U-Net with two answers: the classes of the pixels, and the image as it was (Mandal et al.)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .unet import UNet

FORKS = (1, 2, 3, 4)
Objective = Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor]


class ForkedUNet(UNet):
    """BNS-1 to BNS-4 of Mandal et al. (section III.A): one encoder, a decoder that forks.

    The fork's number says how much of the decoder each answer has to itself. 1: the last
    convolution, of 1×1. 2: also the last block, of 64 filters at the original's size. 3: also the
    one before it, of 128. 4: also the one before that, of 256. The paper does not say to whom a
    block's transposed convolution belongs; here it goes with its block. Two convolutions of 1×1
    on the same features are one with as many outputs, so that BNS-1 is, weight for weight,
    DenoiSeg's network with its single head of four channels (Buchholz et al. 2020).

    Built after the same `torch.manual_seed`, every fork starts with the encoder and the classes'
    decoder that `UNet` starts with.

    Args:
        fork: 1…4.
        in_channels, classes, channels, last_channels, dropout, normalise, activation: Of `UNet`.
        objective: What it is fitted by, such as `joint_losses.JointLoss`: called with the logits,
            the restored image and the batch.

    Attributes:
        fork: As given.

    Shapes:
        (B, in_channels, H, W) float → (B, classes, H, W) logits; H and W multiples of 16. `both`
        gives the restored image too, (B, in_channels, H, W) in the units of the input.

    Raises:
        ValueError: When there is no such fork.
    """

    def __init__(
        self,
        fork: int,
        in_channels: int = 1,
        classes: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        last_channels: int | None = None,
        dropout: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        normalise: bool = False,
        activation: type[nn.Module] = nn.ReLU,
        objective: Objective | None = None,
    ) -> None:
        if fork not in FORKS:
            raise ValueError(f"fork must be one of {', '.join(map(str, FORKS))}, not {fork}.")
        common = (channels, last_channels, dropout, normalise, activation)
        super().__init__(in_channels, classes, *common)
        self.fork, self.objective = fork, objective
        other = UNet(in_channels, in_channels, *common)
        self.own_upsample, self.own_up = other.upsample[: fork - 1], other.up[: fork - 1]
        self.own_head = other.head

    def both(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the restored image; `forward` gives the same logits without the other."""
        if any(side % self.stride for side in image.shape[-2:]):
            raise ValueError(
                f"the network needs height and width in multiples of {self.stride}, "
                f"not {tuple(image.shape[-2:])}; ForkedUNet.restored pads for you."
            )
        features, skips = image, []
        for block, dropout in zip(self.down, self.dropout, strict=False):
            skips.append(block(features))
            features = dropout(self.pool(skips[-1]))
        features = self.down[-1](features)

        def rise(features: Tensor, level: int, upsample: nn.Module, up: nn.Module) -> Tensor:
            return up[level](torch.cat([skips[level], upsample[level](features)], 1))

        for level in reversed(range(self.fork - 1, len(skips))):
            features = rise(features, level, self.upsample, self.up)
        classes = restored = features
        for level in reversed(range(self.fork - 1)):
            classes = rise(classes, level, self.upsample, self.up)
            restored = rise(restored, level, self.own_upsample, self.own_up)
        return self.head(classes), self.own_head(restored)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """What `training.fit` asks of a network that has a loss of its own.

        Raises:
            ValueError: When the network was built without an objective.
        """
        if self.objective is None:
            raise ValueError("the network needs an objective to be fitted: give one.")
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        return self.objective(*self.both(image), batch)

    def restored(self, pixels: np.ndarray) -> np.ndarray:
        """The restored image of one of any size, looked at as a whole.

        Args:
            pixels: (H, W) or (H, W, channels) float32, normalised as for training.

        Returns:
            float32 of the same shape: what the sharp image would be, normalised alike.
        """
        height, width = pixels.shape[:2]
        extra = [(0, -side % self.stride) for side in (height, width)]
        layers = np.moveaxis(np.pad(np.atleast_3d(pixels), [*extra, (0, 0)], "symmetric"), -1, 0)
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        with torch.inference_mode():
            _, image = self.both(torch.from_numpy(layers.copy())[None].to(device))
        self.train(was_training)
        found = np.moveaxis(image[0].float().cpu().numpy(), 0, -1)[:height, :width]
        return np.ascontiguousarray(found).reshape(pixels.shape)


def weights(model: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(w.numel() for w in model.parameters() if w.requires_grad)


def as_many_weights(model: ForkedUNet, **options: Any) -> tuple[int, ...]:
    """The feature maps of the plain `UNet` whose number of weights is nearest to a forked one's.

    All five levels are widened by one factor, and rounded.

    Args:
        model: The network that a control shall be as large as.
        options: Of `UNet`, as the network has them, but for channels.

    Returns:
        `channels` for `UNet`.
    """

    def widened(factor: float) -> tuple[int, ...]:
        return tuple(round(factor * one) for one in model.channels)

    def excess(channels: tuple[int, ...]) -> int:
        with torch.device("meta"):  # counted without any memory
            return weights(UNet(channels=channels, **options)) - weights(model)

    low, high = 1.0, 2.0
    while widened(low) != widened(high) and high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(widened(middle)) < 0 else (low, middle)
    return min(widened(low), widened(high), key=lambda channels: abs(excess(channels)))
