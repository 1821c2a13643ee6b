"""AlexNet, which tells sharp images from blurred ones (Krizhevsky et al. 2012)."""

from __future__ import annotations

from torch import Tensor, nn

WIDTH = 64  # of torchvision's


class AlexNet(nn.Module):
    """The quality control of Mandal et al. (section III.B): "a simple AlexNet", two classes.

    With `width` 64 and three channels it is, layer by layer and by the names of its weights,
    `torchvision.models.alexnet`, which knows no other width; all numbers of feature maps are
    multiples of it. The paper does not say whether weights were pretrained: none are here.

    Args:
        width: Feature maps of the first layer; the number of weights grows with its square,
            57 million for 64 and 0.9 million for 8.
        in_channels: Channels of the image.
        classes: Channels of the output: sharp and blurred.
        dropout: Rate before each of the first two dense layers.

    Attributes:
        width: As given.

    Shapes:
        (B, in_channels, H, W) float → (B, classes) logits; H and W 63 or more.

    Raises:
        ValueError: When the width is not from 1 to 64.
    """

    def __init__(
        self, width: int = WIDTH, in_channels: int = 1, classes: int = 2, dropout: float = 0.5
    ) -> None:
        if not 1 <= width <= WIDTH:
            raise ValueError(f"width must be from 1 to {WIDTH}, not {width}.")
        super().__init__()
        self.width = width
        second, third, last, dense = 3 * width, 6 * width, 4 * width, 64 * width
        self.features = nn.Sequential(
            *_layer(in_channels, width, 11, stride=4, padding=2),
            nn.MaxPool2d(3, 2),
            *_layer(width, second, 5, padding=2),
            nn.MaxPool2d(3, 2),
            *_layer(second, third, 3, padding=1),
            *_layer(third, last, 3, padding=1),
            *_layer(last, last, 3, padding=1),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(36 * last, dense),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(dense, dense),
            nn.ReLU(),
            nn.Linear(dense, classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image; see the class for shapes."""
        return self.classifier(self.avgpool(self.features(image)).flatten(1))


def _layer(inputs: int, outputs: int, kernel: int, **how: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, kernel, **how), nn.ReLU()
