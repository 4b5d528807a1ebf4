"""One condition against another, paired by prompt: the difference of a behavior's rates, its interval and p-value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gradsteer.data.response_rows import verdict_of
from gradsteer.evaluation.bootstrap import Interval, interval_around, prompt_bootstrap
from gradsteer.evaluation.paired_counts import FEW, PairedCounts
from gradsteer.evaluation.sign_flips import LEAST_P, paired_or_dealt, sign_flip
from gradsteer.evaluation.statistics import rate_with_interval

Rows = Sequence[Mapping[str, Any]]

_SHOWN, _FREE = 0, 1  # outcomes of a reply
_LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """How a behavior's rate differs between two conditions on the same prompts.

    Attributes:
        behavior: its name.
        num_prompts: prompts with a scored reply in either condition.
        num_pairs: prompts with scored replies in both; only they are compared.
        num_differing: pairs whose two rates differ; the test stands on them alone.
        difference: the rate after less the rate before, in [-1, 1], Mantel-Haenszel weighted over the pairs: it need
            not be the difference of the two rates in a table, which weigh all replies alike and leave no prompt out.
            None, as are the next three, without a pair.
        ci_low: the 95% interval's lower end.
        ci_high: the 95% interval's upper end.
        p: two-sided p-value of no difference, more than 0.
        p_holm: p corrected over a table by `holm`; None until then.
        test: ``mcnemar``, ``sign_flip`` or, where prompts have more replies on one side, ``sign_flip, cmh``; None
            without a pair.
        few: counts are small: the interval is the wider of two, and a single prompt may move the difference.
        num_degenerate_before: degenerate replies before; `difference` leaves them out.
        num_degenerate: the same after.
        num_unscored_before: other replies without a verdict before, likewise; those never sampled are no replies.
        num_unscored: the same after.
        lowest: the least difference over three ways to count replies without a verdict: left out, those after as not
            showing the behavior and those before as showing it, and the reverse; `difference` where there are none.
        highest: the largest.
        p_lowest: p-value of `lowest`.
        p_highest: p-value of `highest`.
        robust: all three ways find the same at .05: a difference of the same sign, or none. Of `p` as long as there is
            no `p_holm`, then with each p-value corrected in the place of `p`.
    """

    behavior: str
    num_prompts: int
    num_pairs: int
    num_differing: int
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    test: str | None = None
    few: bool = True
    num_degenerate_before: int = 0
    num_degenerate: int = 0
    num_unscored_before: int = 0
    num_unscored: int = 0
    lowest: float | None = None
    highest: float | None = None
    p_lowest: float | None = None
    p_highest: float | None = None
    robust: bool = True

    def to_dict(self) -> dict[str, str | int | float | None]:
        """The fields by name, ready for JSON: numbers are finite or None, and no 0 is negative."""
        return {key: value + 0.0 if isinstance(value, float) else value for key, value in asdict(self).items()}


def compare(before: Rows, after: Rows, behavior: str, *, draws: int = 2000, seed: int = 0) -> Comparison:
    """The difference of a behavior's rates between two conditions, paired by prompt.

    **Difference.** The Mantel-Haenszel difference over prompts (Greenland and Robins 1985, Biometrics 41:55),
    ``sum w_k d_k / sum w_k`` with ``d_k`` the difference of prompt k's two rates and ``w_k = n m / (n + m)`` of its n
    scored replies before and m after. It is the plain difference of the two rates where every prompt has as many scored
    replies after as before. Unscored and degenerate replies make a prompt count less, and one without scored replies on
    a side not at all: prompts that a condition lost cannot move the difference.

    **Interval.** The `expanded` percentiles of a bootstrap over prompts: a prompt that is drawn brings its replies on
    both sides. A bootstrap never draws what was not seen. With small counts, which are fewer than 10 differing pairs or
    fewer than 10 positives or negatives on a side, and where all draws agree, the interval is on each end the wider of
    it and Newcombe's for paired rates (1998, Statistics in Medicine 17:2635, method 10), with the ends of the two
    rates' intervals at their effective sizes and the correlation of the prompts' rates in place of phi. It is never a
    point, and may leave 0 out where the exact test finds nothing: p decides.

    **p-value.** With one scored reply to every prompt on each side McNemar's exact test, else a sign-flip test over
    prompts, exact too where a prompt has as many replies on both sides: were there no difference in any prompt, or did
    prompts move either way alike, ``w_k d_k`` would be as likely to have the other sign, for each prompt by itself but
    for all of its replies at once. With one reply it is McNemar's test. It holds whether or not the conditions share
    seeds, since it takes nothing for granted about replies to one prompt. With more replies on one side the sign is not
    symmetric: the p-value is then the larger one of it and of one that flips the prompts with as many replies on both
    sides and deals the replies to the others as the exact Cochran-Mantel-Haenszel test does
    (`gradsteer.evaluation.sign_flips.paired_or_dealt`), which holds where replies to these prompts are independent or
    shared seeds make them alike. A p-value from the bootstrap does not hold at small counts: for 5 of 100 prompts with
    the behavior before and none after it is .01, the exact test's .06. In simulations without a difference (30
    prompts, 8 replies, rate 5%, intraclass correlation 0.2) it is .05 or less in 7.3% of the comparisons, the
    sign-flip test's in 1.7%, and in none of 72 settings in more than 5.0%. A shift from 20% to 10% in 100 prompts with
    8 replies is found by both in more than 99%.

    **Replies without a verdict**, degenerate or unscored. Leaving them out is a selection: where all replies with the
    behavior turn into loops, or into what the judge will not answer, its rate falls to 0. They are no evidence either
    way, so both extremes are computed too, difference and p-value: as if each of them before had shown the
    behavior and none after, and the reverse (bounds without assumptions, Manski 1990, Am. Econ. Rev. 80:319).

    Args:
        before: rows with ``prompt`` and ``verdicts``, the anchor's; prompts are told apart by `cluster_of`.
        after: the condition's, on the same prompts.
        behavior: whose rates.
        draws: bootstrap resamples, at least 100.
        seed: of the bootstrap.

    Returns:
        The comparison; the same whatever the order of the rows.

    Raises:
        ValueError: fewer than 100 draws.
    """
    counts = PairedCounts.of(before, after, lambda row: _outcome(row, behavior), 2, draws=draws, seed=seed)
    fills = [(_SHOWN, _FREE), (_FREE, _SHOWN)] if counts.missing.any() else []
    present = [each for fill in (None, *fills) if len((each := _Pairs(*counts.paired(fill))).numerators)]
    ordered = sorted((each.difference, each.p) for each in present)
    (least, p_least), (most, p_most) = (ordered[0], ordered[-1]) if ordered else ((None, None), (None, None))
    degenerate = [sum(bool(row.get("degenerate")) for row in side) for side in (before, after)]
    unscored = counts.missing.sum(axis=1).astype(int) - degenerate
    found = Comparison(
        behavior,
        counts.num_prompts,
        counts.num_pairs,
        0,
        num_degenerate_before=degenerate[0],
        num_degenerate=degenerate[1],
        num_unscored_before=int(unscored[0]),
        num_unscored=int(unscored[1]),
        lowest=least,
        highest=most,
        p_lowest=p_least,
        p_highest=p_most,
    )
    if counts.num_pairs:
        pairs = present[0]
        differing = int(np.count_nonzero(pairs.numerators))
        few = bool(differing < FEW or min(counts.totals[0] + counts.totals[1]) < FEW)
        low, high = pairs.interval(few, draws, seed)
        found = replace(found, num_differing=differing, ci_low=low, ci_high=high, few=few)
        found = replace(found, difference=pairs.difference, p=pairs.p, test=pairs.test)
    return replace(found, robust=_is_robust(found, found.p, found.p_lowest, found.p_highest))


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with `p_holm`, Holm's correction over all that have a p-value (1979, Scand. J. Stat. 6:65).

    Args:
        comparisons: a whole table's, every behavior of every condition; those without a p-value take no part.

    Returns:
        In their order.
    """
    from statsmodels.stats.multitest import multipletests

    tested = [number for number, each in enumerate(comparisons) if each.p is not None]
    values = [comparisons[number].p for number in tested]
    plain = dict(zip(tested, multipletests(values, method="holm")[1] if values else (), strict=True))

    def corrected(number: int, p: float | None) -> float | None:
        """This p-value in the place of one comparison's, beside the others' own."""
        if p is None or p == comparisons[number].p:
            return None if p is None else float(plain[number])
        others = np.sort([comparisons[other].p for other in tested if other != number])
        least = others[others < p]  # (rank,): statsmodels would sort, and collect garbage, for each of them
        steps = np.append(least, p) * (len(others) + 1 - np.arange(len(least) + 1))
        return float(min(1.0, steps.max()))

    found = []
    for number, each in enumerate(comparisons):
        ways = [corrected(number, p) for p in (each.p, each.p_lowest, each.p_highest)]
        found.append(replace(each, p_holm=ways[0], robust=_is_robust(each, *ways)))
    return found


