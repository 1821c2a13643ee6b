"""DeepCell (Van Valen et al. 2016): a network that classifies the middle of a patch."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 61  # pixels


class DeepCell(nn.Module):
    """The 61×61 network of DeepCell: convolutions and poolings without padding, down to one pixel.

    Kernels 3, 4, pool, 3, 3, pool, 3, 3, pool, 4, and two layers connected to all of what is left,
    here kernels of 1; in pixels 61, 59, 56, 28, 26, 24, 12, 10, 8, 4, 1. Batch normalisation and
    ReLU after each but the last, and kernels as He et al. (2015) start them, as in the authors'
    public code. It tells background, nucleus and border apart (`borders.bordered`).

    Args:
        in_channels: Channels of the image.
        classes: Channels of the output.
        channels: Feature maps of the six convolutions of 3 and 4; 64 in the original.
        features: Of the last ones; 200 in the original.

    Shapes:
        (B, in_channels, 61, 61) float → (B, classes, 1, 1) logits of the patches' middles. Whole
        images are for `DenseDeepCell`.
    """

    def __init__(
        self, in_channels: int = 1, classes: int = 3, channels: int = 64, features: int = 200
    ) -> None:
        super().__init__()
        self.channels = channels
        layers: list[nn.Module] = []
        inputs = in_channels
        for kernel, pooled in ((3, 0), (4, 1), (3, 0), (3, 1), (3, 0), (3, 1)):
            layers += _convolution(inputs, channels, kernel) + [nn.MaxPool2d(2)] * pooled
            inputs = channels
        layers += _convolution(channels, features, 4) + _convolution(features, features, 1)
        self.layers = nn.Sequential(*layers, nn.Conv2d(features, classes, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits of patches; see the class for shapes."""
        if patches.shape[-2:] != (SIZE, SIZE):
            raise ValueError(
                f"DeepCell takes patches of {SIZE}×{SIZE} pixels, not "
                f"{tuple(patches.shape[-2:])}; whole images are for DenseDeepCell."
            )
        return self.layers(patches)

    def dense(self) -> DenseDeepCell:
        """The same network for whole images."""
        return DenseDeepCell(self)


class DenseDeepCell(nn.Module):
    """The same network at every pixel of an image at once: numbers as of patch after patch.

    Neighbouring patches share most of what is computed of them. Instead of leaving out every other
    pixel, a pooling keeps all of them, and what comes after it takes every second one: its kernels
    are dilated by 2, after two poolings by 4, after three by 8 (Van Valen et al. 2016; "d-regularly
    sparse kernels", Li, Zhao & Wang 2014). The image is continued by reflection, as in
    `balanced_patches.Patches`. With an overlap of 60 or more in `inference.predict`, tiles leave no
    trace.

    Args:
        network: To be copied; later training of it changes nothing here.

    Shapes:
        (B, in_channels, H, W) float → (B, classes, H, W) logits; H and W more than 30.
    """

    stride = 1

    def __init__(self, network: DeepCell) -> None:
        super().__init__()
        self.channels = network.channels
        self.layers = copy.deepcopy(network.layers)
        dilation = 1
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                layer.stride, layer.dilation = 1, dilation
                dilation *= 2
            elif isinstance(layer, nn.Conv2d):
                layer.dilation = (dilation, dilation)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image; see the class for shapes."""
        around = SIZE // 2
        if min(image.shape[-2:]) <= around:
            raise ValueError(
                f"DeepCell needs an image of more than {around} pixels a side, not "
                f"{tuple(image.shape[-2:])}; enlarge it."
            )
        return self.layers(F.pad(image, (around,) * 4, "reflect"))


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
