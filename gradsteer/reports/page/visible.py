"""Text of models and data sets made harmless to a reader's eye: what is invisible or turns text around is named."""

import re
import unicodedata

# joiners that emoji and several scripts need, and what lays out text
_KEPT = "\n\t\u200c\u200d"
_SUSPECT = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&$#!{}])")
_LINE_START = re.compile(r"^(\s*\d*)([-+.)](?=\s|$)|[-=](?=[-=\s]*$))")  # of a list, or below a heading


def visible(text: str) -> str:
    """The text with control, bidirectional and other invisible characters written as ``⟨U+202E⟩``.

    Halves of surrogate pairs, which no file takes, are written so too. Line ends become line feeds.
    """
    text = text.replace("\r\n", "\n")
    if text.isascii() and (text.isprintable() or all(c.isprintable() or c in _KEPT for c in text)):
        return text
    return "".join(_named(character) for character in text)


def _named(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _SUSPECT:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def markdown_text(text: str) -> str:
    """The text as Markdown that shows it and does nothing else: no markup, no HTML, no end of a table's cell.

    Args:
        text: visible; a line feed becomes a space.
    """
    return _LINE_START.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\1", " ".join(text.split("\n"))))


def shortened_text(text: str, length: int) -> tuple[str, int]:
    """The first characters of a text, and how many were left out."""
    return (text, 0) if len(text) <= length else (text[:length], len(text) - length)
