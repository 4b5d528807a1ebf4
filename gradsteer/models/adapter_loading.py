"""A model that is named by an adapter: which base it is loaded with, what is refused first, and the two readings."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from gradsteer.models.adapter_space import in_adapter_space
from gradsteer.models.adapter_weights import attach, merged
from gradsteer.models.adapters import Adapter, tokenizer_beside
from gradsteer.models.base_record import recorded_base, recorded_fingerprint
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.sources import quantized_as, read_config

if TYPE_CHECKING:
    from gradsteer.models.loading import Loading

Reading = Literal["merged", "adapter"]
Quantization = Literal["4bit", "8bit"]
ADAPTER_FINGERPRINT = "adapter_fingerprint"  # in a header
_BITSANDBYTES = "bitsandbytes"


def base_loading(loading: "Loading", adapter: Adapter) -> "Loading":
    """How an adapter's base is loaded: the one that is given, or as the adapter's directory or config says it.

    Raises:
        ValueError: nothing says which it is, or the revisions asked for and recorded differ.
    """
    given, at, revision = (loading.adapter_base or "").partition("@")
    recorded = recorded_base(adapter.name) if Path(adapter.name).is_dir() else adapter.said_base
    base = given or recorded
    if base is None:
        raise ValueError(
            f"the adapter {adapter.name!r} does not say what it was trained on; accepted: its base, "
            "--model.adapter_base DIR_OR_HUB_ID"
        )
    said = adapter.said_revision if base == adapter.said_base else None
    if at and said and revision != said:
        raise ValueError(
            f"the adapter {adapter.name!r} was trained on revision {said!r} of {base!r}, and --model.adapter_base asks "
            f"for {revision!r}; accepted: {base}@{said}, or {base}"
        )
    # code of a base that only a downloaded config names is not what the user trusted
    trusted = loading.trust_remote_code and bool(given)
    frozen = loading.adapter_reading == "adapter"
    return replace(
        loading, name_or_path=base, revision=revision or said, trust_remote_code=trusted, frozen=frozen,
        adapter_base=None, adapter_reading="merged",
    )  # fmt: skip


def check_options(loading: "Loading") -> None:
    """Refuses options that need an adapter, or another reading of one.

    Raises:
        ValueError: names the option.
    """
    if loading.adapter_reading not in get_args(Reading):
        raise ValueError(
            f"model.adapter_reading is {loading.adapter_reading!r}; accepted: {', '.join(get_args(Reading))}"
        )
    if loading.quantization not in (None, *get_args(Quantization)):
        raise ValueError(
            f"model.quantization is {loading.quantization!r}; accepted: {', '.join(get_args(Quantization))}"
        )
    if loading.frozen:
        return
    if loading.adapter is None:
        given = {
            "adapter_base": loading.adapter_base is not None,
            "adapter_reading": loading.adapter_reading == "adapter",
        }
        for option in (name for name, is_set in given.items() if is_set):
            raise ValueError(
                f"model.{option} is {getattr(loading, option)!r}, and {loading.name_or_path!r} is no adapter (there is "
                "no adapter_config.json); accepted: an adapter, or without this option"
            )
    if loading.quantization is not None and loading.adapter_reading != "adapter":
        raise ValueError(
            f"model.quantization is {loading.quantization!r}: quantised weights take neither gradients nor steps, and "
            "an adapter is not merged into them; accepted: an adapter with --model.adapter_reading adapter, whose base "
            "stays as it is"
        )


def check_adapter(loading: "Loading", adapter: Adapter, *, needs_base: bool = True) -> None:
    """Refuses an adapter that does not fit its base, before anything big is loaded.

    Args:
        loading: of the adapter.
        adapter: its files.
        needs_base: the base's weights are going to be read.

    Raises:
        ValueError: names both sides and the way out.
    """
    base = loading.base_loading
    assert base is not None
    if base.adapter is not None:
        raise ValueError(
            f"the base of the adapter {adapter.name!r} is an adapter itself, {base.name_or_path!r}; accepted: an "
            "adapter on a model: merge the inner one into its base first (--model.adapter_base MERGED)"
        )
    said = quantized_as(read_config(base.name_or_path, base.revision) or {})
    if said is not None and said.startswith(_BITSANDBYTES) and loading.adapter_reading == "merged":
        raise ValueError(
            f"the base of the adapter {adapter.name!r}, {base.name_or_path!r}, is quantised ({said}), and an adapter "
            "is not merged into quantised weights; accepted: the unquantised original (--model.adapter_base), or "
            "--model.adapter_reading adapter, which leaves the base as it is"
        )
    if loading.adapter_reading == "adapter" and adapter.settings.get("ensure_weight_tying"):
        raise ValueError(
            f"the adapter {adapter.name!r} ties its matrices of embedding and head (ensure_weight_tying), so that they "
            "are no parameters of their own; accepted: --model.adapter_reading merged"
        )
    try:
        base.check()
    except ValueError as error:
        raise ValueError(
            f"the base of the adapter {adapter.name!r}: {error} (--model.adapter_base names it)"
        ) from error
    if needs_base and (loading.quantization is not None or (said or "").startswith(_BITSANDBYTES)):
        _need_bitsandbytes()
    attach(base.without_values(), adapter, adapter.shapes())


def with_adapter(loading: "Loading", adapter: Adapter, load: Callable[["Loading"], Any]) -> Any:
    """The model of an adapter on its base: merged in full precision, or with the adapter's tensors as parameters.

    Args:
        loading: of the adapter.
        adapter: its files.
        load: loads the base.

    Raises:
        ValueError: the base is not the one that the adapter was trained on.
    """
    base = loading.base_loading
    assert base is not None
    frozen = loading.adapter_reading == "adapter"
    if not frozen and loading.dtype != "float64":
        base = replace(base, dtype="float32")
    model = load(base)
    expected = None if base.is_quantized else recorded_fingerprint(adapter.directory)
    found = model_fingerprint(model) if frozen or expected else ""
    if expected and found != expected:
        raise ValueError(
            f"the adapter {adapter.name!r} was trained on weights with the fingerprint {expected}, those of "
            f"{base.name_or_path!r} have {found}; accepted: the base that it was trained on (--model.adapter_base)"
        )
    tensors = adapter.tensors()
    wrapped = attach(model, adapter, tensors)
    return (in_adapter_space(wrapped, found, tensors) if frozen else merged(wrapped)).eval()


def without_base(loading: "Loading") -> Any:
    """A model in its adapter's space, float32, whose base has no values: for what needs the adapter's tensors alone.

    So a step of an adapter on a base of any size, quantised or not, takes the memory of the adapter.

    Raises:
        ValueError: the adapter does not fit its base, as far as the base's config says.
    """
    from transformers import GenerationConfig

    adapter, base = loading.adapter, loading.base_loading
    assert adapter is not None
    assert base is not None
    check_adapter(loading, adapter, needs_base=False)
    tensors = adapter.tensors()
    outline = base.without_values()
    with suppress(OSError):  # it has none of its own
        own = GenerationConfig.from_pretrained(base.name_or_path, revision=base.revision or "main")
        outline.generation_config = own
    return in_adapter_space(attach(outline, adapter, tensors), "", tensors).eval()


def space_metadata(loading: "Loading") -> dict[str, str]:
    """What the header of a file in an adapter's space says of it; nothing of whole weights."""
    base = loading.base_loading
    if loading.adapter is None or base is None or loading.adapter_reading != "adapter":
        return {}
    told = {"base": base.name_or_path, **({} if base.revision is None else {"revision": base.revision})}
    return {
        "adapter": json.dumps({**told, **loading.adapter.shown()}),
        ADAPTER_FINGERPRINT: loading.adapter.fingerprint,
        **({} if loading.quantization is None else {"quantization": loading.quantization}),
    }


def tokenizer_loading(loading: "Loading") -> "Loading":
    """Where a model's tokenizer is: of an adapter beside it, or else its base's."""
    base = loading.base_loading
    return loading if base is None or tokenizer_beside(loading.name_or_path, loading.revision) else base


def quantized_options(quantization: str | None, dtype: Any) -> dict[str, Any]:
    """Options of from_pretrained for a base that bitsandbytes quantises, or has quantised already."""
    import torch

    _need_bitsandbytes()
    place = {"device_map": {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}}
    if quantization is None:
        return place
    from transformers import BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    chosen: dict[str, Any] = four if quantization == "4bit" else {"load_in_8bit": True}
    return {**place, "quantization_config": BitsAndBytesConfig(**chosen)}


def _need_bitsandbytes() -> None:
    from importlib.util import find_spec

    if find_spec(_BITSANDBYTES) is None:
        raise ValueError(
            "a quantised base needs the package bitsandbytes, which is not installed; accepted: pip install "
            "bitsandbytes, or a base in bfloat16 (--model.dtype bfloat16)"
        )
