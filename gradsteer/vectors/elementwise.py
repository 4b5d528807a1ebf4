"""Transforms of a steering vector that look at one entry at a time: weights, signs, sizes, names.

The table of all transforms is in `gradsteer.vectors.transforms`.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gradsteer.models.exact import for_float64
from gradsteer.models.parameter_selection import select_parameters
from gradsteer.vectors.parameter_vectors import ParameterVector, SteeringVector
from gradsteer.vectors.percentiles import magnitude_percentile
from gradsteer.vectors.weight_diff import WeightDiff

Scale = Literal["percentile", "tail_median", "tail_mean"]


def diff_weighting(
    vector: SteeringVector,
    diff: WeightDiff | None,
    *,
    percentile: float = 97.0,
    scale: Scale = "percentile",
    keep_norm: bool = False,
) -> SteeringVector:
    """Absolute Hadamard diff weighting: ``V_D = (|Delta| / s) * V``, element-wise (the project's note).

    Args:
        vector: the direction V.
        diff: the weight diff Delta; it covers at least the vector's parameters.
        percentile: of |Delta| over all parameters together: s itself, or where the active tail begins.
        scale: s is the ``percentile``, or the ``tail_median`` or ``tail_mean`` of |Delta| at and above it.
        keep_norm: rescale to V's norm, so that alphas mean what they did.

    Raises:
        ValueError: there is no diff, it does not fit, or s is 0.
    """
    diff = fitting(vector, diff, "diff_weighting")
    if scale not in get_args(Scale):
        raise ValueError(f"transform 'diff_weighting': scale is {scale!r}; accepted: {', '.join(get_args(Scale))}")
    divisor = _scale(diff, percentile, scale)
    if divisor == 0:
        raise ValueError(
            f"transform 'diff_weighting': the {percentile:g}th percentile of |Delta| is 0, most weights did not "
            "change; choose a higher percentile"
        )

    def weight(name: str, tensor: Tensor) -> Tensor:
        return tensor * (diff[name].abs() / divisor).to(tensor)

    said = f"percentile={percentile:g}" + ("" if scale == "percentile" else f", scale={scale}")
    weighted = vector.map(weight, f"|diff_weighting({said})")
    return rescaled(weighted, vector.norm()) if keep_norm else weighted


def _scale(diff: WeightDiff, percentile: float, scale: Scale) -> float:
    def tensors() -> Iterator[Tensor]:
        return (diff[name] for name in sorted(diff))

    if scale == "tail_median":
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile is {percentile!r}; accepted: a number from 0 to 100")
        return magnitude_percentile(tensors, (percentile + 100) / 2)
    start = magnitude_percentile(tensors, percentile)
    if scale == "percentile":
        return start
    total, count = 0.0, 0
    for tensor in tensors():
        magnitudes = tensor.abs()
        tail = magnitudes[magnitudes >= start]
        total, count = total + float(for_float64(tail).sum(dtype=torch.float64)), count + tail.numel()
    return total / count


def sign_restricted(
    vector: SteeringVector,
    diff: WeightDiff | None,
    *,
    of: Literal["vector", "diff"] = "vector",
    sign: Literal["positive", "negative"] = "positive",
) -> SteeringVector:
    """Keeps the entries of V where V, or Delta, has the sign asked for; the others become 0.

    Args:
        vector: the direction V.
        diff: the weight diff Delta; needed for ``of: diff``.
        of: whose sign is looked at.
        sign: which sign is kept; entries that are 0 are not.

    Raises:
        ValueError: an argument that is not accepted, or a diff that is needed and missing or does not fit.
    """
    if of not in ("vector", "diff") or sign not in ("positive", "negative"):
        raise ValueError(
            f"transform 'sign_restricted': of is {of!r} and sign {sign!r}; accepted: of vector or diff, sign positive "
            "or negative"
        )
    looked_at: ParameterVector = fitting(vector, diff, "sign_restricted(of=diff)") if of == "diff" else vector
    wanted = 1.0 if sign == "positive" else -1.0

    def restrict(name: str, tensor: Tensor) -> Tensor:
        return torch.where((looked_at[name] * wanted).to(tensor.device) > 0, tensor, 0.0)

    return vector.map(restrict, f"|sign_restricted(of={of}, sign={sign})")


def sign_agreement(vector: SteeringVector, diff: WeightDiff | None, *, agree: bool = True) -> SteeringVector:
    """Keeps the entries of V where ``-V``, the direction that raises the behavior, has the sign of Delta.

    Args:
        vector: the direction V.
        diff: the weight diff Delta.
        agree: false keeps those where the signs are opposite.

    Raises:
        ValueError: there is no diff, or it does not fit.
    """
    diff = fitting(vector, diff, "sign_agreement")
    wanted = -1.0 if agree else 1.0

    def restrict(name: str, tensor: Tensor) -> Tensor:
        # signs, not products: a product of two small numbers may be 0
        return torch.where(tensor.sign() * diff[name].to(tensor).sign() == wanted, tensor, 0.0)

    return vector.map(restrict, f"|sign_agreement(agree={agree})")


def top_k(
    vector: SteeringVector,
    diff: WeightDiff | None,
    *,
    percent: float,
    per: Literal["whole", "tensor"] = "whole",
) -> SteeringVector:
    """Keeps the entries of V with the largest magnitudes; the others become 0.

    Args:
        vector: the direction V.
        diff: not used.
        percent: of all entries, above 0 and at most 100; entries as large as the smallest that is kept are kept too.
        per: over all parameters together, or so many of every tensor.

    Raises:
        ValueError: an argument that is not accepted.
    """
    del diff
    if not 0 < percent <= 100:
        raise ValueError(f"transform 'top_k': percent is {percent!r}; accepted: above 0, at most 100")
    if per not in ("whole", "tensor"):
        raise ValueError(f"transform 'top_k': per is {per!r}; accepted: whole, tensor")
    whole = magnitude_percentile(lambda: vector.values(), 100 - percent) if per == "whole" else 0.0

    def keep(_name: str, tensor: Tensor) -> Tensor:
        start = whole if per == "whole" else magnitude_percentile(lambda: [tensor], 100 - percent)
        return torch.where(tensor.abs() >= start, tensor, 0.0)

    return vector.map(keep, f"|top_k(percent={percent:g}, per={per})")


def only(vector: SteeringVector, diff: WeightDiff | None, *, parameters: Any) -> SteeringVector:
    """Keeps some parameters and leaves the others alone when steering.

    Args:
        vector: the direction V.
        diff: not used.
        parameters: rules as ``attribute --model.parameters`` takes them: globs, "layer:1", "layer:0-3",
            "kind:mlp", with a leading "!" to leave out.

    Raises:
        ValueError: a rule that no parameter meets, or none is left.
    """
    del diff
    if not isinstance(parameters, list):
        raise ValueError(f"transform 'only': parameters is {parameters!r}; accepted: a list of rules, as [layer:1]")
    chosen = select_parameters(vector, parameters)
    kept = {name: vector[name] for name in chosen}
    metadata = {**vector.metadata}
    metadata["derivation"] = metadata.get("derivation", "") + f"|only({', '.join(parameters)})"
    return type(vector)(kept, metadata)


def fitting(vector: ParameterVector, diff: WeightDiff | None, name: str) -> WeightDiff:
    """The weight diff, if it is there and fits.

    Raises:
        ValueError: there is none, or it does not cover the vector's parameters.
    """
    if diff is None:
        raise ValueError(f"transform {name!r} needs the weight diff: give the base model (--steering.base)")
    vector.check_same_shapes({key: tensor for key, tensor in diff.outline().items() if key in vector})
    return diff


def rescaled(vector: SteeringVector, norm: float) -> SteeringVector:
    """The vector at another norm; one that is zero stays zero."""
    mine = vector.norm()
    return vector.map(lambda _name, tensor: tensor * (norm / mine), f"|norm={norm:.6g}") if mine > 0 else vector
