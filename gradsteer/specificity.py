"""Whether a direction moves its own behavior or all of them: shifts of log odds against NONE, and their selectivity.

Knows of response rows and verdicts; knows nothing of models or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradsteer.importance import PromptBootstrap, percentile_interval
from gradsteer.response_rows import cluster_of, verdict_of
from gradsteer.statistics import design_effect, expanded

Rows = Sequence[Mapping[str, Any]]

_FEW = 10
_ROUNDING = 1e-9  # draws that all agree differ by it
_NORMAL = 1.959964  # the normal quantile of 0.975


@dataclass(frozen=True)
class Shift:
    """How a behavior's log odds against NONE moved from one condition to another.

    Attributes:
        log_odds_shift: nats; None, as is its interval, where a condition has no reply that counts.
        ci_low: the 95% interval's lower end.
        ci_high: the 95% interval's upper end.
        num_shown: replies after that show the behavior.
        num_neither: replies after that show none of the behaviors.
        num_shown_before: the same before.
        num_neither_before: the same before.
    """

    log_odds_shift: float | None
    ci_low: float | None
    ci_high: float | None
    num_shown: int
    num_neither: int
    num_shown_before: int
    num_neither_before: int


@dataclass(frozen=True)
class Selectivity:
    """By how much a direction moves its own behavior more than any other one.

    Attributes:
        value: own shift less the largest other one, nats, both times -sign(alpha); above 0 where the own is largest.
        ci_low: the 95% interval's lower end; above 0 where the own one is larger than every other one.
        ci_high: the 95% interval's upper end.
        largest_other: the behavior that moved most among the others.
    """

    value: float
    ci_low: float
    ci_high: float
    largest_other: str


@dataclass(frozen=True)
class Specificity:
    """A direction's row in the behaviors-by-directions matrix.

    Attributes:
        shifts: behavior -> its shift.
        selectivity: None where there is nothing to be selective against: no own behavior or no other one, no dose, or
            no replies.
    """

    shifts: dict[str, Shift]
    selectivity: Selectivity | None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON: numbers are finite or None, and no 0 is negative."""
        found = asdict(self)
        for part in (*found["shifts"].values(), found["selectivity"] or {}):
            part.update({key: value + 0.0 for key, value in part.items() if isinstance(value, float)})
        return found


