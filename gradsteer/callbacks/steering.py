"""Steering: gives the model each condition's weights in turn, and its own back after each."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.conditions import Condition, alpha_text, check_name, slug_of
from gradsteer.controls import CONTROLS
from gradsteer.diff import DELTA, WeightDiff, named_weights
from gradsteer.models import check_model_path, load_causal_lm
from gradsteer.reports import read_results
from gradsteer.steering import reweighted, steered
from gradsteer.transforms import TransformSpec, apply_transforms, needs_diff, parse_transform
from gradsteer.vectors import SteeringVector


class WeightSteering(L.Callback):
    """Runs the test loop's data loaders under one condition each: base, anchor, steered, controls.

    Every condition is computed from the model's original weights, which are put back byte for byte after it, also
    when it raises.

    Args:
        vectors: name to a vectors/NAME.safetensors file. Positive alpha reduces the behavior of the vector's PLUS
            pile, negative alpha raises it. From the command line: --steering.vectors.NAME FILE.
        alphas: steering coefficients, for all vectors [0.00075] or by vector {bridge: [0.1], recipe: [0.09]}.
        both_signs: apply every alpha with both signs; otherwise as given.
        transforms: transforms of every vector, in order, such as [diff_weighting] or [{low_rank: {rank: 2}},
            norm_matched]; a list of lists gives one set of conditions for each ([] is the vector itself). There are
            diff_weighting, sign_restricted, sign_agreement, top_k, only, low_rank, diff_subspaces, diff_projection,
            orthogonal_to, preconditioned and norm_matched: see docs/steering.md.
        base: the base model, a hub id or a directory: adds a base condition, and gives the weight diff.
        random_controls: random directions with the (transformed) vector's norm in every tensor, for each vector and
            set of transforms, at its largest alpha.
        sign_controls: the (transformed) vector's magnitudes with random signs, likewise.
        control_seed: of the controls; each further one takes the next.
        allow_other_model: apply vectors to a model that they were not made on.
        output_dir: the experiment's directory.
    """

    def __init__(
        self,
        output_dir: str,
        vectors: dict[str, str],
        alphas: list[float] | dict[str, list[float]] | float,
        both_signs: bool = True,
        transforms: list[Any] | None = None,
        base: str | None = None,
        random_controls: int = 1,
        sign_controls: int = 0,
        control_seed: int = 0,
        allow_other_model: bool = False,
    ) -> None:
        if not vectors:
            raise ValueError("steer needs at least one vector: --steering.vectors.NAME FILE")
        for option, value in (("random_controls", random_controls), ("sign_controls", sign_controls)):
            if value < 0:
                raise ValueError(f"steering.{option} is {value}; accepted: 0 or more")
        for name in vectors:
            check_name("a vector", name)
        if base is not None:
            check_model_path(base)
        self.output_dir, self.files, self.base = Path(output_dir), vectors, base
        self.control_seed, self.allow_other_model = control_seed, allow_other_model
        self.pipelines = _pipelines(transforms or [])
        for spec in [spec for pipeline in self.pipelines for spec in pipeline]:
            if base is None and needs_diff(spec):
                name = parse_transform(spec)[0]
                raise ValueError(f"transform {name!r} needs the weight diff: give the base model (--steering.base)")
        self.alphas = _alphas_by_vector(vectors, alphas, both_signs)
        self.conditions = self._plan({"random": random_controls, "signs": sign_controls})
        self.vectors: dict[str, SteeringVector] = {}
        self._base_weights: dict[str, Any] = {}
        self._diff: WeightDiff | None = None
        self._stack: ExitStack | None = None

    def _plan(self, controls: dict[str, int]) -> list[Condition]:
        conditions = [] if self.base is None else [Condition("base", "base", "base")]
        conditions.append(Condition("anchor", "anchor", alpha=0.0))
        self._recipes: dict[str, tuple[str, list[TransformSpec], tuple[str, int] | None]] = {}
        for vector in self.files:
            for pipeline in self.pipelines:
                labels = [parse_transform(spec)[0] for spec in pipeline]
                shown = "|".join([vector, *labels])
                for alpha in self.alphas[vector]:
                    condition = Condition(f"{shown} alpha={alpha_text(alpha)}", "steered", vector=vector)
                    condition.transforms, condition.alpha = labels, alpha
                    conditions.append(condition)
                    self._recipes[condition.name] = (vector, pipeline, None)
        for vector in self.files:
            alpha = max(self.alphas[vector], key=lambda value: (abs(value), value))
            for pipeline in self.pipelines:
                labels = [parse_transform(spec)[0] for spec in pipeline]
                for kind, index in [(kind, index) for kind, number in controls.items() for index in range(number)]:
                    name = f"{kind}-{index} of {'|'.join([vector, *labels])} alpha={alpha_text(alpha)}"
                    conditions.append(Condition(name, "control", vector=vector, transforms=labels, alpha=alpha))
                    self._recipes[name] = (vector, pipeline, (kind, self.control_seed + index))
        slugs = [condition.slug for condition in conditions]
        for condition in conditions:
            if slugs.count(condition.slug) > 1:
                raise ValueError(f"two conditions would share the file name {condition.slug!r}; rename a vector")
        return conditions

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Reads the vectors and tells the Trainer the conditions, before the model is loaded."""
        del pl_module, stage
        for condition in self.conditions:
            if (self.output_dir / "stages" / f"evaluate-{condition.slug}.json").exists():
                # the piles may come from them: losing them would leave vectors that nobody can make again
                raise ValueError(
                    f"condition {condition.name!r} would overwrite the responses of `evaluate --name {condition.slug}` "
                    f"in {str(self.output_dir)!r}; give that evaluation another --name, such as "
                    f"{condition.slug}-attribution, or steer another --output_dir"
                )
        self.vectors = {name: SteeringVector.load(path) for name, path in self.files.items()}
        trainer.conditions = self.conditions  # type: ignore[attr-defined]
        trainer.datamodule.num_passes = len(self.conditions)  # type: ignore[attr-defined]
        rank_zero_info(f"{len(self.conditions)} conditions: {', '.join(c.name for c in self.conditions)}")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Checks that the vectors fit the model, and loads the base."""
        for name, vector in self.vectors.items():
            try:
                with steered(pl_module.model, vector, 0.0, allow_other_model=self.allow_other_model):
                    pass  # checks names, shapes and the fingerprint before anything is sampled
            except ValueError as error:
                hint = " (--steering.allow_other_model true)" if "allow_other_model" in str(error) else ""
                raise ValueError(f"steering.vectors.{name} ({self.files[name]}): {error}{hint}") from error
        if trainer.is_global_zero:
            self._remove_stale_responses()
        if self.base is not None:
            # the revision is the anchor's, not the base's
            base = load_causal_lm(self.base, trust_remote_code=pl_module.loading["trust_remote_code"])
            self._base_weights = named_weights(base)
            self._diff = WeightDiff.between(named_weights(pl_module.model), self._base_weights)
        for name, vector in self.vectors.items():
            for pipeline in self.pipelines:
                try:
                    apply_transforms(vector, self._diff, pipeline)  # refuses before anything is sampled
                except ValueError as error:
                    raise ValueError(f"steering.vectors.{name}: {error}") from error
        if trainer.is_global_zero and self._diff is not None:
            path = self._diff.save(self.output_dir / "vectors" / f"{DELTA}.safetensors")
            rank_zero_info(f"weight diff Delta = anchor - base: norm {self._diff.norm():.4g} -> {path}")

    def _remove_stale_responses(self) -> None:
        """Removes the responses of an earlier, overwritten report's conditions that this one does not have."""
        report = self.output_dir / "results.json"
        if report.is_file():
            names = {condition["name"] for condition in read_results(report)["conditions"]}
            for name in names - {condition.name for condition in self.conditions}:
                (self.output_dir / "responses" / f"{slug_of(name)}.jsonl").unlink(missing_ok=True)

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Enters the condition at its first batch."""
        del trainer, batch
        if batch_idx != 0:
            return
        self._restore()
        stack = ExitStack()
        step = stack.enter_context(self._weights(pl_module.model, self.conditions[dataloader_idx]))
        self._stack = stack
        if step is not None:
            condition = self.conditions[dataloader_idx]
            condition.relative_norm = step.relative_norm
            condition.retained_fraction, condition.step_error = step.retained_fraction, step.step_error

    def _weights(self, model: Any, condition: Condition) -> AbstractContextManager[Any]:
        if condition.kind == "base":
            return reweighted(model, self._base_weights)
        if condition.kind == "anchor" or condition.alpha is None:
            return nullcontext()
        name, pipeline, control = self._recipes[condition.name]
        vector = apply_transforms(self.vectors[name], self._diff, pipeline)
        if control is not None:
            vector = CONTROLS[control[0]](vector, seed=control[1], label=name)
        return steered(model, vector, condition.alpha, allow_other_model=self.allow_other_model)

    def _restore(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Puts the original weights back."""
        del trainer, pl_module
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Puts the original weights back."""
        del trainer, pl_module, exception
        self._restore()


def _alphas_by_vector(
    vectors: dict[str, str], alphas: list[float] | dict[str, list[float]] | float, both_signs: bool
) -> dict[str, list[float]]:
    alphas = [float(alphas)] if isinstance(alphas, int | float) else alphas
    by_vector = alphas if isinstance(alphas, dict) else dict.fromkeys(vectors, alphas)
    if set(by_vector) != set(vectors):
        raise ValueError(
            f"steering.alphas names the vectors {', '.join(by_vector)}; the vectors are: {', '.join(vectors)}"
        )
    planned = {}
    for name, values in by_vector.items():
        if not values:
            raise ValueError(f"steering.alphas of vector {name!r} is empty; accepted: one number or more")
        bad = [value for value in values if not abs(value) < float("inf") or value == 0]
        if bad:
            raise ValueError(f"steering.alphas of vector {name!r} holds {bad[0]}; accepted: finite numbers but 0")
        signed = [sign * abs(value) for value in values for sign in (1, -1)] if both_signs else values
        planned[name] = list(dict.fromkeys(float(value) for value in signed))
    return planned


def _pipelines(transforms: list[Any]) -> list[list[TransformSpec]]:
    nested = bool(transforms) and all(isinstance(spec, list) for spec in transforms)
    pipelines: list[list[TransformSpec]] = transforms if nested else [transforms]
    for spec in (spec for pipeline in pipelines for spec in pipeline):
        parse_transform(spec)
    return pipelines
