r"""Regular expressions that people write, on texts that models write: searched with a time limit, in any thread.

Python's own `re` can take hours for a few dozen words, and nothing ends it. The `regex` library has a time limit and
most of these patterns it does not take long for. What is accepted is what `re` accepts; letters are told apart as
Unicode has it, so that `\w` and `\b` know the vowel signs of Hindi or Thai.
"""

import re
from collections.abc import Sequence
from typing import Any

SECONDS = 2.0  # of one pattern on one text; most take microseconds

# a pattern's parts, as far as braces and brackets are concerned; a bracket right behind one that opens a set is in it
_IN_SET = re.compile(r"\\N\{[^}]*\}|\\.|.", re.DOTALL)
_UNIT = re.compile(r"\\N\{[^}]*\}|\\.|\{(?:\d+,?|\d*,\d*)\}|\(\?#[^)]*\)|\[\^?\]?|.", re.DOTALL)
_VERBOSE = re.compile(rf"#[^\n]*|{_UNIT.pattern}", re.DOTALL)


class SlowPatternError(TimeoutError):
    """A search took too long; whether the pattern is in the text is not known."""


class Pattern:
    """One regular expression.

    Args:
        behavior: That it stands for, for messages.
        pattern: In the syntax of Python's `re`.
        ignore_case: Whether upper and lower case are the same.

    Raises:
        ValueError: If it is empty or no regular expression.
    """

    def __init__(self, behavior: str, pattern: str, ignore_case: bool = False) -> None:
        import regex

        if not pattern:
            raise ValueError(f"a pattern of {behavior!r} is empty; it would be found in every response")
        self.pattern = pattern
        try:
            verbose = bool(re.compile(pattern).flags & re.VERBOSE)
            # the flag is V0, and not left to the library's setting: as `re` reads sets
            self._compiled = regex.compile(
                _escaped(pattern, verbose=verbose), regex.V0 | (regex.IGNORECASE if ignore_case else 0)
            )
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise ValueError(f"the pattern {pattern!r} of {behavior!r} is no regular expression: {error}") from error

    def search(self, text: str) -> Any:
        """The first match anywhere in a text, as `re` has matches; None where there is none.

        Raises:
            SlowPatternError: If that is not known after `SECONDS` of the processor's time.
        """
        try:
            # concurrent: other threads go on, among them the one that looks after signals
            return self._compiled.search(text, timeout=SECONDS, concurrent=True)
        except TimeoutError:
            raise SlowPatternError(f"the pattern {self.pattern!r} takes more than {SECONDS:g} s on it") from None


def compile_patterns(behavior: str, patterns: Sequence[str], ignore_case: bool) -> list[Pattern]:
    """The patterns of a behavior.

    Raises:
        ValueError: If there is none, or one is not as it should be.
    """
    if not isinstance(behavior, str):
        raise ValueError(
            f"a behavior is {behavior!r}; accepted: a text, such as 'no' in quotes, which YAML reads as false without"
        )
    # a string is a sequence of one-letter patterns, found in nearly every response
    if isinstance(patterns, str) or not patterns:
        raise ValueError(f"the patterns of {behavior!r} are {patterns!r}; they must be a list of one or more strings")
    return [Pattern(behavior, pattern, ignore_case) for pattern in patterns]


def _escaped(pattern: str, *, verbose: bool) -> str:
    """A pattern with a backslash before what only `regex` takes for more than a character.

    That is a brace that begins no repeat, `frac{d}`, and a bracket in a set, `[[:alpha:]]`.
    """
    units: list[str] = []
    position, in_set = 0, False
    while position < len(pattern):
        found = (_IN_SET if in_set else _VERBOSE if verbose else _UNIT).match(pattern, position)
        unit = found[0] if found else pattern[position]
        position += len(unit)
        if unit == "{" or unit == "[" and in_set:
            unit = f"\\{unit}"
        elif unit.startswith("["):
            in_set = True
        elif unit == "]" and in_set:
            in_set = False
        units.append(unit)
    return "".join(units)
