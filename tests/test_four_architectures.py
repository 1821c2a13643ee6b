"""Chapter 2: four tiny networks, from samples to records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from notebook_presets import assert_it_learned, presets_of

from nuctut import detection, experiments, records, targets, training
from nuctut.experiments import Trained
from nuctut.experiments import four_architectures as chapter
from nuctut.experiments.four_architectures import CODE, NETWORKS, Settings
from nuctut.losses import IoULoss
from nuctut.models import mask_rcnn, resnet
from nuctut.models.cnn import SimpleCNN
from nuctut.models.mask_rcnn import MaskRCNN
from nuctut.models.resnet import FCNResNet
from nuctut.models.unet import ReducedUNet, UNet
from nuctut.samples import Sample, SampleSet
from nuctut.training import Jitter

SETTINGS = Settings(
    data="simulated",
    images=2,
    options={"channels": 4},
    pretrained=False,
    crop=32,
    scale="log",
    gain=0.1,
    colour=0.2,
    zoom=1.2,
    gamma=0.3,
    balance=False,
    iou=1.0,
    cross_entropy=0.5,
    threshold=0.5,
    min_area=0,
    epochs=1,
    updates=2,
    batch_size=2,
    learning_rate=3e-3,
    schedule="one-cycle",
    l2=1e-5,
    precision="fp32",
    patience=None,
)
OPTIONS = {
    "simple-cnn": {"channels": 4},
    "resnet": {"depth": 18, "width": 8},
    "u-net": {"channels": (4, 4, 4, 4, 4), "normalise": True},
    "mask-rcnn": {"depth": 18, "width": 16, "max_detections": 20},
}
NAMES = {
    "simple-cnn": "simple CNN, 4 feature maps",
    "resnet": "FCN, ResNet-18 of 8 to 64 feature maps, from scratch",
    "u-net": "U-Net, 4 to 4 feature maps",
    "mask-rcnn": "Mask R-CNN, ResNet-18 of 16 to 128 feature maps, from scratch",
}


ABOUT = {"source": "simulated", "fingerprint": "0"}


@pytest.fixture(scope="module")
def sets(scene) -> dict[str, SampleSet]:
    """Three splits of two violet RGB images each; the last image of each is empty.

    Of the six nuclei two touch, and two more touch the image's edge.
    """
    discs = [(20, 20, 8), (20, 36, 8), (46, 30, 9), (50, 56, 7), (30, 71, 8), (0, 60, 8)]
    violet = np.array([0.7, 0.3, 1.0])

    def split(name: str, seed: int) -> SampleSet:
        def sample(key: str, modality: str, discs: list) -> Sample:
            image, labels = scene((64, 80), discs, noise=20, seed=seed)
            colour = (image[..., None] / 5 * violet).clip(0, 255).astype(np.uint8)
            return Sample(key, colour, labels, {"modality": modality})

        made = {
            f"{name}_full": sample(f"{name}_full", "stained", discs),
            f"{name}_empty": sample(f"{name}_empty", "fluorescence", []),
        }
        about = {"name": "dsb2018", "split": name, "source": "simulated"}
        return SampleSet(list(made), made.__getitem__, **about, fingerprint=f"{name}{seed}")

    return {name: split(name, i) for i, name in enumerate(("training", "validation", "test"))}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A folder for runs and records, apart from the checkout's."""
    for marker in ("pyproject.toml", "_config.yml"):
        (tmp_path / marker).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUCTUT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def train(sets, runs, variant="simple-cnn", seed=0, **changes) -> Trained:
    settings = dataclasses.replace(SETTINGS, **{"options": OPTIONS[variant]} | changes)
    options = {"seed": seed, "device": "cpu", "runs": runs, "progress": False}
    pair = (sets["training"], sets["validation"])
    return experiments.train(chapter, variant, pair, settings, **options)


def of_these(variant: str) -> torch.nn.Module:
    settings = dataclasses.replace(SETTINGS, options=OPTIONS[variant])
    return chapter.network(variant, settings)


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory) -> Callable[[str], Trained]:
    """A network of each kind, fitted when first asked for."""
    folder, made = tmp_path_factory.mktemp("fits"), {}

    def of(variant: str) -> Trained:
        if variant not in made:
            made[variant] = train(sets, folder, variant)
        return made[variant]

    return of


