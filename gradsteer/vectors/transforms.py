"""Transforms of a steering vector: one small function each, named in a list in a config.

A transform takes the vector and the weight diff (None where no base was given) and gives a new vector.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from torch import Tensor

from gradsteer.models.adapter_weights import is_adapters
from gradsteer.nearest import did_you_mean
from gradsteer.vectors.elementwise import diff_weighting, only, rescaled, sign_agreement, sign_restricted, top_k
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.preconditioning import SecondMoment, precondition
from gradsteer.vectors.subspaces import diff_projection, diff_subspaces, low_rank, orthogonal_to
from gradsteer.vectors.weight_diff import WeightDiff

Transform = Callable[..., SteeringVector]
TransformSpec = str | dict[str, dict[str, Any]]


def preconditioned(
    vector: SteeringVector, diff: WeightDiff | None, *, second_moment: str, power: float = 0.5, damping: float = 1e-3
) -> SteeringVector:
    """``V_i / (s_i + damping * mean(s))^power``, rescaled to V's norm.

    The formula is that of `gradsteer.vectors.preconditioning.precondition`.

    Args:
        vector: the direction V.
        diff: not used.
        second_moment: file of s, as ``fit --saving.second_moment true`` writes it.
        power: 0.5 is Adam's, 1 the natural gradient's.
        damping: as a share of mean(s).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no second moment, does not fit, or an argument is out of its range; names the file.
    """
    del diff
    try:
        return precondition(vector, SecondMoment.load(second_moment), power=power, damping=damping)
    except ValueError as error:
        raise ValueError(f"transform 'preconditioned' with {second_moment!r}: {error}") from error


def norm_matched(
    vector: SteeringVector,
    diff: WeightDiff | None,
    *,
    original: SteeringVector,
    per: Literal["whole", "tensor"] = "whole",
) -> SteeringVector:
    """Rescales to the norm that V had before the first transform, so that alphas mean what they did.

    Args:
        vector: the transformed direction.
        diff: not used.
        original: V itself; `apply_transforms` gives it.
        per: over all parameters together, or in every tensor (one that is zero stays zero).

    Raises:
        ValueError: an argument that is not accepted.
    """
    del diff
    if per == "whole":
        return rescaled(vector, original.norm())
    if per != "tensor":
        raise ValueError(f"transform 'norm_matched': per is {per!r}; accepted: whole, tensor")
    wanted, found = original.sum_squares(), vector.sum_squares()

    def match(name: str, tensor: Tensor) -> Tensor:
        return tensor * math.sqrt(wanted[name] / found[name]) if found[name] > 0 else tensor

    return vector.map(match, "|norm_matched(per=tensor)")


TRANSFORMS: dict[str, Transform] = {
    function.__name__: function
    for function in (
        *(diff_weighting, sign_restricted, sign_agreement, top_k, only, preconditioned),
        *(low_rank, diff_subspaces, diff_projection, orthogonal_to, norm_matched),
    )
}
_OF_MATRICES = ("low_rank", "diff_subspaces", "diff_projection")
_ALWAYS_BY_DIFF = ("diff_weighting", "sign_agreement", "diff_subspaces", "diff_projection")


def needs_diff(spec: TransformSpec) -> bool:
    """Whether a transform needs the weight diff, and so the base model."""
    name, _, arguments = _read(spec)
    return name in _ALWAYS_BY_DIFF or arguments.get("of") == "diff"


def parse_transform(spec: TransformSpec) -> tuple[str, Transform, dict[str, Any]]:
    """Reads ``"diff_weighting"`` or ``{"diff_weighting": {"percentile": 95}}``.

    Returns:
        The label for tables (the name, with its arguments where given, of a tensor file the stem alone), the
        function, its keyword arguments.

    Raises:
        ValueError: an unknown name or argument, or one that is missing; the accepted ones are named.
    """
    name, transform, arguments = _read(spec)
    label = name + (f"({', '.join(f'{k}={_shown(v)}' for k, v in arguments.items())})" if arguments else "")
    return label, transform, arguments


def _read(spec: TransformSpec) -> tuple[str, Transform, dict[str, Any]]:
    if isinstance(spec, str):
        name = spec
        arguments: dict[str, Any] = {}
    elif isinstance(spec, Mapping) and len(spec) == 1 and isinstance(next(iter(spec.values())), Mapping | NoneType):
        name, arguments = next((key, dict(value or {})) for key, value in spec.items())
    else:
        raise ValueError(f"transform {spec!r}: accepted: a name, or one name with its arguments as a mapping")
    if name not in TRANSFORMS:
        hint = did_you_mean(name, TRANSFORMS)
        raise ValueError(f"unknown transform {name!r}{hint}; accepted: {', '.join(sorted(TRANSFORMS))}")
    accepted = _arguments(TRANSFORMS[name])
    for argument in arguments:
        if argument not in accepted:
            raise ValueError(f"transform {name!r} has no argument {argument!r}; accepted: {', '.join(accepted)}")
    for argument, required in accepted.items():
        if required and arguments.get(argument) is None:
            raise ValueError(f"transform {name!r} needs {argument!r}: {{{name}: {{{argument}: ...}}}}")
    return name, TRANSFORMS[name], arguments


def _arguments(transform: Transform) -> dict[str, bool]:
    """The arguments that a config may give, and whether they are required."""
    parameters = inspect.signature(transform).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "original"}


def _shown(value: Any) -> Any:
    is_file = isinstance(value, str) and value.endswith(".safetensors")
    return Path(value).stem if is_file else value


def apply_transforms(vector: SteeringVector, diff: WeightDiff | None, specs: Sequence[TransformSpec]) -> SteeringVector:
    """Applies transforms in order.

    Raises:
        ValueError: a transform of a weight's own matrix, for a vector in an adapter's space; or see the transform.
    """
    original = vector
    for spec in specs:
        name, transform, arguments = _read(spec)
        if name in _OF_MATRICES and any(map(is_adapters, vector)):
            raise ValueError(
                f"transform {name!r} looks at a weight's matrix, and this vector is of the two matrices that an "
                "adapter makes it of; accepted: another transform, or a vector of the merged weights "
                "(--model.adapter_reading merged)"
            )
        if "original" in inspect.signature(transform).parameters:
            arguments["original"] = original
        vector = transform(vector, diff, **arguments)
    return vector
