"""Chapter 5: tiny networks, what their crops are changed by, and what is measured of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from notebook_presets import assert_it_learned, presets_of

from nuctut import experiments, optics, records
from nuctut.blurred_crops import BlindSpots, BlurredPairs, FocusPatches
from nuctut.experiments import Trained
from nuctut.experiments import through_blur as chapter
from nuctut.experiments.through_blur import NETWORKS, QC, Settings
from nuctut.models.forked_unet import weights
from nuctut.samples import Sample, SampleSet

SETTINGS = Settings(
    data="simulated",
    images=None,
    channels=(4, 4, 4, 4, 4),
    normalise=True,
    crop=64,
    scale="linear",
    gain=0.1,
    depth=8.0,
    blurred=0.5,
    rim=0,
    distance=12.0,
    smoothing=2.0,
    threshold=0.5,
    cross_entropy=1.0,
    min_area=0,
    epochs=1,
    updates=2,
    batch_size=2,
    learning_rate=3e-3,
    schedule="one-cycle",
    l2=0.0,
    precision="fp32",
    patience=None,
)
DISCS = [(20, 20, 9), (20, 38, 9), (60, 30, 9), (58, 70, 9)]
KINDS = {
    "u-net-aug": "U-Net, 4 to 4 feature maps",
    "bns-4": "U-Net, fork 4, 4 to 4 feature maps",
    "denoiseg": "U-Net with one more output, 4 to 4 feature maps",
    QC: "AlexNet, 4 feature maps in its first layer",
}


@pytest.fixture(scope="module")
def sets(scene) -> dict[str, SampleSet]:
    """Three splits of two images, four discs in each."""

    def split(name: str) -> SampleSet:
        def sample(key: str) -> Sample:
            return Sample(key, *scene((96, 104), DISCS, noise=10))

        about = {"name": "bbbc039", "split": name, "source": "simulated"}
        return SampleSet([f"one_{name}", f"two_{name}"], sample, **about, fingerprint=name)

    return {name: split(name) for name in ("training", "validation", "test")}


def train(sets, runs, variant: str, settings: Settings) -> Trained:
    how = {"device": "cpu", "runs": runs, "progress": False}
    return experiments.train(
        chapter, variant, (sets["training"], sets["validation"]), settings, **how
    )


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory) -> Callable[[str], Trained]:
    """A network of each kind, fitted when first asked for."""
    folder, made = tmp_path_factory.mktemp("fits"), {}

    def of(variant: str) -> Trained:
        if variant not in made:
            made[variant] = train(sets, folder, variant, SETTINGS)
        return made[variant]

    return of


@pytest.mark.parametrize("variant", KINDS)
def test_a_network_is_trained_and_loaded(trained, variant):
    made = trained(variant)
    assert made.name == KINDS[variant] and made.fit.updates == 2
    loaded = experiments.load(made.fit.best.parent, "cpu")
    assert (loaded.variant, loaded.name) == (variant, made.name)


@pytest.mark.parametrize("kind", ["u-nets", QC])
def test_networks_take_two_updates_of_the_paper_preset(sets, tmp_path, kind):
    paper = presets_of("05_through_blur")[kind]["paper"]
    variant = QC if kind == QC else "bns-4"
    with torch.device("meta"):  # as wide as it is, it can be built
        chapter.network(variant, paper)
    less = {"crop": 64, "epochs": 1, "updates": 2, "batch_size": 2}
    less["channels"] = (8,) * len(paper.channels)
    settings = dataclasses.replace(paper, **less)
    made = train(sets, tmp_path, variant, settings)
    torch.manual_seed(0)
    assert_it_learned(made, chapter.network(variant, settings), updates=2)


def test_networks_differ_as_their_recipes_say():
    made = {name: chapter.network(name, SETTINGS) for name in NETWORKS}
    forks = [made[f"bns-{fork}"].fork for fork in (1, 2, 3, 4)]
    assert forks == [1, 2, 3, 4] and made["denoiseg"].fork == 1
    sizes = {name: weights(model) for name, model in made.items()}
    assert sizes["bns-4"] == sizes["bns-4-without-deblurring"] > sizes["u-net-aug"]
    wider = dataclasses.replace(SETTINGS, channels=(8, 16, 32, 48, 64))
    wide, fork = (weights(chapter.network(name, wider)) for name in ("u-net-aug-wide", "bns-4"))
    assert wide == pytest.approx(fork, rel=0.02)
    losses = {name: chapter.loss(name, SETTINGS) for name in NETWORKS}
    own = {name for name, loss in losses.items() if loss is None}
    assert own == {name for name, recipe in NETWORKS.items() if recipe.fork}


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"u-net-standard, .*qc, not 'bns-5'"):
        chapter.network("bns-5", SETTINGS)


def test_what_networks_are_fed(sets):
    def fed(variant, split="training", seed=3, **changes):
        settings = dataclasses.replace(SETTINGS, **changes)
        return chapter.items(variant, sets[split], settings, seed=seed, progress=False)

    kinds = {"u-net-standard": BlurredPairs, "denoiseg": BlindSpots, QC: FocusPatches}
    for variant, kind in kinds.items():
        assert isinstance(fed(variant), kind)
    plain = fed("u-net-standard")[0, 5]
    assert torch.equal(plain["image"], plain["sharp"]) and plain["classes"].max() == 2
    changed = fed("bns-4", blurred=1.0)[0, 5]
    assert torch.equal(changed["sharp"], plain["sharp"])
    assert not torch.equal(changed["image"], plain["image"])
    # the whole outline is more boundary than the lines between what touches
    lines, rim = (fed("bns-1", rim=rim)[0, 5]["classes"] for rim in (0, 2))
    assert (rim == 2).sum() > 2 * (lines == 2).sum()
    # validation is the same whatever the seed
    first, other = (fed("bns-1", "validation", seed)[0, 0]["image"] for seed in (3, 4))
    assert torch.equal(first, other)


@pytest.mark.parametrize("variant", NETWORKS)
def test_the_share_of_crops_that_is_changed(variant):
    image = np.full((40, 40), 400, np.uint16)
    rng = np.random.default_rng(0)
    change = chapter.blur(variant, dataclasses.replace(SETTINGS, blurred=0.25, depth=4.0))
    if NETWORKS[variant].blur == "gaussian":  # which a flat image does not show
        image[20:, 20:] = 900
    changed = np.mean([(change(image, rng) != image).any() for _ in range(200)])
    share = {"none": 0, "as-tested": 10 / 11}.get(NETWORKS[variant].blur, 0.25)
    assert changed == pytest.approx(share, abs=0.1)


def test_sharp_and_blurred_do_not_overlap(monkeypatch):
    drawn = []
    monkeypatch.setattr(optics, "out_of_focus", lambda image, z, *_: drawn.append(z) or image)
    image, rng = np.full((8, 8), 300, np.uint16), np.random.default_rng(0)
    for _ in range(300):
        chapter.sharp(image, rng)
    assert max(drawn) == chapter.SHARP
    drawn.clear()
    for _ in range(300):
        chapter.blurred(8.0)(image, rng)
    assert (min(drawn), max(drawn)) == (chapter.SHARP + optics.STEP, 8.0)


# --- what is tested on ----------------------------------------------------------------------------


def test_a_stack_is_tagged_by_focus_and_crowd(sets):
    made = chapter.stack(sets["test"], 4)
    assert chapter.depths(4) == [-20, -12, -4, 0, 8, 16]
    assert len(made) == 2 * 6 and made.split == "test-defocused"
    tags = {one.tags["z"]: one.tags for one in made}
    assert [z for z, of in tags.items() if of["focus"] == "sharp"] == ["-4", "0"]
    assert len({one.tags["field"] for one in made}) == 2
    assert {of["crowded"] for of in tags.values()} == {"no"}  # two of four touch: not more


def test_planes_of_bbbc006_are_sharp_where_the_paper_says_so(sets):
    def at(plane):
        z = 2 * (plane - 16)
        tags = {"plane": str(plane), "z": str(z)}
        one = sets["test"].changed(str(plane), lambda s: dataclasses.replace(s, tags=tags))
        return chapter.tagged(one)[0].tags["focus"]

    assert [at(plane) for plane in (0, 10, 11, 23, 24)] == ["blurred"] * 2 + ["sharp"] * 2 + [
        "blurred"
    ]


def test_without_the_real_planes_there_are_simulated_ones():
    made = chapter.z0_fields("simulated")
    assert made.describe() == "bbbc006 test-blurred (simulated, 3 images)"
    assert {one.tags["plane"] for one in made} == {"0"}
    assert {one.tags["focus"] for one in made} == {"blurred"}


# --- measuring ------------------------------------------------------------------------------------


def test_one_answer_is_measured_in_several_ways(trained, sets):
    stack = chapter.stack(sets["test"], 20)
    verdicts = {key: float(key.endswith("_z-20")) for key in stack.keys}
    ways = chapter.ways("bns-4", SETTINGS, verdicts)
    made = chapter.measure(trained("bns-4"), stack, ways, verdicts, progress=False)
    names = ["bns-4", "bns-4-without-postprocessing", "bns-4-qc"]
    assert [one.variant for one in made] == names
    whole, cut, told = made
    for key, a, b, c in zip(stack.keys, whole.rows, cut.rows, told.rows, strict=True):
        assert c["match"] == (a if verdicts[key] else b)["match"]
    assert whole.rows[0]["tags"]["z"] == "-20" and whole.seconds["seconds_per_image"] > 0
    assert list(chapter.ways("u-net-aug", SETTINGS, verdicts)) == [
        "u-net-aug",
        "u-net-aug-without-postprocessing",
    ]
    assert list(chapter.ways("bns-1", SETTINGS, verdicts)) == ["bns-1"]
    assert {row["tags"][chapter.CHANCE] for row in told.rows} == {"1.000", "0.000"}
    assert chapter.CHANCE not in whole.rows[0]["tags"]


def test_the_control_is_right_where_it_calls_blurred_what_is_beyond_5_um():
    said = [("a", "0", "0.1"), ("b", "-4", "0.6"), ("c", "8", "0.7"), ("d", "-20", "0.4")]
    rows = [{"key": key, "tags": {"z": z, chapter.CHANCE: p}} for key, z, p in said]
    table = chapter.judged_by_control(rows)
    assert table["called blurred"].tolist() == [False, True, True, False]
    assert table["right"].tolist() == [True, False, True, False]


def test_denoiseg_has_a_threshold_of_its_own_and_the_papers_post_processing(trained, sets):
    made = chapter.ways("denoiseg", SETTINGS, {})
    assert list(made) == ["denoiseg", "denoiseg-postprocessed"]
    chances = np.full((3, 40, 40), 0.1, np.float32)
    chances[1, 10:30, 10:30] = 0.45  # the most probable, and yet below the threshold
    assert made["denoiseg"](None).labels(chances).max() == 0
    assert made["denoiseg-postprocessed"](None).labels(chances).max() == 1
    chosen = chapter.with_threshold(trained("denoiseg"), sets["validation"], [0.0, 0.999])
    assert chosen.settings.threshold in (0.0, 0.999)
    assert chosen.rule.labels(chances).max() == (chosen.settings.threshold == 0.0)


def test_the_quality_control_gives_chances_and_no_nuclei(trained, sets):
    chances = chapter.chances(trained(QC), sets["test"])
    assert chances.keys() == set(sets["test"].keys)
    assert all(0 <= chance <= 1 for chance in chances.values())
    with pytest.raises(ValueError, match="finds no nuclei"):
        chapter.rule(QC, SETTINGS)


def test_the_watershed_can_be_left_out():
    assert (chapter.watershed(SETTINGS).reach, SETTINGS.distance) == (128, 12.0)
    chances = np.zeros((3, 40, 80), np.float32)
    y, x = np.ogrid[:40, :80]
    discs = [(y - 20) ** 2 + (x - centre) ** 2 <= 15**2 for centre in (25, 51)]
    chances[1] = discs[0] | discs[1]
    chances[0] = 1 - chances[1]
    assert chapter.watershed(SETTINGS).labels(chances).max() == 2
    assert chapter.watershed(SETTINGS, math.inf).labels(chances).max() == 1


def test_a_score_at_each_depth(trained, sets):
    stack = chapter.stack(sets["test"], 20)
    (made, *_) = chapter.measure(
        trained("u-net-aug"), stack, chapter.ways("u-net-aug", SETTINGS, {}), progress=False
    )
    for row in made.rows:  # as if all were found in focus, and half out of it
        tp = 4 if row["tags"]["z"] == "0" else 2
        for match in row["match"].values():
            match |= {"tp": tp, "fp": 0, "fn": 4 - tp, "iou_sum": float(tp)}
    one = records.Record.of_run(
        chapter="05_through_blur",
        variant="u-net-aug",
        preset="smoke",
        seed=1,
        data=records.describe_data(stack),
        images=made.rows,
        budget={"updates": 2, "images_seen": 4, "seconds": 1.0, "precision": "fp32"},
        parameters={},
    )
    table = chapter.by_depth([one])
    assert table["z"].tolist() == [-20, 0]
    assert table["score"].tolist() == pytest.approx([2 / 3, 1])
    assert set(table["variant"]) == {"U-Net (aug)"} and set(table["seed"]) == {1}
