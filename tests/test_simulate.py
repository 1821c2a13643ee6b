"""Simulated images: BBBC039's layout, the same bytes for one seed, and alike where it counts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from skimage.io import imread

from nuctut.datasets import bbbc039
from nuctut.datasets.simulated import bbbc039 as simulate
from nuctut.datasets.simulated import canvas, cells

FEW = {"training": 7, "validation": 1, "test": 1}
SHAPE = (96, 128)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "set"
    return simulate.simulate_bbbc039(folder, images=FEW, shape=SHAPE, seed=3)


def test_the_layout_on_disk_is_that_of_bbbc039(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {
        "images",
        "masks",
        "metadata",
        canvas.MARKER,
    }
    for split, count in FEW.items():
        lines = (made / "metadata" / f"{split}.txt").read_text().splitlines()
        assert len(lines) == count and all(line.endswith(".png") for line in lines)
        for line in lines:
            image = tifffile.imread(made / "images" / line.replace(".png", ".tif"))
            mask = imread(made / "masks" / line)
            assert (image.shape, image.dtype) == (SHAPE, np.uint16)
            assert (mask.shape, mask.dtype) == ((*SHAPE, 4), np.uint8)
            assert image.max() <= 4095
            assert set(np.unique(mask[..., 0])) <= {0, 1, 2, 3}
            assert not mask[..., 1:3].any() and (mask[..., 3] == 255).all()


def test_one_seed_repeats_to_the_byte_in_another_process(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from nuctut.datasets.simulated.bbbc039 import simulate_bbbc039; "
        f"simulate_bbbc039(Path(sys.argv[1]), images={FEW}, shape={SHAPE}, seed=3)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "again"], check=True, env=environment)
    assert contents(tmp_path / "again") == contents(made)


def test_two_seeds_differ_in_every_image(made: Path, tmp_path: Path) -> None:
    other = simulate.simulate_bbbc039(tmp_path / "other", images=FEW, shape=SHAPE, seed=4)
    for name, content in contents(made / "images").items():
        assert content != contents(other / "images")[name]


def test_images_of_one_set_differ(made: Path) -> None:
    images = contents(made / "images").values()
    assert len(set(images)) == len(images)


def test_a_larger_set_begins_with_the_images_of_a_smaller_one(made: Path, tmp_path: Path) -> None:
    fewer = {"training": 2, "validation": 1, "test": 1}
    small = simulate.simulate_bbbc039(tmp_path / "small", images=fewer, shape=SHAPE, seed=3)
    assert contents(small / "images").items() <= contents(made / "images").items()


def test_the_sixth_image_is_empty_and_the_others_are_not(made: Path) -> None:
    keys = bbbc039.split_keys(made, "training")
    counts = [bbbc039.read(made, key).count for key in keys]
    assert counts[5] == 0
    assert all(count > 0 for index, count in enumerate(counts) if index != 5)


@pytest.mark.parametrize("seed", range(8))
def test_every_nucleus_drawn_is_one_that_the_reader_finds(seed: int) -> None:
    field = canvas.Canvas((128, 160), np.random.default_rng(seed))
    cells.populate(field)
    found = sum(ndimage.label(field.red == colour)[1] for colour in (1, 2, 3))
    assert found == len(field.blobs) > 0


def test_touching_nuclei_have_different_colours_also_across_corners() -> None:
    _, red = cells.field_of_view(np.random.default_rng(1), (260, 348))
    corners = np.ones((3, 3))
    for colour in (1, 2, 3):
        assert ndimage.label(red == colour)[1] == ndimage.label(red == colour, corners)[1]


def test_crowds_touch_and_debris_is_there() -> None:
    fields = [cells.field_of_view(np.random.default_rng(i), (260, 348)) for i in range(6)]
    labels = [
        bbbc039.instances_from_mask(np.dstack([red, red * 0, red * 0, red])) for _, red in fields
    ]
    areas = np.concatenate([np.bincount(one.ravel())[1:] for one in labels])
    assert 0.01 < (areas < 60).mean() < 0.15
    assert 450 < np.median(areas) < 750
    touching = sum(len(_touching(one)) for one in labels) / len(areas)
    assert 0.1 < touching < 0.5


def _touching(labels: np.ndarray) -> set[int]:
    """Ids with a pixel beside another id's pixel."""
    ids: set[int] = set()
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        meet = (a > 0) & (b > 0) & (a != b)
        ids |= set(a[meet].tolist()) | set(b[meet].tolist())
    return ids


def test_an_empty_field_has_the_noise_that_offset_and_gain_say() -> None:
    image, red = cells.field_of_view(np.random.default_rng(0), (400, 400), empty=True)
    assert not red.any()
    middle = image[150:250, 150:250].astype(float)  # the lamp is nearly even there
    light = middle.mean() - canvas.OFFSET
    assert 20 < light < 100
    expected = canvas.GAIN * light + canvas.READ_NOISE**2
    assert middle.var() == pytest.approx(expected, rel=0.1)


def test_the_marker_names_the_seed(made: Path) -> None:
    text = (made / canvas.MARKER).read_text()
    assert "simulated" in text and "seed 3" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": {"train": 3}}, "training, validation, test"),
        ({"images": {"training": 1, "validation": 0, "test": 1}}, "at least 1"),
        ({"shape": (32, 200)}, "at least 64"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    arguments: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate.simulate_bbbc039(tmp_path / "set", **arguments)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(made: Path) -> None:
    before = contents(made)
    with pytest.raises(FileExistsError, match=made.name):
        simulate.simulate_bbbc039(made, images=FEW, shape=SHAPE, seed=9)
    assert contents(made) == before


def test_an_interrupted_simulation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "imsave", interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulate.simulate_bbbc039(tmp_path / "set", images=FEW, shape=SHAPE)
    assert not list(tmp_path.iterdir())
