"""A step in an adapter's space as the adapter that it leads to, (A + alpha dA, B + alpha dB): exact, of one rank."""

from pathlib import Path
from typing import Any

from gradsteer.export.cards import card
from gradsteer.export.inputs import Steering, shown_name
from gradsteer.models.adapter_space import pairs
from gradsteer.models.adapter_weights import NAME
from gradsteer.models.loading import Loading
from gradsteer.models.lora import save_adapter
from gradsteer.steering.weight_steering import steered

_VLLMS_RANK = 16  # --max-lora-rank, unless told otherwise


def write_steered_adapter(steering: Steering, loading: Loading, directory: Path) -> dict[str, Any]:
    """Writes the steered adapter as peft does, with its tokenizer and a model card.

    Args:
        steering: its model is in adapter space; it is put back.
        loading: of the adapter.
        directory: exists and is empty.

    Returns:
        For the report: the base, the ranks, how the step's second order moves the weights, and vLLM's limits.

    Raises:
        ValueError: a tensor of the vector is no parameter of the adapter.
    """
    base = loading.base_loading
    assert base is not None
    model = steering.model
    with steered(model, steering.vector, steering.alpha, allow_other_model=True) as step:
        error, relative = step.step_error, step.relative_norm
        save_adapter(model, directory, base=base.name_or_path, revision=base.revision)
    steering.tokenizer.save_pretrained(directory)
    rank = max((len(model.get_parameter(pair.a)) // pair.num_experts for pair in pairs(model)), default=0)
    limits = vllm_limits(model.peft_config[NAME], rank)
    numbers = {
        "base": shown_name(base.name_or_path),
        "rank": f"{rank}, as before: nothing is lost",
        "step error": f"{error:.6f}: the second order in alpha, of the first, over the weights",
        "relative norm": f"{relative:+.6g}: alpha norm(V) / norm(the adapter's tensors)",
    } | {f"vLLM {place}": text for place, text in enumerate(limits, 1)}
    usage = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        'base = AutoModelForCausalLM.from_pretrained("BASE")\n'
        'model = PeftModel.from_pretrained(base, "THIS_DIRECTORY")\n'
    )
    title = f"{shown_name(steering.model_name)}, steered"
    text = card(steering, title=title, library="peft", tags=["lora", "steered"], numbers=numbers, usage=usage)
    (directory / "README.md").write_text(text, encoding="utf-8")
    return {
        "format": "adapter", "adapter_reading": "adapter", "base": base.name_or_path, "rank": rank,
        "step_error": error, "relative_norm": relative, "vllm_limits": limits,
    }  # fmt: skip


def vllm_limits(config: Any, rank: int) -> list[str]:
    """What of an adapter vLLM does not serve as it is, a line each.

    Args:
        config: peft's, of the adapter.
        rank: its largest.
    """
    targets = " ".join(sorted(config.target_modules)) if not isinstance(config.target_modules, str) else ""
    embeds = any(name in targets for name in ("embed", "wte", "lm_head"))
    found = [
        (rank > _VLLMS_RANK, f"rank {rank} needs --max-lora-rank (it takes {_VLLMS_RANK} by default)"),
        (bool(config.modules_to_save), f"modules_to_save ({', '.join(config.modules_to_save or ())}) are refused"),
        (embeds, "steps of embeddings or of the head are not served by most of its models"),
        (bool(config.rank_pattern or config.alpha_pattern), "one rank and alpha are read, rank_pattern and "
         "alpha_pattern are not: a module with another alpha / rank would be scaled wrongly"),
        (bool(config.target_parameters), "target_parameters (experts in one tensor) are not read"),
    ]  # fmt: skip
    return [text for is_so, text in found if is_so]
