"""What a step in an adapter's space does to the weights that the adapter adds to, beside the step's first order.

With P = scaling * B A, the weights move by ``P(A + a dA, B + a dB) - P(A, B)``; to first order in a by
``scaling * a (dB A + B dA)``. Norms of such products come from small Gram matrices: no weight is ever formed.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from gradsteer.models.adapter_space import Pair, pairs
from gradsteer.models.exact import doubled
from gradsteer.steering.step_measurement import MovedWeight, sums_of

_Factors = tuple[Tensor, Tensor]  # (experts, out, k) and (experts, k, in), float64: their product is meant


def sums_in_weight_space(moved: Iterable[MovedWeight], model: nn.Module, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """The sums that measure a step, over weights where the parameters are pairs of matrices.

    Args:
        moved: the parameters that the step covers.
        model: in adapter space.
        alpha: of the step.

    Yields:
        The name of a weight (of a whole module's own parameter where it has no pair), and (6,) float64 sums as
        `gradsteer.steering.step_measurement.sums_of` gives them.
    """
    held = {weight.name: weight for weight in moved}
    for pair in pairs(model):
        both = [held.pop(name, None) for name in (pair.a, pair.b)]
        if any(weight is not None for weight in both):
            states = [
                _at_rest(model, name) if weight is None else _states(weight, alpha)
                for weight, name in zip(both, (pair.a, pair.b), strict=True)
            ]
            products = _product_sums(pair, *states)
            entries = torch.stack([sums_of(weight, alpha) for weight in both if weight is not None]).sum(0)
            yield pair.weight, torch.cat([products, entries[3:]])
    for name, weight in held.items():
        yield name, sums_of(weight, alpha)


def _states(weight: MovedWeight, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix before the step, its change, and the change that was meant; float64."""
    before = doubled(weight.start)
    for direction, coefficient in weight.earlier:
        before = torch.add(before, doubled(direction).to(before), alpha=coefficient)
    return before, doubled(weight.after) - before, alpha * doubled(weight.direction).to(before)


def _at_rest(model: nn.Module, name: str) -> tuple[Tensor, Tensor, Tensor]:
    value = doubled(model.get_parameter(name).detach())
    return value, torch.zeros_like(value), torch.zeros_like(value)


def _product_sums(pair: Pair, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """``<applied, meant>``, ``||applied - meant||^2``, ``||meant||^2`` of the product."""
    (a0, a_moved, a_meant), (b0, b_moved, b_meant) = map(pair.right, a), map(pair.left, b)
    meant = torch.cat([b_meant, b0], -1), torch.cat([a0, a_meant], -2)
    # small things only are added up, so that a small step's second order is not lost beside the weights
    rest = torch.cat([b_moved, b_moved - b_meant, b0], -1), torch.cat([a_moved, a0, a_moved - a_meant], -2)
    square, error = _inner(meant, meant), _inner(rest, rest)
    return pair.scaling**2 * torch.stack([square + _inner(rest, meant), error, square]).cpu()


def _inner(one: _Factors, other: _Factors) -> Tensor:
    """Inner product of two products of thin matrices."""
    return ((one[0].mT @ other[0]) * (one[1] @ other[1].mT)).sum()
