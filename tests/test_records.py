"""Records: what is counted, what follows from it, and that a file is whole or refused."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from made_records import record, row, rows

from nuctut import machine, metrics, records
from nuctut.samples import SampleSet


def squares(*corners, size=6, shape=(30, 30)):
    """Labels of squares with these top left corners."""
    labels = np.zeros(shape, np.int32)
    for number, (y, x) in enumerate(corners, start=1):
        labels[y : y + size, x : x + size] = number
    return labels


# --- rows and scores ----------------------------------------------------------------------------


def test_a_row_counts_what_is_there():
    # one nucleus found exactly, one shifted by 2 of 6 columns (IoU 24/48), one missed, one invented
    true = squares((2, 2), (2, 12), (12, 2))
    pred = squares((2, 2), (2, 14), (12, 20))
    made = records.image_row("a", true, pred, seconds=0.25)
    assert made["n_true"] == 3
    assert made["match"]["0.50"] == {"tp": 2, "fp": 1, "fn": 1, "iou_sum": 1.5}
    assert made["match"]["0.55"] == {"tp": 1, "fp": 2, "fn": 2, "iou_sum": 1.0}
    assert made["object"] == {"n_true": 3, "n_pred": 3, "matched": 2}
    assert made["nuclei"] == {"tp": 60, "fp": 48, "fn": 48, "tn": 900 - 156}
    assert made["separations"] is None
    assert made["aggregated_jaccard"] == pytest.approx(60 / 156, abs=1e-6)
    assert made["seconds"] == 0.25


def test_object_pred_is_used_for_the_object_jaccard_only():
    labels = squares((5, 5), size=12)
    cut = labels.copy()
    cut[:, 11] = 0
    cut[:, 12:][cut[:, 12:] > 0] = 2
    made = records.image_row("a", labels, labels, object_pred=cut)
    assert made["object"] == {"n_true": 1, "n_pred": 2, "matched": 0}
    assert made["match"]["0.95"]["tp"] == 1
    assert made["nuclei"]["fn"] == 0


def test_masks_given_replace_those_of_the_labels():
    labels = squares((5, 5))
    inner = squares((6, 6), size=4) > 0
    made = records.image_row(
        "a", labels, labels, nuclei_true=labels > 0, nuclei_pred=inner,
        separations_true=inner, separations_pred=labels > 0,
    )  # fmt: skip
    assert made["nuclei"] == {"tp": 16, "fp": 0, "fn": 20, "tn": 864}
    assert made["separations"] == {"tp": 16, "fp": 20, "fn": 0, "tn": 864}


def test_one_separation_mask_alone_is_refused():
    with pytest.raises(ValueError, match=r"image 7.*both"):
        records.image_row("image 7", squares(), squares(), separations_true=squares() > 0)


def test_pooled_weighs_nuclei_and_the_mean_weighs_images():
    made = rows((90, 5, 5), (0, 5, 5))
    assert records.scores(made)["average_precision_50"] == pytest.approx(90 / 110)
    assert records.scores(made)["f1_50"] == pytest.approx(180 / 200)
    assert records.scores(made)["object_jaccard"] == pytest.approx(90 / 110)
    assert records.scores(made)["dice_nuclei"] == pytest.approx(180 / 200)
    means = records.scores_per_image_mean(made)
    assert means["average_precision_50"] == pytest.approx(0.45)
    assert means["f1_50"] == pytest.approx(180 / 190 / 2)
    assert means["aggregated_jaccard"] == pytest.approx(0.45)


def test_mean_average_precision_is_the_mean_over_thresholds():
    made = rows((10, 0, 0))
    for threshold in records.THRESHOLD_KEYS[5:]:
        made[0]["match"][threshold] = {"tp": 0, "fp": 10, "fn": 10, "iou_sum": 0.0}
    assert records.scores(made)["mean_average_precision"] == pytest.approx(0.5)
    assert records.scores(made)["average_precision_50"] == 1


def test_an_image_empty_on_both_sides_changes_nothing():
    full, empty = (8, 1, 3), (0, 0, 0)
    assert records.scores(rows(full, empty)) == records.scores(rows(full))
    assert records.scores_per_image_mean(rows(full, empty)) == records.scores_per_image_mean(
        rows(full)
    )
    assert all(math.isnan(value) for value in records.scores(rows(empty)).values())
    assert all(math.isnan(value) for value in records.scores_per_image_mean(rows(empty)).values())


def test_an_image_empty_on_one_side_scores_0():
    assert set(records.scores(rows((0, 4, 0))).values()) == {0.0}
    assert set(records.scores_per_image_mean(rows((0, 0, 4))).values()) == {0.0}


def test_scores_agree_with_metrics_on_random_labels():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(4):
        corners = [(y, x) for y in range(1, 40, 9) for x in range(1, 40, 9)]
        moved = [(y + rng.integers(3), x + rng.integers(3)) for y, x in corners]
        pairs.append((squares(*corners[:20], shape=(60, 60)), squares(*moved, shape=(60, 60))))
    made = [records.image_row(str(i), t, p) for i, (t, p) in enumerate(pairs)]
    scores, means = records.scores(made), records.scores_per_image_mean(made)
    matches = [metrics.match(t, p, metrics.IOU_THRESHOLDS) for t, p in pairs]
    by_threshold = [metrics.pool(at) for at in zip(*matches, strict=True)]
    objects = [metrics.object_jaccard(t, p) for t, p in pairs]
    pixels = [metrics.pixel_scores(t > 0, p > 0) for t, p in pairs]
    aggregated = [metrics.aggregated_jaccard(t, p) for t, p in pairs]
    assert scores["f1_50"] == pytest.approx(by_threshold[0].f1)
    assert scores["mean_average_precision"] == pytest.approx(
        metrics.mean_average_precision(by_threshold)
    )
    assert scores["object_jaccard"] == pytest.approx(metrics.pool(objects).jaccard)
    assert scores["dice_nuclei"] == pytest.approx(metrics.pool(pixels).dice)
    assert math.isnan(scores["dice_separations"])
    assert means["object_jaccard"] == pytest.approx(metrics.per_image_mean(objects, "jaccard"))
    assert means["aggregated_jaccard"] == pytest.approx(np.mean(aggregated), abs=1e-6)


@pytest.mark.parametrize("metric", records.POOLED_METRICS)
def test_weights_mean_drawing_an_image_that_often(metric):
    made = rows((5, 1, 0), (2, 2, 2), (0, 0, 0), (7, 0, 9))
    drawn = np.array([[1, 1, 1, 1], [0, 3, 1, 0], [2, 0, 0, 2]])
    expected = [
        records.pooled([made[i] for i in range(4) for _ in range(line[i])], metric)
        for line in drawn
    ]
    assert records.pooled(made, metric, drawn) == pytest.approx(expected)


def test_what_cannot_be_pooled_is_refused():
    with pytest.raises(ValueError, match=r"aggregated_jaccard.*object_jaccard"):
        records.pooled(rows((1, 0, 0)), "aggregated_jaccard")
    with pytest.raises(ValueError, match="no metric"):
        records.per_image(rows((1, 0, 0)), "accuracy")


# --- files --------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    made = record(rows((8, 1, 3), (4, 0, 0)), seed=3, preset="paper")
    path = records.write(made, tmp_path)
    assert path == tmp_path / "01_labels_for_free" / "dl-ground-truth--paper--s3.json"
    again = records.read(path)
    assert again == made
    assert again.path == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_score_that_is_not_there_is_null_in_the_file_and_nan_in_memory(tmp_path):
    images = [row("a", 3, separations=False)]
    path = records.write(record(images), tmp_path)
    assert json.loads(path.read_text())["scores"]["dice_separations"] is None
    assert math.isnan(records.read(path).scores["dice_separations"])


def test_numpy_numbers_and_paths_are_written(tmp_path):
    made = record(rows((1, 0, 0)), budget={"updates": np.int64(7), "seconds": np.float32(0.5)})
    made.parameters["folder"] = tmp_path
    again = records.read(records.write(made, tmp_path))
    assert (again.budget["updates"], again.budget["seconds"]) == (7, 0.5)
    assert again.parameters["folder"] == str(tmp_path)


def test_of_run_fills_in_what_the_run_need_not_know():
    made = record(rows((1, 0, 0), (1, 1, 0)))
    assert made.budget["seconds_per_image"] == 0.5
    assert made.budget["device"]
    assert made.versions["python"] and made.versions["numpy"] == np.__version__
    assert made.scores == records.scores(made.images)
    given = record(rows((1, 0, 0)), budget={"seconds_per_image": 9.0, "device": "abacus"})
    assert (given.budget["seconds_per_image"], given.budget["device"]) == (9.0, "abacus")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = records.write(record(rows((1, 0, 0))), tmp_path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        records.write(record(rows((2, 0, 0))), tmp_path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_malformed_record_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"dl-ground-truth--lite--s0\.json: data\.source"):
        records.write(record(rows((1, 0, 0)), source="dreamt"), tmp_path)
    with pytest.raises(ValueError, match="chapter"):
        made = record(rows((1, 0, 0)))
        object.__setattr__(made, "chapter", "../elsewhere")
        records.write(made, tmp_path)
    assert list(tmp_path.iterdir()) == []


MALFORMED = [
    ("schema", 2, "schema must be the number 1, not 2"),
    ("chapter", None, "chapter must be a name"),
    ("variant", "DL GT", "variant must be a name"),
    ("variant", "a--b", "variant must be a name"),
    ("preset", "huge", "preset must be one of smoke, lite, paper, not"),
    ("seed", -1, "seed must be a whole number"),
    ("seed", True, "seed must be a whole number"),
    ("seed", 1.5, "seed must be a whole number"),
    ("created", "yesterday", "created must be an ISO 8601 time"),
    ("created", "2026-01-01T00:00:00", "created must be an ISO 8601 time with its zone"),
    ("data", [], "data must be an object"),
    ("data.source", "dreamt", "data.source must be one of real, stand-in, simulated"),
    ("data.fingerprint", "", "data.fingerprint must be a text"),
    ("data.count", 3, "images must hold data.count = 3 rows, not 2"),
    ("data.training", {"split": "training"}, "data.training.fingerprint must be a text"),
    ("scores.f1_50", 1.5, "scores.f1_50 must be a number from 0 to 1"),
    ("scores.f1_50", 0.5, "scores.f1_50 must be .*, as the images give, not 0.5"),
    ("scores.f1_50", None, "scores.f1_50 must be .*, as the images give, not null"),
    ("scores_per_image_mean.aggregated_jaccard", "high", "scores_per_image_mean.aggregated_"),
    ("images", [], "images must be a list of at least one"),
    ("images", {}, "images must be a list"),
    ("images.1.key", "0", "images hold the key '0' more than once"),
    ("images.1", "text", r"images\[1\].key must be a text, not missing"),
    ("images.1.object.matched", -1, r"images\[1\].object.matched must be a whole number"),
    ("images.0.nuclei.tp", 1.5, r"images\[0\].nuclei.tp must be a whole number"),
    ("images.0.separations", None, "separations in every row, or null in every row"),
    ("images.0.aggregated_jaccard", 2, r"images\[0\].aggregated_jaccard must be a number from 0"),
    ("images.0.seconds", -1, r"images\[0\].seconds must be a number, 0 or more"),
    ("budget.updates", 0.5, "budget.updates must be a whole number"),
    ("budget.device", None, "budget.device must be a text"),
    ("versions", "3.11", "versions must be an object"),
    ("git_commit", 5, "git_commit must be a text or null"),
    ("parameters", None, "parameters must be an object"),
    ("mood", "good", "mood is no field of a record"),
]


def step(place, name):
    return place[int(name)] if isinstance(place, list) else place[name]


@pytest.mark.parametrize(("field", "value", "message"), MALFORMED)
def test_a_malformed_record_is_refused_by_file_and_field(tmp_path, field, value, message):
    path = records.write(record(rows((8, 1, 3), (4, 0, 0))), tmp_path)
    payload = json.loads(path.read_text())
    place = payload
    *way, last = field.split(".")
    for name in way:
        place = step(place, name)
    place[int(last) if isinstance(place, list) else last] = value
    path.write_text(json.dumps(payload))
    with pytest.raises(ValueError, match=rf"dl-ground-truth--lite--s0\.json: .*{message}"):
        records.read(path)


@pytest.mark.parametrize("name", ["chapter", "data", "scores", "images", "budget", "git_commit"])
def test_a_missing_field_is_named(tmp_path, name):
    path = records.write(record(rows((8, 1, 3))), tmp_path)
    payload = json.loads(path.read_text())
    del payload[name]
    path.write_text(json.dumps(payload))
    with pytest.raises(ValueError, match=rf"{name} must be .*, not missing"):
        records.read(path)


def test_a_missing_threshold_is_named(tmp_path):
    path = records.write(record(rows((8, 1, 3))), tmp_path)
    payload = json.loads(path.read_text())
    del payload["images"][0]["match"]["0.75"]
    path.write_text(json.dumps(payload))
    with pytest.raises(ValueError, match=r"images\[0\]\.match\.0\.75\.tp must be .*, not missing"):
        records.read(path)


@pytest.mark.parametrize("content", [b"", b'{"schema": 1', b"\xff\xfe{}", b'{"seed": NaN}'])
def test_what_is_not_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken--lite--s0.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken--lite--s0\.json: not a JSON file"):
        records.read(path)


def test_a_list_is_no_record(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.json: a record is a JSON object"):
        records.read(path)


def test_a_renamed_record_is_refused(tmp_path):
    path = records.write(record(rows((8, 1, 3))), tmp_path)
    renamed = path.rename(path.with_name("dl-consensus--lite--s0.json"))
    with pytest.raises(ValueError, match=r"belongs into a file named dl-ground-truth--lite--s0"):
        records.read(renamed)


def test_read_all_is_sorted_and_names_the_broken_one(tmp_path):
    assert records.read_all(tmp_path / "nowhere") == []
    for seed in (2, 0, 1):
        records.write(record(rows((1, 0, 0)), seed=seed), tmp_path)
    assert [one.seed for one in records.read_all(tmp_path)] == [0, 1, 2]
    (tmp_path / "01_labels_for_free" / "zzz.json").write_text("{")
    with pytest.raises(ValueError, match=r"zzz\.json"):
        records.read_all(tmp_path)


def test_the_table_has_a_line_per_record(tmp_path):
    one = record(rows((8, 1, 1), (0, 0, 0)))
    records.write(one, tmp_path)
    table = records.as_table([*records.read_all(tmp_path), record(rows((1, 0, 0)), seed=5)])
    assert table["seed"].tolist() == [0, 5]
    assert table["object_jaccard"].tolist() == pytest.approx([0.8, 1.0])
    assert table["aggregated_jaccard"].tolist() == pytest.approx([0.8, 1.0])
    assert table["file"].tolist() == ["dl-ground-truth--lite--s0.json", ""]
    assert list(records.as_table([]).columns) == list(table.columns)


@pytest.mark.parametrize("preset", records.PRESETS)
@pytest.mark.parametrize("source", ["real", "stand-in", "simulated"])
def test_only_evidence_is_committed(preset, source):
    folder = records.folder_for(preset, source)
    if source == "real" and preset != "smoke":
        assert folder == records.results_root()
    else:
        assert folder == records.runs_root() / "results"


# --- provenance ---------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder taken for the project's own."""
    monkeypatch.setattr(machine, "project_root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_says_when_files_differ_from_it(checkout):
    assert machine.git_commit() is None
    git(checkout, "init")
    (checkout / "code.py").write_text("1")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "one")
    commit = machine.git_commit()
    assert len(commit) == 40
    (checkout / "results").mkdir()
    (checkout / "results" / "new.json").write_text("{}")
    assert machine.git_commit() == commit
    (checkout / "code.py").write_text("2")
    assert machine.git_commit() == f"{commit}-dirty"


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.git_commit() is None


