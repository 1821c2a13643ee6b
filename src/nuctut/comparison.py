"""Methods compared over data sets: a table of cells, ranks, where the spread lies, and advice.

A column is the test images of one data set, or of one kind of them (`COLUMNS`). A cell is the score
of one method on one column, with an interval from fields of view, or patients, drawn anew
(`uncertainty`); it is *at home* where the method learned from the training images of that set.

Methods are ranked in every column and the ranks averaged (Demšar 2006, "Statistical comparisons of
classifiers over multiple data sets"). Two of them differ where their mean ranks are further apart
than the critical difference of Nemenyi's test, q √(k (k + 1) / 6n) for k methods in n columns.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy import stats

from nuctut import uncertainty
from nuctut.records import PATIENT, PRESETS, Record, Row, pooled, seconds_per_megapixel
from nuctut.uncertainty import Estimate

METRICS = {
    "f1_50": "F1 at IoU 0.5",
    "mean_average_precision": "mean AP",
    "panoptic_quality": "PQ",
    "aggregated_jaccard": "AJI",
}
FEWEST = 5  # images that a number is said something of
BY_HAND = "ground truth"  # where the labels come from that a network learned from
USEFUL = 0.7  # F1 below which outlines cannot be counted on: three of ten are wrong or missing
LEVEL = 0.95


@dataclass(frozen=True)
class Column:
    """Test images that are judged together.

    Attributes:
        title: For readers.
        data: Names of the data sets that they are of; empty is any.
        tags: That they have, by name.
        about: What kind of images it stands for, as in "If your images show …".
    """

    title: str
    data: tuple[str, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    about: str = ""

    def rows_of(self, records: Iterable[Record]) -> list[Row]:
        """Its images in the records of one method, each key with its data set before it."""
        return [
            one | {"key": f"{record.data['name']}/{one['key']}"}
            for record in records
            if not self.data or record.data["name"] in self.data
            for one in record.images
            if self.tags.items() <= one.get("tags", {}).items()
        ]


def _objective(name: str, about: str) -> Column:
    return Column(f"BitDepth, {name}", ("bitdepth_nucseg",), {"objective": name}, about)


COLUMNS = (
    Column("BBBC039", ("bbbc039",), about="grown cells under fluorescence, 20×"),
    Column(
        "DSB2018, fluorescence",
        ("dsb2018",),
        {"modality": "fluorescence"},
        "fluorescence of many laboratories and magnifications",
    ),
    Column("neuroblastoma", ("sbsst265_neuroblastoma",), about="tumour cells on slides, 63×"),
    _objective("20x", "sections of tissue under fluorescence, 20×"),
    _objective("40x air", "sections of tissue under fluorescence, 40×"),
    _objective("40x oil", "sections of tissue under fluorescence, 40× with oil"),
    _objective("63x oil", "sections of tissue under fluorescence, 63× with oil"),
    Column("BBBC006, z = 0", ("bbbc006",), about="grown cells 32 µm out of focus"),
    Column(
        "DSB2018, stained", ("dsb2018",), {"modality": "stained"}, "stained tissue of many kinds"
    ),
    Column("TNBC", ("tnbc",), about="breast cancer, H&E, 40×"),
    Column("Kumar", ("monuseg",), about="tissue of seven organs, H&E, 40×"),
)
FLUORESCENT = ("bbbc039", "sbsst265_neuroblastoma", "bitdepth_nucseg")
BY_DENSITY = tuple(
    Column(f"{name}, fluorescence", FLUORESCENT, {"crowded": crowded}, f"{name} nuclei in focus")
    for name, crowded in (("touching", "yes"), ("scattered", "no"))
)


# --- one cell ------------------------------------------------------------------------------------


def estimate(rows: Sequence[Row], metric: str) -> Estimate:
    """A pooled score of images, and what it could have been, had other fields been taken.

    Args:
        rows: Images, of which those with the same tag "field", or else "patient", are drawn
            together. Estimates of the same images can be subtracted draw by draw.
        metric: See `records.pooled`.
    """
    rows = sorted(rows, key=lambda row: row["key"])
    tags = [row.get("tags", {}) for row in rows]
    units = [
        of.get("field") or of.get(PATIENT) or row["key"] for of, row in zip(tags, rows, strict=True)
    ]
    drawn = uncertainty.draws(units)
    if len(set(units)) == 1:  # to draw one again and again tells nothing of others
        drawn = np.full_like(drawn, math.nan)
    return Estimate(pooled(rows, metric), pooled(rows, metric, drawn), ())


def difference(one: Sequence[Row], other: Sequence[Row], metric: str) -> Estimate:
    """By how much the one method is better than the other on the same images.

    Raises:
        ValueError: When they were not measured on the same images.
    """
    if {row["key"] for row in one} != {row["key"] for row in other}:
        raise ValueError("Two methods were measured on different images: measure them again.")
    first, second = estimate(one, metric), estimate(other, metric)
    return Estimate(first.value - second.value, first.drawn - second.drawn, ())


def by_method(records: Iterable[Record], *, way: str = "", dye: str = "") -> dict[str, list]:
    """The records of this chapter by method, without what was measured besides.

    Args:
        records: Any; of several of one method and data set, that of the largest preset counts.
        way: "estimated size" gives what was measured at a size told from the image alone.
        dye: "inverted" gives what was measured of inverted brightness.
    """
    found: dict[str, dict[str, Record]] = {}
    for one in sorted(records, key=lambda one: PRESETS.index(one.preset)):
        told = one.parameters
        if "method" in told:
            besides = (told["way"] == "estimated size", told["dye"] == "inverted")
            if besides == (way == "estimated size", dye == "inverted"):
                found.setdefault(told["method"], {})[one.data["name"]] = one
    return {method: list(of.values()) for method, of in found.items()}


def cells(
    measured: Mapping[str, Sequence[Record]],
    metrics: Iterable[str] = METRICS,
    columns: Iterable[Column] = COLUMNS,
) -> pd.DataFrame:
    """Every method's score on every column, with its interval.

    Args:
        measured: What `by_method` gives.
        metrics: Of `records.METRICS`.
        columns: See `Column`.

    Returns:
        One line per column, method and metric: these three, value, low, high (95 %; NaN of one
        field), images, nuclei, home (whether it learned from that set), way (how it was shown
        them: "as taken", "true size" …), sees ("as it is", "haematoxylin" …) and files (which
        records, each by its name).
    """
    lines = []
    for column in columns:
        for method, records in measured.items():
            if not (rows := column.rows_of(records)):
                continue
            about = {"column": column.title, "method": method} | _about(column, records, rows)
            for metric in metrics:
                found = estimate(rows, metric)
                low, high = found.interval(LEVEL)
                ends = {"metric": metric, "value": found.value, "low": low, "high": high}
                lines.append(about | ends)
    names = ["column", "method", "metric", "value", "low", "high", "images", "nuclei", "home"]
    return pd.DataFrame(lines, columns=[*names, "way", "sees", "files"])


def _about(column: Column, records: Sequence[Record], rows: Sequence[Row]) -> dict:
    """What is told of a cell beside its score."""
    of = [one for one in records if not column.data or one.data["name"] in column.data]
    return {
        "images": len(rows),
        "nuclei": sum(row["n_true"] for row in rows),
        "home": any(one.data["name"] in one.parameters["learned_from"] for one in of),
        "way": ", ".join(dict.fromkeys(one.parameters["way"] for one in of)),
        "sees": ", ".join(sorted({row["tags"].get("sees", "") for row in rows} - {""})),
        "files": ", ".join(one.name for one in of),
    }


def beside(
    records: Sequence[Record], metric: str = "f1_50", *, way: str = "", dye: str = ""
) -> pd.DataFrame:
    """What was measured in two ways, side by side.

    Args:
        records, way, dye: See `by_method`.
        metric: Of `records.METRICS`.

    Returns:
        The lines of `cells` of the usual way, and beside each the same of the other, as
        `value_besides` and so on.
    """
    sides = [by_method(records), by_method(records, way=way, dye=dye)]
    usual, other = (cells(side, [metric]) for side in sides)
    keys = ["column", "method", "metric"]
    return usual.merge(other, on=keys, suffixes=("", "_besides"))


def scores(table: pd.DataFrame, metric: str = "f1_50") -> pd.DataFrame:
    """The cells of one metric, a line per method and a column per column, in the order given."""
    own = table[table["metric"] == metric]
    wide = own.pivot(index="method", columns="column", values="value")
    return wide.loc[own["method"].unique(), own["column"].unique()]


# --- ranks ---------------------------------------------------------------------------------------


class Ranking(NamedTuple):
    """Methods ranked over columns.

    Attributes:
        ranks: Mean rank by method, 1 being best, best first.
        critical: Mean ranks further apart than this differ (Nemenyi, at 5 %).
        p_value: Of Friedman's test, that all methods rank alike.
        columns: Over which it was.
        alike: Names of methods of which none differs from another, the largest such groups.
    """

    ranks: pd.Series
    critical: float
    p_value: float
    columns: tuple[str, ...]
    alike: tuple[tuple[str, ...], ...]


def ranking(wide: pd.DataFrame) -> Ranking:
    """Methods ranked over the columns in which every one has a score.

    Args:
        wide: What `scores` gives.

    Raises:
        ValueError: When fewer than three methods, or than two columns without a gap, are left.
    """
    whole = wide.dropna(axis="columns")
    methods, columns = whole.shape
    if methods < 3 or columns < 2:
        raise ValueError(
            f"Ranks need 3 methods and 2 columns in which all have a score, not {methods} and "
            f"{columns}."
        )
    ranks = whole.rank(ascending=False).mean(axis=1).sort_values(kind="stable")
    p_value = float(stats.friedmanchisquare(*whole.to_numpy()).pvalue)
    critical = critical_difference(methods, columns)
    return Ranking(ranks, critical, p_value, tuple(whole), _alike(ranks, critical))


def critical_difference(methods: int, columns: int, level: float = LEVEL) -> float:
    """Nemenyi's, of mean ranks: q √(k (k + 1) / 6n), q of the studentised range over √2."""
    q = stats.studentized_range.ppf(level, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * columns)))


