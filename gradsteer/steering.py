"""Adding a multiple of a steering vector to a model's weights, and putting the weights back.

`steered` and `reweighted` are context managers. ``theta + aV - aV`` is not ``theta`` in floating point, so the
original bytes are kept and copied back; every value is computed from the originals, never from what an earlier
edit left. Sign convention: positive alpha raises the PLUS pile's loss and reduces its behavior.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradsteer.fingerprints import model_fingerprint, restored, weight_versions
from gradsteer.vectors import ParameterVector


@dataclass(frozen=True)
class AppliedStep:
    """How much of the intended step ``alpha * V`` the weights really took, in their own precision.

    Attributes:
        retained_fraction: ``<applied, intended> / ||intended||^2``; 1 when nothing was lost. None for a zero step.
        step_error: ``||applied - intended|| / ||intended||``, the rounding noise included. None for a zero step.
        relative_norm: ``alpha * ||V|| / ||theta||``, theta over all parameters of the model; signed as alpha.
    """

    retained_fraction: float | None
    step_error: float | None
    relative_norm: float


@dataclass(eq=False)
class _Step:
    """One active edit: adds ``alpha * tensors`` or, without an alpha, replaces the weights by the tensors."""

    tensors: Mapping[str, Tensor]
    alpha: float | None

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if name not in self.tensors:
            return value
        tensor = self.tensors[name].to(value.device, value.dtype)
        return tensor if self.alpha is None else torch.add(value, tensor, alpha=self.alpha)


@dataclass
class _Edited:
    """The originals of one model and the steps that are active on it, outermost first."""

    fingerprint: str
    versions: dict[str, tuple[int, int]]
    originals: dict[str, Tensor] = field(default_factory=dict)
    steps: list[_Step] = field(default_factory=list)


_ACTIVE: "WeakKeyDictionary[nn.Module, _Edited]" = WeakKeyDictionary()


@contextmanager
def steered(
    model: nn.Module, vector: ParameterVector, alpha: float, *, allow_other_model: bool = False
) -> Iterator[AppliedStep]:
    """Within the block the model's weights are ``theta + alpha * V``; afterwards theta, byte for byte.

    Restores also when the block raises or is interrupted. May be nested: the steps add up, and leaving one
    recomputes the rest from the originals. Tied weights move once. Extra memory: one copy of the parameters
    that the vector covers.

    Args:
        model: any module with the vector's parameters.
        vector: the direction V.
        alpha: the steering coefficient; positive reduces the behavior of the PLUS pile, negative raises it.
        allow_other_model: apply a vector to a model that it was not made on (the portability question).

    Yields:
        What the weights really took of the step.

    Raises:
        ValueError: alpha is not finite, the vector's names or shapes do not fit, or it was made on other weights.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha!r}; accepted: a finite number")
    vector.check_fits(model)
    expected = vector.metadata.get("model_fingerprint")
    # inside another edit the weights are no longer those of the fingerprint: checked at the outermost entry only
    if expected and not allow_other_model and model not in _ACTIVE:
        found = model_fingerprint(model)
        if found != expected:
            raise ValueError(
                f"this vector was made on a model with fingerprint {expected}, the model at hand has {found}; "
                "to apply it to another model all the same, ask for that (allow_other_model)"
            )
    with _edited(model, _Step(vector, float(alpha))):
        yield _measure(model, vector, float(alpha))


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
    with _edited(model, _Step(weights, None)):
        yield


@contextmanager
def _edited(model: nn.Module, step: _Step) -> Iterator[None]:
    edited = _ACTIVE.get(model)
    if edited is None:
        edited = _ACTIVE[model] = _Edited(model_fingerprint(model), weight_versions(model))
    parameters = dict(model.named_parameters())
    try:
        for name in step.tensors:
            if name not in edited.originals:
                edited.originals[name] = parameters[name].detach().clone()
        edited.steps.append(step)
        _recompute(model, edited, step.tensors)
        yield
    finally:
        if step in edited.steps:
            edited.steps.remove(step)
        _leave(model, edited, step)


def _leave(model: nn.Module, edited: _Edited, step: _Step) -> None:
    if edited.steps:
        _recompute(model, edited, step.tensors)
        return
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, original in edited.originals.items():
            parameters[name].copy_(original)
    del _ACTIVE[model]
    restored(model, edited.fingerprint, edited.versions, set(edited.originals))


@torch.no_grad()
def _recompute(model: nn.Module, edited: _Edited, names: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name in names:
        original, parameter = edited.originals[name], parameters[name]
        step = edited.steps[0]
        if len(edited.steps) == 1 and step.alpha is not None and original.dtype == torch.float32:
            torch.add(original, step.tensors[name].to(original), alpha=step.alpha, out=parameter)
            continue
        # half precisions are summed in float32 and rounded once
        value = original.double() if original.dtype == torch.float64 else original.float()
        for step in edited.steps:
            value = step(name, value)
        parameter.copy_(value)


@torch.no_grad()
def _measure(model: nn.Module, vector: ParameterVector, alpha: float) -> AppliedStep:
    edited = _ACTIVE[model]
    parameters = dict(model.named_parameters())
    along = error = intended_squares = 0.0
    for name, direction in vector.items():
        before = edited.originals[name].double()
        for step in edited.steps[:-1]:
            before = step(name, before)
        applied = parameters[name].double() - before
        intended = direction.to(applied) * alpha
        along += float((applied * intended).sum())
        error += float((applied - intended).square().sum())
        intended_squares += float(intended.square().sum())
    theta = math.sqrt(
        sum(
            float(torch.linalg.vector_norm(edited.originals.get(name, parameter), dtype=torch.float64)) ** 2
            for name, parameter in parameters.items()
        )
    )
    relative = math.copysign(math.sqrt(intended_squares), alpha) / theta if theta else 0.0
    if intended_squares == 0:
        return AppliedStep(None, None, 0.0)
    return AppliedStep(along / intended_squares, math.sqrt(error / intended_squares), relative)
