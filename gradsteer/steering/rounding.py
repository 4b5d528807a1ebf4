"""Stochastic rounding to half precision: up or down at random, so that the expected value is exact.

Rounding to nearest always loses a step far below half a unit in the last place of a weight. Stochastic rounding (Gupta
et al. 2015, arXiv:1502.02551) preserves it in expectation, at the cost of noise of up to one unit.
"""

import torch
from torch import Tensor

from gradsteer.vectors.seeding import generator_for

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def rounding_generator(seed: int, name: str) -> torch.Generator:
    """The generator for rounding a weight: the same for a seed and a parameter name on every machine."""
    return generator_for("stochastic_round", seed, name)


def stochastic_round(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Rounds each value at random to one of its two neighbours in half precision.

    The farther neighbour is taken with probability ``|value - nearest| / |farther - nearest|``, so that the expected
    result is the value. Exact values, infinities and NaN are unchanged. If the farther neighbour would be infinite, or
    the value exceeds the largest finite number, it is rounded to nearest.

    Args:
        values: float32, any shape.
        dtype: bfloat16 or float16.
        generator: one number is drawn from it per value, in row-major order, on its device. Rounding a tensor in
            consecutive pieces gives the same result as rounding it whole.

    Returns:
        A tensor of `dtype`, with the shape and device of `values`.

    Raises:
        ValueError: `dtype` or the dtype of `values` is not supported.
    """
    numbers = torch.rand(values.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return rounded_by(numbers, values, dtype)


def rounded_by(numbers: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """`stochastic_round` with given random numbers.

    Args:
        numbers: uniform on [0, 1), float32, with the shape of `values`.
        values: see `stochastic_round`.
        dtype: see `stochastic_round`.

    Raises:
        ValueError: `dtype` or the dtype of `values` is not supported.
    """
    if dtype not in HALF_PRECISIONS:
        raise ValueError(f"stochastic rounding to {dtype}; accepted: {_named(HALF_PRECISIONS)}")
    if values.dtype != torch.float32:
        raise ValueError(f"stochastic rounding of {values.dtype} values; accepted: torch.float32")
    nearest = values.to(dtype)
    remainder = values - nearest.float()  # exact: both are float32, at most half a unit apart
    farther = _next_towards(remainder, nearest)
    chance = remainder.abs() / (farther.float() - nearest.float()).abs()
    # outside the finite range one of these is infinite or NaN; an exact value has probability 0
    moves = (numbers.to(values.device) < chance) & remainder.isfinite() & farther.isfinite()
    return torch.where(moves, farther, nearest)


def _next_towards(remainder: Tensor, value: Tensor) -> Tensor:
    """The next representable number in the direction of the remainder's sign."""
    # ignoring the sign bit, a float's bit pattern read as an integer counts the representable numbers above zero
    bits = value.view(torch.int16)
    away = (remainder > 0) == (value > 0)
    beside = torch.where(away, bits + 1, bits - 1)
    # from zero of either sign, the smallest number with the remainder's sign
    smallest = torch.where(remainder > 0, 1, 1 - (1 << 15)).to(torch.int16)
    return torch.where(value == 0, smallest, beside).view(value.dtype)


def _named(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(str, dtypes))
