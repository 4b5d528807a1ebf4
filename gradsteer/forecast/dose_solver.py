"""Finding the alpha of a dose: from a norm, a calibrated slope, a forecast curve or a divergence."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from gradsteer.evaluation.text_divergence import TextDivergence
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.forecaster import Direction, Forecaster
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
        forecaster: of the anchor's judged responses; None without them.
        text: makes the text on which divergences are measured, when one is asked for.
        statistic: of the divergence over its tokens.
    """

    model: Any
    theta_norm: float
    temperature: float
    top_p: float
    forecaster: Forecaster | None = None
    text: Callable[[], TextDivergence] | None = None
    statistic: Statistic = "mean"
    _measured: TextDivergence | None = field(default=None, init=False)

    def solve(
        self,
        dose: Dose,
        vector: ParameterVector,
        *,
        calibration: Calibration | None,
        contrast: Contrast,
        direction: Direction | None,
        weights: Callable[[float], AbstractContextManager[Any]],
    ) -> float:
        """The alpha of a dose of a vector.

        Args:
            dose: what is asked for.
            vector: the direction, transformed.
            calibration: the direction's own slope; None where it is transformed, a sum, or was not calibrated.
            contrast: what the vector is a contrast of.
            direction: derivatives along the vector; None without a forecaster.
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
            return self._shift(dose.value, calibration, contrast, direction)
        if dose.kind == "kl_budget":
            return self._budget(dose.value, vector, weights)
        if self.forecaster is None:
            raise ValueError("a target rate is solved on the forecast curve: give --forecasting.responses FILE")
        if direction is None:
            raise ValueError("a target rate is solved along derivatives, which weights in half precision do not have")
        if contrast.behavior is None:
            raise ValueError("which behavior's rate is the target? give --steering.behaviors.VECTOR BEHAVIOR")
        return solve_rate(self.forecaster, contrast.behavior, dose.value, direction, weights)[0]

    def _shift(
        self, shift: float, calibration: Calibration | None, contrast: Contrast, direction: Direction | None
    ) -> float:
        if calibration is not None and calibration.is_of(self.temperature, self.top_p):
            return calibration.alpha(shift)
        if self.forecaster is not None and direction is not None:
            if contrast.plus is None or contrast.minus is None:
                raise ValueError("a shift of log-odds is between two classes, and the vector's piles do not say theirs")
            slope, error = self.forecaster.slope(direction, contrast.plus, contrast.minus)
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
        self, budget: float, vector: ParameterVector, weights: Callable[[float], AbstractContextManager[Any]]
    ) -> float:
        if self._measured is None:
            if self.text is None:
                raise ValueError("a divergence is taken on text, and there is none")
            text = self.text()
            text.remember(self.model)
            self._measured = text
        text, norm = self._measured, vector.norm()
        if norm == 0:
            raise ValueError("the vector is zero: no alpha makes it diverge")
        sign = 1.0 if budget > 0 else -1.0

        def measure(alpha: float) -> float:
            with weights(sign * alpha):
                return statistic_of(text.divergences(self.model), self.statistic)

        return sign * solve_budget(measure, abs(budget), start=1e-3 * self.theta_norm / norm)[0]
