"""The book runs what has changed and nothing else, and never loses a good page to a bad one."""

import os
import re
import shutil
import subprocess
import threading
from itertools import count
from pathlib import Path

import nbformat
import psutil
import pytest
from chapter_maker import write_chapter, write_project
from nbformat import v4
from processes import NUCTUT, PATIENCE, is_alive, wait_for

from nuctut.files import locked
from nuctut.running import book, notebooks


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    write_project(root, ["scoreboard", "01_tiny", "02_small"], ["words"])
    for name in ("01_tiny", "02_small"):
        write_chapter(root / "book" / f"{name}.ipynb", "print(preset)")
    write_chapter(root / "book" / "scoreboard.ipynb", "print(1)", parameters=None)
    (tmp_path / "data" / "bbbc039").mkdir(parents=True)
    monkeypatch.setenv("NUCTUT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("NUCTUT_RUNS", raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def ran(monkeypatch):
    """The chapters run, in order; running is pretended, and no two outcomes are the same."""
    names = []
    numbers = count()

    def execute(notebook, values, output, *, verbose):
        names.append(notebook.stem)
        node = nbformat.read(notebook, as_version=4)
        node.metadata["papermill"] = {"parameters": dict(values), "number": next(numbers)}
        output.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(node, output)

    monkeypatch.setattr(book, "execute", execute)
    return names


@pytest.fixture
def rendered(monkeypatch):
    """What was rendered: the staged files by name, one mapping per time."""
    stages = []

    def render(stage, folder):
        stages.append({str(p.relative_to(stage)): p for p in stage.rglob("*") if p.is_file()})
        folder.mkdir(parents=True, exist_ok=True)
        pages = folder / "pages"
        pages.mkdir()
        (pages / "index.html").write_text(f"rendering {len(stages)}")
        return pages

    monkeypatch.setattr(book, "_render", render)
    return stages


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_chapters_run_in_the_books_order_with_the_scoreboard_last(project, ran, rendered):
    page = book.build_book()
    assert ran == ["01_tiny", "02_small", "scoreboard"]
    assert page == project / "_build" / "html" / "index.html"
    assert page.read_text() == "rendering 1"


def test_nothing_changed_nothing_done(project, ran, rendered, capsys):
    book.build_book()
    book.build_book()
    assert len(ran) == 3 and len(rendered) == 1
    assert capsys.readouterr().out.count("unchanged") == 4


EVERYTHING = ["01_tiny", "02_small", "scoreboard"]
CHANGES = {
    "the package": ("src/module.py", EVERYTHING),
    "a published table": ("src/published/paper.toml", EVERYTHING),
    "the lock": ("requirements.lock", EVERYTHING),
    "the data": ("../data/bbbc039/images/new.tif", EVERYTHING),
    "a chapter's record": ("results/01_tiny/a--lite--s0.json", ["01_tiny", "scoreboard"]),
    "a chapter's own smoke record": (
        "runs/results/01_tiny/a--smoke--s0.json",
        ["01_tiny", "scoreboard"],
    ),
    "a network": ("results/networks/01_tiny/net/done.json", ["01_tiny", "scoreboard"]),
    "a page": ("book/words.md", []),
    "the configuration": ("_config.yml", []),
    "the style": ("book/_static/book.css", []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_runs_again_what_it_touches(project, ran, rendered, what):
    place, touched = CHANGES[what]
    book.build_book()
    ran.clear()
    write(project / place, "title: Changed\nexecute: {}\n")
    book.build_book()
    assert ran == touched
    assert len(rendered) == 2


def test_a_changed_chapter_runs_alone(project, ran, rendered):
    book.build_book()
    ran.clear()
    write_chapter(project / "book" / "02_small.ipynb", "print('new')")
    book.build_book()
    assert ran == ["02_small"]
    assert "new" in rendered[-1]["book/02_small.ipynb"].read_text()


def test_each_preset_keeps_its_runs(project, ran, rendered):
    book.build_book()
    book.build_book("lite")
    assert len(ran) == 6
    book.build_book()
    assert len(ran) == 6 and len(rendered) == 3


def test_records_a_run_writes_itself_do_not_make_it_run_again(project, ran, rendered, monkeypatch):
    pretended = book.execute

    def execute(notebook, values, output, *, verbose):
        pretended(notebook, values, output, verbose=verbose)
        if notebook.stem != "scoreboard":
            write(project / "results" / notebook.stem / "x--lite--s0.json", notebook.stem)

    monkeypatch.setattr(book, "execute", execute)
    book.build_book()
    book.build_book()
    assert len(ran) == 3


def test_sources_changed_during_a_run_are_not_taken_for_those_it_ran_with(
    project, ran, rendered, monkeypatch
):
    pretended = book.execute

    def execute(notebook, values, output, *, verbose):
        pretended(notebook, values, output, verbose=verbose)
        write(project / "src" / "module.py", f"VALUE = {len(ran)}\n")

    monkeypatch.setattr(book, "execute", execute)
    book.build_book()
    ran.clear()
    monkeypatch.setattr(book, "execute", pretended)
    book.build_book()
    assert ran == EVERYTHING


def test_pages_show_the_values_they_were_made_with(project, ran, rendered):
    book.build_book("lite")
    staged = nbformat.read(rendered[0]["book/01_tiny.ipynb"], as_version=4)
    assert 'preset: str = "lite"  # how much to do' in staged.cells[1].source
    source = nbformat.read(project / "book" / "01_tiny.ipynb", as_version=4)
    assert 'preset: str = "smoke"  # how much to do' in source.cells[1].source


def test_pages_leave_out_the_lines_of_what_was_said(project, ran, rendered, monkeypatch):
    pretended = book.execute

    def execute(notebook, values, output, *, verbose):
        pretended(notebook, values, output, verbose=verbose)
        node = nbformat.read(output, as_version=4)
        for text, about in (("blobs: 7", notebooks.SAID), ("In this run", {"shows": True})):
            metadata = {"nuctut": about}
            data = {"text/plain": text}
            shown = v4.new_output("display_data", data, metadata=metadata)
            node.cells[-1].outputs.append(shown)
        node.cells[-1].outputs.append(v4.new_output("stream", text="printed"))
        nbformat.write(node, output)

    monkeypatch.setattr(book, "execute", execute)
    book.build_book()
    staged = nbformat.read(rendered[0]["book/01_tiny.ipynb"], as_version=4)
    claim, printed = staged.cells[-1].outputs
    assert claim.data["text/plain"] == "In this run" and printed.text == "printed"


def test_the_stage_holds_the_records_that_pages_link_to(project, ran, rendered):
    write(project / "results" / "01_tiny" / "a--lite--s0.json", "{}")
    book.build_book()
    assert "results/01_tiny/a--lite--s0.json" in rendered[0]


def test_a_page_that_is_gone_leaves_no_trace(project, ran, rendered):
    (project / "book" / "old.txt").write_text("old")
    book.build_book()
    (project / "book" / "old.txt").unlink()
    book.build_book()
    assert "book/old.txt" in rendered[0] and "book/old.txt" not in rendered[1]


def test_a_failing_chapter_stops_the_build_and_keeps_the_last_book(
    project, ran, rendered, monkeypatch
):
    book.build_book()
    ran.clear()
    pretended = book.execute

    def execute(notebook, values, output, *, verbose):
        if notebook.stem == "02_small":
            raise RuntimeError("02_small failed in cell [1]: no luck")
        pretended(notebook, values, output, verbose=verbose)

    monkeypatch.setattr(book, "execute", execute)
    (project / "src" / "module.py").write_text("VALUE = 2\n")
    with pytest.raises(RuntimeError, match="02_small"):
        book.build_book()
    assert (project / "_build" / "html" / "index.html").read_text() == "rendering 1"
    monkeypatch.setattr(book, "execute", pretended)
    book.build_book()
    assert ran == ["01_tiny", "02_small", "scoreboard"], "the first was not run twice"
    assert (project / "_build" / "html" / "index.html").read_text() == "rendering 2"


def test_a_failed_rendering_is_tried_again_and_keeps_the_last_book(
    project, ran, rendered, monkeypatch
):
    book.build_book()
    good = book._render

    def fails(stage, folder):
        raise RuntimeError("a warning")

    (project / "book" / "words.md").write_text("# Other words\n")
    monkeypatch.setattr(book, "_render", fails)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a warning"):
            book.build_book()
    assert (project / "_build" / "html" / "index.html").read_text() == "rendering 1"
    monkeypatch.setattr(book, "_render", good)
    assert book.build_book().read_text() == "rendering 2"


def test_an_unknown_preset_is_refused(project, ran):
    with pytest.raises(ValueError, match="no preset 'huge', but smoke, read, lite, paper"):
        book.build_book("huge")
    assert ran == []


ROOT = Path(__file__).resolve().parents[1]
SLIDER = "from ipywidgets import IntSlider\nIntSlider()"
IDS = re.compile(r'\bid="([^"]+)"')
# A script or a style that is not the book's own; a link that a reader may follow is.
FROM_AFAR = re.compile(r"<(?:script|link|img)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
WORDS = """\
# Words

A formula: $a^2$.

```{exercise} One
:label: one

First.
```

```{exercise} Other
:label: other

Second.
```
"""


@pytest.mark.slow
def test_the_true_thing_runs_and_renders(project):
    """Once without pretence: papermill, jupyter-book and the book's own settings, strictly."""
    shutil.copy(ROOT / "_config.yml", project)
    shutil.copy(ROOT / "book" / "references.bib", project / "book")
    shutil.copytree(ROOT / "book" / "_static", project / "book" / "_static")
    write(project / "book" / "words.md", WORDS)
    write_chapter(project / "book" / "01_tiny.ipynb", "print(preset)", SLIDER)
    page = book.build_book("lite")
    assert "book/index.html" in page.read_text()
    chapter = (page.parent / "book" / "01_tiny.html").read_text()
    assert "lite" in chapter and "smoke" not in chapter
    assert "Parameters" not in chapter, "papermill's cell is not on the page"
    assert "/blob/main/notebooks/01_tiny.ipynb" in chapter, "Colab opens the plain copy"
    assert "/blob/main/book/01_tiny.ipynb" not in chapter
    assert 'href="../notebooks/01_tiny.ipynb"' in chapter and "_sources" not in chapter
    assert (page.parent / "notebooks" / "01_tiny.ipynb").is_file()

    words = (page.parent / "book" / "words.html").read_text()
    assert len(set(IDS.findall(words))) == len(IDS.findall(words))
    assert "tex-svg.js" in words and (page.parent / "_static" / "tex-svg.js").is_file()
    for shown in page.parent.rglob("*.html"):
        assert not FROM_AFAR.findall(shown.read_text()), f"{shown} needs a network"

    (project / "book" / "words.md").write_text("# Words\n\n[broken](nowhere.md)\n")
    before = {path: os.stat(path).st_mtime_ns for path in page.parent.rglob("*")}
    with pytest.raises(RuntimeError, match=r"\n  book/words\.md:3: WARNING.*nowhere"):
        book.build_book("lite")
    assert {path: os.stat(path).st_mtime_ns for path in page.parent.rglob("*")} == before


def test_what_failed_is_kept_to_be_looked_at(project):
    write_chapter(project / "book" / "01_tiny.ipynb", "raise OSError('disk on fire')")
    with pytest.raises(RuntimeError, match=r"cell \[2\]: OSError: disk on fire"):
        book.build_book()
    kept = project / "_build" / "chapters" / "as-it-stands" / "01_tiny.failed.ipynb"
    assert "disk on fire" in kept.read_text()
    assert notebooks.chapters()["01_tiny"].is_file()


# --- figures -------------------------------------------------------------------------------------

DESCRIBED = {"mystnb": {"image": {"alt": "Four panels of nuclei."}}}


def add_described_cell(notebook: Path, source: str) -> None:
    node = nbformat.read(notebook, as_version=4)
    node.cells.append(v4.new_code_cell(source, metadata=DESCRIBED))
    nbformat.write(node, notebook)


@pytest.mark.slow
def test_a_page_without_its_figure_is_a_failed_build(project, rendered):
    """A cell that ends on something else than its figure; and no next build calls it unchanged."""
    chapter = project / "book" / "01_tiny.ipynb"
    add_described_cell(chapter, "figure = 3")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"01_tiny has no figure where .*Four panels of nuc"):
            book.build_book()
    assert rendered == []
    write_chapter(chapter, "print(preset)")
    add_described_cell(chapter, "import matplotlib.pyplot as plt\nplt.subplots()[0]")
    book.build_book()
    assert len(rendered) == 1


def test_a_chapter_that_was_not_looked_at_is_not_unchanged(project, ran, rendered, monkeypatch):
    """A build that stops between a chapter's end and the look at its figures leaves no old key."""
    book.build_book()
    (project / "src" / "module.py").write_text("VALUE = 2\n")

    def stops(executed):
        raise KeyboardInterrupt

    monkeypatch.setattr(book, "_check_figures", stops)
    with pytest.raises(KeyboardInterrupt):
        book.build_book()
    chapters = project / "_build" / "chapters" / "as-it-stands"
    assert (chapters / "02_small.key").exists() and not (chapters / "01_tiny.key").exists()


# --- several processes ---------------------------------------------------------------------------


def test_a_second_build_waits_for_the_first(project, ran, rendered, capsys):
    built = project / "_build"
    built.mkdir()
    with locked(built):
        second = threading.Thread(target=book.build_book)
        second.start()
        told = wait_for(lambda: capsys.readouterr().out, "the second says that it waits")
        assert told.startswith("Another `nuctut book` is at work in")
        assert ran == []
    second.join(PATIENCE)
    assert ran == ["01_tiny", "02_small", "scoreboard"] and len(rendered) == 1


@pytest.mark.slow
def test_a_rendering_ends_with_the_build_that_was_killed(project, ran, monkeypatch, tmp_path):
    """And so the next build has its folder for itself."""
    slow = project / "slow.py"  # an extension of sphinx that takes its time
    slow.write_text(f"""\
import os, pathlib, time
def setup(app):
    pathlib.Path({str(tmp_path / "started")!r}).write_text(str(os.getpid()))
    time.sleep(600)
""")
    extension = f"sphinx:\n  local_extensions: {{slow: {project}}}\n"
    write(project / "_config.yml", f"title: Tiny\nexecute: {{}}\n{extension}")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    build = subprocess.Popen([*NUCTUT, "book"], **quiet)
    mark = tmp_path / "started"
    try:
        pid = wait_for(lambda: mark.exists() and mark.read_text(), "the rendering")
        child = psutil.Process(int(pid))
    finally:
        build.kill()
        build.wait()
    wait_for(lambda: not is_alive(child), "the rendering ends")
