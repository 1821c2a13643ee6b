"""Chapter 3: four tiny networks, the scale they see, and images that were never taken."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from notebook_presets import assert_it_learned, presets_of
from scipy import ndimage as ndi

from nuctut import experiments, records, rescaling, translation
from nuctut.balanced_patches import Patches
from nuctut.detection import InstanceCrops
from nuctut.experiments import Trained, shipping
from nuctut.experiments import many_tissues as chapter
from nuctut.experiments.many_tissues import NETWORKS, Invention, Settings
from nuctut.files import Malformed
from nuctut.models import mask_rcnn, unet_resnet
from nuctut.samples import Sample, SampleSet
from nuctut.training import RandomCrops

SETTINGS = Settings(
    data="simulated",
    images=None,
    options={},
    pretrained=False,
    crop=64,
    scale="linear",
    gain=0.1,
    zoom=1.0,
    gamma=0.2,
    erosion=1,
    border=10.0,
    per_image=4,
    cross_entropy=1.0,
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
    "u-net": {"channels": (4, 4, 4, 4, 4)},
    "unet-resnet": {"width": 8},
    "mask-rcnn": {"depth": 18, "width": 8, "max_detections": 20},
    "deepcell": {"channels": 4, "features": 4},
}
# As the paper's, but thin; Mask R-CNN, whose depth 50 has one width, also less deep: as it is, it
# takes its updates in test_four_architectures.
THIN = {
    "u-net": {"channels": (8,) * 5},
    "unet-resnet": {"width": 8},
    "mask-rcnn": {"depth": 18, "width": 8},
}
NAMES = {
    "u-net": "U-Net, 4 to 4 feature maps",
    "unet-resnet": "U-Net with a ResNet-34 of 8 to 64 feature maps, from scratch",
    "mask-rcnn": "Mask R-CNN, ResNet-18 of 8 to 64 feature maps, from scratch",
    "deepcell": "DeepCell, 4 feature maps",
}
RADIUS = 9
DISCS = [(20, 20, RADIUS), (20, 38, RADIUS), (60, 30, RADIUS), (58, 70, RADIUS)]


@pytest.fixture(scope="module")
def sets(scene) -> dict[str, SampleSet]:
    """Three splits of two grey images, four discs in each, of two tissues."""

    def split(name: str) -> SampleSet:
        def sample(key: str) -> Sample:
            image, labels = scene((96, 104), DISCS, noise=10)
            return Sample(key, image, labels, {"tissue": key.partition("_")[0]})

        about = {"name": "bitdepth_nucseg", "split": name, "source": "simulated"}
        return SampleSet([f"bone_{name}", f"liver_{name}"], sample, **about, fingerprint=name)

    return {name: split(name) for name in ("training", "validation", "test")}


def settings_of(network: str, **changes) -> Settings:
    return dataclasses.replace(SETTINGS, options=OPTIONS[network], **changes)


def train(sets, runs, variant: str, settings: Settings) -> Trained:
    how = {"device": "cpu", "runs": runs, "progress": False}
    pair = (sets["training"], sets["validation"])
    return experiments.train(chapter, variant, pair, settings, **how)


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory) -> Callable[[str], Trained]:
    """A network of each kind, fitted when first asked for."""
    folder, made = tmp_path_factory.mktemp("fits"), {}

    def of(network: str) -> Trained:
        if network not in made:
            made[network] = train(sets, folder, f"{network}-scaled", settings_of(network))
        return made[network]

    return of


@pytest.fixture
def threshold(trained, monkeypatch) -> Trained:
    """A U-Net that answers by a threshold, and leaves out specks as it is told."""

    def labels(self: Trained, image: np.ndarray) -> np.ndarray:
        found = ndi.label(image[..., 0] > 600)[0]
        areas = np.bincount(found.ravel())
        return np.where(areas[found] >= self.settings.min_area, found, 0).astype(np.int32)

    monkeypatch.setattr(Trained, "labels", labels)
    return trained("u-net")


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_trained_predicts_whole_images_and_is_loaded(trained, sets, network):
    made = trained(network)
    assert made.name == NAMES[network] and made.fit.updates == 2
    image = sets["test"][0].image
    labels = made(image)
    assert labels.shape == image.shape and labels.dtype == np.int32
    loaded = experiments.load(made.fit.best.parent, "cpu")
    assert (loaded.variant, loaded.name) == (f"{network}-scaled", made.name)
    np.testing.assert_array_equal(loaded(image), labels)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_two_updates_of_the_paper_preset(sets, tmp_path, network):
    paper = presets_of("03_many_tissues")[network]["paper"]
    assert paper.pretrained is (network in ("unet-resnet", "mask-rcnn"))
    with torch.device("meta"):  # as wide as it is, it can be built
        chapter.network(f"{network}-scaled", dataclasses.replace(paper, pretrained=False))
    less = {"crop": 64, "epochs": 1, "updates": 2, "batch_size": 2, "per_image": 4}
    less["options"] = paper.options | THIN.get(network, {})
    settings = dataclasses.replace(paper, pretrained=False, **less)
    made = train(sets, tmp_path, f"{network}-scaled", settings)
    torch.manual_seed(0)
    start = chapter.network(f"{network}-scaled", settings)
    assert_it_learned(made, start, updates=2)


@pytest.mark.parametrize(
    ("network", "module"), [("unet-resnet", unet_resnet), ("mask-rcnn", mask_rcnn)]
)
def test_published_weights_that_cannot_be_had_are_an_error(network, module, monkeypatch):
    def refuse(weights):
        raise OSError(f"no {weights.url}")

    monkeypatch.setattr(module, "published_weights", refuse)
    with pytest.raises(OSError, match="no https://"):
        chapter.network(f"{network}-scaled", dataclasses.replace(SETTINGS, pretrained=True))


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="u-net, unet-resnet, mask-rcnn, deepcell, not 'u-nett'"):
        chapter.family("u-nett")


def test_what_networks_are_fed(sets):
    def fed(network):
        how = {"seed": 0, "progress": False}
        return chapter.items(f"{network}-scaled", sets["training"], settings_of(network), **how)

    crops = fed("u-net")
    assert isinstance(crops, RandomCrops) and isinstance(fed("mask-rcnn"), InstanceCrops)
    item = crops[0, 0]
    assert item["image"].shape == (3, 64, 64) and (item["image"][0] == item["image"][2]).all()
    weights = item["classes"]
    assert weights.dtype == torch.float32 and weights.min() < -1 and weights.max() == 1
    patches = fed("deepcell")
    assert isinstance(patches, Patches) and len(patches) == 2 * SETTINGS.per_image
    assert patches[0, 0]["image"].shape == (3, 61, 61)


# --- scale ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["truth", "image", "none"])
def test_labels_come_back_to_the_images_own_grid(threshold, sets, way):
    sample = sets["test"][0]
    labels = chapter.segment(threshold, sample, way)
    assert labels.shape == sample.labels.shape and labels.max() == 3  # two discs touch
    row = records.image_row("one", sample.labels, labels)
    assert records.scores([row])["pixel_iou"] > 0.9


@pytest.mark.parametrize(("way", "seen"), [("truth", 34.0), ("none", 2 * RADIUS), ("image", 34.0)])
def test_the_scale_that_a_network_sees(threshold, sets, way, seen, monkeypatch):
    asked = []
    label = Trained.labels

    def labels(self: Trained, image: np.ndarray) -> np.ndarray:
        asked.append((image.shape[0] / 96, self.settings.min_area))
        return label(self, image)

    monkeypatch.setattr(Trained, "labels", labels)
    chapter.segment(threshold, sets["test"][0], way)
    factor, min_area = asked[-1]
    # in the image alone, two nuclei that touch are one, and eroded ones grow back
    assert factor == pytest.approx(seen / (2 * RADIUS), rel=0.3 if way == "image" else 0.03)
    assert min_area == pytest.approx(rescaling.smallest_area(seen), abs=1)
    chapter.segment(threshold, sets["test"][0], "truth", 0.5)
    assert asked[-1][0] == pytest.approx(17 / (2 * RADIUS), rel=0.03)


def test_a_network_is_measured_on_the_images_as_taken(threshold, sets):
    measured = chapter.measure(threshold, sets["test"], "truth", progress=False)
    assert measured.variant == "u-net-scaled" and len(measured.rows) == 2
    assert measured.rows[0]["tags"] == {"tissue": "bone"}
    assert measured.scores["recall"] == 0.5 and measured.scores["us_rate"] == 0.5


def test_one_annotation_is_judged_by_another(sets):
    gold = sets["test"]
    fewer = gold.changed(
        "one less",
        lambda one: dataclasses.replace(one, labels=np.where(one.labels == 4, 0, one.labels)),
    )
    scores = chapter.measure_annotation("annotation-silver", gold, fewer).scores
    assert (scores["recall"], scores["precision"]) == (0.75, 1.0)


# --- images that were never taken ----------------------------------------------------------------

TINY = Invention(images=2, width=2, depth=4, epochs=1, updates=1, size=64)


def test_each_tissue_has_a_translator_of_its_own_and_keeps_it(sets, tmp_path, monkeypatch):
    how = {"seed": 3, "runs": tmp_path, "device": "cpu", "progress": False}
    by = chapter.translators(sets["training"], TINY, "tissue", **how)
    made = chapter.natural_like(sets["training"], TINY, "tissue", by, seed=3)
    assert len(made) == 4 and made[0].image.shape == (64, 64)
    plain = chapter.cut_outs(sets["training"], TINY, seed=3)
    assert made.keys == plain.keys and made.fingerprint != plain.fingerprint
    assert (made[1].labels == plain[1].labels).all() and (made[1].image != plain[1].image).any()
    assert sorted(path.name.partition("--")[0] for path in tmp_path.iterdir()) == [
        "pix2pix-bone",
        "pix2pix-liver",
    ]
    monkeypatch.setattr(translation, "_all_epochs", None)  # whoever fits again, fails
    by = chapter.translators(sets["training"], TINY, "tissue", **how)
    again = chapter.natural_like(sets["training"], TINY, "tissue", by, seed=3)
    assert again.fingerprint == made.fingerprint and (again[1].image == made[1].image).all()
    joined = sets["training"].joined(made)
    assert len(joined) == 6 and joined.split == "training"


def test_translators_that_come_with_the_book_need_no_fit(sets, tmp_path, monkeypatch):
    how = {"seed": 3, "runs": tmp_path / "runs", "device": "cpu", "progress": False}
    by = chapter.translators(sets["training"], TINY, "tissue", **how)
    monkeypatch.setattr(shipping, "root", lambda: tmp_path / "networks")
    assert chapter.shipped_translators(TINY) == {}
    for kind in by:
        (fit,) = (tmp_path / "runs").glob(f"pix2pix-{kind}--*")
        shutil.copytree(fit, tmp_path / "networks" / chapter.CHAPTER / f"pix2pix-{kind}")
    there = chapter.shipped_translators(TINY)
    assert there.keys() == by.keys()
    made, again = (
        chapter.natural_like(sets["training"], TINY, "tissue", one, seed=3) for one in (by, there)
    )
    assert made.fingerprint == again.fingerprint and (made[1].image == again[1].image).all()
    (weights,) = (tmp_path / "networks").glob("*/pix2pix-bone/generator.safetensors")
    weights.write_bytes(b"damaged")
    with pytest.raises(Malformed, match=r"generator\.safetensors"):
        chapter.shipped_translators(TINY)
