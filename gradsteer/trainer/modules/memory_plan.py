"""The memory plan of an attribution run."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from gradsteer.data.chat import EncodedExample
from gradsteer.models.adapter_space import all_weights, dequantized_bytes
from gradsteer.models.memory import MemoryPlan, activation_bytes_per_token, plan_memory
from gradsteer.trainer.modules.gradient_options import PointOptions


def attribution_plan(
    model: Any,
    examples: Sequence[EncodedExample],
    *,
    parameters: Sequence[str],
    token_budget: int,
    head_chunk: int | None,
    packs: bool,
    shards: int,
    forward: AbstractContextManager[Any],
    mixed: bool,
    has_reference: bool,
    options: PointOptions,
) -> MemoryPlan:
    """Estimates an attribution's memory on one device. Collective if the weights are split.

    Args:
        model: the model, on its device and in the mode that it will run in.
        examples: the examples of all piles.
        parameters: names of the parameters that get gradients.
        token_budget: tokens per batch.
        head_chunk: positions per chunk of the head; None for no chunking.
        packs: whether sequences are packed; otherwise batches are padded.
        shards: number of processes that the weights are split over.
        forward: context for forward passes (autocast).
        mixed: whether autocast keeps half-precision copies of the weights.
        has_reference: whether a reference model is loaded too.
        options: the points at which gradients are taken.
    """
    budget = max(token_budget, *(len(example.input_ids) for example in examples))
    with forward:
        activations = activation_bytes_per_token(model, examples[:100], parameters=parameters, packs=packs)
    weights = {name: (weight.numel(), weight.element_size()) for name, weight in model.named_parameters()}
    everything = all_weights(model).values()
    copies = int(options.move_weights)  # the originals of weights that move
    copies += int(options.need_base and shards > 1)  # otherwise the base stays in the CPU's memory
    other = copies * sum(numel * size for numel, size in weights.values())
    other += sum(weight.numel() * weight.element_size() for weight in everything) if has_reference else 0
    other += sum(2 * weight.numel() for weight in everything) if mixed else 0
    other += dequantized_bytes(model)
    other += sum(weights[name][0] for name in parameters) if options.mask_draws is not None else 0
    other += 12 * max(numel for numel, _ in weights.values()) if options.move_weights else 0  # what moves them
    return plan_memory(
        model,
        parameters=parameters,
        token_budget=budget,
        labelled_tokens=min(budget, sum(example.num_target_tokens for example in examples)),
        head_chunk=head_chunk,
        activation_bytes_per_token=activations,
        other_bytes=other // shards,
        shards=shards,
    )
