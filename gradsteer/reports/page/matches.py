"""Where a judge's patterns match a text, for marks in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import regex

_SECONDS = 1.0  # for one pattern in one text: patterns come from a file


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        text: it.
        behavior: whose pattern matches it; None outside of matches.
    """

    text: str
    behavior: str | None = None


def pieces(text: str, patterns: Mapping[str, Sequence[str]], own: str | None = None) -> list[Piece]:
    """A text in parts: what patterns match, and what is between.

    Where matches overlap, those of one behavior go before the others', then the earlier, then the longer.

    Args:
        text: it.
        patterns: behavior -> regular expressions.
        own: the behavior that goes before.

    Raises:
        ValueError: a pattern takes too long.
    """
    spans = []
    for behavior, found in patterns.items():
        for pattern in found:
            try:
                matches = regex.finditer(pattern, text, timeout=_SECONDS)
                spans += [(behavior != own, m.start(), -m.end(), behavior) for m in matches if m.end() > m.start()]
            except TimeoutError as error:
                raise ValueError(
                    f"the pattern {pattern!r:.60} takes longer than {_SECONDS:g} s on a response"
                ) from error
            except regex.error as error:
                raise ValueError(f"the pattern {pattern!r:.60} cannot be marked: {error}") from error
    taken: list[tuple[int, int, str]] = []
    for _, start, end, behavior in sorted(spans):
        if all(-end <= other[0] or start >= other[1] for other in taken):
            taken.append((start, -end, behavior))
    parts: list[Piece] = []
    at = 0
    for start, end, behavior in sorted(taken):
        between = text[at:start]
        if parts and parts[-1].behavior == behavior and not between.strip():  # two words side by side are one mark
            parts[-1] = Piece(f"{parts[-1].text}{between}{text[start:end]}", behavior)
        else:
            parts += [Piece(between), Piece(text[start:end], behavior)]
        at = end
    return [part for part in (*parts, Piece(text[at:])) if part.text]
