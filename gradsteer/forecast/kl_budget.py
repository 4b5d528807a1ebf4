"""The alpha at which the next-token distributions have moved by a given KL divergence."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

Statistic = Literal["mean", "p95"]
_CLOSE = 0.01  # of the budget


def statistic_of(divergences: Tensor, statistic: Statistic) -> float:
    """The mean of some tokens' divergences (tokens,), or ``p95``, their 95th percentile: nats.

    Raises:
        ValueError: an unknown statistic.
    """
    if statistic not in get_args(Statistic):
        raise ValueError(f"the statistic is {statistic!r}; accepted: {', '.join(get_args(Statistic))}")
    if statistic == "mean":
        return float(divergences.mean())
    return float(divergences.kthvalue(math.ceil(0.95 * len(divergences))).values)


def solve_budget(
    measure: Callable[[float], float], budget: float, *, start: float, max_measurements: int = 12
) -> tuple[float, float]:
    """The alpha above 0 at which a divergence reaches the budget, within 1%.

    A divergence grows as alpha squared where alpha is small: secant steps on its logarithm against that of alpha, from
    an exponent of 2, take a few measurements.

    Args:
        measure: the divergence at an alpha above 0, nats.
        budget: nats, more than 0.
        start: a first alpha.
        max_measurements: at most so many.

    Returns:
        alpha, and the divergence measured there.

    Raises:
        ValueError: the budget is not positive, or was not reached.
    """
    if not 0 < budget < math.inf:
        raise ValueError(f"the budget is {budget}; accepted: nats a token, more than 0")
    below: tuple[float, float] | None = None
    above: tuple[float, float] | None = None
    point, exponent = math.log(start), 2.0
    value = math.nan
    last: tuple[float, float] | None = None
    for _ in range(max_measurements):
        value = measure(math.exp(point))
        if abs(value - budget) <= _CLOSE * budget:
            return math.exp(point), value
        # what rounding leaves of a tiny divergence, even below 0, says only that alpha is far too small
        gap = math.log(max(value, budget * 1e-12) / budget) if math.isfinite(value) else math.log(1e6)
        if last is not None and point != last[0] and 0.2 < (gap - last[1]) / (point - last[0]) < 8:
            exponent = (gap - last[1]) / (point - last[0])
        last = point, gap
        if gap < 0:
            below = last
        else:
            above = last
        ahead = point - max(-8.0, min(8.0, gap / exponent))
        if below is not None and above is not None and not below[0] < ahead < above[0]:
            ahead = (below[0] + above[0]) / 2
        point = ahead
    raise ValueError(
        f"no alpha was found at which the divergence is {budget} nats a token; the last gave {value:.3g}: ask for less"
    )
