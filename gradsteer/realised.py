"""What came out: the change of log-odds between two judged conditions, beside what was asked and predicted.

Knows of response rows and verdicts; knows nothing of models.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradsteer.importance import PromptBootstrap, percentile_interval
from gradsteer.response_rows import cluster_of, matches
from gradsteer.specificity import log_odds_variance
from gradsteer.statistics import expanded

Rows = Sequence[Mapping[str, Any]]
_DRAWS, _SEED, _FEW, _ROUNDING = 2000, 0, 10, 1e-9


def realised_shift(
    before: Rows, after: Rows, plus: Mapping[str, bool], minus: Mapping[str, bool]
) -> dict[str, float | int | None]:
    """The change of ``log (n_PLUS / n_MINUS)`` from one set of judged responses to another, with a 95% interval.

    Half a response is added to every count (Haldane 1956, Ann. Hum. Genet. 20:309), so that a class that is empty after
    steering gives a finite, too small change. The interval is that of `gradsteer.specificity.measure_specificity`: a
    bootstrap over prompts, paired, widened where counts are small.

    Args:
        before: rows with ``prompt`` and ``verdicts``, the anchor's; prompts are told apart by `cluster_of`.
        after: the condition's, on the same prompts.
        plus: verdicts of the one class.
        minus: verdicts of the other.

    Returns:
        ``log_odds_shift``, ``ci_low``, ``ci_high`` (nats; None where there are no rows) and the four counts
        ``num_plus``, ``num_minus``, ``num_plus_before`` and ``num_minus_before``.
    """
    numbers: dict[str, int] = {}
    for row in (*before, *after):
        numbers.setdefault(cluster_of(row), len(numbers))
    columns = []
    for rows in (after, before):
        for where in (plus, minus):
            counts = np.zeros(len(numbers))
            for row in rows:
                counts[numbers[cluster_of(row)]] += matches(row, where)
            columns.append(counts)
    keys = ("num_plus", "num_minus", "num_plus_before", "num_minus_before")
    found: dict[str, float | int | None] = {key: int(counts.sum()) for key, counts in zip(keys, columns, strict=True)}
    if not before or not after:
        return {"log_odds_shift": None, "ci_low": None, "ci_high": None, **found}
    bootstrap = PromptBootstrap.draw(np.arange(len(numbers)), draws=_DRAWS, seed=_SEED)
    sums = np.log(bootstrap.sums(np.stack(columns, axis=1)) + 0.5)
    shifts = (sums[:, 0] - sums[:, 1]) - (sums[:, 2] - sums[:, 3])
    low, high = percentile_interval(shifts, expanded(len(numbers)))
    totals = [math.log(counts.sum() + 0.5) for counts in columns]
    shift = (totals[0] - totals[1]) - (totals[2] - totals[3])
    # the bootstrap never draws what was not seen
    if min(counts.sum() for counts in columns) < _FEW or high - low < _ROUNDING:
        reach = 1.96 * math.sqrt(log_odds_variance(*columns[:2]) + log_odds_variance(*columns[2:]))
        low, high = min(low, shift - reach), max(high, shift + reach)
    # 0 is added so that none is negative
    return {"log_odds_shift": shift + 0.0, "ci_low": min(low, shift) + 0.0, "ci_high": max(high, shift) + 0.0, **found}
