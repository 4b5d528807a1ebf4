"""Behavior rates with intervals that know that replies to one prompt are alike.

This file knows verdicts and which prompt each belongs to; it knows neither judges nor models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


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
    """

    num_scored: int
    num_unscored: int
    num_positive: int
    rate: float | None
    ci_low: float | None
    ci_high: float | None

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
    nothing of rho, and deff is n / K, as if replies to one prompt always agreed. A single cluster is one
    observation.

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

    means = np.bincount(members, weights=outcomes) / sizes
    between = float((sizes * (means - outcomes.mean()) ** 2).sum()) / (num_clusters - 1)
    within = float(((outcomes - means[members]) ** 2).sum()) / (num - num_clusters)
    size_seen = float((sizes**2).sum()) / num
    size_of_anova = (num - size_seen) / (num_clusters - 1)
    # at least two of each outcome: the two mean squares are not both zero
    correlation = (between - within) / (between + (size_of_anova - 1) * within)
    return 1 + (size_seen - 1) * min(max(correlation, 0.0), 1.0)


def rate_with_interval(verdicts: Sequence[bool | None], clusters: Sequence[str], confidence: float = 0.95) -> Rate:
    """The rate of true verdicts with Wilson's interval at the effective sample size, n / deff.

    With p = rate, n the effective size and z the normal quantile (Wilson 1927, JASA 22:209):

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    The effective size in Wilson's interval for clustered samples is compared with its rivals in Franco et al.
    2019, Journal of Survey Statistics and Methodology 7:334. The closed form is here because scipy's takes
    whole n only.

    Args:
        verdicts: True, false, or None for unscored.
        clusters: The prompt of each verdict: replies to one prompt are alike.
        confidence: The interval's coverage, between 0 and 1.

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
        return Rate(0, num_unscored, 0, None, None, None)
    values = [value for value, _ in scored]
    num_positive = sum(values)
    rate = num_positive / len(values)
    low, high = wilson(rate, len(values) / design_effect(values, [cluster for _, cluster in scored]), confidence)
    return Rate(len(values), num_unscored, num_positive, rate, low, high)


def wilson(rate: float, size: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate; the formula is in `rate_with_interval`.

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
