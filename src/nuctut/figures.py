"""Every figure a chapter shows.

Each function returns the matplotlib figure it drew, so that a cell shows it by ending on the
call and a script keeps it with ``.savefig``; :func:`explorer`, which answers to sliders, returns
HTML. Two rules hold for all of them:

* every title carries ``source``, which says what data the figure shows and whether they are
  real, a stand-in or simulated (``"BBBC039 test · real"``);
* the paper is white and the colours are those of Okabe and Ito, which stay apart for readers
  who are colour-blind; what is painted over an image is told apart by lightness and stripes, too.
  A white sheet reads the same on a light page and on a dark one.

A network has one colour wherever in the book it is drawn, and so has a class of pixels.

What is counted rather than drawn (:func:`classify_objects`, :func:`touching_pairs`,
:func:`ranks`, :func:`outlines`) is a function of its own, and tested as such.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image
from skimage.measure import find_contours
from skimage.segmentation import find_boundaries
from skimage.util import montage

from nuctut import metrics, targets
from nuctut.artificial import Artificial, Cutout, Rim
from nuctut.neighbours import touching_pairs
from nuctut.records import ERRORS
from nuctut.samples import Sample

# Okabe and Ito (2008), "Color Universal Design".
BLACK = "#000000"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PINK = "#0072B2", "#D55E00", "#CC79A7"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PINK, SKY, YELLOW)
GREY = "#8C8C8C"

# Split and merged are darker than Okabe and Ito's pink and green, which turn into one grey for
# readers who do not see red or green, over a grey image even more so; and they are striped.
CATEGORY_COLOURS = {
    "matched": SKY,
    "missed": VERMILLION,
    "false": YELLOW,
    "split": "#7A0177",
    "merged": "#0040FF",
}
CATEGORY_HATCHES = {"split": "////", "merged": "xxxx"}
CLASS_COLOURS = {"background": BLACK, "nucleus": SKY, "separation": ORANGE, "ignored": GREY}
# By what their names hold, in small letters without anything else; the first that fits counts.
NETWORK_COLOURS = {
    "groundtruth": BLUE,
    "shapeintensity": ORANGE,
    "consensus": GREEN,
    "maskrcnn": SKY,  # may stand on a ResNet
    "simplecnn": PINK,
    "deepcell": "#5D3A9B",  # of Okabe and Ito's, yellow alone is left, too pale for letters
    "resnet": VERMILLION,
    "unet": BLACK,
}
VERDICT_COLOURS = {
    "reproduced": GREEN,
    "higher": BLUE,
    "lower": VERMILLION,
    "inconclusive": ORANGE,
    "not comparable": GREY,
    "not yet run": GREY,
}

WIDTH = 5.6  # inches: a narrow sheet, so that its letters can be read on a phone
STYLE = {
    "figure.dpi": 168,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "figure.titlesize": 10,
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


# --- what is counted ---------------------------------------------------------------------------


def display_range(
    image: np.ndarray, low: float = 0.1, high: float = 99.8, gamma: float = 1.0
) -> np.ndarray:
    """An 8-bit view of an image of any depth, for eyes only; never measure on it.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.
        low, high: percentiles of the image that become black and white.
        gamma: below 1 lifts dim nuclei out of the dark.

    Returns:
        uint8 array of the image's shape. An image of one single value comes out black.
    """
    darkest, brightest = np.percentile(image, [low, high])
    if brightest <= darkest:
        return np.zeros(np.shape(image), np.uint8)
    scaled = (np.asarray(image, np.float64) - darkest) / (brightest - darkest)
    return np.round(255 * np.clip(scaled, 0, 1) ** gamma).astype(np.uint8)


def outlines(labels: np.ndarray) -> np.ndarray:
    """The outermost pixels of every nucleus: (H, W) labels to an (H, W) bool array.

    A pixel belongs to the outline if one of its four neighbours carries another label, so two
    nuclei that touch keep a line each. The edge of the image is not an outline.
    """
    return find_boundaries(labels, connectivity=1, mode="inner", background=0)


@dataclass(frozen=True)
class ObjectClasses:
    """What became of every nucleus, on both sides of a comparison.

    Attributes:
        true: category of each true label: matched, missed, split or merged.
        pred: category of each predicted label: matched, false, split or merged.
        counts: ``matched`` and ``missed`` count true nuclei, ``false`` predicted ones;
            ``split`` counts true nuclei found in pieces, ``merged`` predictions that hold
            several nuclei. One piece of a split may still match, so the five overlap.
    """

    true: Mapping[int, str]
    pred: Mapping[int, str]
    counts: Mapping[str, int]


def classify_objects(
    labels_true: np.ndarray, labels_pred: np.ndarray, iou: float = 0.5
) -> ObjectClasses:
    """Name the error behind every nucleus that has no partner.

    Matching comes first and is that of :func:`nuctut.metrics.match`: one-to-one, IoU at least
    ``iou``. What stays unmatched is then explained, if it can be. A prediction with more than
    half of its area inside a true nucleus is a *piece* of it: two or more pieces make a split.
    A true nucleus with more than half of its area inside a prediction is *held* by it: two or
    more held nuclei make a merge. What is left is missed (true) or false (predicted).

    Args:
        labels_true, labels_pred: (H, W) integer labels, 0 background.
        iou: intersection over union from which a pair matches.

    Raises:
        ValueError: as :func:`nuctut.metrics.match` does, for labels or a threshold it refuses.
    """
    table = metrics.overlap_table(labels_true, labels_pred)
    good = table.matched_pairs(iou)
    is_piece = 2 * table.intersections > table.pred_areas[table.pred_index]
    is_held = 2 * table.intersections > table.true_areas[table.true_index]
    cut = np.bincount(table.true_index[is_piece], minlength=len(table.true_ids)) >= 2
    full = np.bincount(table.pred_index[is_held], minlength=len(table.pred_ids)) >= 2

    true = np.full(len(table.true_ids), "missed", dtype=object)
    true[cut] = "split"
    true[table.true_index[is_held & full[table.pred_index]]] = "merged"
    true[table.true_index[good]] = "matched"
    pred = np.full(len(table.pred_ids), "false", dtype=object)
    pred[table.pred_index[is_piece & cut[table.true_index]]] = "split"
    pred[full] = "merged"
    pred[table.pred_index[good]] = "matched"
    counts = {
        "matched": len(good),
        "missed": int((true == "missed").sum()),
        "false": int((pred == "false").sum()),
        "split": int(cut.sum()),
        "merged": int(full.sum()),
    }
    return ObjectClasses(
        dict(zip(table.true_ids.tolist(), true, strict=True)),
        dict(zip(table.pred_ids.tolist(), pred, strict=True)),
        counts,
    )


def ranks(scores: pd.DataFrame, lower_is_better: Collection[str] = ERRORS) -> pd.DataFrame:
    """Rank the rows (predictions) within every column (measure): 1 is best, ties share a mean.

    Scores that agree to six digits are ties; a missing score has no rank. Of the columns named in
    ``lower_is_better`` the smallest score is best, of all others the largest.
    """
    turned = scores.round(6)
    errors = [name for name in scores if name in lower_is_better]
    turned[errors] = -turned[errors]
    return turned.rank(ascending=False, method="average")


# --- pictures ----------------------------------------------------------------------------------


@plt.rc_context(STYLE)
def images(
    panels: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    source: str,
    title: str = "",
    columns: int = 3,
    pixel_size: float | None = None,
) -> Figure:
    """Pictures side by side, all on their own grey scale.

    Args:
        panels: (H, W) arrays of *signed* integers are labels and shown in colour, touching
            nuclei in different ones; booleans are masks; all else, (H, W) or (H, W, 3),
            are images.
        titles: one per panel.
        source: what data these are, real or simulated.
        columns: panels per row.
        pixel_size: side of a pixel in µm, where it is known: the first panel gets a scale bar.

    Raises:
        ValueError: if there is not one title per panel.
    """
    _check_titles(panels, titles)
    fig = _grid([_as_picture(panel) for panel in panels], titles, columns)
    _add_scale_bar(fig, pixel_size)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def class_maps(
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    source: str,
    title: str = "",
    columns: int = 3,
    pixel_size: float | None = None,
) -> Figure:
    """What networks are taught, every class of pixel in its colour, with a legend.

    Args:
        maps: (H, W) arrays of classes, as :func:`nuctut.targets.three_classes` gives them.
        titles: one per map.
        source: what data these are, real or simulated.
        columns: panels per row.
        pixel_size: side of a pixel in µm, where it is known: the first map gets a scale bar.

    Raises:
        ValueError: if there is not one title per map.
    """
    _check_titles(maps, titles)
    classes = (targets.BACKGROUND, targets.NUCLEUS, targets.SEPARATION, targets.IGNORE)
    colours = np.zeros((max(classes) + 1, 3))
    colours[list(classes)] = [to_rgb(colour) for colour in CLASS_COLOURS.values()]
    fig = _grid([colours[one] for one in maps], titles, columns, legend=0.3)
    handles = [Patch(color=colour, label=name) for name, colour in CLASS_COLOURS.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _add_scale_bar(fig, pixel_size)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def background_weights(
    weights: Mapping[str, np.ndarray],
    outlined: np.ndarray,
    truth: np.ndarray,
    *,
    source: str,
    title: str = "",
) -> Figure:
    """What counts as background of a partly outlined image, and where that is wrong.

    Outlined nuclei are blue. All else is the lighter, the more it weighs as background: grey where
    it is background, and red on nuclei that nobody outlined.

    Args:
        weights: (H, W) from 0 to 1 of each way to weigh, by name.
        outlined, truth: (H, W) bool, the nuclei that somebody outlined, and all nuclei.
        source: what data these are, real or simulated.
    """
    pictures = []
    for of in weights.values():
        tint = np.where((truth & ~outlined)[..., None], to_rgb(VERMILLION), to_rgb("white"))
        picture = tint * of[..., None]
        picture[outlined] = to_rgb(SKY)
        pictures.append((255 * picture).astype(np.uint8))
    fig = _grid(pictures, list(weights), columns=3, legend=0.4)
    colours = {"outlined": SKY, "background": "white", "nucleus called background": VERMILLION}
    handles = [Patch(fc=colour, ec=GREY, label=name) for name, colour in colours.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    other: np.ndarray | None = None,
    *,
    source: str,
    title: str = "",
    names: tuple[str, str] = ("truth", "prediction"),
    gamma: float = 0.6,
    pixel_size: float | None = None,
) -> Figure:
    """Outlines of one or two sets of labels over the image, a coloured one turned grey.

    Where both outlines fall on the same pixel it is drawn white, or black on a bright image:
    agreement stands back, disagreement shows in colour.

    Args:
        image: (H, W) or (H, W, 3).
        labels, other: (H, W) integer labels.
        source: what data these are, real or simulated.
        names: of the two sets, for the legend.
        gamma: below 1 lifts dim nuclei out of a dark ground; a bright one stays as it is.
        pixel_size: side of a pixel in µm, where it is known, for a scale bar.
    """
    ground = _ground(image, gamma)
    colours = (ORANGE, SKY) if ground.line == "white" else (VERMILLION, BLUE)
    first = outlines(labels)
    ground.picture[first] = to_rgb(colours[0])
    handles = [Line2D([], [], color=colours[0], label=names[0])]
    if other is not None:
        second = outlines(other)
        ground.picture[second] = to_rgb(colours[1])
        ground.picture[first & second] = to_rgb(ground.line)
        handles += [
            Line2D([], [], color=colours[1], label=names[1]),
            Line2D([], [], color=ground.line, label="both"),
        ]
    return _annotated(ground.picture, handles, title, source, ground.line, pixel_size)


@plt.rc_context(STYLE)
def error_map(
    image: np.ndarray,
    labels_true: np.ndarray,
    labels_pred: np.ndarray,
    *,
    source: str,
    title: str = "",
    iou: float = 0.5,
    gamma: float = 0.6,
    pixel_size: float | None = None,
) -> Figure:
    """Every nucleus coloured by what became of it, with counts, over the image turned grey.

    The categories are those of :func:`classify_objects`; split nuclei are striped, merged ones
    cross-hatched. The true outlines are white, or black on a bright image.

    Args:
        image: (H, W) or (H, W, 3).
        labels_true, labels_pred: (H, W) integer labels.
        source: what data these are, real or simulated.
        iou: intersection over union from which a pair matches.
        gamma: below 1 lifts dim nuclei out of a dark ground; a bright one stays as it is.
        pixel_size: side of a pixel in µm, where it is known, for a scale bar.
    """
    ground, counts = _painted(image, labels_true, labels_pred, iou, gamma)
    told = {name: f"{name} {count}" for name, count in counts.items()}
    handles = _categories(told, ground.line)
    handles.append(Line2D([], [], color=ground.line, label="true outline"))
    return _annotated(ground.picture, handles, title, source, ground.line, pixel_size)


@plt.rc_context(STYLE)
def error_maps(
    panels: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    titles: Sequence[str],
    *,
    source: str,
    title: str = "",
    columns: int = 2,
    iou: float = 0.5,
    gamma: float = 0.6,
    pixel_size: float | None = None,
) -> Figure:
    """Several error maps with one legend; what was counted in each stands below its title.

    Lines are the true outlines, white or black as the image is dark or bright.

    Args:
        panels: image, true and predicted labels of each, as :func:`error_map` takes them. They
            may differ in size.
        titles: one per panel.
        source: what data these are, real or simulated.
        columns: panels per row.
        iou, gamma: as for :func:`error_map`.
        pixel_size: side of a pixel in µm, where it is known: the first panel gets a scale bar.

    Raises:
        ValueError: if there is not one title per panel.
    """
    _check_titles(panels, titles)
    painted = [_painted(*panel, iou, gamma) for panel in panels]
    told = [
        f"{name}\n{_counted(counts, letters=int(16 * WIDTH / columns))}"
        for name, (_, counts) in zip(titles, painted, strict=True)
    ]
    fig = _grid([ground.picture for ground, _ in painted], told, columns, legend=0.5)
    handles = _categories({name: name for name in CATEGORY_COLOURS}, "white")
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _add_scale_bar(fig, pixel_size)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def probability_map(
    probabilities: np.ndarray, *, source: str, title: str = "", pixel_size: float | None = None
) -> Figure:
    """A network's answer, its three class colours mixed by probability.

    Args:
        probabilities: (3, H, W), background, nucleus and separation, summing to 1.
        source: what data these are, real or simulated.
        pixel_size: side of a pixel in µm, where it is known, for a scale bar.

    Raises:
        ValueError: if there are not three classes.
    """
    colours = {name: colour for name, colour in CLASS_COLOURS.items() if name != "ignored"}
    if np.ndim(probabilities) != 3 or len(probabilities) != len(colours):
        raise ValueError(
            f"probabilities has shape {np.shape(probabilities)}: expected (3, H, W), "
            "background, nucleus, separation"
        )
    mixed = np.einsum("chw,ck->hwk", probabilities, [to_rgb(one) for one in colours.values()])
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    return _annotated(np.clip(mixed, 0, 1), handles, title, source, "white", pixel_size)


@plt.rc_context(STYLE)
def artificial_steps(
    sample: Sample,
    made: Artificial,
    translated: np.ndarray | None = None,
    *,
    source: str,
    title: str = "From a real image to an artificial one",
    columns: int = 3,
) -> Figure:
    """How an artificial image comes about, step by step, all on the real image's grey scale.

    A the real image with the outlines of its nuclei, B nuclei cut out, C mirrored, turned, bent
    and dimmed, D set on background drawn from the real one's, with the new labels; E made natural.

    Args:
        sample: the real image that it is made of.
        made: the new one, as :func:`nuctut.artificial.invent` gives it.
        translated: (H, W), the new one as a network translates it; without, step E is left out.
        source: what data these are, real or simulated.
        columns: panels per row.
    """
    ends = np.percentile(sample.image, [0.1, 99.8])

    def seen(image: np.ndarray) -> np.ndarray:
        return np.interp(image, ends, [0, 255]).astype(np.uint8)

    real = np.repeat(seen(sample.image)[..., None] / 255, 3, axis=2)
    real[outlines(sample.labels)] = to_rgb(ORANGE)
    steps = {
        "A · real": real,
        "B · cut out": _mosaic([_bare(one, seen) for one in made.cut]),
        "C · altered": _mosaic([_bare(one, seen) for one in made.altered]),
        "D · set on background": seen(made.image),
        "D · their labels": _coloured(made.labels),
    }
    if translated is not None:
        steps["E · made natural"] = seen(translated)
    return _finish(_grid(list(steps.values()), list(steps), columns), title, source)


def _bare(nucleus: Cutout, seen: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(h, w) uint8 view of a nucleus without anything around it."""
    return np.where(nucleus.mask, seen(nucleus.image), 0).astype(np.uint8)


