"""The table of objects: a CSV file to which images are added, each whole or not at all."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from nuctut.files import replacing

COLUMNS = (
    "image",
    "page",
    "label",
    "area",
    "area_um2",
    "centroid_y",
    "centroid_x",
    "top",
    "left",
    "bottom",
    "right",
    "mean_intensity",
    "touches_border",
)
HEADER = ",".join(COLUMNS) + "\n"
FORMULA = tuple("=+-@'")  # what begins so, a spreadsheet computes; ' is the mark against it
UNSAFE = re.compile(rb"[\x00-\x1f\x7f\\]")
ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def cell_of(name: str) -> str:
    """A file's name as the table holds it, from which `name_of` gives it back.

    Before a name that a spreadsheet would take for a formula, or that begins with an apostrophe,
    comes an apostrophe. What is no UTF-8, control characters and backslashes are written as
    `\\xe9`, so that a row is always a line.
    """
    escaped = UNSAFE.sub(lambda found: b"\\x%02x" % found[0][0], os.fsencode(name))
    text = escaped.decode("utf-8", "backslashreplace")
    return f"'{text}" if text.startswith(FORMULA) else text


def name_of(cell: str) -> str:
    """The file's name that `cell_of` wrote."""
    text = cell.removeprefix("'").encode("utf-8")
    return os.fsdecode(ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), text))


def drop_rows(table: Path, unwanted: Callable[[str], bool]) -> None:
    """Rewrite a table without the rows of some images, and without a torn last one.

    Raises:
        ValueError: When the file is none of our tables.
    """
    if not os.path.lexists(table):
        return
    rows, torn = _read(table)
    kept = [row for row in rows if not unwanted(name_of(row[0]))]
    if torn or len(kept) < len(rows):
        with (
            replacing(table) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *kept])


def _read(table: Path) -> tuple[list[list[str]], bool]:
    """All rows that are whole, and whether there is another."""
    wrong = f"{table} is no table of predicted objects: choose another folder, or move it away."
    if not table.is_file():  # a pipe would be waited for without end
        raise ValueError(wrong)
    whole, _, rest = table.read_bytes().rpartition(b"\n")
    if not whole and HEADER.encode().startswith(rest):
        return [], True
    try:
        header, *rows = csv.reader(whole.decode("utf-8").split("\n"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(wrong) from error
    if header != list(COLUMNS) or any(len(row) != len(COLUMNS) for row in rows):
        raise ValueError(wrong)
    return rows, bool(rest)


def add_rows(table: Path, objects: pd.DataFrame) -> None:
    """All of an image's rows, or none."""
    size = table.stat().st_size if table.exists() else 0
    how = {"index": False, "header": size == 0, "float_format": "%.9g", "lineterminator": "\n"}
    try:
        with table.open("a", encoding="utf-8", newline="") as file:
            file.write(objects.to_csv(**how))
    except OSError:
        os.truncate(table, size)
        raise
