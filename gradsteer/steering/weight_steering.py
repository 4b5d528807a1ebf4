"""Adding a multiple of a steering vector to a model's weights, and putting the weights back.

`steered`, `reweighted` and `holding` are context managers. ``theta + aV - aV`` is not ``theta`` in floating point, so
the original bytes are kept and copied back; every value is computed from the originals, never from what an earlier
edit left. Of a model that is split over processes each process edits the shard that it holds. Sign convention: positive
alpha raises the PLUS pile's loss and reduces its behavior.
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

    Restores also when the block raises or is interrupted. May be nested: the steps add up, and leaving one
    recomputes the rest from the originals. Tied weights move once. Extra memory: one copy of the parameters
    that the vector covers; `holding` keeps it from one block to the next.

    Args:
        model: any module with the vector's parameters.
        vector: the direction V.
        alpha: the steering coefficient; positive reduces the behavior of the PLUS pile, negative raises it.
        allow_other_model: apply a vector to a model that it was not made on (the portability question).
        rounding: of bfloat16 and float16 weights: "nearest", or "stochastic", whose expected step is the intended one
            (see `gradsteer.steering.rounding`). Where edits are nested, a weight is rounded stochastically if one of
            them asks for it, by the innermost one's seed. Weights of higher precision are rounded to nearest.
        seed: of stochastic rounding; the same seed rounds a parameter of a name alike, on any number of processes.

    Yields:
        What the weights really took of the step; measured when it is first asked, within the block.

    Raises:
        ValueError: alpha is not finite, the vector's names or shapes do not fit, it was made on other weights, or
            stochastic rounding is asked for where no weight that the vector covers is in half precision.
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
    # inside another edit the weights are no longer those of the fingerprint: checked at the outermost entry only
    if expected and not allow_other_model and not is_edited(model):
        found = model_fingerprint(model)
        if found != expected:
            raise ValueError(
                f"this vector was made on a model with fingerprint {expected}, the model at hand has {found}; "
                "to apply it to another model all the same, ask for that (allow_other_model)"
            )
    parts = {name: shard_like(tensor.detach(), parameters[name]) for name, tensor in vector.items()}
    # 0 * V is not nothing: it turns -0.0 into 0.0, and makes NaN of an infinite entry
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
        weights: parameter name -> values, cast to the parameter's dtype; may cover fewer than all parameters.

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
    """Within the block some weights are a function of what they were; afterwards they are that again, byte for byte.

    Args:
        model: any module.
        names: of the parameters to change.
        change: (name, value) -> new value, of the value's shape; float32, or float64 for a float64 model. Called
            again where edits are nested, so it must give the same each time. Of a model that is split over processes
            both are this process's shard.
    """
    with edited_by(model, Edit(names, change)):
        yield


@contextmanager
def holding(model: nn.Module, names: Collection[str] | None = None) -> Iterator[None]:
    """Within the block the originals of some weights are kept, so that edit after edit need not copy them again.

    For a model that goes from one condition to the next: entering `steered` then only writes ``theta + alpha * V``
    from the copy that is there, and leaving it only copies back. Between the edits the model has its own weights,
    and whatever is checked at an outermost edit is checked at each. May be nested, in itself and in edits. Extra
    memory: one copy of the weights that are held.

    Args:
        model: any module; within the block only edits may write to the weights that are held.
        names: of the parameters to hold; None holds all.

    Raises:
        ValueError: the model lacks a name.
        RuntimeError: on entering an edit within the block: weights that are held were written to otherwise.
    """
    has = [name for name, _ in model.named_parameters()]
    for name in names or ():
        if name not in has:
            raise ValueError(f"names holds {name!r}; accepted: names of {type(model).__name__}'s parameters")
    with held(model, has if names is None else tuple(names)):
        yield
