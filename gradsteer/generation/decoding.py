"""Sampling responses from a Hugging Face causal language model, in batches with a key-value cache.

A response depends on the weights, the prompt and its own random numbers, but not on the other prompts in its batch:
random numbers are derived from the prompt, the sample and the seed, and padding is masked. So two conditions sampled
with the same seed differ only by their weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradsteer.generation.sampling import Draw, Sampled, SamplingConfig, pick, stop_token_ids, uniforms
from gradsteer.models.train_mode import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Draw", "NonFiniteLogitsError", "Sampled", "SamplingConfig", "SamplingStats", "longest_prompt", "sample_batch",
    "stop_token_ids", "uniforms",
]  # fmt: skip

Step = Callable[[Tensor, Tensor, Tensor, Any], Tensor]

# Dropping rows copies the cache once, which costs about as much as one step.
MIN_FINISHED_SHARE_TO_DROP = 0.25


class NonFiniteLogitsError(ValueError):
    """The model's logits cannot be sampled from.

    Args:
        index: The draw's index in the batch.
        draw: The draw.
        step: Number of tokens sampled so far.
    """

    def __init__(self, index: int, draw: Draw, step: int) -> None:
        super().__init__(f"the model's logits are not finite for draw {index} at token {step}")
        self.draw, self.step = draw, step


@dataclass
class SamplingStats:
    """How much sampling computed, and how much of it was useful.

    Attributes:
        prompt_tokens: Tokens of the distinct prompts in each batch.
        prompt_positions: The same, including padding.
        sampled_tokens: Tokens of all responses.
        useful_positions: Decoding positions of unfinished responses.
        decode_positions: The same, including finished responses still in the batch.
        seconds: Wall-clock time.
    """

    prompt_tokens: int = 0
    prompt_positions: int = 0
    sampled_tokens: int = 0
    useful_positions: int = 0
    decode_positions: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """The counters, `tokens_per_second`, and the fractions `prefill_padding` and `decode_waste` (0 if empty)."""
        shares = {
            "tokens_per_second": self.sampled_tokens / self.seconds if self.seconds else 0.0,
            "prefill_padding": 1 - self.prompt_tokens / self.prompt_positions if self.prompt_positions else 0.0,
            "decode_waste": 1 - self.useful_positions / self.decode_positions if self.decode_positions else 0.0,
        }
        return {**vars(self), **shares}


def longest_prompt(config: Any, max_new_tokens: int) -> int | None:
    """Maximum prompt length that leaves room for a response.

    Args:
        config: The model's config.
        max_new_tokens: Maximum length of the response.

    Returns:
        `max_position_embeddings` minus `max_new_tokens`, which may be below 1; None if the config has no limit.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit) - max_new_tokens


def sample_batch(
    model: PreTrainedModel,
    draws: Sequence[Draw],
    config: SamplingConfig,
    *,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    num_known: int | None = None,
    stats: SamplingStats | None = None,
    on_step: Callable[[], None] | None = None,
    share_prompts: bool = True,
    min_finished_share_to_drop: float = MIN_FINISHED_SHARE_TO_DROP,
) -> list[Sampled]:
    """Draws one response for each of `draws`, all in one batch.

    Each token inverts the row's cumulative distribution at the row's own uniform number (float64). The model's train
    and eval modes are restored afterwards.

    Args:
        model: Any causal model that takes `past_key_values`. Its config's `use_cache` is ignored.
        draws: The responses to draw; prompts may differ in length and may repeat.
        config: Length, temperature and top-p.
        stop_token_ids: Tokens that end a response; with none, every response has `max_new_tokens` tokens.
        pad_token_id: Fills the left of shorter prompts. It is masked: any id of the vocabulary will do.
        num_known: Draw from the ids below this one (`num_known_ids`), renormalised; by default from all of the model's.
        stats: Takes the counts of this batch, once it is complete.
        on_step: Is called whenever each response that goes on has another token.
        share_prompts: Read equal prompts once. Changes the speed only.
        min_finished_share_to_drop: Finished rows leave the batch when they are this share of it; more than 1 keeps
            them. Changes the speed only.

    Returns:
        One response for each draw, in the order of `draws`.

    Raises:
        ValueError: If a prompt is empty, holds an id that the model has no row for or leaves too little room for
            `max_new_tokens`, if the model takes no key-value cache or does not fill it, or if its logits for a draw are
            not finite (`NonFiniteLogitsError`).
    """
    if not draws:
        return []
    max_new_tokens = config.max_new_tokens
    _check_prompts(model, draws, max_new_tokens)
    forward, counts = _stepper(model), SamplingStats()
    stops = np.asarray(stop_token_ids, dtype=np.int64)
    tokens = np.full((len(draws), max_new_tokens), pad_token_id, dtype=np.int64)
    lengths = np.full(len(draws), max_new_tokens)
    stopped = np.zeros(len(draws), dtype=np.bool_)
    rows = np.arange(len(draws))  # the draw that each row of the batch belongs to
    numbers = torch.from_numpy(np.stack([uniforms(draw, max_new_tokens) for draw in draws]))
    if model.device.type != "mps":  # MPS has no float64, so its draws are made on the CPU
        numbers = numbers.to(model.device)

    # not inference_mode: tensors that a model caches in a forward pass, such as growing rotary tables, would then be
    # unusable in a later backward pass
    with evaluating(model), torch.no_grad():
        prompts = [(tuple(draw.prompt_token_ids), 0 if share_prompts else row) for row, draw in enumerate(draws)]
        logits, cache, mask, position = _read_prompts(model, forward, prompts, max_new_tokens, pad_token_id)
        counts.prompt_tokens = sum(len(ids) for ids, _ in set(prompts))
        counts.prompt_positions = len(set(prompts)) * max(len(ids) for ids, _ in prompts)
        width = mask.shape[1] - max_new_tokens
        for step in range(max_new_tokens):
            picked = pick(logits[:, :num_known], numbers[:, step], config)
            chosen = picked.cpu().numpy()
            live = ~stopped[rows]
            if (bad := live & (chosen < 0)).any():
                first = int(rows[bad][0])
                raise NonFiniteLogitsError(first, draws[first], step)
            tokens[rows[live], step] = chosen[live]
            ended = rows[live & np.isin(chosen, stops)]
            stopped[ended] = True
            lengths[ended] = step + 1
            if on_step is not None:
                on_step()
            live = ~stopped[rows]
            if step + 1 == max_new_tokens or not live.any():
                break
            counts.useful_positions += int(live.sum())
            if 0 < 1 - live.mean() >= min_finished_share_to_drop:
                rows = rows[live]
                keep = torch.from_numpy(np.flatnonzero(live)).to(mask.device)
                picked, mask, position = picked[keep], mask[keep], position[keep]
                numbers = numbers[keep.to(numbers.device)]
                cache.reorder_cache(keep)
            # finished rows still in the batch keep decoding, unrecorded: rows do not see each other
            ids = picked.clamp(min=0)[:, None]
            logits = forward(ids, mask[:, : width + step + 1], position[:, None] + step, cache)
            counts.decode_positions += len(rows)

    if stats is not None:
        counts.sampled_tokens = int(lengths.sum())
        for name, value in vars(counts).items():
            setattr(stats, name, getattr(stats, name) + value)
    return [
        Sampled(row[:length].tolist(), "stop" if stop else "length")
        for row, length, stop in zip(tokens, lengths, stopped, strict=True)
    ]