def _alike(ranks: pd.Series, critical: float) -> tuple[tuple[str, ...], ...]:
    """The longest runs of sorted ranks whose ends are not further apart than this."""
    values, names = ranks.to_numpy(), list(ranks.index)
    ends = [int(np.searchsorted(values, value + critical, side="right")) for value in values]
    starts = [0, *(at for at, (a, b) in enumerate(pairwise(ends), 1) if b > a)]
    return tuple(tuple(names[at : ends[at]]) for at in starts if ends[at] - at > 1)


# --- where the spread lies, and what a method costs ----------------------------------------------


def variance_parts(wide: pd.DataFrame) -> pd.Series:
    """The share of the scores' variance that data set, method and the rest have; they sum to 1.

    By sums of squares of methods by columns without repetition. The rest is how methods and data
    sets go together, seeds and chance, which one score per cell cannot tell apart.

    Args:
        wide: What `scores` gives, of which columns with gaps are left out.
    """
    values = wide.dropna(axis="columns").to_numpy()
    middle = values.mean()
    total = ((values - middle) ** 2).sum()
    of_columns = len(values) * ((values.mean(0) - middle) ** 2).sum()
    of_methods = values.shape[1] * ((values.mean(1) - middle) ** 2).sum()
    parts = {"data set": of_columns, "method": of_methods}
    parts |= {"the rest": total - of_columns - of_methods}
    return pd.Series(parts) / total if total else pd.Series(parts)


