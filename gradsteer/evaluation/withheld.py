"""Replies on which a judge, or its server's filter, would not give a verdict: how many, and what they could hide.

A filter takes exception to just those replies that are measured. Leaving them out is a selection, so they are counted
by condition, and where a condition has more of them than another its rate has bounds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from gradsteer.data.response_rows import cluster_of, verdict_of, withholds
from gradsteer.evaluation.statistics import Rate, rate_with_interval

if TYPE_CHECKING:
    from gradsteer.evaluation.condition_result import ConditionResult


@dataclass(frozen=True)
class Withheld:
    """The verdicts on a behavior that were withheld in one condition, as `results.json` holds them.

    Attributes:
        num_withheld: replies without a verdict because it was withheld; the rate's `num_unscored` has them too.
        num_replies: these, and those with a verdict. Degenerate and otherwise unscored ones are left out.
        share: num_withheld / num_replies.
        ci_low: the lower end of its 95% interval by `rate_with_interval`.
        ci_high: the upper end.
        lowest: ``rate``, ``ci_low`` and ``ci_high`` over num_replies if none of those withheld shows the behavior.
        highest: the same if all of them do.
        more_than: the condition with the smallest share, where the 95% interval of the difference of the two shares is
            above 0 (Newcombe 1998, Statistics in Medicine 17:873, method 10); None elsewhere.
    """

    num_withheld: int
    num_replies: int
    share: float
    ci_low: float
    ci_high: float
    lowest: dict[str, float]
    highest: dict[str, float]
    more_than: str | None = None

    @staticmethod
    def count(verdicts: Sequence[bool | None], withheld: Sequence[bool], clusters: Sequence[str]) -> "Withheld | None":
        """Counts; None where nothing was judged or withheld.

        Args:
            verdicts: (replies,) true, false, or None for unscored.
            withheld: (replies,) whether the verdict was withheld.
            clusters: (replies,) the prompt of each.
        """
        kept = [row for row in zip(verdicts, withheld, clusters, strict=True) if row[0] is not None or row[1]]
        if not kept:
            return None
        names = [cluster for _, _, cluster in kept]
        share = _value(rate_with_interval([each for _, each, _ in kept], names))
        lowest, highest = (
            _value(rate_with_interval([shown if each else verdict for verdict, each, _ in kept], names))
            for shown in (False, True)
        )
        num_withheld = sum(each for _, each, _ in kept)
        return Withheld(num_withheld, len(kept), share["rate"], share["ci_low"], share["ci_high"], lowest, highest)

    @staticmethod
    def of_rows(rows: Iterable[Mapping[str, Any]], behavior: str) -> "Withheld | None":
        """Counts those of judged rows; degenerate ones are left out."""
        clear = [row for row in rows if not row.get("degenerate")]
        verdicts, withheld = [verdict_of(row, behavior) for row in clear], [withholds(row, behavior) for row in clear]
        return Withheld.count(verdicts, withheld, [cluster_of(row) for row in clear])

    def is_more_than(self, other: "Withheld") -> bool:
        """Whether the share is larger than another condition's by more than chance makes it."""
        reach = math.hypot(self.share - self.ci_low, other.ci_high - other.share)
        return self.share - other.share > reach

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)


def compared(found: Mapping[str, Withheld]) -> dict[str, Withheld]:
    """The same with `more_than`.

    Args:
        found: condition -> what was withheld on one behavior.
    """
    least = min(found, key=lambda name: found[name].share, default="")
    return {
        name: replace(each, more_than=least if each.is_more_than(found[least]) else None)
        for name, each in found.items()
    }


def compare_withheld(results: Sequence["ConditionResult"]) -> None:
    """Sets `more_than` in the counts of all conditions of a run."""
    counts = {result.condition.name: result.counts.withheld for result in results}
    for behavior in dict.fromkeys(name for found in counts.values() for name in found):
        for name, each in compared(
            {name: found[behavior] for name, found in counts.items() if behavior in found}
        ).items():
            counts[name][behavior] = each


def _value(rate: Rate) -> dict[str, float]:
    """Of a rate that is known."""
    return {key: float(getattr(rate, key)) for key in ("rate", "ci_low", "ci_high")}


def nothing_else(counts: Mapping[str, "Withheld"], name: str) -> str | None:
    """Says so where the judge withheld every verdict on a behavior: no rate and no pile can come of it.

    Args:
        counts: behavior -> what was withheld.
        name: of the condition.
    """
    for behavior, found in counts.items():
        if found.num_withheld == found.num_replies:
            return (
                f"condition {name!r}: the judge withheld all {found.num_replies} verdicts on {behavior!r}: no rate "
                "and no pile can come of them. What was sampled is kept: the same command with another judge "
                "(--evaluation.judge, or --judge of run) and --overwrite true samples nothing anew"
            )
    return None
