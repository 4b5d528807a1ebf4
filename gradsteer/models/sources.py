"""What a model's files hold, seen before any weight is read: adapters, quantised weights, models of another kind."""

import re
from pathlib import Path
from typing import Any

from gradsteer.records import read_json

# methods whose weights transformers gives back in full precision, and the class that asks for it
_DEQUANTIZED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
_OTHER_KINDS = re.compile("(MaskedLM|Classification|QuestionAnswering|MultipleChoice|RewardModel)$")
_LONGEST = 80


def refuse_adapter(name: str, revision: str | None = None) -> None:
    """Refuses a directory or hub id that holds an adapter, which transformers would attach without a word.

    Raises:
        ValueError: names the base that the adapter is for, and how to merge the two.
    """
    if Path(name).is_dir():
        found = Path(name) / "adapter_config.json"
    else:
        from transformers.utils.peft_utils import find_adapter_config_file

        found = Path(find_adapter_config_file(name, revision=revision) or "")
    if not found.is_file():
        return
    settings = read_json(found)
    base = f"{settings.get('peft_type') or 'adapter'} on {settings.get('base_model_name_or_path')!r}"[:_LONGEST]
    raise ValueError(
        f"{name!r} holds an adapter (adapter_config.json: {base}), not a model: gradients and steps are of a model's "
        f"own weights; accepted: the merged model, peft.AutoPeftModelForCausalLM.from_pretrained({name!r})"
        ".merge_and_unload().save_pretrained(DIRECTORY), with its tokenizer and without adapter_config.json"
    )


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
    said = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not said:
        return None
    method = said.get("quant_method") or ("bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & set(said) else "unknown")
    if method in _DEQUANTIZED:
        import transformers

        return getattr(transformers, _DEQUANTIZED[method])(dequantize=True)
    bits = said.get("bits") or said.get("w_bit") or (4 if said.get("load_in_4bit") else None)
    shown = f"{str(method)[:_LONGEST]}{f', {bits} bits' if isinstance(bits, int) else ''}"
    raise ValueError(
        f"the weights of {name!r} are quantised ({shown}): they take neither gradients nor small steps; accepted: the "
        f"unquantised original, or quantised as {' or '.join(_DEQUANTIZED)}, which is dequantised when it is loaded"
    )
