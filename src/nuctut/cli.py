"""The command line: `nuctut data | run | sweep | book | scoreboard …`. It holds no logic."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    import pandas as pd

    from nuctut.running.runs import Entry

app = typer.Typer(
    help="Five papers that taught networks to find cell nuclei, rebuilt as a book that runs.",
    no_args_is_help=True,
    add_completion=False,
)
data_app = typer.Typer(help="The data sets: list, fetch, check, simulate.", no_args_is_help=True)
app.add_typer(data_app, name="data")

ACCEPT = "NUCTUT_ACCEPT_OLD_FIT"  # of `experiments`, whose import takes seconds

DataSet = Annotated[str, typer.Argument(metavar="NAME", help="As `nuctut data list` names it.")]
# What ends a command in order; an alarm does where it was given a time (Windows has none).
STOPS = (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGALRM", None)]))
OUT_OF_TIME = 75  # exit status: try again, and it goes on

Chapter = Annotated[str, typer.Argument(help='Its name or the beginning of it, such as "01".')]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="May be given several times."),
]


class Stop:
    """What the signals `STOPS` do: the first one ends the command in order, the second at once.

    Attributes:
        number: Of the signal; 0 where none came.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        raise SystemExit(128 + number)  # not KeyboardInterrupt: typer has its own word for that


def main() -> None:
    """Entry point: what goes wrong in an expected way is one message, and exit status 1.

    Ctrl-C and SIGTERM are one message too, whatever they broke off, and exit status 130 or 143,
    and so is the end of the time that `run --minutes` gives, with 75.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no character that a terminal lacks ends it
            stream.reconfigure(errors="backslashreplace")
    if runs := os.environ.get("NUCTUT_RUNS"):  # chapters run in a folder of their own
        os.environ["NUCTUT_RUNS"] = str(Path(runs).expanduser().resolve())
    stop = Stop()
    before = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup asks
            signal.signal(number, stop)
    try:
        app()
    except BaseException as error:
        _end(error, stop.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(error: BaseException, stopped: int) -> None:
    """End the command in words, where the error is one that is expected."""
    console = Console(stderr=True, soft_wrap=True)
    if stopped:
        over = stopped not in STOPS[:2]
        why = "The time is over" if over else "Stopped"
        console.print(f"{why}. The same command goes on from here.")
        sys.exit(OUT_OF_TIME if over else 128 + stopped)
    if isinstance(error, ValueError | RuntimeError | OSError):
        console.print(f"Error: {error}", markup=False, highlight=False)
        sys.exit(1)
    raise error


# --- data ----------------------------------------------------------------------------------------


@data_app.command("list")
def list_data() -> None:
    """Which data sets there are, and what of them is on this machine."""
    from nuctut import datasets

    table = Table("name", "title", "licence", "download", "here", box=box.SIMPLE)
    for name, spec in datasets.REGISTRY.items():
        megabytes = sum(archive.bytes for archive in spec.archives) / 1e6
        download = f"{megabytes:.0f} MB" if spec.archives else "by hand"
        status = datasets.status(name)
        table.add_row(name, spec.title, spec.licence, download, status.state)
    Console().print(table)
    typer.echo(f"The data folder is {datasets.data_root()}")


@data_app.command()
def fetch(
    name: DataSet,
    planes: Annotated[
        str | None, typer.Option(metavar="N,N…", help="Of bbbc006: the planes wanted, 0 to 33.")
    ] = None,
) -> None:
    """Download a data set, check it, and unpack it into the data folder."""
    from nuctut import datasets

    chosen = {} if planes is None else {"planes": _whole_numbers(planes)}
    typer.echo(datasets.fetch(name, **chosen))


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"Planes are whole numbers with commas between, not {text!r}.") from None


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


# --- your own images -----------------------------------------------------------------------------


@app.command()
def export(
    run: Annotated[
        str, typer.Option(metavar="RUN", help="A fit: its folder, or the beginning of its name.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new file: .onnx, or .zip for bioimage.io.")
    ],
) -> None:
    """Write a trained network for other tools: `nuctut export --run RUN -o net.onnx`."""
    from nuctut.own_images.export import export as write
    from nuctut.running import runs

    typer.echo(write(runs.find_fit(run), output))


# --- what is on disk -----------------------------------------------------------------------------


runs_app = typer.Typer(
    help="What lies below runs/: list it, look at it, delete it.", no_args_is_help=True
)
app.add_typer(runs_app, name="runs")


@runs_app.command("list")
def runs_list() -> None:
    """What is there, how large it is, and what of it is finished, broken or orphaned."""
    from nuctut.running import runs

    entries = runs.inventory()
    _print_entries(entries)
    states = [entry.state for entry in entries]
    if broken := states.count("broken"):
        typer.echo(f"{broken} broken: run again with the same parameters, what stopped goes on.")
    if orphaned := sum(entry.state == "orphaned" and bool(entry.marked) for entry in entries):
        typer.echo(f"{orphaned} orphaned: `nuctut runs clean` deletes them, after asking.")


@runs_app.command("show")
def runs_show(
    name: Annotated[str, typer.Argument(help="As `nuctut runs list` names it, or its beginning.")],
) -> None:
    """Everything about one of them, and how to use it or go on with it."""
    from nuctut.running import runs

    entry = runs.find(name, runs.inventory())
    table = Table(title=entry.name, box=None, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in runs.describe(entry).items():
        table.add_row(title, escape(text))
    Console().print(table)


@runs_app.command("clean")
def runs_clean(
    what: Annotated[
        list[str] | None, typer.Argument(help="orphaned (unless told otherwise), broken, or names.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what nobody needs, after asking."""
    from nuctut.running import runs

    entries = runs.chosen(what or ["orphaned"], runs.inventory())
    if not entries:
        typer.echo("There is nothing of that kind.")
        return
    _print_entries(entries)
    if not yes and not _agreed("Delete these?"):
        typer.echo("Nothing deleted.")
        raise typer.Exit(1)
    deleted = runs.delete(entries)
    for entry in deleted.kept:
        typer.echo(f"Kept {entry.name}: it is at work, has changed just now, or cannot be deleted.")
    typer.echo(f"{decimal(deleted.bytes)} freed.")