def _mosaic(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Pieces of any size in the middles of the fields of a chessboard."""
    side = max(max(piece.shape) for piece in pieces) + 2
    fields = np.zeros((len(pieces), side, side), pieces[0].dtype)
    for field, piece in zip(fields, pieces, strict=True):
        top, left = ((side - length) // 2 for length in piece.shape)
        field[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return montage(fields, fill=0)


# --- a picture that answers to sliders ---------------------------------------------------------

# No script has to run before a slider moves, so it works wherever HTML is shown and not cleaned.
EXPLORER = Template("""\
<div class="nuctut-explorer" oninput="$answer">
<style>
.nuctut-explorer { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; }
.nuctut-explorer > * { flex: 1 1 16rem; margin: 0; min-width: 0; }
.nuctut-explorer .whole { flex-basis: 100%; }
.nuctut-explorer input { accent-color: $blue; display: block; width: 100%; }
.nuctut-explorer svg { background: black; display: block; width: 100%; }
.nuctut-explorer path { fill: $matched; fill-opacity: 0.55; fill-rule: evenodd; }
.nuctut-explorer .no { fill: $false; }
.nuctut-explorer .true path { fill: none; stroke: white; stroke-width: 0.8; }
.nuctut-explorer .true .no { stroke: $missed; stroke-dasharray: 2 1; stroke-width: 1.2; }
.nuctut-explorer th { text-align: left; white-space: nowrap; }
.nuctut-explorer td:last-child { width: 50%; }
.nuctut-explorer i { background: $blue; display: block; height: 0.7em; }
.nuctut-explorer b { border: 2px solid; display: inline-block; height: 1em; width: 1.6em;
vertical-align: text-bottom; }
</style>
<label>$parameter: <output>$value</output>
<input type="range" autocomplete="off" min="0" max="$last_value" value="$at" \
aria-valuetext="$value"></label>
<label>IoU from which a pair matches: <output>$iou</output>
<input type="range" autocomplete="off" min="0" max="$last_iou" value="0" \
aria-valuetext="$iou"></label>
<div>
<svg viewBox="0 0 $width $height" role="img" aria-label="True outlines over the prediction">
<image href="data:image/png;base64,$picture" width="$width" height="$height" \
style="image-rendering: pixelated"/>
<g class="pred">$predicted</g><g class="true">$true</g>
</svg>
<small>Predicted: <b style="background: $matched; border-color: black"></b> matched,
<b style="background: $false; border-color: black"></b> false.
True outline: <b style="background: black; border-color: white"></b> matched,
<b style="background: black; border: 2px dashed $missed"></b> missed. <br>$source</small>
</div>
<table><tbody>$rows</tbody></table>
<p class="whole" role="status">$said</p>
<script type="application/json">$data</script>
</div>""")

ANSWER = """
const all = (what) => this.querySelectorAll(what);
const data = JSON.parse(all('script')[0].textContent);
const [at, from] = Array.from(all('input'), (input) => Number(input.value));
const state = data.states[at][from];
[data.values[at], data.ious[from]].forEach((text, n) => {
  all('output')[n].textContent = text;
  all('input')[n].setAttribute('aria-valuetext', text);
});
all('.pred path').forEach((path, n) => {
  path.setAttribute('d', data.shapes[at][n] || '');
  path.classList.toggle('no', state.pred[n] === '0');
});
all('.true path').forEach((path, n) => path.classList.toggle('no', state.true[n] === '0'));
all('tr').forEach((row, n) => {
  row.querySelector('td').textContent = state.scores[n];
  row.querySelector('i').style.width = `${100 * state.scores[n] || 0}%`;
});
all('[role=status]')[0].textContent = state.said;
"""


def explorer(
    image: np.ndarray,
    labels_true: np.ndarray,
    predictions: Mapping[float, np.ndarray],
    scores: Callable[[np.ndarray, np.ndarray, float], Mapping[str, float]],
    *,
    source: str,
    parameter: str,
    start: float,
    ious: Sequence[float] = metrics.IOU_THRESHOLDS,
) -> str:
    """A prediction and its scores under two sliders: what made it, and the IoU that counts.

    All of it is computed here and embedded: it needs no network, and where nothing moves it shows
    the state it starts in. A predicted nucleus is painted as matched or false, a true one outlined
    as matched or, with dashes, as missed (:func:`nuctut.metrics.match`).

    Args:
        image: (H, W) or (H, W, 3).
        labels_true: (H, W) integer labels.
        predictions: (H, W) integer labels for each value of the first slider, in its order.
        scores: of true and predicted labels at an IoU, by name, from 0 to 1.
        source: what data these are, real or simulated.
        parameter: what the values of the first slider are, such as "shift, px".
        start: the value at which that slider starts. The other one starts at its first.
        ious: values of the second slider, in its order.

    Returns:
        HTML, about 100 kB for a small scene.
    """
    values = list(predictions)
    data = {
        "values": [f"{value:g}" for value in values],
        "ious": [f"{iou:.2f}" for iou in ious],
        "shapes": [_shapes(labels) for labels in predictions.values()],
        "states": [
            [_state(labels_true, labels, iou, scores) for iou in ious]
            for labels in predictions.values()
        ],
    }
    at = values.index(start)
    shapes, state = data["shapes"][at], data["states"][at][0]
    places = max(map(len, data["shapes"]))
    names = scores(labels_true, predictions[start], ious[0])
    height, width = labels_true.shape
    return EXPLORER.substitute(
        answer=html.escape(ANSWER),
        **{"blue": BLUE, **CATEGORY_COLOURS},
        parameter=html.escape(parameter),
        value=data["values"][at],
        at=at,
        last_value=len(values) - 1,
        iou=data["ious"][0],
        last_iou=len(ious) - 1,
        width=width,
        height=height,
        picture=_png(_ground(image, gamma=0.6).picture),
        predicted=_paths(shapes + [""] * (places - len(shapes)), state["pred"]),
        true=_paths(_shapes(labels_true), state["true"]),
        source=html.escape(source),
        rows="".join(map(_bar, names, state["scores"])),
        said=state["said"],
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _state(
    labels_true: np.ndarray,
    labels_pred: np.ndarray,
    iou: float,
    scores: Callable[[np.ndarray, np.ndarray, float], Mapping[str, float]],
) -> dict[str, Any]:
    """What an explorer shows of one prediction at one IoU; a nucleus is 1 where it is matched."""
    table = metrics.overlap_table(labels_true, labels_pred)
    good = table.matched_pairs(iou)
    true = np.isin(np.arange(len(table.true_ids)), table.true_index[good])
    pred = np.isin(np.arange(len(table.pred_ids)), table.pred_index[good])
    return {
        "true": "".join("01"[one] for one in true.astype(int)),
        "pred": "".join("01"[one] for one in pred.astype(int)),
        "scores": [f"{value:.2f}" for value in scores(labels_true, labels_pred, iou).values()],
        "said": f"{true.sum()} of {len(true)} true nuclei are matched; "
        f"{(~pred).sum()} of {len(pred)} predicted ones are false.",
    }


def _shapes(labels: np.ndarray) -> list[str]:
    """The outline of every nucleus, in the order of the labels, as the `d` of an SVG path."""
    shapes = []
    for label in np.unique(labels[labels > 0]):
        # with a rim around the image, at which outlines close
        outlines = find_contours(np.pad(labels == label, 1).astype(float), 0.5)
        lines = [[f"{x - 0.5:g} {y - 0.5:g}" for y, x in outline] for outline in outlines]
        shapes.append("".join(f"M{'L'.join(line)}Z" for line in lines))
    return shapes


def _paths(shapes: Sequence[str], matched: str) -> str:
    marks = matched.ljust(len(shapes), "1")
    return "".join(
        f'<path d="{shape}"{" class=no" * (mark == "0")}/>'
        for shape, mark in zip(shapes, marks, strict=True)
    )


def _bar(name: str, score: str) -> str:
    """A line of an explorer's table."""
    width = f"{100 * float(score):.0f}%"
    return (
        f'<tr><th scope="row">{html.escape(name)}</th><td>{score}</td>'
        f'<td aria-hidden="true"><i style="width: {width}"></i></td></tr>'
    )


def _png(picture: np.ndarray) -> str:
    """(H, W, 3) floats in 0 to 1 as a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(np.round(255 * picture).astype(np.uint8)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


# --- curves, distributions, tables -------------------------------------------------------------


@plt.rc_context(STYLE)
def loss_curves(
    history: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    source: str,
    title: str = "Loss while training",
) -> Figure:
    """Training loss (thin) and validation loss (thick, dots) over update steps.

    Args:
        history: one table, or one per variant by name, with columns ``step``, ``train_loss``,
            ``val_loss`` and, if known, ``learning_rate``. Rows may lack either loss.

    Raises:
        ValueError: if a column is missing; the message names table and column.
    """
    tables = {"": history} if isinstance(history, pd.DataFrame) else dict(history)
    for name, table in tables.items():
        if missing := {"step", "train_loss", "val_loss"} - set(table.columns):
            raise ValueError(f"history {name!r} lacks the columns {sorted(missing)}")
    with_rate = any("learning_rate" in table for table in tables.values())
    fig, axes = _figure(1 + with_rate, 1, height=3.2 + with_rate, sharex=True)
    loss = axes.flat[0]
    for (name, table), colour in zip(tables.items(), _colours(tables), strict=True):
        trained = table.dropna(subset=["train_loss"])
        validated = table.dropna(subset=["val_loss"])
        loss.plot(trained["step"], trained["train_loss"], color=colour, lw=0.8, alpha=0.6)
        loss.plot(
            validated["step"], validated["val_loss"], "o-", color=colour, lw=1.8, ms=3, label=name
        )
        if "learning_rate" in table:
            axes.flat[1].plot(table["step"], table["learning_rate"], color=colour)
    handles = loss.get_legend_handles_labels()[0] if len(tables) > 1 else []
    handles += [
        Line2D([], [], color=GREY, lw=0.8, label="training"),
        Line2D([], [], color=GREY, lw=1.8, marker="o", ms=3, label="validation"),
    ]
    loss.legend(handles=handles, ncols=1 + (len(handles) > 4))
    loss.set_ylabel("loss")
    if with_rate:
        axes.flat[1].set_ylabel("learning rate")
    axes.flat[-1].set_xlabel("update step")
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def data_comparison(
    set_a: Sequence[Sample],
    set_b: Sequence[Sample],
    *,
    source: str,
    names: tuple[str, str] = ("real", "simulated"),
    title: str = "Simulated beside real",
) -> Figure:
    """Two sets side by side: grey values, nucleus areas, nuclei that touch a neighbour.

    The grey value of a coloured pixel is its luminance.
    """
    censuses = [_census(set_a), _census(set_b)]
    value_bins = _log_bins(np.concatenate([values for values, _, _ in censuses]))
    area_bins = _log_bins(np.concatenate([areas for _, areas, _ in censuses]))
    fig, (grey, area, touch) = _figure(1, 3, height=2.9)
    for position, (values, areas, touching) in enumerate(censuses):
        style = {"color": (BLUE, ORANGE)[position], "histtype": "step"}
        share = np.full(len(areas), 100 / max(len(areas), 1))
        grey.hist(values, value_bins, density=True, **style)
        area.hist(areas, area_bins, weights=share, label=names[position], **style)
        bar = touch.bar(position, 100 * touching, color=style["color"])
        touch.bar_label(bar, fmt="%.0f%%", fontsize=8)
    grey.set(yscale="log", xlabel="grey value", ylabel="density of pixels")
    area.set(xlabel="nucleus area (pixels)", ylabel="% of nuclei")
    for ax, bins in ((grey, value_bins), (area, area_bins)):
        ax.set_xscale("log")
        subs = (1, 3) if bins[-1] < 150 * bins[0] else (1,)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=10))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    touch.set(ylabel="% touching a neighbour", ylim=(0, 100), xlim=(-0.7, 1.7))
    touch.set_xticks([0, 1], names)
    fig.legend(handles=area.get_legend_handles_labels()[0], loc="outside lower center", ncols=2)
    return _finish(fig, title, source)


def _log_bins(values: np.ndarray) -> np.ndarray:
    """Edges of bins that grow by a factor; of whole numbers no bin holds none."""
    positive = values[values > 0]
    ends = (positive.min(), float(positive.max()) + 1) if positive.size else (1, 10)
    edges = np.geomspace(*ends, 50)
    return np.unique(np.rint(edges)) if np.issubdtype(values.dtype, np.integer) else edges


def _census(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, float]:
    """Grey values (every 16th pixel), nucleus areas, and the share of nuclei that touch."""
    values, areas, touching = [], [], 0
    for sample in samples:
        values.append(_luminance(sample.image[::4, ::4]).ravel())
        sizes = np.bincount(sample.labels.ravel())[1:]
        areas.append(sizes[sizes > 0])
        touching += len(np.unique(touching_pairs(sample.labels)))
    counted = np.concatenate(areas)
    return np.concatenate(values), counted, touching / max(len(counted), 1)


@plt.rc_context(STYLE)
def published_against_measured(
    cells: pd.DataFrame, *, source: str, title: str = "Published beside measured"
) -> Figure:
    """One row per published number: the paper's value, the measured one and its interval.

    Args:
        cells: columns ``label``, ``published``, ``measured``, ``low``, ``high`` (the interval's
            ends) and ``verdict``; NaN where nothing was measured. Drawn in the order given,
            first row on top.

    Raises:
        ValueError: if a verdict is not one of ``VERDICT_COLOURS``.
    """
    if unknown := set(cells["verdict"]) - set(VERDICT_COLOURS):
        raise ValueError(f"unknown verdicts {sorted(unknown)}; known: {sorted(VERDICT_COLOURS)}")
    fig, axes = _figure(1, 1, height=0.3 * len(cells) + 1.5)
    ax = axes.item()
    for row, cell in enumerate(cells.itertuples()):
        colour = VERDICT_COLOURS[cell.verdict]
        ax.plot([cell.low, cell.high], [row, row], color=colour, lw=2.5, solid_capstyle="butt")
        ax.plot(cell.measured, row, "o", color=colour, ms=6)
        ax.plot(cell.published, row, "D", mfc="none", mec="black", ms=6)
        ax.annotate(cell.verdict, (1.02, row), xycoords=ax.get_yaxis_transform(),
                    va="center", color=colour, fontsize=8)  # fmt: skip
    ax.set_yticks(range(len(cells)), cells["label"])
    ax.set_ylim(len(cells) - 0.5, -0.5)
    ax.grid(axis="x", color="#DDDDDD")
    ax.set_axisbelow(True)
    handles = [
        Line2D([], [], ls="", marker="D", mfc="none", mec="black", label="published"),
        Line2D([], [], color=GREY, lw=2.5, marker="o", label="measured, 95 % interval"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def scores_by_group(
    tables: Mapping[str, pd.DataFrame],
    measures: Mapping[str, str],
    *,
    source: str,
    title: str = "",
) -> Figure:
    """A dot per method and group of images: one panel per measure, one row per group.

    All panels share one scale, so that a measure that falls stands out beside one that does not.

    Args:
        tables: one per method, by name, as :func:`nuctut.records.scores_by_tag` gives them: a row
            per group, in the same order, with the number of ``images`` and the scores.
        measures: columns to draw, and what to call them.
        source: what data these are, real or simulated.

    Raises:
        ValueError: if the methods were not measured on the same groups of images, naming one.
    """
    groups = next(iter(tables.values()))["images"]
    for name, table in tables.items():
        if not table["images"].equals(groups):
            raise ValueError(
                f"{name!r} was measured on {table['images'].to_dict()} images, "
                f"not on {groups.to_dict()}"
            )
    fig, axes = _figure(1, len(measures), height=0.7 * len(groups) + 1.3, sharex=True, sharey=True)
    places = np.arange(len(groups))
    steps = np.linspace(-0.27, 0.27, len(tables)) if len(tables) > 1 else [0.0]
    for ax, (measure, shown) in zip(axes.flat, measures.items(), strict=True):
        for (name, table), step, colour, marker in zip(
            tables.items(), steps, _colours(tables), "osD^vPX" * 3, strict=False
        ):
            ax.plot(table[measure], places + step, marker, color=colour, ms=5, label=name)
        ax.set_xlabel(shown)
        ax.margins(x=0.08)
        ax.grid(axis="x", color="#DDDDDD")
        ax.hlines(places[1:] - 0.5, 0, 1, color=GREY, lw=0.5, transform=ax.get_yaxis_transform())
        ax.set_axisbelow(True)
    names = [f"{group}\n{count} image{'s' * (count != 1)}" for group, count in groups.items()]
    axes.flat[0].set_yticks(places, names)
    axes.flat[0].set_ylim(len(groups) - 0.5, -0.5)
    handles = axes.flat[0].get_legend_handles_labels()[0]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(len(tables), 4))
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def rank_chart(
    scores: pd.DataFrame,
    *,
    source: str,
    title: str = "Who wins depends on the measure",
    lower_is_better: Collection[str] = ERRORS,
) -> Figure:
    """A line per prediction through its rank under every measure; the number is its score.

    Args:
        scores: one row per prediction, one column per measure. Ties meet in one place, a little
            apart so that each can be seen.
        lower_is_better: columns whose smallest score is best; of all others it is the largest.
    """
    heights = _apart_when_tied(ranks(scores, lower_is_better))
    fig, axes = _figure(1, 1, height=0.5 * len(scores) + 1.6)
    ax = axes.item()
    places = np.arange(scores.shape[1])
    for name, colour in zip(scores.index, _colours(scores.index), strict=True):
        line = heights.loc[name].to_numpy()
        ax.plot(places, line, color=colour, lw=2, zorder=1)
        ax.plot(places, line, "o", color=colour, ms=19, mfc="white", mew=1.5, zorder=2)
        ax.annotate(name, (places[-1] + 0.35, line[-1]), color=colour, va="center")
        for place, height, score in zip(places, line, scores.loc[name], strict=True):
            ax.annotate(f"{score:.2f}", (place, height), ha="center", va="center", fontsize=7)
    ax.set_xticks(places, scores.columns, rotation=35, ha="right")
    ax.set_yticks(range(1, len(scores) + 1))
    ax.set_ylim(len(scores) + 0.6, 0.4)
    ax.set_xlim(-0.5, places[-1] + 1.6)
    ax.set_ylabel("rank (1 is best)")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def sweep_chart(
    scores: pd.DataFrame, against: str, *, measure: str, source: str, title: str = ""
) -> Figure:
    """A score against a parameter: a dot and its interval per run, a line through their means.

    Args:
        scores: one row per run and variant, as :func:`nuctut.running.sweeps.scores` gives them.
        against: the column along the axis. Runs that differ in ``variant`` or in another
            parameter that varies get a line of their own; those that differ in ``seed`` share one.
        measure: what to call the score.
        source: what data these are, real or simulated.
    """
    fixed = {against, "seed", "run", "score", "low", "high"}
    others = [name for name in scores if name not in fixed and scores[name].nunique() > 1]
    values = sorted(scores[against].unique())
    fig, axes = _figure(1, 1, height=3.6)
    ax = axes.item()
    groups = list(scores.groupby(others, sort=False)) if others else [((), scores)]
    for (key, group), colour in zip(groups, PALETTE * 9, strict=False):
        names = dict(zip(others, key if isinstance(key, tuple) else (key,), strict=True))
        label = ", ".join(v if k == "variant" else f"{k} = {v}" for k, v in names.items())
        places = np.array([values.index(value) for value in group[against]], float)
        places += 0.12 * (group.groupby(against).cumcount() - (group.groupby(against)["run"]
                          .transform("size") - 1) / 2).to_numpy()  # fmt: skip
        reach = np.abs(group[["low", "high"]].to_numpy() - group[["score"]].to_numpy()).T
        ax.errorbar(places, group["score"], reach, fmt="o", ms=4, lw=1, color=colour, alpha=0.8)
        means = group.groupby(against)["score"].mean()
        ax.plot([values.index(v) for v in means.index], means, color=colour, lw=1.8, label=label)
    ax.set_xticks(range(len(values)), [f"{v:g}" if np.isreal(v) else str(v) for v in values])
    ax.set(xlabel=against, ylabel=measure)
    ax.grid(axis="y", color="#DDDDDD")
    ax.set_axisbelow(True)
    if len(groups) > 1:
        fig.legend(loc="outside lower center", ncols=2)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def score_grid(
    scores: pd.DataFrame, at_home: pd.DataFrame, *, source: str, title: str = ""
) -> Figure:
    """A grid of scores, dark where they are high; a frame is around those measured at home.

    Args:
        scores: a line per method and a column per data set, 0 to 1; NaN where there is none.
        at_home: of the same lines and columns, whether the method learned from that set.
        source: what data these are, real or simulated.
    """
    fig, axes = _figure(1, 1, height=0.27 * len(scores) + 2.1)
    ax = axes.item()
    ax.imshow(scores, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*scores.shape):
        value = scores.iat[row, column]
        text = "" if np.isnan(value) else f"{value:.2f}".removeprefix("0")
        colour = "white" if value > 0.6 else "black"
        ax.annotate(text, (column, row), ha="center", va="center", color=colour, fontsize=7)
        if at_home.iat[row, column]:
            corner = (column - 0.46, row - 0.46)
            ax.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, ec=VERMILLION, lw=1.5))
    ax.set_xticks(range(scores.shape[1]), scores.columns, rotation=40, ha="right")
    ax.set_yticks(range(scores.shape[0]), scores.index)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    handle = Patch(fill=False, edgecolor=VERMILLION, label="learned from images of this set")
    fig.legend(handles=[handle], loc="outside lower center")
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def critical_difference(
    ranks: pd.Series,
    alike: Sequence[Sequence[str]],
    critical: float,
    *,
    source: str,
    title: str = "",
) -> Figure:
    """Mean ranks on a line, as in Demšar 2006: bars join methods that do not differ.

    Args:
        ranks: mean rank by method, 1 being best, best first.
        alike: names of methods that one bar joins.
        critical: the difference that two mean ranks must have, drawn as a scale.
        source: what data these are, real or simulated.
    """
    fig, axes = _figure(1, 1, height=0.24 * len(ranks) + 0.16 * len(alike) + 1.5)
    ax = axes.item()
    for place, (name, rank) in enumerate(ranks.items()):
        ax.plot([rank, rank], [0, place + 1], color=GREY, lw=0.6, zorder=0)
        ax.plot(rank, place + 1, "o", color=BLUE, ms=5)
        ax.annotate(f"  {name}, {rank:.1f}", (rank, place + 1), va="center", fontsize=8)
    for number, group in enumerate(alike):
        height = -0.6 - 0.6 * number
        ax.plot(ranks[[group[0], group[-1]]], [height, height], color=BLACK, lw=3)
    lowest = -0.6 - 0.6 * len(alike)
    ax.plot([1, 1 + critical], [lowest - 0.6] * 2, color=VERMILLION, lw=1.5, marker="|")
    ax.annotate(
        f"  critical difference {critical:.1f}",
        (1 + critical, lowest - 0.6),
        va="center",
        color=VERMILLION,
        fontsize=8,
    )
    ax.set_ylim(len(ranks) + 0.8, lowest - 1.2)
    ax.set_xlim(0.8, max(ranks.max(), 1 + critical) * 1.45)
    ax.set_xlabel("mean rank (1 is best)")
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def cost_against_score(
    costs: pd.DataFrame, *, measure: str, source: str, title: str = ""
) -> Figure:
    """What a method costs against what it reaches; a line joins those that nothing as fast beats.

    Args:
        costs: a line per method, as :func:`nuctut.comparison.costs` gives them.
        measure: what to call the score.
        source: what data these are, real or simulated.
    """
    fig, axes = _figure(1, 1, height=3.8)
    ax = axes.item()
    best = costs[costs["best"]].sort_values("seconds_per_megapixel")
    ax.plot(best["seconds_per_megapixel"], best["score"], color=GREY, lw=1, zorder=0)
    for name, line in costs.iterrows():
        at = (line["seconds_per_megapixel"], line["score"])
        ax.plot(*at, "o", color=BLUE, mfc=BLUE if line["best"] else "white", ms=5)
        ax.annotate(f" {name}", at, va="center", fontsize=7)
    ax.set_xscale("log")
    ax.margins(x=0.25, y=0.1)
    ax.set(xlabel="seconds per megapixel", ylabel=measure)
    ax.grid(color="#DDDDDD")
    ax.set_axisbelow(True)
    return _finish(fig, title, source)


@plt.rc_context(STYLE)
def rim_profiles(
    rims: Mapping[str, Rim], *, source: str, title: str = "The rim of a nucleus"
) -> Figure:
    """How bright nuclei are from inside to outside, a line each for real, cut-out and other ones.

    The legend says over how many pixels the light falls from 90 % to 10 %, as
    :attr:`nuctut.artificial.Rim.width` does.

    Args:
        rims: by name, as :func:`nuctut.artificial.rim` gives them.
        source: what data these are, real or simulated.
    """
    fig, axes = _figure(1, 1, height=3.6)
    ax = axes.item()
    for (name, rim), colour in zip(rims.items(), _colours(rims), strict=True):
        falls = "does not fall to 10 %" if math.isnan(rim.width) else f"rim {rim.width:.1f} px"
        label = f"{name} ({rim.nuclei} nuclei): {falls}"
        ax.plot(rim.distance, rim.light, "o-", color=colour, ms=3, label=label)
    for share in (0.1, 0.9):
        ax.axhline(share, color=GREY, lw=0.6, ls=":")
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set(xlabel="distance from the outline, pixels (inside < 0)", ylabel="light, innermost = 1")
    fig.legend(loc="outside lower center", ncols=1)
    return _finish(fig, title, source)


def _apart_when_tied(placed: pd.DataFrame) -> pd.DataFrame:
    """Ranks with those that tie moved a little apart, so that every line can be followed."""
    heights = placed.copy()
    for measure in placed:
        for rank, tied in placed.groupby(measure).groups.items():
            steps = np.arange(len(tied)) - (len(tied) - 1) / 2
            heights.loc[tied, measure] = rank + 0.65 * steps
    return heights


@plt.rc_context(STYLE)
def precision_recall(points: pd.DataFrame, *, source: str, title: str = "") -> Figure:
    """Precision against recall: a point per network and condition, a panel per group of images.

    A thin line joins a network's conditions in the order given, and grey curves join what has the
    same F1. All panels share their axes. As figures 5 to 7 of Kromp et al.

    Args:
        points: columns ``network``, ``condition``, ``recall`` and ``precision`` (0 to 1, NaN where
            nothing was measured), and ``group`` where there are several panels.
        source: what data these are, real or simulated.
    """
    grouped = points if "group" in points else points.assign(group="")
    panels = list(grouped.groupby("group", sort=False))
    networks, conditions = points["network"].unique(), points["condition"].unique()
    colours = dict(zip(networks, _colours(networks), strict=True))
    markers = dict(zip(conditions, "osD^vPX" * 3, strict=False))
    fig, axes = _figure(1, len(panels), height=3.6, sharex=True, sharey=True)
    for ax, (name, panel) in zip(axes.flat, panels, strict=True):
        for network, of in panel.groupby("network", sort=False):
            ax.plot(of["recall"], of["precision"], color=colours[network], lw=0.8, alpha=0.6)
            for at in of.itertuples():
                ax.plot(at.recall, at.precision, markers[at.condition], color=colours[network])
        ax.set(xlabel="recall", title=name)
        ax.margins(0.1)
    axes.flat[0].set_ylabel("precision")
    _draw_f1_curves(axes.flat)
    handles = [Line2D([], [], color=colour, lw=2, label=name) for name, colour in colours.items()]
    handles += [
        Line2D([], [], color=GREY, ls="", marker=marker, label=name)
        for name, marker in markers.items()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=4)
    return _finish(fig, title, source)


def _draw_f1_curves(axes: Iterable[Axes]) -> None:
    """Grey curves of equal F1, one for every tenth, behind what is drawn and within its limits."""
    for ax in axes:
        limits = ax.axis()
        recall = np.linspace(0.01, 1, 200)
        for f1 in np.arange(1, 10) / 10:
            with np.errstate(divide="ignore"):
                precision = f1 * recall / (2 * recall - f1)
            shown = (precision > 0) & (precision <= 1)
            ax.plot(recall[shown], precision[shown], color="#DDDDDD", lw=0.8, zorder=0)
        ax.axis(limits)


@plt.rc_context(STYLE)
def cases(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    source: str,
    title: str = "",
    columns: int = 4,
) -> Figure:
    """Pairs of labels, truth filled and prediction dashed, each with what it counts as below.

    The counts are those of :func:`nuctut.metrics.detection`; none that is 0 is named.

    Args:
        pairs: (H, W) labels of truth and prediction by the case's name.
        source: what data these are, real or simulated.
        columns: pairs per row.
    """
    rows = math.ceil(len(pairs) / columns)
    fig, axes = _figure(rows, columns, height=1.1 * rows + 0.8)
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    for ax, (name, (true, pred)) in zip(axes.flat, pairs.items(), strict=False):
        ax.imshow(np.where(true[..., None] > 0, to_rgb(SKY), 1.0))
        _draw_lines(ax, true, color=BLUE, lw=1)
        _draw_lines(ax, pred, color=VERMILLION, lw=1.5, ls="--")
        ax.set_title(name)
        ax.set_xlabel(_counts_in_words(metrics.detection(true, pred)), fontsize=8)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    handles = [
        Patch(facecolor=SKY, edgecolor=BLUE, label="truth"),
        Line2D([], [], color=VERMILLION, lw=1.5, ls="--", label="prediction"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return _finish(fig, title, source)


def _draw_lines(ax: Axes, labels: np.ndarray, **style: Any) -> None:
    """A closed line around every object of (H, W) labels."""
    for label in np.unique(labels[labels > 0]):
        for line in find_contours(np.pad(labels == label, 1).astype(float), 0.5):
            ax.plot(line[:, 1] - 1, line[:, 0] - 1, **style)


def _counts_in_words(found: metrics.Detection) -> str:
    """Such as "1 TP, 2 FP"."""
    counts = {"TP": found.tp, "FN": found.fn, "FP": found.fp, "US": found.us, "OS": found.os}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


# --- the parts they share ----------------------------------------------------------------------


def _colours(names: Iterable[str]) -> list[str]:
    """A colour for each name: its network's, where the book gives it one, or one that is left."""
    letters = [re.sub("[^a-z]", "", name.lower()) for name in names]
    known = NETWORK_COLOURS.items()
    own = [next((colour for key, colour in known if key in one), None) for one in letters]
    left = (colour for colour in PALETTE * 9 if colour not in own)
    return [next(left) if one in (None, *own[:at]) else one for at, one in enumerate(own)]


def _figure(rows: int, columns: int, *, height: float, **kwargs) -> tuple[Figure, np.ndarray]:
    """A white sheet of the book's width, closed at once so that a notebook shows it only once."""
    fig, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **kwargs
    )
    plt.close(fig)
    return fig, axes if rows > 1 else axes[0]


