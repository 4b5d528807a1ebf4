"""How many responses are sampled at once: planned from what memory there is, and cut where the plan was wrong.

Knows of configs, bytes and out-of-memory errors; knows nothing of prompts' text or of files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from gradsteer.models.memory import available_bytes, size

Item = TypeVar("Item")
Result = TypeVar("Result")

# Where a config does not say what a row takes.
FALLBACK_ROWS = 64
# Of the free memory; the rest is for what the estimate leaves out.
_SHARE = 0.5
_MAX_ROWS_CUDA = 512
# On a CPU a step's fixed cost is spread over the rows, and that of a large model is soon spread: rows times
# parameters beyond this gain little, and a batch that took an hour would be an hour lost when a run is killed.
_CPU_WORK = 2**30
_MIN_ROWS_CPU, _MAX_ROWS_CPU = 64, 1024


@dataclass(frozen=True)
class SamplingFootprint:
    """What sampling takes of a device's memory.

    Attributes:
        num_parameters: of the model.
        weights: bytes that its weights still have to take: 0 where they lie on the device already.
        cache_per_token: bytes of keys and values of a token, in all layers.
        states_per_token: bytes of a layer's states of a token while the prompt is read.
        logits_per_row: bytes of a row's logits, and of what choosing a token from them makes.
    """

    num_parameters: int
    weights: int
    cache_per_token: int
    states_per_token: int
    logits_per_row: int

    def row_bytes(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """Bytes of a row; a moment's second copy of one layer's cache is left out."""
        cache = (prompt_tokens + max_new_tokens) * self.cache_per_token
        return cache + prompt_tokens * self.states_per_token + self.logits_per_row


def footprint_of(config: Any, *, num_parameters: int, dtype: torch.dtype, loaded: bool) -> SamplingFootprint | None:
    """The footprint of a model by its config; sliding windows count as full attention.

    A token's keys and values are 2 x layers x key-value heads x head dimension numbers. The logits count 32 bytes a
    word of the vocabulary: twice in float32, their probabilities plain and sorted, and two float64 sums.

    Args:
        config: the model's.
        num_parameters: of the model.
        dtype: of the weights, and so of the cache.
        loaded: whether the weights lie on the device already.

    Returns:
        None where the config lacks one of the numbers.
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

    Half of what is free is planned, less the weights, which count twice: steering keeps a copy of those it rewrites.

    Args:
        footprint: of the model; None where it is not known, which gives `FALLBACK_ROWS`.
        prompt_tokens: of the longest prompt.
        max_new_tokens: of the longest response.
        device_type: ``cpu``, ``cuda``, ...
        free_bytes: what the device has free; None where that is not known, which gives `FALLBACK_ROWS`.

    Returns:
        On a CPU at most 64 to 1024, fewer for larger models, because more would bring little there; elsewhere at most
        512; at least 1.
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
    """What a device has free; None where that is not known."""
    return available_bytes(device, held=0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


class FittingParts:
    """Runs batches in parts that fit into memory.

    A batch that does not fit is run again in halves, down to single items. What fitted then holds for all later
    batches, so that each lesson is paid for once.

    Args:
        warn: is told once of every smaller size that fitted.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.largest: int | None = None

    def run(self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
        """The results of all items, in their order.

        Args:
            items: of one batch.
            work: gives one result for each of the items that it is handed.

        Raises:
            torch.OutOfMemoryError: one item alone does not fit (on a CPU, its allocator's RuntimeError).
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
                        f"out of memory with {len(items)} responses at once: sampled again with {told}, which fits, "
                        f"and so are later batches; --data.batch_size {told} would not try more"
                    )
                continue
            # only here, out of the except block, are the failed step's tensors gone
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results


def plan_text(rows: int, footprint: SamplingFootprint | None, prompt_tokens: int, max_new_tokens: int) -> str:
    """The plan in one line, for the log."""
    if footprint is None:
        return f"batch_size auto: {rows} responses at once (the model's config does not say what one takes)"
    each = size(footprint.row_bytes(prompt_tokens, max_new_tokens))
    return f"batch_size auto: {rows} responses at once, about {each} each"
