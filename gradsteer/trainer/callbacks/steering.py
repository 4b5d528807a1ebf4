"""Steering: gives the model each condition's weights in turn and restores its own after each."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from gradsteer.models.base_weights import check_base
from gradsteer.models.loading import check_model_path
from gradsteer.records import file_digest
from gradsteer.reports.condition_selection import Selection, choose, read_forecast
from gradsteer.steering.condition_plan import (
    Baselines,
    Controls,
    Plan,
    Recipe,
    controls_at_largest,
    identity_of,
    plan_conditions,
)
from gradsteer.steering.condition_weights import ConditionWeights, StepOptions, load_vectors
from gradsteer.steering.conditions import Condition, check_names
from gradsteer.steering.doses import DoseOptions, Doses, KLStatistic
from gradsteer.steering.sampled_step import SampledStep
from gradsteer.steering.weight_steering import Rounding, holding, steered
from gradsteer.trainer.base_model import read_base
from gradsteer.trainer.dose_alphas import DoseFinder
from gradsteer.trainer.precision_check import check_precision
from gradsteer.trainer.prompt_overlap import Sources, read_sources, refuse_overlap
from gradsteer.trainer.session import data_of, session_of
from gradsteer.trainer.step_checks import check_steps
from gradsteer.vectors.combinations import is_combination
from gradsteer.vectors.contrast import Contrast
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import TransformSpec, needs_diff, parse_transform
from gradsteer.vectors.weight_diff import WeightDiff


class WeightSteering(L.Callback):
    """Runs each of the test loop's data loaders under one condition: base, anchor, steered, control or baseline.

    Every condition is computed from the model's original weights, which are restored byte for byte afterwards, even
    on an error. The dose can be given in five units, alone or together. Each is a list for all vectors, or a mapping
    by vector such as {bridge: [0.1], recipe: [0.09]}.

    Args:
        vectors: vector name to a vectors/NAME.safetensors file, or to a combination such as "bridge + 0.5 * recipe".
            Positive alpha reduces the behavior of the vector's PLUS pile, negative alpha raises it. On the command
            line: --steering.vectors.NAME FILE.
        alphas: doses as steering coefficients.
        relative_norms: doses as relative step sizes, alpha * ||V|| / ||theta||.
        log_odds_shifts: doses as predicted changes in the log-odds of the PLUS pile's class against the MINUS pile's,
            for example -0.75; negative values reduce the behavior. Alpha comes from the vector's calibration
            (attribute --model.calibrate), or from forecasting.responses if the vector has none or is transformed.
        kl_budgets: doses as KL divergence from the anchor's next-token distribution, in nats per token, measured on
            forecasting.responses or else on evaluation.heldout. The sign is alpha's.
        kl_statistic: which statistic of the per-token divergences must meet the budget: "mean" or "p95" (95th
            percentile).
        target_rates: doses as target rates of the vector's behavior, for example 0.05. Solved on the forecast curve,
            so they need forecasting.responses.
        both_signs: apply every dose except target rates with both signs; if false, use the signs as given.
        curve_points: add this many doses on each side of 0, evenly spaced up to the largest of alphas (or else of
            relative_norms or log_odds_shifts), for a forecast curve.
        behaviors: vector name to its behavior, if its piles' verdicts do not determine it. Log-odds shifts of a vector
            whose piles do not say their verdicts (files, filters with also) are between replies with and without it.
        transforms: transforms applied in order to every vector, such as [diff_weighting] or [{low_rank: {rank: 2}},
            norm_matched]. A list of lists gives one set of conditions per inner list ([] is the plain vector).
            Available: diff_weighting, sign_restricted, sign_agreement, top_k, only, low_rank, diff_subspaces,
            diff_projection, orthogonal_to, preconditioned and norm_matched; see docs/steering.md.
        base: the base model, a hub id or a directory. Adds a base condition and provides the weight diff.
        on_base: also apply every steered condition's step to the base, to test whether the direction carries over.
        anchor_resamples: how many times to sample the anchor again with fresh seeds, to show how much rates vary from
            sampling alone.
        seed_faithful: allow evaluation on the prompts that a vector was made from, as in the research note. Refused
            by default, because effects look larger there.
        random_controls: number of Gaussian random directions per vector and set of transforms, matched to the
            (transformed) vector's norm in every tensor and applied at its largest dose.
        sign_controls: number of controls with the (transformed) vector's magnitudes and random signs, applied at its
            largest dose.
        permuted_controls: number of vectors from permuted pile labels, at the vector's norm and largest dose. Made by
            attribute --data.permutations.
        control_vectors: control name to a vector file, such as the length vector; applied at the vector's norm and
            largest dose.
        control_seed: seed of the first random control; each further control uses the next integer.
        controls_both_signs: run controls at the largest dose of each sign; by default only at the positive alpha, if
            there is one.
        graddiff_steps: baselines: numbers of GradDiff steps, from attribute --graddiff.steps.
        delta_scales: baselines: values of k for anchor - k * Delta, which subtracts the weight diff without any
            gradient.
        system_prompts: baselines: name to a system prompt for the anchor.
        forecast: a forecast.json of the same conditions. Its alphas are used and its rates are reported beside the
            realised ones.
        select: sample and judge only the steered conditions that the forecast rates best, such as {rule:
            target_rate, rate: 0.05} or {rule: selectivity, max_kl: 0.02}. Controls follow them; baselines stay.
        rounding: how weights in half precision are rounded: "nearest", or "stochastic", which preserves small steps
            on average.
        rounding_seed: seed for stochastic rounding.
        min_retained: refuse a step if less than this fraction of it survives rounding; 0 accepts any.
        allow_other_model: apply vectors to a model other than the one they were made on.
        allow_imprecise: in half precision, run steps that change the log-probabilities of 32 responses' tokens
            otherwise than the same steps in float32 do (slope outside 0.95 to 1.05, or correlation under 0.95). They
            are refused by default: the largest and the smallest step are compared before anything is sampled.
        output_dir: the experiment's directory.
    """

    def __init__(
        self,
        output_dir: str,
        vectors: dict[str, str],
        alphas: Doses = None,
        relative_norms: Doses = None,
        log_odds_shifts: Doses = None,
        kl_budgets: Doses = None,
        kl_statistic: KLStatistic = "mean",
        target_rates: Doses = None,
        both_signs: bool = True,
        curve_points: int = 0,
        behaviors: dict[str, str] | None = None,
        transforms: list[Any] | None = None,
        base: str | None = None,
        on_base: bool = False,
        anchor_resamples: int = 1,
        seed_faithful: bool = False,
        random_controls: int = 1,
        sign_controls: int = 0,
        permuted_controls: int = 0,
        control_vectors: dict[str, str] | None = None,
        control_seed: int = 0,
        controls_both_signs: bool = False,
        graddiff_steps: list[int] | None = None,
        delta_scales: list[float] | None = None,
        system_prompts: dict[str, str] | None = None,
        forecast: str | None = None,
        select: Selection | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        min_retained: float = 0.5,
        allow_other_model: bool = False,
        allow_imprecise: bool = False,
    ) -> None:
        if not vectors:
            raise ValueError("steer needs at least one vector: --steering.vectors.NAME FILE")
        check_names("a vector", vectors)
        for name in behaviors or {}:
            if name not in vectors:
                raise ValueError(f"steering.behaviors names {name!r}; the vectors are: {', '.join(vectors)}")
        if base is not None:
            check_model_path(base)
        elif on_base or delta_scales:
            raise ValueError("steering.on_base and delta_scales need the base model: give --steering.base")
        if select is not None and forecast is None:
            raise ValueError("steering.select chooses from a forecast: give --steering.forecast FORECAST_JSON")
        if anchor_resamples < 0:
            raise ValueError(f"steering.anchor_resamples is {anchor_resamples}; accepted: 0 or more")
        self.output_dir, self.sources, self.base = Path(output_dir), vectors, base
        self.behaviors, self.seed_faithful = behaviors or {}, seed_faithful
        self.pipelines = _pipelines(transforms or [])
        for spec in [spec for pipeline in self.pipelines for spec in pipeline]:
            if base is None and needs_diff(spec):
                name = parse_transform(spec)[0]
                raise ValueError(f"transform {name!r} needs the weight diff: give the base model (--steering.base)")
        self.forecast, self.select = None if forecast is None else read_forecast(forecast), select
        self.steps = StepOptions(rounding, rounding_seed, min_retained, allow_other_model)
        self.allow_imprecise = allow_imprecise
        self.doses = DoseOptions(
            *(alphas, relative_norms, log_odds_shifts, kl_budgets, target_rates, kl_statistic),
            *(both_signs, curve_points),
        )
        self.controls = Controls(
            *(random_controls, sign_controls, permuted_controls, control_vectors, control_seed),
            both_signs=controls_both_signs,
        )
        self._planned = partial(
            plan_conditions,
            {name: None if is_combination(text, vectors) else text for name, text in vectors.items()},
            self.doses.plan(list(vectors)),
            self.pipelines,
            self.controls,
            has_base=base is not None,
            on_base=on_base,
            baselines=Baselines(graddiff_steps or (), delta_scales or (), system_prompts),
            anchor_resamples=anchor_resamples,
        )
        self._first: Plan = self._planned()  # duplicate names and missing files are reported here
        self.vectors: dict[str, SteeringVector] = {}
        self.prompt_sources: Sources = {}
        self.contrasts: dict[str, Contrast] = {}
        self.settings: dict[str, Any] = {"diff": None}
        self._finder: DoseFinder
        self._weights: ConditionWeights
        self._held, self._stack = ExitStack(), ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Reads the vectors and plans the conditions, before the model is loaded."""
        session = session_of(trainer)
        if self.base is not None:
            check_base(pl_module.loading, self.base)
        for condition, _ in self._first:
            if condition.system_prompt is not None:
                data_of(trainer).check_system_prompt(condition.name, condition.system_prompt)
        self.vectors = load_vectors(self.sources)
        for name, vector in self.vectors.items():
            self.contrasts[name] = Contrast.read(vector.metadata, self.behaviors.get(name))
        responses = None if session.forecasting is None else session.forecasting.responses
        prompts = frozenset() if responses is None else responses.prompt_digests
        self.prompt_sources = read_sources(self.vectors, self._first)  # missing or foreign files are reported here
        refuse_overlap(self.prompt_sources, prompts, faithful=self.seed_faithful)
        self._finder = DoseFinder(self.sources, self.vectors, self.contrasts, self.forecast)
        plan = self._first
        if self.select is not None and self.forecast is not None:
            behaviors = {name: contrast.behavior for name, contrast in self.contrasts.items()}
            kept = set(choose(self.forecast["conditions"], behaviors, self.select))
            shown = ", ".join(condition.name for condition, _ in plan if condition.name in kept)
            rank_zero_info(f"chosen by {self.select.rule}: {shown}")
            plan = self._planned(chosen=kept)
        session.steering = self
        session.plan = [(replace(c, contrast=self.contrasts.get(str(c.vector))), recipe) for c, recipe in plan]
        data_of(trainer).num_passes = len(plan)
        rank_zero_info(f"{len(plan)} conditions: {', '.join(c.name for c in session.conditions)}")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Checks that the vectors fit the model, solves the doses for alpha, and reads the base."""
        session = session_of(trainer)
        for name, vector in self.vectors.items():
            try:
                with steered(pl_module.model, vector, 0.0, allow_other_model=self.steps.allow_other_model):
                    pass  # checks names, shapes and the fingerprint before anything is sampled
            except ValueError as error:
                hint = " (--steering.allow_other_model true)" if "allow_other_model" in str(error) else ""
                raise ValueError(f"steering.vectors.{name} ({self.sources[name]}): {error}{hint}") from error
        weights = self._weights = self._read_base(trainer, pl_module)
        rounding = {"rounding": self.steps.rounding, "rounding_seed": self.steps.seed}
        self.settings |= {"dtype": pl_module.dtype_name, **rounding}
        self._finder.known.check_settings(self.settings)
        for name in self.vectors:
            for pipeline in self.pipelines:
                try:
                    weights.transformed(name, tuple(pipeline))  # refuses before anything is sampled
                except ValueError as error:
                    raise ValueError(f"steering.vectors.{name}: {error}") from error
        half = pl_module.dtype_name in ("bfloat16", "float16")
        if self.steps.rounding == "stochastic" and not half:
            raise ValueError(f"steering.rounding stochastic has no effect on weights in {pl_module.dtype_name}")
        if self.allow_imprecise and not half:
            raise ValueError(f"steering.allow_imprecise has no effect on weights in {pl_module.dtype_name}")
        touched = None if self.base is not None else {name for vector in self.vectors.values() for name in vector}
        self._held.enter_context(holding(pl_module.model, touched))
        plan = self._finder.find(trainer, pl_module, session.plan, weights, self.doses.kl_statistic)
        session.plan = controls_at_largest(plan, both_signs=self.controls.both_signs)
        self._finder.known.check_conditions(session.plan)
        taken = check_steps(session.plan, weights, half=half, min_retained=self.steps.min_retained)
        session.precision_check = check_precision(trainer, pl_module, taken, weights, allow=self.allow_imprecise)

    def _read_base(self, trainer: L.Trainer, pl_module: Any) -> ConditionWeights:
        """Reads the base, if any, and returns what sets each condition's weights."""
        base: Mapping[str, Tensor] | None = None
        diff: WeightDiff | None = None
        if self.base is not None:
            base, diff, path = read_base(trainer, pl_module, self.base, self.output_dir)
            self.settings["diff"] = file_digest(path)
        return ConditionWeights(pl_module.model, self.vectors, diff=diff, base=base, options=self.steps)

    def vector_digests(self) -> dict[str, str]:
        """Vector -> digest of its file, or the text of a combination."""
        return self._finder.digests()

    def sampled_step(self, condition: Condition, recipe: Recipe | None, anchor: str) -> SampledStep | None:
        """What the rows of a condition's responses say of its weights; None where they say nothing."""
        rounding = self._weights.rounding
        return SampledStep.of(condition, recipe, self.sources, self._finder.digests(), anchor, rounding)

    def curves(self) -> dict[str, Any]:
        """What is known of the forecasts' curves, by vector and transforms, as plain values."""
        return {curve.name: curve.to_dict() for curve in self._finder.curves.values()}

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """At a condition's first batch: applies its weights, measures the step and makes its forecast."""
        if batch_idx != 0:
            return
        self.put_weights_back()
        session = session_of(trainer)
        condition, recipe = session.plan[dataloader_idx]
        result = session.result(dataloader_idx)
        result.step = self._stack.enter_context(self._weights.of(condition, recipe))
        if result.step is not None:
            result.step.measure()  # while the weights are in place
        self._finder.predict(trainer, pl_module, dataloader_idx)

    def identity(self, condition: Condition, recipe: Recipe | None) -> dict[str, Any]:
        """Everything that determines a condition's weights, as plain values; requires the doses' alphas."""
        return {**identity_of(condition, recipe, self.sources, self.vector_digests()), **self.settings}

    @contextmanager
    def at_base(self) -> Iterator[None]:
        """Within the block the model has the base's weights, afterwards its own. Leaves any active condition first."""
        self.put_weights_back()
        with self._weights.of(Condition("base", "base", "base"), None):
            yield

    def put_weights_back(self) -> None:
        """Leaves the active condition, which restores the model's own weights."""
        stack, self._stack = self._stack, ExitStack()
        stack.close()

    def release(self) -> None:
        """Restores the original weights and frees their copy."""
        self.put_weights_back()
        self._held.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Restores the original weights."""
        self.release()

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Restores the original weights if the report has not done so."""
        self.release()


def _pipelines(transforms: list[Any]) -> list[list[TransformSpec]]:
    nested = bool(transforms) and all(isinstance(spec, list) for spec in transforms)
    pipelines: list[list[TransformSpec]] = transforms if nested else [transforms]
    for spec in (spec for pipeline in pipelines for spec in pipeline):
        parse_transform(spec)
    return pipelines
