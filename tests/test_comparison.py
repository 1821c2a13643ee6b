"""Cells, ranks, parts of the variance and advice, from records whose outcome is known."""

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_records import record, rows

from nuctut import comparison
from nuctut.comparison import Column

A, B = Column("A", ("bbbc039",), about="cells"), Column("B", ("tnbc",), about="tissue")


def measured(method, data, *counts, learned_from=(), way="as taken", seconds=0.5, **more):
    """A record of this method on a data set, with images of (tp, fp, fn)."""
    images = [one | {"tags": {"sees": "as it is"}, "seconds": seconds} for one in rows(*counts)]
    made = record(images, variant=f"{method}-on-{data}", name=data)
    told = {"method": method, "learned_from": learned_from, "way": way, "dye": "haematoxylin"}
    return replace(made, parameters=told | more)


@pytest.fixture
def three():
    """Good at home alone, good everywhere, and as good but slower."""
    good, bad = [(9, 1, 1)] * 8, [(3, 7, 7)] * 8
    made = [
        measured("local", "bbbc039", *[(10, 0, 0)] * 8, learned_from=("bbbc039",), seconds=1.0),
        measured("local", "tnbc", *bad, seconds=1.0),
        measured("steady", "bbbc039", *good),
        measured("steady", "tnbc", *good),
        measured("slow", "bbbc039", *good, seconds=5.0),
        measured("slow", "tnbc", *good, seconds=5.0),
    ]
    return comparison.by_method(made)


# --- cells ---------------------------------------------------------------------------------------


def test_a_cell_is_the_score_of_its_images(three):
    table = comparison.cells(three, ["f1_50"], [A, B])
    assert len(table) == 6
    wide = comparison.scores(table)
    expected = {"A": [1.0, 0.9, 0.9], "B": [0.3, 0.9, 0.9]}
    pd.testing.assert_frame_equal(
        wide, pd.DataFrame(expected, ["local", "steady", "slow"]), check_names=False
    )
    assert list(table[table["home"]]["method"]) == ["local"]
    assert set(table["images"]) == {8} and set(table["nuclei"]) == {80}
    assert set(table["files"]) >= {"local-on-bbbc039--lite--s0"}


def test_what_was_measured_besides_is_asked_for_by_name():
    plain = measured("one", "tnbc", (1, 0, 0))
    estimated = measured("one", "tnbc", (0, 1, 1), way="estimated size")
    inverted = measured("one", "tnbc", (1, 1, 0), dye="inverted")
    unrelated = record(rows((1, 0, 0)))
    made = [plain, estimated, inverted, unrelated]
    assert comparison.by_method(made) == {"one": [plain]}
    assert comparison.by_method(made, way="estimated size") == {"one": [estimated]}
    assert comparison.by_method(made, dye="inverted") == {"one": [inverted]}


def test_what_was_measured_in_two_ways_stands_side_by_side():
    plain = [measured("one", name, (1, 0, 0)) for name in ("tnbc", "monuseg")]
    other = measured("one", "tnbc", (0, 1, 1), way="estimated size")
    (line,) = comparison.beside([*plain, other], way="estimated size").itertuples()
    assert (line.column, line.value, line.value_besides) == ("TNBC", 1.0, 0.0)
    assert comparison.beside(plain, dye="inverted").empty


def test_of_two_presets_the_larger_counts():
    lite = measured("one", "tnbc", (1, 0, 0))
    paper = replace(lite, preset="paper")
    assert comparison.by_method([paper, lite]) == {"one": [paper]}


