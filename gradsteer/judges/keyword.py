"""A judge that looks for words: exact, free and without a network.

It sees whether a topic is mentioned, not how: "the Golden Gate Bridge is not relevant here" is a mention.
"""

import json
import re
from collections.abc import Sequence

from gradsteer.judges.base import Exchange, Judge, Verdicts
from gradsteer.judges.mapping_file import read_mapping
from gradsteer.judges.pattern_positions import decided_after
from gradsteer.records import text_digest

# Raised when the rule below changes, so that verdicts stored under another rule are not taken for these.
RULE_VERSION = 1


class KeywordJudge(Judge):
    r"""A response shows a behavior if any of the behavior's patterns matches it.

    The prompt is not searched. An empty or blank response shows no behavior: its verdict is false, not unscored.

    Args:
        patterns: For each behavior, regular expressions (Python's `re`), searched anywhere in the response:
            `{"bridge": ["golden gate", "suspension bridge"]}`. One match suffices. Put `\b` around a word that also
            occurs inside longer words. Or the name of a JSON file that holds them.
        ignore_case: Whether matching ignores case, so that "golden gate" matches "Golden Gate".

    Raises:
        ValueError: If there is no behavior, a behavior has no pattern, a pattern is empty or not a regular
            expression, or the file is missing or holds something else.
    """

    def __init__(self, patterns: dict[str, list[str]] | str, ignore_case: bool = True) -> None:
        if isinstance(patterns, str):
            patterns = read_mapping(patterns, "patterns", '{"bridge": ["golden gate"]}')
        if not patterns:
            raise ValueError("patterns is empty; it must name at least one behavior")
        self.patterns = {behavior: list(found) for behavior, found in patterns.items()}
        self.ignore_case = ignore_case
        flags = re.IGNORECASE if ignore_case else re.NOFLAG
        self._compiled = {behavior: _compile(behavior, found, flags) for behavior, found in patterns.items()}

    @property
    def behaviors(self) -> tuple[str, ...]:
        """The behaviors in the order of `patterns`."""
        return tuple(self._compiled)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdicts]:
        """Searches each response; every verdict is true or false, and the true ones say where they were decided."""
        return [self._verdicts(exchange.response) for exchange in exchanges]

    def _verdicts(self, response: str) -> Verdicts:
        values = self._search(response)
        shown = [behavior for behavior, value in values.items() if value]
        found = {behavior: decided_after(self._compiled[behavior], response) for behavior in shown}
        return Verdicts(values, {}, {behavior: place for behavior, place in found.items() if place is not None})

    def fingerprint(self) -> str:
        """A digest of the patterns and of `ignore_case`; the order of the patterns decides nothing."""
        decides = {
            "judge": "keyword",
            "rule": RULE_VERSION,
            "ignore_case": self.ignore_case,
            "patterns": {behavior: sorted(set(found)) for behavior, found in self.patterns.items()},
        }
        return text_digest(json.dumps(decides, sort_keys=True))

    def _search(self, response: str) -> dict[str, bool | None]:
        empty = not response.strip()
        return {
            behavior: not empty and any(pattern.search(response) for pattern in patterns)
            for behavior, patterns in self._compiled.items()
        }


def _compile(behavior: str, patterns: Sequence[str], flags: re.RegexFlag) -> list[re.Pattern[str]]:
    # a string is a sequence of one-letter patterns, found in nearly every response
    if not isinstance(behavior, str):
        raise ValueError(
            f"a behavior is {behavior!r}; accepted: a text, such as 'no' in quotes, which YAML reads as false without"
        )
    if isinstance(patterns, str) or not patterns:
        raise ValueError(f"the patterns of {behavior!r} are {patterns!r}; they must be a list of one or more strings")
    compiled = []
    for pattern in patterns:
        if not pattern:
            raise ValueError(f"a pattern of {behavior!r} is empty; it would be found in every response")
        try:
            compiled.append(re.compile(pattern, flags))
        except re.error as error:
            raise ValueError(f"the pattern {pattern!r} of {behavior!r} is no regular expression: {error}") from error
    return compiled
