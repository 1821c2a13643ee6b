"""Mask R-CNN (He et al. 2017), set for nuclei: many, small, of one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock, resnet50
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from .pretrained import published_weights
from .resnet import WIDTH, check_size, resnet18

CLASSES = 2  # background and nucleus
LEVELS = ("0", "1", "2", "3")  # of the feature pyramid, strides 4, 8, 16 and 32


@dataclass(frozen=True)
class _Size:
    """Widths of the parts around the backbone, and how many boxes they look at per image."""

    pyramid: int
    box: int
    mask: tuple[int, ...]
    proposals: tuple[int, int]  # kept of each level and in all, in training
    samples: int  # proposals that the box head learns from
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # of the anchors, height to width
    scales: tuple[float, ...] = (1.0,)  # of the anchors of one level
    positive: float = 0.7  # an anchor that overlaps a nucleus so much learns to be one
    sampling: int = 2  # points per bin and axis in RoIAlign


SIZES = {
    18: _Size(
        pyramid=64,
        box=256,
        mask=(64, 64),
        proposals=(400, 400),
        samples=128,
        ratios=(1.0,),
        scales=(1.0, 1.4),
        positive=0.5,
        sampling=1,
    ),
    50: _Size(pyramid=256, box=1024, mask=(256,) * 4, proposals=(2000, 2000), samples=512),
}


@dataclass(frozen=True)
class Detection:
    """One nucleus found.

    Attributes:
        mask: (h, w) bool, the nucleus within its box.
        top, left: Row and column of the mask's first pixel in the image.
        score: Confidence, 0…1.
        cut: Whether it touches a border beyond which the image goes on (the edge of a tile).
    """

    mask: np.ndarray
    top: int
    left: int
    score: float
    cut: bool = False


class MaskRCNN(nn.Module):
    """Mask R-CNN (He et al. 2017) on a feature pyramid (Lin et al. 2017), for nuclei.

    A network of torchvision with these settings: anchors of 8, 16, 32, 64 and 128 pixels on the
    strides 4 to 64, up to `max_detections` nuclei per image, two classes, and masks of 28x28 pixels
    in each box (torchvision's). Images are neither resized nor normalised here: they come
    standardised, and are used at their own scale times `upscale`.

    Depth 50 is torchvision's own design, 44 million parameters. With weights from COCO, all but the
    last layers of the box and the mask head start from them; batch normalisation, the stem and the
    first stage stay frozen. Depth 18 is a small one for the CPU, of 12 million parameters, or fewer
    with a smaller `width` (3 million with 24): a narrow pyramid and narrow heads, square anchors in
    steps of √2 (an anchor learns to be a nucleus from an overlap of 0.5 instead of 0.7 on), one
    sampling point per RoIAlign bin. A ResNet that starts from scratch has group normalisation, as
    He, Girshick & Dollár (2019, "Rethinking ImageNet pre-training") recommend: its statistics do
    not depend on the batch, so that training and evaluation see the same network.

    Coordinates: the centre of a pixel has whole numbers, so that a nucleus in the columns a…b has
    a box from a - ½ to b + ½. That is what torchvision's anchors and RoIAlign assume.

    Args:
        depth: Of the ResNet, 50 or 18.
        pretrained: Start from weights trained on COCO (depth 50 only).
        restore: Do not get these weights: the caller loads a checkpoint of a network that had them.
        upscale: Whole factor by which images are enlarged on entry; nuclei narrower than ten
            pixels cover little of a stride-4 feature map. The time grows with its square.
        max_detections: Most nuclei found in one image.
        width: Of `models.resnet.resnet18` (depth 18 only).

    Attributes:
        depth, width, pretrained: As given.

    Raises:
        ValueError: When there is no such depth, none of this width, or none with weights.
        OSError: When the weights cannot be had.
    """

    def __init__(
        self,
        depth: int = 50,
        pretrained: bool = True,
        upscale: int = 1,
        max_detections: int = 500,
        width: int = WIDTH,
        restore: bool = False,
    ) -> None:
        super().__init__()
        check_size(depth, width, pretrained, tuple(SIZES))
        for name, value in (("upscale", upscale), ("max_detections", max_detections)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        self.depth, self.width, self.pretrained, self.upscale = depth, width, pretrained, upscale
        weights = None
        if pretrained and not restore:
            weights = published_weights(MaskRCNN_ResNet50_FPN_Weights.COCO_V1)
        norm = partial(FrozenBatchNorm2d, eps=0.0) if pretrained else _group_norm
        self.network = _network(depth, width, norm, upscale, max_detections)
        if weights is not None:
            heads = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
            kept = {name: w for name, w in weights.items() if not name.startswith(heads)}
            mine = {n: w for n, w in self.network.state_dict().items() if n.startswith(heads)}
            self.network.load_state_dict(kept | mine)
            for part in ("conv1", "bn1", "layer1"):
                getattr(self.network.backbone.body, part).requires_grad_(False)
        heads = self.network.roi_heads
        for part in (
            self.network.backbone,
            self.network.rpn.head,
            heads.box_predictor,
            heads.mask_predictor,
        ):
            # Under autocast the layers compute in half precision; coordinates must not.
            part.register_forward_hook(_in_full_precision)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The sum of the five losses of He et al. (2017, section 3), in either mode.

        They are those of the proposals (nucleus or not, box), and of the detections (class, box,
        mask). Which proposals count is drawn at random; in evaluation mode the draw is always the
        same. No buffer changes.

        Args:
            batch: "image": list of (3, H, W) float, standardised; "target": list of dicts with
                "boxes" (N, 4) float (x0, y0, x1, y1; see the class), "labels" (N,) int64, all 1,
                and "masks" (N, H, W) uint8. N may be 0.

        Returns:
            Scalar, finite for images without nuclei too.
        """
        images = self._together(batch["image"])
        targets = [self._enlarged(target) for target in batch["target"]]
        network = self.network
        device = images.tensors.device
        with torch.random.fork_rng(
            [device] if device.type == "cuda" else [], enabled=not self.training
        ):
            if not self.training:
                torch.manual_seed(0)
            features = network.backbone(images.tensors)
            with _as_in_training(network.rpn), _as_in_training(network.roi_heads):
                proposals, losses = network.rpn(images, features, targets)
                _, more = network.roi_heads(features, proposals, images.image_sizes, targets)
        return sum((losses | more).values())

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Tensor], mask_threshold: float = 0.5
    ) -> list[list[Detection]]:
        """The nuclei of each image, by falling score.

        Args:
            images: (3, H, W) float tensors, standardised, of any sizes.
            mask_threshold: A pixel belongs to a nucleus from this probability on.

        Returns:
            A list per image. Boxes that overlap another of higher score by more than half are
            left out (non-maximum suppression), and so are scores below 0.05.
        """
        network = self.network
        was_training = self.training
        self.eval()
        batch = self._together(images)
        features = network.backbone(batch.tensors)
        proposals, _ = network.rpn(batch, features)
        found, _ = network.roi_heads(features, proposals, batch.image_sizes)
        self.train(was_training)
        return [
            self._detections(one, image.shape[-2:], mask_threshold)
            for one, image in zip(found, images, strict=True)
        ]

    def _together(self, images: Sequence[Tensor]) -> ImageList:
        """One batch: enlarged, padded with zeros (the mean) below and right."""
        device = next(self.parameters()).device
        sizes = [tuple(self.upscale * s for s in image.shape[-2:]) for image in images]
        height, width = (-(-max(lengths) // 32) * 32 for lengths in zip(*sizes, strict=True))
        batch = torch.zeros(len(images), 3, height, width, device=device)
        for place, image, (h, w) in zip(batch, images, sizes, strict=True):
            image = image.to(device)
            if self.upscale > 1:
                image = F.interpolate(image[None], size=(h, w), mode="bilinear")[0]
            place[:, :h, :w] = image
        return ImageList(batch.contiguous(memory_format=torch.channels_last), sizes)

    def _enlarged(self, target: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.upscale == 1:
            return target
        masks = target["masks"].repeat_interleave(self.upscale, 1)
        return target | {
            "boxes": (target["boxes"] + 0.5) * self.upscale - 0.5,
            "masks": masks.repeat_interleave(self.upscale, 2),
        }

    def _detections(
        self, found: dict[str, Tensor], shape: Sequence[int], threshold: float
    ) -> list[Detection]:
        boxes = ((found["boxes"] + 0.5) / self.upscale - 0.5).cpu().numpy()
        masks, scores = found["masks"][:, 0].cpu().numpy(), found["scores"].cpu().numpy()
        detections = []
        for box, mask, score in zip(boxes, masks, scores, strict=True):
            rows, top = _resampling(box[1], box[3], shape[0], mask.shape[0])
            columns, left = _resampling(box[0], box[2], shape[1], mask.shape[1])
            inside = rows @ mask @ columns.T >= threshold
            if inside.any():
                detections.append(Detection(inside, top, left, float(score)))
        return detections


def _resampling(low: float, high: float, length: int, points: int) -> tuple[np.ndarray, int]:
    """Linear interpolation from `points` cells between low and high to the pixels between them.

    Returns the (pixels, points) float32 weights, and the first of the pixels.
    """
    pixels = np.arange(max(0, np.ceil(low)), min(length - 1, np.floor(high)) + 1)
    cells = (pixels - low) / (high - low) * points - 0.5
    distance = np.abs(cells.clip(0, points - 1)[:, None] - np.arange(points))
    return (1 - distance).clip(0).astype(np.float32), int(pixels[0]) if pixels.size else 0


def _network(
    depth: int, width: int, norm: Any, upscale: int, max_detections: int
) -> torchvision.models.detection.MaskRCNN:
    size = SIZES[depth]
    if depth == 18:
        body, widths = resnet18(width, norm), [width * 2**i for i in range(4)]
        for block in body.modules():
            if isinstance(block, BasicBlock):
                nn.init.zeros_(block.bn2.weight)
    else:
        body = resnet50(norm_layer=norm, zero_init_residual=norm is _group_norm)
        widths = [256 * 2**i for i in range(4)]
    backbone = BackboneWithFPN(
        body,
        {f"layer{i + 1}": level for i, level in enumerate(LEVELS)},
        widths,
        size.pyramid,
    )
    return torchvision.models.detection.MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            [[upscale * side * f for f in size.scales] for side in (8, 16, 32, 64, 128)],
            (size.ratios,) * 5,
        ),
        rpn_fg_iou_thresh=size.positive,
        box_roi_pool=MultiScaleRoIAlign(LEVELS, 7, size.sampling),
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, 14, size.sampling),
        rpn_pre_nms_top_n_train=size.proposals[0],
        rpn_post_nms_top_n_train=size.proposals[1],
        rpn_pre_nms_top_n_test=2 * max_detections,
        rpn_post_nms_top_n_test=2 * max_detections,
        box_head=TwoMLPHead(size.pyramid * 7**2, size.box),
        box_predictor=FastRCNNPredictor(size.box, CLASSES),
        box_batch_size_per_image=size.samples,
        box_detections_per_img=max_detections,
        mask_head=MaskRCNNHeads(size.pyramid, size.mask, 1),
        mask_predictor=MaskRCNNPredictor(size.mask[-1], size.mask[-1], CLASSES),
    )


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels)


def _in_full_precision(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return type(output)((name, one.float()) for name, one in output.items())
    return type(output)(_in_full_precision(module, None, one) for one in output)


@contextmanager
def _as_in_training(part: nn.Module) -> Iterator[None]:
    """Let a part of the detector choose proposals and give losses; its layers stay as they are."""
    before, part.training = part.training, True
    try:
        yield
    finally:
        part.training = before
