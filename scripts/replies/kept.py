"""What was measured, in a file of JSON lines, so that an interrupted run goes on where it was."""

import json
from pathlib import Path
from typing import Any


class Kept:
    """Rows, those of earlier runs among them.

    Args:
        file: may be there; a line that an interruption cut is measured again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("\n")]
        file.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def has(self, **key: Any) -> bool:
        """Whether a row with these values is there."""
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Adds some, which belong together."""
        self.rows += rows
        with self.file.open("a") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
