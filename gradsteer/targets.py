"""The alpha at which a forecast rate is the one that is asked for.

Knows of a forecaster and a way to move the weights; knows nothing of vectors or files.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

from gradsteer.forecasting import Direction, Forecaster, Tick

_CLOSE = 5e-4  # of a rate: a twentieth of a point


def solve_rate(
    forecaster: Forecaster,
    behavior: str,
    target: float,
    direction: Direction,
    weights: Callable[[float], AbstractContextManager[Any]],
    *,
    tick: Tick | None = None,
    max_passes: int = 8,
) -> tuple[float, Literal["importance", "linear"]]:
    """The alpha at which the forecast of a behavior's rate is the target.

    The linear form, which costs nothing more, brackets it; Newton's steps on the log-odds with the linear form's
    slope then follow the importance-weighted curve, as long as its effective sample size is large enough.

    Args:
        forecaster: of the judged responses.
        behavior: whose rate.
        target: the rate, between 0 and 1.
        direction: along which the weights move.
        weights: gives the model the weights at an alpha.
        tick: called after each batch.
        max_passes: forward passes at most.

    Returns:
        alpha, and which curve it was solved on.

    Raises:
        ValueError: the target is out of range, or the rate does not reach it along this direction.
    """
    if not 0 < target < 1:
        raise ValueError(f"target rate {target} of {behavior!r}; accepted: more than 0 and less than 1")
    forecaster.responses.check_behaviors([behavior])
    alpha = _root(lambda a: _logit(direction.linear.rates(a)[behavior]) - _logit(target))
    if alpha is None:
        raise ValueError(f"along this direction the rate of {behavior!r} does not reach {target}: it hardly moves")
    linear = alpha
    for _ in range(max_passes):
        with weights(alpha):
            forecast = forecaster.at_present_weights(tick=tick)
        rate = forecast.rates[behavior].rate
        if not forecast.reliable:
            return linear, "linear"
        if abs(rate - target) < _CLOSE:
            return alpha, "importance"
        step = 1e-3 * (abs(alpha) or abs(linear))
        ahead, behind = (_logit(direction.linear.rates(alpha + s)[behavior]) for s in (step, -step))
        alpha -= (_logit(rate) - _logit(target)) / ((ahead - behind) / (2 * step))
    return alpha, "importance"


def _logit(rate: float) -> float:
    clipped = min(max(rate, 1e-9), 1 - 1e-9)
    return math.log(clipped / (1 - clipped))


def _root(function: Callable[[float], float]) -> float | None:
    """A root next to 0, on either side; None where there is none within 2^60 of a first small step."""
    from scipy.optimize import brentq

    start = function(0.0)
    if start == 0:
        return 0.0
    # the first step: where the function changes by about a thousandth
    step = 1e-12
    while abs(function(step) - start) < 1e-3 and step < 1e12:
        step *= 2
    for _ in range(60):
        for end in (step, -step):
            if function(end) * start < 0:
                return float(brentq(function, 0.0, end, rtol=1e-12))
        step *= 2
    return None
