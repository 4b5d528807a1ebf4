"""Where rows come from: a file or a dataset, and which of its rows and columns are meant."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from gradsteer.data.cells import Row, has_column, list_columns, lookup, matches_value
from gradsteer.data.datasets_library import is_hub_id, read_dataset
from gradsteer.data.leftovers import Say, warn
from gradsteer.data.row_files import SUFFIXES, read_file
from gradsteer.records import resolve_resource

T = TypeVar("T")

Columns = dict[str, str | list[str]]

SPELLED = (
    "a path or hub id, or {path: ..., name: CONFIGURATION, split: ..., revision: ..., where: {COLUMN: VALUE}, "
    "columns: {OURS: THEIRS}, sample: N, offset: 0, seed: 0, duplicates: drop, encoding: ...}"
)


@dataclass
class DataSource:
    """Rows of a file or dataset. A path alone means the same as this with nothing else set.

    Attributes:
        path: a .jsonl, .json, .parquet, .csv or .tsv file, a dataset directory (also one of save_to_disk), or a hub
            dataset id.
        name: configuration of the dataset.
        split: split of the dataset.
        revision: commit, branch or tag of a hub dataset.
        where: column -> value that a row must have, or a list of accepted ones; null means an empty value. Dots reach
            into a column, as in {prompt.toxicity: null}.
        columns: column mapping, ours to theirs, such as {prompt: prompt.text, completion: rejected}. Texts of several
            columns are joined by a blank line: {prompt: [instruction, input]}.
        sample: use only this many of the rows, drawn at random; they keep their order.
        offset: pass over the first so many of the draw, so that samples of one seed share no row: 100 at offset 0 and
            100 at offset 100.
        seed: seed of that draw.
        duplicates: "drop" leaves out rows that repeat the messages of an earlier one.
        encoding: encoding of a text file, such as cp1252. UTF-8, and UTF-16 with a byte order mark, need none.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    columns: Columns | None = None
    sample: int | None = None
    offset: int = 0
    seed: int = 0
    duplicates: Literal["drop"] | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        """Refuses settings without effect."""
        if self.sample is not None and self.sample < 1:
            raise ValueError(f"{self.path}: sample is {self.sample}; accepted: at least 1")
        if self.offset < 0:
            raise ValueError(f"{self.path}: offset is {self.offset}; accepted: at least 0")
        for name in ("offset", "seed"):
            if self.sample is None and getattr(self, name) != 0:
                raise ValueError(f"{self.path}: {name} is {getattr(self, name)}, which has no effect without sample")
        if self.duplicates not in (None, "drop"):
            raise ValueError(f"{self.path}: duplicates is {self.duplicates!r}; accepted: drop, or nothing")

    @classmethod
    def of(cls, given: "str | DataSource") -> "DataSource":
        """A path as a source; a source as it is.

        Raises:
            ValueError: the path is a mapping that could not be read as a source.
        """
        if not isinstance(given, str):
            return given
        if given.lstrip().startswith("{"):
            raise ValueError(f"{given} is no data source; accepted: {SPELLED}")
        return cls(given)

    @property
    def is_whole_file(self) -> bool:
        """Whether nothing but the path is set."""
        return self == DataSource(self.path)

    @property
    def local_path(self) -> Path:
        """Where it lies on this machine, if it does."""
        return Path(resolve_resource(self.path)).expanduser()

    def read(self, default_split: str, say: Say = warn) -> list[tuple[str, Row]]:
        """The rows that match `where`, each with its ``file:line``.

        Args:
            default_split: the split of a dataset if none is set.
            say: takes a line on how many match.

        Raises:
            ValueError: there is no such file or dataset, it cannot be read, a setting has no effect on it, or no row
                matches.
        """
        rows = self._read_all(default_split)
        for column in self.where:
            if rows and not any(has_column(row, column) for _, row in rows):
                raise ValueError(f"{self.path}: where: no column {column!r}; found: {list_columns(rows[0][1])}")
        kept = [
            (where, row)
            for where, row in rows
            if all(matches_value(lookup(row, name), want, f"{where}: {name}") for name, want in self.where.items())
        ]
        if rows and not kept:
            found = "; ".join(f"{name}: {_values(rows, name)}" for name in self.where)
            raise ValueError(f"{self.path}: none of {len(rows)} rows matches where {self.where}; found {found}")
        if self.where:
            say(f"{self.path}: {len(kept):,} of {len(rows):,} rows match where {self.where}")
        return kept

    def draw(self, items: Sequence[T], say: Say = warn) -> list[T]:
        """The sample of some items, in their order; all of them if none is asked for.

        Args:
            items: to draw from.
            say: takes a line on the sample.

        Raises:
            ValueError: there are fewer than that.
        """
        if self.sample is None:
            return list(items)
        behind = f" behind the first {self.offset:,}" if self.offset else ""
        if self.offset + self.sample > len(items):
            raise ValueError(
                f"{self.path}: sample is {self.sample}{behind}, and there are {len(items)} rows to draw from"
            )
        say(f"{self.path}: a sample of {self.sample:,}{behind} of {len(items):,} rows (seed {self.seed})")
        generator = random.Random(self.seed)
        draws = [generator.random() for _ in items]
        order = sorted(range(len(items)), key=lambda index: draws[index])
        chosen = order[self.offset : self.offset + self.sample]
        return [items[index] for index in sorted(chosen)]

    def _read_all(self, default_split: str) -> list[tuple[str, Row]]:
        if not self.path:  # an empty path would mean the current directory
            raise ValueError("source is empty; expected a file, a dataset directory or a hub dataset id")
        path = self.local_path
        if path.is_file():
            self._refuse("a file has none", "name", "split", "revision")
            return list(read_file(path, self.encoding))
        if path.is_dir():
            self._refuse("a directory has none", "revision", "encoding")
            return list(read_dataset(str(path), self.name, self.split, default_split, None))
        if is_hub_id(self.path) and path.suffix not in SUFFIXES:
            self._refuse("a hub dataset has none", "encoding")
            return list(read_dataset(self.path, self.name, self.split, default_split, self.revision))
        raise ValueError(
            f"no such file: {self.path}; expected a {', '.join(SUFFIXES)} file, a dataset directory, "
            "or a hub dataset id (NAME or OWNER/NAME; with a configuration {path: OWNER/NAME, name: CONFIGURATION})"
        )

    def _refuse(self, why: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"{self.path}: {name} is {getattr(self, name)!r}, and {why}")


def _values(rows: Sequence[tuple[str, Row]], name: str) -> str:
    found = list(dict.fromkeys(repr(lookup(row, name))[:40] for _, row in rows))
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
