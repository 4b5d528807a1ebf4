"""How far judges agree on the same responses: Cohen's kappa of two, Krippendorff's alpha of two or more.

With po the share of responses on which two judges agree and pe the share on which they would by chance, each keeping
its own rate (Cohen 1960, Educational and Psychological Measurement 20:37),

    kappa = (po - pe) / (1 - pe)

and with Do the disagreement seen among the verdicts of one response and De that among all verdicts (Krippendorff 2011,
"Computing Krippendorff's alpha-reliability"), for true and false verdicts, t and f of them on a response of m = t + f,

    alpha = 1 - Do / De = 1 - (n - 1) sum[t f / (m - 1)] / (sum t  sum f),    n = sum m  over responses with m >= 2

Both are 1 where judges always agree and 0 where they agree as often as by chance. Intervals are from a bootstrap over
prompts, as expanded percentiles (see `gradsteer.evaluation.statistics.expanded`): replies to one prompt are alike.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from gradsteer.evaluation.bootstrap import Interval, PromptBootstrap, percentile_interval
from gradsteer.evaluation.statistics import design_effect, expanded, rate_with_interval, wilson

Verdict = bool | None


@dataclass(frozen=True)
class PairAgreement:
    """How two judges agree on one behavior.

    Args:
        num_both_true: Responses on which both say true.
        num_only_first: On which only the first says true.
        num_only_second: On which only the second says true.
        num_both_false: On which both say false.
        num_left_out: On which either has no verdict; they count nowhere.
        agreement: The share of the others on which the two say the same; None where there are none.
        agreement_ci_low: Lower end of its interval, Wilson's at the effective sample size.
        agreement_ci_high: Its upper end.
        kappa: Cohen's kappa; None where it is 0 / 0.
        ci_low: Lower end of kappa's interval; None where there is none.
        ci_high: Its upper end.
        reason: Why kappa or its interval is None; None where both are there.
    """

    num_both_true: int
    num_only_first: int
    num_only_second: int
    num_both_false: int
    num_left_out: int
    agreement: float | None
    agreement_ci_low: float | None
    agreement_ci_high: float | None
    kappa: float | None
    ci_low: float | None
    ci_high: float | None
    reason: str | None

    def to_dict(self) -> dict[str, int | float | str | None]:
        """The fields by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class GroupAgreement:
    """How two or more judges agree on one behavior.

    Args:
        num_judges: How many judges.
        num_responses: Responses with at least two verdicts.
        num_left_out: Responses with one verdict or none; they count nowhere.
        alpha: Krippendorff's alpha; None where it is 0 / 0.
        ci_low: Lower end of its interval.
        ci_high: Its upper end.
        reason: Why alpha is None; None where it is there.
    """

    num_judges: int
    num_responses: int
    num_left_out: int
    alpha: float | None
    ci_low: float | None
    ci_high: float | None
    reason: str | None

    def to_dict(self) -> dict[str, int | float | str | None]:
        """The fields by name, ready for JSON."""
        return asdict(self)


def pair_agreement(
    first: Sequence[Verdict], second: Sequence[Verdict], bootstrap: PromptBootstrap, confidence: float = 0.95
) -> PairAgreement:
    """Cohen's kappa of two judges' verdicts on the same responses.

    A bootstrap cannot vary a disagreement that was never seen: where all draws give one kappa, the interval is that of
    the agreement, Wilson's, put through kappa's formula with pe as it is.

    Args:
        first: (responses,) true, false, or None for unscored.
        second: (responses,) likewise.
        bootstrap: Over the responses' prompts.
        confidence: The intervals' coverage, between 0 and 1.

    Raises:
        ValueError: If the two are not of the bootstrap's length.
    """
    _check_lengths([first, second], bootstrap)
    one, two = _numbers(first), _numbers(second)
    scored = ~(np.isnan(one) | np.isnan(two))
    cells = np.stack([one * two, one * (1 - two), (1 - one) * two, (1 - one) * (1 - two)], axis=1)
    cells = np.where(scored[:, None], cells, 0.0)
    table = cells.sum(axis=0)
    both_true, only_first, only_second, both_false = (int(count) for count in table)
    num_left_out = int((~scored).sum())
    if not scored.any():
        nothing = "there is no response on which both have a verdict"
        return PairAgreement(0, 0, 0, 0, num_left_out, None, None, None, None, None, None, nothing)
    agrees = [bool(value) for value in (one == two)[scored]]
    agreement = rate_with_interval(agrees, bootstrap.prompts[scored].astype(str).tolist(), confidence)
    assert agreement.rate is not None
    assert agreement.ci_low is not None
    assert agreement.ci_high is not None

    kappa: float | None = None
    low: float | None = None
    high: float | None = None
    reason = _reason(both_true, only_first, only_second, both_false)
    if only_first or only_second or (both_true and both_false):
        from statsmodels.stats.inter_rater import cohens_kappa

        kappa = float(cohens_kappa(table.reshape(2, 2), return_results=False))
    if kappa is not None and reason is None:
        by_chance = float((table[0] + table[1]) * (table[0] + table[2]) + (table[3] + table[2]) * (table[3] + table[1]))
        by_chance /= float(table.sum()) ** 2
        unvaried = [(end - by_chance) / (1 - by_chance) for end in (agreement.ci_low, agreement.ci_high)]
        share = expanded(len(np.unique(bootstrap.prompts[scored])), confidence)
        low, high = _interval(kappas(bootstrap.sums(cells)), (unvaried[0], unvaried[1]), share)
    return PairAgreement(
        both_true, only_first, only_second, both_false, num_left_out,
        agreement.rate, agreement.ci_low, agreement.ci_high, kappa, low, high, reason,
    )  # fmt: skip


