"""The files at the top of the project say the same thing wherever they say it twice."""

import json
import re
import statistics
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nuctut
from nuctut import scoreboard
from nuctut.records import read_all
from nuctut.running import book, notebooks

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
ADDRESS = CONFIG["repository"]["url"]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))


def locked() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in LOCK:
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def direct() -> list[str]:
    extras = PYPROJECT["project"]["optional-dependencies"]
    return [
        *PYPROJECT["project"]["dependencies"],
        *extras["book"],
        *extras["export"],
        *extras["dev"],
    ]


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", direct())
def test_every_direct_dependency_is_locked_within_its_bounds(text):
    wanted = Requirement(text)
    for pin in locked()[canonicalize_name(wanted.name)]:
        (specifier,) = pin.specifier
        assert specifier.version in wanted.specifier, f"{pin} is not within {wanted}"


@pytest.mark.parametrize("text", direct())
def test_direct_dependencies_have_lower_bounds_only(text):
    """The exact versions are the lock's; of two, pyproject.toml says why later ones will not do."""
    wanted = Requirement(text)
    operators = {specifier.operator for specifier in wanted.specifier}
    bounded = wanted.name in ("jupyter-book", "pydantic")
    assert operators == ({">=", "<"} if bounded else {">="})


def test_the_lock_gives_exact_versions_and_no_addresses():
    for line in LOCK:
        assert re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.]+( ; .+)?", line), line


def test_the_lock_covers_every_python_allowed():
    """No pin is missing on one side of a marker: where one is conditional, the others fill in."""
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"
    for version in ("3.11.0", "3.11.9", "3.12.4", "3.13.1", "3.14.0"):
        for platform in ("linux", "darwin"):
            here = {
                "python_full_version": version,
                "python_version": version.rpartition(".")[0],
                "sys_platform": platform,
            }
            for text in direct():
                pins = locked()[canonicalize_name(Requirement(text).name)]
                fitting = [pin for pin in pins if not pin.marker or pin.marker.evaluate(here)]
                assert len(fitting) == 1, f"{text} on {platform}, Python {version}"


def test_conda_installs_from_the_lock_and_adds_nothing():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert python == "python" + PYPROJECT["project"]["requires-python"]
    assert pip == "pip"
    assert from_pip == {"pip": ["--requirement requirements.lock", "--editable ."]}
    assert environment["name"] == PYPROJECT["project"]["name"]


def test_the_citation_names_this_version_and_both_licences():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == nuctut.__version__
    assert citation["license"] == [PYPROJECT["project"]["license"], "CC-BY-4.0"]
    assert (ROOT / "LICENSE").read_text().startswith("BSD 3-Clause License")
    assert "Creative Commons Attribution 4.0" in (ROOT / "LICENSE-text").read_text()


# --- pages ---------------------------------------------------------------------------------------


def pages() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]


def test_the_table_of_contents_holds_every_page_once():
    found = [path for path in (ROOT / "book").iterdir() if path.suffix in (".md", ".ipynb")]
    there = {path.relative_to(ROOT).with_suffix("").as_posix() for path in found}
    assert sorted(pages()) == sorted(there)


def test_the_address_is_said_by_the_configuration_and_the_colab_cells_alone():
    owner_and_name = ADDRESS.removeprefix("https://github.com/")
    assert owner_and_name.count("/") == 1
    places = [ROOT / name for name in ("book", "src", "tests", "bench", ".ci")]
    files = [*ROOT.iterdir(), *(path for place in places for path in place.rglob("*"))]
    saying = {
        path
        for path in files
        if path.is_file()
        and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
        and owner_and_name.encode() in path.read_bytes()
    }
    assert saying == {ROOT / "_config.yml", *CHAPTERS}


def test_the_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    asked = set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", readme, flags=re.MULTILINE))
    names = {first or second for first, second in asked}
    assert {"book", "test"} <= names <= targets


def test_the_readme_says_of_each_chapter_what_the_records_say():
    table = {}
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) == 4:
            table[cells[0]] = cells[3]
    committed = list(read_all(ROOT / "results"))
    numbered = {path.stem for path in CHAPTERS if path.stem[0].isdigit()}
    assert {name for name in table if name[0].isdigit()} == numbered
    papers = {paper.chapter: paper for paper in map(scoreboard.published, scoreboard.papers())}
    for chapter in papers.keys() & numbered:  # of a paper alone, the chapter is to come
        said = scoreboard.tally(scoreboard.judge_claims(papers[chapter], committed))
        assert table[chapter] == said


