"""The forecast: behavior rates under other weights, from the anchor's judged responses and forward passes alone.

Nothing is sampled and nothing is judged. Formulas: `gradsteer.evaluation.importance_sampling` and docs/steering.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsteer.evaluation.bootstrap import Interval, PromptBootstrap
from gradsteer.evaluation.importance_sampling import (
    LinearForm,
    divergence,
    effective_sample_size,
    hangs_on_one,
    mean_difference,
    normalised_weights,
    rate_is_known,
    weighted_rate,
)
from gradsteer.evaluation.mixtures import mixture_log_density, source_sizes
from gradsteer.forecast.derivatives import log_prob_derivatives
from gradsteer.forecast.forecast_file import Forecast, ForecastRate
from gradsteer.forecast.judged_responses import JudgedResponses
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.weighted_classes import class_verdicts, log_odds_shift, weighted_means
from gradsteer.vectors.parameter_vectors import ParameterVector

MIN_SAMPLE_SIZE = 200.0  # below it importance weights erred by 3 to 7 points in trials

FARTHEST_LINEAR = 20.0  # nats of a response (root mean square): beyond, the linear form says nothing

_PRECISE = 0.05  # of a slope

_INTERVAL = 2 * 1.96  # standard errors in a 95% interval

Tick = Callable[[], None]
Where = Mapping[str, bool]


@dataclass(frozen=True)
class Direction:
    """A direction along which the responses' derivatives were taken.

    Attributes:
        derivatives: (responses,) of ``-log p(r)`` by alpha, nats.
        linear: the linear form.
    """

    derivatives: np.ndarray
    linear: LinearForm

    @property
    def size(self) -> float:
        """Root mean square of the derivatives, nats a unit of alpha."""
        return float(np.sqrt(np.mean(np.square(self.derivatives))))


class Forecaster:
    """Forecasts conditions from one set of judged responses.

    Args:
        responses: the anchor's.
        scorer: of these responses, on the model that has the anchor's weights now.
        draws: of the bootstrap over prompts.
        seed: of the draws.
        min_sample_size: effective sample size below which importance weights are not believed.
        tick: called after every batch of a forward pass.

    Raises:
        ValueError: the responses' own scores are not finite.
    """

    def __init__(
        self,
        responses: JudgedResponses,
        scorer: ResponseScorer,
        *,
        draws: int = 1000,
        seed: int = 0,
        min_sample_size: float = MIN_SAMPLE_SIZE,
        tick: Tick | None = None,
    ) -> None:
        self.responses, self.scorer, self.min_sample_size = responses, scorer, min_sample_size
        self.bootstrap = PromptBootstrap.draw(responses.prompts, draws=draws, seed=seed)
        self.num_passes = 1
        self.verdicts = {**responses.verdicts, **class_verdicts(responses.verdicts)}
        self.anchor_scores = scorer.log_probs(sampled_here=True, tick=tick)
        if not np.isfinite(self.anchor_scores).all():
            bad = int(np.flatnonzero(~np.isfinite(self.anchor_scores))[0])
            raise ValueError(f"{responses.path}: the model's log-probability of response {bad + 1} is not finite")
        self._reference = self.anchor_scores
        self._densities: np.ndarray | None = None
        self.anchor_weights: np.ndarray | None = None

    def pool(self, densities: np.ndarray) -> None:
        """Takes the responses for a sample of their sources' mixture, `gradsteer.evaluation.mixtures`.

        Forecasts, slopes and the linear form are then weighed from it, the anchor's among them.

        Args:
            densities: (responses, sources) ``log p_k(r)`` in nats, at the weights of each of ``responses.sources``.
        """
        self._densities = densities
        self._reference = mixture_log_density(densities, self.responses.source_counts)
        self.anchor_weights = normalised_weights(self.anchor_scores - self._reference)

    def score(self, scorer: ResponseScorer | None = None, *, tick: Tick | None = None) -> np.ndarray:
        """``log p_r`` (responses,) under the weights that the model has now: one forward pass (collective).

        Args:
            scorer: of the same responses behind other prompts; the plain one by default.
            tick: called after each batch.
        """
        self.num_passes += 1
        return (scorer or self.scorer).log_probs(tick=tick)

    def forecast(
        self,
        log_probs: np.ndarray,
        *,
        direction: Direction | None = None,
        alpha: float = 0.0,
        plus: Where | None = None,
        minus: Where | None = None,
    ) -> Forecast:
        """The forecast from the responses' log-probabilities under the condition's weights (responses,).

        Where no response is possible under these weights, or a score is not finite, the effective sample size is 0 and
        intervals of rates are [0, 1]; only the linear form then says anything. Each rate is by the weights where they
        say enough about it (`rate_is_known`), else by the linear form, where a direction is given: that hangs on no
        one's weight, and is left out where it would change responses by over `FARTHEST_LINEAR`. Where a rate would hang
        on one response in either, or none or all show the behavior, there is the interval alone.
        """
        if direction is not None and abs(alpha) * direction.size > FARTHEST_LINEAR:
            direction = None
        ratios = log_probs - self._reference
        try:
            weights = normalised_weights(ratios)
            size = effective_sample_size(weights)
        except ValueError:  # nothing of these responses is left
            weights, size = np.full(len(ratios), 1 / len(ratios)), 0.0
        empty = size == 0
        # all alike they are a plain count, however few
        reliable = not empty and size >= min(self.min_sample_size, (1 - 1e-9) * len(weights))
        use_linear = direction is not None and not reliable
        lost = empty or hangs_on_one(weights)
        linear = direction.linear.rates(alpha) if direction else {}
        intervals = direction.linear.intervals(alpha, self.bootstrap) if direction and use_linear else {}
        rates = {
            name: rate
            for name, verdicts in self.verdicts.items()
            if (rate := self._rate(weights, verdicts, linear.get(name), intervals.get(name), empty=empty)) is not None
        }
        shift: float | None = None
        linear_shift: float | None = None
        members = self._members(plus, minus)
        if members is not None:
            hanging = lost or any(hangs_on_one(weights[each]) for each in members)
            shift = None if hanging else log_odds_shift(weights, members, self.anchor_weights)
            if direction is not None:
                linear_shift = -alpha * self._slope(direction.derivatives, members)[0]
        lengths = np.array([example.num_target_tokens for example in self.responses.examples], dtype=np.float64)
        return Forecast(
            "linear" if use_linear else "importance",
            size,
            len(weights),
            reliable,
            {name: rate for name, rate in rates.items() if name in self.responses.verdicts},
            {name: rate for name, rate in rates.items() if name not in self.responses.verdicts},
            shift,
            linear_shift,
            None if lost else self._divergence(weights) / float((weights * lengths).sum()),
            {} if lost else weighted_means(weights, self.responses.traits),
            self._best_source(log_probs),
        )

    def _rate(
        self, weights: np.ndarray, verdicts: np.ndarray, linear: float | None, interval: Interval | None, *, empty: bool
    ) -> ForecastRate | None:
        """One behavior's rate, by the weights, by the linear form where its interval is given, or its bound alone."""
        found = weighted_rate(weights, verdicts, self.bootstrap)
        if found is None:
            return None
        rate, low, high = (found[0], 0.0, 1.0) if empty else found
        known = not empty and rate_is_known(weights, verdicts, self.responses.prompts, self.min_sample_size)
        scored = int((~np.isnan(verdicts)).sum())
        more = rate, linear, scored, len(verdicts) - scored
        if known:
            return ForecastRate(rate, low, high, *more, "importance", True)
        if interval is None or linear is None or len(np.unique(verdicts[~np.isnan(verdicts)])) < 2:
            if (
                empty
                or len(np.unique(verdicts[~np.isnan(verdicts)])) < 2
                or hangs_on_one(weights)
                or hangs_on_one(weights, verdicts)
            ):
                return ForecastRate(None, low, high, *more, "bound", False)
            return ForecastRate(rate, low, high, *more, "importance", False)
        # the linear form's own interval leaves out that it is an approximation
        low, high = min(interval[0], low, linear), max(interval[1], high, linear)
        if hangs_on_one(np.ones(len(weights)) if self.anchor_weights is None else self.anchor_weights, verdicts):
            return ForecastRate(None, low, high, *more, "bound", False)
        return ForecastRate(linear, low, high, *more, "linear", False)

    def _divergence(self, weights: np.ndarray) -> float:
        """``KL(p' || anchor)`` of whole responses, nats, at least 0."""
        if self.anchor_weights is None:
            return divergence(weights)
        # both distributions are weighed from the mixture, so that what they share cancels
        anchor = self.anchor_weights
        some = (weights > 0) & (anchor > 0)
        return max(0.0, float((weights[some] * np.log(weights[some] / anchor[some])).sum()))

    def _best_source(self, log_probs: np.ndarray) -> dict[str, Any] | None:
        """The source whose own responses have the largest effective sample size alone; None where there is but one."""
        source_of = self.responses.source_of
        if self._densities is None or source_of is None:
            return None
        best = max(source_sizes(log_probs, self._densities, source_of), key=lambda found: found.effective_sample_size)
        source = self.responses.sources[best.source]
        return {
            "responses": source.path, "alpha": source.alpha, "effective_sample_size": best.effective_sample_size,
            "num_responses": best.num_responses,
        }  # fmt: skip

    def anchor_rate(self, behavior: str) -> float:
        """The rate of a behavior under the anchor, of the responses that have a verdict on it."""
        verdicts, weights = self.verdicts[behavior], self.anchor_weights
        scored = ~np.isnan(verdicts)
        return float(np.average(verdicts[scored], weights=None if weights is None else weights[scored]))

    def direction_of(self, derivatives: np.ndarray) -> Direction:
        """Derivatives (responses,) of ``-log p(r)`` by alpha at the anchor, with their linear form."""
        return Direction(derivatives, LinearForm.of(derivatives, self.verdicts, self.anchor_weights))

    def _slope(self, derivatives: np.ndarray, members: Sequence[np.ndarray]) -> tuple[float, float]:
        plus, minus = members
        return mean_difference(derivatives, plus, minus, self.responses.prompts, self.anchor_weights)

    def sample_size(self, log_probs: np.ndarray) -> float:
        """The effective sample size at log-probabilities (responses,); 0 where no response is possible there."""
        try:
            return effective_sample_size(normalised_weights(log_probs - self._reference))
        except ValueError:
            return 0.0

    def moved(self, exact: np.ndarray, approximate: np.ndarray) -> tuple[float, float]:
        """The most that any forecast rate differs between two sets of log-probabilities (responses,).

        Returns:
            In [0, 1], and in units of the rate's own standard error (a quarter of its 95% interval, about).
        """
        weights, others = (normalised_weights(scores - self._reference) for scores in (exact, approximate))
        most, errors = 0.0, 0.0
        for verdicts in self.verdicts.values():
            found = weighted_rate(weights, verdicts, self.bootstrap)
            scored = ~np.isnan(verdicts)
            if found is None or not others[scored].sum() > 0:
                continue
            other = float((others[scored] * verdicts[scored]).sum() / others[scored].sum())
            difference = abs(other - found[0])
            most = max(most, difference)
            errors = max(errors, difference / max((found[2] - found[1]) / _INTERVAL, 1e-12))
        return most, errors

    def turned(self, derivatives: np.ndarray, others: np.ndarray) -> float:
        """The most that a behavior's slope against all other replies differs, in units of its own standard error.

        Or of 5% of itself, where that is more.

        Args:
            derivatives: (responses,) of ``-log p(r)`` by alpha.
            others: (responses,) likewise.
        """
        most = 0.0
        for verdicts in self.responses.verdicts.values():
            members = verdicts == 1, verdicts == 0
            if all(each.any() for each in members):
                slopes = [self._slope(each, members) for each in (derivatives, others)]
                error = max(slopes[1][1], _PRECISE * abs(slopes[1][0]))  # one of a few replies may be far too small
                most = max(most, abs(slopes[0][0] - slopes[1][0]) / error if error > 0 else 0.0)
        return most

    def along(self, model: Any, vector: ParameterVector, *, tick: Tick | None = None) -> Direction:
        """The responses' derivatives along a vector, at the model's present weights: two forward passes, or a few more.

        The vector's own fingerprint is not checked here.
        """
        derivatives, passes = log_prob_derivatives(model, self.scorer, vector, tick=tick)
        self.num_passes += passes
        return self.direction_of(derivatives)

    def slope(self, direction: Direction, plus: Where, minus: Where) -> tuple[float, float]:
        """``<S, V>`` between two classes of these responses, and its standard error; see `mean_difference`.

        Raises:
            ValueError: a class is empty.
        """
        members = self.responses.matching(plus), self.responses.matching(minus)
        return self._slope(direction.derivatives, members)

    def _members(self, plus: Where | None, minus: Where | None) -> tuple[np.ndarray, np.ndarray] | None:
        """(responses,) bool of both classes; None where one is not said, or has no response."""
        if plus is None or minus is None:
            return None
        members = self.responses.matching(plus), self.responses.matching(minus)
        return members if all(each.any() for each in members) else None
