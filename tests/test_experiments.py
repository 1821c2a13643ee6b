"""What the chapters share: settings, the key of a fit, crops, measuring, recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nuctut import experiments, fits, records, targets, training
from nuctut.experiments import Measured, Segmented
from nuctut.samples import Sample, SampleSet
from nuctut.training import Jitter


@dataclasses.dataclass(frozen=True)
class Settings:
    """Some settings of a chapter: of the data, the network, the fit, and what comes after it."""

    data: str = "auto"
    images: int | None = None
    channels: tuple[int, ...] = (4, 8)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 3
    learning_rate: float = 1e-3
    patience: int | None = 7
    threshold: float = 0.5
    min_area: int = 0


SETTINGS = Settings()


def samples(split: str = "training", shapes: tuple = ((40, 52), (64, 36)), **about) -> SampleSet:
    """RGB images of two blocks each, every pixel with its own colour, and tags."""
    made = {}
    for index, shape in enumerate(shapes):
        labels = np.zeros(shape, np.int32)
        labels[3:13, 4:14], labels[20:28, 18:30] = 1, 2
        image = np.arange(labels.size * 3, dtype=np.uint16).reshape(*shape, 3)
        key = f"{split}_{index}"
        made[key] = Sample(key, image, labels, {"modality": ("stained", "fluorescence")[index % 2]})
    about = {"name": "bbbc039", "source": "simulated", "fingerprint": f"{split}0"} | about
    return SampleSet(list(made), made.__getitem__, split=split, **about)


def mask(sample: Sample) -> np.ndarray:
    return (sample.labels > 0).astype(np.uint8)


# --- settings -----------------------------------------------------------------------------------


def test_presets_are_columns():
    sources, widths = ("auto", "real", "real"), ((2,), (4,), (8,))
    made = experiments.presets(Settings, data=sources, epochs=(1, 2, 3), channels=widths)
    smoke, lite, paper = (
        Settings(data=source, epochs=epochs, channels=channels)
        for source, epochs, channels in zip(sources, (1, 2, 3), widths, strict=True)
    )
    read = dataclasses.replace(lite, data="auto")  # what lite measured, on whatever there is
    assert made == {"read": read, "smoke": smoke, "lite": lite, "paper": paper}
    assert set(made) == set(records.PRESETS)
    for short in ((1, 2), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match="zip"):
            experiments.presets(Settings, epochs=short, channels=widths)


def test_single_values_override_a_preset():
    made = {"smoke": SETTINGS, "lite": Settings(epochs=9)}
    assert experiments.choose(made, "lite") == made["lite"]
    chosen = experiments.choose(made, "lite", images=1, learning_rate=None, min_area=0)
    assert chosen == Settings(epochs=9, images=1)
    with pytest.raises(ValueError, match="one of smoke, lite, not 'papper'"):
        experiments.choose(made, "papper")
    with pytest.raises(TypeError, match="epocs"):
        experiments.choose(made, "lite", epocs=3)


def test_settings_hand_on_what_a_fit_needs():
    made = experiments.fit_settings(SETTINGS, seed=5, device="cpu")
    expected = {"epochs": 3, "learning_rate": 1e-3, "patience": 7, "seed": 5, "device": "cpu"}
    assert made == training.FitSettings(**expected)


# --- the key of a fit ---------------------------------------------------------------------------


def key(*parts: Any, code: tuple[str, ...] = ("targets",)) -> str:
    return experiments.fit_key(*parts, code=code)


def test_a_key_is_sixteen_hex_digits_and_always_the_same():
    assert len(key("a", SETTINGS, samples())) == 16 and int(key("a"), 16) >= 0
    assert key("a", SETTINGS, samples()) == key("a", Settings(), samples())


@pytest.mark.parametrize(
    ("name", "value", "another"),
    [
        ("channels", (4, 9), True),
        ("options", {"depth": 18}, True),
        ("epochs", 4, True),
        ("learning_rate", 2e-3, True),
        ("patience", None, True),
        ("threshold", 0.6, False),
        ("min_area", 30, False),
    ],
)
def test_what_acts_after_the_fit_is_no_part_of_its_key(name, value, another):
    changed = dataclasses.replace(SETTINGS, **{name: value})
    assert (key("a", changed) != key("a", SETTINGS)) is another


def test_names_data_and_fit_settings_are_part_of_the_key():
    how = training.FitSettings(epochs=1)
    keys = [
        key("a", samples(), how),
        key("b", samples(), how),
        key("a", samples(fingerprint="other"), how),
        key("a", samples().take(1), how),
        key("a", samples(), dataclasses.replace(how, seed=1)),
        key("a", samples("validation"), samples(), how),
        key("a", samples(), samples("validation"), how),
        key("a", samples(), how, code=("targets", "losses")),
        key("ab", how),
        key("a", "b", how),
    ]
    assert len(set(keys)) == len(keys)


def test_other_code_is_another_fit(monkeypatch, tmp_path):
    modules = ("targets", "models/unet")
    originals = {name: Path(training.__file__).parent / f"{name}.py" for name in modules}
    (tmp_path / "models").mkdir()
    for name, path in originals.items():
        (tmp_path / f"{name}.py").write_text(path.read_text())
    monkeypatch.setattr(training, "__file__", str(tmp_path / "training.py"))
    before, only = key("a", code=modules), key("a", code=("targets",))
    for name in modules:
        path = tmp_path / f"{name}.py"
        source = path.read_text()
        start, body = source.split('"""', 2)[1:]
        path.write_text(f'# new\n"""Says {start}"""\n\n\n{body}\n# another\n')
        assert key("a", code=modules) == before  # comments, layout and docstrings do not count
        path.write_text(source + "\nMORE = 1\n")
        assert key("a", code=modules) != before
        assert (key("a", code=("targets",)) != only) is (name == "targets")
        path.write_text(source)
    assert key("a", code=modules) == before


