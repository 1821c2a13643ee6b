"""The networks of the chapter on blur, and what they are fitted by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from nuctut import inference
from nuctut.joint_losses import CrossEntropy, DenoiSegLoss, JointLoss
from nuctut.models.alexnet import AlexNet
from nuctut.models.forked_unet import FORKS, ForkedUNet, as_many_weights, weights
from nuctut.models.unet import UNet
from nuctut.targets import IGNORE

TINY = (4, 5, 6, 7, 8)


def network(fork: int, **options) -> ForkedUNet:
    torch.manual_seed(0)
    return ForkedUNet(fork, channels=TINY, **options)


# --- the forked U-Net ----------------------------------------------------------------------------


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("normalise", [False, True])
def test_there_are_two_answers_as_large_as_the_image(fork, normalise):
    made = network(fork, in_channels=2, classes=5, normalise=normalise).eval()
    image = torch.rand(3, 2, 16, 48)
    logits, restored = made.both(image)
    assert logits.shape == (3, 5, 16, 48) and restored.shape == (3, 2, 16, 48)
    assert torch.equal(made(image), logits)


@pytest.mark.parametrize("fork", FORKS)
def test_so_much_of_the_decoder_is_apart(fork):
    """What the classes alone teach, what the image alone does, and what both do."""
    made = network(fork)

    def taught(answer: int) -> set[str]:
        made.zero_grad()
        made.both(torch.rand(1, 1, 16, 16))[answer].sum().backward()
        return {name for name, w in made.named_parameters() if w.grad is not None}

    classes, image = taught(0), taught(1)
    own = {f"{part}.{level}." for level in range(fork - 1) for part in ("upsample", "up")}
    own |= {"head."}
    assert {name for name in classes - image} == {
        name for name in classes if any(name.startswith(part) for part in own)
    }
    assert {name.removeprefix("own_") for name in image - classes} == classes - image
    assert classes | image == {name for name, _ in made.named_parameters()}


def test_the_papers_blocks_are_apart():
    """At the original's size: 64, then 128, then 256 filters (section III.A)."""
    with torch.device("meta"):
        forks = [ForkedUNet(fork) for fork in FORKS]
    filters = [[block[0].out_channels for block in made.own_up] for made in forks]
    assert filters == [[], [64], [64, 128], [64, 128, 256]]
    assert all(made.own_head.out_channels == 1 for made in forks)


def test_the_number_of_weights_by_fork():
    def block(inputs: int, outputs: int) -> int:  # a transposed convolution and two others
        return (
            (4 * inputs + 1) * outputs + (18 * outputs + 1) * outputs + (9 * outputs + 1) * outputs
        )

    with torch.device("meta"):
        found = [weights(ForkedUNet(fork)) for fork in FORKS]
        plain = weights(UNet(1, 3))
    steps = [65, block(128, 64), block(256, 128), block(512, 256)]
    assert found == [plain + sum(steps[: fork + 1]) for fork in range(4)]
    assert [round(count / plain, 2) for count in found] == [1.0, 1.0, 1.02, 1.1]


def test_every_fork_starts_with_the_weights_of_the_plain_network():
    torch.manual_seed(0)
    plain = UNet(1, 3, TINY)
    for fork in FORKS:
        state = network(fork).state_dict()
        assert all(torch.equal(state[name], w) for name, w in plain.state_dict().items())
    own, shared = network(4).own_up[0][0].weight, network(4).up[0][0].weight
    assert not torch.equal(own, shared)


@pytest.mark.parametrize("channels", [(64, 128, 256, 512, 1024), (16, 32, 64, 128, 192), TINY])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_control_has_as_many_weights(channels, normalise):
    with torch.device("meta"):
        made = ForkedUNet(4, channels=channels, normalise=normalise)
    options = {"in_channels": 1, "classes": 3, "normalise": normalise}
    chosen = as_many_weights(made, **options)
    with torch.device("meta"):
        control = UNet(channels=chosen, **options)
    off = weights(control) / weights(made) - 1
    assert abs(off) < (0.002 if channels[0] == 64 else 0.03 if channels[0] == 16 else 0.1)
    assert abs(off) < weights(made) / weights(UNet(channels=channels, **options)) - 1


@pytest.mark.parametrize("fork", [0, 5, 1.5])
def test_another_fork_is_refused(fork):
    with pytest.raises(ValueError, match=r"fork must be one of 1, 2, 3, 4, not"):
        ForkedUNet(fork)


def test_other_sizes_are_refused_and_no_objective_too():
    with pytest.raises(ValueError, match=r"multiples of 16.*\(16, 20\).*restored"):
        network(2).both(torch.rand(1, 1, 16, 20))
    with pytest.raises(ValueError, match="needs an objective"):
        network(2).loss({"image": torch.rand(1, 1, 16, 16)})


@pytest.mark.parametrize("shape", [(20, 33), (32, 16), (7, 50, 2)])
def test_an_image_of_any_size_is_restored(shape):
    made = network(3, in_channels=shape[2] if len(shape) == 3 else 1)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = made.restored(pixels)
    assert found.shape == shape and found.dtype == np.float32 and made.training
    if shape == (32, 16):
        expected = made.eval().both(torch.from_numpy(pixels)[None, None])[1][0, 0]
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-5, atol=1e-6)


