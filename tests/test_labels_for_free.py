"""Chapter 1: a tiny variant, from samples to a record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from notebook_presets import assert_it_learned, presets_of

from nuctut import classical, experiments, fits, postprocess, records, targets, training
from nuctut.experiments import labels_for_free
from nuctut.experiments.labels_for_free import Settings
from nuctut.machine import device_name
from nuctut.samples import Sample, SampleSet

VALUES = {
    "data": "simulated",
    "images": 2,
    "crop": 32,
    "scale": "log",
    "gain": 0.1,
    "channels": (4, 4, 4, 4, 4),
    "last_channels": 4,
    "dropout": (0.1, 0.1, 0.1, 0.1),
    "normalise": True,
    "cross_entropy": 1.0,
    "min_area": 0,
    "epochs": 2,
    "updates": 2,
    "batch_size": 2,
    "learning_rate": 3e-3,
    "schedule": "one-cycle",
    "l2": 1e-5,
    "precision": "fp32",
    "patience": None,
}
SETTINGS = Settings(**VALUES)


def truth(sample: Sample) -> np.ndarray:
    return targets.three_classes(sample.labels)


@pytest.fixture
def sets(scene) -> dict[str, SampleSet]:
    """Three splits of two images each; the last image of each is empty.

    The first two nuclei touch, and the last touches the image's edge.
    """
    discs = [(20, 20, 8), (20, 36, 8), (46, 30, 9), (50, 56, 7), (30, 69, 8), (0, 60, 8)]

    def split(name: str, seed: int) -> SampleSet:
        image, labels = scene((64, 80), discs, noise=30, seed=seed)
        empty = np.random.default_rng(seed).normal(200, 5, (64, 80)).astype(np.uint16)
        samples = {
            f"{name}_full": Sample(f"{name}_full", image, labels),
            f"{name}_empty": Sample(f"{name}_empty", empty, np.zeros((64, 80), np.int32)),
        }
        about = {"name": "bbbc039", "split": name, "source": "simulated"}
        return SampleSet(list(samples), samples.__getitem__, **about, fingerprint=f"{name}{seed}")

    return {name: split(name, i) for i, name in enumerate(("training", "validation", "test"))}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A folder for runs and records, apart from the checkout's."""
    for marker in ("pyproject.toml", "_config.yml"):
        (tmp_path / marker).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUCTUT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def train(sets, runs, variant="dl-ground-truth", teach=truth, settings=SETTINGS, **options):
    pair = (sets["training"], sets["validation"])
    how = {"device": "cpu", "runs": runs, "progress": False} | options
    return experiments.train(labels_for_free, variant, pair, settings, teach=teach, **how)


def items_of(samples: SampleSet, settings: Settings, seed: int):
    how = {"seed": seed, "progress": False}
    return labels_for_free.items("dl-ground-truth", samples, settings, truth, **how)


def folders(runs: Path) -> set[str]:
    return {path.name for path in runs.iterdir() if path.is_dir()}


# --- training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_network_takes_two_updates_of_the_paper_preset(sets, runs):
    paper = presets_of("01_labels_for_free")["paper"]
    settings = dataclasses.replace(paper, epochs=1, updates=2)
    made = train(sets, runs, settings=settings)
    torch.manual_seed(0)
    assert_it_learned(made, labels_for_free.network("dl-ground-truth", settings), updates=2)


def test_a_trained_network_is_not_trained_again(sets, runs, monkeypatch):
    first = train(sets, runs)
    assert first.fit.updates == 4 and first.fit.images_seen == 8
    (folder,) = folders(runs)
    assert folder.startswith("dl-ground-truth--s0--")
    assert first.fit.best == runs / folder / "best.safetensors"

    monkeypatch.setattr(training, "fit", None)  # whoever fits again, fails
    labelled = []
    again = train(sets, runs, teach=labelled.append)
    assert folders(runs) == {folder} and labelled == []
    for name, weight in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight)
    image = sets["test"][0].image
    np.testing.assert_array_equal(again.probabilities(image), first.probabilities(image))


