"""The change of log-odds between two judged conditions, to be set beside what was asked and predicted."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradsteer.data.response_rows import matches, verdict_of
from gradsteer.evaluation.paired_counts import PairedCounts

Rows = Sequence[Mapping[str, Any]]
_DRAWS, _SEED = 2000, 0


def realised_shift(
    before: Rows, after: Rows, plus: Mapping[str, bool], minus: Mapping[str, bool]
) -> dict[str, float | int | None]:
    """The change of ``log (n_PLUS / n_MINUS)`` from one set of judged responses to another, with a 95% interval.

    Pairing, weights and interval are those of `gradsteer.evaluation.paired_counts`. Replies without a verdict on a
    behavior that tells the classes apart, and degenerate ones, do not count.

    Args:
        before: rows with ``prompt`` and ``verdicts``, the anchor's; prompts are told apart by `cluster_of`.
        after: the condition's, on the same prompts.
        plus: verdicts of the one class.
        minus: verdicts of the other.

    Returns:
        ``log_odds_shift``, ``ci_low``, ``ci_high`` (nats; None where no prompt has replies of these classes on both
        sides together) and the four counts ``num_plus``, ``num_minus``, ``num_plus_before`` and ``num_minus_before``.
    """

    def outcomes(row: Mapping[str, Any]) -> list[int] | None:
        if any(verdict_of(row, behavior) is None for behavior in {**plus, **minus}):
            return None
        return [column for column, where in enumerate((plus, minus)) if matches(row, where)]

    counts = PairedCounts.of(before, after, outcomes, 2, draws=_DRAWS, seed=_SEED)
    (plus_before, minus_before), (num_plus, num_minus) = counts.totals
    moved = counts.moved(0, 1) if num_plus + num_minus and plus_before + minus_before else None
    return {
        # 0 is added so that none is negative
        "log_odds_shift": None if moved is None else moved.value + 0.0,
        "ci_low": None if moved is None else moved.low + 0.0,
        "ci_high": None if moved is None else moved.high + 0.0,
        "num_plus": num_plus,
        "num_minus": num_minus,
        "num_plus_before": plus_before,
        "num_minus_before": minus_before,
    }
