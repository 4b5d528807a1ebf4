"""The step from the anchor that responses were sampled at, as their rows say it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradsteer.steering.condition_plan import Recipe
from gradsteer.steering.conditions import Condition
from gradsteer.vectors.combinations import is_combination
from gradsteer.vectors.transforms import TransformSpec, needs_diff, parse_transform


@dataclass(frozen=True)
class SampledStep:
    """Anchor, vector, transforms and alpha: enough to give a model the weights that responses came from.

    Attributes:
        vector: digest of the vector's file.
        alpha: the steering coefficient.
        transforms: applied to the vector, in order.
        anchor: fingerprint of the weights that were moved.
        rounding: of weights in half precision, such as ``nearest`` or ``stochastic 0`` with its seed; None of others.
    """

    vector: str
    alpha: float
    transforms: tuple[TransformSpec, ...]
    anchor: str
    rounding: str | None = None

    @classmethod
    def of(
        cls,
        condition: Condition,
        recipe: Recipe | None,
        sources: Mapping[str, str],
        digests: Mapping[str, str],
        anchor: str,
        rounding: str | None = None,
    ) -> "SampledStep | None":
        """The step of a condition; None for those whose weights need more than this.

        Those are controls, baselines, steps on the base, combinations of vectors, and vectors with transforms that read
        the weight diff or a file.

        Args:
            condition: it, with its alpha.
            recipe: its recipe.
            sources: vector -> its file, or the expression of a combination.
            digests: vector -> digest of its file.
            anchor: fingerprint of the anchor.
            rounding: of the step.
        """
        if recipe is None or recipe.source != "vector" or recipe.on_base or condition.alpha is None:
            return None
        name = str(recipe.vector)
        read = [needs_diff(spec) or _reads_file(spec) for spec in recipe.pipeline]
        if is_combination(sources[name], sources) or any(read):
            return None
        return cls(digests[name], float(condition.alpha), recipe.pipeline, anchor, rounding)

    @classmethod
    def read(cls, where: str, value: Any) -> "SampledStep":
        """From a row's ``step``.

        Args:
            where: ``file:line``.
            value: it.

        Raises:
            ValueError: it is no such step.
        """
        kinds: dict[str, Any] = {"vector": str, "alpha": (int, float), "transforms": list, "anchor": str}
        if not isinstance(value, dict) or any(not isinstance(value.get(key), kind) for key, kind in kinds.items()):
            raise ValueError(
                f"{where}: step is {json.dumps(value)[:200]}; accepted: {{vector: DIGEST, alpha: NUMBER, transforms: "
                "[...], anchor: FINGERPRINT}, as steer writes it"
            )
        rounding = value.get("rounding")
        if rounding is not None and not re.fullmatch(r"nearest|stochastic \d{1,20}", str(rounding)):
            raise ValueError(
                f"{where}: rounding of a step is {rounding!r:.80}; accepted: nearest, stochastic and its seed, or none"
            )
        return cls(value["vector"], float(value["alpha"]), tuple(value["transforms"]), value["anchor"], rounding)

    def to_dict(self) -> dict[str, Any]:
        """The row's ``step``."""
        return {
            "vector": self.vector, "alpha": self.alpha, "transforms": list(self.transforms), "anchor": self.anchor,
            **({} if self.rounding is None else {"rounding": self.rounding}),
        }  # fmt: skip

    def is_along(self, other: "SampledStep") -> bool:
        """Whether both are steps along one vector, rounded alike."""
        ours, theirs = ((step.vector, repr(step.transforms), step.rounding) for step in (self, other))
        return ours == theirs


def _reads_file(spec: TransformSpec) -> bool:
    given = parse_transform(spec)[2]
    return "vector_file" in given or "second_moment" in given
