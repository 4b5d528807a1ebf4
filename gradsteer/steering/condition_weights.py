"""The weights of every condition: builds a recipe's direction and applies one condition at a time to the model."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from gradsteer.steering.condition_plan import Recipe
from gradsteer.steering.conditions import Condition
from gradsteer.steering.rounding import HALF_PRECISIONS
from gradsteer.steering.step_measurement import AppliedStep
from gradsteer.steering.weight_steering import Rounding, reweighted, steered
from gradsteer.vectors.combinations import combine, is_combination, parse_combination
from gradsteer.vectors.controls import CONTROLS
from gradsteer.vectors.elementwise import rescaled
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import TransformSpec, apply_transforms
from gradsteer.vectors.weight_diff import WeightDiff

_ALPHA = "graddiff_alpha"
_NOTHING = 1e-6


def load_vectors(sources: Mapping[str, str]) -> dict[str, SteeringVector]:
    """Vectors by name, each loaded from its file or combined from others that have files.

    Args:
        sources: name -> file, or an expression such as ``bridge + 0.5 * recipe``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is not a vector, a vector is 0 everywhere, or combined vectors do not fit each other.
    """
    files = {name for name, source in sources.items() if not is_combination(source, sources)}
    for name in files:
        if not sources[name].endswith(".safetensors") and set(sources[name]) & set("+*()"):
            parse_combination(sources[name], sorted(files - {name}))  # raises an error that lists the names
    loaded = {name: SteeringVector.load(sources[name]) for name in sources if name in files}
    for name in sources:
        if name not in files:
            loaded[name] = combine(parse_combination(sources[name], sorted(files)), loaded)
    for name, vector in loaded.items():
        norm = vector.norm()
        if not math.isfinite(norm):
            raise ValueError(
                f"vector {name!r} ({sources[name]}) has the norm {norm}: it holds NaN or Inf; make it again"
            )
        if norm == 0:
            raise ValueError(
                f"vector {name!r} ({sources[name]}) is 0 everywhere: it steers nothing; its piles are the same"
            )
    return {name: loaded[name] for name in sources}


@dataclass(frozen=True)
class StepOptions:
    """How steps are added to the weights.

    Attributes:
        rounding: how weights in half precision are rounded; see `gradsteer.steering.weight_steering.steered`.
        seed: seed for stochastic rounding.
        min_retained: a step of which a smaller fraction survives is refused; from 0 to 1.
        allow_other_model: apply vectors to a model other than the one they were made on.
    """

    rounding: Rounding = "nearest"
    seed: int = 0
    min_retained: float = 0.5
    allow_other_model: bool = False

    def __post_init__(self) -> None:
        if self.rounding != "stochastic" and self.seed:
            raise ValueError("steering.rounding_seed has no effect without steering.rounding stochastic")
        if not 0 <= self.min_retained <= 1:
            raise ValueError(f"steering.min_retained is {self.min_retained}; accepted: from 0 to 1")


class ConditionWeights:
    """Applies one condition after another to a model, each computed from the model's own weights.

    Args:
        model: the model, with its own (the anchor's) weights.
        vectors: vectors by name.
        diff: anchor - base, or None without a base.
        base: the base's weights by parameter name, or None.
        options: how steps are added.
    """

    def __init__(
        self,
        model: Any,
        vectors: Mapping[str, SteeringVector],
        *,
        diff: WeightDiff | None = None,
        base: Mapping[str, Tensor] | None = None,
        options: StepOptions | None = None,
    ) -> None:
        self.model, self.vectors, self.diff, self.base = model, vectors, diff, base
        self.options = options = options or StepOptions()
        self.allow_other_model = options.allow_other_model
        self._steered = partial(steered, model, rounding=options.rounding, seed=options.seed)
        self._last: tuple[tuple[str, tuple[TransformSpec, ...]], SteeringVector] | None = None

    def on(self, model: Any) -> "ConditionWeights":
        """The same conditions for another model of these names and shapes, whatever its fingerprint."""
        options = StepOptions(allow_other_model=True)
        return ConditionWeights(model, self.vectors, diff=self.diff, base=self.base, options=options)

    @property
    def rounding(self) -> str | None:
        """How steps are rounded, such as ``stochastic 0`` with its seed; None where no weight is in half precision."""
        if not any(parameter.dtype in HALF_PRECISIONS for parameter in self.model.parameters()):
            return None
        return self.options.rounding + (f" {self.options.seed}" if self.options.rounding == "stochastic" else "")

    def transformed(self, name: str, pipeline: tuple[TransformSpec, ...]) -> SteeringVector:
        """A transformed vector. The last one is cached, because conditions of one direction follow each other."""
        if not pipeline:
            return self.vectors[name]
        key = (name, pipeline)
        if self._last is None or self._last[0] != key:
            self._last = None  # free it before the next is made
            self._last = key, apply_transforms(self.vectors[name], self.diff, list(pipeline))
        return self._last[1]

    def direction(self, recipe: Recipe) -> SteeringVector:
        """The direction of a condition's step.

        Raises:
            FileNotFoundError: its file is missing.
            ValueError: a transform or file is invalid.
        """
        if recipe.source == "delta":
            assert self.diff is not None
            return SteeringVector(self.diff)
        if recipe.source == "graddiff":
            return SteeringVector.load(str(recipe.file))
        vector = self.transformed(str(recipe.vector), recipe.pipeline)
        if recipe.source == "vector":
            return vector
        if recipe.source == "file":
            other = SteeringVector.load(str(recipe.file))
            if not recipe.transformed:
                return rescaled(other, vector.norm())
            changed = apply_transforms(other, self.diff, list(recipe.pipeline))
            if changed.norm() <= _NOTHING * other.norm():  # rescaling would blow up rounding noise
                raise ValueError(f"{recipe.file!r}: its transforms leave nothing of it")
            return rescaled(changed, vector.norm())
        return CONTROLS[recipe.source](vector, seed=recipe.seed, label=recipe.vector)

    def fixed_alpha(self, recipe: Recipe) -> float | None:
        """The alpha that the recipe itself determines; None if it comes from the dose.

        Raises:
            ValueError: a file of GradDiff steps does not record its alpha.
        """
        if recipe.source == "delta":
            return -recipe.scale
        if recipe.source != "graddiff":
            return None
        said = SteeringVector.read_header(str(recipe.file)).get(_ALPHA)
        if said is None:
            raise ValueError(f"{recipe.file!r} does not say at which alpha its GradDiff steps were taken")
        return float(said)

    @contextmanager
    def of(self, condition: Condition, recipe: Recipe | None) -> Iterator[AppliedStep | None]:
        """Within the block the model has the condition's weights; afterwards its own, byte for byte.

        Args:
            condition: the condition, with its alpha.
            recipe: its recipe; None for the base, the anchor and conditions that leave the weights alone.

        Yields:
            How much of the step the weights took; None without a step.
        """
        # computed before any weight changes, because a streamed diff reads the model's own weights
        direction = None if recipe is None else self.direction(recipe)
        on_base = condition.kind == "base" or (recipe is not None and recipe.on_base)
        with reweighted(self.model, self.base or {}) if on_base else nullcontext():
            if direction is None:
                yield None
                return
            assert condition.alpha is not None
            # on the base every vector comes from another model, which is the point
            other = self.allow_other_model or on_base
            with self._steered(direction, condition.alpha, allow_other_model=other) as step:
                yield step

    @contextmanager
    def at(self, vector: SteeringVector, alpha: float) -> Iterator[None]:
        """Within the block the model's weights are ``theta + alpha V``, rounded like the conditions'."""
        with self._steered(vector, alpha, allow_other_model=self.allow_other_model):
            yield
