"""The plan of an experiment: its conditions, and the recipe for each one's weights. No tensors are read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradsteer.records import known_digest
from gradsteer.steering.conditions import Condition, ModelKind, check_names
from gradsteer.steering.doses import Dose, largest_doses
from gradsteer.vectors.combinations import names_in
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import TransformSpec, parse_transform

Source = Literal["vector", "random", "signs", "file", "graddiff", "delta"]


@dataclass(frozen=True)
class Recipe:
    """How a condition's weights are made.

    Attributes:
        source: the ``vector`` itself; a control for it (``random`` numbers, random ``signs``, or another vector's
            ``file`` at its norm); ``graddiff`` steps; or the weight diff, ``delta``.
        vector: the vector's name, None for ``delta``.
        pipeline: transforms, in order.
        dose: the dose; None for ``graddiff``, whose file has its alpha, and for ``delta``.
        seed: seed for random numbers.
        file: another vector's file.
        transformed: whether the other vector gets the transforms too.
        scale: for ``delta``: the condition is anchor - scale * Delta.
        on_base: whether the step is added to the base's weights instead of the anchor's.
    """

    source: Source
    vector: str | None = None
    pipeline: tuple[TransformSpec, ...] = ()
    dose: Dose | None = None
    seed: int = 0
    file: str | None = None
    transformed: bool = True
    scale: float = 0.0
    on_base: bool = False


_MOST_CONTROLS = 10_000  # of a kind and vector: each is a condition, planned before any runs


@dataclass(frozen=True)
class Controls:
    """Which controls each vector gets, at its largest dose or doses.

    Attributes:
        random: number of Gaussian directions.
        signs: number of random sign flips.
        permuted: number of vectors from permuted pile labels; combinations of vectors have none.
        files: name -> vector file, applied at each vector's norm.
        seed: seed of the first random control; each further one uses the next integer.
        both_signs: run controls at the largest dose of each sign, not only at the positive one.
    """

    random: int = 0
    signs: int = 0
    permuted: int = 0
    files: Mapping[str, str] | None = None
    seed: int = 0
    both_signs: bool = False

    def __post_init__(self) -> None:
        for option, value in (("random", self.random), ("sign", self.signs), ("permuted", self.permuted)):
            if not 0 <= value <= _MOST_CONTROLS:
                raise ValueError(f"steering.{option}_controls is {value}; accepted: 0 or more, up to {_MOST_CONTROLS}")
        check_names("a control", self.files or {})
        if self.seed and not self.random and not self.signs:
            raise ValueError("steering.control_seed has no effect without random_controls or sign_controls")


@dataclass(frozen=True)
class Baselines:
    """The baselines.

    Attributes:
        graddiff: numbers of GradDiff steps, for each vector that is not a combination.
        delta_scales: values of k for anchor - k * Delta.
        system_prompts: name -> text.
    """

    graddiff: Sequence[int] = ()
    delta_scales: Sequence[float] = ()
    system_prompts: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_names("a system prompt", self.system_prompts or {})
        for name, text in (self.system_prompts or {}).items():
            if not text.strip():
                raise ValueError(f"steering.system_prompts.{name} is empty; accepted: a text")
        for steps in self.graddiff:
            if steps < 1:
                raise ValueError(f"steering.graddiff_steps holds {steps}; accepted: 1 or more")
        for scale in self.delta_scales:
            if not abs(scale) < float("inf") or scale == 0:
                raise ValueError(f"steering.delta_scales holds {scale}; accepted: finite numbers other than 0")


Plan = list[tuple[Condition, Recipe | None]]


def plan_conditions(
    vectors: Mapping[str, str | None],
    doses: Mapping[str, Sequence[Dose]],
    pipelines: Sequence[Sequence[TransformSpec]],
    controls: Controls,
    *,
    has_base: bool,
    on_base: bool,
    baselines: Baselines | None = None,
    chosen: Collection[str] | None = None,
    anchor_resamples: int = 0,
) -> Plan:
    """The conditions in the report's order: base, anchor, resampled anchor, steered, controls, baselines.

    Args:
        vectors: name -> file, or None for a combination of other vectors.
        doses: vector -> its doses.
        pipelines: sets of transforms; each gives one set of conditions.
        controls: the controls for each vector.
        has_base: whether there is a base condition.
        on_base: also add every steered condition's step to the base.
        baselines: the baselines; none by default.
        chosen: names of the steered conditions to keep, all by default. A vector with none left gets no controls.
        anchor_resamples: how many times the anchor is sampled again with fresh seeds.

    Raises:
        ValueError: two conditions would share a name or a file name, or a control's file is missing.
    """
    plan: Plan = [(Condition("base", "base", "base"), None)] if has_base else []
    plan.append((Condition("anchor", "anchor", alpha=0.0), None))
    for number in range(1, anchor_resamples + 1):
        name = "anchor resampled" if number == 1 else f"anchor resampled-{number}"
        plan.append((Condition(name, "control", alpha=0.0, resample=number), None))
    for name in vectors:
        for pipeline in pipelines:
            plan += [_steered(Recipe("vector", name, tuple(pipeline), dose)) for dose in doses[name]]
    if chosen is not None:
        plan = [(c, recipe) for c, recipe in plan if recipe is None or c.name in chosen]
    if on_base:
        added = [recipe for _, recipe in plan if recipe is not None]
        plan += [_steered(Recipe("vector", r.vector, r.pipeline, r.dose, on_base=True)) for r in added]
    for name, file in vectors.items():
        for pipeline in map(tuple, pipelines):
            kept = [r.dose for _, r in plan if r and (r.vector, r.pipeline) == (name, pipeline) and r.dose]
            for dose in largest_doses(kept, both_signs=controls.both_signs) if kept else ():
                plan += _controls_of(name, file, pipeline, dose, controls)
    plan += [] if baselines is None else _baselines(vectors, baselines)
    _check_names([condition for condition, _ in plan])
    return plan


def controls_at_largest(plan: Plan, *, both_signs: bool = False) -> Plan:
    """The plan with every control moved to its vector's largest step, once all alphas are known.

    Only alphas show which of two rates, or of a rate and a shift, is the larger dose.

    Args:
        plan: a plan whose steered conditions have alphas.
        both_signs: use the largest step with the sign of the control's own dose, if that has a known sign.

    Raises:
        ValueError: two conditions would share a file name.
    """
    changed: Plan = []
    for condition, recipe in plan:
        if condition.kind != "control" or recipe is None:
            changed.append((condition, recipe))
            continue
        assert recipe.dose is not None
        sign = recipe.dose.alpha_sign if both_signs else 0
        steps = [
            (abs(c.alpha), c.alpha, r.dose)
            for c, r in plan
            if r and r.source == "vector" and not r.on_base and c.alpha is not None
            if (r.vector, r.pipeline) == (recipe.vector, recipe.pipeline)
        ]
        of_its_sign = [step for step in steps if step[1] * sign >= 0]
        _, alpha, dose = max(of_its_sign or steps, key=lambda step: step[:2])
        assert dose is not None
        name = condition.name.removesuffix(recipe.dose.label) + dose.label
        moved = replace(condition, name=name, alpha=alpha, asked={"kind": dose.kind, "value": dose.value})
        changed.append((moved, replace(recipe, dose=dose)))
    _check_names([condition for condition, _ in changed])
    return changed


def identity_of(
    condition: Condition, recipe: Recipe | None, sources: Mapping[str, str], digests: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that determines a condition's weights, apart from the model and its base, as plain values.

    Only the vectors that it uses are included, so that adding another vector changes nothing.

    Args:
        condition: the condition, with its alpha.
        recipe: its recipe.
        sources: vector -> its file, or the expression of a combination.
        digests: vector -> digest of its file, or the expression of a combination.
    """
    file = None if recipe is None else recipe.file
    names = [] if recipe is None or recipe.vector is None else names_in(recipe.vector, sources)
    read = [] if recipe is None else _files_of(recipe.pipeline)
    return {
        "recipe": None if recipe is None else repr(replace(recipe, file=None)),
        "vectors": {name: digests[name] for name in names},
        "file": None if file is None else known_digest(file),
        "transform_files": [known_digest(path) for path in read],
        "model": condition.model,
        "alpha": condition.alpha,
        "system_prompt": condition.system_prompt,
    }