def _is_robust(found: Comparison, p: float | None, p_lowest: float | None, p_highest: float | None) -> bool:
    """Whether a comparison and its two extremes find the same with these p-values."""
    ways = ((found.difference, p), (found.lowest, p_lowest), (found.highest, p_highest))
    # without a pair there is nothing to find
    findings = {0.0 if p is None or not d or p > _LEVEL else math.copysign(1, d) for d, p in ways}
    return len(findings) == 1


class _Pairs:
    """The Mantel-Haenszel difference of the prompts' rates and its p-value.

    Args:
        counts: (2, pairs, 2) replies before and after that show the behavior, and that do not.
        sizes: (2, pairs) their sums.
    """

    def __init__(self, counts: np.ndarray, sizes: np.ndarray) -> None:
        self.positives, self.sizes = counts[:, :, _SHOWN], sizes
        both = sizes.sum(axis=0)
        # w_k d_k over one denominator, so that equal rates differ by exactly 0
        self.numerators = self.positives[1] * sizes[0] - self.positives[0] * sizes[1]
        self.terms = np.stack([self.numerators, sizes[0] * sizes[1]], axis=1) / both[:, None]  # w_k d_k, w_k
        total, weight = self.terms.sum(axis=0)
        self.difference = float(total / weight) if len(both) else 0.0
        self.test = "sign_flip"
        if (sizes == 1).all():
            self.test, self.p = "mcnemar", _mcnemar(self.numerators)
            return
        self.p = sign_flip(self.numerators, both)
        if (sizes[0] != sizes[1]).any():
            self.test, self.p = "sign_flip, cmh", max(self.p, paired_or_dealt(self.positives, sizes))

    def interval(self, few: bool, draws: int, seed: int) -> Interval:
        """The bootstrap's, where counts are small or all draws agree not within Newcombe's; around the difference."""
        number = len(self.terms)
        sums = prompt_bootstrap(number, draws, seed).sums(self.terms)
        return interval_around(self.difference, sums[:, 0] / sums[:, 1], number, few, lambda: _newcombe(self))


