"""How much of a steering step the weights took, measured in float64 piece by piece.

Rounding to half precision can lose a small step; `AppliedStep` says how much of it arrived.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradsteer.models.exact import doubled, exact_device, for_float64
from gradsteer.models.parallel import is_split_model, sum_over_shards

PIECE = 1 << 20  # elements of 8 bytes each


@dataclass(frozen=True)
class TensorStep:
    """How much of the intended step one weight tensor took; all None if V is zero there.

    Attributes:
        retained_fraction: ``<applied, intended> / ||intended||^2``; 1 if nothing was lost.
        step_error: ``||applied - intended|| / ||intended||``, including rounding noise.
        changed_fraction: fraction of its entries that the step changed.
    """

    retained_fraction: float | None
    step_error: float | None
    changed_fraction: float | None


class MovedWeight(NamedTuple):
    """One weight tensor covered by V, before and after the step: this process's shards, all of one shape.

    Attributes:
        name: the parameter's name.
        start: the value before `earlier` steps; any precision.
        earlier: (direction, alpha) of the steps between `start` and this one.
        before: the value before the step, in the model's precision.
        after: the value after the step, in the model's precision.
        direction: V's entries, on any device.
    """

    name: str
    start: Tensor
    earlier: Sequence[tuple[Tensor, float]]
    before: Tensor
    after: Tensor
    direction: Tensor


class Measurable(NamedTuple):
    """The inputs for measuring a step.

    Attributes:
        moved: the weights that V covers, generated one at a time.
        originals: all weights of the model without any step, this process's shards.
        model: the model.
        sums: gives each measured tensor's name and `sums_of` it; of an adapter's matrices, of the weights they make up.
    """

    moved: Iterable[MovedWeight]
    originals: Iterable[Tensor]
    model: nn.Module
    sums: Callable[[Iterable[MovedWeight], nn.Module, float], Iterable[tuple[str, Tensor]]]


class _Figures(NamedTuple):
    whole: TensorStep
    by_tensor: dict[str, TensorStep]
    relative_norm: float


class AppliedStep:
    """How much of the intended step ``alpha * V`` the weights really took, in their own precision.

    It is measured when a property is first read, which takes a few passes over the weights; later reads are free. If
    the model is split over processes the first read is collective: all processes must read, or none.

    Args:
        names: names of the parameters that V covers.
        alpha: the steering coefficient.
        look: returns the inputs for the measurement, from the current weights.
    """

    def __init__(self, names: Collection[str], alpha: float, look: Callable[[], Measurable]) -> None:
        self._names, self._alpha = tuple(names), alpha
        self._look: Callable[[], Measurable] | None = look
        self._figures: _Figures | None = None

    @property
    def retained_fraction(self) -> float | None:
        """``<applied, intended> / ||intended||^2``; 1 if nothing was lost. None for a zero step.

        Raises:
            RuntimeError: no property was read before the block ended (the same for every property).
        """
        return self._measured().whole.retained_fraction

    @property
    def step_error(self) -> float | None:
        """``||applied - intended|| / ||intended||``, including rounding noise. None for a zero step."""
        return self._measured().whole.step_error

    @property
    def changed_fraction(self) -> float | None:
        """Fraction of the weights covered by V that the step changed. None for a zero step."""
        return self._measured().whole.changed_fraction

    @property
    def relative_norm(self) -> float:
        """``alpha * ||V|| / ||theta||``, theta over all parameters of the model, with the sign of alpha."""
        return self._measured().relative_norm

    @property
    def by_tensor(self) -> dict[str, TensorStep]:
        """Parameter name -> the same measurements, for each tensor that V covers."""
        return dict(self._measured().by_tensor)

    def measure(self) -> None:
        """Measures the step now, so that it can be read after its block ends (collective if weights are split)."""
        self._measured()

    def end(self) -> None:
        """Called just before the weights are restored: afterwards the step can no longer be measured."""
        self._look = None

    def _measured(self) -> _Figures:
        if self._figures is None:
            if self._look is None:
                raise RuntimeError(
                    "the step was not measured before its block ended, and the weights that took it are gone; read a "
                    "property of it within the block"
                )
            # without a step there is nothing to measure, whatever V holds
            self._figures = _measure(self._look(), self._alpha) if self._alpha else _no_step(self._names)
        return self._figures


def sums_by_tensor(moved: Iterable[MovedWeight], model: nn.Module, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """`sums_of` every moved tensor."""
    del model
    return ((weight.name, sums_of(weight, alpha)) for weight in moved)


def pieces(*tensors: Tensor, size: int = PIECE) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same entries of several tensors, in row-major order.

    Args:
        tensors: tensors of one shape; their memory layouts may differ.
        size: maximum entries per piece.
    """
    first = tensors[0]
    if first.numel() <= size:
        yield tensors
    elif all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
    elif len(first) == 1:
        yield from pieces(*(tensor[0] for tensor in tensors), size=size)
    else:
        rows = max(1, size * len(first) // first.numel())
        for parts in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
            yield from pieces(*parts, size=size)


@torch.no_grad()
def _measure(measurable: Measurable, alpha: float) -> _Figures:
    rows, names = [], []
    found = measurable.sums(measurable.moved, measurable.model, alpha)
    for name, sums in found:
        rows.append(sums)
        names.append(name)
    squares = [_squares(original) for original in measurable.originals]
    # one table, and so one reduction, for all tensors: a row each, and ||theta||^2
    table = torch.zeros(len(rows) + 1, 6, dtype=torch.float64)
    for row, sums in zip(table, rows, strict=False):
        row.copy_(sums)
    table[-1, 0] = sum(squares)
    if is_split_model(measurable.model):
        table = sum_over_shards(table, next(measurable.model.parameters())).cpu()
    theta_squares = float(table[-1, 0])
    total = table[:-1].sum(0).tolist()
    relative = math.copysign(math.sqrt(total[5] / theta_squares), alpha) if theta_squares and total[5] else 0.0
    by_tensor = {name: _figures(row) for name, row in zip(names, table[:-1].tolist(), strict=True)}
    return _Figures(_figures(total), by_tensor, relative)


def _no_step(names: Iterable[str]) -> _Figures:
    return _Figures(_figures((0.0,) * 6), {name: _figures((0.0,) * 6) for name in names}, 0.0)


def _figures(sums: Sequence[float]) -> TensorStep:
    along, error, intended, changed, entries, _ = sums
    if intended == 0:
        return TensorStep(None, None, None)
    return TensorStep(along / intended, math.sqrt(error / intended), changed / entries)


def sums_of(weight: MovedWeight, alpha: float) -> Tensor:
    """What a step is measured by, of one tensor.

    Returns:
        (6,) ``<applied, intended>``, ``||error||^2``, ``||intended||^2``, numbers of changed entries and of entries,
        and ``||intended||^2`` of the parameters, which differs where they are matrices that make up a weight.
    """
    sums = torch.zeros(6, dtype=torch.float64, device=exact_device(weight.after.device))
    tensors = (weight.start, weight.before, weight.after, weight.direction)
    earlier = [direction for direction, _ in weight.earlier]
    for start, before, after, direction, *directions in pieces(*tensors, *earlier):
        exact = doubled(start)
        for part, (_, coefficient) in zip(directions, weight.earlier, strict=True):
            exact = torch.add(exact, doubled(part).to(exact), alpha=coefficient)
        applied = doubled(after) - exact
        intended = doubled(direction).to(applied) * alpha
        sums[0] += (applied * intended).sum()
        sums[1] += (applied - intended).square_().sum()
        sums[2] += intended.square_().sum()
        sums[3] += for_float64((after != before).sum())
    sums[4], sums[5] = weight.after.numel(), sums[2]
    return sums.cpu()


def _squares(tensor: Tensor) -> float:
    total = torch.zeros((), dtype=torch.float64, device=exact_device(tensor.device))
    for (piece,) in pieces(tensor):
        total += doubled(piece).square().sum()  # which does not copy a float64 weight
    return float(total)
