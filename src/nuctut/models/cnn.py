"""A plain stack of convolutions, the simplest network that gives a mask."""

from __future__ import annotations

from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """The simple CNN of Wang & Song (section III.B.1): no pooling, so it sees 15×15 pixels.

    Batch normalisation of the image, six 3×3 convolutions with ReLU, and a 3×3 convolution to one
    logit. The paper calls the six "fully connected dense layers" between a normalisation and "a
    2-dimensional convolutional output layer", with a kernel of 3×3, for inputs of any size: layers
    that are dense over the channels of a pixel's neighbourhood, which is what a convolution is. A
    layer connected to every pixel would fix the size of the image. The number of feature maps is
    not given.

    Args:
        in_channels: Channels of the image.
        channels: Feature maps of each of the six convolutions.

    Shapes:
        (B, in_channels, H, W) float → (B, 1, H, W) logits, any H and W.
    """

    stride = 1

    def __init__(self, in_channels: int = 3, channels: int = 32) -> None:
        super().__init__()
        self.channels = channels
        layers: list[nn.Module] = [nn.BatchNorm2d(in_channels)]
        for inputs in (in_channels, *[channels] * 5):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image; see the class for shapes."""
        return self.layers(image)
