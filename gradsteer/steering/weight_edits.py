"""Editing a model's weights and restoring them: the originals, the active edits, and putting the originals back.

`gradsteer.steering.weight_steering` is built on this. Every value is computed from the originals by all active edits,
so edits may be left in any order. The original bytes are copied back when the last edit is left. Memory: one copy of
the weights that are edited or held.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradsteer.models.adapter_space import is_in_adapter_space
from gradsteer.models.fingerprints import model_fingerprint, restored, weight_versions
from gradsteer.models.parallel import is_split, settle, shard, shard_like
from gradsteer.steering.adapter_steps import sums_in_weight_space
from gradsteer.steering.rounding import HALF_PRECISIONS, rounded_by, rounding_generator, stochastic_round
from gradsteer.steering.step_measurement import PIECE, Measurable, MovedWeight, pieces, sums_by_tensor

Change = Callable[[str, Tensor], Tensor]


@dataclass(eq=False)
class Edit:
    """An edit: a function of the weights' values, or a multiple of a direction added to them.

    Attributes:
        names: names of the parameters that it covers.
        change: (name, value) -> new value; see `gradsteer.steering.weight_steering.rewritten`.
        adds: instead of a change: parameter name -> direction, this process's shard.
        alpha: coefficient of the directions.
        seed: seed for stochastic rounding; None rounds to nearest.
    """

    names: Collection[str]
    change: Change | None = None
    adds: Mapping[str, Tensor] = field(default_factory=dict)
    alpha: float = 0.0
    seed: int | None = None


@dataclass(eq=False)
class _Hold:
    """One `holding` block: the parameters whose originals it keeps."""

    names: Collection[str]


@dataclass
class _Edited:
    """One model's originals, its active steps (outermost first), and the blocks that hold originals."""

    originals: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Edit] = field(default_factory=list)
    holds: list[_Hold] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)  # overwritten since they were the originals
    fingerprint: str = ""
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)  # as of the last time without an active step


_ACTIVE: "WeakKeyDictionary[nn.Module, _Edited]" = WeakKeyDictionary()


def is_edited(model: nn.Module) -> bool:
    """Whether an edit is active, so that the model's weights are not its own."""
    edited = _ACTIVE.get(model)
    return edited is not None and bool(edited.steps)