# --- what a network is fed ----------------------------------------------------------------------


def test_validation_sees_one_large_crop_of_every_image_at_every_seed():
    for seed in (0, 1):
        how = {
            "size": 16,
            "jitter": Jitter(gain=0.1),
            "seed": seed,
            "scale": "log",
            "progress": False,
        }
        learned = experiments.random_crops(samples("training"), mask, **how)
        item = learned[0, 0]
        assert item["image"].shape == (3, 16, 16) and item["classes"].shape == (16, 16)
        assert (learned.seed, learned.jitter.gain, learned.size) == (seed, 0.1, 16)
        checked = experiments.random_crops(samples("validation"), mask, **how)
        assert (checked.seed, checked.jitter, checked.size) == (0, Jitter(), 32)
        assert checked[1, 0]["image"].shape == (3, 32, 32)
        for items, split in ((learned, "training"), (checked, "validation")):
            assert list(items.keys) == [f"{split}_0", f"{split}_1"]
            for made, sample in zip(items.images, samples(split), strict=True):
                np.testing.assert_array_equal(made, targets.standardise(sample.image, "log"))
            for made, sample in zip(items.classes, samples(split), strict=True):
                np.testing.assert_array_equal(made, mask(sample))


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([(64, 80)], 64),
        ([(63, 80)], 48),
        ([(520, 696), (256, 320)], 256),
        ([(520, 696)], 512),
        ([(1040, 1388), (2000, 600)], 512),
        ([(520, 300), (700, 531)], 288),
    ],
)
def test_the_side_of_the_validations_crops(shapes, size):
    for order in (shapes, shapes[::-1]):
        split = samples("validation", order)
        items = experiments.random_crops(split, mask, size=16, progress=False)
        assert items[0, 0]["classes"].shape == (size, size)


# --- measuring and recording --------------------------------------------------------------------


def half_right(sample: Sample) -> Segmented:
    """Finds the first nucleus of every image, in a time that its key tells."""
    index = int(sample.key[-1])
    seconds = {"seconds_per_image": 0.25 + index, "seconds_per_tile": 2.0 * index}
    labels = np.where(sample.labels == 1, 1, 0).astype(np.int32)
    return Segmented(labels, seconds, {"object_pred": np.zeros_like(labels)})