def _files_of(pipeline: Sequence[TransformSpec]) -> list[str]:
    """The files that transforms read: other vectors and second moments."""
    arguments = [parse_transform(spec)[2] for spec in pipeline]
    return [str(given[key]) for given in arguments for key in ("vector_file", "second_moment") if key in given]


def _labels(pipeline: Sequence[TransformSpec]) -> tuple[str, ...]:
    return tuple(parse_transform(spec)[0] for spec in pipeline)


def _condition(prefix: str, kind: Any, recipe: Recipe) -> tuple[Condition, Recipe]:
    labels = _labels(recipe.pipeline)
    shown = "|".join([str(recipe.vector), *labels])
    dose = recipe.dose
    name = f"{prefix}{shown}{f' {dose.label}' if dose else ''}{' on base' if recipe.on_base else ''}"
    asked = None if dose is None else {"kind": dose.kind, "value": dose.value}
    alpha = dose.value if dose is not None and dose.kind == "alpha" else None
    model: ModelKind = "base" if recipe.on_base else "anchor"
    return Condition(name, kind, model, recipe.vector, labels, alpha, asked), recipe


def _steered(recipe: Recipe) -> tuple[Condition, Recipe]:
    return _condition("", "steered", recipe)


def _controls_of(
    name: str, file: str | None, pipeline: tuple[TransformSpec, ...], dose: Dose, controls: Controls
) -> Plan:
    made: Plan = []
    for kind, number in (("random", controls.random), ("signs", controls.signs)):
        for index in range(number):
            source: Any = kind
            recipe = Recipe(source, name, pipeline, dose, seed=controls.seed + index)
            made.append(_condition(f"{kind}-{index} of ", "control", recipe))
    for index in range(controls.permuted if file is not None else 0):
        path = _beside(str(file), f"permuted/{name}-{index}", f"steering.permuted_controls of vector {name!r}")
        recipe = Recipe("file", name, pipeline, dose, file=path)
        made.append(_condition(f"permuted-{index} of ", "control", recipe))
    for control, path in (controls.files or {}).items():
        # a direction of its own, not transformed: made orthogonal to itself, say, nothing would be left
        recipe = Recipe("file", name, pipeline, dose, file=path, transformed=False)
        made.append(_condition(f"{control} at the norm of ", "control", recipe))
    return made