def _finish(fig: Figure, title: str, source: str) -> Figure:
    fig.suptitle(f"{title}\n{source}" if title else source)
    return fig


def _show(ax: Axes, picture: np.ndarray, title: str) -> None:
    ax.imshow(picture, vmin=0, vmax=255, cmap="gray")
    ax.set_title(title)
    ax.set_axis_off()


def _check_titles(panels: Sequence, titles: Sequence[str]) -> None:
    if len(titles) != len(panels):
        raise ValueError(f"titles must hold one per panel, {len(panels)}, not {len(titles)}")


def _grid(
    pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int, legend: float = 0.0
) -> Figure:
    """Pictures with titles in rows; `legend` inches are left below.

    A row is as high as its highest picture, but no picture is drawn higher than 1.3 times the
    width of its place: a narrow strip becomes narrower instead.
    """
    columns = min(columns, len(pictures))
    place = WIDTH / columns
    heights = [min(picture.shape[0] / picture.shape[1], 1.3) * place for picture in pictures]
    lines = [0.1 + 0.15 * (1 + name.count("\n")) for name in titles]
    both = [height + line for height, line in zip(heights, lines, strict=True)]
    rows = [max(both[start : start + columns]) for start in range(0, len(both), columns)]
    fig, axes = _figure(len(rows), columns, height=sum(rows) + 0.4 + legend, height_ratios=rows)
    for ax, picture, name in zip(axes.flat, pictures, titles, strict=False):
        _show(ax, picture, name)
        ax.set_anchor("N")  # titles of a row on one line
    for ax in axes.flat[len(pictures) :]:
        ax.set_axis_off()
    return fig


