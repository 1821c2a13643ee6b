"""Files that are there whole, or not at all; folders of our own; and what is read from either.

Anything on disk may be malformed: cut off, edited by hand, of another version, or no file at all.
Each kind of JSON file has a schema, a pydantic dataclass made with `STRICT`, and is read by
`read_json`, which turns whatever is wrong into one sentence.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

LOCK = ".lock"
MARKER = ".nuctut"
LARGEST = 2**26  # bytes of a file that is read as a whole

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Count = Annotated[int, Field(ge=0, le=2**53)]
Measure = Annotated[float, Field(ge=0, le=1e300)]
Text = Annotated[str, Field(min_length=1)]

T = TypeVar("T")


class Malformed(ValueError):
    """A file is not what it should be; the message names it, what was expected, and what to do."""


# --- reading -------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """The content of a file that somebody else may have put there.

    Raises:
        FileNotFoundError: When there is none.
        Malformed: When it is no regular file (a pipe would never end), or too large.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise Malformed(f"{path}: expected a file, and it is none; move it away.")
    if about.st_size > LARGEST:
        raise Malformed(f"{path}: expected at most {LARGEST:,} bytes, not {about.st_size:,}.")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """As `read_bytes`, the text in it; lines may end as on any system.

    Raises:
        FileNotFoundError: When there is no such file.
        Malformed: As `read_bytes` does, and when it is not UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"{path}: not a text in UTF-8 ({error.reason}).") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, kind: type[T]) -> T:
    """What a JSON file holds, as its schema.

    Args:
        path: Of the file.
        kind: A pydantic dataclass, or anything else that pydantic can make a schema of.

    Raises:
        FileNotFoundError: When there is no such file.
        Malformed: Naming the file, the field, what was expected there and what was found.
    """
    return parse_json(read_text(path), kind, str(path))


def parse_json(text: str, kind: type[T], name: str) -> T:
    """As `read_json`, of a text; `name` is what errors begin with."""
    try:
        value = _schema(kind).validate_json(text)
        json.loads(text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
    except ValidationError as error:
        raise Malformed(f"{name}: {sentence(error, _content(text))}") from None
    except ValueError as error:
        raise Malformed(f"{name}: {error}") from None
    return value


@cache
def _schema(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose fields are all there once; of two, pydantic would take the last unsaid."""
    made = dict(fields)
    if len(made) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two fields named {shown(twice)}; remove one.")
    return made


def _finite(digits: str) -> float:
    """A number, also where a schema takes anything."""
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits[:60]} is no finite number; write null.")
    return number


WHOLE = "its content"
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "bool_type": "true or false",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "null",
    "greater_than": "above {gt:.16g}",
    "greater_than_equal": "{ge:.16g} or more",
    "less_than_equal": "{le:.16g} or less",
    "literal_error": "one of {expected}",
    "string_pattern_mismatch": "a text like {pattern}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or less",
}


def _content(text: str) -> Any:
    """What a text holds as JSON; None where it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def sentence(error: ValidationError, content: Any = None) -> str:
    """The first thing that is wrong: where, what was expected, what was found.

    Args:
        error: Of a schema.
        content: What was held against it; without, a union's branches are named as places.
    """
    errors: list[Any] = error.errors(include_url=False)
    kind, found, told = (errors[0].get(name) for name in ("type", "input", "ctx"))
    if kind == "json_invalid":
        return f"not a JSON file ({told['error']})."
    where = _place(errors[0], content)
    if kind == "missing":
        return f"{where} is missing."
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} is no field of it; remove it."
    if kind == "value_error":  # of a check of what must agree, which speaks for itself
        return f"{where}: {told['error']}".removeprefix(f"{WHOLE}: ")
    here = (one for one in errors if _place(one, content) == where)
    expected = " or ".join(dict.fromkeys(map(_expected, here)))
    return f"{where} must be {expected}, not {shown(found)}."


def _place(error: Mapping[str, Any], content: Any) -> str:
    """Where in a file's content an error is, such as "runs.3.seed".

    Pydantic also names the branch of a union that was tried, which is no field of the file.
    """
    names = []
    for part in error["loc"]:
        try:
            content = content[part]
        except (TypeError, LookupError):
            is_missing = error["type"] == "missing" and part is error["loc"][-1]
            if not is_missing and not (names and isinstance(part, int)):  # a row of a table
                continue
        names.append(str(part))
    return ".".join(names) or WHOLE


def _expected(error: Mapping[str, Any]) -> str:
    """What was expected where an error is, as "must be" goes on."""
    if wanted := EXPECTED.get(error["type"]):
        return wanted.format(**error.get("ctx", {}))
    return error["msg"].removeprefix("Input should be ")


def shown(value: Any) -> str:
    """A value as a sentence can hold it: as JSON, and cut where it is long."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # a number of thousands of digits, a very deep nesting
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    Write one file there. Whoever reads `path` meanwhile sees the old file or the new one, never a
    half; processes that write the same path do not disturb each other, and the last one stays.
    When the block raises, the temporary file is removed and `path` is as it was. The temporary
    name ends differently from `path`, so that no search for files of its kind finds it.

    Raises:
        FileNotFoundError: When the block wrote nothing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a schema's instance, or anything JSON can hold, whole or not at all."""
    text = TypeAdapter(Any).dump_json(value, indent=1).decode()
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# --- folders -------------------------------------------------------------------------------------


def own(folder: Path) -> Path:
    """The folder, made if need be, and marked as the project's own if it was new or empty.

    Only what is marked so is ever listed as something to delete: a folder that was there before,
    with anything in it, stays its owner's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        text = "nuctut made this folder, and `nuctut runs clean` may delete it.\n"
        (folder / MARKER).write_text(text, encoding="utf-8")
    return folder


def is_own(folder: Path) -> bool:
    """Whether `own` made the folder."""
    marker = folder / MARKER
    return marker.is_file() and not marker.is_symlink() and not folder.is_symlink()


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether this process is the only one at work in `folder`.

    The lock ends with the block, or with the process, however that dies: nothing has to be tidied
    up. Where a file system knows no locks (some mounted drives), everybody gets it.

    Args:
        folder: Its file `LOCK` is what is locked.
        wait: Wait until the folder is free; otherwise the block gets False where it is not.
    """
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0, fallback_to_soft=False)
    held = True
    try:
        lock.acquire()
    except Timeout:
        held = False
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.ENOTSUP):
            raise
    try:
        yield held
    finally:
        lock.release()