def _agreed(question: str) -> bool:
    """The answer to a question; no answer is a no."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        typer.echo()
        return False


def _print_entries(entries: Sequence[Entry]) -> None:
    table = Table("name", "kind", "state", box=box.SIMPLE, padding=0, pad_edge=False)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("changed", no_wrap=True)
    table.add_column("note")
    table.columns[0].overflow = "fold"
    for entry in entries:
        changed = f"{datetime.fromtimestamp(entry.changed):%Y-%m-%d %H:%M}"
        row = (entry.name, entry.kind, entry.state, decimal(entry.bytes), changed, entry.note)
        table.add_row(*map(escape, row))
    Console().print(table)
    total = decimal(sum(entry.bytes for entry in entries))
    typer.echo(f"{len(entries)} in all, {total}")


# --- chapters ------------------------------------------------------------------------------------


@app.command()
def run(
    chapter: Chapter,
    parameter: Parameters = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the chapter's parameters and stop.")
    ] = False,
    accept_old_fit: Annotated[
        bool,
        typer.Option("--accept-old-fit", help="Take up finished fits of other code; records say."),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop then, with exit status 75; the same command goes on from there."),
    ] = None,
) -> None:
    """Run a chapter: `nuctut run 01 -p preset=lite -p seed=1`."""
    from nuctut.running import notebooks

    if accept_old_fit:
        os.environ[ACCEPT] = "1"  # which the chapter's kernel gets
    if show:
        for known in notebooks.read_parameters(notebooks.find_chapter(chapter)).values():
            typer.echo(f"{known}  # {known.help}")
        return
    if minutes is not None:
        _alarm_after(minutes)
    typer.echo(notebooks.run_chapter(chapter, _pairs(parameter)))


def _alarm_after(minutes: float) -> None:
    """Let `Stop` end the command when a time is over; a fit has kept where it is.

    Raises:
        ValueError: When that is no time, or the system has no alarm.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes must be more than 0, not {minutes:g}.")
    if not hasattr(signal, "setitimer"):
        raise ValueError("minutes need an alarm, which this system has not: stop it with Ctrl-C.")
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)