def group_agreement(
    verdicts: Sequence[Sequence[Verdict]], bootstrap: PromptBootstrap, confidence: float = 0.95
) -> GroupAgreement:
    """Krippendorff's alpha of several judges' verdicts on the same responses.

    Where all of the bootstrap's draws give one alpha, as for judges who never disagreed, the interval is Wilson's of
    1 - Do, put through alpha's formula with De as it is.

    Args:
        verdicts: (judges, responses) true, false, or None for unscored.
        bootstrap: Over the responses' prompts.
        confidence: The interval's coverage, between 0 and 1.

    Raises:
        ValueError: If there are fewer than two judges, or their verdicts are not of the bootstrap's length.
    """
    if len(verdicts) < 2:
        raise ValueError(f"there are verdicts of {len(verdicts)} judges; agreement needs at least 2")
    _check_lengths(verdicts, bootstrap)
    table = np.stack([_numbers(found) for found in verdicts])  # (judges, responses)
    trues, falses = (table == 1).sum(axis=0).astype(np.float64), (table == 0).sum(axis=0).astype(np.float64)
    paired = trues + falses >= 2
    num_paired = int(paired.sum())
    num_left_out = len(paired) - num_paired
    if not num_paired:
        reason = "there is no response on which two judges have a verdict"
        return GroupAgreement(len(verdicts), 0, num_left_out, None, None, None, reason)
    mixed = np.divide(trues * falses, trues + falses - 1, out=np.zeros(len(paired)), where=paired)
    parts = np.where(paired[:, None], np.stack([trues, falses, mixed], axis=1), 0.0)
    num_true, num_false, disagreement = parts.sum(axis=0)
    if not num_true or not num_false:
        value = "true" if num_true else "false"
        reason = f"all verdicts are {value}: there is nothing that judges could disagree on"
        return GroupAgreement(len(verdicts), num_paired, num_left_out, None, None, None, reason)

    import krippendorff

    counts = np.stack([trues, falses], axis=1)[paired]
    alpha = float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))
    num = num_true + num_false
    expected = 2 * num_true * num_false / (num * (num - 1))
    same = [bool(value) for value in mixed[paired] == 0]
    size = num_paired / design_effect(same, bootstrap.prompts[paired].astype(str).tolist())
    ends = wilson(float(np.clip(1 - 2 * disagreement / num, 0.0, 1.0)), size, confidence)
    unvaried = [float(1 - (1 - end) / expected) for end in ends]
    share = expanded(len(np.unique(bootstrap.prompts[paired])), confidence)
    low, high = _interval(alphas(bootstrap.sums(parts)), (unvaried[0], unvaried[1]), share)
    return GroupAgreement(len(verdicts), num_paired, num_left_out, alpha, low, high, None)


def kappas(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa of many tables at once, NaN where it is 0 / 0.

    With a, b, c, d the counts, kappa = 2 (a d - b c) / ((a + b) (b + d) + (a + c) (c + d)), the formula above
    multiplied out.

    Args:
        tables: (draws, 4) both true, only the first, only the second, both false.
    """
    a, b, c, d = tables.T
    below = (a + b) * (b + d) + (a + c) * (c + d)
    result: np.ndarray = np.divide(2 * (a * d - b * c), below, out=np.full(len(tables), np.nan), where=below > 0)
    return result


def alphas(parts: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha of many resamples at once, NaN where it is 0 / 0.

    Args:
        parts: (draws, 3) sums of t, f and t f / (m - 1) over responses with m >= 2.
    """
    trues, falses, mixed = parts.T
    below = trues * falses
    above = (trues + falses - 1) * mixed
    result: np.ndarray = 1 - np.divide(above, below, out=np.full(len(parts), np.nan), where=below > 0)
    return result


def _numbers(verdicts: Sequence[Verdict]) -> np.ndarray:
    """1, 0 or NaN."""
    return np.array([np.nan if verdict is None else float(verdict) for verdict in verdicts])


def _check_lengths(verdicts: Sequence[Sequence[Verdict]], bootstrap: PromptBootstrap) -> None:
    for found in verdicts:
        if len(found) != len(bootstrap.prompts):
            num = len(bootstrap.prompts)
            raise ValueError(f"there are {len(found)} verdicts of a judge and {num} responses; there must be as many")


def _reason(both_true: int, only_first: int, only_second: int, both_false: int) -> str | None:
    """Why kappa has no value, or a value that says nothing."""
    constant = {
        "first": "true" if not only_second + both_false else "false" if not both_true + only_first else None,
        "second": "true" if not only_first + both_false else "false" if not both_true + only_second else None,
    }
    if constant["first"] and constant["first"] == constant["second"]:
        return f"all verdicts are {constant['first']}: there is nothing that judges could disagree on"
    said = [f"the {judge} judge's verdicts are all {value}" for judge, value in constant.items() if value]
    return f"{' and '.join(said)}: kappa is 0 however often the two agree" if said else None


def _interval(draws: np.ndarray, unvaried: Interval, share: float) -> Interval:
    """The middle `share` of the draws, or `unvaried` where they do not vary."""
    finite = draws[np.isfinite(draws)]
    if len(finite) and np.ptp(finite) > 1e-9:  # more than rounding
        return percentile_interval(finite, share)
    return max(-1.0, unvaried[0]), min(1.0, unvaried[1])
