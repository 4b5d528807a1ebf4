"""The alpha at which a forecast rate reaches its target."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from gradsteer.forecast.curve import VectorCurve

_CLOSE = 5e-4  # of a rate: a twentieth of a point
_CLOSE_SHARE = 0.02  # of a rare one
_FARTHEST = 100.0  # nats of a whole response: beyond, the linear form says nothing
_NEAR, _NEAR_SHARE = 5e-3, 0.1  # accepted where the steps are used up
BEYOND = 1.2  # the curve is drawn past the first guess by so much: its ends are where most steps would lead


def solve_rate(
    curve: VectorCurve, behavior: str, target: float, *, max_steps: int = 12
) -> tuple[float, Literal["importance", "linear"]]:
    """The alpha at which the forecast of a behavior's rate is the target.

    The linear form gives a first alpha; secant steps on the log-odds then follow the importance-weighted curve, as long
    as its effective sample size is large enough. Where the curve reaches, a step takes no pass.

    Args:
        curve: forecasts along the vector.
        behavior: whose rate.
        target: the rate, between 0 and 1.
        max_steps: secant steps at most.

    Returns:
        alpha, and which form it was solved on.

    Raises:
        ValueError: the target is out of range, the rate is not known, or it does not reach the target along this
            direction.
    """
    if not 0 < target < 1:
        raise ValueError(f"target rate {target} of {behavior!r}; accepted: more than 0 and less than 1")
    linear = linear_alpha(curve, behavior, target)
    close, near = min(_CLOSE, _CLOSE_SHARE * target), min(_NEAR, _NEAR_SHARE * target)
    alpha, goal = linear, _logit(target)
    # a first point that costs nothing
    last = 0.0, _logit(curve.forecaster.anchor_rate(behavior)) - goal
    if linear == 0 or last[1] == 0:
        return 0.0, "linear"
    curve.cover([BEYOND * linear])
    sides = {last[1] > 0: last[0]}  # where the rate was last below and above the target
    slope = -last[1] / linear
    best = math.inf, linear
    for _ in range(max_steps):
        if not curve.covers(alpha):
            curve.cover([BEYOND * alpha])
        forecast = curve.forecast(alpha)
        said = forecast.rates.get(behavior)  # none where no scored response has any weight left
        # past what the weights can say: where they last came near, else the linear form
        if said is None or not said.reliable:
            return (best[1], "importance") if best[0] <= near else (linear, "linear")
        rate = said.importance
        best = min(best, (abs(rate - target), alpha))
        if best[0] < close:
            return best[1], "importance"
        gap = _logit(rate) - goal
        found = (gap - last[1]) / (alpha - last[0])
        slope = found if found * slope > 0 else slope
        last, sides[gap > 0] = (alpha, gap), alpha
        alpha -= max(-abs(2 * linear), min(abs(2 * linear), gap / slope))
        if len(sides) == 2 and not min(sides.values()) < alpha < max(sides.values()):
            alpha = sum(sides.values()) / 2
    if best[0] > near:
        raise ValueError(
            f"along this direction the rate of {behavior!r} was not brought to {target}: the nearest forecast, "
            f"at alpha {best[1]:+.4g}, is {100 * best[0]:.2g} points off"
        )
    return best[1], "importance"


def linear_alpha(curve: VectorCurve, behavior: str, target: float) -> float:
    """The alpha at which the linear form has a behavior at a rate, 0 < target < 1.

    Raises:
        ValueError: the rate is not known, no response or every one shows the behavior, or its linear form does not
            reach the target.
    """
    responses, direction = curve.forecaster.responses, curve.direction()
    responses.check_behaviors([behavior])
    if behavior not in direction.linear.rates(0.0):
        raise ValueError(f"the rate of {behavior!r} is not known: no response has a verdict on every behavior")
    shown = np.nansum(responses.verdicts[behavior])
    if shown in (0, np.sum(~np.isnan(responses.verdicts[behavior]))):
        raise ValueError(
            f"{'every one' if shown else 'none'} of the {len(responses)} responses shows {behavior!r}: nothing tells "
            "how it changes; sample a step towards it, and give that file too (--forecasting.responses, docs/rare.md)"
        )
    farthest = _FARTHEST / direction.size if direction.size > 0 else 1.0
    alpha = _root(lambda a: _logit(direction.linear.rates(a)[behavior]) - _logit(target), farthest)
    if alpha is None:
        raise ValueError(f"along this direction the rate of {behavior!r} does not reach {target}: it hardly moves")
    return alpha


def _logit(rate: float) -> float:
    clipped = min(max(rate, 1e-9), 1 - 1e-9)
    return math.log(clipped / (1 - clipped))


def _root(function: Callable[[float], float], farthest: float) -> float | None:
    """A root next to 0, on either side; None where there is none between -farthest and farthest."""
    from scipy.optimize import brentq

    start = function(0.0)
    if start == 0:
        return 0.0
    # the first step: where the function changes by about a thousandth
    step = 1e-12 * farthest
    while abs(function(step) - start) < 1e-3 and step < farthest:
        step *= 2
    while True:
        step = min(step, farthest)
        for end in (step, -step):
            if function(end) * start < 0:
                return float(brentq(function, 0.0, end, rtol=1e-12))
        if step == farthest:
            return None
        step *= 2