def test_a_network_is_loaded_from_its_folder_alone(sets, runs):
    made = train(sets, runs, seed=3)
    (folder,) = (runs / name for name in folders(runs))
    loaded = experiments.load(folder, "cpu")
    assert (loaded.variant, loaded.settings) == ("dl-ground-truth", SETTINGS)
    learned_from = "bbbc039 training (simulated, 2 images)"
    assert loaded.learned_from == made.learned_from == learned_from
    assert loaded.parameters == made.parameters and loaded.fit.updates == made.fit.updates
    image = sets["test"][0].image
    np.testing.assert_array_equal(loaded.labels(image), made.labels(image))
    about = fits.read_description(folder)
    assert (about.experiment, about.variant, about.seed) == ("labels_for_free", loaded.variant, 3)
    assert about.data == {"name": "bbbc039", "source": "simulated", "images": 2} | {
        "fingerprint": sets["training"].fingerprint
    }
    assert (
        about.code == experiments.current_code(labels_for_free, about.variant)
        and not about.pretrained
    )


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "network.json").unlink(), "holds no fit of a chapter"),
        (lambda f: (f / "network.json").write_text("{}"), "network.json: experiment is missing"),
        (lambda f: (f / "network.json").write_text("["), "network.json: not a JSON file"),
        (lambda f: rewrite(f, experiment="other"), "experiment must be one of labels_for_free"),
        (lambda f: rewrite(f, settings={"epochs": 1}), "has no such network now: data is missing"),
        (lambda f: (f / "done.json").unlink(), "is not finished: run its chapter again"),
        (lambda f: (f / "done.json").write_text("{}"), "done.json: updates is missing"),
        (lambda f: (f / "best.safetensors").write_bytes(b"PK"), "is damaged or was changed"),
        (lambda f: (f / "best.safetensors").unlink(), "cannot be read .No such file"),
    ],
)
def test_a_folder_that_holds_no_network_is_named(sets, runs, spoil, told):
    train(sets, runs)
    (folder,) = (runs / name for name in folders(runs))
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=told) as caught:
        experiments.load(folder, "cpu")
    assert str(folder) in str(caught.value)


def rewrite(folder: Path, **changes) -> None:
    content = json.loads((folder / "network.json").read_text())
    (folder / "network.json").write_text(json.dumps(content | changes))


def older(runs: Path, **changes) -> Path:
    """The one fit there is, as if other code had made it: in a folder and with a digest of its."""
    (folder,) = (runs / name for name in folders(runs))
    old = folder.with_name(f"{folder.name[:-6]}abcdef")
    folder.rename(old)
    done = json.loads((old / "done.json").read_text()) | {"code": "abcdef0123456789"} | changes
    (old / "done.json").write_text(json.dumps(done))
    return old


def test_a_fit_of_other_code_is_taken_up_only_where_that_is_asked_for(sets, runs, monkeypatch):
    train(sets, runs)
    old = older(runs)
    again = train(sets, runs)
    assert len(folders(runs)) == 2 and again.fit.best.parent != old  # it was fitted anew
    (again.fit.best.parent / "done.json").unlink()  # now only the old one is finished
    monkeypatch.setenv(experiments.ACCEPT, "1")
    monkeypatch.setattr(training, "fit", None)  # whoever fits again, fails
    assert train(sets, runs).fit.best.parent == old
    with pytest.raises(TypeError):
        train(sets, runs, settings=dataclasses.replace(SETTINGS, l2=2e-5))  # that is another fit