@pytest.fixture
def fitted(monkeypatch) -> list[tuple]:
    """What `training.fit` is called with; nothing is fitted."""
    calls: list[tuple] = []
    monkeypatch.setattr(training, "fit", lambda *given, **_: calls.append(given))
    return calls


@pytest.mark.parametrize("variant", NETWORKS)
def test_a_network_is_loaded_from_its_folder_alone(trained, sets, variant):
    made = trained(variant)
    loaded = experiments.load(made.fit.best.parent, "cpu")
    assert (loaded.variant, loaded.name, loaded.settings) == (variant, made.name, made.settings)
    image = sets["test"][0].image
    np.testing.assert_array_equal(loaded.labels(image), made.labels(image))
    assert (loaded.rule is None) == (variant == "mask-rcnn")


@pytest.mark.parametrize("variant", ["resnet", "mask-rcnn"])
def test_a_network_that_began_with_published_weights_is_loaded_without_them(
    variant, monkeypatch, tmp_path
):
    """Where they come from must not matter any more; its layers are those of such a network."""
    begun = NETWORKS[variant](restore=True)
    assert begun.pretrained
    for module in (mask_rcnn, resnet):
        monkeypatch.setattr(module, "published_weights", None)
    settings = dataclasses.replace(SETTINGS, options={})
    again = chapter.network(variant, settings, had=True)
    again.load_state_dict(begun.state_dict())
    assert again.pretrained and "COCO weights" in chapter.describe(again)
    scratch = chapter.network(variant, settings, had=False)
    assert not scratch.pretrained and "from scratch" in chapter.describe(scratch)


# --- the networks -------------------------------------------------------------------------------


def test_the_networks_are_the_papers_in_its_order():
    assert list(NETWORKS) == ["simple-cnn", "resnet", "u-net", "mask-rcnn"] == list(CODE)
    package = Path(training.__file__).parent
    for variant, network in NETWORKS.items():
        modules = CODE[variant]
        assert all((package / f"{name}.py").is_file() for name in modules)
        assert network.__module__.removeprefix("nuctut.").replace(".", "/") in modules
        assert {"targets", "training"} <= set(modules)
        assert ("detection" if variant == "mask-rcnn" else "losses") in modules


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SimpleCNN(channels=7), "simple CNN, 7 feature maps"),
        (lambda: UNet(), "U-Net, 64 to 1024 feature maps"),
        (lambda: ReducedUNet(), "U-Net, 32 to 512 feature maps"),
        (lambda: FCNResNet(18, False), "FCN, ResNet-18, from scratch"),
        (lambda: FCNResNet(101, False), "FCN, ResNet-101, from scratch"),
        (lambda: MaskRCNN(50, False), "Mask R-CNN, ResNet-50, from scratch"),
        (
            lambda: MaskRCNN(18, False, width=24),
            "Mask R-CNN, ResNet-18 of 24 to 192 feature maps, from scratch",
        ),
    ],
)
def test_names_say_what_it_really_is(make, name):
    with torch.device("meta"):
        model = make()
    assert chapter.describe(model) == name
    if name.endswith("from scratch"):
        model.pretrained = True
        assert chapter.describe(model) == name.replace("from scratch", "COCO weights")


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", NETWORKS)
def test_a_network_is_trained_and_gives_labels(trained, sets, variant):
    made = trained(variant)
    assert isinstance(made.model, NETWORKS[variant])
    assert (made.variant, made.name) == (variant, NAMES[variant])
    assert (made.fit.updates, made.fit.images_seen) == (2, 4)
    assert np.isfinite(made.fit.history).all(axis=None)
    weights = sum(p.numel() for p in of_these(variant).parameters())
    assert made.fit.weights == weights
    assert made.parameters["network"] == NAMES[variant]
    assert made.parameters["options"] == OPTIONS[variant]
    for sample in sets["test"]:
        labels = made.labels(sample.image[:50, :70])  # no multiple of any stride
        assert labels.dtype == np.int32 and labels.shape == (50, 70)
        assert np.bincount(labels.ravel())[1:].all()


