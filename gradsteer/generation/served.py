"""How a model's generation_config would have it served, against how it is sampled here.

Servers and ``generate()`` take what is set there for their defaults; sampling here takes nothing of it but stop tokens.
"""

from collections.abc import Collection
from typing import Any

from gradsteer.generation.sampling import SamplingConfig

# setting -> the values that change nothing of a model's own distribution
_OFF: dict[str, tuple[Any, ...]] = {
    "top_k": (0, -1),
    "min_p": (0.0,),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "min_new_tokens": (0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
}
_LONGEST = 40


def served_otherwise(
    generation_config: Any, sampling: SamplingConfig | None = None, stop_token_ids: Collection[int] = ()
) -> list[str]:
    """What a generation_config sets that differs from how responses are sampled.

    Args:
        generation_config: of a transformers model; None where it has none.
        sampling: how responses are sampled; by default from the model's own distribution.
        stop_token_ids: that end a response.

    Returns:
        A text for each setting, with the value here in brackets; empty where nothing differs.
    """
    if generation_config is None:
        return []
    plain = sampling or SamplingConfig(max_new_tokens=1)
    here = {"do_sample": plain.temperature > 0, "temperature": plain.temperature, "top_p": plain.top_p}
    if sampling is not None:
        here["max_new_tokens"] = sampling.max_new_tokens
    given = {key: value for key, value in generation_config.to_diff_dict().items() if value is not None}
    if not here["do_sample"] and not given.get("do_sample", False):  # greedy both: nothing is drawn
        given = {
            key: value for key, value in given.items() if key not in ("do_sample", "temperature", "top_p", "top_k")
        }
    found = []
    for key, value in given.items():
        if key not in {**_OFF, **here} or (value == here[key] if key in here else value in _OFF[key]):
            continue
        found.append(f"{key} {repr(value)[:_LONGEST]} (here {here.get(key, 'off')})")
    ends = generation_config.eos_token_id
    stops = {int(token) for token in (ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])}
    if further := sorted(set(stop_token_ids) - stops):
        found.append(f"no stop at token {', '.join(map(str, further))} (here it ends a response)")
    return found
