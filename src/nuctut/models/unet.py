"""The U-Net family (Ronneberger et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """The U-Net with zero padding: 19 convolutions and 4 transposed ones (Ronneberger et al. 2015).

    Two 3×3 convolutions in each of nine blocks and a last one of 1×1; a pooling between the blocks
    on the way down, a transposed convolution on the way up. The original crops instead of padding,
    and has 23 convolutional layers, the transposed ones counted, as this has.

    The network returns logits; sigmoid or softmax are in the losses and in `inference.predict`.

    Args:
        in_channels: Channels of the image.
        classes: Channels of the output; 1 for a mask.
        channels: Feature maps of the five levels, from the finest to the coarsest.
        last_channels: Feature maps of the last block, at full resolution; None for `channels[0]`.
        dropout: Rates after the four poolings.
        normalise: Batch normalisation before every activation; the original has none.
        activation: After every convolution but the last.

    Shapes:
        (B, in_channels, H, W) float → (B, classes, H, W) logits; H and W multiples of 16.
    """

    stride = 16

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        last_channels: int | None = None,
        dropout: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        normalise: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if len(channels) != 5 or len(dropout) != 4:
            raise ValueError("channels needs five numbers, one per level, and dropout four.")
        self.channels = tuple(channels)
        last_channels = channels[0] if last_channels is None else last_channels
        style = (normalise, activation)
        ins = (in_channels, *channels[:-1])
        self.down = nn.ModuleList(_block(i, o, *style) for i, o in zip(ins, channels, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.ModuleList(nn.Dropout(rate) for rate in dropout)
        outs = (last_channels, *channels[1:-1])
        deeper = (*outs[1:], channels[-1])
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in zip(deeper, channels, strict=False)
        )
        self.up = nn.ModuleList(
            _block(2 * skip, o, *style) for skip, o in zip(channels, outs, strict=False)
        )
        self.head = nn.Conv2d(last_channels, classes, 1)
        self.apply(_glorot_normal)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image; see the class for shapes."""
        if image.shape[-2] % self.stride or image.shape[-1] % self.stride:
            raise ValueError(
                f"the network needs height and width in multiples of {self.stride}, "
                f"not {tuple(image.shape[-2:])}; inference.predict pads for you."
            )
        features = image
        skips = []
        for block, dropout in zip(self.down, self.dropout, strict=False):
            features = block(features)
            skips.append(features)
            features = dropout(self.pool(features))
        features = self.down[-1](features)
        for level in reversed(range(4)):
            features = torch.cat([skips[level], self.upsample[level](features)], 1)
            features = self.up[level](features)
        return self.head(features)


class ReducedUNet(UNet):
    """The reduced U-Net of Matuszewski & Ranefall (section 2.3, figure 2).

    SELU after every convolution but the last, dropout after each pooling, Glorot normal
    initialisation. The paper gives its numbers of feature maps only in a figure; `channels` is our
    choice, in the proportions of the original U-Net. The paper widens the last block;
    `last_channels` does.

    Args:
        in_channels, classes, channels, last_channels, dropout: Of `UNet`.
        normalise: Batch normalisation and ReLU in place of SELU; not in the paper.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        last_channels: int = 64,
        dropout: Sequence[float] = (0.2, 0.25, 0.3, 0.35),
        normalise: bool = False,
    ) -> None:
        activation = nn.ReLU if normalise else nn.SELU
        common = (in_channels, classes, channels, last_channels, dropout)
        super().__init__(*common, normalise, activation)


def _block(
    inputs: int, outputs: int, normalise: bool, activation: type[nn.Module]
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=not normalise))
        layers += [nn.BatchNorm2d(outputs)] * normalise + [activation()]
    return nn.Sequential(*layers)


def _glorot_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