def measure_specificity(
    before: Rows,
    after: Rows,
    behaviors: Sequence[str],
    own: str | None = None,
    alpha: float | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Specificity:
    """Every behavior's change of ``log (n_shown / n_none)`` from one condition to another, and the selectivity.

    **Counts.** A reply that shows several behaviors counts for each; one that shows none of them counts as NONE, which
    is what all shifts are against. Only replies with a verdict on every behavior count, so that a judge that often
    fails on one behavior tilts no other one's odds; degenerate replies do not. Half a reply is added to every count
    (Haldane 1956, Ann. Hum. Genet. 20:309), so that a behavior that is gone gives a finite, too small shift.

    **Intervals.** The `expanded` percentiles of a bootstrap over prompts, paired, the same draws for everything: a
    prompt that is drawn brings its replies on both sides. The bootstrap never draws what was not seen: where one of the
    four counts is below 10, and where all draws agree, the interval is on each end the wider of it and
    ``+- 1.96 sqrt(sum 1 / (n / deff + 1/2))`` over the four counts n, with the design effect of their condition. In
    simulations with intraclass correlations of 0.2 and 0.5 and counts below 10 this covers 93 to 99%; without the
    design effect, 90 to 99%.

    **Selectivity.** With ``s_b = -sign(alpha) * shift_b`` (a positive dose turns the own behavior down), it is
    ``s_own - max_b s_b`` over the others: the least of the differences ``s_own - s_b``, in which NONE cancels. Its
    interval runs from the lowest lower end of these differences' intervals to the lowest upper end. It is above 0 only
    where each of them is (intersection-union test, Berger 1982, Technometrics 24:295), so that many other behaviors
    need no correction; the percentiles of the least difference itself would be too low where several others moved
    alike.

    Args:
        before: rows with ``prompt`` and ``verdicts``, the anchor's; prompts are told apart by `cluster_of`.
        after: the condition's, on the same prompts.
        behaviors: the judge's, at least one.
        own: the behavior that the direction was made for, None where there is none. A control's is that of the vector
            that it is a control of: its selectivity is then the null of that vector's.
        alpha: the dose after less the dose before; only its sign matters.
        draws: bootstrap resamples, at least 100.
        seed: of the bootstrap.

    Returns:
        Shifts and selectivity; the same whatever the order of the rows.

    Raises:
        ValueError: no behavior, `own` is none of them, or fewer than 100 draws.
    """
    if not behaviors:
        raise ValueError("there are no behaviors; accepted: at least one name")
    if own is not None and own not in behaviors:
        raise ValueError(f"the own behavior is {own!r}; accepted: one of {', '.join(behaviors)}")
    names = list(dict.fromkeys(behaviors))
    prompts = sorted({cluster_of(row) for row in (*before, *after)})
    sides = [_counts(rows, names, prompts) for rows in (before, after)]
    totals = [counts.sum(axis=0).astype(int).tolist() for counts in sides]
    none = len(names)
    numbers = {name: (totals[1][i], totals[1][none], totals[0][i], totals[0][none]) for i, name in enumerate(names)}
    if not all(any(counts) for counts in totals):
        return Specificity({name: Shift(None, None, None, *numbers[name]) for name in names}, None)
    bootstrap = PromptBootstrap.draw(np.arange(len(prompts)), draws=draws, seed=seed)
    resampled = [np.log(bootstrap.sums(counts) + 0.5) for counts in sides]  # (draws, behaviors + 1)

    def moved(one: int, other: int) -> tuple[float, float, float]:
        """The change of the log odds of one column against another, and its interval."""
        values = [math.log(counts[one] + 0.5) - math.log(counts[other] + 0.5) for counts in totals]
        value = values[1] - values[0]
        odds = [logs[:, one] - logs[:, other] for logs in resampled]
        low, high = percentile_interval(odds[1] - odds[0], expanded(len(prompts)))
        few = min(counts[column] for counts in totals for column in (one, other)) < _FEW
        if few or high - low < _ROUNDING:
            reach = _NORMAL * math.sqrt(sum(log_odds_variance(counts[:, one], counts[:, other]) for counts in sides))
            low, high = min(low, value - reach), max(high, value + reach)
        return value, min(low, value), max(high, value)

    shifts = {name: Shift(*moved(i, none), *numbers[name]) for i, name in enumerate(names)}
    if own is None or not alpha or len(names) == 1:
        return Specificity(shifts, None)
    differences = {}
    for i, name in enumerate(names):
        if name != own:
            value, low, high = moved(names.index(own), i)
            differences[name] = (0.0 - value, 0.0 - high, 0.0 - low) if alpha > 0 else (value, low, high)
    values, lows, highs = zip(*differences.values(), strict=True)
    largest = min(differences, key=lambda name: differences[name][0])
    # every upper end is at or above its own value, and so at or above the least value
    return Specificity(shifts, Selectivity(min(values), min(lows), min(highs), largest))


def _counts(rows: Rows, behaviors: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
    """(prompts, behaviors + 1) replies that show each behavior and, in the last column, none."""
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    counts = np.zeros((len(prompts), len(behaviors) + 1))
    for row in rows:
        verdicts = [verdict_of(row, behavior) for behavior in behaviors]
        if None not in verdicts:
            counts[numbers[cluster_of(row)]] += [*map(bool, verdicts), not any(verdicts)]
    return counts


def log_odds_variance(one: np.ndarray, other: np.ndarray) -> float:
    """Of a log odds in one condition, from (prompts,) counts of its two outcomes: at their effective sizes, plus 1/2.

    A reply that shows two behaviors is in both counts, which makes their difference look less certain than it is.
    """
    sizes = np.stack([one, other], axis=1).astype(int)
    values = np.tile([True, False], len(sizes)).repeat(sizes.ravel()).tolist()
    clusters = np.arange(len(sizes)).astype(str).repeat(sizes.sum(axis=1)).tolist()
    effect = design_effect(values, clusters) if values else 1.0
    return sum(1 / (float(counts.sum()) / effect + 0.5) for counts in (one, other))
