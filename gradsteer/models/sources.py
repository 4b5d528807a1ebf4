"""What a model's files hold, seen before any weight is read: quantised weights, models of another kind."""

import re
from pathlib import Path
from typing import Any

from gradsteer.records import read_json

# methods whose weights transformers gives back in full precision, and the class that asks for it
_DEQUANTIZED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
_OTHER_KINDS = re.compile("(MaskedLM|Classification|QuestionAnswering|MultipleChoice|RewardModel)$")
_LONGEST = 80


def read_config(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """The config of a directory or hub id as JSON has it; None where there is none to be had.

    Raises:
        ValueError: the file is not a JSON object.
    """
    if Path(name).is_dir():
        path = Path(name) / "config.json"
        return read_json(path) if path.is_file() else None
    from transformers import PreTrainedConfig

    try:
        return dict(PreTrainedConfig.get_config_dict(name, revision=revision)[0]) or None
    except OSError:  # whoever loads the model says that it cannot be had
        return None


def check_kind(name: str, config: dict[str, Any]) -> None:
    """Refuses a model that was made for something else than to go on with a text.

    Raises:
        ValueError: names what its config says it is.
    """
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    if kinds and all(map(_OTHER_KINDS.search, kinds)):
        raise ValueError(
            f"{name!r} is no causal language model: its config says {', '.join(kinds)[:_LONGEST]}, whose weights give "
            "no distribution over the next token; accepted: a model such as LlamaForCausalLM"
        )
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = str(config.get("model_type") or "")
    known = kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING
    if kind and not known and not config.get("auto_map"):
        raise ValueError(
            f"{name!r} is of the type {kind[:_LONGEST]!r} (model_type in its config), which this release of "
            "transformers does not load as a causal language model; accepted: a model such as LlamaForCausalLM, or a "
            "newer transformers where it has the type"
        )


def dequantizing(name: str, config: dict[str, Any]) -> Any:
    """What asks transformers for a checkpoint's weights in full precision; None where they are that already.

    Raises:
        ValueError: they are quantised in a way that is not undone here; names it.
    """
    shown = quantized_as(config)
    if shown is None:
        return None
    if shown in _DEQUANTIZED:
        import transformers

        return getattr(transformers, _DEQUANTIZED[shown])(dequantize=True)
    raise ValueError(
        f"the weights of {name!r} are quantised ({shown}): they take neither gradients nor small steps; accepted: the "
        f"unquantised original, or quantised as {' or '.join(_DEQUANTIZED)}, which is dequantised when it is loaded"
    )


def quantized_as(config: dict[str, Any]) -> str | None:
    """How a checkpoint is quantised: the method, with its bits where it says them; None where it is not."""
    said = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not said:
        return None
    method = said.get("quant_method") or ("bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & set(said) else "unknown")
    if method in _DEQUANTIZED:
        return str(method)
    bits = said.get("bits") or said.get("w_bit") or (4 if said.get("load_in_4bit") else None)
    return f"{str(method)[:_LONGEST]}{f', {bits} bits' if isinstance(bits, int) else ''}"
