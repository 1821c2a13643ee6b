"""Plain copies of the chapters, for Colab and for download: `nuctut notebooks`.

The chapters are written in MyST, which the book's pages and JupyterLab (with an extension) show as
it is meant. Everything else that opens notebooks shows a role such as {term}`labels` as it stands
there. So in a copy every role and directive is put into ordinary Markdown. A text that quotes
values of the run becomes a folded code cell that shows it with the values of the run at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import count, groupby
from pathlib import Path

import nbformat
import yaml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from nbformat import NotebookNode, v4

from nuctut.files import replacing
from nuctut.paths import project_root
from nuctut.running.notebooks import QUOTED, chapters, read_notebook

# A role or a piece of code: both are told by their backticks, and code is no role.
ROLE = re.compile(r"(?:\{([a-z][\w:-]*)\})?(?P<ticks>`+)(.+?)(?<!`)(?P=ticks)(?!`)", re.DOTALL)
BADGE = re.compile(r"(\{bdg-[\w-]+\}`[^`]+`)\s+(?=\{bdg-)")
DIRECTIVE = re.compile(r"\{([\w:-]+)\}\s*(.*)")
OPTION = re.compile(r":[\w-]+:.*")
POINTER = re.compile(r"(.*?)\s*<(.+)>")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
ADMONITIONS = ("note", "tip", "hint", "important", "warning", "caution", "seealso")
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab, in JupyterLab
FORM = "#@title Text with numbers of this run: run the cell to read it"
IMPORT = "from nuctut.running.notebooks import quote"

Piece = tuple[str, str, str]  # kind of cell, source, id of the cell that it comes from


def write(folder: Path) -> Path:
    """Writes a plain copy of every chapter into a folder, and deletes other notebooks there.

    Nothing is run. The same sources give the same files, byte by byte.

    Raises:
        ValueError: Naming chapter and place, where a copy cannot say what the chapter says.
    """
    book = _Book()
    copies = {path.name: book.plain(path) for path in chapters().values()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, copy in copies.items():
        with replacing(folder / name) as path:
            nbformat.write(copy, path)
    for path in folder.glob("*.ipynb"):
        if path.name not in copies:
            path.unlink()
    return folder


class _Book:
    """The chapters' sources, and what their texts point to."""

    def __init__(self) -> None:
        self.root = project_root()
        self.chapters = chapters()
        extensions = self.config.get("parse", {}).get("myst_enable_extensions", [])
        settings = MdParserConfig(enable_extensions=set(extensions))
        self.parser = create_md_parser(settings, RendererHTML)
        self.roles = {"term": _text, "doc": self._page, "ref": self._label}
        self.roles |= {"cite": self._cite, "cite:p": self._cite, "cite:t": self._cite_in_text}

    @cached_property
    def config(self) -> dict:
        """The book's settings."""
        return yaml.safe_load((self.root / "_config.yml").read_text(encoding="utf-8"))

    @cached_property
    def references(self):
        """What can be cited, by key."""
        from pybtex.database import parse_file  # of the extra `book`

        return parse_file(self.root / "book" / "references.bib", "bibtex").entries

    # --- a notebook ---

    def plain(self, path: Path) -> NotebookNode:
        """The plain copy of a chapter."""
        node = read_notebook(path)
        metadata = {cell.id: _metadata(cell) for cell in node.cells if cell.cell_type == "code"}
        try:
            pieces = list(_with_solutions(self._pieces(node.cells)))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        node.cells = []
        imports = f"{IMPORT}\n\n"  # by the first cell that needs it
        for (kind, source_id), group in groupby(pieces, key=lambda piece: (piece[0], piece[2])):
            source = "\n\n".join(text for _, text, _ in group)
            if kind == "code":
                cell = v4.new_code_cell(source, metadata=metadata[source_id])
            elif kind == "quote":
                source = f'{FORM}\n{imports}quote(r"""\n{source}\n""")'
                imports = ""
                cell = v4.new_code_cell(source, metadata=FOLDED)
            else:
                cell = v4.new_markdown_cell(source)
            cell.id = _free(source_id, {one.id for one in node.cells})
            node.cells.append(cell)
        return node

    def _pieces(self, cells: list[NotebookNode]) -> Iterator[Piece]:
        """The cells cut into pieces: code, prose, prose that quotes, and a solution's ends."""
        for cell in cells:
            if cell.cell_type == "code":
                yield "code", cell.source, cell.id
                caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
                for _, text in self._blocks(caption):
                    yield "caption", f"**Figure.** {self._checked(text)}", cell.id
            else:
                for kind, text in self._blocks(cell.source):
                    yield kind, self._checked(text), cell.id

    # --- a text ---

    def _blocks(self, source: str) -> Iterator[tuple[str, str]]:
        """The parts of a text in plain Markdown, each with its kind: paragraphs, tables, lists."""
        lines = source.split("\n")
        tokens = [one for one in self.parser.parse(source) if one.level == 0 and one.nesting >= 0]
        # What gives no token of its own goes with the part before it.
        starts = [0, *(one.map[0] for one in tokens[1:])]
        for token, start, end in zip(tokens, starts, [*starts[1:], len(lines)], strict=False):
            text = "\n".join(lines[start:end]).strip("\n")
            if token.type in ("fence", "colon_fence") and token.info.startswith("{"):
                yield self._directive(token)
            elif token.type == "myst_target":
                continue
            else:
                text = text if token.type == "fence" else self._prose(text)
                yield "quote" if QUOTED.search(text) else "prose", text

    def _directive(self, token: Token) -> tuple[str, str]:
        name, title = DIRECTIVE.fullmatch(token.info.strip()).groups()
        lines = token.content.split("\n")
        while lines and OPTION.fullmatch(lines[0]):
            del lines[0]
        blocks = list(self._blocks("\n".join(lines)))
        body = "\n\n".join(text for _, text in blocks)
        kind = "quote" if any(kind == "quote" for kind, _ in blocks) else "prose"
        title = self._prose(title)
        if name in ("solution-start", "solution-end"):
            return name, ""
        if name == "solution":
            return kind, _details("Solution", body)
        if name == "dropdown":
            return kind, _details(title, body)
        if name == "exercise":
            title = f"Exercise: {title}" if title else "Exercise"
            return kind, f"{_bold(title)} {body}"
        if name == "admonition" or name in ADMONITIONS:
            title = title if name == "admonition" else name.capitalize()
            quoted = f"{_bold(title)}\n\n{body}".split("\n")
            return kind, "\n".join(f"> {line}".rstrip() for line in quoted)
        raise ValueError(f"the directive {{{name}}} has no plain form; see running/plain.py.")

    def _prose(self, text: str) -> str:
        return ROLE.sub(self._role, BADGE.sub(r"\1 · ", text))

    def _role(self, found: re.Match) -> str:
        name, content = found[1], " ".join(found[3].split())
        if name is None:
            return found[0]
        if name == "glue:text" and "::" in content:
            raise ValueError(f"{found[0]} is a value of another page, which this run lacks.")
        if name.startswith("bdg-"):
            return content
        return self.roles[name](content) if name in self.roles else found[0]

    def _checked(self, text: str) -> str:
        """The text, once the book's own parser has found nothing of MyST in it."""
        tokens = self.parser.parse(text)
        for token in [*tokens, *(child for one in tokens for child in one.children or [])]:
            quoted = token.meta.get("name") == "glue:text"
            if token.type.startswith(("myst_", "substitution", "span", "colon")) and not quoted:
                what = f"{{{token.meta['name']}}}" if "name" in token.meta else token.type
                raise ValueError(
                    f"{what} in {text[:60]!r} has no plain form; see running/plain.py."
                )
            address = str(token.attrs.get("href") or token.attrs.get("src") or "https:")
            if not address.startswith(("http:", "https:", "mailto:")):
                raise ValueError(f"{address} leads nowhere from a copy: say {{doc}}.")
        return text

    # --- what roles become ---

    def _cite(self, keys: str) -> str:
        cited = [self._reference(key.strip()) for key in keys.split(",")]
        return f"({'; '.join(_link(f'{who} {year}', address) for who, year, address in cited)})"

    def _cite_in_text(self, key: str) -> str:
        who, year, address = self._reference(key)
        return _link(f"{who} ({year})", address)

    def _reference(self, key: str) -> tuple[str, str, str]:
        """Authors, year and address of what is cited."""
        if key not in self.references:
            raise ValueError(f"{key} is cited, and not in references.bib.")
        from pybtex.richtext import Text

        entry = self.references[key]
        people = entry.persons["author"]
        names = [" ".join([*one.prelast_names, *one.last_names]) for one in people]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        doi = entry.fields.get("doi", "")
        address = f"https://doi.org/{doi}" if doi else entry.fields.get("url", "")
        return str(Text.from_latex(who)), entry.fields["year"], address

    def _page(self, content: str) -> str:
        text, page = _pointed(content)
        if page in self.chapters:
            path = self.root / "notebooks" / f"{page}.ipynb"
            source = _markdown(self.chapters[page])
        else:
            path = self.root / "book" / f"{page}.md"
            if not path.is_file():
                raise ValueError(f"{{doc}} leads to {page}, which is no page.")
            source = _markdown(path)
        return _link(text or HEADING.search(source)[1], self._address(path))

    def _label(self, content: str) -> str:
        text, label = _pointed(content)
        for path in sorted((self.root / "book").glob("*.md")):
            _, mark, below = _markdown(path).partition(f"({label})=\n")
            if mark:
                return _link(text or HEADING.search(below)[1], self._address(path))
        raise ValueError(f"{{ref}} leads to {label}, which is no label of a page in book/*.md.")

    def _address(self, path: Path) -> str:
        """Where a file is for whoever has only the notebook."""
        repository = self.config["repository"]
        place = path.relative_to(self.root).as_posix()
        return f"{repository['url']}/blob/{repository['branch']}/{place}"


