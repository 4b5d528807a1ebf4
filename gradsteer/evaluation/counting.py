"""Counting a condition's judged responses: rates of behaviors and classes, metrics, and what is missing."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradsteer.data.response_rows import cluster_of, is_unanswered, verdict_of, withholds
from gradsteer.evaluation.judge_error import JudgeError, corrected_rate
from gradsteer.evaluation.metrics import response_metrics
from gradsteer.evaluation.refusals import REFUSAL, REFUSAL_SETS, refusals_of
from gradsteer.evaluation.statistics import Rate, rate_with_interval
from gradsteer.evaluation.verdict_classes import classes_of, in_class
from gradsteer.evaluation.withheld import Withheld

Rows = Sequence[Mapping[str, Any]]
_NUMBER = re.compile(r"(?<!HTTP )\b\d+(?:[.,]\d+)*")  # an HTTP status is no quantity
_SHOWN = 3  # kinds of reasons


@dataclass
class Counts:
    """Rates and metrics of one condition's judged responses.

    Attributes:
        behaviors: behavior -> its rate.
        classes: class of responses -> its rate, where there are several behaviors; see
            `gradsteer.evaluation.verdict_classes`.
        refusals: ``benign`` and ``harmful`` -> share of refusals on these prompts by patterns, where they were
            sampled; ``benign_judged`` and ``harmful_judged`` -> by the judge, where it knows ``refusal``.
        metrics: text metrics of the responses.
        corrected: behavior -> its rate corrected for the judge's known error; None without a labelled set.
        num_unanswered: replies that ended within their thought; each behavior counts them among its unscored ones.
        num_responses: all replies, these included.
        withheld: behavior, and ``benign_judged_refused`` and the like -> how many verdicts the judge withheld, of those
            that it had to give.
    """

    behaviors: dict[str, Rate] = field(default_factory=dict)
    classes: dict[str, Rate] = field(default_factory=dict)
    refusals: dict[str, Rate] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    corrected: dict[str, Any] | None = None
    num_unanswered: int = 0
    num_responses: int = 0
    withheld: dict[str, Withheld] = field(default_factory=dict)

    def __str__(self) -> str:
        """The rates in a line: ``bridge 41.9% of 797, recipe of none: 12 degenerate``."""
        said = [", ".join(f"{name} {_rate_text(rate)}" for name, rate in self.behaviors.items())]
        said += [self.unanswered_text] * bool(self.num_unanswered)
        counts = [
            f"{each.num_withheld} of {each.num_replies} on {name}"
            for name, each in self.withheld.items()
            if each.num_withheld
        ]
        said += [f"verdicts withheld: {', '.join(counts)}"] if counts else []
        return "; ".join(said)

    @property
    def unanswered_text(self) -> str:
        """``3 of 40 replies ended within their thought``."""
        return f"{self.num_unanswered} of {self.num_responses} replies ended within their thought"


def count_responses(
    sets: Mapping[str, Rows], behaviors: Sequence[str], errors: Mapping[str, JudgeError] | None = None
) -> Counts:
    """Counts the rates and metrics of a condition's judged responses.

    Args:
        sets: rows by set: ``evaluation``, and where they were sampled ``benign`` and ``harmful``.
        behaviors: that were judged.
        errors: behavior -> the judge's error on a labelled set.
    """
    rows = sets.get("evaluation", [])
    clear = [row for row in rows if not row.get("degenerate")]
    clusters = [cluster_of(row) for row in clear]
    num_degenerate = len(rows) - len(clear)
    found = Counts(refusals=dict(refusals_of(sets, behaviors)), metrics=response_metrics(rows))
    found.num_unanswered, found.num_responses = sum(map(is_unanswered, rows)), len(rows)
    for behavior in behaviors:
        verdicts = [verdict_of(row, behavior) for row in clear]
        found.behaviors[behavior] = rate_with_interval(verdicts, clusters, num_degenerate=num_degenerate)
    judged = {behavior: ("evaluation", behavior) for behavior in behaviors}
    judged |= {f"{name}_judged_refused": (name, REFUSAL) for name in REFUSAL_SETS if f"{name}_judged" in found.refusals}
    taken = {name: Withheld.of_rows(sets[of_set], of) for name, (of_set, of) in judged.items() if of_set in sets}
    found.withheld = {name: each for name, each in taken.items() if each is not None}
    for name, where in classes_of(list(behaviors)).items():
        verdicts = [in_class(row["verdicts"], where) for row in clear]
        found.classes[name] = rate_with_interval(verdicts, clusters, num_degenerate=num_degenerate)
    found.metrics.update({f"refusal_{name}": rate.rate for name, rate in found.refusals.items()})
    if errors:
        found.corrected = {name: _corrected(found.behaviors[name], error) for name, error in errors.items()}
    return found


def _rate_text(rate: Rate) -> str:
    if rate.rate is not None:
        return f"{100 * rate.rate:.1f}% of {rate.num_scored}"
    missing = {"degenerate": rate.num_degenerate, "unscored": rate.num_unscored}
    return "of none: " + (", ".join(f"{number} {name}" for name, number in missing.items() if number) or "no responses")


def excess_of_unscored(name: str, counts: Counts, sets: Mapping[str, Rows], limit: float) -> str | None:
    """Says so where the share of unscored verdicts on a behavior passes the limit; None where none does.

    Args:
        name: of the condition.
        counts: of its responses.
        sets: its rows by set.
        limit: the share, from 0 to 1.
    """
    counted = [(behavior, rate, "evaluation") for behavior, rate in counts.behaviors.items()]
    judged = {of_set: counts.refusals.get(f"{of_set}_judged") for of_set in REFUSAL_SETS}
    counted += [(REFUSAL, rate, of_set) for of_set, rate in judged.items() if rate is not None]
    for behavior, rate, of_set in counted:
        # a reply without an answer says nothing of the judge, and is warned of on its own; asking again for what was
        # withheld is no use, and its rate has bounds
        missing = [
            row
            for row in sets[of_set]
            if behavior in row["unscored"]
            and not (row.get("degenerate") or is_unanswered(row) or withholds(row, behavior))
        ]
        num_missing, total = len(missing), rate.num_scored + len(missing)
        if total == 0 or num_missing <= limit * total:
            continue
        shown = reasons_text(row["unscored"][behavior] for row in missing)
        where = "" if of_set == "evaluation" else f", {of_set} prompts"
        return (
            f"condition {name!r}{where}: {num_missing} of {total} verdicts on {behavior!r} "
            f"({100 * num_missing / total:.1f}%) are unscored, more than evaluation.max_unscored {limit:g} "
            f"allows. Reasons: {shown}. What was sampled and judged is kept: the same command asks for what is "
            "missing, but for what was refused for good; with a higher evaluation.max_unscored it goes on without"
        )
    return None


def reasons_text(reasons: Iterable[str]) -> str:
    """The most frequent reasons with their counts; those that differ in numbers alone are one, with N for these."""
    alike: dict[str, Counter[str]] = defaultdict(Counter)
    for reason in reasons:
        alike[_NUMBER.sub("\0", reason)][reason] += 1  # which no reason holds
    groups = sorted(alike.values(), key=Counter.total, reverse=True)
    shown = [f"{group.total()} x {_in_common(list(group))[:200]}" for group in groups[:_SHOWN]]
    others = sum(group.total() for group in groups[_SHOWN:])
    return "; ".join([*shown, *([f"and {others} others"] if others else [])])


def _in_common(texts: Sequence[str]) -> str:
    """The first of texts that differ in numbers alone, with N for the numbers that differ."""
    differs = iter([len(set(numbers)) > 1 for numbers in zip(*map(_NUMBER.findall, texts), strict=True)])
    return _NUMBER.sub(lambda number: "N" if next(differs) else number[0], texts[0])


def _corrected(rate: Rate, error: JudgeError) -> dict[str, Any] | None:
    if rate.effective_n is None:
        return None
    return corrected_rate(rate.num_scored, rate.num_positive, rate.effective_n, error)