def test_prediction_takes_the_classes_and_folds_all_normalisations():
    made = network(4, normalise=True)
    for _ in range(3):
        made.both(torch.randn(2, 1, 32, 32))  # statistics other than those they start with
    image = np.random.default_rng(0).integers(100, 4000, (40, 50), np.uint16)
    chances = inference.predict(made, image)
    assert chances.shape == (3, 40, 50)
    np.testing.assert_allclose(chances.sum(0), 1, rtol=1e-5)
    folded = inference.fold_normalisation(made)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    np.testing.assert_allclose(inference.predict(folded, image), chances, atol=1e-4)
    pixels = image.astype(np.float32)[:32, :48] / 1000
    np.testing.assert_allclose(folded.restored(pixels), made.restored(pixels), rtol=1e-3, atol=1e-3)


# --- its losses ----------------------------------------------------------------------------------


def answers(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 6, 5, generator=made)
    restored, sharp, seen = torch.randn(3, 2, 1, 6, 5, generator=made)
    classes = torch.randint(3, (2, 6, 5), generator=made).to(torch.uint8)
    hidden = torch.rand(2, 1, 6, 5, generator=made) < 0.3
    return logits, restored, {"classes": classes, "sharp": sharp, "seen": seen, "hidden": hidden}


def slow_cross_entropy(logits, classes, factors=(1, 1, 1)) -> float:
    total = count = 0
    for image, of_it in zip(logits.double(), classes, strict=True):
        for y, x in np.ndindex(*of_it.shape):
            if (true := int(of_it[y, x])) != IGNORE:
                chances = torch.exp(image[:, y, x]) / torch.exp(image[:, y, x]).sum()
                total -= factors[true] * float(torch.log(chances[true]))
                count += 1
    return total / count


@pytest.mark.parametrize("factors", [None, (1, 1, 5)])
def test_cross_entropy_against_a_slow_reference(factors):
    logits, _, batch = answers()
    batch["classes"][0, 2:4] = IGNORE
    expected = slow_cross_entropy(logits, batch["classes"], factors or (1, 1, 1))
    assert CrossEntropy(factors)(logits, batch["classes"]).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_nothing_to_learn_costs_nothing():
    logits, _, batch = answers()
    batch["classes"][:] = IGNORE
    assert CrossEntropy()(logits, batch["classes"]).item() == 0


def test_the_total_loss_is_the_sum_of_three():
    logits, restored, batch = answers()
    off = (restored - batch["sharp"]).double()
    expected = slow_cross_entropy(logits, batch["classes"])
    assert JointLoss(deblurring=False)(logits, restored, batch).item() == pytest.approx(expected)
    expected += float((off**2).mean() + off.abs().mean())
    assert JointLoss()(logits, restored, batch).item() == pytest.approx(expected, rel=1e-5)


def test_without_the_deblurring_term_the_own_branch_learns_nothing():
    _, _, batch = answers()
    batch = {name: one[..., :1, :1].expand(*one.shape[:-2], 16, 16) for name, one in batch.items()}
    batch |= {"image": torch.rand(2, 1, 16, 16)}
    for deblurring in (True, False):
        made = network(4, objective=JointLoss(deblurring))
        made.loss(batch).backward()
        learns = [w.grad is not None for n, w in made.named_parameters() if n.startswith("own_")]
        assert set(learns) == {deblurring}


def test_denoiseg_weighs_hidden_pixels_and_classes():
    logits, restored, batch = answers()
    off = (restored - batch["seen"])[batch["hidden"]].double()
    classes = slow_cross_entropy(logits, batch["classes"], (1, 1, 5))
    for alpha in (0.0, 0.5, 0.8, 1.0):
        expected = alpha * float((off**2).mean()) + (1 - alpha) * classes
        found = DenoiSegLoss(alpha)(logits, restored, batch).item()
        assert found == pytest.approx(expected, rel=1e-5)
    restored[~batch["hidden"]] += 100  # what the network saw, it need not tell
    assert DenoiSegLoss(1.0)(logits, restored, batch).item() == pytest.approx(
        float((off**2).mean())
    )


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must lie from 0 to 1"):
        DenoiSegLoss(alpha)


def test_an_objective_is_none_of_the_weights():
    made = network(1, objective=DenoiSegLoss())
    assert made.state_dict().keys() == network(1).state_dict().keys()
    assert made.double().objective.cross_entropy.weights.dtype == torch.float64  # it moves along


# --- AlexNet -------------------------------------------------------------------------------------


def test_at_its_full_width_it_is_torchvisions():
    """Layer by layer, under the names that its published weights have."""

    def layers(network: nn.Module) -> dict[str, str]:
        of = {name: str(one) for name, one in network.named_modules() if not list(one.children())}
        return {name: text.replace("inplace=True", "") for name, text in of.items()}

    with torch.device("meta"):
        theirs, ours = torchvision.models.alexnet(num_classes=2), AlexNet(in_channels=3)
    pooling = {"avgpool": "AdaptiveAvgPool2d(output_size=6)"}
    assert layers(ours) == layers(theirs) | pooling
    assert round(weights(ours) / 1e6) == 57


def test_a_narrow_one_is_small_and_takes_images_from_63_pixels():
    narrow = AlexNet(8)
    assert weights(narrow) < 1e6
    assert (
        narrow(torch.rand(2, 1, 63, 63)).shape == narrow(torch.rand(2, 1, 224, 90)).shape == (2, 2)
    )
    with pytest.raises(ValueError, match="width must be from 1 to 64, not 65"):
        AlexNet(65)
