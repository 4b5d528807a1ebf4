"""Whether a loaded model has its checkpoint's weights, all of them and no others."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# tensors that older releases of transformers wrote beside the weights, and that are computed anew
_COMPUTED = re.compile(
    r"(rotary_emb\.(inv_freq|(cos|sin)_cached)|\.(attn|attention)\.(bias|masked_bias)|position_ids)$"
)
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "model.", "transformer.", "_fsdp_wrapped_module.")
_SHOWN = 3


def check_loaded(name: str, model: Any, notes: Mapping[str, Any], *, causal: bool = True) -> None:
    """Refuses a model some of whose weights are random, or whose checkpoint holds more than it uses.

    Args:
        name: hub id or directory, for the message.
        model: as ``from_pretrained(output_loading_info=True)`` gives it.
        notes: the second of what that gives: ``missing_keys``, ``mismatched_keys`` and ``unexpected_keys``.
        causal: it is to go on with a text: refuse encoders, and checkpoints with more than the model uses.

    Raises:
        ValueError: names the weights, and what is probably the matter.
    """
    missing, mismatched = sorted(notes["missing_keys"]), sorted(notes["mismatched_keys"])
    unexpected = sorted(key for key in notes["unexpected_keys"] if not _COMPUTED.search(key))
    said = []
    if missing:
        said.append(f"{len(missing)} missing, which would be random ({_shown(missing)})")
    if mismatched:
        sizes = (f"{key} {tuple(theirs)}, the config says {tuple(ours)}" for key, theirs, ours in mismatched)
        said.append(f"{len(mismatched)} of another shape ({_shown(sizes)})")
    if unexpected and causal:
        said.append(f"{len(unexpected)} that the model does not use ({_shown(unexpected)})")
    if said:
        kind = type(model).__name__
        raise ValueError(
            f"the weights of {name!r} are not those of a {kind}: {'; '.join(said)}{_reason(missing, unexpected)}; "
            f"accepted: a directory that save_pretrained of a {kind} wrote"
        )
    if causal and _is_encoder(model.config):
        raise ValueError(
            f"{name!r} is an encoder ({model.config.model_type}, is_decoder false in its config): each of its "
            "positions sees those behind it, so it does not predict the next token; accepted: a causal language model"
        )


def _reason(missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """What keys that lack and keys that are left over tell together."""
    lacking, over = set(missing), list(unexpected)
    for prefix in _WRAPPERS:
        if any(key.startswith(prefix) and key.removeprefix(prefix) in lacking for key in over):
            return f". The checkpoint was saved from a wrapped or compiled model: take {prefix!r} off its names"
    if any("_orig_mod." in key for key in over):
        return ". The checkpoint was saved from a compiled model: take '_orig_mod.' out of its names"
    if any(re.match(r"(score|classifier|v_head|value_head)\b", key) for key in over):
        return ". It looks like a reward model, a classifier, or a model with a value head"
    return ""


def _is_encoder(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    says = (getattr(config, key, True) for key in ("is_decoder", "causal"))  # the latter is XLM's
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not all(says)


def _shown(keys: Iterable[str]) -> str:
    first, *others = [key[:120] for key in keys]
    return ", ".join([first, *others[: _SHOWN - 1], *(["..."] if len(others) >= _SHOWN else [])])
