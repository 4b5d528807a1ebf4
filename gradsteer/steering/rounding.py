"""Stochastic rounding to half precision: up or down by chance, so that the expected value is the exact one.

A step far below half a unit in the last place of a weight is lost by rounding to nearest, everywhere and always; by
stochastic rounding (Gupta et al. 2015, arXiv:1502.02551) it arrives in expectation, at the price of noise of up to a
unit. Knows of tensors and generators; knows nothing of models.
"""

import torch
from torch import Tensor

from gradsteer.vectors.seeding import generator_for

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def rounding_generator(seed: int, name: str) -> torch.Generator:
    """The random numbers that a weight is rounded by: the same for a seed and a parameter's name on every machine."""
    return generator_for("stochastic_round", seed, name)


def stochastic_round(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Each value as one of its two neighbours in a half precision, by chance.

    The farther neighbour is taken with probability ``|value - nearest| / |farther - nearest|``, so that the expected
    result is the value. Exact values stay, and so do infinities and NaN; where the farther neighbour would be infinite,
    or the value is beyond the largest finite one, it is rounded to nearest.

    Args:
        values: float32, any shape.
        dtype: bfloat16 or float16.
        generator: one number is drawn from it for each value, in row-major order, on the generator's device: pieces of
            a tensor rounded one after the other give what the whole tensor gives.

    Returns:
        Of `dtype`, on the device and of the shape of `values`.

    Raises:
        ValueError: another dtype.
    """
    numbers = torch.rand(values.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return rounded_by(numbers, values, dtype)


def rounded_by(numbers: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """`stochastic_round` by numbers that were drawn already.

    Args:
        numbers: uniform on [0, 1), float32, of the shape of `values`.
        values: see `stochastic_round`.
        dtype: see `stochastic_round`.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in HALF_PRECISIONS:
        raise ValueError(f"stochastic rounding to {dtype}; accepted: {_named(HALF_PRECISIONS)}")
    if values.dtype != torch.float32:
        raise ValueError(f"stochastic rounding of {values.dtype} values; accepted: torch.float32")
    nearest = values.to(dtype)
    remainder = values - nearest.float()  # exact: both are float32, at most half a unit apart
    farther = _next_towards(remainder, nearest)
    chance = remainder.abs() / (farther.float() - nearest.float()).abs()
    # beyond the finite values one of these is infinite or NaN; an exact value has the chance 0
    moves = (numbers.to(values.device) < chance) & remainder.isfinite() & farther.isfinite()
    return torch.where(moves, farther, nearest)


def _next_towards(remainder: Tensor, value: Tensor) -> Tensor:
    """The next number of the value's dtype in the direction of the remainder's sign."""
    # without its sign bit the pattern of a float, as an integer, counts the numbers above zero
    bits = value.view(torch.int16)
    away = (remainder > 0) == (value > 0)
    beside = torch.where(away, bits + 1, bits - 1)
    # zero, of whichever sign: the smallest number of the remainder's sign
    smallest = torch.where(remainder > 0, 1, 1 - (1 << 15)).to(torch.int16)
    return torch.where(value == 0, smallest, beside).view(value.dtype)


def _named(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(str, dtypes))
