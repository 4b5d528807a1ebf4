"""Refusing, before anything is sampled, steps that a model in half precision does not follow.

It is measured on the forecast's responses; without them on held-out text, and without that on the anchor's own first
replies, which are sampled here.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.data.chat import EncodedExample, encode_sampled
from gradsteer.forecast.step_precision import (
    LOWEST_CORRELATION,
    SLOPES,
    StepPrecision,
    compare_steps,
    first_tokens,
    float32_twin,
)
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch, stop_token_ids
from gradsteer.generation.sampling import num_known_ids
from gradsteer.models.parallel import is_split_model
from gradsteer.progress import progress
from gradsteer.steering.condition_plan import Recipe
from gradsteer.steering.condition_weights import ConditionWeights
from gradsteer.steering.conditions import Condition
from gradsteer.steering.step_measurement import AppliedStep
from gradsteer.trainer.session import sampled_rows, session_of, shows_progress

_RESPONSES, _TOKENS = 32, 64  # scored, and the most of one that are
_BELIEVED = f"a slope of {SLOPES[0]:g} to {SLOPES[1]:g} and a correlation of at least {LOWEST_CORRELATION:g}"

Taken = Sequence[tuple[Condition, Recipe, AppliedStep]]


def check_precision(
    trainer: L.Trainer, pl_module: Any, taken: Taken, weights: ConditionWeights, *, allow: bool
) -> list[dict[str, Any]]:
    """Compares the largest and the smallest of the vectors' own steps with the same steps in float32.

    Args:
        trainer: the Trainer whose session knows of text.
        pl_module: the module that holds the model, in half precision and at its own weights.
        taken: the plan's steps, as the weights took them.
        weights: gives the model each condition's weights.
        allow: warn of a step that the model does not follow instead of refusing it.

    Returns:
        A row for each of the two steps, as results.json holds it.

    Raises:
        ValueError: the model does not follow a step; names the condition.
    """
    sized = [each for each in taken if each[0].kind == "steered" and not each[1].on_base and each[2].relative_norm]
    if not sized:
        return []
    if is_split_model(pl_module.model):
        rank_zero_warn(
            "what a step does is not compared with float32: the weights are split over processes (FSDP2 or tensor "
            "parallelism), and the comparison needs a whole copy of them"
        )
        return []
    if getattr(pl_module.loading.base_loading, "is_quantized", False):
        rank_zero_warn("what a step does is not compared with float32: the base is quantised, and has no weights in it")
        return []
    by_size = sorted(sized, key=lambda each: abs(each[2].relative_norm))
    chosen = [by_size[-1]] if len(by_size) == 1 else [by_size[-1], by_size[0]]
    source, examples, temperature = _text(trainer, pl_module)
    if not examples:
        rank_zero_warn(f"what a step does is not compared with float32: {source} hold no token to score")
        return []
    twin = float32_twin(pl_module.model)
    models = [(pl_module.model, weights), (twin, weights.on(twin))]
    own, exact = (
        (model, [partial(of.of, condition, recipe) for condition, recipe, _ in chosen]) for model, of in models
    )
    with progress("half precision beside float32", unit="batch", shown=shows_progress(trainer)) as tick:
        found = compare_steps(
            own, exact, examples, temperature=temperature, pad_token_id=int(pl_module.tokenizer.pad_token_id), tick=tick
        )
    rows, doubted = [], []
    for (condition, _, step), precision in zip(chosen, found, strict=True):
        about = condition, step, precision, source, pl_module.dtype_name
        rows.append(_row(*about))
        text = _text_of(*about)
        if precision.survives:
            rank_zero_info(text)
        else:
            doubted.append(f"{text}; believed: {_BELIEVED}")
    for text in doubted:
        if not allow:
            raise ValueError(
                f"{text}. Give --model.dtype float32; stochastic rounding (--steering.rounding stochastic) may do, or "
                "take the step as it is: --steering.allow_imprecise true"
            )
        rank_zero_warn(text)
    return rows


def _text(trainer: L.Trainer, pl_module: Any) -> tuple[str, list[EncodedExample], float]:
    """What is scored: a name for it, at most 32 examples, and the temperature."""
    session = session_of(trainer)
    if session.forecasting is not None and session.forecasting.responses is not None:
        responses = session.forecasting.responses
        temperature = session.forecasting.sampling(pl_module)[0]
        return f"responses of {session.forecasting.file}", _some(responses.examples), temperature or 1.0
    temperature = pl_module.sampling.temperature or 1.0
    if session.judging is not None and session.judging.heldout_examples:
        return "examples of evaluation.heldout", _some(session.judging.heldout_examples), temperature
    return "the anchor's first replies", _own_replies(trainer, pl_module), temperature


def _some(examples: Sequence[EncodedExample]) -> list[EncodedExample]:
    """At most 32 examples, evenly spaced, of at most 64 scored tokens each."""
    places = [index * len(examples) // _RESPONSES for index in range(_RESPONSES)]
    return first_tokens([examples[place] for place in dict.fromkeys(places)], _TOKENS)


def _own_replies(trainer: L.Trainer, pl_module: Any) -> list[EncodedExample]:
    """The anchor's replies to the first prompts, as this run samples them."""
    limit = pl_module.longest_prompt
    rows = [row for row in sampled_rows(trainer) if limit is None or len(row["prompt_token_ids"]) <= limit]
    first = sorted(rows, key=lambda row: (row["sample"], row["position"]))[:_RESPONSES]
    if not first:
        return []
    how, model, tokenizer = pl_module.sampling, pl_module.model, pl_module.tokenizer
    longest = min(_TOKENS, how.max_new_tokens)
    with progress("the anchor's first replies", longest, unit="token", shown=shows_progress(trainer)) as tick:
        sampled = sample_batch(
            model,
            [Draw(row["prompt_token_ids"], row["draw"], row["seed"]) for row in first],
            SamplingConfig(max_new_tokens=longest, temperature=how.temperature, top_p=how.top_p),
            stop_token_ids=stop_token_ids(model, tokenizer),
            pad_token_id=int(tokenizer.pad_token_id),
            num_known=num_known_ids(tokenizer),
            on_step=tick,
        )
    return [
        encode_sampled(row["prompt_token_ids"], reply.token_ids, reply.finish_reason, loss_mask="assistant")
        for row, reply in zip(first, sampled, strict=True)
        if reply.token_ids
    ]


def _row(condition: Condition, step: AppliedStep, precision: StepPrecision, source: str, dtype: str) -> dict[str, Any]:
    about = {"condition": condition.name, "alpha": condition.alpha, "dtype": dtype, "text": source}
    took = {key: getattr(step, key) for key in ("relative_norm", "retained_fraction", "step_error")}
    return {**about, **took, **precision.to_dict()}


def _text_of(condition: Condition, step: AppliedStep, precision: StepPrecision, source: str, dtype: str) -> str:
    return (
        f"condition {condition.name!r} in {dtype}: {precision}, on {source}; the weights take "
        f"{step.retained_fraction:.3f} of the step, with an error of {step.step_error:.2g} times it"
    )