def test_a_network_of_other_code_is_evidence_only_where_that_is_said(sets, runs, monkeypatch):
    train(sets, runs)
    (here,) = (runs / name for name in folders(runs))
    older(runs).rename(here)  # as a hand would rename it, to have it taken up
    trained = train(sets, runs)
    measured = labels_for_free.measure_network(trained, sets["test"], progress=False)
    how = {"seed": 0, "trained": trained, "train_set": sets["training"], "folder": runs / "made"}
    made = experiments.record("some_chapter", measured, preset="smoke", **how)
    assert made.fit["accepted_old_code"] and not made.is_evidence  # a rehearsal may be anything
    monkeypatch.setattr(records.Record, "is_evidence", True)
    with pytest.raises(ValueError, match=r"fitted by other code than today's.*--accept-old-fit"):
        experiments.record("some_chapter", measured, preset="lite", **how)
    assert not list(runs.rglob("*--lite--s0.json"))
    monkeypatch.setenv(experiments.ACCEPT, "1")
    experiments.record("some_chapter", measured, preset="lite", **how)
    (path,) = runs.rglob("*--lite--s0.json")
    assert records.read(path).fit["accepted_old_code"]


def test_other_settings_data_seeds_and_names_are_other_fits(sets, runs, monkeypatch):
    fitted = []

    def instead(model, loss, items, checks, folder, settings, *, code, progress):
        fitted.append(folder.name)

    monkeypatch.setattr(training, "fit", instead)
    train(sets, runs)
    train(sets, runs)
    assert len(set(fitted)) == 1
    train(sets, runs, settings=dataclasses.replace(SETTINGS, dropout=(0.1, 0.1, 0.1, 0.2)))
    train(sets, runs, settings=dataclasses.replace(SETTINGS, l2=2e-5))
    train(sets, runs, seed=1)
    train(sets, runs, variant="dl-consensus")
    train(sets | {"training": sets["training"].take(1)}, runs)
    train(sets | {"validation": sets["validation"].take(1)}, runs)
    assert len(set(fitted)) == 7


def test_dropping_small_predictions_needs_no_other_fit(sets, runs, monkeypatch):
    first = train(sets, runs)
    monkeypatch.setattr(training, "fit", None)  # whoever fits again, fails
    pickier = train(sets, runs, settings=dataclasses.replace(SETTINGS, min_area=170))
    assert pickier.fit.best == first.fit.best
    assert (pickier.settings.min_area, pickier.parameters["min_area"]) == (170, 170)


def test_code_that_decides_what_a_fit_computes_is_part_of_its_name(sets, runs, monkeypatch):
    asked = []
    monkeypatch.setattr(experiments.fitting, "fit_key", lambda *_, code: asked.append(code) or "0")
    monkeypatch.setattr(training, "fit", lambda *_, **__: None)
    train(sets, runs)
    assert {"classical", "targets", "losses", "training", "models/unet"} <= set(asked[0])


def test_every_seed_starts_from_its_own_weights_and_every_variant_from_the_same(
    sets, runs, monkeypatch
):
    started = []
    monkeypatch.setattr(
        training, "fit", lambda model, *_, **__: started.append(model.head.weight.clone())
    )
    for options in ({}, {"variant": "dl-consensus"}, {"seed": 1}):
        torch.rand(3)  # whatever happened before
        train(sets, runs, **options)
    assert torch.equal(started[0], started[1]) and not torch.equal(started[0], started[2])


def test_validation_sees_the_same_at_every_seed_and_epoch(sets):
    for seed in (0, 1):
        items = items_of(sets["validation"], SETTINGS, seed)
        assert items[0, 0]["image"].shape == (1, 64, 64)
        assert (items.seed, items.jitter) == (0, training.Jitter())
        learned = items_of(sets["training"], SETTINGS, seed)
        assert learned[0, 0]["image"].shape == (1, 32, 32)
        assert (learned.seed, learned.jitter) == (seed, training.Jitter(gain=0.1))


def test_without_crops_the_papers_tiles_are_used(sets):
    settings = dataclasses.replace(SETTINGS, crop=None)
    for split in ("training", "validation"):
        items = items_of(sets[split], settings, 0)
        assert isinstance(items, training.CornerTiles) and len(items) == 2 * 8