class _RunByDefault(TyperGroup):
    """`nuctut sweep 01 …` is short for `nuctut sweep run 01 …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweep_app = typer.Typer(
    cls=_RunByDefault,
    help="Run a chapter for every combination of values: nuctut sweep 01 -g seed=0,1,2 "
    "(short for nuctut sweep run 01 …, whose --help has the options).",
    no_args_is_help=True,
)
app.add_typer(sweep_app, name="sweep")


@sweep_app.command("run")
def sweep_run(
    chapter: Chapter,
    grid: Annotated[
        list[str] | None,
        typer.Option("-g", metavar="NAME=V1,V2", help="A parameter that varies, and its values."),
    ] = None,
    grid_file: Annotated[
        Path | None,
        typer.Option("--grid", metavar="FILE", help="The same as YAML: lines of NAME: [V1, V2]."),
    ] = None,
    parameter: Parameters = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at once here; as many as cores and memory allow.")
    ] = None,
    per_gpu: Annotated[int, typer.Option(help="Runs that share a GPU.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Of each run; by default the cores are shared out.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(metavar="ADDRESS", help="A running dask scheduler, tcp://host:8786.")
    ] = "",
    tls_ca: Annotated[
        Path | None, typer.Option(help="Of a scheduler tls://…: who signed its certificate.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The certificate we show it.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="And its key.")] = None,
    time_limit: Annotated[str, typer.Option(help='Of a run, such as "90s", "30m" or "2h".')] = "1d",
    folder: Annotated[
        Path | None, typer.Option(help="Where to; by default below runs/sweeps/.")
    ] = None,
) -> None:
    """Run a chapter for every combination: `nuctut sweep 01 -p preset=smoke -g seed=0,1,2`."""
    from nuctut.running import cluster, sweeps

    values: dict = sweeps.read_grid(grid_file) if grid_file else {}
    values |= {name: text.split(",") for name, text in _pairs(grid).items()}
    sweep = sweeps.plan(chapter, values, _pairs(parameter), folder)
    limit = cluster.seconds_of(time_limit)
    how = {"scheduler": scheduler, "workers": workers, "threads": threads, "limit": limit}
    how["per_gpu"] = per_gpu
    how["certificates"] = cluster.Certificates.given(ca=tls_ca, cert=tls_cert, key=tls_key)
    if not cluster.carry_out(sweep, **how):
        raise typer.Exit(1)


@sweep_app.command("show")
def sweep_show(
    sweep: Annotated[
        str, typer.Argument(help="Its folder, its table, or the beginning of its name.")
    ] = "",
    metric: Annotated[str, typer.Option(help="The score to show.")] = "f1_50",
    against: Annotated[
        str, typer.Option(help="The parameter along the axis; by default the one of most values.")
    ] = "",
) -> None:
    """Show a sweep's scores against its parameters, as a table and as a picture."""
    from nuctut.running import sweeps

    place = sweeps.find(sweep)
    frame = sweeps.read_table(place)
    _print_frame(f"{metric}, with 95 % intervals", sweeps.shown(frame, metric))
    typer.echo(sweeps.draw(frame, place, metric, against))


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


# --- your own images -----------------------------------------------------------------------------


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Files, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")],
    run: Annotated[
        str,
        typer.Option(
            help="A fit: its folder, or the beginning of its name. By default a network of the "
            "book, by the kind of each image; see `nuctut networks`."
        ),
    ] = "",
    page: Annotated[
        int | None, typer.Option(help="The only page to predict, from 0; otherwise all.")
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="In µm; otherwise what the file says.")
    ] = None,
    diameter: Annotated[
        float | None,
        typer.Option(
            help="Of the nuclei, in pixels; for a network that knows nuclei of one size, on which "
            "images are rescaled to it."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Predict again what is there.")
    ] = False,
) -> None:
    """Find nuclei in images of your own: `nuctut predict image.tif folder/ -o out/`."""
    from tqdm import tqdm

    from nuctut.own_images import predict as command

    network = command.load(run) if run else None
    if network:
        typer.echo(f"Network: {network}")
    how = {"page": page, "pixel_size": pixel_size, "diameter": diameter, "overwrite": overwrite}
    how["progress"] = sys.stderr.isatty()
    report = command.predict_files(
        network, images, out, **how, tell=lambda text: tqdm.write(text, file=sys.stderr)
    )
    typer.echo("\n".join(command.summary(report)))
    if report.failed:
        raise typer.Exit(1)