def _annotated(
    picture: np.ndarray,
    handles: list,
    title: str,
    source: str,
    line: str,
    pixel_size: float | None,
) -> Figure:
    """One large picture with its legend below, on black or white like the image it explains."""
    height, width = picture.shape[:2]
    fig, axes = _figure(1, 1, height=WIDTH * height / width + 0.8)
    _show(axes.item(), picture, "")
    sheet = "black" if line == "white" else "white"
    legend = fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=True,
                        framealpha=1, facecolor=sheet, labelcolor=line)  # fmt: skip
    legend.get_frame().set_edgecolor(sheet)
    _add_scale_bar(fig, pixel_size)
    return _finish(fig, title, source)


def _add_scale_bar(fig: Figure, pixel_size: float | None) -> None:
    """A bar of a round number of µm in the first picture's corner, a fifth of its width at most."""
    if pixel_size is None:
        return
    ax = fig.axes[0]
    height, width = ax.images[0].get_array().shape[:2]
    fifth = width * pixel_size / 5
    power = 10 ** math.floor(math.log10(fifth))
    length = max(step * power for step in (1, 2, 5) if step * power <= fifth)
    right, bottom = 0.96 * width, 0.95 * height
    edge = [patheffects.withStroke(linewidth=3.5, foreground="black")]
    ends = [right - length / pixel_size, right]
    ax.plot(ends, [bottom, bottom], "-", color="white", lw=2, solid_capstyle="butt",
            path_effects=edge)  # fmt: skip
    ax.annotate(f"{length:g} µm", (right, bottom), (0, 3), textcoords="offset points",
                ha="right", va="bottom", color="white", fontsize=8, path_effects=edge)  # fmt: skip