@pytest.mark.parametrize("variant", NETWORKS)
def test_a_trained_network_is_not_trained_again(trained, sets, monkeypatch, variant):
    first = trained(variant)
    monkeypatch.setattr(training, "fit", None)  # whoever fits again, fails
    monkeypatch.setattr(chapter, "items", None)  # and so does who prepares it
    torch.rand(3)
    again = train(sets, first.fit.best.parents[1], variant)
    assert again.fit.best == first.fit.best
    assert again.fit.best.parent.name.startswith(f"{variant}--s0--")
    mine, its = again.model.state_dict(), first.model.state_dict()
    assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
    image = sets["test"][0].image
    np.testing.assert_array_equal(again.labels(image), first.labels(image))


@pytest.mark.parametrize("variant", ["resnet", "mask-rcnn"])
def test_published_weights_that_cannot_be_had_are_an_error(variant, monkeypatch, sets, runs):
    def refuse(weights):
        raise OSError(f"no {weights.url}")

    for module in (mask_rcnn, resnet):
        monkeypatch.setattr(module, "published_weights", refuse)
    with pytest.raises(OSError, match=r"no https://.*coco"):
        train(sets, runs, variant, options={}, pretrained=True)
    assert not runs.exists()


@pytest.mark.parametrize("variant", NETWORKS)
@pytest.mark.slow
def test_every_network_takes_two_updates_of_the_paper_preset(sets, runs, variant):
    paper = presets_of("02_four_architectures")[variant]["paper"]
    assert paper.pretrained is (variant in ("resnet", "mask-rcnn"))
    with torch.device("meta"):  # as wide as it is, it can be built
        chapter.network(variant, dataclasses.replace(paper, pretrained=False))
    less = {"crop": 64, "epochs": 1, "updates": 2, "batch_size": 2}
    if variant == "u-net":
        less["options"] = paper.options | {"channels": (8,) * 5}  # every layer of it, but thin
    # bf16 only where the hardware has it: imitated, it takes minutes.
    settings = dataclasses.replace(paper, pretrained=False, precision="auto", **less)
    pair = (sets["training"], sets["validation"])
    how = {"device": "cpu", "runs": runs, "progress": False}
    made = experiments.train(chapter, variant, pair, settings, **how)
    torch.manual_seed(0)
    assert_it_learned(made, chapter.network(variant, settings), updates=2)


def test_other_settings_data_seeds_and_networks_are_other_fits(sets, runs, fitted):
    train(sets, runs)
    train(sets, runs)
    train(sets, runs, threshold=0.7)  # these two come after the fit
    train(sets, runs, min_area=30)
    assert len({call[4] for call in fitted}) == 1
    train(sets, runs, options={"channels": 5})
    train(sets, runs, l2=2e-5)
    train(sets, runs, scale="linear")
    train(sets, runs, crop=16)
    train(sets, runs, cross_entropy=0.0)
    train(sets, runs, gamma=0.0)
    train(sets, runs, seed=1)
    train(sets, runs, "u-net")
    train(sets | {"training": sets["training"].take(1)}, runs)
    train(sets | {"validation": sets["validation"].take(1)}, runs)
    assert len({call[4] for call in fitted}) == 11


def test_every_seed_starts_from_its_own_weights(sets, runs, fitted):
    for options in ({}, {}, {"seed": 1}):
        torch.rand(3)  # whatever happened before
        train(sets, runs, **options)
    one, same, other = (call[0].layers[1].weight for call in fitted)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_weights_of_the_loss_are_handed_on(sets, runs, fitted):
    train(sets, runs, iou=0.25, cross_entropy=2.0)
    loss = fitted[0][1]
    assert isinstance(loss, IoULoss) and (loss.iou, loss.cross_entropy) == (0.25, 2.0)


