"""Solves the requested doses for alpha, and predicts each condition."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.evaluation.text_divergence import TextDivergence
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.curve import VectorCurve
from gradsteer.forecast.dose_solver import DoseSolver
from gradsteer.forecast.forecaster import Direction, Forecaster
from gradsteer.forecast.judged_responses import behind_system_prompt
from gradsteer.forecast.kl_budget import Statistic
from gradsteer.forecast.target_rate import BEYOND, linear_alpha
from gradsteer.models.exact import doubled
from gradsteer.progress import progress, working
from gradsteer.records import known_digest
from gradsteer.steering.condition_plan import Plan, Recipe
from gradsteer.steering.condition_weights import ConditionWeights
from gradsteer.steering.conditions import Condition
from gradsteer.steering.doses import Dose
from gradsteer.trainer.known_forecast import KnownForecast
from gradsteer.trainer.run_passes import RunPasses
from gradsteer.trainer.session import needed, session_of, shows_progress
from gradsteer.trainer.source_scores import pool_sources
from gradsteer.vectors.combinations import is_combination
from gradsteer.vectors.contrast import Contrast
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import parse_transform

_Key = tuple[str, str]  # a vector and its transforms


class DoseFinder:
    """Finds the alphas and predictions for a plan of conditions.

    Args:
        sources: vector -> its file, or the expression of a combination.
        vectors: vectors by name.
        contrasts: vector -> the classes that it contrasts.
        forecast: the content of a forecast.json, or None.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        vectors: Mapping[str, SteeringVector],
        contrasts: Mapping[str, Contrast],
        forecast: dict[str, Any] | None,
    ) -> None:
        self.sources, self.vectors, self.contrasts = sources, vectors, contrasts
        self.known = KnownForecast(forecast)
        self._digests: dict[str, str] | None = None
        self.curves: dict[_Key, VectorCurve] = {}
        self._slopes: dict[str, Direction] = {}  # of controls, where asked for
        self._sampling = (1.0, 1.0)
        self._passes: RunPasses
        self._forecaster: Forecaster | None = None
        self._pooled: tuple[_Key, dict[float, np.ndarray]] | None = None
        self._calibrations = {
            name: None if is_combination(source, sources) else Calibration.read(vectors[name].metadata)
            for name, source in sources.items()
        }
        if forecast is not None:
            self.known.check_vectors(sources, self.digests())

    def digests(self) -> dict[str, str]:
        """Vector -> digest of its file, or the expression of a combination."""
        if self._digests is None:  # computed once: the files are as large as the model
            texts = {name: is_combination(source, self.sources) for name, source in self.sources.items()}
            self._digests = {n: s if texts[n] else known_digest(s) for n, s in self.sources.items()}
        return self._digests

    def find(
        self, trainer: L.Trainer, pl_module: Any, plan: Plan, weights: ConditionWeights, statistic: Statistic
    ) -> Plan:
        """Returns the plan with every condition's alpha; scores the anchor's responses if there are any.

        Raises:
            ValueError: a dose cannot be solved; names the condition.
        """
        self.known.check_model(pl_module)
        forecasting = session_of(trainer).forecasting
        forecaster = self._forecaster = None if forecasting is None else forecasting.start(trainer, pl_module)
        if forecasting is None:
            how = (pl_module.sampling.temperature, pl_module.sampling.top_p)
        else:
            how = forecasting.sampling(pl_module)
        self._sampling = how
        if forecaster is not None:
            self._pooled = pool_sources(forecaster, weights, self.digests(), shown=shows_progress(trainer))
        self._passes = RunPasses(trainer, pl_module)
        norms = (float(doubled(p.detach()).norm()) ** 2 for p in pl_module.model.parameters())
        solver = DoseSolver(
            pl_module.model,
            math.sqrt(sum(norms)),
            how[0],
            how[1],
            lambda: TextDivergence(
                _text(trainer, forecaster),
                int(pl_module.tokenizer.pad_token_id),
                temperature=how[0] or 1.0,  # greedy replies are compared by the model's own distribution
            ),
            statistic,
            self._passes.kept,
        )
        with working("doses", shown=shows_progress(trainer)):
            found = self._solve_all(trainer, plan, solver, weights)
        for key, curve in self.curves.items():  # while the model has the anchor's weights
            curve.close([needed(c.alpha) for c, r in found if r and self._is_curved(c, r) and _key(r) == key])
            rank_zero_info(str(curve))
            if curve.no_direction is not None:
                rank_zero_warn(f"curve of {curve.name}: no linear form: {curve.no_direction}")
        if any(r and r.dose and r.dose.kind != "alpha" for _, r in found):
            own = [c for c, r in found if r and r.source == "vector" and not r.on_base]
            rank_zero_info("doses: " + ", ".join(f"{c.name}: alpha {c.alpha:+.4g}" for c in own))
        return found

    def _solve_all(self, trainer: L.Trainer, plan: Plan, solver: DoseSolver, weights: ConditionWeights) -> Plan:
        """The plan with every alpha."""
        forecasting = session_of(trainer).forecasting
        alphas: dict[tuple[_Key, Dose], float] = {}
        found: Plan = []
        for condition, recipe in plan:
            if recipe is None:
                found.append((condition, recipe))
                continue
            if self._is_curved(condition, recipe) and _key(recipe) not in self.curves:
                self._draw(trainer, plan, condition, recipe, solver, weights)
            known = condition.name in self.known.rows
            if forecasting is not None and forecasting.control_slopes and condition.kind == "control" and not known:
                self._take_slope(trainer, condition, recipe, weights)
            alpha = weights.fixed_alpha(recipe)
            if alpha is None and recipe.dose is not None:
                key = (_key(recipe), recipe.dose)
                if key not in alphas:
                    alphas[key] = self._alpha(condition, recipe, solver, weights)
                alpha = alphas[key]
            found.append((replace(condition, alpha=alpha), recipe))
        return found

    def _is_curved(self, condition: Condition, recipe: Recipe) -> bool:
        """Whether the condition's forecast is read from a vector's curve."""
        own = recipe.source == "vector" and not recipe.on_base
        return own and self._forecaster is not None and condition.name not in self.known.rows

    def _draw(
        self,
        trainer: L.Trainer,
        plan: Plan,
        condition: Condition,
        recipe: Recipe,
        solver: DoseSolver,
        weights: ConditionWeights,
    ) -> None:
        """Scores the responses along a transformed vector, for all of its alphas that are known before."""
        name, key = str(recipe.vector), _key(recipe)

        def vector() -> SteeringVector:
            return weights.transformed(name, recipe.pipeline)

        curve = self.curves[key] = VectorCurve(
            "|".join([name, *(parse_transform(spec)[0] for spec in recipe.pipeline)]),
            needed(self._forecaster),
            lambda alpha: weights.at(vector(), alpha),
            vector,
            shown=shows_progress(trainer),
            scores=self._pooled[1] if self._pooled is not None and self._pooled[0] == key else None,
            keep=self._passes.along(condition, recipe, needed(self._forecaster).responses, self._sampling),
        )
        calibration = None if recipe.pipeline else self._calibrations[name]
        of_curve = [(c, r) for c, r in plan if r and self._is_curved(c, r) and _key(r) == key]
        known = [(c, r) for c, r in of_curve if r.dose and solver.needs_no_curve(r.dose, calibration)]
        curve.cover([self._alpha(c, r, solver, weights) for c, r in known])
        guesses = []
        for _, other in of_curve:
            behavior, dose = self.contrasts[name].behavior, needed(other.dose)
            if dose.kind == "target_rate" and behavior is not None:
                with suppress(ValueError):  # said with the condition's name, when it is solved
                    guesses.append(BEYOND * linear_alpha(curve, behavior, dose.value))
        curve.cover(guesses)  # all at once: a range that grows bit by bit takes more passes

    def _take_slope(self, trainer: L.Trainer, condition: Condition, recipe: Recipe, weights: ConditionWeights) -> None:
        """Computes the responses' derivatives along a control's direction, once."""
        forecaster, key = self._forecaster, _direction_of(recipe)
        if forecaster is None or key in self._slopes:
            return
        with progress(f"slope of {condition.name}", unit="batch", shown=shows_progress(trainer)) as tick:
            self._slopes[key] = forecaster.along(weights.model, weights.direction(recipe), tick=tick)

    def _alpha(self, condition: Condition, recipe: Recipe, solver: DoseSolver, weights: ConditionWeights) -> float:
        forecast = self.known.rows.get(condition.name)
        if forecast is not None:
            return float(forecast["alpha"])
        name, vector = str(recipe.vector), weights.transformed(str(recipe.vector), recipe.pipeline)
        try:
            return solver.solve(
                needed(recipe.dose),
                vector,
                key=self._passes.direction(condition, recipe),
                calibration=None if recipe.pipeline else self._calibrations[name],
                contrast=self.contrasts[name],
                curve=self.curves.get(_key(recipe)),
                weights=lambda alpha: weights.at(vector, alpha),
            )
        except ValueError as error:
            raise ValueError(f"condition {condition.name!r}: {error}") from error

    def predict(self, trainer: L.Trainer, pl_module: Any, number: int) -> None:
        """Records the prediction for a condition; the model must have the condition's weights.

        Args:
            trainer: the Trainer whose session stores the prediction.
            pl_module: the module that holds the model.
            number: the condition's place in the plan.
        """
        session = session_of(trainer)
        condition, recipe = session.plan[number]
        known = self.known.rows.get(condition.name)
        if known is not None:
            session.result(number).predicted = known["predicted"]
            return
        predicted: dict[str, Any] | None = None
        forecasting, forecaster = session.forecasting, self._forecaster
        contrast = condition.contrast or Contrast()
        own = recipe is not None and recipe.source == "vector" and not recipe.on_base
        alpha = condition.alpha or 0.0
        if forecaster is not None and forecasting is not None:
            if own and recipe is not None:
                forecast = self.curves[_key(recipe)].forecast(alpha, contrast.plus, contrast.minus)
            else:
                scores = self._scores(trainer, pl_module, condition, recipe)
                slope = None if recipe is None else self._slopes.get(_direction_of(recipe))
                forecast = forecaster.forecast(
                    scores, direction=slope, alpha=alpha, plus=contrast.plus, minus=contrast.minus
                )
            predicted = {"role": condition.kind, **forecast.to_dict()}
            session.forecasts[number] = forecast
            if forecast.effective_sample_size == 0:
                rank_zero_warn(f"condition {condition.name!r}: these weights allow no response; no forecast")
            solved = own and condition.asked is not None and condition.asked["kind"] == "target_rate"
            behavior = contrast.behavior
            solved = solved and (behavior not in forecast.rates or not forecast.rates[behavior].reliable)
            if solved and not forecast.reliable:
                rank_zero_warn(
                    f"condition {condition.name!r}: at its alpha the effective sample size is "
                    f"{forecast.effective_sample_size:.0f}; the rate was solved on the linear approximation"
                )
        calibration = self._calibrations.get(str(condition.vector))
        fits = calibration is not None and calibration.is_of(*self._sampling)
        if own and recipe is not None and not recipe.pipeline and calibration is not None and fits:
            error = abs(alpha) * calibration.standard_error
            said = {"calibrated_log_odds_shift": calibration.shift(alpha), "calibrated_standard_error": error}
            predicted = {**(predicted or {"role": condition.kind}), **said}
        session.result(number).predicted = predicted

    def _scores(self, trainer: L.Trainer, pl_module: Any, condition: Condition, recipe: Recipe | None) -> np.ndarray:
        """The responses' log-probabilities under the condition's weights, which the model has, and system prompt."""
        forecaster, scorer = needed(self._forecaster), None
        if condition.system_prompt is not None:
            examples = behind_system_prompt(forecaster.responses, pl_module.tokenizer, condition.system_prompt)
            scorer = needed(session_of(trainer).forecasting).scorer(trainer, pl_module, examples)
        elif condition.model == "anchor" and recipe is None:
            return forecaster.anchor_scores
        total, made = len(scorer or forecaster.scorer), forecaster.num_passes + 1
        keep = self._passes.under(condition, recipe, forecaster.responses, self._sampling)
        with progress(condition.name, total=total, unit="batch", shown=shows_progress(trainer)) as tick:
            scores = keep(condition.alpha or 0.0, lambda: forecaster.score(scorer, tick=tick))
        forecaster.num_passes = made  # a kept pass counts, so that a resumed run says the same
        return scores


def _key(recipe: Recipe) -> _Key:
    return str(recipe.vector), repr(recipe.pipeline)


def _direction_of(recipe: Recipe) -> str:
    """What tells a control's direction from others'."""
    return repr(replace(recipe, dose=None))


def _text(trainer: L.Trainer, forecaster: Forecaster | None) -> Any:
    """The text for divergences: the forecast's responses (the anchor's own where there are), or else held-out text."""
    if forecaster is not None:
        return forecaster.responses.of_anchor or forecaster.responses.examples
    judging = session_of(trainer).judging
    if judging is None or not judging.heldout_examples:
        raise ValueError("a divergence is taken on text: give --forecasting.responses or --evaluation.heldout FILE")
    return judging.heldout_examples
