"""Rates under other weights from responses of these: self-normalised importance weighting, and its linear form.

With responses r sampled from p and judged, the rate of a class k under p' is

    P'(k) ~ sum_r w_r 1[r in k] / sum_r w_r,    w_r = p'(r) / p(r)

(Hesterberg 1995, Technometrics 37:185), to be believed as far as the effective sample size ``(sum w)^2 / sum w^2``
(Kong 1992) says. Its linear form needs the mean derivative of ``-log p(r)`` along a direction V alone, ``g_k`` over
class k: ``P_k(alpha) ~ P_k exp(-alpha g_k)``, normalised over classes that partition the responses.

Intervals are from a bootstrap over prompts, see `gradsteer.evaluation.bootstrap`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradsteer.evaluation.bootstrap import Interval, PromptBootstrap, percentile_interval
from gradsteer.evaluation.statistics import design_effect, wilson

_ALIKE = 0.99  # of the responses: an effective sample size from which on weights hardly differ
_FLOOR = 0.05  # of the effective sample size that is enough: below, what is known of a rate is not known either
_FEW = 5  # as `gradsteer.evaluation.statistics.Rate.few`


def normalised_weights(log_ratios: np.ndarray) -> np.ndarray:
    """``w_r / sum w`` from ``log w_r``, without overflow.

    Args:
        log_ratios: (responses,) ``log p'(r) - log p(r)`` in nats; -inf where p'(r) is 0.

    Raises:
        ValueError: a ratio is NaN or +inf, or all are -inf: no response is possible under p'.
    """
    if np.isnan(log_ratios).any() or np.isposinf(log_ratios).any():
        raise ValueError("a log ratio is NaN or infinite: the scores of a response are not finite")
    top = log_ratios.max()
    if np.isneginf(top):
        raise ValueError("no response is possible under these weights: every one has a token outside of its nucleus")
    weights: np.ndarray = np.exp(log_ratios - top)
    weights /= weights.sum()
    return weights


def effective_sample_size(weights: np.ndarray) -> float:
    """``(sum w)^2 / sum w^2``, from 1 to the number of responses."""
    scaled = weights / weights.max()  # squares of tiny weights would be 0
    return float(scaled.sum() ** 2 / np.square(scaled).sum())


def divergence(weights: np.ndarray) -> float:
    """``KL(p' || p)`` of whole responses in nats, at least 0: ``sum_r w_r log(n w_r)`` with weights that sum to 1."""
    positive = weights[weights > 0]
    return max(0.0, float((positive * np.log(len(weights) * positive)).sum()))


def hangs_on_one(weights: np.ndarray, verdicts: np.ndarray | None = None) -> bool:
    """Whether one response has more than a third of a sum that a rate is taken from: no point estimate then.

    Without verdicts, the sum of all weights. With them also the sums over the responses that show the behavior and over
    those that do not: either may rest on one response where the whole does not, as that of a rare behavior does.

    Args:
        weights: (responses,) any positive scale.
        verdicts: (responses,) 1, 0 or NaN for unscored.
    """
    sums = [weights] if verdicts is None else [weights[~np.isnan(verdicts)], *(weights[verdicts == v] for v in (0, 1))]
    return any(float(part.max()) > float(part.sum()) / 3 for part in sums if part.size)


def weighted_rate(
    weights: np.ndarray, verdicts: np.ndarray, bootstrap: PromptBootstrap, confidence: float = 0.95
) -> tuple[float, float, float] | None:
    """The self-normalised rate of true verdicts and its interval.

    The interval is the wider of two on each side: the bootstrap's percentiles, and Wilson's at the effective sample
    size less the design effect of the verdicts' clusters. The bootstrap alone is a point where no positive was seen,
    and too narrow where few responses carry most of the weight. Of a rate below 5 responses at that size Wilson's says
    nothing, though many responses of small weight may show the behavior: there it is at the `size_of_error`, if larger,
    unless the rate `hangs_on_one`.

    Args:
        weights: (responses,) any positive scale.
        verdicts: (responses,) 1, 0 or NaN for unscored; unscored ones count neither way.
        bootstrap: over the responses' prompts.
        confidence: the interval's coverage.

    Returns:
        rate, low, high, in [0, 1]; None where nothing is scored or the scored ones have no weight.
    """
    scored = ~np.isnan(verdicts)
    masses = np.where(scored, weights, 0.0)
    total = masses.sum()
    if not total > 0:
        return None
    values = np.where(scored, verdicts, 0.0)
    rate = float(np.clip((masses * values).sum() / total, 0.0, 1.0))
    sums = bootstrap.sums(np.stack([masses * values, masses], axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = percentile_interval(sums[:, 0] / sums[:, 1], confidence)
    clusters = bootstrap.prompts[scored].astype(str).tolist()
    effect = design_effect(values[scored].astype(bool).tolist(), clusters)
    size = max(1.0, effective_sample_size(masses[scored]) / effect)
    if 0 < rate < 1 and size * min(rate, 1 - rate) < _FEW and not hangs_on_one(masses[scored], values[scored]):
        size = max(size, size_of_error(masses[scored], values[scored], bootstrap.prompts[scored], confidence))
    other_low, other_high = wilson(rate, size, confidence)
    return rate, float(min(low, other_low, rate)), float(max(high, other_high, rate))


def rate_is_known(weights: np.ndarray, verdicts: np.ndarray, prompts: np.ndarray, size: float) -> bool:
    """Whether weights say as much about one rate as `size` independent responses would.

    Where their effective sample size is that large; or, of a rate below 5 responses at that size, where its own
    `size_of_error` is, though all weights together count as little as a twentieth: a rare behavior that many responses
    of small weight show is known to a fraction of a point then. Never where it `hangs_on_one`, unless nearly all weigh
    alike, so that it is a count.

    Args:
        weights: (responses,) any positive scale.
        verdicts: (responses,) 1, 0 or NaN for unscored.
        prompts: (responses,) number of each one's prompt.
        size: effective responses that are enough.
    """
    scored = ~np.isnan(verdicts)
    masses, values = weights[scored], verdicts[scored]
    if not masses.size or not masses.sum() > 0:
        return False
    found = effective_sample_size(masses)
    if hangs_on_one(masses, values) and found < _ALIKE * len(masses):
        return False
    shown = float((masses * values).sum() / masses.sum())
    if found >= size or found < _FLOOR * size or not 0 < found * min(shown, 1 - shown) < _FEW:
        return found >= size
    return size_of_error(masses, values, prompts[scored]) >= size


def size_of_error(masses: np.ndarray, values: np.ndarray, prompts: np.ndarray, confidence: float = 0.95) -> float:
    """How many independent equally weighted responses would know a rate as well: ``1 / (v P (1 - P))``.

    v is the variance of the log-odds, linearised over prompts: with A and B the sums of weights of the responses that
    show the behavior and of the others, ``u_c = sum_(r in c) (w_r 1[A] / A - w_r 1[B] / B)`` and ``v = K / (K - 1) sum
    u_c^2`` (the effective size of Korn and Graubard 1998, Survey Methodology 24:193). That it is estimated itself is
    allowed for by Student's quantile in place of the normal one, with ``(sum u^2)^2 / sum u^4 - 1`` degrees of freedom:
    as many prompts as the variance really comes from (Satterthwaite 1946, Biometrics Bulletin 2:110).

    Args:
        masses: (responses,) weights.
        values: (responses,) 1 or 0; there are both.
        prompts: (responses,) number of each one's prompt.
        confidence: of the interval that is to be made of it.
    """
    from scipy.special import ndtri, stdtrit

    shown, others = masses * values, masses * (1 - values)
    influences = np.bincount(prompts, weights=shown / shown.sum() - others / others.sum())
    number, squares = len(np.unique(prompts)), float(np.square(influences).sum())
    if number < 2 or squares == 0:
        return 1.0
    freedom = max(1.0, squares**2 / float((influences**4).sum()) - 1)
    tail = (1 + confidence) / 2
    variance = number / (number - 1) * squares * float(stdtrit(freedom, tail) / ndtri(tail)) ** 2
    rate = float(shown.sum() / masses.sum())
    return 1 / (variance * rate * (1 - rate))


@dataclass(frozen=True)
class LinearForm:
    """``P_k(alpha) ~ P_k exp(-alpha g_k)`` along one direction: a whole curve from two forward passes.

    Attributes:
        derivatives: (responses,) derivative of ``-log p(r)`` by alpha, nats.
        classes: (responses,) number of each response's class, from 0, -1 where a verdict is unscored. Classes partition
            the responses: each is one combination of verdicts.
        members: (classes, behaviors) 1 where the class shows the behavior.
        behaviors: their names.
        weights: (responses,) weighs each to where the derivatives are taken; None where all were sampled there.
    """

    derivatives: np.ndarray
    classes: np.ndarray
    members: np.ndarray
    behaviors: tuple[str, ...]
    weights: np.ndarray | None = None

    @classmethod
    def of(
        cls, derivatives: np.ndarray, verdicts: Mapping[str, np.ndarray], weights: np.ndarray | None = None
    ) -> "LinearForm":
        """From the responses' derivatives and their verdicts (responses,) by behavior, 1, 0 or NaN.

        A behavior without any verdict is left out.
        """
        verdicts = {name: values for name, values in verdicts.items() if not np.isnan(values).all()}
        table = np.array(list(verdicts.values())).reshape(len(verdicts), len(derivatives)).T
        scored = ~np.isnan(table).any(axis=1)
        members, numbers = np.unique(table[scored], axis=0, return_inverse=True)
        classes = np.full(len(table), -1)
        classes[scored] = numbers.reshape(-1)
        return cls(derivatives, classes, members, tuple(verdicts), weights)

    def rates(self, alpha: float) -> dict[str, float]:
        """Behavior -> rate at alpha; empty where no response has all verdicts."""
        if not len(self.members):
            return {}
        one_hot = self._one_hot
        shares = one_hot.sum(axis=0, keepdims=True)
        slopes = (one_hot * self.derivatives[:, None]).sum(axis=0, keepdims=True) / np.maximum(shares, 1e-300)
        return dict(zip(self.behaviors, self._rates(alpha, shares, slopes)[0].tolist(), strict=True))

    def intervals(self, alpha: float, bootstrap: PromptBootstrap, confidence: float = 0.95) -> dict[str, Interval]:
        """Behavior -> interval of `rates`: shares and derivatives of every class are resampled together."""
        if not len(self.members):
            return {}
        one_hot = self._one_hot
        shares = bootstrap.sums(one_hot)
        slopes = bootstrap.sums(one_hot * self.derivatives[:, None]) / np.maximum(shares, 1e-300)
        rates = self._rates(alpha, shares, slopes)
        return {name: percentile_interval(rates[:, i], confidence) for i, name in enumerate(self.behaviors)}

    @property
    def _one_hot(self) -> np.ndarray:
        """(responses, classes), each response's weight at its class; a row of zeros where a verdict is unscored."""
        inside: np.ndarray = self.classes[:, None] == np.arange(len(self.members))
        return inside.astype(np.float64) if self.weights is None else inside * self.weights[:, None]

    def _rates(self, alpha: float, shares: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """(draws, behaviors) from (draws, classes)."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw without any scored response gives NaN
            logits = np.log(shares) - alpha * slopes
            masses = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: np.ndarray = masses @ self.members / masses.sum(axis=1, keepdims=True)
        return result


def mean_difference(
    derivatives: np.ndarray,
    plus: np.ndarray,
    minus: np.ndarray,
    prompts: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[float, float]:
    """``<S, V>``, the mean derivative of ``-log p(r)`` over PLUS less that over MINUS, and its standard error.

    By alpha the log-odds of PLUS against MINUS change by ``-alpha <S, V>``. The standard error is the linearised one of
    a difference of ratios over clusters (Cochran 1977, "Sampling techniques", 6.3), with prompts as clusters.

    Args:
        derivatives: (responses,) nats.
        plus: (responses,) bool.
        minus: (responses,) bool.
        prompts: (responses,) number of each one's prompt.
        weights: (responses,) weighs each to where the derivatives are taken; by default all were sampled there.

    Raises:
        ValueError: a class is empty.
    """
    masses = np.ones(len(derivatives)) if weights is None else weights
    for name, members in (("PLUS", plus), ("MINUS", minus)):
        if not masses[members].sum() > 0:
            raise ValueError(f"the {name} class has no response: there is nothing to take a slope from")
    sums = [float(masses[members].sum()) for members in (plus, minus)]
    means = [
        float((masses * derivatives)[members].sum()) / total for members, total in zip((plus, minus), sums, strict=True)
    ]
    parts = np.where(plus, masses * (derivatives - means[0]) / sums[0], 0.0)
    parts = parts - np.where(minus, masses * (derivatives - means[1]) / sums[1], 0.0)
    touched = np.unique(prompts[plus | minus])
    per_prompt = np.bincount(prompts, weights=parts)[touched]
    num = len(touched)
    error = float(np.sqrt(num / (num - 1) * np.square(per_prompt).sum())) if num > 1 else float("nan")
    return means[0] - means[1], error
