"""How many responses at once: counted bytes against real tensors, and parts that fit."""

import pytest
import torch
from sampler import CONFIGS, build, ragged_draws, sample
from transformers import PreTrainedConfig

from gradsteer.generation import cache as sampling_cache
from gradsteer.generation.decoding import Draw
from gradsteer.generation.memory import (
    FALLBACK_ROWS,
    FittingParts,
    SamplingFootprint,
    footprint_of,
    is_out_of_memory,
    plan_text,
    rows_at_once,
)

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_cache_takes_the_bytes_that_the_config_says(name, dtype, monkeypatch):
    caches, make = [], sampling_cache.roomy_cache
    monkeypatch.setattr(sampling_cache, "roomy_cache", lambda *args: caches.append(make(*args)) or caches[-1])
    model = build(name, dtype=dtype)
    sample(model, [Draw([5, 6, 7], index, 0) for index in range(4)], max_new_tokens=6, stops=[])
    held = sum(part.numel() * part.element_size() for layer in caches[0].layers for part in layer._storage)
    footprint = footprint_of(model.config, num_parameters=10, dtype=dtype, loaded=True)
    assert footprint.cache_per_token * 4 * (3 + 6) == held


def test_weights_that_are_not_there_yet_are_counted():
    config = CONFIGS["llama"]()
    assert footprint_of(config, num_parameters=10, dtype=torch.bfloat16, loaded=False).weights == 20
    assert footprint_of(config, num_parameters=10, dtype=torch.bfloat16, loaded=True).weights == 0


def test_a_config_that_does_not_say_gives_the_fallback():
    footprint = footprint_of(PreTrainedConfig(), num_parameters=10, dtype=torch.float32, loaded=False)
    assert footprint is None
    given = {"prompt_tokens": 1, "max_new_tokens": 1, "device_type": "cuda"}
    assert rows_at_once(None, free_bytes=10**12, **given) == FALLBACK_ROWS
    assert rows_at_once(SamplingFootprint(1, 0, 1, 1, 1), free_bytes=None, **given) == FALLBACK_ROWS
    assert "64 responses at once (the model's config does not say" in plan_text(FALLBACK_ROWS, None, 1, 1)


def test_rows_follow_from_memory_and_are_a_power_of_two():
    footprint = SamplingFootprint(10**9, 2000, cache_per_token=3, states_per_token=5, logits_per_row=7)
    given = {"prompt_tokens": 10, "max_new_tokens": 20, "device_type": "cuda"}
    row = 30 * 3 + 10 * 5 + 7
    assert footprint.row_bytes(10, 20) == row
    # weights twice, and half of the rest
    for rows, fits in ((16, 16), (17, 16), (31, 16), (32, 32), (10**6, 512), (0.5, 1)):
        assert rows_at_once(footprint, free_bytes=2 * 2000 + 2 * int(rows * row), **given) == fits
    assert rows_at_once(footprint, free_bytes=0, **given) == 1


@pytest.mark.parametrize(("parameters", "rows"), [(10**5, 1024), (4 * 10**6, 256), (10**9, 64)])
def test_on_a_cpu_a_large_model_takes_fewer(parameters, rows):
    footprint = SamplingFootprint(parameters, 0, 1, 1, 1)
    found = rows_at_once(footprint, prompt_tokens=9, max_new_tokens=9, device_type="cpu", free_bytes=10**12)
    assert found == rows


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (RuntimeError(CPU), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError(CPU), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


class Crowded:
    """Work that runs out of memory with more items than fit."""

    def __init__(self, fits, error):
        self.fits, self.error, self.sizes = fits, error, []

    def __call__(self, items):
        self.sizes.append(len(items))
        if len(items) > self.fits:
            raise self.error
        return [10 * item for item in items]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU)])
def test_what_does_not_fit_runs_in_halves_and_later_batches_at_once(error):
    warnings = []
    parts, work = FittingParts(warnings.append), Crowded(3, error)
    assert parts.run(list(range(13)), work) == [10 * item for item in range(13)]
    assert work.sizes == [13, 6, 3, 3, 3, 3, 1]
    assert len(warnings) == 1
    assert "out of memory with 13 responses at once: sampled again with 3, which fits" in warnings[0]
    work.sizes = []
    assert parts.run(list(range(4)), work) == [0, 10, 20, 30]
    assert work.sizes == [3, 1]
    assert len(warnings) == 1
    work.fits = 1  # something else took memory meanwhile
    assert parts.run([5, 6], work) == [50, 60]
    assert len(warnings) == 2


def test_one_that_does_not_fit_alone_is_an_error_and_so_is_any_other():
    parts = FittingParts(pytest.fail)
    with pytest.raises(torch.OutOfMemoryError):
        parts.run([1, 2, 3], Crowded(0, torch.OutOfMemoryError(CUDA)))
    with pytest.raises(RuntimeError, match="shapes"):
        FittingParts(pytest.fail).run([1, 2], Crowded(0, RuntimeError("shapes")))
    assert FittingParts(pytest.fail).run([], Crowded(0, RuntimeError("shapes"))) == []


def test_responses_do_not_depend_on_it():
    model, draws, sizes = build("llama"), ragged_draws(), []

    def crowd(_, args, inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError(CUDA)

    expected = sample(model, draws)
    handle = model.register_forward_pre_hook(crowd, with_kwargs=True)
    assert FittingParts(lambda _: None).run(draws, lambda part: sample(model, part)) == expected
    handle.remove()
    assert max(sizes) > 4