def _check_prompts(model: PreTrainedModel, draws: Sequence[Draw], max_new_tokens: int) -> None:
    room = longest_prompt(model.config, max_new_tokens)
    longest = math.inf if room is None else room
    for index, draw in enumerate(draws):
        if not 1 <= (length := len(draw.prompt_token_ids)) <= longest:
            limit = f"max_position_embeddings={longest + max_new_tokens}"
            accepted = f"1 to {longest}: {limit} less max_new_tokens={max_new_tokens}"
            raise ValueError(f"the prompt of draw {index} has {length} tokens; accepted are {accepted}")
        if (largest := max(draw.prompt_token_ids)) >= model.config.get_text_config().vocab_size:
            accepted = f"0 to {model.config.get_text_config().vocab_size - 1}, the model's"
            raise ValueError(f"the prompt of draw {index} has the token id {largest}; accepted are {accepted}")


def _read_prompts(
    model: PreTrainedModel,
    forward: Step,
    prompts: Sequence[tuple[tuple[int, ...], int]],
    max_new_tokens: int,
    pad_token_id: int,
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Reads each distinct prompt once and spreads the result over the draws.

    Args:
        model: As for `sample_batch`.
        forward: The model's step function.
        prompts: For each draw, its token ids and a number; equal prompts are shared only if the number is equal too.
        max_new_tokens: As for `sample_batch`.
        pad_token_id: As for `sample_batch`.

    Returns:
        The logits of each draw's first token (draws, vocabulary); the cache; the attention mask of the prompt and all
        possible new tokens (draws, longest prompt + max_new_tokens); the first token's position (draws,).
    """
    from gradsteer.generation.cache import check_filled, roomy_cache

    row_of_prompt: dict[tuple[tuple[int, ...], int], int] = {}
    spread = [row_of_prompt.setdefault(prompt, len(row_of_prompt)) for prompt in prompts]
    width = max(len(prompt) for prompt, _ in row_of_prompt)
    ids = torch.full((len(row_of_prompt), width), pad_token_id, dtype=torch.long)
    mask = torch.ones((len(row_of_prompt), width + max_new_tokens), dtype=torch.long)
    for row, (prompt, _) in enumerate(row_of_prompt):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, : width - len(prompt)] = 0

    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)  # (prompts, width)
    try:
        cache: Any = roomy_cache(model.config, width + max_new_tokens)
        logits = forward(ids, mask[:, :width], positions, cache)
    except (TypeError, AttributeError, NotImplementedError) as error:  # a cache of its own kind, such as MiniMax's
        name, said = type(model).__name__, f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} does not run with the key-value cache that sampling gives it ({said})") from error
    check_filled(cache, width, type(model).__name__)
    indices = torch.tensor(spread, device=model.device)
    # reorder_cache, because linear-attention layers lack batch_select_indices
    cache.reorder_cache(indices)
    return logits[indices], cache, mask[indices], positions[indices, -1] + 1


def _stepper(model: PreTrainedModel) -> Step:
    """One step of the model, from ids (rows, new tokens), attention mask, positions and cache.

    It returns the logits of the last position (rows, vocabulary), in float32 or higher precision.
    """
    # an adapter's wrapper hides which arguments the model inside it takes
    unwrap: Any = getattr(model, "get_base_model", None)
    accepted = inspect.signature((unwrap() if unwrap else model).forward).parameters
    if "past_key_values" not in accepted:
        raise ValueError(f"{type(model).__name__} takes no past_key_values; sampling needs a key-value cache")

    def step(ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        optional: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        inputs = {name: value for name, value in optional.items() if name in accepted}
        # a config changed for training may have other values for these two
        inputs |= {"use_cache": True, "return_dict": True}
        logits: Tensor = model(input_ids=ids, attention_mask=mask, past_key_values=cache, **inputs).logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    return step
