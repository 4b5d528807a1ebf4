"""Whether a direction moves its own behavior or all of them: each behavior's shift in log odds, and selectivity."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradsteer.data.response_rows import verdict_of
from gradsteer.evaluation.paired_counts import Moved, PairedCounts

Rows = Sequence[Mapping[str, Any]]

_LEVEL = 0.05


@dataclass(frozen=True)
class Shift:
    """How a behavior's log odds against NONE moved from one condition to another.

    Attributes:
        log_odds_shift: nats; None, as is its interval, where a condition has no reply that counts.
        ci_low: the 95% interval's lower end.
        ci_high: the 95% interval's upper end.
        num_shown: replies after, to prompts with replies that count on both sides, that show the behavior.
        num_neither: replies after that show none of the behaviors.
        num_shown_before: the same before.
        num_neither_before: the same before.
        lowest: the shift if every reply without verdicts had shown the behavior before, and none of them after.
        highest: the reverse; both are `log_odds_shift` where there are none.
        robust: the interval is on the same side of 0, or holds it, all three ways.
    """

    log_odds_shift: float | None
    ci_low: float | None
    ci_high: float | None
    num_shown: int
    num_neither: int
    num_shown_before: int
    num_neither_before: int
    lowest: float | None = None
    highest: float | None = None
    robust: bool = True


@dataclass(frozen=True)
class Selectivity:
    """By how much a direction moves its own behavior more than any other one.

    Attributes:
        value: own shift less the largest other one, nats, both times -sign(alpha); above 0 where the own is largest.
        ci_low: the 95% interval's lower end; above 0 where the own one is larger than every other one.
        ci_high: the 95% interval's upper end.
        largest_other: the behavior that moved most among the others.
        few: a count below 10 is in a difference that decides the value or an end.
        lowest: the value if replies without verdicts had shown on each side what makes it least.
        highest: what makes it largest; both are `value` where there are none.
        robust: the interval is on the same side of 0, or holds it, all three ways.
    """

    value: float
    ci_low: float
    ci_high: float
    largest_other: str
    few: bool = False
    lowest: float | None = None
    highest: float | None = None
    robust: bool = True


@dataclass(frozen=True)
class Specificity:
    """A direction's row in the behaviors-by-directions matrix.

    Attributes:
        shifts: behavior -> its shift.
        selectivity: None where there is nothing to be selective against: no own behavior or no other one, no dose, or
            no replies.
        num_prompts: prompts with a reply that counts in either condition.
        num_pairs: prompts with replies that count in both; only they are compared.
    """

    shifts: dict[str, Shift]
    selectivity: Selectivity | None
    num_prompts: int = 0
    num_pairs: int = 0

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
    fails on one behavior tilts no other one's odds; degenerate replies do not. They are paired and weighted as
    `gradsteer.evaluation.paired_counts` says, as in a comparison: prompts that lost their replies move nothing.

    **Intervals** are those of `gradsteer.evaluation.paired_counts`. In simulations with intraclass correlations of 0.2
    and 0.5 and counts below 10 they cover 93% and more; without the design effect, 90% and more.

    **Selectivity.** With ``s_b = -sign(alpha) * shift_b`` (a positive dose turns the own behavior down), it is
    ``s_own - max_b s_b`` over the others: the least of the differences ``s_own - s_b``, in which NONE cancels. Its
    interval runs from the lowest lower end of these differences' intervals to the lowest upper end. It is above 0 only
    where each of them is (intersection-union test, Berger 1982, Technometrics 24:295), so that many other behaviors
    need no correction there; the percentiles of the least difference itself would be too low where several others moved
    alike. It is below 0 where any of them is: the upper ends are corrected for their number (Bonferroni).

    **Replies without verdicts**, degenerate or unscored, count nowhere. That is a selection: where all replies with the
    behavior turn into loops, the vector looks perfectly selective. `lowest` and `highest` are what it would be in the
    two worst cases, and `robust` says whether the intervals there say the same.

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
    none = len(names)
    counts = PairedCounts.of(before, after, lambda row: _columns(row, names), none + 1, draws=draws, seed=seed)
    shifts = {name: _shift(counts, column, none) for column, name in enumerate(names)}
    selectivity = None
    if own is not None and alpha and len(names) > 1 and counts.num_pairs:
        selectivity = _selectivity(counts, names, own, alpha)
    return Specificity(shifts, selectivity, counts.num_prompts, counts.num_pairs)


def _columns(row: Mapping[str, Any], names: Sequence[str]) -> list[int] | None:
    """What a reply counts for: the behaviors that it shows, or NONE behind them; None without a verdict on each."""
    verdicts = [verdict_of(row, name) for name in names]
    if None in verdicts:
        return None
    return [column for column, shown in enumerate(verdicts) if shown] or [len(names)]


def _shift(counts: PairedCounts, column: int, none: int) -> Shift:
    totals = counts.totals
    numbers = (totals[1][column], totals[1][none], totals[0][column], totals[0][none])
    plain = counts.moved(column, none)
    worst = [counts.moved(column, none, fill=fill) for fill in ((column, none), (none, column))]
    bounds = [each.value for each in worst if each]
    if plain is None:  # nothing is found
        robust = all(_side(each.low, each.high) == 0 for each in worst if each)
        return Shift(None, None, None, *numbers, min(bounds, default=None), max(bounds, default=None), robust)
    values = [plain.value, *bounds]
    robust = len({_side(each.low, each.high) for each in (plain, *worst) if each}) == 1
    return Shift(plain.value, plain.low, plain.high, *numbers, min(values), max(values), robust)


def _selectivity(counts: PairedCounts, names: Sequence[str], own: str, alpha: float) -> Selectivity:
    """The least of the differences to the others."""
    mine = names.index(own)
    others = [column for column in range(len(names)) if column != mine]

    def against(column: int, fill: tuple[int, int] | None = None) -> Moved:
        found = counts.moved(mine, column, fill=fill)
        wide = counts.moved(mine, column, fill=fill, level=_LEVEL / len(others))
        assert found is not None
        assert wide is not None
        if alpha < 0:
            return Moved(found.value, found.low, wide.high, found.few)
        return Moved(-found.value, -found.high, -wide.low, found.few)

    def least(ways: Sequence[Moved]) -> tuple[float, float, float]:
        # every upper end is at or above its own value, and so at or above the least value
        return min(each.value for each in ways), min(each.low for each in ways), min(each.high for each in ways)

    plain = [against(column) for column in others]
    value, low, high = least(plain)
    # a positive dose looks best if the replies without verdicts had shown its own behavior before, the other one after,
    # and worst the other way round; a negative one likewise
    extremes = [
        least([against(column, (mine, column) if way else (column, mine)) for column in others])
        for way in (True, False)
    ]
    values = [value, *(each[0] for each in extremes)]
    deciding = [each for each in plain if each.value == value or each.low == low or each.high == high]
    return Selectivity(
        value,
        low,
        high,
        names[others[[each.value for each in plain].index(value)]],
        few=any(each.few for each in deciding),
        lowest=min(values),
        highest=max(values),
        robust=len({_side(low, high), *(_side(*each[1:]) for each in extremes)}) == 1,
    )


def _side(low: float, high: float) -> int:
    """Of 0 that an interval is on; 0 where it holds it."""
    return 1 if low > 0 else -1 if high < 0 else 0