def costs(measured: Mapping[str, Sequence[Record]], wide: pd.DataFrame) -> pd.DataFrame:
    """What each method costs, beside what it reaches.

    Args:
        measured: What `by_method` gives.
        wide: What `scores` gives, of which columns with gaps are left out.

    Returns:
        A line per method: score (mean over columns), seconds_per_megapixel (from pixels to labels,
        of the images as they were taken), memory (GB, the most on any set), weights, outlined
        (images that it learned from, where people had outlined their nuclei; else 0), minutes (of
        training), device (that predicted) and best (whether none that is as fast scores higher).
        NaN where the records do not say.
    """
    whole = wide.dropna(axis="columns").mean(axis=1)
    lines = {}
    for method, records in measured.items():
        first, rows = records[0], [row for one in records for row in one.images]
        taught = first.data["training"]
        lines[method] = {
            "score": whole[method],
            "seconds_per_megapixel": seconds_per_megapixel(rows),
            "memory": max((one.budget["peak_memory_gb"] or math.nan) for one in records),
            "weights": first.budget.get("weights") or math.nan,
            "outlined": taught["count"] if taught and taught["labels"] == BY_HAND else 0,
            "minutes": first.budget["seconds"] / 60,
            "device": first.budget["device"],
        }
    table = pd.DataFrame.from_dict(lines, orient="index")
    ordered = table.sort_values(["seconds_per_megapixel", "score"], ascending=[True, False])
    ahead = ordered["score"] > ordered["score"].cummax().shift(fill_value=-math.inf)
    return table.assign(best=ahead)


