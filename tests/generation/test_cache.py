"""The cache with room: equal to transformers' own, and made once."""

import pytest
import torch
from sampler import CONFIGS, build, ragged_draws, sample
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from gradsteer.generation import cache as sampling_cache
from gradsteer.generation.cache import RoomyLayer


@pytest.mark.parametrize("name", CONFIGS)
def test_no_step_copies_the_cache_of_full_attention_and_others_stay_as_they_are(name, monkeypatch):

    caches = []
    make = sampling_cache.roomy_cache
    monkeypatch.setattr(sampling_cache, "roomy_cache", lambda *args: caches.append(make(*args)) or caches[-1])
    model, draws = build(name), ragged_draws()
    found = sample(model, draws)
    [cache] = caches
    kinds = [type(layer) for layer in DynamicCache(config=model.config).layers]
    room = max(len(draw.prompt_token_ids) for draw in draws) + 12
    for kind, layer in zip(kinds, cache.layers, strict=True):
        assert type(layer) is (sampling_cache.RoomyLayer if kind is DynamicLayer else kind)
        if kind is DynamicLayer:
            assert {part.shape[-2] for part in layer._storage} == {room}  # made once, and never too short
            assert layer.keys.data_ptr() == layer._storage[0].data_ptr()
    monkeypatch.setattr(sampling_cache, "roomy_cache", lambda config, capacity: DynamicCache(config=config))
    assert sample(model, draws) == found


def test_a_cache_that_turns_out_too_short_grows():

    torch.manual_seed(0)
    roomy, plain = RoomyLayer(4), DynamicLayer()
    rows = torch.tensor([2, 0, 0, 1])
    for tokens in (3, 1, 1, 2):
        states = torch.randn(len(rows) if roomy.is_initialized else 3, 2, tokens, 5)
        for ours, theirs in zip(roomy.update(states, -states), plain.update(states, -states), strict=True):
            assert torch.equal(ours, theirs)
        if tokens == 3:
            for layer in (roomy, plain):
                layer.reorder_cache(rows)
    keep = torch.tensor([0, 3])
    for layer in (roomy, plain):
        layer.reorder_cache(keep)
    assert torch.equal(roomy.keys, plain.keys)
    assert roomy.get_seq_length() == plain.get_seq_length() == 7
