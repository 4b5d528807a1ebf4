"""The streamed percentile equals numpy's of a float64 sort, whatever the entries, and holds little."""

import numpy as np
import pytest
import torch

from gradsteer.vectors import percentiles
from gradsteer.vectors.percentiles import magnitude_percentile

PERCENTILES = [0, 0.01, 3, 50, 97, 99.9, 100]


def magnitudes(tensors):
    return np.concatenate([tensor.abs().double().numpy().ravel() for tensor in tensors])


def same_as_numpy(tensors, asked=PERCENTILES):
    expected = magnitudes(tensors)
    for percentile in asked:
        assert magnitude_percentile(lambda: tensors, percentile) == np.percentile(expected, percentile), percentile


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hard_cases(size):
    """Entries of all kinds: ties, zeros, denormals, mixed scales, dtypes."""
    x = normal(size, seed=size)
    yield "normal", x
    yield "log-normal", torch.exp(8 * x)
    yield "mostly zeros", torch.where(x > 2, x, 0.0)
    yield "all alike", torch.full((size,), -0.25)
    yield "two values", torch.where(x > 1, 1.0, 3.0)
    yield "few values", (2 * x).round()
    yield "sorted", x.sort().values
    yield "denormals", x * 1e-42
    yield "tiny and huge", torch.where(x > 0, x * 1e-42, x * 1e37)
    yield "integers", torch.arange(size).float()
    yield "bfloat16", x.bfloat16()
    yield "float16", (x * 1e-5).half()
    yield "float64", normal(size, seed=1, dtype=torch.float64) * 1e300


@pytest.mark.parametrize("size", [1, 2, 3, 50, 5000, 300_000])
def test_all_kinds_of_entries(size):
    for name, tensor in hard_cases(size):
        parts = [part.clone() for part in tensor.split(max(1, size // 3))]
        for percentile in PERCENTILES:
            found = magnitude_percentile(lambda: parts, percentile)  # noqa: B023 (called at once)
            assert found == np.percentile(magnitudes(parts), percentile), (name, percentile)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e20])
def test_tensors_of_many_shapes_and_strides(scale):
    tensors = [scale * normal(*shape) for shape in [(101,), (7, 13), (1,), (400, 5), (2, 3, 4)]]
    same_as_numpy([*tensors, torch.zeros(37), torch.tensor(3.0), torch.empty(0, 4), normal(300, 200).mT[::3, 1:]])


def test_tensors_of_many_dtypes_together():
    tensors = [normal(3000), normal(3000, seed=1).bfloat16(), normal(3000, seed=2, dtype=torch.float64)]
    same_as_numpy(tensors)
    same_as_numpy([normal(500).requires_grad_().detach(), normal(70_000, dtype=torch.float64)])


def test_random_percentiles():
    tensors = [normal(40_000, seed=seed) for seed in range(3)]
    same_as_numpy(tensors, np.random.default_rng(0).uniform(0, 100, 60))


def passes_over(tensors, percentile):
    passes = []

    def give():
        passes.append(1)
        return iter(tensors)

    assert magnitude_percentile(give, percentile) == np.percentile(magnitudes(tensors), percentile)
    return len(passes)


def test_two_passes_are_enough():
    for _, tensor in hard_cases(300_000):
        assert [passes_over([tensor], percentile) for percentile in PERCENTILES] == [2] * len(PERCENTILES)


@pytest.mark.parametrize("deviations", [0.0, 0.3])
def test_brackets_that_miss_cost_passes_and_no_exactness(monkeypatch, deviations):
    monkeypatch.setattr(percentiles, "_DEVIATIONS", deviations)
    monkeypatch.setattr(percentiles, "_LEAST_MARGIN", 0.0)
    counts = {name: passes_over([tensor], 60) for name, tensor in hard_cases(60_000)}
    assert counts["normal"] > 2  # the test does what it says
    for _, tensor in hard_cases(60_000):
        same_as_numpy([tensor])


@pytest.mark.slow
def test_what_is_kept_stays_small(monkeypatch):
    monkeypatch.setattr(percentiles, "_SAMPLE_LIMIT", 300)
    monkeypatch.setattr(percentiles, "_INSIDE_LIMIT", 500)
    monkeypatch.setattr(percentiles, "_CHUNK", 64)
    monkeypatch.setattr(percentiles, "_PIECE", 64)
    kept = []

    def watched(function):
        return lambda values, *rest: kept.append(values.size) or function(values, *rest)

    tensors = [tensor[i : i + 1500] for _, tensor in hard_cases(60_000) for i in (0, 30_000)]
    expected = [np.percentile(magnitudes(tensors), percentile) for percentile in PERCENTILES]
    monkeypatch.setattr(percentiles.np, "sort", watched(np.sort))
    monkeypatch.setattr(percentiles.np, "partition", watched(np.partition))
    assert [magnitude_percentile(lambda: tensors, percentile) for percentile in PERCENTILES] == expected
    assert max(kept) <= 500
    monkeypatch.undo()
    monkeypatch.setattr(percentiles, "_INSIDE_LIMIT", 500)
    assert passes_over([normal(60_000)], 50) > 2


def test_what_has_no_percentile_is_refused():
    for percentile in (101, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"percentile is {percentile}; accepted: a number from 0 to 100"):
            magnitude_percentile(lambda: [torch.ones(3)], percentile)
    for nothing in ([], [torch.empty(0)]):
        with pytest.raises(ValueError, match="no entries"):
            magnitude_percentile(lambda: nothing, 97)  # noqa: B023 (called at once)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("percentile", [0, 50, 100])
def test_entries_that_are_not_finite_are_refused(bad, percentile):
    for size in (1, 100_000):
        tensor = normal(size)
        tensor[size // 2] = bad
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            with pytest.raises(ValueError, match="NaN or Inf"):
                magnitude_percentile(lambda: [torch.ones(2), tensor.to(dtype)], percentile)  # noqa: B023
    with pytest.raises(ValueError, match="NaN or Inf"):
        magnitude_percentile(lambda: [torch.full((100_000,), bad)], percentile)


def test_the_tensors_stay_as_they_are():
    tensor = normal(1000)
    before = tensor.clone()
    magnitude_percentile(lambda: [tensor], 97)
    assert torch.equal(tensor, before)
