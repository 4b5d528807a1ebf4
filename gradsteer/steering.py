"""Adding a multiple of a steering vector to a model's weights, and putting the weights back.

`steered` and `reweighted` are context managers. ``theta + aV - aV`` is not ``theta`` in floating point, so the
original bytes are kept and copied back; every value is computed from the originals, never from what an earlier
edit left. Of a model that is split over processes each process edits the shard that it holds. Sign convention: positive
alpha raises the PLUS pile's loss and reduces its behavior.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradsteer.fingerprints import model_fingerprint, restored, weight_versions
from gradsteer.parallel import is_split_model, settle, shard, shard_like, sum_over_shards
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


Change = Callable[[str, Tensor], Tensor]


@dataclass(eq=False)
class _Step:
    """One active edit: the parameters that it covers, and each one's new value from its old one."""

    names: Collection[str]
    change: Change
    adds: Mapping[str, Tensor] | None = None  # with alpha: the change is a fused multiply and add
    alpha: float = 0.0


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
    settle(model)
    parameters = dict(model.named_parameters())
    parts = {name: shard_like(tensor, parameters[name]) for name, tensor in vector.items()}

    def add(name: str, value: Tensor) -> Tensor:
        return torch.add(value, parts[name].to(value), alpha=alpha)

    with _edited(model, _Step(parts, add, adds=parts, alpha=float(alpha))):
        yield _measure(model)


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
    with _edited(model, _Step(names, change)):
        yield


@contextmanager
def _edited(model: nn.Module, step: _Step) -> Iterator[None]:
    edited = _ACTIVE.get(model)
    settle(model)
    if edited is None:
        edited = _ACTIVE[model] = _Edited(model_fingerprint(model), weight_versions(model))
    parameters = _parts(model)
    try:
        for name in step.names:
            if name not in edited.originals:
                edited.originals[name] = parameters[name].detach().clone()
        edited.steps.append(step)
        _recompute(model, edited, step.names)
        yield
    finally:
        if step in edited.steps:
            edited.steps.remove(step)
        _leave(model, edited, step)


def _parts(model: nn.Module) -> dict[str, Tensor]:
    """What this process holds of every parameter, sharing its memory."""
    return {name: shard(parameter.detach()) for name, parameter in model.named_parameters()}


def _leave(model: nn.Module, edited: _Edited, step: _Step) -> None:
    settle(model)
    if edited.steps:
        _recompute(model, edited, step.names)
        return
    parameters = _parts(model)
    with torch.no_grad():
        for name, original in edited.originals.items():
            parameters[name].copy_(original)
    del _ACTIVE[model]
    restored(model, edited.fingerprint, edited.versions, set(edited.originals))


@torch.no_grad()
def _recompute(model: nn.Module, edited: _Edited, names: Collection[str]) -> None:
    parameters = _parts(model)
    for name in names:
        original, parameter = edited.originals[name], parameters[name]
        adds = edited.steps[0].adds if len(edited.steps) == 1 else None
        if adds is not None and name in adds and original.dtype == torch.float32:
            torch.add(original, adds[name].to(original), alpha=edited.steps[0].alpha, out=parameter)
            continue
        parameter.copy_(_stepped(name, original, edited.steps))


def _stepped(name: str, original: Tensor, steps: Sequence[_Step]) -> Tensor:
    """A weight after some steps; half precisions are summed in float32 and rounded once."""
    value = original.double() if original.dtype == torch.float64 else original.float()
    for step in steps:
        if name in step.names:
            value = step.change(name, value)
    return value


@torch.no_grad()
def _measure(model: nn.Module) -> AppliedStep:
    """What the weights took of the innermost step."""
    edited = _ACTIVE[model]
    parameters, step = _parts(model), edited.steps[-1]
    assert step.adds is not None
    sums = torch.zeros(4, dtype=torch.float64)  # <applied, intended>, ||error||^2, ||intended||^2, ||theta||^2
    for name, direction in step.adds.items():
        before = _stepped(name, edited.originals[name].double(), edited.steps[:-1])
        applied = parameters[name].double() - before
        intended = direction.to(applied) * step.alpha
        terms = ((applied * intended).sum(), (applied - intended).square().sum(), intended.square().sum())
        sums[:3] += torch.stack(terms).cpu()
    for name, parameter in parameters.items():
        sums[3] += torch.linalg.vector_norm(edited.originals.get(name, parameter), dtype=torch.float64).square().cpu()
    if is_split_model(model):
        sums = sum_over_shards(sums, next(model.parameters()))
    along, error, intended_squares, theta_squares = sums.tolist()
    relative = math.copysign(math.sqrt(intended_squares / theta_squares), step.alpha) if theta_squares else 0.0
    if intended_squares == 0:
        return AppliedStep(None, None, 0.0)
    return AppliedStep(along / intended_squares, math.sqrt(error / intended_squares), relative)
