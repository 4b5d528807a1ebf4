"""Finding the alpha of a dose: from a norm, a calibrated slope, a forecast curve or a divergence."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from gradsteer.evaluation.text_divergence import TextDivergence
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.curve import VectorCurve
from gradsteer.forecast.kept_passes import Keep, KeptPasses, pass_anew
from gradsteer.forecast.kl_budget import Statistic, solve_budget, statistic_of
from gradsteer.forecast.target_rate import solve_rate
from gradsteer.steering.doses import Dose
from gradsteer.vectors.contrast import Contrast
from gradsteer.vectors.parameter_vectors import ParameterVector


@dataclass
class DoseSolver:
    """Finds alphas for one model and one way of sampling.

    Attributes:
        model: with its own weights.
        theta_norm: ``||theta||`` over all of the model's parameters.
        temperature: that responses are sampled at.
        top_p: that they are sampled with.
        text: makes the text on which divergences are measured, when one is asked for.
        statistic: of the divergence over its tokens.
        kept: divergences that an interrupted run measured; None keeps none.
    """

    model: Any
    theta_norm: float
    temperature: float
    top_p: float
    text: Callable[[], TextDivergence] | None = None
    statistic: Statistic = "mean"
    kept: KeptPasses | None = None
    _measured: TextDivergence | None = field(default=None, init=False)
    _remembers: bool = field(default=False, init=False)  # the model's own distributions
    _known: dict[str, dict[float, float]] = field(default_factory=dict, init=False)  # alpha -> divergence

    def solve(
        self,
        dose: Dose,
        vector: ParameterVector,
        *,
        key: str,
        calibration: Calibration | None,
        contrast: Contrast,
        curve: VectorCurve | None,
        weights: Callable[[float], AbstractContextManager[Any]],
    ) -> float:
        """The alpha of a dose of a vector.

        Args:
            dose: what is asked for.
            vector: the direction, transformed.
            key: says all that determines the direction; doses of one direction share what was measured.
            calibration: the direction's own slope; None where it is transformed, a sum, or was not calibrated.
            contrast: what the vector is a contrast of.
            curve: forecasts along the vector; None without judged responses.
            weights: gives the model the weights at an alpha, rounded as those of the condition.

        Raises:
            ValueError: the dose cannot be computed; says what is wanting.
        """
        if dose.kind == "alpha":
            return dose.value
        if dose.kind == "relative_norm":
            norm = vector.norm()
            if norm == 0:
                raise ValueError("the vector is zero: no alpha gives it a norm")
            return dose.value * self.theta_norm / norm
        if dose.kind == "log_odds_shift":
            return self._shift(dose.value, calibration, contrast, curve)
        if dose.kind == "kl_budget":
            return self._budget(dose.value, vector, key, curve, weights)
        if curve is None:
            raise ValueError("a target rate is solved on the forecast curve: give --forecasting.responses FILE")
        if contrast.behavior is None:
            raise ValueError("which behavior's rate is the target? give --steering.behaviors.VECTOR BEHAVIOR")
        return solve_rate(curve, contrast.behavior, dose.value)[0]

    def needs_no_curve(self, dose: Dose, calibration: Calibration | None) -> bool:
        """Whether the dose's alpha is known before anything is scored."""
        calibrated = calibration is not None and calibration.is_of(self.temperature, self.top_p)
        return dose.kind in ("alpha", "relative_norm") or (dose.kind == "log_odds_shift" and calibrated)

    def _shift(
        self, shift: float, calibration: Calibration | None, contrast: Contrast, curve: VectorCurve | None
    ) -> float:
        if calibration is not None and calibration.is_of(self.temperature, self.top_p):
            if calibration.slope < 0:  # seen on SmolLM2, where the realised shift had the other sign: docs/results.md
                raise ValueError(
                    f"the slope <S, V> is {calibration.slope:.3g} +- {calibration.standard_error:.2g}, below 0: a "
                    "vector lowers what it contrasts, so this is noise of its halves; use larger piles, or dose by "
                    "--steering.kl_budgets"
                )
            return calibration.alpha(shift)
        if curve is not None:
            if contrast.plus is None or contrast.minus is None:
                raise ValueError("a shift of log-odds is between two classes, and the vector's piles do not say theirs")
            slope, error = curve.forecaster.slope(curve.direction(), contrast.plus, contrast.minus)
            plain = Calibration(slope, error, (slope, slope), self.temperature, self.top_p, 0, 0)
            return plain.alpha(shift)
        if calibration is not None:
            raise ValueError(
                f"the slope was taken at temperature {calibration.temperature:g} and top_p {calibration.top_p:g}, "
                f"responses are sampled at {self.temperature:g} and {self.top_p:g}: the alpha would be of another "
                "scale; attribute responses sampled alike, or give --forecasting.responses FILE"
            )
        raise ValueError(
            "a shift of log-odds needs a calibrated vector without transforms (attribute --model.calibrate true), or "
            "judged responses to take the slope from: --forecasting.responses FILE"
        )

    def _budget(
        self,
        budget: float,
        vector: ParameterVector,
        key: str,
        curve: VectorCurve | None,
        weights: Callable[[float], AbstractContextManager[Any]],
    ) -> float:
        if self._measured is None:
            if self.text is None:
                raise ValueError("a divergence is taken on text, and there is none")
            self._measured = self.text()
        text, norm = self._measured, vector.norm()
        if norm == 0:
            raise ValueError("the vector is zero: no alpha makes it diverge")
        sign, known = math.copysign(1.0, budget), self._known.setdefault(key, {})

        keep: Keep = pass_anew
        if self.kept is not None:
            keep = self.kept.of(direction=key, text=text.digest, temperature=text.temperature, of=self.statistic)

        def taken(alpha: float) -> float:
            if not self._remembers:
                text.remember(self.model)
                self._remembers = True
            with weights(alpha):
                return statistic_of(text.divergences(self.model), self.statistic)

        def measure(size: float) -> float:
            alpha = sign * size
            known[alpha] = float(keep(alpha, lambda: taken(alpha)))
            return known[alpha]

        start = _guess(abs(budget), sign, known, curve) or 1e-3 * self.theta_norm / norm
        return sign * solve_budget(measure, abs(budget), start=start)[0]


def _guess(budget: float, sign: float, known: dict[float, float], curve: VectorCurve | None) -> float | None:
    """A size of alpha near a divergence, which grows as alpha squared, from others of this sign; None without any.

    From those that were measured, or else from what the curve's own weights say of it.
    """
    points = [(abs(alpha), value) for alpha, value in known.items() if alpha * sign > 0 and 0 < value < math.inf]
    if not points and curve is not None:
        forecast = [(abs(alpha), curve.forecast(alpha).kl_per_token) for alpha in curve.nodes if alpha * sign > 0]
        points = [(size, value) for size, value in forecast if value is not None and value > 0]
    if not points:
        return None
    size, value = min(points, key=lambda point: abs(math.log(point[1] / budget)))
    return size * math.sqrt(budget / value)
