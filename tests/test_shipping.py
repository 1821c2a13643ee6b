"""The networks that come with the book: what ships is what was measured, and says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import nuctut  # noqa: F401
from test_labels_for_free import SETTINGS, runs, sets, train  # noqa: F401

import nuctut as package
from nuctut import experiments, fits, records, translation
from nuctut.experiments import many_tissues, shipping
from nuctut.files import Malformed
from nuctut.models.pix2pix import Generator
from nuctut.samples import SampleSet

CHAPTER = "01_labels_for_free"
CHANGED = dataclasses.replace(SETTINGS, min_area=9)  # after the fit


def real(samples: SampleSet) -> SampleSet:
    """The same, said to be real: then what is measured on it is evidence."""
    about = {"name": "bbbc039", "split": samples.split, "fingerprint": samples.fingerprint}
    by_key = {sample.key: sample for sample in samples}
    return SampleSet(samples.keys, by_key.__getitem__, source="real", **about)


@pytest.fixture
def fitted(sets, runs) -> experiments.Trained:  # noqa: F811
    return train({name: real(one) for name, one in sets.items()}, runs, settings=CHANGED, seed=1)


@pytest.fixture
def measured(fitted, sets) -> experiments.Trained:  # noqa: F811
    """A fit whose measurement is evidence, under settings that changed after the fit."""
    after = dataclasses.replace(fitted, settings=SETTINGS)
    test_set = real(sets["test"])
    for variant in ("dl-ground-truth", "dl-ground-truth-again"):
        made = experiments.measure_network(after, test_set, variant=variant, progress=False)
        how = {"preset": "lite", "seed": 1, "trained": after, "train_set": real(sets["training"])}
        experiments.record(CHAPTER, made, **how)
    return after


def test_what_ships_is_what_was_measured(measured, sets):  # noqa: F811
    folder = experiments.ship(measured.fit.best.parent)
    assert folder == records.results_root() / "networks" / CHAPTER / "dl-ground-truth"
    names = {path.name for path in folder.iterdir()}
    assert names == {"network.json", "history.csv", "done.json", "best.safetensors", "README.md"}
    record = experiments.record_of(folder)
    assert record.name == "dl-ground-truth--lite--s1"
    assert fits.checksum(folder / fits.WEIGHTS) == record.fit["weights_sha256"]
    made = experiments.shipped(CHAPTER, "dl-ground-truth", device="cpu")
    assert made.settings == SETTINGS and made.seed == 1  # those of the record, not of the fit
    image = sets["test"][0].image
    np.testing.assert_array_equal(made.labels(image), measured.labels(image))
    assert experiments.folders() == [folder]
    assert [one.variant for one in records.read_all(records.results_root())] == [
        "dl-ground-truth",
        "dl-ground-truth-again",
    ]  # no file of the network is taken for a record


def test_the_card_says_data_licence_scores_and_limits(measured):
    card = (experiments.ship(measured.fit.best.parent) / "README.md").read_text()
    record = records.read_all(records.results_root())[0]
    assert f"{record.scores['f1_50']:.3f}" in card and record.fit["weights_sha256"] in card
    for part in ("CC0", "Not good for", "BSD-3-Clause", "Matuszewski & Ranefall", "0.656 µm"):
        assert part in card


def test_the_command_ships_and_lists(measured, nuctut):  # noqa: F811
    status, out, _ = nuctut("networks", "--ship", measured.fit.best.parent)
    assert status == 0 and out.strip().endswith("dl-ground-truth")
    status, out, _ = nuctut("networks")
    assert status == 0 and "dl-ground-truth" in out and "reduced U-Net" in out


def test_shipping_again_replaces(measured):
    folder = experiments.ship(measured.fit.best.parent)
    (folder / "README.md").write_text("old")
    experiments.ship(measured.fit.best.parent)
    assert (folder / "README.md").read_text() != "old"
    assert [path.name for path in folder.parent.iterdir()] == ["dl-ground-truth"]


def test_what_was_not_measured_does_not_ship(fitted):
    with pytest.raises(ValueError, match=r"no record in .* is of these weights"):
        experiments.ship(fitted.fit.best.parent)
    assert experiments.folders() == []


def test_what_is_too_large_does_not_ship(measured, monkeypatch):
    monkeypatch.setattr(shipping, "LARGEST", 100)
    with pytest.raises(ValueError, match=r"best\.safetensors has .* more than the 0 that"):
        experiments.ship(measured.fit.best.parent)
    assert experiments.folders() == []


def test_a_network_is_loaded_by_name_and_called_with_an_image(measured, sets):  # noqa: F811
    experiments.ship(measured.fit.best.parent)
    image = sets["test"][0].image
    expected = measured.labels(image)
    for made in (package.load(), package.load("01_labels_for_free/dl-ground-truth", "cpu")):
        np.testing.assert_array_equal(made(image), expected)
    np.testing.assert_array_equal(made(np.repeat(image[..., None], 3, -1)), expected)
    with pytest.raises(ValueError, match="No network is named 'cellpose': say one of"):
        package.load("cellpose")
    with pytest.raises(FileNotFoundError, match="No network mask-rcnn of 02_four_architectures"):
        package.load("four-architectures")


def test_what_does_not_ship_is_said_with_what_does(measured):
    experiments.ship(measured.fit.best.parent)
    with pytest.raises(FileNotFoundError, match=r"No network u-net .*it has dl-ground-truth.*lite"):
        experiments.shipped(CHAPTER, "u-net")


def test_a_damaged_network_is_refused(measured):
    folder = experiments.ship(measured.fit.best.parent)
    content = bytearray((folder / fits.WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / fits.WEIGHTS).write_bytes(content)
    with pytest.raises(Malformed, match=r"best\.safetensors is damaged or was changed"):
        experiments.shipped(CHAPTER, "dl-ground-truth")


def test_the_networks_of_the_book_are_those_of_its_records():
    """Those in this checkout: each loads, is small enough, and has the checksum of evidence."""
    root = Path(__file__).resolve().parents[1] / "results" / "networks"
    for path in sorted(root.glob("*/*/network.json")):
        folder = path.parent
        assert experiments.record_of(folder).variant == folder.name
        trained = experiments.load(folder, device="cpu")
        assert all(torch.isfinite(weight).all() for weight in trained.model.parameters())
    for chapter in root.iterdir():
        sizes = [path.stat().st_size for path in chapter.glob("*/*.safetensors")]
        assert max(sizes) <= shipping.LARGEST and sum(sizes) <= 20e6


def test_the_translators_of_the_book_are_what_its_chapter_takes_up():
    """Those in this checkout: under the settings of the preset `lite`, and with a card."""
    root = Path(__file__).resolve().parents[1] / "results" / "networks" / many_tissues.CHAPTER
    lite = many_tissues.Invention(images=3, width=16, depth=7, epochs=4, updates=100)
    folders = list(root.glob(f"{many_tissues.PIX2PIX}-*"))
    assert folders
    for folder in folders:
        generator = Generator(lite.width, lite.depth)
        fit = translation.load(generator, folder)
        assert fit.updates == lite.epochs * lite.updates and (folder / shipping.CARD).is_file()
