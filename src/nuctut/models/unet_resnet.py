"""A U-Net whose way down is a ResNet-34 (Ronneberger et al. 2015, He et al. 2016)."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from torch import Tensor, nn
from torchvision.models import ResNet34_Weights

from .pretrained import published_weights
from .resnet import WIDTH

DECODER = (256, 128, 64, 32, 16)  # feature maps on the way up beside an encoder of width 64


class UNetResNet(nn.Module):
    """The U-Net with a ResNet-34 encoder of `segmentation_models_pytorch`, or a narrow one.

    Kromp et al. take the U-Net ResNet34 of a library for Keras; this is its author's library for
    PyTorch: skips from the strides 2 to 16, and five blocks of nearest upsampling and two 3×3
    convolutions on the way up. Images come standardised, grey ones three times.

    Args:
        classes: Channels of the output; 1 for a mask.
        pretrained: Start the encoder from weights trained on ImageNet (width 64 only).
        width: Feature maps of the encoder's first stage, each of the other three having twice as
            many as the one before; the way up narrows alike. 24.4 million weights with 64, the
            original's; 1.6 with 16, 2.4 with 20. The stem has 64 always.
        restore: Do not get these weights: the caller loads a checkpoint of a network that had them.

    Attributes:
        width, pretrained: As given.

    Shapes:
        (B, 3, H, W) float → (B, classes, H, W) logits; H and W multiples of 32.

    Raises:
        ValueError: When there is no such width, or none with weights.
        OSError: When the weights cannot be had.
    """

    stride = 32

    def __init__(
        self,
        classes: int = 1,
        pretrained: bool = True,
        width: int = WIDTH,
        restore: bool = False,
    ) -> None:
        super().__init__()
        if width not in range(8, WIDTH + 1, 4):
            raise ValueError(f"width must be a multiple of 4 from 8 to {WIDTH}, not {width}.")
        if pretrained and width != WIDTH:
            raise ValueError(f"ImageNet weights exist for width {WIDTH} only, not for {width}.")
        self.width, self.pretrained = width, pretrained
        weights = None
        if pretrained and not restore:
            weights = published_weights(ResNet34_Weights.IMAGENET1K_V1)
        self.network = smp.Unet(
            "tu-resnet34",
            encoder_weights=None,
            decoder_channels=[channels * width // WIDTH for channels in DECODER],
            classes=classes,
            channels=[width * 2**stage for stage in range(4)],
        )
        if weights is not None:
            kept = {name: one for name, one in weights.items() if not name.startswith("fc.")}
            self.network.encoder.model.load_state_dict(kept)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image; see the class for shapes."""
        return self.network(image)
