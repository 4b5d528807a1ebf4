"""Keeps an API key out of messages and logs, whole or in the parts that servers like to show."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

HIDDEN = "<key>"
_PART = 6  # characters of a key in a row that are taken for a part of it
_MASKED = re.compile(r"\*{2,}|\.{3,}|[\u2022\u2026]|[xX]{3,}")
_NOISY = ("openai", "httpx", "httpcore", "h11", "h2", "hpack", "anyio")


class Scrubber:
    """Replaces a key in texts.

    Hidden are the key, any part of it of 6 characters or more, its last four as a word, and words that show its
    beginning or its end around asterisks or dots.

    Args:
        key: The secret; None where there is none.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key or ""

    def __repr__(self) -> str:
        return "Scrubber()"

    def __call__(self, text: str) -> str:
        """The text without the key."""
        key = self._key
        if not key:
            return text
        text = self._without_parts(text.replace(key, HIDDEN))
        if len(key) < 8:
            return text
        text = re.sub(rf"(?<!\w){re.escape(key[-4:])}(?!\w)", HIDDEN, text)
        return re.sub(r"\S+", self._without_masked, text)

    def _without_parts(self, text: str) -> str:
        key, start, pieces, done = self._key, 0, [], 0
        while start + _PART <= len(text):
            end = start + _PART
            if text[start:end] not in key:
                start += 1
                continue
            while end < len(text) and text[start : end + 1] in key:
                end += 1
            pieces += [text[done:start], HIDDEN]
            start = done = end
        return "".join([*pieces, text[done:]])

    def _without_masked(self, found: re.Match[str]) -> str:
        word = found.group()
        shows = self._key[:3] in word or self._key[-3:] in word
        return HIDDEN if shows and _MASKED.search(word) else word


class _Filter(logging.Filter):
    def __init__(self, scrub: Scrubber) -> None:
        super().__init__()
        self._scrub = scrub

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._scrub(record.getMessage()), ()
        return True


@contextmanager
def scrubbed_logs(scrub: Scrubber) -> Iterator[None]:
    """Scrubs what the client's libraries log, headers of responses among it."""
    # a logger's filters do not reach its children, so each gets one
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_NOISY)]
    loggers = [logging.getLogger(name) for name in names]
    hiding = _Filter(scrub)
    for logger in loggers:
        logger.addFilter(hiding)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(hiding)