def _baselines(vectors: Mapping[str, str | None], baselines: Baselines) -> Plan:
    made: Plan = []
    for name, file in vectors.items():
        for steps in baselines.graddiff if file is not None else ():
            path = _beside(str(file), f"graddiff/{name}-{steps}", f"steering.graddiff_steps of vector {name!r}")
            made.append(_condition(f"graddiff-{steps} of ", "baseline", Recipe("graddiff", name, file=path)))
    for scale in baselines.delta_scales:
        sign = "-" if scale > 0 else "+"
        condition = Condition(f"anchor {sign} {abs(scale):g} Delta", "baseline", alpha=-scale)
        made.append((condition, Recipe("delta", scale=scale)))
    for name, text in (baselines.system_prompts or {}).items():
        made.append((Condition(f"system prompt {name}", "baseline", alpha=0.0, system_prompt=text), None))
    return made


def _beside(file: str, name: str, what: str) -> str:
    """The file of a vector's control, which attribute writes in a directory next to the vector."""
    path = Path(file).parent / f"{name}.safetensors"
    if not path.is_file():
        SteeringVector.read_header(file)  # if the vector itself is missing or invalid, report that instead
        option = "--data.permutations" if name.startswith("permuted") else "--graddiff.steps"
        raise ValueError(f"{what}: there is no {str(path)!r}; attribute makes it ({option})")
    return str(path)


def _check_names(conditions: Sequence[Condition]) -> None:
    slugs = [condition.slug.casefold() for condition in conditions]  # as Windows and macOS tell files apart
    for condition in conditions:
        if slugs.count(condition.slug.casefold()) > 1:
            raise ValueError(f"two conditions would share the file name {condition.slug!r}; rename a vector")