def affordable(table: pd.DataFrame, what: str, limits: Iterable[float]) -> pd.DataFrame:
    """The method of the highest score that costs no more than a limit, for each limit.

    Args:
        table: What `costs` gives.
        what: One of its columns, such as "outlined" or "minutes".
        limits: In its unit; limits under which nothing stays are left out.

    Returns:
        A line per limit, named by it: method, score, and what it costs.
    """
    lines = {}
    for limit in limits:
        within = table[table[what] <= limit]
        if len(within):
            best = within["score"].idxmax()
            lines[limit] = {
                "method": best,
                "score": within["score"][best],
                what: within[what][best],
            }
    named = pd.DataFrame.from_dict(lines, orient="index", columns=["method", "score", what])
    return named.rename_axis("at most")


# --- advice --------------------------------------------------------------------------------------


def advice(
    measured: Mapping[str, Sequence[Record]],
    columns: Iterable[Column] = COLUMNS + BY_DENSITY,
    metric: str = "f1_50",
) -> pd.DataFrame:
    """Which method for which images, from the cells alone.

    In each column those are *level* with the best whose difference from it includes zero (95 %, on
    the same drawn fields); of these the fastest is what to take. Where it was at home, the best of
    the others says what to expect of images that are not quite like those.

    Returns:
        A line per column: column, about, take, value, low, high, home, level (names of the
        others), elsewhere (the best that was not at home; empty where there is none),
        elsewhere_value, images and enough (whether the lower end reaches `USEFUL`; without an
        interval, the value).
    """
    names = ["column", "about", "take", "value", "low", "high", "home", "level"]
    names += ["elsewhere", "elsewhere_value", "images", "enough"]
    lines = [_advised(column, measured, metric) for column in columns]
    return pd.DataFrame([line for line in lines if line], columns=names)


