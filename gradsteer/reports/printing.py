"""Tables on a terminal, and as the same text."""

import io
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_WIDEST = 1000


def print_whole(table: "Table", note: str | None = None) -> None:
    """Prints a table at its full width: a narrower terminal wraps lines, but no number is cut."""
    from rich.console import Console

    console = Console(width=max(measured_width(table), Console().width))
    _write(console, [table], note)


def whole_text(table: "Table", note: str | None = None) -> str:
    """What `print_whole` prints, without its colours."""
    return plain_text([table], measured_width(table), note)


def plain_text(parts: "Iterable[RenderableType]", width: int, note: str | None = None) -> str:
    """Renderables as lines of at most a width, without spaces at their ends."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), force_terminal=False, color_system=None)
    _write(console, parts, note)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _write(console: "Console", parts: "Iterable[RenderableType]", note: str | None) -> None:
    console.print()
    for part in parts:
        console.print(part)
    if note:
        console.print(note.strip(), markup=False, highlight=False)


def measured_width(table: "Table") -> int:
    """Columns that a table needs where nothing in it wraps."""
    from rich.console import Console

    return Console(width=_WIDEST).measure(table).maximum


def print_text(text: str) -> None:
    """Prints lines; a terminal of another encoding shows question marks for what it has no character for."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)
