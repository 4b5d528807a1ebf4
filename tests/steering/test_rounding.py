import math

import pytest
import torch

from gradsteer.steering.rounding import rounding_generator, stochastic_round

DTYPES = [torch.bfloat16, torch.float16]
EDGES = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}  # the smallest numbers above zero


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def neighbours(values, dtype):
    """The numbers of a dtype at or below and at or above each value, by a search through all finite ones."""
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).double()
    finite = patterns[patterns.isfinite()].unique()
    above = torch.searchsorted(finite, values.double())
    below = torch.searchsorted(finite, values.double(), right=True) - 1
    return finite[below], finite[above]


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_ever_one_of_the_two_neighbours(dtype):
    # wide in exponent, and around every kind of seam: powers of two, subnormal numbers, zero
    wide = torch.randn(20_000, generator=generator()) * 2.0 ** torch.randint(-14, 15, (20_000,), generator=generator(1))
    powers = torch.cat([s * 2.0 ** torch.arange(-13.0, 15) * (1 + o) for s in (1, -1) for o in (-1e-4, 1e-4, 0)])
    small = EDGES[dtype] * torch.linspace(-3, 3, 1001)
    values = torch.cat([wide, powers, small])
    below, above = neighbours(values, dtype)
    found = torch.stack([stochastic_round(values, dtype, generator(seed)).double() for seed in range(20)])
    assert ((found == below) | (found == above)).all()
    assert ((found == below).any(0) & (found == above).any(0)).float().mean() > 0.8, "both are taken"


@pytest.mark.parametrize("dtype", DTYPES)
def test_unbiased(dtype):
    """The mean over many draws is the value, within what their spread allows."""
    draws = 20_000
    values = torch.tensor(
        [1.001, -1.001, 0.9999, 3.14159, -2.71828, 1e-3, 123.456, EDGES[dtype] * 0.3, -(2.0**-14) * 1.1]
    )
    found = stochastic_round(values.expand(draws, -1).contiguous(), dtype, generator()).double()
    below, above = neighbours(values, dtype)
    chance = (values.double() - below) / (above - below)
    spread = (above - below) * (chance * (1 - chance) / draws).sqrt()
    assert (((found.mean(0) - values.double()) / spread).abs() < 4).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_values_keep_their_bits(dtype):
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    exact = patterns.view(dtype)
    kept = ~exact.isnan()  # both zeros and both infinities are among them
    found = stochastic_round(exact.float(), dtype, generator())
    assert torch.equal(found.view(torch.int16)[kept], patterns[kept])
    assert found[~kept].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_finite_value_is_moved_to_infinity_by_chance(dtype):
    largest = torch.finfo(dtype).max
    unit = largest - float(torch.nextafter(torch.tensor(largest, dtype=dtype), torch.tensor(0, dtype=dtype)))
    within, beyond = largest + 0.4 * unit, min(largest + 0.6 * unit, torch.finfo(torch.float32).max)
    values = torch.tensor([within, -within, beyond, -beyond]).repeat(100)
    assert torch.equal(stochastic_round(values, dtype, generator()), values.to(dtype))


def test_pieces_give_what_the_whole_gives():
    values, drawn = torch.randn(1003, generator=generator()), generator(1)
    pieces = [stochastic_round(piece, torch.bfloat16, drawn) for piece in values.split(100)]
    assert torch.equal(torch.cat(pieces), stochastic_round(values, torch.bfloat16, generator(1)))


def test_the_numbers_depend_on_seed_and_name():
    drawn = {
        (seed, name): torch.rand(4, generator=rounding_generator(seed, name)) for seed in (0, 1) for name in ("a", "b")
    }
    assert torch.equal(drawn[0, "a"], torch.rand(4, generator=rounding_generator(0, "a")))
    assert len({tuple(numbers.tolist()) for numbers in drawn.values()}) == 4


def test_no_values_and_no_dimensions():
    assert stochastic_round(torch.zeros(0, 3), torch.bfloat16, generator()).shape == (0, 3)
    assert float(stochastic_round(torch.tensor(math.pi), torch.bfloat16, generator())) in (3.140625, 3.15625, 3.125)


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match=r"rounding to torch.float32; accepted: torch.bfloat16, torch.float16"):
        stochastic_round(torch.ones(2), torch.float32, generator())
    with pytest.raises(ValueError, match=r"of torch.float64 values; accepted: torch.float32"):
        stochastic_round(torch.ones(2).double(), torch.bfloat16, generator())
