"""What Mandal et al. printed: cells that agree with each other, and claims that agree with them."""

from __future__ import annotations

import tomllib
from itertools import product
from pathlib import Path

import pytest

import nuctut
from nuctut import focus

FILE = Path(nuctut.__file__).parent / "published" / "through_blur.toml"
PAPER = tomllib.loads(FILE.read_text(encoding="utf-8"))
CELLS = {
    (table["name"], variant, table.get("of", "")): value
    for table in PAPER["tables"]
    for column, values in table["values"].items()
    for variant, value in zip(table["variants"], values, strict=True)
}
VALUES = {(variant, part): value for (_, variant, part), value in CELLS.items()}
HALF = 0.0005  # what rounding to three digits hides


def test_the_tables_hold_31_numbers():
    assert len(CELLS) == 7 * 3 + 3 * 3 + 1
    assert {variant for _, variant, _ in CELLS} == PAPER["names"].keys()
    assert sum(v for (table, _, _), v in CELLS.items() if table == "Table I") == pytest.approx(
        5.6 + 6.507 + 6.005
    )
    assert sum(v for (table, _, _), v in CELLS.items() if table == "Table II") == pytest.approx(
        2.244 + 2.68 + 2.441
    )
    parts = {table["of"]: table["part_images"] for table in PAPER["tables"] if "part" in table}
    assert parts == {"blurred": 384 * 21, "sharp": 384 * 13}
    assert sum(parts.values()) == PAPER["images"]


@pytest.mark.parametrize("variant", sorted(v for v in PAPER["names"] if v[-6:] != "labels"))
def test_the_means_follow_from_both_scores_as_far_as_rounding_lets_see(variant):
    scores = [VALUES[variant, part] for part in ("sharp", "blurred")]
    around = [
        focus.FocusScores(0.5, scores[0] + a * HALF, scores[1] + b * HALF).nhm
        for a, b in product((-1, 1), repeat=2)
    ]
    assert min(around) - HALF <= VALUES[variant, ""] <= max(around) + HALF


@pytest.mark.parametrize("claim", PAPER["claims"], ids=lambda claim: claim["text"])
def test_a_claims_effect_is_what_the_tables_give(claim):
    part = claim.get("part", {}).get("focus", "")
    assert (claim["metric"] == "nhm") == (part == "")
    better, worse, floor = (
        VALUES.get((claim.get(side), part)) for side in ("better", "worse", "floor")
    )
    if None in (better, worse):
        assert "no number is printed" in claim["note"]
    else:
        middle = worse if floor is None else (worse + floor) / 2
        assert claim["published_effect"] == pytest.approx(better - middle, abs=HALF + 1e-9)


def test_the_relative_gain_of_the_text_is_over_the_mean_of_two_rows():
    ours = VALUES["bns-4", ""]
    plain, post_processed = VALUES["denoiseg", ""], VALUES["denoiseg-postprocessed", ""]
    gains = [100 * focus.relative_gain(ours, one) for one in (plain, post_processed)]
    assert [round(gain, 1) for gain in gains] == [16.6, 11.9]
    assert round(100 * focus.relative_gain(ours, (plain + post_processed) / 2), 1) == 14.2