@contextmanager
def held(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Within the block the originals of some weights are kept, across any number of edits.

    Raises:
        RuntimeError: see `gradsteer.steering.weight_steering.holding`.
    """
    hold = _Hold(names)
    try:
        edited = _opened(model)
        edited.holds.append(hold)
        _keep(model, edited, hold.names)
        yield
    finally:
        _to_the_end(lambda: _let_go(model, hold))


@contextmanager
def edited_by(model: nn.Module, step: Edit) -> Iterator[None]:
    """Within the block an edit is active; it is undone afterwards, even if the block raises or is interrupted.

    Raises:
        RuntimeError: held weights were written to, or the model lost a parameter within the block.
    """
    # an interrupt may come between any two lines, so everything done by then is undone
    try:
        edited = _opened(model)
        edited.steps.append(step)
        _keep(model, edited, step.names)
        edited.moved.update(step.names)
        _recompute(model, edited, step.names)
        yield
    finally:
        _to_the_end(lambda: _leave(model, step))


def _to_the_end(undo: Callable[[], None]) -> None:
    """Repeats the undo if it is interrupted: a second Ctrl-C must not leave the weights half restored."""
    interrupt: BaseException | None = None
    while True:
        try:
            undo()
            break
        except (KeyboardInterrupt, SystemExit) as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _opened(model: nn.Module) -> _Edited:
    settle(model)
    if model not in _ACTIVE:
        _ACTIVE[model] = _Edited()
    edited = _ACTIVE[model]
    if not edited.steps:
        versions = weight_versions(model)
        for name in edited.originals.keys() & versions.keys():
            # FSDP2 may move a shard's memory
            if versions[name] != edited.versions[name] and not is_split(model.get_parameter(name)):
                raise RuntimeError(
                    f"{name!r} was written to within holding(...), so the held copy is no longer the model's own "
                    "weight; train or load weights outside the block"
                )
        edited.fingerprint, edited.versions = model_fingerprint(model), versions
    return edited


def _keep(model: nn.Module, edited: _Edited, names: Collection[str]) -> None:
    parameters = _parts(model)
    for name in names:
        if name not in edited.originals:
            edited.originals[name] = parameters[name].clone()


def _parts(model: nn.Module) -> dict[str, Tensor]:
    """This process's shard of every parameter, sharing its memory."""
    return {name: shard(parameter.detach()) for name, parameter in model.named_parameters()}


def _leave(model: nn.Module, step: Edit) -> None:
    edited = _ACTIVE.get(model)
    if edited is None:
        return
    settle(model)
    if step in edited.steps:
        edited.steps.remove(step)
    if edited.steps:
        # an edit that failed on entry may have kept only some originals
        _recompute(model, edited, [name for name in step.names if name in edited.moved])
    elif edited.moved:
        _put_back(model, edited)
    else:
        _forget(model, edited)


@torch.no_grad()
def _put_back(model: nn.Module, edited: _Edited) -> None:
    parameters = _parts(model)
    missing = sorted(edited.moved - parameters.keys())
    for name in edited.moved & parameters.keys():
        parameters[name].copy_(edited.originals[name])
    if not missing:
        restored(model, edited.fingerprint, edited.versions, edited.moved)
    # only the moved ones: writes to the others must still be detected
    edited.versions |= {name: at for name, at in weight_versions(model).items() if name in edited.moved}
    edited.moved.clear()
    _forget(model, edited)
    if missing:
        raise RuntimeError(f"the model lost its parameter {missing[0]!r} while it was edited; it is not restored")


def _let_go(model: nn.Module, hold: _Hold) -> None:
    edited = _ACTIVE.get(model)
    if edited is None:
        return
    if hold in edited.holds:
        edited.holds.remove(hold)
    if not edited.steps:
        _forget(model, edited)


def _forget(model: nn.Module, edited: _Edited) -> None:
    """Drops originals that no block holds; called if no step is active."""
    held = {name for hold in edited.holds for name in hold.names}
    edited.originals = {name: original for name, original in edited.originals.items() if name in held}
    if not edited.holds:
        _ACTIVE.pop(model, None)


@torch.no_grad()
def _recompute(model: nn.Module, edited: _Edited, names: Collection[str]) -> None:
    parameters = dict(model.named_parameters())
    for name in names:
        if name in parameters:  # a lost parameter is reported when the outermost edit is left
            out = shard(parameters[name].detach())
            _write(name, edited.originals[name], edited.steps, like=parameters[name], out=out)


def _write(name: str, original: Tensor, steps: Sequence[Edit], *, like: Tensor, out: Tensor) -> None:
    """Writes a weight's value after some steps; half precision is summed in float32 and rounded once."""
    value, adding = _changed(name, original, steps)
    directions = [step.adds[name] for step in adding]
    work = _working_dtype(original)
    seeds = [step.seed for step in steps if step.seed is not None and name in step.names]
    generator = rounding_generator(seeds[-1], name) if seeds and out.dtype in HALF_PRECISIONS else None
    numbers: list[Tensor] = []
    if generator is not None and is_split(like):
        # drawn for the whole tensor and then sharded, so that rounding is the same as on one process
        numbers, generator = [shard_like(torch.rand(like.shape, generator=generator), like)], None
    # in pieces, so that converted copies stay small
    converted = any(tensor.dtype != work or tensor.device != out.device for tensor in (value, out, *directions))
    size = (PIECE if out.device.type == "cpu" else 16 * PIECE) if converted else max(1, out.numel())
    # one buffer for all pieces, because fresh memory would cost more than the sums
    buffer = out.new_empty(0 if out.dtype == work else min(size, out.numel()), dtype=work)
    for old, new, *parts in pieces(value, out, *directions, *numbers, size=size):
        into = new if new.dtype == work else buffer[: new.numel()].view(new.shape)
        total = old if old.dtype == work else into.copy_(old)
        for step, part in zip(adding, parts, strict=False):
            total = torch.add(total, part.to(total), alpha=step.alpha, out=into)
        if numbers:
            total = rounded_by(parts[-1], total, new.dtype)
        elif generator is not None:
            total = stochastic_round(total, new.dtype, generator)
        if total is not new:
            new.copy_(total)


def _changed(name: str, original: Tensor, steps: Sequence[Edit]) -> tuple[Tensor, list[Edit]]:
    """A weight's value after the last step that is not an addition, and the additions after it."""
    steps = [step for step in steps if name in step.names]
    changes = 1 + max((index for index, step in enumerate(steps) if step.change is not None), default=-1)
    if changes == 0:
        return original, steps
    value = original.to(_working_dtype(original))
    for step in steps[:changes]:
        if step.change is None:
            value = torch.add(value, step.adds[name].to(value), alpha=step.alpha)
        else:
            value = step.change(name, value)
    return value, steps[changes:]


def _working_dtype(original: Tensor) -> torch.dtype:
    return torch.float64 if original.dtype == torch.float64 else torch.float32


def look_at(model: nn.Module, step: Edit) -> Measurable:
    """The inputs for measuring a step, even while other steps are nested inside it."""
    settle(model)
    edited, parameters = _ACTIVE[model], dict(model.named_parameters())
    index = edited.steps.index(step)

    def after(name: str, steps: Sequence[Edit]) -> Tensor:
        out = torch.empty_like(edited.originals[name])
        _write(name, edited.originals[name], steps, like=parameters[name], out=out)
        return out

    def moved() -> Iterator[MovedWeight]:
        for name, direction in step.adds.items():
            original, outer = edited.originals[name], edited.steps[:index]
            start, adding = _changed(name, original, outer)
            earlier = [(other.adds[name], other.alpha) for other in adding]
            before = after(name, outer) if any(name in other.names for other in outer) else original
            covered = any(name in other.names for other in edited.steps[index + 1 :])
            now = after(name, edited.steps[: index + 1]) if covered else shard(parameters[name].detach())
            yield MovedWeight(name, start, earlier, before, now, direction)

    originals = (edited.originals.get(name, shard(parameter.detach())) for name, parameter in parameters.items())
    if is_in_adapter_space(model):
        return Measurable(moved(), originals, model, sums_in_weight_space)
    return Measurable(moved(), originals, model, sums_by_tensor)
