"""Adding a multiple of a steering vector to a model's weights, and restoring the weights.

`steered`, `reweighted`, `rewritten` and `holding` are context managers. ``theta + aV - aV`` is not ``theta`` in
floating point, so the original bytes are kept and copied back, and every value is computed from the originals. If the
model is split over processes, each process edits its shard. Sign convention: positive alpha raises the PLUS pile's loss
and reduces its behavior.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.parallel import settle, shard_like
from gradsteer.steering.rounding import HALF_PRECISIONS
from gradsteer.steering.step_measurement import AppliedStep
from gradsteer.steering.weight_edits import Change, Edit, edited_by, held, is_edited, look_at
from gradsteer.vectors.parameter_vectors import ParameterVector

Rounding = Literal["nearest", "stochastic"]


@contextmanager
def steered(
    model: nn.Module,
    vector: ParameterVector,
    alpha: float,
    *,
    allow_other_model: bool = False,
    rounding: Rounding = "nearest",
    seed: int = 0,
) -> Iterator[AppliedStep]:
    """Within the block the model's weights are ``theta + alpha * V``; afterwards theta, byte for byte.

    The weights are restored even if the block raises or is interrupted. Blocks may be nested: steps add up, and leaving
    one recomputes the rest from the originals. Tied weights move once. Extra memory: one copy of the parameters that
    the vector covers; `holding` keeps it from one block to the next.

    Args:
        model: any module with the vector's parameters.
        vector: the direction V.
        alpha: the steering coefficient; positive reduces the behavior of the PLUS pile, negative raises it.
        allow_other_model: apply the vector to a model other than the one it was made on.
        rounding: how bfloat16 and float16 weights are rounded: "nearest", or "stochastic", whose expected step is exact
            (see `gradsteer.steering.rounding`). In nested edits a weight is rounded stochastically if any of them asks
            for it, with the innermost one's seed. Weights of higher precision are rounded to nearest.
        seed: seed for stochastic rounding; it rounds a parameter the same way on any number of processes.

    Yields:
        How much of the step the weights took; measured on first access, within the block.

    Raises:
        ValueError: alpha is not finite, the vector's names or shapes do not fit, it was made on other weights, or
            rounding is stochastic although no weight that the vector covers is in half precision.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha!r}; accepted: a finite number")
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding is {rounding!r}; accepted: {', '.join(get_args(Rounding))}")
    vector.check_fits(model)
    settle(model)
    parameters = dict(model.named_parameters())
    if rounding == "stochastic":
        _check_half([parameters[name].dtype for name in vector])
    expected = vector.metadata.get("model_fingerprint")
    # inside another edit the weights no longer match the fingerprint, so it is checked only at the outermost entry
    if expected and not allow_other_model and not is_edited(model):
        found = model_fingerprint(model)
        if found != expected:
            raise ValueError(
                f"this vector was made on a model with fingerprint {expected}, the model at hand has {found}; "
                "to apply it to another model anyway, set allow_other_model"
            )
    parts = {name: shard_like(tensor.detach(), parameters[name]) for name, tensor in vector.items()}
    # adding 0 * V is not a no-op: it turns -0.0 into 0.0, and gives NaN for an infinite entry
    moving = parts if alpha != 0 else {}
    step = Edit(moving, adds=moving, alpha=float(alpha), seed=seed if rounding == "stochastic" else None)
    applied = AppliedStep(parts, float(alpha), lambda: look_at(model, step))
    with edited_by(model, step):
        try:
            yield applied
        finally:
            applied.end()


def _check_half(dtypes: Collection[torch.dtype]) -> None:
    if not any(dtype in HALF_PRECISIONS for dtype in dtypes):
        raise ValueError(
            f"rounding is 'stochastic', but the weights that the vector covers are "
            f"{', '.join(sorted({str(dtype) for dtype in dtypes})) or 'none'}; accepted: weights in "
            f"{', '.join(map(str, HALF_PRECISIONS))}, or rounding 'nearest'"
        )


@contextmanager
def reweighted(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the model has the given weights (the base's, say); afterwards its own, byte for byte.

    Args:
        model: any module.
        weights: parameter name -> values, cast to the parameter's dtype; need not cover all parameters.

    Raises:
        ValueError: names or shapes do not fit the model.
    """
    ParameterVector(weights).check_fits(model)
    settle(model)
    parameters = dict(model.named_parameters())
    with rewritten(model, weights, lambda name, value: shard_like(weights[name], parameters[name]).to(value)):
        yield


@contextmanager
def rewritten(model: nn.Module, names: Collection[str], change: Change) -> Iterator[None]:
    """Within the block some weights are replaced by a function of themselves; afterwards restored, byte for byte.

    Args:
        model: any module.
        names: names of the parameters to change.
        change: (name, value) -> new value of the same shape; float32, or float64 for a float64 model. Nested edits call
            it again, so it must be deterministic. If the model is split over processes, values are this process's
            shards.
    """
    with edited_by(model, Edit(names, change)):
        yield


@contextmanager
def holding(model: nn.Module, names: Collection[str] | None = None) -> Iterator[None]:
    """Within the block the originals of some weights are kept, so that repeated edits need not copy them again.

    Use it when a model goes from one condition to the next: entering `steered` then only writes ``theta + alpha * V``
    from the existing copy, and leaving it only copies back. Between edits the model has its own weights, and each edit
    runs all checks of an outermost edit. May be nested, in itself and in edits. Extra memory: one copy of the held
    weights.

    Args:
        model: any module; within the block only edits may write to the held weights.
        names: names of the parameters to hold; None holds all.

    Raises:
        ValueError: the model lacks a name.
        RuntimeError: on entering an edit within the block, if held weights were written to by something else.
    """
    has = [name for name, _ in model.named_parameters()]
    for name in names or ():
        if name not in has:
            raise ValueError(f"names holds {name!r}; accepted: names of {type(model).__name__}'s parameters")
    with held(model, has if names is None else tuple(names)):
        yield