def _outcome(row: Mapping[str, Any], behavior: str) -> list[int] | None:
    """What a reply counts for; None without a verdict."""
    verdict = verdict_of(row, behavior)
    return None if verdict is None else [_SHOWN if verdict else _FREE]


def _mcnemar(numerators: np.ndarray) -> float:
    """McNemar's exact test of (pairs,) differences between two replies."""
    from statsmodels.stats.contingency_tables import mcnemar

    gained, lost = int((numerators > 0).sum()), int((numerators < 0).sum())
    return float(max(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue, LEAST_P)) if gained + lost else 1.0


def _newcombe(pairs: _Pairs) -> Interval:
    """Newcombe's interval of a paired difference, around its own, with the intervals of `rate_with_interval`.

    The 1/2 that is taken from the sum of products is his continuity correction, ``(ad - bc - n/2) / n`` of a 2 x 2
    table of n pairs; it keeps the correlation below 1, so that the interval is never a point.
    """
    reaches = []
    prompts = np.arange(len(pairs.terms)).astype(str)
    for positives, sizes in zip(pairs.positives.astype(int), pairs.sizes.astype(int), strict=True):
        values = np.tile([True, False], len(sizes)).repeat(np.stack([positives, sizes - positives], axis=1).ravel())
        found = rate_with_interval(values.tolist(), prompts.repeat(sizes).tolist())
        assert found.rate is not None
        assert found.ci_low is not None
        assert found.ci_high is not None
        reaches.append((found.rate - found.ci_low, found.ci_high - found.rate))
    rates = pairs.positives / pairs.sizes
    centred = rates - rates.mean(axis=1, keepdims=True)
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    products = float((centred[0] * centred[1]).sum())
    # he corrects a positive one alone
    products = max(products - 0.5, 0.0) if products > 0 else products
    correlation = products / scale if scale > 0 else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    (down_before, up_before), (down_after, up_after) = reaches
    low = pairs.difference - reach(down_after, up_before)
    high = pairs.difference + reach(up_after, down_before)
    return max(low, -1.0), min(high, 1.0)
