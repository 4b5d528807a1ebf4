"""Transforms of a steering vector: one small function each, named in a list in a config.

A transform takes the vector and the weight diff (None where no base was given) and gives a new vector.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gradsteer.diff import WeightDiff
from gradsteer.percentiles import magnitude_percentile
from gradsteer.preconditioning import SecondMoment, precondition
from gradsteer.vectors import SteeringVector

Transform = Callable[..., SteeringVector]
TransformSpec = str | dict[str, dict[str, Any]]


def diff_weighting(vector: SteeringVector, diff: WeightDiff | None, *, percentile: float = 97.0) -> SteeringVector:
    """Absolute Hadamard diff weighting: ``V_D = (|Delta| / s) * V``, element-wise (the seed's formula).

    Args:
        vector: the direction V.
        diff: the weight diff Delta; it covers at least the vector's parameters.
        percentile: s is this percentile of |Delta| over all parameters together.

    Raises:
        ValueError: there is no diff, it does not fit, or s is 0.
    """
    if diff is None:
        raise ValueError("transform 'diff_weighting' needs the weight diff: give the base model (--steering.base)")
    vector.check_same_shapes({name: tensor for name, tensor in diff.items() if name in vector})
    scale = magnitude_percentile(lambda: (diff[name] for name in sorted(diff)), percentile)
    if scale == 0:
        raise ValueError(
            f"transform 'diff_weighting': the {percentile:g}th percentile of |Delta| is 0, most weights did not "
            "change; choose a higher percentile"
        )

    def weight(name: str, tensor: Tensor) -> Tensor:
        return tensor * (diff[name].abs() / scale).to(tensor)

    return vector.map(weight, f"|diff_weighting(percentile={percentile:g})")


def preconditioned(
    vector: SteeringVector, diff: WeightDiff | None, *, second_moment: str, power: float = 0.5, damping: float = 1e-3
) -> SteeringVector:
    """``V_i / (s_i + damping * mean(s))^power``, rescaled to V's norm (see `gradsteer.preconditioning.precondition`).

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


TRANSFORMS: dict[str, Transform] = {"diff_weighting": diff_weighting, "preconditioned": preconditioned}


def parse_transform(spec: TransformSpec) -> tuple[str, Transform, dict[str, Any]]:
    """Reads ``"diff_weighting"`` or ``{"diff_weighting": {"percentile": 95}}``.

    Returns:
        The label for tables (the name, with its arguments where given, of a tensor file the stem alone), the
        function, its keyword arguments.

    Raises:
        ValueError: an unknown name or argument, or one that is missing; the accepted ones are named.
    """
    if isinstance(spec, str):
        name = spec
        arguments: dict[str, Any] = {}
    elif isinstance(spec, Mapping) and len(spec) == 1:
        name, arguments = next((key, dict(value or {})) for key, value in spec.items())
    else:
        raise ValueError(f"transform {spec!r}: accepted: a name, or one name with its arguments as a mapping")
    if name not in TRANSFORMS:
        raise ValueError(f"unknown transform {name!r}; accepted: {', '.join(sorted(TRANSFORMS))}")
    parameters = inspect.signature(TRANSFORMS[name]).parameters.values()
    accepted = {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}  # name -> is required
    for argument in arguments:
        if argument not in accepted:
            raise ValueError(f"transform {name!r} has no argument {argument!r}; accepted: {', '.join(accepted)}")
    for argument, required in accepted.items():
        if required and arguments.get(argument) is None:
            raise ValueError(f"transform {name!r} needs {argument!r}: {{{name}: {{{argument}: ...}}}}")
    label = name + (f"({', '.join(f'{k}={_shown(v)}' for k, v in arguments.items())})" if arguments else "")
    return label, TRANSFORMS[name], arguments


def _shown(value: Any) -> Any:
    is_file = isinstance(value, str) and value.endswith(".safetensors")
    return Path(value).stem if is_file else value


def apply_transforms(vector: SteeringVector, diff: WeightDiff | None, specs: Sequence[TransformSpec]) -> SteeringVector:
    """Applies transforms in order."""
    for spec in specs:
        _, transform, arguments = parse_transform(spec)
        vector = transform(vector, diff, **arguments)
    return vector
