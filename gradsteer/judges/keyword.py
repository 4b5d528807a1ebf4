"""A judge that looks for words: exact, free and without a network.

It sees whether a topic is mentioned, not how: "the Golden Gate Bridge is not relevant here" is a mention.
"""

import json
from collections.abc import Sequence

from gradsteer.judges.base import Exchange, Judge, Verdicts
from gradsteer.judges.mapping_file import read_mapping
from gradsteer.judges.pattern_positions import decided_after
from gradsteer.judges.patterns import SlowPatternError, compile_patterns
from gradsteer.records import text_digest

# Raised when the rule below changes, so that verdicts stored under another rule are not taken for these.
RULE_VERSION = 2
_SLOW_IN_ROW = 16  # responses that a pattern takes too long for: it will be so with all


class KeywordJudge(Judge):
    r"""A response shows a behavior if any of the behavior's patterns matches it.

    The prompt is not searched. An empty or blank response shows no behavior: its verdict is false, not unscored. A
    pattern that takes more than two seconds for a response leaves it unscored, unless another one is found; where it
    does so for 16 in a row, the run stops.

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
        self._compiled = {name: compile_patterns(name, found, ignore_case) for name, found in patterns.items()}
        self._slow_in_row = dict.fromkeys(self._compiled, 0)

    @property
    def behaviors(self) -> tuple[str, ...]:
        """The behaviors in the order of `patterns`."""
        return tuple(self._compiled)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdicts]:
        """Searches each response; true verdicts say where they were decided.

        Raises:
            ValueError: If a pattern took too long for many in a row.
        """
        return [self._verdicts(exchange.response) for exchange in exchanges]

    def fingerprint(self) -> str:
        """A digest of the patterns and of `ignore_case`; the order of the patterns decides nothing."""
        decides = {
            "judge": "keyword",
            "rule": RULE_VERSION,
            "ignore_case": self.ignore_case,
            "patterns": {behavior: sorted(set(found)) for behavior, found in self.patterns.items()},
        }
        return text_digest(json.dumps(decides, sort_keys=True))

    def _verdicts(self, response: str) -> Verdicts:
        values: dict[str, bool | None] = {}
        unscored, decided = {}, {}
        for behavior in self.behaviors:
            try:
                values[behavior] = bool(response.strip()) and self._search(behavior, response)
                self._slow_in_row[behavior] = 0
            except SlowPatternError as error:
                values[behavior], unscored[behavior] = None, str(error)
                self._slow_in_row[behavior] += 1
                if self._slow_in_row[behavior] >= _SLOW_IN_ROW:
                    raise ValueError(
                        f"patterns of {behavior!r}: {error}, and so for {_SLOW_IN_ROW} responses in a row. Write it "
                        "without a repeat inside of a repeat, such as (\\w+\\s*)+"
                    ) from error
            if values[behavior] and (place := decided_after(self._compiled[behavior], response)) is not None:
                decided[behavior] = place
        return Verdicts(values, unscored, decided)

    def _search(self, behavior: str, response: str) -> bool:
        """Whether any pattern is found.

        Raises:
            SlowPatternError: If none is, and one took too long.
        """
        slow: SlowPatternError | None = None
        for pattern in self._compiled[behavior]:
            try:
                if pattern.search(response):
                    return True
            except SlowPatternError as error:
                slow = slow or error
        if slow is not None:
            raise slow
        return False