def test_what_a_network_is_fed(sets, runs, fitted):
    train(sets, runs, seed=3)
    _, _, learned, checked, _, how = fitted[0]
    assert (how.epochs, how.updates, how.seed, how.device) == (1, 2, 3, "cpu")
    for items, split, size in ((learned, "training", 32), (checked, "validation", 64)):
        item = items[0, 0]
        assert item["image"].shape == (3, size, size) and item["image"].dtype == torch.float32
        assert item["classes"].shape == (size, size) and item["key"] == f"{split}_full"
        assert set(items[0, 5]["classes"].unique().tolist()) == {0, 1}
        np.testing.assert_array_equal(items.classes[0], sets[split][0].labels > 0)
        expected = targets.standardise(sets[split][0].image, "log")
        np.testing.assert_array_equal(items.images[0], expected)
        assert not items.classes[1].any()  # the empty image is learned from too
    assert (learned.seed, learned.jitter) == (3, Jitter(0.1, 0.2, 1.2, 0.3))
    assert (checked.seed, checked.jitter) == (0, Jitter())


def test_what_mask_rcnn_is_fed(sets, runs, fitted):
    train(sets, runs, "mask-rcnn", seed=3)
    _, loss, learned, checked, _, _ = fitted[0]
    assert loss is None  # it has its own
    for items, split, size in ((learned, "training", 32), (checked, "validation", 64)):
        assert isinstance(items, detection.InstanceCrops)
        assert items[0, 0]["image"].shape == (3, size, size)
        assert items[0, 0]["key"] == f"{split}_full" and len(items[1, 0]["target"]["boxes"]) == 0
    assert (learned.seed, learned.jitter) == (3, Jitter(0.1, 0.2, 1.2, 0.3))
    assert (checked.seed, checked.jitter) == (0, Jitter())


@pytest.mark.parametrize("variant", ["u-net", "mask-rcnn"])
def test_the_many_of_one_sort_do_not_drown_the_few_of_another(sets, runs, fitted, variant):
    sorts = ["small", "large", "small", "small", "small"]
    pair = sets["training"]
    made = [dataclasses.replace(pair[i % 2], tags={"sort": one}) for i, one in enumerate(sorts)]
    many = SampleSet(range(5), made.__getitem__, name="dsb2018", split="training", **ABOUT)
    train(sets | {"training": many}, runs, variant, balance=True)
    train(sets | {"training": many}, runs, variant, balance=False)
    balanced, even = (call[2].shares for call in fitted)
    np.testing.assert_allclose(balanced, [1 / 6, 1 / 3, 1 / 6, 1 / 6, 1 / 6])
    assert even is None
    assert all(call[3].shares is None for call in fitted)  # validation takes every image once


def test_unknown_networks_are_refused(sets, runs):
    with pytest.raises(ValueError, match=r"simple-cnn, resnet, u-net, mask-rcnn, not 'unet'"):
        pair = (sets["training"], sets["validation"])
        experiments.train(chapter, "unet", pair, SETTINGS, runs=runs)
    assert not runs.exists()


# --- predicting, measuring and recording --------------------------------------------------------


class Oracle(torch.nn.Module):
    """A network that knows the mask of the image it is given, nuclei with a chance of 0.8."""

    stride = 1

    def __init__(self, samples: SampleSet, scale: str) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))
        self.answers = [(targets.standardise(s.image, scale), s.labels > 0) for s in samples]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image[0].movedim(0, -1)
        (mask,) = [mask for known, mask in self.answers if np.array_equal(known, pixels)]
        chance = torch.where(torch.from_numpy(mask), 0.8, 0.2)
        return torch.logit(chance)[None, None] * self.one


@pytest.fixture
def oracle(trained, sets) -> Trained:
    made = trained("simple-cnn")
    return dataclasses.replace(made, model=Oracle(sets["test"], SETTINGS.scale))


def after(made: Trained, **changes) -> Trained:
    """The same network with other settings."""
    return dataclasses.replace(made, settings=dataclasses.replace(made.settings, **changes))


def test_a_probability_is_of_the_image_as_it_was_learned(oracle, sets):
    sample = sets["test"][0]
    chances = oracle.probabilities(sample.image)[0]
    assert chances.shape == (64, 80) and chances.dtype == np.float32
    np.testing.assert_allclose(chances, np.where(sample.labels > 0, 0.8, 0.2), atol=1e-6)


