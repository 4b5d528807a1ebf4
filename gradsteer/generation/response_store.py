"""A cache of the finished responses of a run's conditions: each file is read at most once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsteer.generation.unfinished import SETS, UnfinishedCondition
from gradsteer.records import read_jsonl, write_jsonl

Row = dict[str, Any]


class ResponseStore:
    """The rows of ``responses/CONDITION.jsonl`` and the files beside it, by condition and set of prompts.

    Args:
        directory: the directory of responses.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._rows: dict[tuple[str, str], list[Row]] = {}

    def rows(self, slug: str, of_set: str = "evaluation") -> list[Row]:
        """The responses of a condition to a set of prompts; empty if it was not sampled.

        Args:
            slug: the condition's name as a file name.
            of_set: one of `SETS`.

        Raises:
            ValueError: a line of the file is not readable.
        """
        if (slug, of_set) not in self._rows:
            path = UnfinishedCondition(self.directory, slug).responses_to(of_set)
            self._rows[slug, of_set] = [row for _, row in read_jsonl(path)] if path.is_file() else []
        return self._rows[slug, of_set]

    def sets(self, slug: str) -> dict[str, list[Row]]:
        """The responses of a condition, by set, for the sets that were sampled."""
        return {name: rows for name in SETS if (rows := self.rows(slug, name))}

    def write(self, slug: str, sets: Mapping[str, Sequence[Row]]) -> None:
        """Writes a condition's responses; removes responses to other sets, left by a run that this one replaces."""
        files = UnfinishedCondition(self.directory, slug)
        for name in SETS:
            if name in sets:
                self.write_set(slug, name, sets[name])
            else:
                files.responses_to(name).unlink(missing_ok=True)
                self._rows[slug, name] = []

    def write_set(self, slug: str, of_set: str, rows: Sequence[Row]) -> None:
        """Writes a condition's responses to one set of prompts."""
        write_jsonl(UnfinishedCondition(self.directory, slug).responses_to(of_set), rows)
        self._rows[slug, of_set] = list(rows)
