"""A trained network for other tools: they get what nuctut computes, or nothing at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nuctut import cli, datasets, experiments, inference, targets
from nuctut.experiments import four_architectures, labels_for_free
from nuctut.own_images import export
from nuctut.paths import project_root
from nuctut.samples import Sample, SampleSet

pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("bioimageio.core")

COMMON = {
    "data": "simulated",
    "images": 1,
    "crop": 32,
    "gain": 0.1,
    "cross_entropy": 1.0,
    "min_area": 7,
    "epochs": 1,
    "updates": 1,
    "batch_size": 1,
    "learning_rate": 3e-3,
    "schedule": "constant",
    "l2": 1e-5,
    "precision": "bf16",  # what is exported is fp32 all the same
    "patience": None,
}
SMALL = (4, 4, 4, 4, 4)
FREE = labels_for_free.Settings(
    **COMMON,
    scale="log",
    channels=SMALL,
    last_channels=4,
    dropout=(0.1,) * 4,
    normalise=True,
)
FOUR = four_architectures.Settings(
    **COMMON,
    scale="linear",
    options={},
    pretrained=False,
    colour=0.1,
    zoom=1.0,
    gamma=0.0,
    balance=False,
    iou=1.0,
    threshold=0.4,
)


def fit(image: np.ndarray, labels: np.ndarray, variant: str, settings, runs: Path) -> Path:
    """The folder of a fit to one image."""
    sample = Sample("one", image, labels)
    about = {
        "name": "bbbc039" if image.ndim == 2 else "dsb2018",
        "source": "simulated",
        "fingerprint": "ab",
    }
    sets = [
        SampleSet(["one"], lambda _: sample, split=split, **about)
        for split in ("training", "validation")
    ]
    how = {"device": "cpu", "runs": runs, "progress": False}
    if image.ndim == 2:
        how["teach"] = lambda one: targets.three_classes(one.labels)
    chapter = labels_for_free if image.ndim == 2 else four_architectures
    trained = experiments.train(chapter, variant, tuple(sets), settings, **how)
    return trained.fit.best.parent


@pytest.fixture(scope="module")
def fits(scene, tmp_path_factory) -> dict[str, Path]:
    """Folders of fits by the variant and the scale of their intensities."""
    runs = tmp_path_factory.mktemp("runs")
    grey, labels = scene((64, 64), [(20, 20, 8), (44, 40, 9)])
    colour = np.stack([grey // 16, grey // 20, grey // 32], axis=-1).astype(np.uint8)
    raw = dataclasses.replace(FOUR, scale="range", options={"channels": SMALL})
    plain = dataclasses.replace(FOUR, options={"channels": 4})
    return {
        "three-classes": fit(grey, labels, "dl-ground-truth", FREE, runs),
        "u-net": fit(colour, labels, "u-net", raw, runs),
        "simple-cnn": fit(colour, labels, "simple-cnn", plain, runs),
    }


def ours(folder: Path, image: np.ndarray) -> np.ndarray:
    """(C, H, W) float32: the fit's network with its normalisation, one image at a time."""
    trained = experiments.load(folder, device="cpu")
    scale = trained.settings.scale
    return inference.predict(
        trained.model, image, normalise=lambda one: targets.standardise(one, scale)
    )