def test_images_of_one_field_are_drawn_together():
    """Two fields of three images: a share of a field is drawn, so there are three outcomes."""
    images = rows(*[(10, 0, 0)] * 3, *[(0, 10, 10)] * 3)
    for index, one in enumerate(images):
        one["tags"] = {"field": str(index // 3)}
    found = comparison.estimate(images, "f1_50")
    assert set(np.unique(found.drawn)) == {0.0, 0.5, 1.0} and found.value == 0.5
    alone = comparison.estimate(images[:3], "f1_50")
    assert math.isnan(alone.interval()[0])


def test_a_difference_is_taken_draw_by_draw():
    one = rows((9, 1, 1), (5, 5, 5), (1, 9, 9))
    assert comparison.difference(one, one, "f1_50").interval() == (0, 0)
    with pytest.raises(ValueError, match="different images"):
        comparison.difference(one, one[:2], "f1_50")


# --- ranks ---------------------------------------------------------------------------------------


def test_the_critical_differences_are_those_of_the_published_table():
    """Demšar 2006, table 5: q of 2, 5 and 10 methods is 1.960, 2.728 and 3.164."""
    for methods, q in ((2, 1.960), (5, 2.728), (10, 3.164)):
        expected = q * math.sqrt(methods * (methods + 1) / (6 * 14))
        assert comparison.critical_difference(methods, 14) == pytest.approx(expected, abs=2e-3)


def test_methods_are_ranked_and_ties_share():
    wide = pd.DataFrame({"a": [0.9, 0.5, 0.5], "b": [0.8, 0.7, 0.1]}, ["x", "y", "z"])
    found = comparison.ranking(wide)
    assert found.ranks.to_dict() == {"x": 1.0, "y": 2.25, "z": 2.75}
    assert found.columns == ("a", "b") and 0 < found.p_value < 1
    assert found.alike == (("x", "y", "z"),)


def test_columns_in_which_a_method_must_not_be_judged_are_left_out():
    wide = pd.DataFrame(
        {"a": [0.9, 0.5, 0.1], "b": [0.8, 0.7, 0.1], "c": [0, 1, np.nan]}, ["x", "y", "z"]
    )
    assert comparison.ranking(wide).columns == ("a", "b")


def test_groups_that_do_not_differ_are_as_large_as_they_can_be():
    ranks = pd.Series([1.0, 2.0, 2.5, 4.0], ["a", "b", "c", "d"])
    assert comparison._alike(ranks, 1.5) == (("a", "b", "c"), ("c", "d"))
    assert comparison._alike(ranks, 0.1) == ()
    assert comparison._alike(ranks, 9) == (("a", "b", "c", "d"),)


@pytest.mark.parametrize("shape", [(2, 5), (5, 1)])
def test_too_few_to_rank_are_refused(shape):
    with pytest.raises(ValueError, match="3 methods and 2 columns"):
        comparison.ranking(pd.DataFrame(np.ones(shape)))


# --- parts, costs, advice ------------------------------------------------------------------------


def test_the_parts_of_the_variance_are_those_that_were_put_in():
    of_columns, of_methods = np.array([0.0, 0.4]), np.array([0.0, 0.1, 0.2])
    parts = comparison.variance_parts(pd.DataFrame(of_methods[:, None] + of_columns))
    variances = {"data set": of_columns.var(), "method": of_methods.var(), "the rest": 0.0}
    total = sum(variances.values())
    assert parts.to_dict() == pytest.approx({k: v / total for k, v in variances.items()})


def test_the_rest_is_what_goes_together():
    parts = comparison.variance_parts(pd.DataFrame([[0.9, 0.1], [0.1, 0.9]]))
    assert parts.to_dict() == pytest.approx({"data set": 0, "method": 0, "the rest": 1})


def test_the_best_are_those_that_nothing_as_fast_beats(three):
    wide = comparison.scores(comparison.cells(three, ["f1_50"], [A, B]))
    table = comparison.costs(three, wide)
    assert table["score"].to_dict() == pytest.approx({"local": 0.65, "steady": 0.9, "slow": 0.9})
    assert table.index[table["best"]].tolist() == ["steady"]
    assert set(table["memory"]) == {three["steady"][0].budget["peak_memory_gb"]}
    fast, slow = table.loc[["steady", "slow"], "seconds_per_megapixel"]
    assert slow == pytest.approx(10 * fast)


def test_a_limit_leaves_the_best_of_what_costs_no_more():
    table = pd.DataFrame({"score": [0.5, 0.9, 0.8], "minutes": [0, 60, 10]}, ["a", "b", "c"])
    found = comparison.affordable(table, "minutes", (-1, 0, 15, math.inf))
    assert found["method"].to_dict() == {0: "a", 15: "c", math.inf: "b"}
    assert found["minutes"].tolist() == [0, 10, 60]


def test_images_count_as_outlined_only_where_people_outlined_them():
    made = {name: [measured(name, "tnbc", (1, 0, 0), (1, 1, 0))] for name in "abc"}
    for (one,), labels in zip(made.values(), ("ground truth", "consensus", None), strict=True):
        about = {"split": "training", "fingerprint": "f", "count": 9, "labels": labels}
        one.data["training"] = about if labels else None
    wide = comparison.scores(comparison.cells(made, ["f1_50"]))
    assert comparison.costs(made, wide)["outlined"].tolist() == [9, 0, 0]


def test_advice_follows_from_the_cells(three):
    at_a, at_b = comparison.advice(three, [A, B]).itertuples()
    assert (at_a.take, at_a.home, at_a.level) == ("local", True, ())
    assert (at_a.elsewhere, at_a.elsewhere_value) == ("steady", 0.9)
    assert (at_b.take, at_b.level, at_b.home) == ("steady", ("slow",), False)  # the faster of two
    assert at_a.enough and at_b.enough


def test_what_nobody_can_do_is_told():
    made = [measured(name, "tnbc", *[(4, 6, 6)] * 6) for name in ("a", "b")]
    assert not comparison.advice(comparison.by_method(made), [B])["enough"].item()


def test_without_records_there_is_no_advice():
    assert comparison.advice({}).empty
    assert comparison.cells({}).empty


# --- as a page shows it --------------------------------------------------------------------------


def test_every_advice_links_to_a_cell_that_is_there(three, monkeypatch):
    monkeypatch.setattr(comparison, "COLUMNS", (A, B))
    cells = comparison.show_cells(comparison.cells(three, ["f1_50"], [A, B])).to_html()
    advised = comparison.show_advice(comparison.advice(three, [A, B])).to_html()
    links = set(re.findall('href="#(.*?)"', advised))
    assert links and links <= set(re.findall('id="(cell-.*?)"', cells))
    assert "<i><b>1.000</b></i>" in cells and "as taken" in cells