@dataclass(frozen=True)
class _Ground:
    """A picture to be painted on: (H, W, 3) floats in 0 to 1, and the line colour that shows."""

    picture: np.ndarray
    line: str


def _ground(image: np.ndarray, gamma: float) -> _Ground:
    """The image in grey, so that only the paint is coloured; gamma is for dark images."""
    grey = _luminance(image)
    view = display_range(grey)
    bright = np.median(view) > 127
    if not bright:
        view = display_range(grey, gamma=gamma)
    return _Ground(np.repeat(view[..., None] / 255, 3, axis=2), "black" if bright else "white")


def _luminance(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) to (H, W) of the same dtype; a grey pixel keeps its value.

    The weights are those of ITU-R BT.601.
    """
    if image.ndim == 2:
        return image
    grey = image @ np.array([0.299, 0.587, 0.114])
    whole = np.issubdtype(image.dtype, np.integer)
    return (np.rint(grey) if whole else grey).astype(image.dtype)


def _painted(
    image: np.ndarray, labels_true: np.ndarray, labels_pred: np.ndarray, iou: float, gamma: float
) -> tuple[_Ground, Mapping[str, int]]:
    """The image with every nucleus in its category's colour, and how many there are of each."""
    classes = classify_objects(labels_true, labels_pred, iou)
    ground = _ground(image, gamma)
    picture, grey = ground.picture, ground.picture.copy()
    # The later a category is painted the more it tells, so it covers the earlier ones.
    for category in ("matched", "false", "missed", "split", "merged"):
        where = _pixels_of(labels_true, classes.true, category)
        where |= _pixels_of(labels_pred, classes.pred, category)
        picture[where] = 0.4 * grey[where] + 0.6 * np.asarray(to_rgb(CATEGORY_COLOURS[category]))
        picture[where & _stripes(picture.shape, category)] = to_rgb(ground.line)
    picture[outlines(labels_true)] = to_rgb(ground.line)
    return ground, classes.counts