@app.command()
def judge(
    images: Annotated[Path, typer.Option(help="Folder of images, each of one page.")],
    labels: Annotated[
        Path,
        typer.Option(help="Folder of their labels, of the same names or with _labels at the end."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the tables as CSV files.")
    ] = None,
) -> None:
    """Which network of the book for your images? `nuctut judge --images dir --labels dir`."""
    from tqdm import tqdm

    from nuctut.comparison import METRICS
    from nuctut.experiments import common_ground
    from nuctut.own_images import judge as command

    how = {"progress": sys.stderr.isatty()}
    how["tell"] = lambda text: tqdm.write(text, file=sys.stderr)
    judged = command.judge(images, labels, common_ground.methods(), **how)
    table = judged.table()
    shown = table[["method", *METRICS]].rename(columns=METRICS)
    ends = [table[f"f1_50_{end}"] for end in ("low", "high")]
    shown.insert(2, "from", ends[0])
    shown.insert(3, "to", ends[1])
    shown["s/megapixel"], shown["sees"] = table["seconds_per_megapixel"], table["sees"]
    _print_frame(f"Every method on {judged.images} labelled images of {images}", shown)
    typer.echo("\n".join(command.summary(judged)))
    for path in command.write(judged, out) if out else ():
        typer.echo(path)
    if judged.failed:
        raise typer.Exit(1)


@app.command()
def book(
    preset: Annotated[
        str, typer.Option(help="read, smoke, lite or paper; by default each chapter's own.")
    ] = "",
) -> None:
    """Run what has changed and render the book to _build/html."""
    from nuctut.running.book import build_book

    build_book(preset or None)


@app.command()
def notebooks() -> None:
    """Write plain copies of the chapters to notebooks/, for Colab and for download."""
    from nuctut.paths import project_root
    from nuctut.running import plain

    typer.echo(plain.write(project_root() / "notebooks"))


@app.command()
def networks(
    ship: Annotated[
        str, typer.Option(help="A finished fit to put among them, once its record is committed.")
    ] = "",
) -> None:
    """The networks that come with the book, and what they scored."""
    import pandas as pd

    from nuctut import experiments, fits, records
    from nuctut.experiments import shipping
    from nuctut.paths import results_root
    from nuctut.running import runs

    if ship:
        typer.echo(f"Now in {experiments.ship(runs.find_fit(ship))}")
        return
    lines = []
    known = records.read_all(results_root())
    for folder in experiments.folders():
        record = experiments.record_of(folder, known)
        megabytes = (folder / fits.WEIGHTS).stat().st_size / 1e6
        line = {"chapter": record.chapter, "network": record.variant}
        line |= {"what it is": record.parameters["network"], "MB": megabytes}
        line |= {"F1": record.scores["f1_50"], "mean AP": record.scores["mean_average_precision"]}
        lines.append(line)
    if not lines:
        typer.echo(
            "This checkout has no networks: say `nuctut run 01 -p preset=lite` to train some."
        )
        return
    _print_frame("Networks of the book, scored on the test split", pd.DataFrame(lines))
    typer.echo(
        f"The {shipping.CARD} of each, in {shipping.root()}, says what it learned from and what it "
        "is not good for."
    )


@app.command()
def scoreboard() -> None:
    """What the papers published beside what was measured, and which claims hold."""
    from nuctut import scoreboard as board

    records = board.evidence()
    for name in board.papers():
        paper = board.published(name)
        scores = board.compare_scores(paper, records)
        scores["metric"] = scores["metric"].map(board.METRIC_NAMES)
        scores["rests on"] = [board.rests_on(line) for line in scores.itertuples()]
        measured = ["measured", "low", "high", "verdict", "rests on"]
        _print_frame(paper.authors, scores[["row", "metric", "published", *measured]])
        claims = board.judge_claims(paper, records)
        claims["rests on"] = [board.rests_on(line) for line in claims.itertuples()]
        names = {"text": "claim", "published_effect": "published", "measured_effect": "measured"}
        claims = claims.rename(columns=names)
        _print_frame("Claims, as differences", claims[["claim", "published", *measured]])
        data = ", ".join(sorted({*scores["data"], *claims["data"]} - {""})) or "nothing yet"
        typer.echo(f"Measured on {data}. Claims: {board.tally(claims)}.")


def _print_frame(title: str, frame: pd.DataFrame) -> None:
    table = Table(title=title, box=box.SIMPLE, title_justify="left", padding=0, pad_edge=False)
    for name, values in frame.items():
        number = values.dtype.kind == "f"
        whole = name == "verdict"
        table.add_column(
            name, justify="right" if number else "left", overflow="fold", no_wrap=whole
        )
    for line in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in line))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}"
    return str(value)
