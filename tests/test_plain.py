"""Plain copies say what the chapters say, without anything that only MyST understands."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from chapter_maker import write_project
from nbformat import v4
from packaging.requirements import Requirement

from nuctut.running import plain

ROOT = Path(__file__).resolve().parents[1]
COPIES = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONFIG = """\
repository: {url: https://example.org/book, branch: main}
parse:
  myst_enable_extensions: [amsmath, attrs_inline, colon_fence, dollarmath, substitution]
"""
REFERENCES = r"""
@article{doll2019, author = {Doll{\'a}r, Piotr}, year = {2019}, doi = {10.1016/0031-3(93)9}}
@article{two2020, author = {Li, Chun Hung and {van der} Berg, A.}, year = {2020}}
@misc{many, author = {A, B and C, D and others}, year = {n.d.}, url = {https://example.org/m}}
"""
WORDS = "# Words\n\nSome.\n\n(below)=\n## Far below\n\nMore.\n"
AT = "https://example.org/book/blob/main"


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    write_project(root, ["01_tiny"], ["words"])
    (root / "_config.yml").write_text(CONFIG)
    (root / "book" / "references.bib").write_text(REFERENCES)
    (root / "book" / "words.md").write_text(WORDS)
    monkeypatch.chdir(root)
    return root


def copied(project, *sources):
    """The cells of the copy of a chapter with these cells; code begins with "# code"."""
    make = {True: v4.new_code_cell, False: v4.new_markdown_cell}
    cells = [make[one.startswith("# code")](one) for one in sources]
    return copied_cells(project, cells)


def copied_cells(project, cells):
    path = project / "book" / "01_tiny.ipynb"
    title = v4.new_markdown_cell("Title\n=====")
    nbformat.write(v4.new_notebook(cells=[title, *cells]), path)
    folder = plain.write(project / "notebooks")
    copy = nbformat.read(folder / path.name, as_version=4)
    nbformat.validate(copy)
    return copy.cells[1:]


def one(project, source):
    """The text of the one cell that a cell becomes."""
    (cell,) = copied(project, source)
    assert cell.cell_type == "markdown"
    return cell.source


BECOMES = {
    "of {term}`labels`, {term}`presets <preset>`": "of labels, presets",
    "{cite:t}`doll2019` say": "[Dollár (2019)](https://doi.org/10.1016/0031-3(93)9) say",
    "so {cite}`two2020,many`.": "so (Li and van der Berg 2020; "
    "[A et al. n.d.](https://example.org/m)).",
    "{doc}`words` and {doc}`its page\n<words>`": f"[Words]({AT}/book/words.md) and "
    f"[its page]({AT}/book/words.md)",
    "{doc}`this <01_tiny>`": f"[this]({AT}/notebooks/01_tiny.ipynb)",
    "{ref}`below`, {ref}`there <below>`": f"[Far below]({AT}/book/words.md), "
    f"[there]({AT}/book/words.md)",
    "{bdg-secondary}`a: b` {bdg-secondary}`c`\n{bdg-primary}`d`": "a: b · c · d",
    "| a | {term}`b` |\n| --- | --- |\n| $x_i$ | {term}`c` |": "| a | b |\n| --- | --- |\n"
    "| $x_i$ | c |",
    "(here)=\n# Heading\n\n$$\\sum {x}$$": "# Heading\n\n$$\\sum {x}$$",
    "`{term}` is `` {term}`x` `` in code": "`{term}` is `` {term}`x` `` in code",
    "```shell\n{term}`x`\n```": "```shell\n{term}`x`\n```",
    "- one\n\n  {term}`two`\n\n- three": "- one\n\n  two\n\n- three",
    "```{exercise} A ring\n:label: ex\n\nGrow {term}`it`.\n\nTwice.\n```": "**Exercise: A ring.** "
    "Grow it.\n\nTwice.",
    "```{exercise} Why?\nSay.\n```": "**Exercise: Why?** Say.",
    ":::{note}\nMind\nthis.\n:::": "> **Note.**\n>\n> Mind\n> this.",
    ":::{admonition} What {term}`x` is\nA thing.\n:::": "> **What x is.**\n>\n> A thing.",
    "```{solution} ex\n:class: dropdown\n\nSo.\n```": "<details>\n<summary>Solution</summary>\n\n"
    "So.\n\n</details>",
    ":::{dropdown} More\nSo.\n:::": "<details>\n<summary>More</summary>\n\nSo.\n\n</details>",
    "[a]: https://example.org\n\nSee [a].": "[a]: https://example.org\n\nSee [a].",
}


@pytest.mark.parametrize("source", BECOMES)
def test_roles_and_directives_become_markdown(project, source):
    assert one(project, source) == BECOMES[source]


REFUSED = {
    "{kbd}`Ctrl`": "{kbd}",
    "{glue}`picture`": "{glue}",
    "```{figure} x.png\n```": "directive {figure}",
    "```{exercise} X\n{kbd}`Ctrl`\n```": "{kbd}",
    "```{exercise} X\n```{tip}\n{kbd}`Ctrl`\n```\n```": "{kbd}",
    "a {{ word }}": "substitution",
    "[red]{.red}": "span",
    "% a comment\n\ntext": "myst_line_comment",
    "[a](words.md)": "words.md leads nowhere",
    "![a](picture.png)": "picture.png leads nowhere",
    "{cite}`nobody`": "nobody is cited",
    "{doc}`nowhere`": "nowhere, which is no page",
    "{ref}`nowhere`": "nowhere, which is no label",
    "{glue:text}`other.ipynb::x`": "value of another page",
    "```{solution-start} ex\n```\n\n{glue:text}`x`\n\n```{solution-end}\n```": "quotes",
    "```{solution-start} ex\n```\n\nSo.": "{solution-start} lacks",
    "```{solution-end}\n```\n\nSo.": "{solution-end} lacks",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_has_no_plain_form_is_refused_by_name(project, source):
    with pytest.raises(ValueError, match=f"01_tiny.ipynb: .*{re.escape(REFUSED[source])}"):
        copied(project, source)
    assert not (project / "notebooks").exists()


def test_paragraphs_that_quote_become_folded_code(project):
    quoting = "It is {glue:text}`x:.2f`,\n$\\bar{x}$ and {term}`so`."
    listed = '- one {glue:text}`y`\n\n- "two"'
    head, text, tail, other = copied(
        project, f"## Head\n\nSome.\n\n{quoting}\n\n{listed}\n\nTail.", "{glue:text}`z`"
    )
    assert (head.source, tail.source) == ("## Head\n\nSome.", "Tail.")
    quoted = text.source.removeprefix(f"{plain.FORM}\n{plain.IMPORT}\n\n")
    call = ast.parse(quoted).body[0].value
    assert call.func.id == "quote"
    plainly = quoting.replace("{term}`so`", "so")
    assert call.args[0].value == f"\n{plainly}\n\n{listed}\n"
    assert text.metadata == {"cellView": "form", "jupyter": {"source_hidden": True}}
    assert other.source == f'{plain.FORM}\nquote(r"""\n{{glue:text}}`z`\n""")'


def test_a_solution_over_several_cells_is_folded_into_one(project):
    before = "```{exercise} X\nDo.\n```\n\n```{solution-start} x\n:class: dropdown\n```\n\nFirst."
    after = "Then.\n\n```{solution-end}\n```\n\nNext."
    text, solution, rest = copied(project, before, "# code\nprint(1)", after)
    assert (text.source, rest.source) == ("**Exercise: X.** Do.", "Next.")
    inside = "First.\n\n```python\n# code\nprint(1)\n```\n\nThen."
    expected = f"<details>\n<summary>Solution</summary>\n\n{inside}\n\n</details>"
    assert (solution.cell_type, solution.source) == ("markdown", expected)


def test_code_cells_stay_and_captions_come_below(project):
    figure = {"image": {"alt": "A picture."}, "figure": {"caption": "Look at {term}`it`."}}
    cell = v4.new_code_cell("plot()", metadata={"mystnb": figure, "tags": ["parameters"]})
    cell.outputs = [v4.new_output("stream", text="old")]
    code, caption = copied_cells(project, [cell])
    assert (code.id, code.source, code.outputs) == (cell.id, "plot()", [])
    assert code.metadata == {"tags": ["parameters"]}
    assert (caption.cell_type, caption.source) == ("markdown", "**Figure.** Look at it.")


def test_the_same_chapters_give_the_same_files_and_no_others(project):
    copied(project, "Text.", "# code", "{glue:text}`x`")
    (copy,) = (project / "notebooks").iterdir()
    first = copy.read_bytes()
    (project / "notebooks" / "99_gone.ipynb").write_text("{}")
    plain.write(project / "notebooks")
    assert list((project / "notebooks").iterdir()) == [copy] and copy.read_bytes() == first


# --- the book's own ------------------------------------------------------------------------------


def test_the_copies_in_the_repository_are_those_of_its_chapters(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = {path.name: path.read_bytes() for path in plain.write(tmp_path / "made").iterdir()}
    there = {path.name: path.read_bytes() for path in COPIES}
    assert made.keys() == there.keys()
    old = [name for name in made if made[name] != there[name]]
    assert not old, f"notebooks/ is older than its chapters: say `nuctut notebooks` ({old})"


@pytest.mark.parametrize("path", COPIES, ids=lambda path: path.stem)
def test_a_copy_leaves_out_no_code_and_no_heading(path):
    copy = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(copy)
    text = "\n".join(cell.source for cell in copy.cells)
    for cell in nbformat.read(ROOT / "book" / path.name, as_version=4).cells:
        is_code = cell.cell_type == "code"
        parts = [cell.source] if is_code else re.findall("^#+ .*", cell.source, re.MULTILINE)
        assert all(part in text for part in parts)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"\{[\w:-]+\}`|^\s*(```+|:::+)\{|^\(.*\)=$", cell.source, re.M)


def installed(*requirements: str) -> dict[str, importlib.metadata.Distribution]:
    """What pip installs for some requirements, as far as it is here, by name."""
    found, asked = {}, [Requirement(one) for one in requirements]
    while asked:
        one = asked.pop()
        key = f"{one.name} {one.extras}"
        if key in found:
            continue
        found[key] = importlib.metadata.distribution(one.name)
        environments = [{"extra": extra} for extra in ("", *one.extras)]
        for needed in map(Requirement, found[key].requires or []):
            if not needed.marker or any(map(needed.marker.evaluate, environments)):
                asked.append(needed)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the environment is made of links")
def test_a_copy_runs_where_only_the_package_and_its_dependencies_are(tmp_path):
    """As on Colab: a kernel, a clone, and `pip install` without the extra `book`.

    Everything that pip would fetch is here already and is linked, so no registry is asked.
    """
    place = tmp_path / "place"
    place.mkdir()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for distribution in installed(*needed, "ipykernel", "setuptools").values():
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (place / name).exists():
                (place / name).symlink_to(Path(distribution.locate_file(name)).resolve())

    python = tmp_path / "venv" / "bin" / "python"
    environment = os.environ | {"NUCTUT_DATA": str(tmp_path), "NUCTUT_CACHE": str(tmp_path)}
    environment.pop("PYTHONPATH", None)

    def run(*words):
        command = [str(word) for word in words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    Path(site, "colab.pth").write_text(f"{place}\n")
    clone = tmp_path / "clone"
    for folder in ("src", "book", "notebooks", "data/excerpts"):
        shutil.copytree(ROOT / folder, clone / folder)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, clone)
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", clone]
    run(sys.executable, "-m", "pip", "--python", python, *install)

    assert run(python, "-c", "import nuctut; print(nuctut.__file__)").startswith(site)
    output = tmp_path / "output.ipynb"
    copy = clone / "notebooks" / "00_images_labels_scores.ipynb"
    words = ["--cwd", clone / "book", "--kernel", "python3", "--no-progress-bar"]
    run(python, "-m", "papermill", copy, output, *words)
    cells = nbformat.read(output, as_version=4).cells
    outputs = [one for cell in cells for one in cell.get("outputs", [])]
    assert not [one for one in outputs if one.output_type == "error"]
    texts = [one.data.get("text/markdown", "") for one in outputs if "data" in one]
    assert any("The mask has 7 blobs, the labels have 8 nuclei." in text for text in texts)
    assert not [text for text in texts if "{glue" in text]