def _with_solutions(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, those between a solution's ends made one."""
    solution: list[str] | None = None
    for kind, text, source_id in pieces:
        if kind.startswith("solution-") and (kind == "solution-end") == (solution is None):
            raise ValueError(f"a {{{kind}}} lacks its counterpart.")
        if kind == "solution-start":
            solution = []
        elif kind == "solution-end":
            yield "solution", _details("Solution", "\n\n".join(solution)), source_id
            solution = None
        elif solution is None:
            yield kind, text, source_id
        elif kind == "quote":
            raise ValueError(f"a solution, which runs no code in a copy, quotes {text[:60]!r}.")
        elif kind == "code":
            solution.append(f"```python\n{text}\n```")
        elif kind == "prose":
            solution.append(text)
    if solution is not None:
        raise ValueError("a {solution-start} lacks its counterpart.")


def _metadata(cell: NotebookNode) -> dict:
    """What of a cell's metadata is not for MyST alone."""
    return {name: value for name, value in cell.metadata.items() if name != "mystnb"}


def _free(wanted: str, taken: set[str]) -> str:
    names = (f"{wanted}_{number}" for number in count(2))
    return wanted if wanted not in taken else next(name for name in names if name not in taken)


def _markdown(path: Path) -> str:
    """The text of a page, or of all of a chapter's cells that hold text."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = read_notebook(path).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def _pointed(content: str) -> tuple[str, str]:
    """The text of a role, empty where it has none, and what it points to."""
    found = POINTER.fullmatch(content)
    return (found[1], found[2]) if found else ("", content)


def _text(content: str) -> str:
    text, target = _pointed(content)
    return text or target


def _link(text: str, address: str) -> str:
    return f"[{text}]({address})" if address else text


def _bold(title: str) -> str:
    return f"**{title}**" if title[-1] in ".?!" else f"**{title}.**"


def _details(title: str, body: str) -> str:
    """Folded away; the blank lines let what is inside be read as Markdown."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"
