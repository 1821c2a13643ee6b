"""Records with counts chosen by hand, for the tests of records and scoreboard."""

from dataclasses import replace

from nuctut.records import THRESHOLD_KEYS, Record

COMMIT = 40 * "1"
FIT = {
    "git_commit": 40 * "2",
    "code": 16 * "a",
    "weights_sha256": 64 * "b",
    "started": "2026-01-01T00:00:00+00:00",
    "ended": "2026-01-01T01:00:00+00:00",
    "accepted_old_code": False,
}

DATA = {
    "name": "bbbc039",
    "source": "real",
    "split": "test",
    "fingerprint": "f00d",
    "count": 0,
    "training": None,
}


def row(key, tp, fp=0, fn=0, *, separations=True):
    """An image on which every score is the same fraction of tp, fp and fn, at all thresholds."""
    pixels = {"tp": tp, "fp": fp, "fn": fn, "tn": 100}
    return {
        "key": key,
        "n_true": tp + fn,
        "object": {"n_true": tp + fn, "n_pred": tp + fp, "matched": tp},
        "match": {t: {"tp": tp, "fp": fp, "fn": fn, "iou_sum": float(tp)} for t in THRESHOLD_KEYS},
        "nuclei": pixels,
        "separations": dict(pixels) if separations else None,
        "kromp": {"tp": tp, "fp": fp, "fn": fn, "us": 0, "os": 0}
        | {"shared": tp, "union": tp + fp + fn, "dice_sum": float(tp)},
        "aggregated_jaccard": tp / (tp + fp + fn) if tp + fp + fn else None,
        "seconds": 0.5,
    }


def rows(*counts):
    """Images named 0, 1, 2 … of (tp, fp, fn)."""
    return [row(str(index), *count) for index, count in enumerate(counts)]


def record(
    images,
    *,
    variant="dl-ground-truth",
    preset="lite",
    seed=0,
    budget=None,
    fit=None,
    git_commit=COMMIT,
    **data,
):
    """A whole record of these images; further keywords change its data block."""
    made = Record.of_run(
        chapter="01_labels_for_free",
        variant=variant,
        preset=preset,
        seed=seed,
        data=DATA | {"count": len(images)} | data,
        images=images,
        budget={"updates": 8, "images_seen": 64, "seconds": 2.5, "precision": "fp32"}
        | (budget or {}),
        parameters={"learning_rate": 1e-3},
        fit=fit,
    )
    return replace(made, git_commit=git_commit)
