"""Sampling responses from a Hugging Face causal language model, in batches with a key-value cache.

A response depends on the weights, the prompt and its own random numbers, never on which other prompts shared
its batch: the random numbers are counted from the prompt, the sample and the seed, and the padding is masked.
So two conditions sampled with the same seed differ by their weights alone.

This file knows token ids and logits; it does not know text, judges or files.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How common chat templates end a turn. A model's generation config often lacks its template's token.
END_OF_TURN_TOKENS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")
# Much smaller temperatures underflow in float32; whoever asks for one means greedy decoding.
MIN_TEMPERATURE = 1e-6
# Dropping rows copies the cache once, about what one more step costs.
MIN_FINISHED_SHARE_TO_DROP = 0.25


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn from the model's distribution.

    Args:
        max_new_tokens: The longest response, in tokens, the stop token included; at least 1.
        temperature: Divides the logits. 1 samples the model's own distribution, 0 is greedy.
        top_p: Sample from the smallest set of tokens whose probability reaches this, in (0, 1]; 1 keeps all.

    Raises:
        ValueError: If a value is outside its range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf):
            accepted = f"0 (greedy) or finite and at least {MIN_TEMPERATURE}"
            raise ValueError(f"temperature is {self.temperature}; it must be {accepted}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be greater than 0 and at most 1")


@dataclass(frozen=True)
class Draw:
    """One response to draw.

    Args:
        prompt_token_ids: The prompt as the model reads it, chat template included.
        sample: Which of the prompt's samples this is.
        seed: The run's seed.
    """

    prompt_token_ids: list[int]
    sample: int
    seed: int


@dataclass
class Sampled:
    """One response.

    Args:
        token_ids: The tokens drawn; the last is a stop token if and only if `finish_reason` is `stop`.
        finish_reason: `stop` when the model ended the response, `length` when `max_new_tokens` cut it.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


def uniforms(draw: Draw, num: int) -> npt.NDArray[np.float64]:
    """The draw's own random numbers: a function of its prompt, sample and seed, and of nothing else.

    A digest of the draw keys a Philox counter generator (Salmon et al. 2011, "Parallel random numbers:
    as easy as 1, 2, 3"). Its raw words are scaled here: numpy promises that their stream never changes.

    Returns:
        (num,), uniform on [0, 1) in steps of 2^-53; the first k are the same for every `num` >= k.
    """
    ids = ",".join(str(int(token)) for token in draw.prompt_token_ids)
    digest = hashlib.sha256(f"{draw.seed}|{draw.sample}|{ids}".encode()).digest()
    words = np.asarray(np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(num))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response.

    The end-of-sequence tokens of the model's generation config (one, several or none) and of the tokenizer,
    and those of `END_OF_TURN_TOKENS` that the tokenizer knows; ascending, empty when there are none.
    """
    found: set[int] = set()
    for named in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if named is not None:
            found.update(named if isinstance(named, (list, tuple)) else [named])
    vocabulary = tokenizer.get_vocab()
    found.update(vocabulary[token] for token in END_OF_TURN_TOKENS if token in vocabulary)
    return sorted(int(token) for token in found)


def sample_batch(
    model: PreTrainedModel,
    draws: Sequence[Draw],
    config: SamplingConfig,
    *,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
) -> list[Sampled]:
    """Draws one response for each of `draws`, all in one batch.

    Each token is the inverse of the row's cumulative distribution at the row's own uniform number (float64).
    Equal prompts are read once. The model's train or eval modes are put back afterwards.

    Args:
        model: Any causal model that takes `past_key_values`. Its config's `use_cache` is not consulted.
        draws: The responses to draw; prompts may differ in length and repeat.
        config: Length, temperature and top-p.
        stop_token_ids: Tokens that end a response; with none, every response has `max_new_tokens` tokens.
        pad_token_id: Fills the left of shorter prompts. It is masked: any id of the vocabulary will do.

    Returns:
        One response for each draw, in the order of `draws`.

    Raises:
        ValueError: If a prompt is empty or leaves too little room for `max_new_tokens`, if the model keeps no
            key-value cache, or if its logits for a draw are not finite.
    """
    if not draws:
        return []
    max_new_tokens = config.max_new_tokens
    _check_prompts(model, draws, max_new_tokens)
    stops = np.asarray(stop_token_ids, dtype=np.int64)
    tokens = np.full((len(draws), max_new_tokens), pad_token_id, dtype=np.int64)
    lengths = np.full(len(draws), max_new_tokens)
    stopped = np.zeros(len(draws), dtype=np.bool_)
    rows = np.arange(len(draws))  # the draw that each row of the batch belongs to
    numbers = torch.from_numpy(np.stack([uniforms(draw, max_new_tokens) for draw in draws]))
    if model.device.type != "mps":  # which has no float64: there the draws are made on the CPU
        numbers = numbers.to(model.device)

    # not inference_mode: what a model keeps from a forward, such as rotary tables that grow with the length,
    # would then be unusable in a later backward pass
    with _evaluating(model), torch.no_grad():
        logits, cache, mask, position = _read_prompts(model, draws, max_new_tokens, pad_token_id)
        width = mask.shape[1] - max_new_tokens
        for step in range(max_new_tokens):
            picked = _pick(logits, numbers[:, step], config)
            chosen = picked.cpu().numpy()
            live = ~stopped[rows]
            if (bad := live & (chosen < 0)).any():
                raise ValueError(f"the model's logits are not finite for draw {rows[bad][0]} at token {step}")
            tokens[rows[live], step] = chosen[live]
            ended = rows[live & np.isin(chosen, stops)]
            stopped[ended] = True
            lengths[ended] = step + 1
            live = ~stopped[rows]
            if step + 1 == max_new_tokens or not live.any():
                break
            if 1 - live.mean() >= MIN_FINISHED_SHARE_TO_DROP:
                rows = rows[live]
                keep = torch.from_numpy(np.flatnonzero(live)).to(mask.device)
                picked, mask, position = picked[keep], mask[keep], position[keep]
                numbers = numbers[keep.to(numbers.device)]
                cache.reorder_cache(keep)
            # a finished row still in the batch goes on, unrecorded: rows do not see each other
            ids = picked.clamp(min=0)[:, None]
            logits = _forward(model, ids, mask[:, : width + step + 1], position[:, None] + step, cache)

    return [
        Sampled(row[:length].tolist(), "stop" if stop else "length")
        for row, length, stop in zip(tokens, lengths, stopped, strict=True)
    ]


def _check_prompts(model: PreTrainedModel, draws: Sequence[Draw], max_new_tokens: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = math.inf if limit is None else limit - max_new_tokens
    for index, draw in enumerate(draws):
        if not 1 <= (length := len(draw.prompt_token_ids)) <= longest:
            accepted = f"1 to {longest}: max_position_embeddings={limit} less max_new_tokens={max_new_tokens}"
            raise ValueError(f"the prompt of draw {index} has {length} tokens; accepted are {accepted}")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is back in its own mode, which may differ between them."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _read_prompts(
    model: PreTrainedModel, draws: Sequence[Draw], max_new_tokens: int, pad_token_id: int
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Reads each distinct prompt once and spreads the result over the draws.

    Returns:
        The logits of each draw's first token (draws, vocabulary); the cache; the attention mask of the prompt
        and all that may follow (draws, longest prompt + max_new_tokens); that token's position (draws,).
    """
    from transformers import DynamicCache

    row_of_prompt: dict[tuple[int, ...], int] = {}
    spread = [row_of_prompt.setdefault(tuple(draw.prompt_token_ids), len(row_of_prompt)) for draw in draws]
    width = max(map(len, row_of_prompt))
    ids = torch.full((len(row_of_prompt), width), pad_token_id, dtype=torch.long)
    mask = torch.ones((len(row_of_prompt), width + max_new_tokens), dtype=torch.long)
    for row, prompt in enumerate(row_of_prompt):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, : width - len(prompt)] = 0

    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)  # (prompts, width)
    cache: Any = DynamicCache(config=model.config)
    logits = _forward(model, ids, mask[:, :width], positions, cache)
    indices = torch.tensor(spread, device=model.device)
    # reorder_cache, not batch_select_indices, which the layers of linear-attention models lack
    cache.reorder_cache(indices)
    return logits[indices], cache, mask[indices], positions[indices, -1] + 1


