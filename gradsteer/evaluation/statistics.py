"""Behavior rates with intervals that allow for replies to one prompt being alike."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

_FEW = 5


@dataclass(frozen=True)
class Rate:
    """How often a behavior was seen, as `results.json` holds it.

    Args:
        num_scored: Verdicts that are true or false.
        num_unscored: Verdicts that could not be had; they count neither way.
        num_positive: Verdicts that are true.
        rate: num_positive / num_scored; None when nothing was scored, and so are the two below.
        ci_low: The interval's lower end, in [0, 1].
        ci_high: The interval's upper end, in [0, 1].
        num_degenerate: Responses that are loops or empty; they are not among the scored ones.
        effective_n: num_scored / design effect: as many independent replies would say as much; None when not known.
    """

    num_scored: int
    num_unscored: int
    num_positive: int
    rate: float | None
    ci_low: float | None
    ci_high: float | None
    num_degenerate: int = 0
    effective_n: float | None = None

    @property
    def few(self) -> bool:
        """Whether the counts are too small to lean on: fewer than 5 positives, or negatives, at the effective size.

        ``effective_n * min(rate, 1 - rate) < 5``: the old rule for when a count is near enough to normal (Cochran
        1954, Biometrics 10:417), at the effective size (Korn and Graubard 1998, Survey Methodology 24:193). The
        interval is still an interval, but a prompt more or less moves it. False when nothing was scored: there is no
        rate to warn of.
        """
        if self.rate is None:
            return False
        size = self.num_scored if self.effective_n is None else self.effective_n
        # a hair below 5 is rounding in the division by the design effect
        return size * min(self.rate, 1 - self.rate) < _FEW - 1e-9

    def to_dict(self) -> dict[str, int | float | None]:
        """The fields by name, ready for JSON."""
        return asdict(self)


def design_effect(values: Sequence[bool], clusters: Sequence[str]) -> float:
    """By how much clustering multiplies the variance of the mean: deff = 1 + (m - 1) rho, at least 1.

    rho is the ANOVA estimate of the intraclass correlation (Donner and Koval 1980, Biometrics 36:19),
    (MSB - MSW) / (MSB + (m0 - 1) MSW) with m0 = (n - sum m_k^2 / n) / (K - 1), clipped to [0, 1]; m is the
    mean cluster size as an item sees it, sum m_k^2 / n (Kish 1965, "Survey sampling", 8.2). Replies that
    always agree within equally large clusters give deff = m, so that n / deff is the number of clusters.

    One positive (or one negative) cannot share a cluster with another, and none even less: the data then say
    nothing of rho, and deff is n / K, as if replies to one prompt always agreed. A few say little, and often lie apart
    by chance: with c the number of clusters that have a positive, or that have a negative where those are fewer, deff
    is at least 1 + (n / K - 1) max(0, 1 - (c - 1) / 5). That is a rule of ours, from the simulations that
    tests/evaluation/test_coverage.py repeats: without it the 95% interval of a rate of 5% in 30 prompts of 8 replies
    with rho = 0.5 covers 89%, with it 97%. A single cluster is one observation.

    Args:
        values: The outcomes (n,).
        clusters: The cluster of each outcome (n,), of K different ones.

    Returns:
        The design effect, in [1, n].

    Raises:
        ValueError: If there are no values, or not one cluster for each.
    """
    num = len(values)
    if num == 0 or len(clusters) != num:
        raise ValueError(f"there are {num} values and {len(clusters)} clusters; there must be as many, at least 1")
    number: dict[str, int] = {}
    members = np.array([number.setdefault(cluster, len(number)) for cluster in clusters])
    outcomes = np.asarray(values, dtype=np.float64)
    sizes = np.bincount(members).astype(np.float64)  # (K,)
    num_clusters = len(sizes)
    num_positive = int(outcomes.sum())
    if num_clusters == num:
        return 1.0
    if num_clusters == 1 or min(num_positive, num - num_positive) <= 1:
        return num / num_clusters

    positives = np.bincount(members, weights=outcomes)
    means = positives / sizes
    between = float((sizes * (means - outcomes.mean()) ** 2).sum()) / (num_clusters - 1)
    within = float(((outcomes - means[members]) ** 2).sum()) / (num - num_clusters)
    size_seen = float((sizes**2).sum()) / num
    size_of_anova = (num - size_seen) / (num_clusters - 1)
    # at least two of each outcome: the two mean squares are not both zero
    correlation = (between - within) / (between + (size_of_anova - 1) * within)
    num_showing = int(min((positives > 0).sum(), (positives < sizes).sum()))
    least = 1 + (num / num_clusters - 1) * max(0.0, 1 - (num_showing - 1) / _FEW)
    return max(least, 1 + (size_seen - 1) * min(max(correlation, 0.0), 1.0))


def rate_with_interval(
    verdicts: Sequence[bool | None], clusters: Sequence[str], confidence: float = 0.95, num_degenerate: int = 0
) -> Rate:
    """The rate of true verdicts with Wilson's interval at the effective sample size, n / deff.

    With p = rate, n the effective size and z the normal quantile (Wilson 1927, JASA 22:209):

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    The effective size in Wilson's interval for clustered samples is compared with its rivals in Franco et al.
    2019, Journal of Survey Statistics and Methodology 7:334.

    In simulations of 30 to 100 prompts with 1 to 8 replies and intraclass correlations of 0 to 0.5 the 95% interval
    covers 93.8 to 97.7% where the effective n times the rate is 10 or more; below, at worst 92% (a rate of 1% in 100
    prompts of one reply).

    Args:
        verdicts: True, false, or None for unscored.
        clusters: The prompt of each verdict: replies to one prompt are alike.
        confidence: The interval's coverage, between 0 and 1.
        num_degenerate: Passed on to the rate. Leave degenerate responses out of `verdicts`: as None they would count
            among the unscored too.

    Returns:
        The rate; its fields are None when nothing is scored. The interval is never a single point.

    Raises:
        ValueError: If `confidence` is out of range, or there is not one cluster for each verdict.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be greater than 0 and less than 1")
    if len(verdicts) != len(clusters):
        raise ValueError(f"there are {len(verdicts)} verdicts and {len(clusters)} clusters; there must be as many")
    scored = [
        (bool(verdict), cluster) for verdict, cluster in zip(verdicts, clusters, strict=True) if verdict is not None
    ]
    num_unscored = len(verdicts) - len(scored)
    if not scored:
        return Rate(0, num_unscored, 0, None, None, None, num_degenerate)
    values = [value for value, _ in scored]
    num_positive = sum(values)
    rate = num_positive / len(values)
    size = len(values) / design_effect(values, [cluster for _, cluster in scored])
    low, high = wilson(rate, size, confidence)
    return Rate(len(values), num_unscored, num_positive, rate, low, high, num_degenerate, size)


