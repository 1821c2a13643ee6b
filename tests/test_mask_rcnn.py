"""Mask R-CNN: its losses, its detections, where its weights come from, and that it learns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.resnet import BasicBlock

from nuctut.detection import InstanceCrops, labels_from
from nuctut.models import mask_rcnn
from nuctut.models.mask_rcnn import MaskRCNN

CENTRES = [(12, 14), (14, 40), (38, 12), (36, 36), (52, 54), (20, 58)]


def picture(count: int, radius: float = 6.5) -> tuple[np.ndarray, np.ndarray]:
    """An image of bright discs and its labels, 64x64 pixels."""
    y, x = np.indices((64, 64))
    labels = np.zeros((64, 64), np.int32)
    for number, (cy, cx) in enumerate(CENTRES[:count], start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    noise = np.random.default_rng(0).normal(0, 5, (64, 64, 3))
    return 20 + 100 * (labels > 0)[..., None] + noise, labels


def batch_of(*counts: int) -> dict[str, list]:
    images, labels = zip(*(picture(count) for count in counts), strict=True)
    crops = InstanceCrops(images, labels, [str(count) for count in counts], size=64)
    return crops.collate([crops[which, 0] for which in range(len(counts))])


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(18, pretrained=False, max_detections=20)


@pytest.mark.parametrize("counts", [(4, 6), (5, 0), (0, 0)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradient_are_finite(model, counts, precision):
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        loss = model.loss(batch_of(*counts))
    assert loss.shape == () and loss.dtype == torch.float32 and loss > 0
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("training", [True, False])
def test_a_loss_for_validation_changes_nothing(model, training):
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        loss = model.loss(batch_of(3))
    assert torch.isfinite(loss)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(module.training is training for module in model.modules())


def test_in_evaluation_mode_the_loss_is_always_the_same(model):
    model.eval()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        first, second = (float(model.loss(batch_of(6))) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_of_one_batch_may_differ_in_size(model):
    images = [torch.randn(3, 40, 70), torch.randn(3, 64, 33), torch.randn(3, 5, 7)]
    model.train()
    found = model.detect(images)
    assert model.training
    for image, nuclei in zip(images, found, strict=True):
        assert len(nuclei) <= 20  # max_detections
        scores = [one.score for one in nuclei]
        assert scores == sorted(scores, reverse=True)
        for one in nuclei:
            assert one.mask.dtype == bool and one.mask.any() and not one.cut
            height, width = one.mask.shape
            assert one.top >= 0 and one.top + height <= image.shape[1]
            assert one.left >= 0 and one.left + width <= image.shape[2]


def test_the_number_of_detections_has_a_limit(model):
    model.eval()
    torch.manual_seed(0)
    assert len(model.detect([torch.randn(3, 128, 128)], 0.0)[0]) == 20


@pytest.mark.parametrize("upscale", [1, 2])
@pytest.mark.slow
def test_it_learns_to_find_discs(upscale):
    torch.manual_seed(1)
    model = MaskRCNN(18, pretrained=False, upscale=upscale).train()
    batch = batch_of(6)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(40):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 8, (40 - step) / 20)
        optimiser.zero_grad()
        model.loss(batch).backward()
        optimiser.step()
    labels = labels_from(model.detect(batch["image"])[0], (64, 64), min_score=0.5)
    masks = batch["target"][0]["masks"].numpy().astype(bool)
    assert labels.max() == len(masks) == 6
    for mask in masks:
        overlaps = [
            (mask & (labels == k)).sum() / (mask | (labels == k)).sum() for k in range(1, 7)
        ]
        assert max(overlaps) > 0.75


def test_a_mask_is_drawn_where_its_box_is():
    # A box half a pixel around 28 pixels has one cell for each of them.
    weights, first = mask_rcnn._resampling(4.5, 32.5, 100, 28)
    assert first == 5 and np.allclose(weights, np.eye(28))
    # Half as wide, a pixel is the mean of two cells.
    weights, first = mask_rcnn._resampling(4.5, 18.5, 100, 28)
    assert first == 5 and np.allclose(weights, np.repeat(np.eye(14), 2, 1) / 2)
    # Boxes are clipped to the image at 0 and its length; the outermost pixels still belong to them.
    for low, high, pixels in ((0, 5.5, [0, 5]), (93.5, 100, [94, 99]), (3.2, 3.8, None)):
        weights, first = mask_rcnn._resampling(low, high, 100, 28)
        assert np.allclose(weights.sum(1), 1)
        assert (len(weights) and [first, first + len(weights) - 1]) == (pixels or 0)


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> tuple[str, dict[str, torch.Tensor]]:
    """A cache folder of torch with a file like the published one."""
    torch.manual_seed(5)
    whole = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    weights = {name: w for name, w in whole.items() if not name.endswith("num_batches_tracked")}
    home = tmp_path_factory.mktemp("torch")
    path = home / "hub" / "checkpoints" / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    return str(home), weights


def test_published_weights_are_taken_but_for_the_last_layers(coco, monkeypatch):
    home, weights = coco
    monkeypatch.setenv("TORCH_HOME", home)
    model = MaskRCNN()
    assert model.pretrained and model.depth == 50
    state = model.network.state_dict()
    assert state.keys() == weights.keys()
    other = {name for name, one in weights.items() if not torch.equal(state[name], one)}
    assert other == {
        f"roi_heads.{layer}.{kind}"
        for layer in (
            "box_predictor.cls_score",
            "box_predictor.bbox_pred",
            "mask_predictor.mask_fcn_logits",
        )
        for kind in ("weight", "bias")
    }
    frozen = {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"body"}
    assert 40e6 < sum(p.numel() for p in model.parameters()) < 48e6
    with torch.no_grad():
        assert torch.isfinite(model.train().loss(batch_of(2)))


def test_from_scratch_all_of_it_learns():
    with torch.device("meta"):
        model = MaskRCNN(pretrained=False)
    assert not model.pretrained
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("running" in name for name, _ in model.named_buffers())  # group normalisation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 34}, "depth must be one of 18, 50, not 34"),
        ({"width": 24}, "width must be 64 for depth 50: only depth 18 has others"),
        ({"depth": 18}, "COCO weights exist for depth 50 only, not for 18"),
        ({"depth": 18, "pretrained": False, "upscale": 0}, "upscale must be at least 1, not 0"),
        (
            {"depth": 18, "pretrained": False, "max_detections": 0},
            "max_detections must be at least 1, not 0",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskRCNN(**arguments)


@pytest.mark.parametrize("width", [8, 16, 24, 40, 64])
def test_a_network_of_any_width_learns_from_a_batch(width):
    torch.manual_seed(0)
    model = MaskRCNN(18, pretrained=False, width=width).train()
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == 8 and blocks[-1].conv2.out_channels == 8 * width
    assert not any(block.bn2.weight.any() for block in blocks)  # each begins as the identity
    loss = model.loss(batch_of(3))
    loss.backward()
    gradients = [p.grad for p in model.network.backbone.body.parameters()]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_network_of_24_feature_maps_fits_into_six_megabytes():
    with torch.device("meta"):
        model = MaskRCNN(18, pretrained=False, width=24)
    assert sum(one.numel() for one in model.state_dict().values()) < 3e6  # two bytes each