def test_the_consensus_is_learnt_from(sets, runs):
    ignored = []

    def classes_of(sample: Sample) -> np.ndarray:
        votes = [
            classical.segment(sample.image, name, drop_border=False)
            for name in classical.CONSENSUS_OF
        ]
        votes[1][0:40] = 0  # so that they disagree
        labels, ignore = classical.consensus(votes)
        ignored.append(ignore.sum())
        return targets.three_classes(labels, ignore)

    trained = train(sets, runs, variant="dl-consensus", teach=classes_of)
    assert len(ignored) == 4 and ignored[0] > 0
    assert np.isfinite(trained.fit.history).all(axis=None)
    chances = trained.probabilities(sets["test"][0].image)
    assert chances.shape == (3, 64, 80)
    np.testing.assert_allclose(chances.sum(0), 1, atol=1e-5)


# --- measuring and recording --------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """A network that knows the classes of the image it is given."""

    stride = 16

    def __init__(self, samples: SampleSet, scale: str) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))
        self.answers = [(targets.standardise(s.image, scale), truth(s)) for s in samples]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        known = [classes for pixels, classes in self.answers if np.array_equal(pixels, image[0, 0])]
        classes = known[0] if known else np.zeros(image.shape[2:], np.uint8)
        chances = torch.nn.functional.one_hot(torch.from_numpy(classes).long(), 3)
        return 20.0 * chances.movedim(-1, 0)[None] * self.one


@pytest.fixture
def oracle(sets, runs) -> experiments.Trained:
    trained = train(sets, runs)
    return dataclasses.replace(trained, model=Oracle(sets["test"], SETTINGS.scale))


def test_a_perfect_network_scores_perfectly(oracle, sets):
    measured = labels_for_free.measure_network(oracle, sets["test"], progress=False)
    assert measured.variant == "dl-ground-truth" and measured.test_set is sets["test"]
    assert [row["key"] for row in measured.rows] == list(sets["test"].keys)
    assert [row["n_true"] for row in measured.rows] == [6, 0]
    for score in ("dice_nuclei", "dice_separations", "object_jaccard", "f1_50"):
        assert measured.scores[score] == 1
    assert measured.rows[0]["aggregated_jaccard"] > 0.99  # what the lines took was given back
    assert measured.rows[0]["object"] == {"n_true": 5, "n_pred": 5, "matched": 5}
    names = {"seconds_per_image", "seconds_per_postprocessing", "seconds_per_tile"}
    assert set(measured.seconds) == names and all(v > 0 for v in measured.seconds.values())
    mean = np.mean([row["seconds"] for row in measured.rows])
    assert measured.seconds["seconds_per_image"] == pytest.approx(mean, abs=1e-5)


def test_a_few_tiles_are_timed_and_not_one_of_each_image(oracle, sets, monkeypatch):
    seen = []
    oracle.model.register_forward_pre_hook(lambda _, given: seen.append(given))
    monkeypatch.setattr(labels_for_free, "TIMED", 1)
    labels_for_free.measure_network(oracle, sets["test"], progress=False)
    assert len(seen) == 3  # both images, and a tile of the first


def test_small_predictions_are_dropped_where_the_settings_say_so(oracle, sets):
    settings = dataclasses.replace(SETTINGS, min_area=170)  # the disc of radius 7 has 149 pixels
    pickier = dataclasses.replace(oracle, settings=settings)
    rows = labels_for_free.measure_network(pickier, sets["test"], progress=False).rows
    cut = postprocess.from_classes(truth(sets["test"][0]))
    kept = int((np.bincount(cut.ravel())[1:] >= 170).sum())
    assert 0 < kept < 6
    assert rows[0]["match"]["0.50"]["tp"] == kept


def test_objects_are_counted_with_the_lines_cut_out_and_overlaps_without(oracle, sets, monkeypatch):
    def cut_up(*_: object) -> np.ndarray:
        pieces = np.zeros(labels.shape, np.int32)
        pieces[10:14, 10:14], pieces[20:24, 10:14], pieces[30:34, 10:14] = 1, 2, 3
        return pieces

    labels = sets["test"][0].labels
    monkeypatch.setattr(postprocess, "from_classes", cut_up)
    monkeypatch.setattr(postprocess.LabelRule, "parted", cut_up)
    monkeypatch.setattr(postprocess, "give_back", lambda *_: labels)
    monkeypatch.setattr(classical, "segment", lambda *_, **__: labels)
    one = sets["test"].take(1)
    for measured in (
        labels_for_free.measure_network(oracle, one, progress=False),
        labels_for_free.measure_classical("shape/shape", one, progress=False),
    ):
        assert measured.rows[0]["object"]["n_pred"] == 3
        assert measured.rows[0]["match"]["0.95"]["tp"] == 6


