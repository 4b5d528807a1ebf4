"""A judge that asks another one only where no pattern decides.

Only finding a pattern decides anything: what is not found is left to the other judge, so patterns need to be precise
and need not be complete.
"""

import json
from collections.abc import Sequence

from gradsteer.judges.base import Exchange, Judge, Verdicts
from gradsteer.judges.costs import Cost
from gradsteer.judges.keyword import KeywordJudge
from gradsteer.records import text_digest

# Raised when the rule below changes, so that verdicts stored under another rule are not taken for these.
RULE_VERSION = 1


class HybridJudge(Judge):
    r"""Patterns first, another judge for the rest.

    If a behavior's pattern matches the response, the verdict is true. The other judge is asked only about exchanges
    with undecided behaviors, and its verdicts count only for those. Its behaviors are the ones judged.

    Args:
        patterns: Patterns as for KeywordJudge, `{"bridge": ["\\bgolden gate bridge\\b"]}`, or a JSON file that holds
            them. They must be precise: "the Golden Gate Bridge is not relevant here" counts as showing the behavior if
            its pattern matches. A behavior without patterns is left to the other judge.
        judge: The judge that decides the rest, such as OpenAIJudge.
        ignore_case: Whether matching ignores case, so that "golden gate" matches "Golden Gate".

    Raises:
        ValueError: If the patterns are invalid, or name a behavior that the other judge does not have.
    """

    def __init__(self, patterns: dict[str, list[str]] | str, judge: Judge, ignore_case: bool = True) -> None:
        self.patterns = KeywordJudge(patterns, ignore_case)
        self.rest = judge
        unknown = [behavior for behavior in self.patterns.behaviors if behavior not in judge.behaviors]
        if unknown:
            raise ValueError(
                f"there are patterns for {unknown[0]!r}, which {type(judge).__name__} does not judge; accepted: "
                f"{', '.join(judge.behaviors)}"
            )
        self.num_by_patterns = dict.fromkeys(judge.behaviors, 0)
        """By behavior: how many verdicts a pattern decided so far."""
        self.num_asked = 0
        """How many exchanges the other judge was given so far."""

    @property
    def behaviors(self) -> tuple[str, ...]:
        """Those of the other judge, in its order."""
        return self.rest.behaviors

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdicts]:
        """True where a pattern is found; what the other judge finds elsewhere."""
        by_patterns = self.patterns.judge(exchanges)
        decided = [_hits(found) for found in by_patterns]
        is_open = self._is_open(decided)
        asked = [exchange for exchange, still in zip(exchanges, is_open, strict=True) if still]
        answers = iter(self.rest.judge(asked) if asked else [])
        verdicts = [
            _joined(self.behaviors, found, next(answers) if still else None)
            for found, still in zip(by_patterns, is_open, strict=True)
        ]
        # counted when all went well: whoever tries again after an error counts nothing twice
        self.num_asked += len(asked)
        for hits in decided:
            for behavior in hits:
                self.num_by_patterns[behavior] += 1
        return verdicts

    def _is_open(self, decided: Sequence[set[str]]) -> list[bool]:
        return [len(hits) < len(self.behaviors) for hits in decided]

    def unanswered(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """Those of the other judge's, among what the patterns leave open."""
        is_open = self._is_open([_hits(found) for found in self.patterns.judge(exchanges)])
        return self.rest.unanswered([exchange for exchange, still in zip(exchanges, is_open, strict=True) if still])

    @property
    def max_cost(self) -> float | None:
        """The other judge's."""
        return self.rest.max_cost

    def fingerprint(self) -> str:
        """A digest of the patterns' fingerprint and of the other judge's."""
        decides = {
            "judge": "hybrid",
            "rule": RULE_VERSION,
            "patterns": self.patterns.fingerprint(),
            "rest": self.rest.fingerprint(),
        }
        return text_digest(json.dumps(decides, sort_keys=True))

    def check(self) -> None:
        """Checks the other judge, which most exchanges need."""
        self.rest.check()

    @property
    def waits(self) -> bool:
        """Whether the other judge does."""
        return self.rest.waits

    def usage(self) -> Cost | None:
        """What the other judge took; patterns are free."""
        return self.rest.usage()

    def estimate(self, num_exchanges: int, prompt_chars: float, response_chars: float) -> Cost | None:
        """What it would take if no pattern were found."""
        return self.rest.estimate(num_exchanges, prompt_chars, response_chars)

    def share(self, num_processes: int) -> None:
        """Shares the other judge's limits."""
        self.rest.share(num_processes)

    def close(self) -> None:
        """Closes the other judge."""
        self.rest.close()


def _hits(found: Verdicts) -> set[str]:
    return {behavior for behavior, value in found.values.items() if value}


def _joined(behaviors: Sequence[str], by_patterns: Verdicts, answer: Verdicts | None) -> Verdicts:
    values: dict[str, bool | None] = {}
    unscored, hits = {}, _hits(by_patterns)
    for behavior in behaviors:
        values[behavior] = True if answer is None or behavior in hits else answer.values[behavior]
        if answer is not None and values[behavior] is None:
            unscored[behavior] = answer.unscored[behavior]
    return Verdicts(values, unscored, by_patterns.decided)
