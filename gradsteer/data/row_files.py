"""Rows of files: JSON lines, a JSON array, Parquet, and tables of text in the encodings that people have."""

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradsteer.data.cells import Row
from gradsteer.records import parse_json_lines

# UTF-32's mark begins with UTF-16's
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_file(path: Path, encoding: str | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its ``file:line``.

    Args:
        path: the file, of one of `SUFFIXES`.
        encoding: of a file of text; by default UTF-8, or what its byte order mark says.

    Raises:
        ValueError: the kind is unknown, the encoding is not certain, or a line is invalid.
    """
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"{path}: unknown kind {path.suffix!r}; accepted: {', '.join(SUFFIXES)}")
    return _READERS[path.suffix.lower()](path, encoding)


def read_text(path: Path, encoding: str | None = None) -> str:
    """A file's text, without a byte order mark.

    Raises:
        ValueError: it is not UTF-8 and nothing says what it is; names file and line, and what to do.
    """
    data = path.read_bytes()
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    used = marked or encoding or "utf-8"
    try:
        text = data.decode(used)
    except LookupError as error:
        raise ValueError(f"{path}: encoding is {encoding!r}; accepted: a name that Python knows, as cp1252") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{line}: not {used} (byte 0x{data[error.start]:02x}); save the file as UTF-8, or say its encoding: "
            f"{{path: {path}, encoding: cp1252}}"
        ) from error
    if "\0" in text[:4096]:
        raise ValueError(
            f"{path}: holds zero bytes, as UTF-16 without a byte order mark does; save the file as UTF-8, or say its "
            f"encoding: {{path: {path}, encoding: utf-16-le}}"
        )
    return text


def parse_cell(text: str, where: str) -> Any:
    """A JSON list in a text.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {text[:60]!r} is not a JSON list ({error})") from error


def _read_lines(path: Path, encoding: str | None) -> Iterator[tuple[str, Row]]:
    yield from _lines(path, read_text(path, encoding))


def _lines(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    for number, row in parse_json_lines((line.encode() for line in text.split("\n")), path):
        yield f"{path}:{number}", row


def _read_json(path: Path, encoding: str | None) -> Iterator[tuple[str, Row]]:
    text = read_text(path, encoding)
    if not text.lstrip().startswith("["):  # many .json datasets are JSON lines
        with suppress(json.JSONDecodeError):
            whole = json.loads(text)
            lists = [key for key, value in whole.items() if isinstance(value, list)] if isinstance(whole, dict) else []
            if "\n" in text.strip() or lists in (["data"], ["rows"], ["examples"], ["train"]):
                held = f" (it has the list {lists[0]!r}: save that)" if lists else ""
                raise ValueError(f"{path}: is a single object{held}; accepted: a list of objects, or an object a line")
        yield from _lines(path, text)
        return
    for number, row in enumerate(parse_cell(text, str(path)), start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: entry {number} is {row!r:.80}; expected an object")
        yield f"{path}:{number}", row


def _read_parquet(path: Path, encoding: str | None) -> Iterator[tuple[str, Row]]:
    # Not with `datasets`: a file needs no cache, and a stale cache silently gives old data.
    import pyarrow.parquet

    if encoding is not None:
        raise ValueError(f"{path}: encoding is {encoding!r}, and Parquet has none")
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}:{number}", row


def _read_table(path: Path, encoding: str | None) -> Iterator[tuple[str, Row]]:
    # The standard library's reader, because one that guesses types would turn "007" into a number and "NA" into a
    # missing value. A row whose cells contain line breaks is named by its last line.
    text = read_text(path, encoding)
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(path, text))
        rows = []
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not any("".join(cell or "") for cell in row.values()):
                continue  # spreadsheets end in such rows
            if None in row:  # the csv module's key for cells beyond the columns
                raise ValueError(f"{where}: more cells than the {len(reader.fieldnames or ())} columns")
            rows.append((where, {name: _decode_cell(cell, where) for name, cell in row.items()}))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num + 1}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    yield from rows


def _delimiter(path: Path, text: str) -> str:
    """A tab in .tsv; in .csv a comma, unless the header has none and holds semicolons or tabs instead."""
    if path.suffix == ".tsv":
        return "\t"
    header = re.sub('"[^"]*"', "", text.partition("\n")[0])
    others = [delimiter for delimiter in ";\t" if delimiter in header]
    if "," in header or not others:
        return ","
    if len(others) > 1:
        raise ValueError(f"{path}:1: the header {header[:80]!r} has both semicolons and tabs; accepted: one of them")
    return others[0]


def _decode_cell(cell: str | None, where: str) -> Any:
    """Parse a cell that contains a list of messages as JSON; other cells stay strings."""
    if cell is not None and re.match(r'\s*\[\s*\{\s*"(role|content|from|value)"\s*:', cell):
        return parse_cell(cell, where)
    return cell


_READERS = {
    ".jsonl": _read_lines, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_table, ".tsv": _read_table,
}  # fmt: skip
SUFFIXES = tuple(_READERS)
