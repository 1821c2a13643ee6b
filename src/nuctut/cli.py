"""The command line: `nuctut data | run | sweep | book | scoreboard`. It holds no logic."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="Five papers that taught networks to find cell nuclei, rebuilt as a book that runs.",
    no_args_is_help=True,
    add_completion=False,
)
data_app = typer.Typer(help="The data sets: list, fetch, check, simulate.", no_args_is_help=True)
app.add_typer(data_app, name="data")

DataSet = Annotated[str, typer.Argument(metavar="NAME", help="As `nuctut data list` names it.")]
Chapter = Annotated[str, typer.Argument(help='Its name or the beginning of it, such as "01".')]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="May be given several times."),
]


def main() -> None:
    """Entry point: what goes wrong in an expected way is one message, and exit status 1."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False, highlight=False)
        sys.exit(1)


# --- data ----------------------------------------------------------------------------------------


@data_app.command("list")
def list_data() -> None:
    """Which data sets there are, and what of them is on this machine."""
    from nuctut import datasets

    table = Table("name", "title", "licence", "download", "here", box=box.SIMPLE)
    for name, spec in datasets.REGISTRY.items():
        megabytes = sum(archive.bytes for archive in spec.archives) / 1e6
        status = datasets.status(name)
        table.add_row(name, spec.title, spec.licence, f"{megabytes:.0f} MB", status.state)
    Console().print(table)
    typer.echo(f"The data folder is {datasets.data_root()}")


@data_app.command()
def fetch(name: DataSet) -> None:
    """Download a data set, check it, and unpack it into the data folder."""
    from nuctut import datasets

    typer.echo(datasets.fetch(name))


@data_app.command()
def check(name: DataSet) -> None:
    """Read every file of a data set and say what is there and what is wrong."""
    from nuctut import datasets

    report = datasets.check(name)
    typer.echo("\n".join(report.summary))
    if not report.ok:
        raise typer.Exit(1)


@data_app.command()
def simulate(
    name: DataSet,
    folder: Annotated[Path | None, typer.Option(help="Where to; it must not exist.")] = None,
    seed: Annotated[int, typer.Option(help="Other seeds give other images.")] = 0,
) -> None:
    """Write invented images in the layout of a data set."""
    from nuctut import datasets

    typer.echo(datasets.simulate(name, folder, seed=seed))


# --- chapters ------------------------------------------------------------------------------------


@app.command()
def run(
    chapter: Chapter,
    parameter: Parameters = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the chapter's parameters and stop.")
    ] = False,
) -> None:
    """Run a chapter: `nuctut run 01 -p preset=lite -p seed=1`."""
    from nuctut import notebooks

    if show:
        for known in notebooks.read_parameters(notebooks.find_chapter(chapter)).values():
            typer.echo(f"{known}  # {known.help}")
        return
    typer.echo(notebooks.run_chapter(chapter, _pairs(parameter)))


@app.command()
def sweep(chapter: Chapter, parameter: Parameters = None) -> None:
    """Run a chapter for every combination: `nuctut sweep 01 -p preset=smoke -p seed=1,2`."""
    from nuctut import notebooks

    grid = {name: values.split(",") for name, values in _pairs(parameter).items()}
    notebooks.sweep(chapter, grid)


def _pairs(parameter: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in parameter or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"A parameter is given as NAME=VALUE, not {text!r}.")
        if name in pairs:
            raise ValueError(f"The parameter {name!r} is given twice.")
        pairs[name] = value
    return pairs


@app.command()
def book(
    preset: Annotated[str, typer.Option(help="smoke, lite or paper.")] = "smoke",
) -> None:
    """Run what has changed and render the book to _build/html."""
    from nuctut.book import build_book

    build_book(preset)


@app.command()
def scoreboard() -> None:
    """What the papers published beside what was measured, and which claims hold."""
    from nuctut import scoreboard as board

    records = board.evidence()
    for name in board.papers():
        paper = board.published(name)
        scores = board.compare_scores(paper, records)
        scores["metric"] = scores["metric"].map(board.METRIC_NAMES)
        measured = ["measured", "low", "high", "verdict"]
        _print_frame(paper.authors, scores[["row", "metric", "published", *measured]])
        claims = board.judge_claims(paper, records)
        names = {"text": "claim", "published_effect": "published", "measured_effect": "measured"}
        claims = claims.rename(columns=names)
        _print_frame("Claims, as differences", claims[["claim", "published", *measured]])
        data = ", ".join(sorted({*scores["data"], *claims["data"]} - {""})) or "nothing yet"
        typer.echo(f"Measured on {data}. Claims: {board.tally(claims)}.")


def _print_frame(title: str, frame: pd.DataFrame) -> None:
    table = Table(title=title, box=box.SIMPLE, title_justify="left", padding=0, pad_edge=False)
    for name, values in frame.items():
        number = values.dtype.kind == "f"
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in line))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}"
    return str(value)
