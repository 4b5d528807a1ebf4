"""What rows hold and nobody reads, and what is read by convention: counted, and said once a source."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable

Say = Callable[[str], None]
"""What takes a line for the user, such as a logger's method."""


def warn(text: str) -> None:
    """Says it as a warning: what a notebook shows."""
    warnings.warn(text, stacklevel=4)


class Leftovers:
    """Counts over the rows of a source.

    Args:
        path: the source, for the text.
        known: columns that are not counted.
    """

    def __init__(self, path: str, known: Iterable[str] = ()) -> None:
        self.path, self.known = path, frozenset(known)
        self.num_rows = 0
        self.unused: Counter[str] = Counter()
        self.conventions: Counter[str] = Counter()

    def count(self, unused: Iterable[str], conventions: Iterable[str]) -> None:
        """Counts a row.

        Args:
            unused: its columns and message keys that hold something and are not used.
            conventions: what was made of its columns without being told to.
        """
        self.num_rows += 1
        self.unused.update(set(unused) - self.known)
        self.conventions.update(set(conventions))

    def say(self, say: Say) -> None:
        """Says what was counted, if anything."""
        for title, counts in (("not used", self.unused), ("read by convention", self.conventions)):
            if counts:
                names = ", ".join(f"{name}{self._share(count)}" for name, count in sorted(counts.items()))
                say(f"{self.path}: {title}: {names}")

    def _share(self, count: int) -> str:
        return "" if count == self.num_rows else f" ({count} of {self.num_rows} rows)"