def _forward(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """One step: ids (rows, new tokens) -> logits of the last position (rows, vocabulary), float32 or more."""
    # an adapter's wrapper hides which arguments the model inside it takes
    unwrap: Any = getattr(model, "get_base_model", None)
    accepted = inspect.signature((unwrap() if unwrap else model).forward).parameters
    if "past_key_values" not in accepted:
        raise ValueError(f"{type(model).__name__} takes no past_key_values; sampling needs a key-value cache")
    optional: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
    inputs = {name: value for name, value in optional.items() if name in accepted}
    # a config changed for training may say otherwise of these two
    inputs |= {"use_cache": True, "return_dict": True}
    logits: Tensor = model(input_ids=ids, attention_mask=mask, past_key_values=cache, **inputs).logits[:, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _pick(logits: Tensor, numbers: Tensor, config: SamplingConfig) -> Tensor:
    """Chooses a token for each row of logits (rows, vocabulary) by its uniform number (rows,).

    Returns:
        (rows,), on the device of `logits`; -1 where they hold NaN or infinity, or -inf alone. A token at -inf
        among finite ones is one that the model rules out.
    """
    top = logits.amax(dim=-1)  # NaN if any is
    if config.temperature == 0:
        return logits.argmax(dim=-1).masked_fill(~top.isfinite(), -1)
    # less the maximum before dividing, so that no temperature overflows
    probabilities = ((logits - top[:, None]) / config.temperature).softmax(dim=-1).to(numbers.device)
    if config.top_p < 1:  # nucleus sampling (Holtzman et al. 2020): zero all but the smallest sufficient set
        ordered, indices = probabilities.sort(dim=-1, descending=True, stable=True)
        mass_before = ordered.cumsum(dim=-1, dtype=torch.float64)[:, :-1]
        ordered[:, 1:].masked_fill_(mass_before >= config.top_p, 0.0)  # the top one always stays
        probabilities = torch.zeros_like(ordered).scatter(-1, indices, ordered)
    cdf = probabilities.cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1:]  # multiplying the number by the total renormalises
    target = torch.minimum(numbers[:, None] * total, total.nextafter(torch.zeros_like(total)))
    # the first token whose cumulative mass exceeds the target: never one of probability zero
    picked = torch.searchsorted(cdf, target, right=True)[:, 0]
    return picked.to(top.device).masked_fill(~top.isfinite(), -1)