def test_what_hangs_together_in_the_mask_is_one_nucleus(oracle, sets):
    labels = oracle.labels(sets["test"][0].image)
    truth = sets["test"][0].labels
    np.testing.assert_array_equal(labels > 0, truth > 0)
    assert labels.max() == 5  # of six, two touch
    assert labels[20, 20] == labels[20, 36] > 0
    assert not oracle.labels(sets["test"][1].image).any()


def test_threshold_and_least_area_act_on_the_labels(oracle, sets):
    sample = sets["test"][0]
    mask = sample.labels > 0
    for threshold, expected in (
        (0.1, np.ones_like(mask)),
        (0.79, mask),
        (0.81, np.zeros_like(mask)),
    ):
        labels = after(oracle, threshold=threshold).labels(sample.image)
        np.testing.assert_array_equal(labels > 0, expected)
    areas = np.sort(np.bincount(oracle.labels(sample.image).ravel())[1:])
    for min_area in (int(areas[1]), int(areas[1]) + 1):
        labels = after(oracle, min_area=min_area).labels(sample.image)
        assert labels.max() == (areas >= min_area).sum()


def test_mask_rcnns_threshold_is_a_score(trained, sets, monkeypatch):
    disc = np.hypot(*np.mgrid[-6:7, -6:7]) <= 6
    found = [
        detection.Detection(disc, 5, 5, 0.9),
        detection.Detection(disc[:3], 30, 30, 0.6),
        detection.Detection(disc, 40, 50, 0.2),
    ]
    monkeypatch.setattr(MaskRCNN, "detect", lambda *_, **__: [found])
    made, image = trained("mask-rcnn"), sets["test"][0].image
    for threshold, min_area, count in ((0.1, 0, 3), (0.5, 0, 2), (0.7, 0, 1), (0.5, 50, 1)):
        labels = after(made, threshold=threshold, min_area=min_area).labels(image)
        assert labels.shape == (64, 80) and labels.max() == count
        np.testing.assert_array_equal(labels[5:18, 5:18] == 1, disc)


def test_a_network_is_measured(oracle, sets):
    measured = experiments.measure_network(oracle, sets["test"], progress=False)
    assert measured.variant == "simple-cnn" and measured.test_set is sets["test"]
    assert [row["key"] for row in measured.rows] == list(sets["test"].keys)
    assert [row["tags"]["modality"] for row in measured.rows] == ["stained", "fluorescence"]
    assert [row["n_true"] for row in measured.rows] == [6, 0]
    # Every pixel is right; of the six nuclei, four are found and two are one.
    assert measured.scores["dice_nuclei"] == 1
    assert measured.rows[0]["match"]["0.95"] | {"iou_sum": 4} == {
        "tp": 4,
        "fp": 1,
        "fn": 2,
        "iou_sum": 4,
    }
    assert set(measured.seconds) == {"seconds_per_image"}
    mean = np.mean([row["seconds"] for row in measured.rows])
    assert measured.seconds["seconds_per_image"] == pytest.approx(mean, abs=1e-5)
    name = "simple-cnn-on-training"
    named = experiments.measure_network(oracle, sets["test"], variant=name, progress=False)
    assert named.variant == name


@pytest.mark.parametrize("variant", ["u-net", "mask-rcnn"])
def test_a_network_is_recorded_with_its_name_and_tags(trained, sets, runs, variant):
    made = trained(variant)
    measured = experiments.measure_network(made, sets["test"], progress=False)
    options = {"preset": "smoke", "seed": 0, "trained": made, "train_set": sets["training"]}
    experiments.record("02_four_architectures", measured, **options)
    path = runs / "results" / "02_four_architectures" / f"{variant}--smoke--s0.json"
    read = records.read(path)
    assert read.parameters["network"] == NAMES[variant]
    assert read.parameters["options"].keys() == OPTIONS[variant].keys()
    assert (read.parameters["threshold"], read.parameters["min_area"]) == (0.5, 0)
    assert [row["tags"]["modality"] for row in read.images] == ["stained", "fluorescence"]
    assert (read.budget["updates"], read.budget["images_seen"]) == (2, 4)
    assert read.budget["weights"] == made.fit.weights
    assert read.data["training"]["labels"] == "ground truth"
    assert read.data["training"]["fingerprint"] == "training0"
    assert not read.is_evidence