def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What another tool makes of (B, channels, H, W) counts."""
    loaded = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda counts: loaded.run(None, {"image": counts.astype(np.float32)})[0]


def channels_first(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.atleast_3d(image), -1, 0)


# --- ONNX ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(fits, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {name: export.export(fit, folder / f"{name}.onnx") for name, fit in fits.items()}


@pytest.mark.parametrize("shape", [(64, 96), (112, 80)])
@pytest.mark.parametrize("name", ["three-classes", "u-net", "simple-cnn"])
def test_raw_counts_become_our_probabilities_whatever_the_size(fits, networks, name, shape):
    rng = np.random.default_rng(3)
    colours = () if name == "three-classes" else (3,)
    kind = np.uint16 if name == "three-classes" else np.uint8
    # the second of another brightness: each is normalised by itself
    batch = [rng.integers(0, top, (*shape, *colours)).astype(kind) for top in (250, 90)]
    found = session(networks[name])(np.stack([channels_first(image) for image in batch]))
    for image, chances in zip(batch, found, strict=True):
        np.testing.assert_allclose(chances, ours(fits[name], image), atol=1e-4)


@pytest.mark.parametrize("name", ["three-classes", "u-net", "simple-cnn"])
def test_a_constant_image_gives_finite_probabilities_and_ours(fits, networks, name):
    image = np.full((64, 64), 1234, np.uint16)
    if name != "three-classes":
        image = np.full((64, 64, 3), 200, np.uint8)
    (chances,) = session(networks[name])(channels_first(image)[None])
    assert np.isfinite(chances).all()
    np.testing.assert_allclose(chances, ours(fits[name], image), atol=1e-4)


def test_the_normalisation_is_that_of_our_images():
    """The logits of the identity are the normalised pixels; sigmoid can be undone."""
    image = np.random.default_rng(0).normal(900, 80, (64, 64)).round().astype(np.uint16)
    counts = torch.from_numpy(image.astype(np.float32))[None, None]
    for scale in ("linear", "log", "range"):
        chances = export.FromCounts(torch.nn.Identity(), scale, 65535)(counts)[0, 0]
        np.testing.assert_allclose(
            torch.logit(chances.double()), targets.standardise(image, scale), atol=1e-4
        )


def test_a_network_that_differs_is_not_written(fits, tmp_path, monkeypatch):
    monkeypatch.setattr(export.FromCounts, "_normalised", lambda self, counts: counts / 1000)
    with pytest.raises(RuntimeError, match=r"differs from ours by up to .* nothing was written"):
        export.export(fits["three-classes"], tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


# --- bioimage.io ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["three-classes", "u-net"])
def package(request, fits, tmp_path_factory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("packages") / "net.zip"
    return request.param, export.export(fits[request.param], path)


def content(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def test_a_package_holds_its_validated_test_and_says_what_it_is(package, fits):
    name, path = package
    export.check_package(path)
    tested = np.load(io.BytesIO(content(path, "test-input.npy")))
    assert tested.dtype == np.float32 and tested.shape[2:] == (128, 128)
    image = np.moveaxis(tested[0], 0, -1).squeeze()
    image = image.astype(np.uint16 if name == "three-classes" else np.uint8)
    given = np.load(io.BytesIO(content(path, "test-output.npy")))
    np.testing.assert_allclose(given[0], ours(fits[name], image), atol=1e-6)

    readme = content(path, "README.md").decode()
    assert "learned from simulated images alone (1," in readme and "seed 0" in readme
    assert "Nuclei of fewer than 7 pixels are dropped." in re.sub(r"\s+", " ", readme)
    told = {"three-classes": "0.656 µm", "u-net": "counts are divided by 255"}
    assert told[name] in readme and "{" not in readme.partition("```json")[0]
    if name == "u-net":
        assert "probability exceeds 0.4 belongs" in readme


def test_the_validator_knows_axes_pixels_authors_and_licence(package):
    from bioimageio.spec import load_model_description

    name, path = package
    made = load_model_description(path, perform_io_checks=False)
    assert [a.name for a in made.authors] == ["The nuctut authors"]
    assert made.license == "BSD-3-Clause"
    y = made.inputs[0].axes[2]
    assert (y.id, y.size.min, y.size.step) == ("y", 64, 16)
    assert (y.scale, y.unit) == ((0.656, "micrometer") if name == "three-classes" else (1.0, None))
    classes = {"three-classes": ["background", "nucleus", "separation"], "u-net": ["nucleus"]}
    assert made.outputs[0].axes[1].channel_names == classes[name]


def test_the_test_image_is_simulated_and_never_of_the_data_on_disk(package, monkeypatch):
    name, path = package
    monkeypatch.setattr(datasets, "load", None)  # whoever looks for data, fails
    data = "bbbc039" if name == "three-classes" else "dsb2018"
    expected = channels_first(export._simulated_image(datasets.REGISTRY[data])).astype(np.float32)
    np.testing.assert_array_equal(np.load(io.BytesIO(content(path, "test-input.npy")))[0], expected)


def changed(path: Path, copy: Path, name: str, edit: Callable[[bytes], bytes]) -> Path:
    """A copy of a package with one of its files edited, and its checksum with it."""
    with zipfile.ZipFile(path) as archive:
        files = {one: archive.read(one) for one in archive.namelist()}
    digests = [hashlib.sha256(files[name]).hexdigest()]
    files[name] = edit(files[name])
    digests.append(hashlib.sha256(files[name]).hexdigest())
    files["rdf.yaml"] = files["rdf.yaml"].replace(*(one.encode() for one in digests))
    with zipfile.ZipFile(copy, "w") as archive:
        for one, text in files.items():
            archive.writestr(one, text)
    return copy


def fainter(file: bytes) -> bytes:
    written = io.BytesIO()
    np.save(written, np.load(io.BytesIO(file)) * np.float32(0.9))
    return written.getvalue()


def test_a_package_whose_output_was_changed_fails_validation(package, tmp_path):
    _, path = package
    copy = changed(path, tmp_path / "changed.zip", "test-output.npy", fainter)
    with pytest.raises(RuntimeError, match=r"not accept the package: weights\.onnx: .* disagree"):
        export.check_package(copy)
    same = changed(path, tmp_path / "same.zip", "test-output.npy", bytes)
    export.check_package(same)


def test_a_package_that_fails_validation_is_not_written(fits, tmp_path, monkeypatch):
    monkeypatch.setattr(export.FromCounts, "_normalised", lambda self, counts: counts)
    monkeypatch.setattr(export, "_check_onnx", lambda *_: None)  # so that the validator sees it
    with pytest.raises(RuntimeError, match=r"not accept the package: weights\.onnx: .* disagree"):
        export.export(fits["three-classes"], tmp_path / "net.zip")
    assert list(tmp_path.iterdir()) == []


OUTSIDE = """
import sys
from pathlib import Path
from nuctut import paths
paths.MARKERS = ("no file of this name",)  # an installed package, outside every clone
from nuctut import cli
sys.argv = ["nuctut", "export", "--run", sys.argv[1], "-o", sys.argv[2]]
cli.main()
"""


@pytest.mark.slow
def test_a_package_is_written_without_a_clone(fits, tmp_path, monkeypatch):
    for name in ("NUCTUT_DATA", "NUCTUT_RUNS"):
        monkeypatch.delenv(name, raising=False)
    words = [sys.executable, "-c", OUTSIDE, fits["simple-cnn"], tmp_path / "net.zip"]
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert b"The nuctut authors" in content(tmp_path / "net.zip", "rdf.yaml")


def test_the_installed_package_names_the_authors_that_are_to_be_cited():
    citation = yaml.safe_load((project_root() / "CITATION.cff").read_text(encoding="utf-8"))
    parts = ("name", "given-names", "family-names")
    cited = [" ".join(a[part] for part in parts if part in a) for a in citation["authors"]]
    assert export._authors() == cited


# --- what cannot be exported ---------------------------------------------------------------------


def test_mask_r_cnn_gives_no_map(scene, tmp_path):
    grey, labels = scene((64, 64), [(20, 20, 8), (44, 40, 9)])
    colour = np.stack([grey // 16] * 3, axis=-1).astype(np.uint8)
    settings = dataclasses.replace(FOUR, options={"depth": 18, "width": 8})
    folder = fit(colour, labels, "mask-rcnn", settings, tmp_path / "runs")
    with pytest.raises(ValueError, match=r"mask-rcnn gives nuclei one by one"):
        export.export(folder, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_another_ending_an_existing_file_and_a_missing_folder_are_refused(fits, tmp_path):
    folder = fits["three-classes"]
    with pytest.raises(ValueError, match=r"net\.pt: the name must end in \.onnx, or in \.zip"):
        export.export(folder, tmp_path / "net.pt")
    there = tmp_path / "net.onnx"
    there.write_text("mine")
    with pytest.raises(FileExistsError, match="give another name, or delete it first"):
        export.export(folder, there)
    assert there.read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        export.export(folder, tmp_path / "nowhere" / "net.onnx")


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "bioimageio.core"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    fits, tmp_path, monkeypatch, library
):
    monkeypatch.setitem(sys.modules, library, None)
    told = rf"needs {re.escape(library)}, .*pip install 'nuctut\[export\]'"
    with pytest.raises(RuntimeError, match=told):
        export.export(fits["three-classes"], tmp_path / "net.onnx")


def test_the_command_exports_and_tells_errors_in_one_line(fits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUCTUT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()

    def call(run: Path | str, output: Path) -> int:
        monkeypatch.setattr(sys, "argv", ["nuctut", "export", "--run", str(run), "-o", str(output)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    output = tmp_path / "net.onnx"
    assert call(fits["simple-cnn"], output) == 0
    assert capsys.readouterr().out.strip() == str(output) and output.is_file()
    assert call(fits["simple-cnn"], output) == 1
    assert re.fullmatch(r"Error: .*net\.onnx exists already: .*\n", capsys.readouterr().err)
    assert call("nope", tmp_path / "other.onnx") == 1
    assert capsys.readouterr().err.startswith("Error: 'nope' names none")
