"""The sampling batch size: planned from free memory, and reduced if a batch does not fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from gradsteer.models.memory import available_bytes, is_out_of_memory, size

Item = TypeVar("Item")
Result = TypeVar("Result")

# Used if the config does not determine a row's memory.
FALLBACK_ROWS = 64
# Fraction of free memory to plan with; the rest is for what the estimate leaves out.
_SHARE = 0.5
_MAX_ROWS_CUDA = 512
# On a CPU, rows share a step's fixed cost, which is soon negligible for a large model. Beyond this product of rows
# and parameters little is gained, and a batch that takes an hour is an hour lost when a run is killed.
_CPU_WORK = 2**30
_MIN_ROWS_CPU, _MAX_ROWS_CPU = 64, 1024


@dataclass(frozen=True)
class SamplingFootprint:
    """The memory that sampling needs on a device.

    Attributes:
        num_parameters: number of parameters of the model.
        weights: bytes still needed for the weights; 0 if they are on the device already.
        cache_per_token: bytes of keys and values per token, over all layers.
        states_per_token: bytes of one layer's states per token while the prompt is read.
        logits_per_row: bytes per row for the logits and for choosing a token from them.
    """

    num_parameters: int
    weights: int
    cache_per_token: int
    states_per_token: int
    logits_per_row: int

    def row_bytes(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """Bytes per row, without the temporary second copy of one layer's cache."""
        cache = (prompt_tokens + max_new_tokens) * self.cache_per_token
        return cache + prompt_tokens * self.states_per_token + self.logits_per_row


def footprint_of(config: Any, *, num_parameters: int, dtype: torch.dtype, loaded: bool) -> SamplingFootprint | None:
    """Estimates a model's footprint from its config; sliding windows count as full attention.

    A token's keys and values are 2 x layers x key-value heads x head dimension numbers. Logits count 32 bytes per
    vocabulary entry: two float32 copies, plain and sorted probabilities, and two float64 sums.

    Args:
        config: the model's config.
        num_parameters: number of parameters of the model.
        dtype: dtype of the weights, and so of the cache.
        loaded: whether the weights are on the device already.

    Returns:
        The footprint; None if the config lacks one of the numbers.
    """
    text = config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    numbers = [getattr(text, name, None) for name in names]
    known = [number for number in numbers if isinstance(number, int) and number > 0]
    if len(known) < len(names):
        return None
    layers, hidden, heads, vocabulary = known
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    return SamplingFootprint(
        num_parameters=num_parameters,
        weights=0 if loaded else num_parameters * dtype.itemsize,
        cache_per_token=2 * layers * kv_heads * head_dim * dtype.itemsize,
        states_per_token=(8 * hidden + 3 * inner) * dtype.itemsize,
        logits_per_row=32 * vocabulary,
    )


def rows_at_once(
    footprint: SamplingFootprint | None,
    *,
    prompt_tokens: int,
    max_new_tokens: int,
    device_type: str,
    free_bytes: int | None,
) -> int:
    """How many responses to sample at once: a power of two, so that a little more free memory changes nothing.

    It plans with half of the free memory after the weights, which count twice because steering keeps a copy.

    Args:
        footprint: the model's footprint; None if unknown, which gives `FALLBACK_ROWS`.
        prompt_tokens: tokens of the longest prompt.
        max_new_tokens: tokens of the longest response.
        device_type: ``cpu``, ``cuda``, ...
        free_bytes: free memory on the device; None if unknown, which gives `FALLBACK_ROWS`.

    Returns:
        At least 1. At most 512, or on a CPU 64 to 1024 depending on the model's size, as larger batches gain little.
    """
    if footprint is None or free_bytes is None:
        return FALLBACK_ROWS
    if device_type == "cpu":
        most = min(max(_CPU_WORK // max(footprint.num_parameters, 1), _MIN_ROWS_CPU), _MAX_ROWS_CPU)
    else:
        most = _MAX_ROWS_CUDA
    room = _SHARE * (free_bytes - 2 * footprint.weights)
    fitting = int(room // footprint.row_bytes(prompt_tokens, max_new_tokens))
    rows = max(1, min(most, fitting))
    return 1 << (rows.bit_length() - 1)


def free_bytes(device: torch.device) -> int | None:
    """Free memory on a device in bytes; None if unknown."""
    return available_bytes(device, held=0)


class FittingParts:
    """Runs batches in parts that fit into memory.

    A batch that does not fit is retried in halves, down to single items. The size that fits is kept for all later
    batches.

    Args:
        warn: called once with a message for every smaller size that fits.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.largest: int | None = None

    def run(self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
        """The results of all items, in their order.

        Args:
            items: the items of one batch.
            work: returns one result for each item it is given.

        Raises:
            torch.OutOfMemoryError: a single item does not fit (on a CPU, the allocator's RuntimeError).
        """
        results: list[Result] = []
        told = self.largest
        while len(results) < len(items):
            left = len(items) - len(results)
            part = items[len(results) : len(results) + min(left, self.largest or left)]
            try:
                results += work(part)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                self.largest = len(part) // 2
            else:
                if self.largest is not None and self.largest != told:
                    told = self.largest
                    self._warn(
                        f"out of memory with {len(items)} responses at once: sampled again with {told}, which fits "
                        f"and is kept for later batches; --data.batch_size {told} avoids the retry"
                    )
                continue
            # the failed step's tensors are only freed here, outside the except block
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results


def plan_text(rows: int, footprint: SamplingFootprint | None, prompt_tokens: int, max_new_tokens: int) -> str:
    """The plan in one line, for the log."""
    if footprint is None:
        return f"batch_size auto: {rows} responses at once (the model's config does not say what one takes)"
    each = size(footprint.row_bytes(prompt_tokens, max_new_tokens))
    return f"batch_size auto: {rows} responses at once, about {each} each"
