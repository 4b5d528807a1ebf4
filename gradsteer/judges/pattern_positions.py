"""Where in a text it is decided that a pattern matches, whatever follows."""

import re
from collections.abc import Sequence

from gradsteer.judges.patterns import Pattern, SlowPatternError

# what a pattern may say of the text behind its match; a boundary looks one character ahead, and that is tried
_LOOKS_AHEAD = re.compile(r"\(\?[=!]|\$|\\Z|\\z")
# a boundary lies before a blank or before a letter and a digit, neither of which a pattern is likely to name beside it
_NEXT = ("é", "0", " ")


def decided_after(patterns: Sequence[Pattern], text: str) -> int | None:
    """The fewest first characters of a text that one of the patterns matches whatever follows them.

    That is no later than where a match ends, and it does not depend on what follows: of two texts that begin with these
    characters both say the same.

    Args:
        patterns: any of them suffices.
        text: what is searched.

    Returns:
        None where no pattern matches; or only at the very end, by a word boundary; or only a pattern that looks further
        ahead (a lookahead, the end of a line or of the text), of which nothing is said.
    """
    best: int | None = None
    for pattern in patterns:
        end = len(text) if best is None else best - 1
        if _LOOKS_AHEAD.search(pattern.pattern) or not _is_decided(pattern, text[:end]):
            continue
        low = 1
        while low < end:
            middle = (low + end) // 2
            if _is_decided(pattern, text[:middle]):
                end = middle
            else:
                low = middle + 1
        best = end
    return best


def _is_decided(pattern: Pattern, start: str) -> bool:
    try:
        return bool(start.strip()) and all(pattern.search(start + following) for following in ("", *_NEXT))
    except SlowPatternError:
        return False