# --- chapters ------------------------------------------------------------------------------------

COLAB_CELL = f"""\
if "google.colab" in str(get_ipython()):
    !git clone --quiet --depth 1 {ADDRESS} /content/nuctut
    %pip install --quiet /content/nuctut
    %cd -q /content/nuctut/book"""


LABEL = re.compile(r"^(?:\(|:label: )([\w-]+)(?:\)=)?$", re.MULTILINE)
LINKED = re.compile(r"^  (doi|url) +=", re.MULTILINE)


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def test_chapters_are_valid_and_ask_for_any_python_3(chapter):
    nbformat.validate(chapter)
    assert (chapter.nbformat, chapter.nbformat_minor) == (4, 5)
    assert chapter.metadata.kernelspec.name == "python3"


def test_chapters_open_with_a_title_and_the_colab_cell(chapter):
    first, second = chapter.cells[:2]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert second.source == COLAB_CELL
    assert {"colab", "remove-cell"} <= set(tags(second))
    assert [cell for cell in chapter.cells if "colab" in tags(cell)] == [second]


def test_chapters_hold_no_cell_of_a_run(chapter):
    """Papermill's own cells belong to its outputs."""
    assert not [cell for cell in chapter.cells if "injected-parameters" in tags(cell)]
    assert "papermill" not in chapter.metadata
    errors = [o for cell in chapter.cells for o in cell.get("outputs", []) if "ename" in o]
    assert not errors


def test_chapters_commit_no_pictures(chapter):
    """Real pixels must not enter the repository, and stored outputs are text for nbval."""
    for cell in chapter.cells:
        stored = json.dumps(cell.get("outputs", []))
        assert "image/" not in stored
        assert not cell.get("attachments")


def test_code_cells_are_short(chapter):
    code = [cell for cell in chapter.cells if cell.cell_type == "code"]
    lines = [len(cell.source.splitlines()) for cell in code if "colab" not in tags(cell)]
    assert max(lines) <= 25
    assert statistics.median(lines) <= 6


def test_every_code_cell_has_prose_before_it(chapter):
    """Two code cells in a row are one thought cut in two, or one that nobody explained.

    The cells up to the parameters are alike in every chapter and need none.
    """
    shown = [cell for cell in chapter.cells if "remove-cell" not in tags(cell)]
    opening = [index + 1 for index, cell in enumerate(shown) if "parameters" in tags(cell)]
    story = shown[opening[0] if opening else 0 :]
    bare = [b.source for a, b in pairwise(story) if a.cell_type == b.cell_type == "code"]
    assert not bare


def test_every_picture_has_a_caption_that_says_what_to_see(chapter):
    """And stands alone in its cell: whatever else is shown there would be a figure, too."""
    for cell in chapter.cells:
        shown = cell.metadata.get("mystnb", {})
        if "image" in shown:
            assert shown["figure"]["caption"][-1] in ".?", cell.source
            assert shown["figure"]["name"].startswith("fig-")
            assert "say(" not in cell.source and "print(" not in cell.source


def test_no_label_stands_twice_in_the_book():
    """Whoever refers to one would else be led to either."""
    labels = []
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        for cell in notebooks.read_notebook(path).cells:
            shown = cell.metadata.get("mystnb", {}).get("figure", {})
            labels += [shown["name"]] if "name" in shown else []
            labels += LABEL.findall(cell.source)
    assert [label for label, times in Counter(labels).items() if times > 1] == []


@pytest.mark.built
@pytest.mark.slow
def test_what_a_chapter_says_of_its_run_is_so():
    """As the book is read: with the networks that come with it, and the committed records."""
    said = {}
    for name, path in book.run_chapters().items():
        executed = notebooks.read_notebook(path)
        if any('preset: str = "read"' in cell.source for cell in executed.cells):
            said[name] = notebooks.shown(executed)
    assert said and all(said.values())
    assert not [(name, claim) for name, of in said.items() for claim, so in of if not so]


def test_no_reader_sees_a_word_to_the_formatter(chapter):
    assert not [cell.source for cell in chapter.cells if "fmt: skip" in cell.source]


def test_references_can_be_followed():
    """All but those of which we know no address that is sure to hold."""
    entries = (ROOT / "book" / "references.bib").read_text().split("\n@")[1:]
    bare = [one.partition("{")[2].partition(",")[0] for one in entries if not LINKED.search(one)]
    unknown = {"matuszewski2021", "wangsong", "matuszewski2019", "mercadier2019", "mandal"}
    assert set(bare) == unknown
