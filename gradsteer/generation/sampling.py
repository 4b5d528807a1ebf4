"""Sampling settings, each response's own random numbers, and the choice of a token from logits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# End-of-turn tokens of common chat templates. A model's generation config often lacks its template's token.
END_OF_TURN_TOKENS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")
# In the harmony format a reply has several messages, each ended by <|end|>; these end the reply.
_CHANNEL, HARMONY_END_TOKENS = "<|channel|>", ("<|return|>", "<|call|>")
# Much smaller temperatures underflow in float32; use 0 for greedy decoding.
MIN_TEMPERATURE = 1e-6
# Derived seeds stay exact integers in every JSON reader.
_SEED_BITS = 52


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn from the model's distribution.

    Args:
        max_new_tokens: Maximum response length in tokens, including the stop token; at least 1.
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
        sample: Index of this sample among the prompt's samples.
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
        finish_reason: `stop` if the model ended the response, `length` if `max_new_tokens` truncated it.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


def uniforms(draw: Draw, num: int) -> npt.NDArray[np.float64]:
    """The draw's own random numbers, a function of only its prompt, sample and seed.

    A digest of the draw keys a Philox counter generator (Salmon et al. 2011, "Parallel random numbers:
    as easy as 1, 2, 3"). Its raw words are scaled here: numpy promises that their stream never changes.

    Returns:
        (num,), uniform on [0, 1) in steps of 2^-53; the first k are the same for every `num` >= k.
    """
    ids = ",".join(str(int(token)) for token in draw.prompt_token_ids)
    digest = hashlib.sha256(f"{draw.seed}|{draw.sample}|{ids}".encode()).digest()
    words = np.asarray(np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(num))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def check_seeds(seeds: int | Sequence[int]) -> list[int]:
    """The seeds of a run as a list.

    Raises:
        ValueError: There is none, one is negative, or one occurs twice, which would count its responses twice.
    """
    given = [seeds] if isinstance(seeds, int) else list(seeds)
    if not given or any(seed < 0 for seed in given) or len(set(given)) < len(given):
        raise ValueError(f"sampling_seed is {seeds}; accepted: one or several different whole numbers, at least 0")
    return given


def fresh_seeds(seeds: Sequence[int], resample: int) -> list[int]:
    """Fresh seeds for sampling a condition again.

    Each is the digest of a given seed and the resample's number. All resamples' seeds differ from each other and from
    the given ones; those of one resample do not depend on how many others there are.

    Args:
        seeds: The run's seeds.
        resample: The resample's number, from 1.

    Returns:
        As many seeds as were given, below 2^52.
    """
    if resample < 1:
        raise ValueError(f"resample is {resample}; accepted: at least 1")
    taken = set(seeds)
    fresh: list[int] = []
    for number in range(1, resample + 1):
        fresh = []
        for seed in seeds:
            derived, attempt = seed, 0
            while derived in taken:
                digest = hashlib.sha256(f"resample|{number}|{seed}|{attempt}".encode()).digest()
                derived, attempt = int.from_bytes(digest[:8], "little") >> (64 - _SEED_BITS), attempt + 1
            taken.add(derived)
            fresh.append(derived)
    return fresh


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response.

    The end-of-sequence tokens of the model's generation config (one, several or none) and of the tokenizer, plus those
    of `END_OF_TURN_TOKENS` in the tokenizer's vocabulary; ascending, possibly empty. Where the vocabulary has
    `<|channel|>` (the harmony format), `<|end|>` ends a message and not the reply: `HARMONY_END_TOKENS` are taken
    instead.
    """
    found: set[int] = set()
    for named in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if named is not None:
            found.update(named if isinstance(named, (list, tuple)) else [named])
    vocabulary = tokenizer.get_vocab()
    if _CHANNEL in vocabulary:
        found.discard(vocabulary.get("<|end|>", -1))
    ends = HARMONY_END_TOKENS if _CHANNEL in vocabulary else END_OF_TURN_TOKENS
    found.update(vocabulary[token] for token in ends if token in vocabulary)
    if odd := [token for token in found if not isinstance(token, int)]:
        raise ValueError(f"the generation_config's eos_token_id holds {odd[0]!r}; accepted: token ids, whole numbers")
    return sorted(found)


def num_known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token ids up to the largest that the tokenizer has a text for.

    Models have rows for more where the vocabulary was padded; such an id decodes to nothing, and is never drawn.
    """
    return int(max(tokenizer.get_vocab().values())) + 1


def pick(logits: Tensor, numbers: Tensor, config: SamplingConfig) -> Tensor:
    """Chooses a token for each row of logits (rows, vocabulary) from its uniform number (rows,).

    Returns:
        (rows,), on the device of `logits`; -1 for rows that contain NaN or infinity, or only -inf. A token at -inf
        among finite ones has been ruled out by the model.
    """
    top = logits.amax(dim=-1)  # NaN if any is
    if config.temperature == 0:
        return logits.argmax(dim=-1).masked_fill(~top.isfinite(), -1)
    # subtract the maximum before dividing, so that no temperature overflows
    probabilities = ((logits - top[:, None]) / config.temperature).softmax(dim=-1).to(numbers.device)
    if config.top_p < 1:
        probabilities = probabilities.masked_fill(~nucleus(probabilities, config.top_p), 0.0)
    cdf = probabilities.cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1:]  # multiplying the number by the total renormalises
    target = torch.minimum(numbers[:, None] * total, total.nextafter(torch.zeros_like(total)))
    # the first token whose cumulative mass exceeds the target, never one with probability zero
    picked = torch.searchsorted(cdf, target, right=True)[:, 0]
    return picked.to(top.device).masked_fill(~top.isfinite(), -1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest set of tokens whose mass reaches `top_p` (nucleus sampling, Holtzman et al. 2020).

    The top token is always included; among equal probabilities, lower token ids come first.

    Args:
        probabilities: (rows, vocabulary).
        top_p: more than 0, below 1.

    Returns:
        (rows, vocabulary) bool.
    """
    ordered = _descending(probabilities)
    mass_before = ordered.cumsum(dim=-1, dtype=torch.float64)[:, :-1]
    last = (mass_before < top_p).sum(dim=-1, keepdim=True)  # place of the last token that stays
    least = ordered.gather(-1, last)
    equal = probabilities == least
    room = last + 1 - (probabilities > least).sum(dim=-1, keepdim=True)
    if bool((equal.sum(dim=-1, keepdim=True) > room).any()):
        # False once the room is full
        equal &= equal.cumsum(dim=-1) <= room
    return (probabilities > least) | equal


def _descending(values: Tensor) -> Tensor:
    """The rows sorted in descending order; on the CPU by numpy, whose sort is ten times as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)
    return values.sort(dim=-1, descending=True).values
