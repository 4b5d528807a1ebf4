"""Whether one response is degenerate: empty, or caught in a loop.

The rules are meant to miss rather than to accuse: what they flag is broken nearly always, what they pass may still be
bad.
"""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

# Texts whose answer is looked up when they come again: alike conditions reply alike, and are counted twice.
_REMEMBERED = 1 << 16

# Shorter sentences ("Sure.", "Step two.") recur in good prose and in lists.
MIN_SENTENCE_WORDS = 3

# A recipe adds salt twice, a dialogue asks the same question again: that is no loop until it is much of the text.
MAX_SAID_AGAIN = 1 / 3  # of the words
_STRETCH = 8  # words that nobody happens to say twice

# Whisper's limit for transcripts that loop (Radford et al. 2022, arXiv:2212.04356, section 4.5), which it takes of
# segments of half a minute, some 400 characters. The ratio grows with length: whole documents of 4,000 characters
# mostly pass 2.4, stretches of 400 characters of prose lie at 1.5 to 1.7.
MAX_COMPRESSION = 2.4
COMPRESSION_WINDOW = 400  # characters
MIN_COMPRESSED_CHARS = 200  # below, a sentence form said three times ("It costs ...") compresses as well as a loop

# A stretch of words said at least four times in a row, over half the text or over 20 words.
_LONGEST_STRETCH, _WORD_REPEATS, _MIN_LOOP_WORDS, _LONG_LOOP_WORDS = 24, 4, 6, 20

# Text without words, or without spaces: up to eight characters, at least six times in a row.
_CHARACTER_LOOP = re.compile(r"(.{1,8}?)\1{5,}")
_MIN_LOOP_CHARS = 20

# Ends of lines; full stops, question and exclamation marks with what closes behind them, but not in "3.5". Looked for
# from the first of several marks only, or a row of dots takes a time that grows with its square.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+[\"'”’)\]*_]*(?:\s+|$)|[\n\r]+")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_FENCED_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


@lru_cache(_REMEMBERED)
def has_repeated_sentence(text: str) -> bool:
    """Whether a sentence of at least three words occurs more than once, as in the loops of a broken model.

    The two need not be neighbours, so that loops over several sentences count, and so does the refrain of a song.
    Case, spacing and the marks around the words are ignored. A sentence ends at `.`, `!` or `?` before a space, or at
    the end of a line. A loop inside one sentence, and languages written without spaces, are not seen; `is_degenerate`
    sees most of those.
    """
    seen = set()
    for sentence in _SENTENCE_END.split(text):
        words = _words(sentence)
        if len(words) < MIN_SENTENCE_WORDS:
            continue
        if words in seen:
            return True
        seen.add(words)
    return False


def said_again_share(text: str) -> float:
    """The share of a text's words that it has said before, in [0, 1]; 0 for a text without words.

    Those of a sentence of at least three words that is not its first occurrence, and those of a stretch of eight words
    that occurred before.
    """
    words: list[str] = []
    again: list[bool] = []
    sentences: set[tuple[str, ...]] = set()
    for part in _SENTENCE_END.split(text):
        sentence = _words(part)
        words += sentence
        again += [len(sentence) >= MIN_SENTENCE_WORDS and sentence in sentences] * len(sentence)
        sentences.add(sentence)
    first: dict[tuple[str, ...], int] = {}
    for start in range(len(words) - _STRETCH + 1):
        stretch = tuple(words[start : start + _STRETCH])
        if start >= first.setdefault(stretch, start) + _STRETCH:
            again[start : start + _STRETCH] = [True] * _STRETCH
    return sum(again) / len(again) if again else 0.0


def compression_ratio(text: str) -> float | None:
    """Bytes of the UTF-8 text over bytes of its zlib stream; None for an empty text.

    It grows with length as well as with repetition, from below 1 (the stream has a header) over 1.5 at 400 characters
    of prose to 2 at 8,000: compare texts of about equal length only.
    """
    raw = text.encode("utf-8", errors="replace")  # half a surrogate pair is no reason to stop
    return len(raw) / len(zlib.compress(raw)) if raw else None


@lru_cache(_REMEMBERED)
def is_degenerate(text: str) -> bool:
    """Whether a response is broken: nothing was said, or one thing over and over.

    Any of these: it is empty or only white space; it has said a third of its words before, in the same sentence or in a
    stretch of eight words (`said_again_share`); a stretch of words is said four times or more in a row, over half the
    words or over 20 of them ("the bridge the bridge the bridge ..."); likewise a stretch of characters, over half the
    text ("!!!!!!", loops of languages without spaces); 400 characters of it, or all of 200 to 400, compress by more
    than 2.4.

    Code between fences of three backticks repeats itself by nature: there only the loops of words and of characters
    count. Songs with a refrain, code without fences and long tables may be flagged.
    """
    if not text.strip():
        return True
    prose = _FENCED_CODE.sub("\n", text)
    return said_again_share(prose) >= MAX_SAID_AGAIN or _loops(text) or _compresses(prose)


def _loops(text: str) -> bool:
    words = _words(text)
    run = _longest_loop(words)
    # zeros in a row may be a matrix
    if len(run) >= _LONG_LOOP_WORDS and any(character.isalpha() for word in run for character in word):
        return True
    if len(run) >= max(_MIN_LOOP_WORDS, len(words) / 2):
        return True
    characters = "".join(text.split())
    longest = max((len(match[0]) for match in _CHARACTER_LOOP.finditer(characters)), default=0)
    return longest >= max(_MIN_LOOP_CHARS, len(characters) / 2)


def _longest_loop(words: Sequence[str]) -> Sequence[str]:
    """The longest run of words that is a stretch said at least four times in a row; empty where there is none."""
    longest: Sequence[str] = ()
    for period in range(1, min(_LONGEST_STRETCH, len(words) // _WORD_REPEATS) + 1):
        matched = 0
        for index in range(period, len(words)):
            matched = matched + 1 if words[index] == words[index - period] else 0
            length = matched + period
            if length >= _WORD_REPEATS * period and length > len(longest):
                longest = words[index + 1 - length : index + 1]
    return longest


def _compresses(text: str) -> bool:
    text = " ".join(text.split())  # indents compress too
    if len(text) < MIN_COMPRESSED_CHARS:
        return False
    last = max(0, len(text) - COMPRESSION_WINDOW)
    starts = [*range(0, last, COMPRESSION_WINDOW // 2), last]
    ratios = (compression_ratio(text[start : start + COMPRESSION_WINDOW]) for start in starts)
    return any(ratio is not None and ratio > MAX_COMPRESSION for ratio in ratios)


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))
