"""Whether a dose broke the model rather than moved a behavior.

A broken model says one thing only, so its rates and selectivities can look better than any other's.
"""

from collections.abc import Mapping

Metrics = Mapping[str, float | None]

_PERPLEXITIES, _SHARES = ("perplexity", "base_perplexity"), ("degenerate", "unfinished")
MAX_RATIO = 2.0  # of perplexities: a bit a token
MAX_RISE = 0.5  # of shares


def damage(metrics: Metrics, start: Metrics) -> list[str]:
    """The metrics that say that a condition's model is no longer what it was.

    Held-out text, or the condition's responses under the base, cost at least a bit a token more than those of the model
    that it started from: their perplexity is twice as large or larger. Or the share of degenerate responses, or of
    those cut at the length limit, has risen by half of all responses or more. These are rules of thumb: what they flag
    is worth reading before its rates are believed, and what they pass may still be bad.

    Args:
        metrics: of the condition, as `gradsteer.steering.conditions.Condition` has them.
        start: of the model that was steered.

    Returns:
        Names of metrics; none where nothing is flagged, or nothing was measured.
    """
    pairs = {name: (metrics.get(name), start.get(name)) for name in (*_PERPLEXITIES, *_SHARES)}
    known = {name: (now, then) for name, (now, then) in pairs.items() if now is not None and then is not None}
    found = [name for name in _PERPLEXITIES if name in known and known[name][0] >= MAX_RATIO * known[name][1]]
    return found + [name for name in _SHARES if name in known and known[name][0] - known[name][1] >= MAX_RISE]