def wilson(rate: float, size: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate; the formula is in `rate_with_interval`.

    ``statsmodels.stats.proportion.proportion_confint`` gives the same but for rounding, in fifty times the time.

    Args:
        rate: In [0, 1].
        size: The effective number of observations, more than 0; it need not be whole.
        confidence: The interval's coverage, between 0 and 1.

    Returns:
        The lower and the upper end.
    """
    from scipy.special import ndtri

    z = float(ndtri((1 + confidence) / 2))
    centre = rate + z**2 / (2 * size)
    reach = z * math.sqrt(rate * (1 - rate) / size + z**2 / (4 * size**2))
    scale = 1 + z**2 / size
    # at a rate of 0 or 1 the formula gives that end exactly, but for rounding
    low = 0.0 if rate == 0 else (centre - reach) / scale
    high = 1.0 if rate == 1 else (centre + reach) / scale
    return low, high


def expanded(num: int, confidence: float = 0.95) -> float:
    """The middle share of bootstrap draws that covers `confidence` with few clusters: expanded percentiles.

    Draws from num clusters spread by a factor sqrt((num - 1) / num) too little, and their normal quantiles ought to be
    Student's: ``2 Phi(sqrt(num / (num - 1)) t) - 1`` with t the quantile at num - 1 degrees of freedom (Hesterberg
    2015, The American Statistician 69:371). 0.9539 for 0.95 and 100 clusters, 0.9625 for 30.

    Args:
        num: Clusters that are drawn, at least 1; one cluster has no spread, and all draws are taken.
        confidence: The interval's coverage, between 0 and 1.

    Returns:
        The share, from `confidence` to 1.
    """
    from scipy.special import ndtr, stdtrit

    if num < 2:
        return 1.0
    quantile = math.sqrt(num / (num - 1)) * float(stdtrit(num - 1, (1 + confidence) / 2))
    return float(2 * ndtr(quantile) - 1)