def _stripes(shape: tuple[int, ...], category: str) -> np.ndarray:
    """Where a category's stripes would run in a picture of this shape, as in `CATEGORY_HATCHES`."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    apart = max(5, round(shape[1] / 80))  # so that a panel of any size shows them
    rising = (rows + columns) % apart < apart // 5
    falling = (rows - columns) % apart < apart // 5
    none = np.zeros(shape[:2], bool)
    return {"split": rising, "merged": rising | falling}.get(category, none)


def _counted(counts: Mapping[str, int], letters: int) -> str:
    """Such as "matched 7, missed 1", in lines of so many letters, without what was not seen."""
    seen = [f"{category}\N{NO-BREAK SPACE}{count}" for category, count in counts.items() if count]
    return textwrap.fill(", ".join(seen), letters)


def _categories(names: Mapping[str, str], line: str) -> list[Patch]:
    """A legend's patches for the categories, under these names, with stripes of that colour."""
    return [
        Patch(facecolor=CATEGORY_COLOURS[category], edgecolor=line, linewidth=0, label=name,
              hatch=CATEGORY_HATCHES.get(category))
        for category, name in names.items()
    ]  # fmt: skip


def _as_picture(panel: np.ndarray) -> np.ndarray:
    if panel.dtype == bool:
        return np.uint8(255) * panel
    if panel.dtype.kind == "i":
        return _coloured(panel)
    return display_range(panel)


def _coloured(labels: np.ndarray) -> np.ndarray:
    """Labels as (H, W, 3) floats; a nucleus passes over the colours its neighbours have."""
    neighbours: dict[int, set[int]] = {}
    for a, b in touching_pairs(labels).tolist():
        neighbours.setdefault(b, set()).add(a)
    colours = np.zeros((int(labels.max()) + 1, 3))
    chosen: dict[int, int] = {}
    for label in np.unique(labels[labels > 0]).tolist():
        taken = {chosen[other] for other in neighbours.get(label, ())}
        order = [(label + step) % len(PALETTE) for step in range(len(PALETTE))]
        chosen[label] = next((colour for colour in order if colour not in taken), order[0])
        colours[label] = to_rgb(PALETTE[chosen[label]])
    return colours[labels]


def _pixels_of(labels: np.ndarray, categories: Mapping[int, str], category: str) -> np.ndarray:
    return np.isin(labels, [label for label, name in categories.items() if name == category])
