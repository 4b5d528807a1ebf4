"""A preallocated key-value cache; transformers' own copies itself at every step.

Only layers with plain full attention are replaced; sliding windows, convolutions and the like are left alone. This
module imports transformers, so import it where it is used.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values in preallocated storage.

    Args:
        capacity: expected number of tokens; more are accepted at the cost of a copy.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        # (rows, heads, capacity, head_dim) each; keys and values are views of their first tokens
        self._storage: tuple[Tensor, Tensor] | None = None
        self.keys: Tensor
        self.values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds new tokens; returns the keys and values of all."""
        if not self.is_initialized:
            # the prompt is kept as it is and moves into storage when its rows are spread over the samples
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if self._storage is None or total > self._storage[0].shape[-2]:
            self._store(self.keys, self.values, max(self.capacity, total))
        assert self._storage is not None
        for storage, states in zip(self._storage, (key_states, value_states), strict=True):
            storage[:, :, length:total] = states
        self._show(total)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Selects rows by index, in this order; indices may repeat."""
        length = self.get_seq_length()
        if length == 0:
            return
        indices = beam_idx.to(self.keys.device)
        chosen = self.keys.index_select(0, indices), self.values.index_select(0, indices)
        if self._storage is None or len(indices) > len(self._storage[0]):
            self._store(*chosen, max(self.capacity, length))
            return
        # fewer rows stay in the same storage: allocating a smaller one would cost more than it frees
        self._storage = self._storage[0][: len(indices)], self._storage[1][: len(indices)]
        for storage, rows in zip(self._storage, chosen, strict=True):
            storage[:, :, :length] = rows
        self._show(length)

    def _store(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        length, stored = keys.shape[-2], []
        for states in (keys, values):
            storage = states.new_empty((*states.shape[:-2], capacity, states.shape[-1]))
            storage[:, :, :length] = states
            stored.append(storage)
        self._storage = stored[0], stored[1]
        self._show(length)

    def _show(self, length: int) -> None:
        assert self._storage is not None
        self.keys, self.values = (storage[:, :, :length] for storage in self._storage)


def roomy_cache(config: Any, capacity: int) -> DynamicCache:
    """A cache for a model with this config, with room for `capacity` tokens per row."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def check_filled(cache: Any, num_tokens: int, model_name: str) -> None:
    """Refuses a cache that the model did not fill with the prompt: it would generate without any context.

    A sliding window counts all tokens that passed through it. Convolutions and linear attention count none; they have
    a state or not. Layers that keep nothing, and layers that share another layer's keys, carry no information.

    Args:
        cache: the cache after the model's first call.
        num_tokens: tokens per row in that call, including padding.
        model_name: for the message.

    Raises:
        ValueError: no layer holds that many tokens, and none has a state.
    """
    lengths = {layer.get_seq_length() for layer in cache.layers if isinstance(layer, CacheLayerMixin)}
    states = [getattr(layer, "has_previous_state", False) for layer in cache.layers]  # a dict where there are several
    if num_tokens in lengths or any(any(state.values()) if isinstance(state, dict) else state for state in states):
        return
    raise ValueError(
        f"{model_name} did not fill the key-value cache, which holds {max(lengths, default=0)} of {num_tokens} tokens; "
        "sampling needs a model that keeps its keys and values in the past_key_values it is given"
    )