def _advised(column: Column, measured: Mapping[str, Sequence[Record]], metric: str) -> dict:
    rows = {name: column.rows_of(of) for name, of in measured.items()}
    rows = {name: of for name, of in rows.items() if of}
    values = pd.Series(
        {name: pooled(of, metric) for name, of in rows.items()}, dtype=float
    ).dropna()
    if values.empty:
        return {}
    best = values.idxmax()
    level = [name for name in rows if _is_level(rows[name], rows[best], metric)] or [best]
    take = min(level, key=lambda name: seconds_per_megapixel(rows[name]))
    home = {name: _about(column, measured[name], rows[name])["home"] for name in rows}
    away = values[[name for name in rows if not home[name]]]
    low, high = estimate(rows[take], metric).interval(LEVEL)
    sure = values[take] if math.isnan(low) else low
    return {
        "column": column.title,
        "about": column.about,
        "take": take,
        "value": values[take],
        "low": low,
        "high": high,
        "home": home[take],
        "level": tuple(name for name in level if name != take),
        "elsewhere": away.idxmax() if len(away) else "",
        "elsewhere_value": away.max() if len(away) else math.nan,
        "images": len(rows[take]),
        "enough": bool(sure >= USEFUL),
    }


def _is_level(one: Sequence[Row], best: Sequence[Row], metric: str) -> bool:
    low, high = difference(one, best, metric).interval(LEVEL)
    return low <= 0 <= high


# --- as a page shows it --------------------------------------------------------------------------


def show_cells(
    table: pd.DataFrame, metric: str = "f1_50", names: Callable[[str], str] = str
) -> Styler:
    """The cells of one metric: a line per column, under each score its interval and its scale.

    Scores at home are in italics; the highest of a line is bold. Advice links to the cells.

    Args:
        table: What `cells` gives.
        metric: Which of its metrics.
        names: A method's name for readers.
    """
    own = table[table["metric"] == metric]
    best = own.groupby("column")["value"].transform("max")
    texts = [
        _cell(line, line.value == top) for line, top in zip(own.itertuples(), best, strict=True)
    ]
    wide = own.assign(text=texts).pivot(index="column", columns="method", values="text")
    wide = wide.loc[own["column"].unique(), own["method"].unique()].fillna("")
    wide = wide.rename(columns=names).rename_axis(index=None, columns=None)
    shown = Styler(wide, cell_ids=False).set_properties(**{"white-space": "nowrap"})
    return shown.set_table_attributes('class="table dataframe"')


def _cell(line: Any, is_best: bool) -> str:
    value = f"{line.value:.3f}"
    value = f"<b>{value}</b>" if is_best else value
    value = f"<i>{value}</i>" if line.home else value
    sees = "" if line.sees == "as it is" else line.sees.replace("as it is, ", "")
    under = [f"{line.low:.3f} to {line.high:.3f}" if line.low == line.low else "", line.way, sees]
    small = "<br>".join(filter(None, under))
    value = f'<span id="{_anchor(line.column, line.method)}">{value}</span>'
    return f"{value}<br><small>{small}</small>"


def _anchor(column: str, method: str) -> str:
    return "cell-" + re.sub("[^a-z0-9]+", "-", f"{column} {method}".lower())


def show_advice(advised: pd.DataFrame, names: Callable[[str], str] = str) -> Styler:
    """`advice` as a page shows it, each with a link to its cell.

    Args:
        advised: What `advice` gives.
        names: A method's name for readers.
    """
    linked = {column.title for column in COLUMNS}

    def told(line: Any, method: str, value: float) -> str:
        text = f"{html.escape(names(method))}, {value:.3f}"
        if line.column not in linked or not method:
            return text if method else ""
        return f'<a href="#{_anchor(line.column, method)}">{text}</a>'

    lines = list(advised.itertuples())
    interval = [f"{one.low:.3f} to {one.high:.3f}" if one.low == one.low else "" for one in lines]
    shown = {
        "If your images show": advised["about"],
        "take": [told(one, one.take, one.value) for one in lines],
        "95 %": interval,
        "level with it": [", ".join(map(names, one.level)) for one in lines],
        "not at home": [told(one, one.elsewhere, one.elsewhere_value) for one in lines],
        "judged on": [f"{one.column}: {one.images}" for one in lines],
    }
    table = Styler(pd.DataFrame(shown), cell_ids=False).hide(axis="index")
    return table.set_table_attributes('class="table dataframe"')