@pytest.mark.parametrize("configuration", classical.CONFIGURATIONS)
def test_a_classical_configuration_is_measured(sets, configuration):
    measured = labels_for_free.measure_classical(configuration, sets["test"], progress=False)
    assert measured.variant == f"classical-{configuration.replace('/', '-')}"
    sample = sets["test"][0]
    labels = classical.segment(sample.image, configuration, drop_border=False)
    expected = records.image_row(sample.key, sample.labels, labels)
    assert measured.rows[0]["match"] == expected["match"]
    assert labels[0].any() and expected["match"]["0.50"]["tp"] >= 5  # the edge's nucleus is kept
    assert measured.rows[1]["n_true"] == 0
    assert set(measured.seconds) == {"seconds_per_image"}


def test_a_network_is_recorded(sets, runs):
    trained = train(sets, runs)
    measured = labels_for_free.measure_network(trained, sets["test"], progress=False)
    options = {"preset": "smoke", "seed": 0, "trained": trained, "train_set": sets["training"]}
    made = experiments.record("01_labels_for_free", measured, **options, labels="shape/intensity")
    path = runs / "results" / "01_labels_for_free" / "dl-ground-truth--smoke--s0.json"
    read = records.read(path)
    assert read.scores == pytest.approx(made.scores, nan_ok=True)
    assert read.images == measured.rows
    assert read.data["source"] == "simulated" and read.data["count"] == 2
    assert read.data["training"]["labels"] == "shape/intensity"
    assert read.data["training"]["fingerprint"] == "training0"
    assert (read.budget["updates"], read.budget["images_seen"]) == (4, 8)
    assert read.budget["precision"] == "fp32" and read.budget["device"] == device_name()
    assert read.budget["seconds_per_image"] == pytest.approx(
        measured.seconds["seconds_per_image"], abs=1e-5
    )
    assert read.parameters["channels"] == [4] * 5 and read.parameters["min_area"] == 0


def test_a_classical_configuration_is_recorded_without_training(sets, runs):
    measured = labels_for_free.measure_classical("shape/intensity", sets["test"], progress=False)
    experiments.record("01_labels_for_free", measured, preset="smoke", seed=3)
    folder = runs / "results" / "01_labels_for_free"
    read = records.read(folder / "classical-shape-intensity--smoke--s3.json")
    assert read.data["training"] is None and read.budget["updates"] == 0
    assert read.parameters == {} and read.budget["precision"] == "none"


def test_real_data_are_evidence_and_recorded_apart(sets, runs, tmp_path):
    samples = sets["test"]
    real = SampleSet(
        samples.keys,
        lambda key: samples[samples.keys.index(key)],
        name="bbbc039",
        split="test",
        source="real",
        fingerprint="ab",
    )
    measured = labels_for_free.measure_classical("shape/shape", real, progress=False)
    experiments.record("01_labels_for_free", measured, preset="lite", seed=0)
    folder = tmp_path / "results" / "01_labels_for_free"
    assert records.read(folder / "classical-shape-shape--lite--s0.json").is_evidence
    assert not runs.exists()


def test_a_test_set_without_nuclei(sets, runs):
    samples = sets["test"]
    empty = SampleSet(
        samples.keys[1:],
        lambda key: samples[1],
        name="bbbc039",
        split="test",
        source="simulated",
        fingerprint="cd",
    )
    measured = labels_for_free.measure_network(train(sets, runs), empty, progress=False)
    assert measured.rows[0]["n_true"] == 0
    experiments.record("01_labels_for_free", measured, preset="smoke", seed=0)