def test_peak_memory_grows_by_what_was_allocated():
    pytest.importorskip("resource", reason="this system does not tell")
    code = (
        "import numpy as np; from nuctut.machine import peak_memory_gb as peak;"
        "before = peak(); block = np.ones(400_000_000 // 8); print(peak() - before)"
    )
    parents = np.ones(600_000_000 // 8)  # what the parent holds must not count
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.3 < float(run.stdout) <= 0.41
    del parents


def test_the_data_block_says_what_was_learned_from():
    def some(split, count):
        return SampleSet(
            [str(i) for i in range(count)], None, name="bbbc039", split=split, source="simulated",
            fingerprint=split,
        )  # fmt: skip

    block = records.describe_data(some("test", 4), some("training", 9), labels="shape/intensity")
    assert (block["source"], block["count"], block["fingerprint"]) == ("simulated", 4, "test")
    assert block["training"] == {
        "split": "training", "fingerprint": "training", "count": 9, "labels": "shape/intensity",
    }  # fmt: skip
    assert records.describe_data(some("test", 4))["training"] is None


def test_records_do_not_share_what_they_were_made_from(tmp_path):
    budget = {"updates": 1, "images_seen": 1, "seconds": 1.0, "precision": "fp32"}
    given = copy.deepcopy(budget)
    record(rows((1, 0, 0)), budget=given)
    assert given == budget