def test_a_method_is_measured_image_by_image():
    test_set = samples("test")
    measured = experiments.measure("half", half_right, test_set, progress=False)
    assert measured.variant == "half" and measured.test_set is test_set
    assert [row["key"] for row in measured.rows] == ["test_0", "test_1"]
    assert [row["tags"] for row in measured.rows] == [
        {"modality": "stained"},
        {"modality": "fluorescence"},
    ]
    assert [row["seconds"] for row in measured.rows] == [0.25, 1.25]
    assert measured.seconds == {"seconds_per_image": 0.75, "seconds_per_tile": 1.0}
    assert all(
        row["match"]["0.50"]["tp"] == row["match"]["0.50"]["fn"] == 1 for row in measured.rows
    )
    assert all(row["object"]["n_pred"] == 0 for row in measured.rows)  # what else it was told
    assert measured.scores == pytest.approx(records.scores(measured.rows), nan_ok=True)
    assert measured.scores["f1_50"] == pytest.approx(2 / 3)


class Chapter:
    """A chapter's module, as far as a record asks it."""

    @staticmethod
    def code(variant: str) -> tuple[str, ...]:
        return ("targets",)


@dataclasses.dataclass(frozen=True)
class Fitted:
    fit: fits.FitResult
    parameters: Mapping[str, Any]
    experiment: type = Chapter
    variant: str = "half"


PROVENANCE = {
    "git_commit": "0123abc",
    "code": experiments.code_digest(("targets",)),
    "started": "2026-01-01T10:00:00+00:00",
    "ended": "2026-01-01T11:00:00+00:00",
    "weights_sha256": "a" * 64,
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where records of simulated data go, apart from the checkout's."""
    for marker in ("pyproject.toml", "_config.yml"):
        (tmp_path / marker).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUCTUT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs" / "results" / "some_chapter"


@pytest.fixture
def measured() -> Measured:
    return experiments.measure("half", half_right, samples("test"), progress=False)


def test_a_fits_budget_and_settings_are_recorded(folder, measured):
    budget = {
        "updates": 12,
        "images_seen": 24,
        "seconds": 3.5,
        "weights": 1234,
        "device": "an abacus",
        "precision": "bf16",
        "peak_memory_gb": 1.25,
    }
    fit = fits.FitResult(**budget, **PROVENANCE, best=Path("best"), history=pd.DataFrame())
    trained = Fitted(fit, {"channels": (4, 8), "network": "half a network"})
    how = {"trained": trained, "train_set": samples("training"), "labels": "shape/shape"}
    made = experiments.record("some_chapter", measured, preset="lite", seed=4, **how)
    read = records.read(folder / "half--lite--s4.json")
    assert (read.chapter, read.variant, read.preset, read.seed) == (
        "some_chapter",
        "half",
        "lite",
        4,
    )
    expected = budget | {"seconds_per_image": 0.75, "seconds_per_tile": 1.0}
    assert read.budget == made.budget == expected
    assert read.parameters == {"channels": [4, 8], "network": "half a network"}
    assert read.images == measured.rows and read.images[0]["tags"] == {"modality": "stained"}
    assert read.data["training"]["labels"] == "shape/shape"
    assert read.data["training"]["fingerprint"] == "training0"
    assert read.fit == made.fit == PROVENANCE | {"accepted_old_code": False}


def test_a_method_without_training_has_no_budget(folder, measured, tmp_path):
    made = experiments.record("some_chapter", measured, preset="smoke", seed=0)
    assert (made.budget["updates"], made.budget["seconds"]) == (0, 0.0)
    assert made.budget["precision"] == "none" and made.budget["seconds_per_image"] == 0.75
    assert made.parameters == {} and made.data["training"] is None
    assert (folder / "half--smoke--s0.json").exists()
    elsewhere = tmp_path / "elsewhere"
    experiments.record("some_chapter", measured, preset="smoke", seed=0, folder=elsewhere)
    assert len(list(elsewhere.rglob("half--smoke--s0.json"))) == 1


def test_variants_are_chosen_by_name():
    known = {"simple-cnn": 0, "u-net": 1, "resnet": 2}
    assert experiments.select("all", known, "networks") == list(known)
    assert experiments.select("u-net", known, "networks") == ["u-net"]
    assert experiments.select("u-net, simple-cnn", known, "networks") == ["u-net", "simple-cnn"]
    for wrong in ("unet", "", "u-net,,resnet", "all,u-net"):
        with pytest.raises(ValueError, match=r"networks must be among simple-cnn, u-net, resnet"):
            experiments.select(wrong, known, "networks")
