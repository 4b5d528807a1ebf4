"""A LoRA adapter on its base: attached by peft and checked, merged into it, or its tensors alone as the parameters.

peft holds an adapter's matrices beside each module, which then gives ``W x + scaling * B A x``.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradsteer.models.adapters import Adapter, vocabulary_note
from gradsteer.models.fingerprints import changed

NAME = "default"  # peft's own for an adapter that is alone
_OWN = tuple(f".{part}." for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"))
_PEFTS_OWN = (
    "fan_in_fan_out is set to",  # peft has one flag for all modules, and sets it right for each
    "`is_gradient_checkpointing` is deprecated",  # peft 0.21 asks for a name that transformers 5.23 has renamed
    "Model has `tie_word_embeddings=True`",  # tied weights are seen to here
    "Model with `tie_word_embeddings=True`",
    "Input and output embeddings are no longer tied",
    "for .*: copying from a non-meta parameter",  # the outline has no values
    "Unsupported layer type",
)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Within the block peft does not warn of what is seen to here."""
    with warnings.catch_warnings():
        for message in _PEFTS_OWN:
            warnings.filterwarnings("ignore", message=message)
        yield


def attach(model: Any, adapter: Adapter, tensors: Mapping[str, Tensor]) -> Any:
    """Puts an adapter on its base, in place, by peft.

    Args:
        model: the base; also one without values, to see whether the adapter fits, or for the adapter's tensors alone.
        adapter: its settings.
        tensors: `Adapter.tensors`, or `Adapter.shapes` for a model without values.

    Returns:
        peft's model; the transformers model in it is its ``get_base_model()``.

    Raises:
        ValueError: names, shapes or the vocabulary are those of another base.
    """
    from peft import PeftModelForCausalLM, set_peft_model_state_dict

    misfit = (
        f"the adapter {adapter.name!r} does not fit its base {model.config.name_or_path!r} ({type(model).__name__})"
    )
    way_out = "accepted: the base that it was trained on (--model.adapter_base)"
    outline = any(parameter.is_meta for parameter in model.parameters())
    with quiet_peft():
        try:
            wrapped: Any = PeftModelForCausalLM(model, adapter.config(), low_cpu_mem_usage=outline)
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{misfit}: {_first_line(error)}; {way_out}") from error
        if outline and not any(tensor.is_meta for tensor in tensors.values()):
            _give_room(wrapped)
        whole = {name: tensor for name, tensor in wrapped.state_dict().items() if name in tensors}
        for name, own in whole.items():
            _check_whole(name, tensors[name], own, misfit, way_out)
        rest = {name: tensor for name, tensor in tensors.items() if name not in whole}
        try:
            found: Any = set_peft_model_state_dict(wrapped, rest)
        except RuntimeError as error:  # shapes that differ; peft names the first after a headline
            lines = str(error).splitlines()
            line = next((line.strip() for line in lines if "size mismatch" in line), lines[0])
            raise ValueError(f"{misfit}: {line}{vocabulary_note(line)}; {way_out}") from error
        except KeyError as error:
            raise ValueError(f"{misfit}: its file lacks {error}; {way_out}") from error
    missing = [name for name in found.missing_keys if is_adapters(name)]
    for names, what in ((found.unexpected_keys, "has {} in its file, for which the base has no place"),
                        (missing, "lacks {} in its file")):  # fmt: skip
        if names:
            said = what.format(f"{sorted(names)[0]!r}{f' and {len(names) - 1} others' if len(names) > 1 else ''}")
            raise ValueError(f"{misfit}: it {said}; {way_out}")
    return wrapped


def _give_room(wrapped: Any) -> None:
    """Takes an adapter's own tensors off the meta device, in float32; the base stays there."""
    for name, module in wrapped.named_modules():
        if is_adapters(name):
            module.to_empty(device="cpu", recurse=False).float()


def _check_whole(name: str, theirs: Tensor, own: Tensor, misfit: str, way_out: str) -> None:
    """Refuses a copy of a base's matrix in an adapter's file that is not the base's: peft would take it instead."""
    if theirs.shape != own.shape:
        raise ValueError(
            f"{misfit}: {name!r} is {list(theirs.shape)} in the adapter and {list(own.shape)} in the base"
            f"{vocabulary_note(name)}; {way_out}, or merge it with peft's merge_and_unload"
        )
    coarser = min((own.dtype, theirs.dtype), key=lambda dtype: dtype.itemsize)
    if not own.is_meta and not torch.equal(own.to("cpu", coarser), theirs.to(coarser)):
        raise ValueError(f"{misfit}: it holds {name!r} whole, with other values than the base's; {way_out}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300].rstrip(".")


def is_adapters(name: str) -> bool:
    """Whether a tensor is an adapter's own, by its name in the model that peft made."""
    return any(part in f".{name}." for part in _OWN)


def merged(wrapped: Any) -> Any:
    """The transformers model with the adapter in its weights; embedding and head stay tied if they are still equal.

    peft merges a step into a matrix that embedding and head share, and so into both: here each has its own first.
    """
    tied = _untie(wrapped.get_base_model())
    with quiet_peft():
        model = wrapped.merge_and_unload()
    if tied:
        inward, outward = model.get_input_embeddings(), model.get_output_embeddings()
        tied = torch.equal(inward.weight, outward.weight)
        if tied:
            outward.weight = inward.weight
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = tied
    changed(model)
    return model.requires_grad_(True)


def _untie(model: Any) -> bool:
    """Gives the head a matrix of its own where it shares the embedding's; says whether it did."""
    inward, outward = map(_bare, (model.get_input_embeddings(), model.get_output_embeddings()))
    tied = outward is not None and outward.weight is inward.weight
    if tied:
        outward.weight = nn.Parameter(inward.weight.detach().clone())
    return tied


def _bare(module: Any) -> Any:
    """A module without what peft wrapped it in."""
    while hasattr(module, "base_layer") or hasattr(module, "original_module"):
        module = module.base_layer if hasattr(module, "base_layer") else module.original_module
    return module
