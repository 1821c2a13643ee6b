"""Fitting, and going on after being killed."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nuctut import fits, training
from nuctut.files import Malformed
from nuctut.fits import FitResult
from nuctut.inference import predict
from nuctut.losses import IoULoss, LogDiceLoss
from nuctut.machine import device_name
from nuctut.models.unet import ReducedUNet, UNet
from nuctut.targets import standardise, three_classes
from nuctut.training import (
    CornerTiles,
    FitSettings,
    Jitter,
    NonFiniteLoss,
    RandomCrops,
    fit,
    random_crop,
)

SETTINGS = FitSettings(
    epochs=4, updates=3, batch_size=2, learning_rate=3e-3, schedule="one-cycle", device="cpu"
)


def pictures(count: int = 4, shape: tuple[int, int] = (40, 44)) -> tuple[list, list, list]:
    """Images of two bright blocks that touch, their classes, and their keys."""
    rng = np.random.default_rng(0)
    images, classes = [], []
    for _ in range(count):
        labels = np.zeros(shape, np.int32)
        y, x = (int(v) for v in rng.integers(2, 16, 2))
        labels[y : y + 18, x : x + 10], labels[y : y + 18, x + 10 : x + 20] = 1, 2
        images.append(rng.normal(200 + 800 * (labels > 0), 60).clip(0).astype(np.uint16))
        classes.append(three_classes(labels))
    return images, classes, [f"field_{i}" for i in range(count)]


def crops(count: int = 4, **options: Any) -> RandomCrops:
    return RandomCrops(*pictures(count), **{"size": 32, "jitter": Jitter(gain=0.2)} | options)


def network(seed: int = 0, dropout: float = 0.25) -> ReducedUNet:
    torch.manual_seed(seed)
    return ReducedUNet(channels=(4,) * 5, last_channels=4, dropout=(dropout,) * 4)


def run(
    folder: Path, train: Any = None, *, model: nn.Module | None = None, loss: Any = None, **changes
) -> FitResult:
    """A fit of under a second."""
    settings = dataclasses.replace(SETTINGS, **changes)
    train = crops() if train is None else train
    check = crops(2, jitter=Jitter())
    model = network() if model is None else model
    return fit(model, loss or LogDiceLoss(), train, check, folder, settings, progress=False)


class MeanCrossEntropy(nn.Module):
    """A loss whose mean over two batches is its value on both together."""

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), classes.long())


def weights_of(result: FitResult) -> dict[str, Tensor]:
    return safetensors.torch.load_file(result.best)


def unrounded(result: FitResult) -> dict[str, Tensor]:
    """The weights after the last update, as they were learned."""
    state = torch.load(result.best.with_name(fits.LAST), weights_only=True)["state_dict"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def assert_same(one: FitResult, other: FitResult) -> None:
    """The same fit, to the bit, but for the time it took."""
    pd.testing.assert_frame_equal(
        one.history.drop(columns="seconds"), other.history.drop(columns="seconds"), check_exact=True
    )
    assert (one.updates, one.images_seen) == (other.updates, other.images_seen)
    mine, its = weights_of(one), weights_of(other)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> FitResult:
    """The fit that was never killed."""
    return run(tmp_path_factory.mktemp("fit") / "undisturbed")


# --- what a fit is fed --------------------------------------------------------------------------


def test_corner_tiles_come_in_eight_orientations_each_standardised():
    rng = np.random.default_rng(0)
    images = [rng.integers(100, 4000, (20, 30), np.uint16) for _ in range(2)]
    classes = [(image > 2000).astype(np.uint8) for image in images]
    tiles = CornerTiles(images, classes, ["a", "b"], size=16)
    assert len(tiles) == 2 * 4 * 8
    items = [tiles[i, 77] for i in range(len(tiles))]
    assert [item["key"] for item in items] == ["a"] * 32 + ["b"] * 32
    for item in items:
        image = item["image"]
        assert image.shape == (1, 16, 16) and image.dtype == torch.float32
        assert abs(image.mean()) < 1e-5 and abs(image.std(correction=0) - 1) < 1e-4
        assert item["classes"].shape == (16, 16) and item["classes"].dtype == torch.uint8
        # The classes were turned with the image: they still are the brighter pixels.
        bright = item["classes"] == 1
        assert image[0][bright].min() > image[0][~bright].max()
    for start in range(0, 64, 8):
        assert len({item["image"].numpy().tobytes() for item in items[start : start + 8]}) == 8
    np.testing.assert_array_equal(items[24]["image"][0], standardise(images[0][4:, 14:]))


def test_corner_tiles_can_be_left_as_they_are():
    images, classes, keys = pictures(1)
    tiles = CornerTiles(images, classes, keys, size=32, augment=False, scale="log")
    assert len(tiles) == 4
    np.testing.assert_array_equal(tiles[0, 0]["image"][0], standardise(images[0][:32, :32], "log"))


def test_corner_tiles_are_as_large_as_the_papers():
    image, classes = np.zeros((520, 696), np.uint16), np.zeros((520, 696), np.uint8)
    tiles = CornerTiles([image], [classes], ["a"])
    assert len(tiles) == 32
    assert tiles[9, 0]["image"].shape == (1, 512, 512)
    assert tiles[9, 0]["classes"].shape == (512, 512)


def test_random_crops_are_a_function_of_seed_and_draw():
    def images(seed, draws):
        items = crops(seed=seed)
        return [items[1, draw]["image"].numpy().tobytes() for draw in draws]

    assert images(3, range(20)) == images(3, range(20))
    assert images(3, reversed(range(20))) == images(3, range(20))[::-1]
    assert len(set(images(3, range(20)))) == 20
    assert not set(images(3, range(20))) & set(images(4, range(20)))


def test_random_crops_keep_image_and_classes_together():
    ramp = np.arange(40 * 44, dtype=np.float32).reshape(40, 44)
    classes = (ramp % 251).astype(np.uint8)
    items = RandomCrops([ramp], [classes], ["a"], size=32)
    corners, orientations = set(), set()
    for draw in range(200):
        item = items[0, draw]
        back = item["image"][0].numpy().astype(float) * ramp.std() + ramp.mean()
        values = np.rint(back).astype(int)
        np.testing.assert_array_equal(item["classes"], values % 251)
        corners.add(divmod(values.min(), 44))
        orientations.add((values[0, 1] - values[0, 0], values[1, 0] - values[0, 0]))
    assert len(orientations) == 8
    # Every start is possible: rows 0…8, columns 0…12.
    assert {y for y, _ in corners} == set(range(9)) and {x for _, x in corners} == set(range(13))


def test_random_crops_are_of_the_image_normalised_as_a_whole():
    image = np.random.default_rng(0).random((40, 44))
    items = RandomCrops([image], [np.zeros((40, 44), np.uint8)], ["a"], size=16)
    known = set(standardise(image).ravel().tolist())
    assert set(items[0, 5]["image"].ravel().tolist()) <= known


def test_the_gain_stays_within_its_bounds():
    ones = np.tile([0.0, 1.0], (32, 16))
    jitter = Jitter(gain=0.3)
    items = RandomCrops([ones], [np.zeros((32, 32), np.uint8)], ["a"], size=32, jitter=jitter)
    found = [items[0, draw]["image"].max().item() for draw in range(100)]
    assert 0.7 <= min(found) < 0.75 and 1.25 < max(found) <= 1.3


@pytest.mark.parametrize("shape", [(64, 96, 3), (64, 96), (20, 30)])
def test_a_zoom_keeps_image_and_classes_together(shape):
    """The classes are drawn into the image, so that after any zoom one still tells the other."""
    labels = np.zeros(shape[:2], np.int32)
    labels[: shape[0] // 2] = 7
    labels[:, : shape[1] // 3] = 300
    image = np.zeros(shape, np.float32)
    image[labels == 7], image[labels == 300] = 1, 2
    rng, shares = np.random.default_rng(0), []
    for _ in range(60):
        piece, of_it, _ = random_crop(rng, image, labels, 32, Jitter(zoom=2.0))
        side = (min(32, shape[0]), min(32, shape[1]))
        assert of_it.shape in (side, (32, 32)) and piece.shape == of_it.shape + shape[2:]
        assert of_it.dtype == np.int32 and set(np.unique(of_it)) <= {0, 7, 300}
        flat = piece[..., 0] if piece.ndim == 3 else piece
        told = np.select([flat < 0.25, abs(flat - 1) < 0.25, flat > 1.75], [0, 7, 300], -1)
        assert ((told == of_it) | (told == -1)).mean() > 0.9
        shares.append((told == -1).mean())
    if shape[0] > 32:
        assert np.unique(shares).size > 5  # some pieces were resampled, and others by other factors


def test_a_zoom_stays_within_its_bounds():
    """The period of a pattern tells the scale of a piece of it."""
    rows = np.arange(400)
    image = np.repeat(np.float32(np.sin(2 * np.pi * rows / 20))[:, None], 400, 1)
    rng, scales = np.random.default_rng(0), []
    for _ in range(100):
        piece, *_ = random_crop(rng, image, image.astype(np.int32), 200, Jitter(zoom=1.5))
        crossings = np.count_nonzero(np.diff(np.sign(piece[:, 0]))) / 200
        scales.append(crossings * 10)
    assert 0.62 < min(scales) < 0.75 and 1.35 < max(scales) < 1.55


def test_colour_changes_each_channel_by_itself_and_within_bounds():
    image = np.ones((40, 40, 3), np.float32)
    image[::2] = -1
    rng = np.random.default_rng(0)
    pieces = [
        random_crop(rng, image, np.zeros((40, 40), np.int32), 32, Jitter(colour=0.3))[0]
        for _ in range(200)
    ]
    means = np.array([piece.mean((0, 1)) for piece in pieces])
    spreads = np.array([np.ptp(piece, (0, 1)) for piece in pieces]) / 2
    for values, middle in ((means, 0), (spreads, 1)):
        assert 0.27 < np.abs(values - middle).max() <= 0.3 + 1e-6
        assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.25
    grey, *_ = random_crop(rng, image[..., 0], image[..., 0], 32, Jitter(colour=0.3))
    assert set(np.unique(grey)) == {-1, 1}


@pytest.mark.parametrize("shape", [(240, 320), (240, 320, 3)])
def test_gamma_bends_the_intensities_and_normalises_them_again(shape):
    rng = np.random.default_rng(0)
    image = standardise(rng.gamma(2.0, 300, shape))
    labels = np.zeros(shape[:2], np.int32)
    order = np.argsort(image.ravel())
    exponents = []
    for _ in range(50):
        piece, *_ = random_crop(rng, image, labels, 320, Jitter(gamma=0.7))
        assert piece.dtype == np.float32 and piece.shape == image.shape
        if len(shape) == 2:
            assert (np.diff(piece.ravel()[order]) >= 0).all()  # no pixel overtakes another
        assert np.abs(piece.mean((0, 1))).max() < 0.1 and np.abs(piece.std((0, 1)) - 1).max() < 0.1
        # the share of the range that the median has gone up tells the exponent
        rose = [
            np.subtract(np.median(one, (0, 1)), one.min((0, 1))) / np.ptp(one, (0, 1))
            for one in (image, piece)
        ]
        exponents.append(np.mean(np.log(rose[1]) / np.log(rose[0])))
    assert 0.5 < min(exponents) < 0.6 and 1.7 < max(exponents) < 2.02


def test_gamma_leaves_an_image_without_any_contrast_alone():
    flat = np.zeros((40, 40, 3), np.float32)
    piece, *_ = random_crop(
        np.random.default_rng(0), flat, np.zeros((40, 40), np.int32), 32, Jitter(gamma=0.5)
    )
    assert piece.shape == (32, 32, 3) and not piece.any()


def test_balanced_shares_go_by_the_square_root_of_a_groups_size():
    shares = training.balanced(["a"] * 16 + ["b"] * 4 + ["c"])
    assert shares.sum() == pytest.approx(1)
    of_group = [shares[:16].sum(), shares[16:20].sum(), shares[20]]
    np.testing.assert_allclose(of_group, np.array([4, 2, 1]) / 7)


def test_items_are_drawn_as_often_as_their_shares_say():
    shares = np.array([0.7, 0.1, 0.2, 0.0])
    settings = dataclasses.replace(SETTINGS, updates=2000)
    order = training._Order(crops(shares=shares), settings)
    drawn = [item for item, _ in order]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, shares, atol=0.025)
    assert [number for _, number in order] == list(range(4000))
    assert drawn == [item for item, _ in order]
    order.set_epoch(1)
    assert drawn != [item for item, _ in order]


def test_small_images_are_padded_by_reflection():
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    classes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    items = RandomCrops([image], [classes], ["a"], size=16)
    item = items[0, 0]
    assert item["image"].shape == (1, 16, 16) and item["classes"].shape == (16, 16)
    restored = item["image"][0].numpy() * image.std() + image.mean()
    np.testing.assert_array_equal(np.rint(restored), item["classes"])
    np.testing.assert_array_equal(np.bincount(item["classes"].ravel()), [40, 40, 48] * 2)


def in_colours(shape: tuple[int, int] = (40, 44)) -> np.ndarray:
    """An RGB image in which every value is another, and its remainder by 3 is its channel."""
    return np.arange(3 * math.prod(shape), dtype=np.uint16).reshape(*shape, 3)


def assert_together(item: dict[str, Any], image: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Channels first, and classes where the image's pixels are; gives the pixels' numbers."""
    mean, deviation = (one((0, 1))[:, None, None] for one in (scale.mean, scale.std))
    values = np.rint(item["image"].numpy().astype(float) * deviation + mean).astype(int)
    assert item["image"].dtype == torch.float32 and values.ndim == 3
    for channel in range(3):
        np.testing.assert_array_equal(values[channel] % 3, channel)
        np.testing.assert_array_equal(values[channel] // 3, values[0] // 3)
    np.testing.assert_array_equal(item["classes"], values[0] // 3 % 251)
    return values[0] // 3


def test_random_crops_of_colour_images_are_channels_first():
    image = in_colours()
    classes = (image[..., 0] // 3 % 251).astype(np.uint8)
    items = RandomCrops([image], [classes], ["a"], size=32)
    steps = set()
    for draw in range(60):
        item = items[0, draw]
        assert item["image"].shape == (3, 32, 32)
        pixels = assert_together(item, image, image)
        steps.add((pixels[0, 1] - pixels[0, 0], pixels[1, 0] - pixels[0, 0]))
    assert steps == {(a, b) for x in (1, -1) for y in (44, -44) for a, b in ((x, y), (y, x))}


def test_corner_tiles_of_colour_images_are_channels_first():
    image = in_colours()
    classes = (image[..., 0] // 3 % 251).astype(np.uint8)
    tiles = CornerTiles([image], [classes], ["a"], size=32)
    assert len(tiles) == 4 * 8
    starts = set()
    for which in range(32):
        corner = [(0, 0), (0, 12), (8, 0), (8, 12)][which // 8]
        window = image[corner[0] : corner[0] + 32, corner[1] : corner[1] + 32]
        item = tiles[which, 0]
        assert item["image"].shape == (3, 32, 32)
        pixels = assert_together(item, image, window.astype(float))
        starts.add((pixels.min(), pixels[0, 0], pixels[0, 1]))
    assert len(starts) == 32


def test_small_colour_images_are_padded_by_reflection():
    image = in_colours((2, 3))
    classes = (image[..., 0] // 3).astype(np.uint8)
    item = RandomCrops([image], [classes], ["a"], size=16)[0, 0]
    assert item["image"].shape == (3, 16, 16)
    assert_together(item, image, image)
    np.testing.assert_array_equal(np.bincount(item["classes"].ravel()), [40, 40, 48] * 2)


def test_colour_images_can_be_learnt_from(tmp_path):
    images, classes, keys = pictures()
    coloured = [np.stack([image, image // 2, 0 * image], -1) for image in images]
    items = RandomCrops(coloured, [(c > 0).astype(np.uint8) for c in classes], keys, size=32)
    torch.manual_seed(0)
    model = UNet(channels=(4,) * 5)
    settings = dataclasses.replace(SETTINGS, epochs=2)
    result = fit(model, IoULoss(), items, items, tmp_path, settings, progress=False)
    assert result.history["val_loss"].is_monotonic_decreasing
    assert predict(model, coloured[0]).shape == (1, 40, 44)


# --- one fit ------------------------------------------------------------------------------------


def test_a_fit_learns_and_keeps_its_books(undisturbed):
    result = undisturbed
    history = result.history
    assert list(history) == ["step", "train_loss", "val_loss", "learning_rate", "seconds"]
    assert history["step"].tolist() == [3, 6, 9, 12]
    assert history["val_loss"].iloc[-1] < history["val_loss"].iloc[0]
    assert history["seconds"].is_monotonic_increasing and history["seconds"].iloc[0] > 0
    assert (result.updates, result.images_seen) == (12, 24)
    assert result.seconds == pytest.approx(history["seconds"].iloc[-1])
    assert result.device == device_name() and result.precision == "fp32"
    assert 0.05 < result.peak_memory_gb < 100
    assert result.weights == sum(p.numel() for p in network().parameters())
    names = {path.name for path in result.best.parent.iterdir()}
    kept = {"best.safetensors", "last.ckpt", "history.csv", "done.json", "settings.json"}
    assert names == kept | {".lock", ".nuctut"}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(undisturbed, tmp_path):
    assert_same(run(tmp_path / "again"), undisturbed)
    other = run(tmp_path / "other", seed=1)
    assert not torch.equal(weights_of(other)["head.weight"], weights_of(undisturbed)["head.weight"])


def test_a_finished_fit_is_returned_at_once(tmp_path, monkeypatch):
    first = run(tmp_path)
    monkeypatch.setattr(training, "_run", None)  # whoever fits again, fails
    model = network(seed=9)
    second = run(tmp_path, model=model)
    pd.testing.assert_frame_equal(second.history, first.history)
    assert dataclasses.replace(second, history=first.history) == first
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights_of(first)[name])
    assert fits.finished(network(), tmp_path).updates == 12


def test_an_unfinished_fit_is_not_taken_for_a_finished_one(tmp_path):
    assert fits.finished(network(), tmp_path / "nothing") is None
    run(tmp_path)
    (tmp_path / "done.json").unlink()
    assert fits.finished(network(), tmp_path) is None


def test_a_folder_with_other_settings_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"other settings \(settings.json\).*another folder") as no:
        run(tmp_path, epochs=2)
    assert str(tmp_path) in str(no.value)
    run(tmp_path, epochs=1)  # the refusal changed nothing


def test_the_model_is_left_with_its_best_weights_not_its_last(tmp_path):
    """Training teaches nuclei, validation wants background: only the first epoch is best."""
    images, classes, keys = pictures()
    options = {"learning_rate": 0.01, "schedule": "constant"}
    all_nuclei = RandomCrops(images, [np.ones_like(c) for c in classes], keys, size=32)
    nothing = RandomCrops(images, [np.zeros_like(c) for c in classes], keys, size=32)

    def against(folder: Path, epochs: int) -> tuple[nn.Module, FitResult]:
        settings = dataclasses.replace(SETTINGS, epochs=epochs, **options)
        model = network(dropout=0)
        loss = MeanCrossEntropy()
        return model, fit(model, loss, all_nuclei, nothing, folder, settings, progress=False)

    short, _ = against(tmp_path / "short", 1)
    model, result = against(tmp_path / "long", 3)
    assert result.history["val_loss"].argmin() == 0 and len(result.history) == 3
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, short.state_dict()[name])


def test_checkpoints_hold_tensors_and_no_code(undisturbed):
    assert all(isinstance(value, Tensor) for value in weights_of(undisturbed).values())
    last = torch.load(undisturbed.best.with_name("last.ckpt"), weights_only=True)
    assert last["global_step"] == 12
    model = network(seed=9)
    fits.load_weights(model, undisturbed.best)
    assert torch.equal(model.head.weight, weights_of(undisturbed)["head.weight"])


def test_a_checkpoint_with_code_in_it_is_not_loaded(tmp_path):
    class Malice:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"head.weight": Malice()}, tmp_path / "bad.ckpt")
    with pytest.raises(Malformed, match=r"bad.ckpt holds no weights of this network"):
        fits.load_weights(network(), tmp_path / "bad.ckpt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("where", ["train", "validation"])
def test_a_loss_that_is_not_finite_stops_and_names_the_images(tmp_path, where):
    images, classes, _ = pictures()
    bad = images[2].astype(np.float32)
    bad[5, 5] = np.nan
    broken = RandomCrops([bad, bad], classes[2:], ["bad_well", "worse_well"], size=32)
    sets = [crops(), crops()]
    sets[where == "validation"] = broken
    with pytest.raises(NonFiniteLoss, match=r"became nan at update.*learning_rate") as stop:
        fit(network(), LogDiceLoss(), *sets, tmp_path, SETTINGS, progress=False)
    assert "bad_well, worse_well" in str(stop.value) or "worse_well, bad_well" in str(stop.value)
    assert not (tmp_path / "done.json").exists() and not (tmp_path / "best.safetensors").exists()


def test_on_a_gpu_several_losses_are_looked_at_together_and_the_first_bad_one_named(monkeypatch):
    """What waits for the device is counted here on a CPU that passes for one."""
    monkeypatch.setattr(training._Fitting, "_on_gpu", lambda fitting: True)
    fitting = training._Fitting(Mean(), None, SETTINGS)
    good = {"numbers": [torch.ones(1)], "key": ["list_0"]}
    bad = {"numbers": [torch.tensor([1.0, math.inf])], "key": ["list_1"]}
    monkeypatch.setattr(training, "UNSEEN", 3)
    fitting._loss(good)
    fitting._loss(bad)
    with pytest.raises(NonFiniteLoss, match=r"became inf at update 0 on the images list_1;"):
        fitting._loss(good)
    fitting._loss(good)
    fitting._loss(good)
    fitting.look()
    assert not fitting.unseen


@pytest.mark.slow
def test_a_long_fit_on_a_gpu_computes_the_same(undisturbed, tmp_path, monkeypatch):
    """On a CPU that passes for one, by a compiler that leaves everything as it is."""
    compiled, compile_ = [], torch.compile

    def kept(function: Any) -> Any:
        compiled.append(function)
        return compile_(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", kept)
    monkeypatch.setattr(training, "COMPILED_FROM", 12)
    monkeypatch.setattr(training._Fitting, "_on_gpu", lambda fitting: True)
    result = run(tmp_path)
    assert len(compiled) == 1
    columns = ["step", "train_loss", "val_loss", "learning_rate"]
    expected = undisturbed.history[columns]
    np.testing.assert_allclose(result.history[columns], expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("epochs", "updates"), [(1, 1), (1, 2), (2, 1)])
def test_a_cycle_of_a_single_update_is_one_too(tmp_path, epochs, updates):
    result = run(tmp_path, epochs=epochs, updates=updates)
    assert result.updates == epochs * updates and np.isfinite(result.history).all(axis=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", -1e-3),
        ("l2", float("nan")),
        ("epochs", -3),
        ("seed", -1),
        pytest.param(
            "device", "gpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_starts(name, value):
    with pytest.raises(ValueError, match="no GPU here" if name == "device" else name):
        dataclasses.replace(SETTINGS, **{name: value})


def test_patience_stops_and_stays_stopped(tmp_path):
    options = {"epochs": 9, "patience": 2, "learning_rate": 0.0}  # nothing gets better
    result = run(tmp_path, **options)
    assert len(result.history) == 3 and result.updates == 9
    (tmp_path / "done.json").unlink()  # as if killed just before the end
    assert_same(run(tmp_path, **options), result)


def test_patience_starts_anew_with_every_better_epoch(tmp_path):
    keeper = training._Keeper(tmp_path, dataclasses.replace(SETTINGS, patience=2), training.NO_CODE)
    stopped = []
    for loss in (5, 6, 4, 4, 3, 3.5, 3):
        keeper.history.append({"val_loss": loss})
        stopped.append(keeper._exhausted())
    assert stopped == [False] * 6 + [True]


def test_one_cycle_and_constant_rates(tmp_path):
    options = {"epochs": 15, "updates": 4, "batch_size": 1, "learning_rate": 0.02}
    small = crops(1, size=16)
    cycle = run(tmp_path / "a", small, schedule="one-cycle", **options).history["learning_rate"]
    # Of 60 updates six warm up and 54 cool down; the history holds the rate that comes next.
    rising = [0.02 * (4 + 1) / 6]
    falling = [0.01 * (1 + math.cos(math.pi * n / 54)) for n in range(2, 55, 4)]
    np.testing.assert_allclose(cycle, rising + falling, atol=1e-9)
    options["epochs"] = 3
    constant = run(tmp_path / "b", small, schedule="constant", **options).history["learning_rate"]
    assert (constant == 0.02).all()


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        *((0, 1e-3), (999, 1e-3), (1000, 9.5e-4), (2500, 1e-3 * 0.95**2)),
        *((89_999, 1e-3 * 0.95**89), (90_000, 1e-5), (10**6, 1e-5)),
    ],
)
def test_a_stepwise_rate_falls_every_thousand_updates_to_a_floor(step, rate):
    settings = dataclasses.replace(SETTINGS, schedule="stepwise", learning_rate=1e-3)
    fitting = training._Fitting(nn.Conv2d(1, 1, 1), None, settings)
    assert 1e-3 * fitting._rate(step) == pytest.approx(rate)


def test_a_stepwise_rate_below_its_floor_stays():
    settings = dataclasses.replace(SETTINGS, schedule="stepwise", learning_rate=1e-6)
    assert training._Fitting(nn.Conv2d(1, 1, 1), None, settings)._rate(5000) == 1


def test_a_network_may_name_its_optimiser():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1))
    made = training._Fitting(model, None, SETTINGS).configure_optimizers()["optimizer"]
    assert type(made) is torch.optim.Adam
    model.optimiser = torch.optim.Adagrad
    made = training._Fitting(model, None, SETTINGS).configure_optimizers()["optimizer"]
    assert type(made) is torch.optim.Adagrad
    decays = [group["weight_decay"] for group in made.param_groups]
    assert decays == [2 * SETTINGS.l2, 0]


class Indifferent(nn.Module):
    """A loss that wants nothing, so that only the penalty moves the weights."""

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        return 0.0 * logits.sum()


def test_the_penalty_pulls_at_all_kernels_but_the_heads(tmp_path):
    """One update of Adam: w − rate · g / (|g| + ε), and g = 2λw is of the size of ε = 1e-7."""
    model = network(dropout=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = {"learning_rate": 0.1, "l2": 1e-7, "epochs": 1, "updates": 1, "schedule": "constant"}
    learned = unrounded(run(tmp_path, model=model, loss=Indifferent(), **options))
    kernels = 0
    for name, weight in learned.items():
        gradient = torch.zeros_like(weight)
        if weight.ndim == 4 and not name.startswith("head"):
            kernels += 1
            gradient = 2e-7 * before[name]
        expected = before[name] - 0.1 * gradient / (gradient.abs() + 1e-7)
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
    assert kernels == 22


@pytest.mark.parametrize("real", ["fp32", "bf16"])
def test_a_fit_keeps_what_auto_stood_for(tmp_path, monkeypatch, real):
    monkeypatch.setattr(training, "precision_on", lambda device, name: real)
    assert run(tmp_path, epochs=1, precision="auto").precision == real


def test_bf16(undisturbed, tmp_path):
    result = run(tmp_path, precision="bf16")
    assert result.precision == "bf16"
    assert {w.dtype for w in unrounded(result).values()} == {torch.float32}
    full, half = undisturbed.history["val_loss"], result.history["val_loss"]
    assert (full != half).all()
    np.testing.assert_allclose(half, full, rtol=0.05)


def test_what_is_kept_is_rounded_and_is_what_the_network_then_is(undisturbed):
    kept, learned, model = weights_of(undisturbed), unrounded(undisturbed), network()
    assert undisturbed.history["val_loss"].idxmin() == SETTINGS.epochs - 1  # best and last are one
    assert fits.finished(model, undisturbed.best.parent) is not None
    for name, tensor in model.state_dict().items():
        assert kept[name].dtype == torch.float16 and torch.equal(kept[name], learned[name].half())
        assert torch.equal(tensor, kept[name].float())


def test_without_updates_every_item_is_used_once(tmp_path):
    used: list[int] = []

    class Watched(CornerTiles):
        def __getitem__(self, item):
            used.append(item[0])
            return super().__getitem__(item)

    tiles = Watched(*pictures(3), size=32, augment=False)
    result = run(tmp_path, tiles, epochs=2, updates=None, batch_size=5)
    assert sorted(used[:12]) == sorted(used[12:]) == list(range(12))
    assert used[:12] != used[12:]
    assert (result.updates, result.images_seen) == (6, 24)


def test_images_without_nuclei_can_be_learnt_from(tmp_path):
    empty = [np.full((40, 44), 117, np.uint16)] * 2
    classes = [three_classes(np.zeros((40, 44), np.int32))] * 2
    items = RandomCrops(empty, classes, ["a", "b"], size=32)
    result = fit(network(), LogDiceLoss(), items, items, tmp_path, SETTINGS, progress=False)
    assert np.isfinite(result.history).all(axis=None)
    tiles = CornerTiles(empty, classes, ["a", "b"], size=32)
    assert not any(tiles[i, 0]["image"].any() for i in range(len(tiles)))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"precision": "fp16"}, "precision must be one of auto, fp32, bf16, not 'fp16'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, gpu, not 'tpu'"),
        ({"schedule": "cosine"}, "schedule must be one of constant, one-cycle, stepwise"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"updates": 0}, "updates must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"devices": 0}, "devices must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        FitSettings(**{"epochs": 1} | wrong)


# --- a network with a loss of its own -----------------------------------------------------------


class Ragged(torch.utils.data.Dataset):
    """Lists of numbers, each of another length, around a mean that is to be found."""

    def __init__(self, count: int = 5, mean: float = 3.0, bad: int | None = None) -> None:
        self.count, self.mean, self.bad = count, mean, bad
        self.draws: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        self.draws.append(item)
        which, draw = item
        numbers = self.mean + 0.1 * np.random.default_rng(draw).normal(size=which + 1)
        if which == self.bad:
            numbers[0] = np.nan
        return {"numbers": torch.from_numpy(numbers.astype(np.float32)), "key": f"list_{which}"}

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {name: [item[name] for item in items] for name in items[0]}


class Mean(nn.Module):
    """Learns one number; a second one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.ones(7), requires_grad=False)
        self.asked: list[tuple[bool, bool, list[str]]] = []

    def loss(self, batch: dict[str, Any]) -> Tensor:
        self.asked.append((self.training, torch.is_grad_enabled(), batch["key"]))
        assert [f"list_{len(one) - 1}" for one in batch["numbers"]] == batch["key"]
        return torch.stack([(one - self.number).square().mean() for one in batch["numbers"]]).mean()


def test_a_network_can_have_a_loss_of_its_own(tmp_path):
    model, train, check = Mean(), Ragged(5), Ragged(3)
    settings = dataclasses.replace(SETTINGS, learning_rate=0.5)
    result = fit(model, None, train, check, tmp_path, settings, progress=False)
    # Four epochs of three updates and a validation of two batches, two and one.
    modes = [(training, gradient) for training, gradient, _ in model.asked]
    assert modes == ([(True, True)] * 3 + [(False, False)] * 2) * 4
    keys = [names for _, _, names in model.asked]
    assert all(names == ["list_0", "list_1"] for names in keys[3::5])
    assert all(names == ["list_2"] for names in keys[4::5])
    assert all(len(names) == 2 for at in range(3) for names in keys[at::5])
    assert check.draws == [(i, i) for i in range(3)] * 4  # the same every time
    assert sorted(draw for _, draw in train.draws) == list(range(24))
    assert (result.updates, result.images_seen) == (12, 24)
    assert result.weights == 1  # what is frozen was not learned
    losses = result.history["val_loss"]
    assert losses.iloc[-1] < 0.25 * losses.iloc[0] and 1.5 < model.number.item() < 4.5
    # The mean over the validation's three items, not over its two batches.
    items = [check[i, i]["numbers"] for i in range(3)]
    each = [(one - unrounded(result)["number"]).square().mean().item() for one in items]
    assert losses.iloc[-1] == pytest.approx(np.mean(each), rel=1e-5)
    assert torch.equal(model.frozen, torch.ones(7))


def test_a_fit_with_its_own_loss_goes_on_where_it_was_cut_off(tmp_path):
    def fitted(folder: Path, train: Ragged) -> FitResult:
        return fit(Mean(), None, train, Ragged(3), tmp_path / folder, SETTINGS, progress=False)

    class Cut(Ragged):
        def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
            if item[1] == 15:
                raise ConnectionError("the drive is gone")
            return super().__getitem__(item)

    with pytest.raises(ConnectionError):
        fitted("cut", Cut())
    rest = Ragged()
    assert_same(fitted("cut", rest), fitted("whole", Ragged()))
    assert [draw for _, draw in rest.draws] == list(range(12, 24))


def test_a_loss_of_its_own_that_is_not_finite_names_the_items(tmp_path):
    for sets in ((Ragged(1, bad=0), Ragged(1)), (Ragged(1), Ragged(1, bad=0))):
        with pytest.raises(NonFiniteLoss, match=r"became nan at update \d.*images list_0"):
            fit(Mean(), None, *sets, tmp_path / str(sets[0].bad), SETTINGS, progress=False)


# --- killed, and started again ------------------------------------------------------------------


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fatal(RandomCrops):
    """Crops that are counted, and of which the n-th is never delivered."""

    given = 0
    last = 0

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        self.given += 1
        if self.given == self.last:
            die()
        return super().__getitem__(item)


def doomed(folder: Path, moment: str, name: str, nth: int) -> None:
    """A fit in a process of its own, killed at the n-th item or around the n-th write of a file."""
    torch.set_num_threads(1)
    items = Fatal(*pictures(), size=32, jitter=Jitter(gain=0.2))
    replace, written = os.replace, []

    def watched(source: Any, target: Any, **options: Any) -> None:
        written.append(Path(target).name)
        last = Path(target).name == name and written.count(name) == nth
        if last and moment == "before":
            die()
        replace(source, target, **options)
        if last:
            die()

    if name == "item":
        items.last = nth
    os.replace = watched
    run(folder, items)


class Broken(RandomCrops):
    """Crops that are counted, and none of which comes from the n-th on."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__(*pictures(), size=32, jitter=Jitter(gain=0.2))
        self.given, self.stop = 0, stop

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        self.given += 1
        if self.given == self.stop:
            raise ConnectionError("the drive is gone")
        return super().__getitem__(item)


@pytest.mark.parametrize("stop", [1, 3, 6, 7, 10, 24])
def test_within_an_epoch_it_goes_on_at_the_update_it_kept(undisturbed, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(training, "KEPT_EVERY", 0.0)
    with pytest.raises(ConnectionError):
        run(tmp_path, Broken(stop))
    rest = Broken()
    assert_same(run(tmp_path, rest), undisturbed)
    assert rest.given == 24 - 2 * ((stop - 1) // 2)  # only the batch under way was lost


@pytest.mark.slow
def test_batches_made_ahead_by_processes_are_the_same(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "cores", lambda: 3)
    ahead = {**training._ahead("cuda"), "pin_memory": False}
    assert ahead["num_workers"] == 2 and training._ahead("cpu") == {}
    monkeypatch.setattr(training, "_ahead", lambda device: ahead)
    monkeypatch.setattr(training, "KEPT_EVERY", 0.0)

    class Cut(LogDiceLoss):
        calls = 0

        def forward(self, *given: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 9:  # in the third epoch
                raise ConnectionError("the drive is gone")
            return super().forward(*given)

    with pytest.raises(ConnectionError):
        run(tmp_path, loss=Cut())
    assert_same(run(tmp_path), undisturbed)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes that have everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "nuctut.training", "nuctut.models.unet"])
    return context.Process


@pytest.mark.parametrize(
    ("moment", "name", "nth", "kept"),
    [
        ("before", "settings.json", 1, 0),
        ("during", "item", 1, 0),
        ("during", "item", 5, 0),
        ("after", "history.csv", 1, 0),
        ("before", "best.safetensors", 1, 0),
        ("after", "best.safetensors", 1, 0),
        ("before", "last.ckpt", 1, 0),
        ("after", "last.ckpt", 1, 1),
        ("during", "item", 15, 2),
        ("after", "history.csv", 3, 2),
        ("after", "best.safetensors", 2, 1),
        ("before", "last.ckpt", 3, 2),
        ("after", "last.ckpt", 3, 3),
        ("after", "last.ckpt", 4, 4),
        ("before", "done.json", 1, 4),
    ],
)
def test_killed_and_started_again_it_ends_as_if_never_killed(
    undisturbed, processes, tmp_path, moment, name, nth, kept
):
    folder = tmp_path / "fit"
    process = processes(target=doomed, args=(folder, moment, name, nth))
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / "done.json").exists()
    model, items = network(), Fatal(*pictures(), size=32, jitter=Jitter(gain=0.2))
    assert_same(run(folder, items, model=model), undisturbed)
    assert items.given == 6 * (4 - kept)  # it went on, and did not start anew
    image = pictures()[0][0]
    never_killed = network(seed=9)
    fits.load_weights(never_killed, undisturbed.best)
    np.testing.assert_array_equal(predict(model, image), predict(never_killed, image))


def test_killed_again_and_again_from_outside(undisturbed, processes, tmp_path):
    def stamp(name: str) -> int:
        path = tmp_path / name
        return path.stat().st_mtime_ns if path.exists() else 0

    for name in ("settings.json", "history.csv", "best.safetensors", "last.ckpt"):
        before = stamp(name)
        process = processes(target=doomed, args=(tmp_path, "never", "", 0))
        process.start()
        while process.is_alive() and stamp(name) == before:
            time.sleep(0.001)
        process.kill()
        process.join(600)
    assert_same(run(tmp_path), undisturbed)


def test_what_a_kill_leaves_half_written_is_not_read(undisturbed, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    for name in ("best.safetensors", "last.ckpt", "history.csv", "done.json", "settings.json"):
        (tmp_path / f".{name}.4711").write_bytes(b"half of it")
    assert_same(run(tmp_path), undisturbed)


# --- several devices ----------------------------------------------------------------------------


def test_the_order_is_dealt_out_to_the_processes(monkeypatch):
    rank = 0
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    for updates, items in ((None, 11), (4, 11), (2, 50)):
        options = {"epochs": 1, "updates": updates, "device": "cpu"}
        alone = training._Order(range(items), FitSettings(**options, batch_size=6))
        shared = training._Order(range(items), FitSettings(**options, batch_size=2, devices=3))
        dealt = []
        for process in range(3):
            rank = process
            dealt.append(list(shared))
            assert len(dealt[-1]) == len(shared)
        rank = 0
        both = [pair for together in zip(*dealt, strict=True) for pair in together]
        # Dealt one by one, they are the order of a single process, but for a rest.
        assert both == list(alone)[: len(both)]
        assert 0 <= len(alone) - len(both) < 3


def test_the_order_changes_with_seed_and_epoch():
    def order(seed, epoch):
        made = training._Order(range(9), dataclasses.replace(SETTINGS, seed=seed))
        made.set_epoch(epoch)
        return list(made)

    assert order(0, 0) == order(0, 0)
    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len({tuple(item for item, _ in one) for one in orders.values()}) == 9
    # No draw comes twice in a fit, so that no crop does.
    assert len({draw for epoch in range(3) for _, draw in orders[0, epoch]}) == 3 * 6


TWO_PROCESSES = """
    import os, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, {tests!r})
    import test_training as t

    model = t.network(dropout=0)
    folder, options = Path({folder!r}), {{"batch_size": 1, "devices": 2}}
    result = t.run(folder, model=model, loss=t.MeanCrossEntropy(), **options)
    t.run(folder, loss=t.MeanCrossEntropy(), **options)
    rank = os.environ["LOCAL_RANK"]
    (folder / f"rank{{rank}}").write_text(str((result.updates, result.images_seen)))
    torch.save(model.state_dict(), folder / f"weights{{rank}}")
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_both_their_batches(tmp_path):
    folder, script = tmp_path / "two", tmp_path / "two.py"
    names = {"folder": str(folder), "tests": str(Path(__file__).parent)}
    script.write_text(textwrap.dedent(TWO_PROCESSES).format(**names))
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    environment = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment | {"GLOO_SOCKET_IFNAME": loopback},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    model = network(dropout=0)
    one = run(tmp_path / "one", model=model, loss=MeanCrossEntropy(), batch_size=2)
    history = pd.read_csv(folder / "history.csv")
    assert history["step"].tolist() == one.history["step"].tolist()
    columns = ["train_loss", "val_loss", "learning_rate"]
    np.testing.assert_allclose(history[columns], one.history[columns], rtol=1e-4)
    assert json.loads((folder / "done.json").read_text())["images_seen"] == one.images_seen
    for rank in (0, 1):
        assert (folder / f"rank{rank}").read_text() == str((one.updates, one.images_seen))
        theirs = torch.load(folder / f"weights{rank}", weights_only=True)
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(theirs[name], weight, atol=1e-4, rtol=1e-3)
