"""Loading models and tokenizers from a hub id or a local directory."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.utils import validate_repo_id  # public, not listed

from gradsteer.data.chat import ensure_chat_template
from gradsteer.data.prompt_check import complete_template
from gradsteer.models.adapter_loading import (
    Quantization,
    Reading,
    base_loading,
    check_adapter,
    check_options,
    quantized_options,
    tokenizer_loading,
    with_adapter,
)
from gradsteer.models.adapters import Adapter, read_adapter
from gradsteer.models.fingerprints import model_fingerprint, rounded_from
from gradsteer.models.gguf import check_gguf, dequantized_gguf, gguf_tokenizer
from gradsteer.models.loaded_weights import check_loaded
from gradsteer.models.reading import ACCEPTED, reading
from gradsteer.models.sources import check_kind, dequantizing, quantized_as, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        ValueError: an unknown name; the accepted ones are named.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; accepted: {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True)
class Loading:
    """Where a model comes from and how it is loaded.

    Attributes:
        name_or_path: hub id or local directory.
        dtype: of the weights, one of `DTYPES`.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that ships with the model.
        attn_implementation: by its transformers name; None for the model's default.
        gguf_file: a GGUF file in the directory or hub repository, to be dequantised.
        adapter_base: base of an adapter, where it is another than the adapter says; a hub id may end in @REVISION.
        adapter_reading: how an adapter is read: see `gradsteer.models.adapter_loading`.
        quantization: of an adapter's base in its own reading, by bitsandbytes.
        frozen: the weights take no gradients and no steps, so that they may stay quantised.
    """

    name_or_path: str
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    gguf_file: str | None = None
    adapter_base: str | None = None
    adapter_reading: Reading = "merged"
    quantization: Quantization | None = None
    frozen: bool = False

    def of(self, name_or_path: str, *, trusted: bool = False, frozen: bool = False) -> "Loading":
        """Another model in the same dtype and attention; revision, file and trust in code belong to this one alone.

        Args:
            name_or_path: hub id or directory.
            trusted: its code may run, if this one's may.
            frozen: it takes no gradients, and may be quantised as this one's base is.
        """
        trust = self.trust_remote_code and trusted
        quantization = self.quantization if frozen else None
        own = self.base_loading  # an adapter's, which may be of a revision
        revision = own.revision if own is not None and own.name_or_path == name_or_path else None
        return Loading(
            *(name_or_path, self.dtype, revision, trust, self.attn_implementation), quantization=quantization,
            frozen=quantization is not None,
        )  # fmt: skip

    @cached_property
    def adapter(self) -> Adapter | None:
        """The adapter that the name stands for; None where it is a model."""
        return None if self.gguf_file is not None else read_adapter(self.name_or_path, self.revision)

    @cached_property
    def base_loading(self) -> "Loading | None":
        """How the base of an adapter is loaded; None of a model."""
        return None if self.adapter is None else base_loading(self, self.adapter)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return read_config(self.name_or_path, self.revision) or {}

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are quantised and stay so."""
        return self.frozen and (self.quantization is not None or "bitsandbytes" in (quantized_as(self._settings) or ""))

    def check(self, *, needs_base: bool = True) -> None:
        """Refuses what can be seen without reading a weight.

        Args:
            needs_base: see `gradsteer.models.adapter_loading.check_adapter`.

        Raises:
            ValueError: an unknown dtype, no such directory, an adapter that does not fit its base, weights that stay
                quantised, a model that is no causal LM, or attention that this machine or the model does not have.
        """
        parse_dtype(self.dtype)
        check_model_path(self.name_or_path, gguf_file=self.gguf_file)
        check_options(self)
        if self.gguf_file is not None:
            check_gguf(self.name_or_path, self.gguf_file, self.revision)
            return
        if self.adapter is not None:
            check_adapter(self, self.adapter, needs_base=needs_base)
            return
        config = self._settings
        if config:
            check_kind(self.name_or_path, config)
            if not self.is_quantized:
                dequantizing(self.name_or_path, config)
        if self.attn_implementation is not None:
            self._check_attention(self.attn_implementation)

    def config(self) -> Any:
        """The model's config, without its weights; of an adapter its base's."""
        if self.base_loading is not None:
            return self.base_loading.config()
        from transformers import AutoConfig

        with reading("config", self.name_or_path):
            return AutoConfig.from_pretrained(
                self.name_or_path, revision=self.revision, trust_remote_code=self.trust_remote_code, **self._file()
            )

    def without_values(self, **options: Any) -> Any:
        """The model on the meta device: its parts and their shapes, and no weights; of an adapter its base.

        Args:
            options: of from_config.
        """
        from transformers import AutoModelForCausalLM

        factory: Any = AutoModelForCausalLM  # untyped in transformers
        config = self.config()
        with reading("config", self.name_or_path), torch.device("meta"):
            return factory.from_config(config, trust_remote_code=self.trust_remote_code, **options)

    @property
    def num_ids(self) -> int:
        """Token ids of the model: the rows of its embedding, of which the tokenizer may use fewer."""
        return int(self.config().get_text_config().vocab_size)

    def _file(self) -> dict[str, Any]:
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}

    def weight_options(self) -> dict[str, Any]:
        """Options of from_pretrained that give the weights in full precision."""
        if self.gguf_file is not None:
            return {**self._file(), **dequantized_gguf()}
        asked = dequantizing(self.name_or_path, self._settings)
        return {} if asked is None else {"quantization_config": asked}

    def _check_attention(self, wanted: str) -> None:
        try:  # transformers' own check
            self.without_values(attn_implementation=wanted)
        except ValueError as error:
            if not isinstance(error.__cause__, ImportError | ValueError):
                raise
            raise ValueError(
                f"model.attn_implementation is {wanted!r}, which cannot be used here: "
                f"{str(error.__cause__).rstrip('.')}; accepted: leave it out for the model's default, or eager or sdpa "
                "where the model has them"
            ) from error


def check_model_path(name_or_path: str, *, gguf_file: str | None = None) -> None:
    """Refuses a local path that is neither a model's nor an adapter's directory, before anything heavy starts.

    Raises:
        ValueError: the value looks like a path and is not a directory with a ``config.json`` or a plain adapter.
    """
    path = Path(name_or_path)
    if path.is_dir():
        if gguf_file is None and read_adapter(name_or_path) is not None:
            return
        if gguf_file is None and not (path / "config.json").is_file():
            found = sorted(file.name for file in path.glob("*.gguf"))
            hint = f" (it holds {found[0]!r}: give it as gguf_file)" if found else ""
            raise ValueError(f"{name_or_path!r} is a directory without a config.json{hint}; accepted: {ACCEPTED}")
        return
    looks_local = path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1
    beside_others = "/" in name_or_path and path.parent.is_dir()
    if looks_local or beside_others or path.exists() or not name_or_path:
        hint = f" (a GGUF file is given by its directory and gguf_file {path.name})" if path.suffix == ".gguf" else ""
        raise ValueError(f"no model directory at {name_or_path!r}{hint}; accepted: {ACCEPTED}")
    with reading("model", name_or_path):
        validate_repo_id(name_or_path)


def load_tokenizer(source: str | Loading, **options: Any) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, ready for chats and batches.

    Where it has no padding token, or one without a row in the model, the end-of-sequence token pads; where it has no
    chat template (a base model's), a plain one is set, with a warning; a BOS token or an assistant's header that its
    template leaves out is added to it.

    Args:
        source: of the model.
        options: of `Loading`, where the source is a name.

    Raises:
        ValueError: no such directory, or the tokenizer has neither a padding nor an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    named = source if isinstance(source, Loading) else Loading(source, **options)
    loading = tokenizer_loading(named)
    name = loading.name_or_path
    if not Path(name).is_dir():
        check_model_path(name)
    tokenizer: PreTrainedTokenizerBase
    with reading("tokenizer", name):
        if loading.gguf_file is not None:
            tokenizer = gguf_tokenizer(name, loading.gguf_file, loading.revision)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                name, revision=loading.revision, trust_remote_code=loading.trust_remote_code
            )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer of {name!r} has neither a padding nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    base = named.base_loading
    rows = (loading if base is None else base)._settings.get("vocab_size")
    resized = base is not None and loading is named and isinstance(rows, int) and len(tokenizer) > rows
    if base is not None and resized and len(tokenizer) > len(load_tokenizer(base)):  # some bases have fewer rows, too
        raise ValueError(
            f"the tokenizer of the adapter {named.name_or_path!r} has {len(tokenizer)} tokens, its base "
            f"{base.name_or_path!r} {rows} rows: the vocabulary was resized in the finetune; accepted: the merged model"
        )
    if isinstance(rows, int) and tokenizer.pad_token_id >= rows > (tokenizer.eos_token_id or rows):
        tokenizer.pad_token = tokenizer.eos_token
    ensure_chat_template(tokenizer)
    complete_template(tokenizer)
    return tokenizer


def load_causal_lm(source: str | Loading, **options: Any) -> "PreTrainedModel":
    """A causal LM in eval mode, on the CPU, in the given dtype (recent checkpoints are bfloat16 unless told).

    Args:
        source: of the model, or of an adapter, which is merged or read in its own space.
        options: of `Loading`, where the source is a name.

    Raises:
        ValueError: see `Loading.check`, or the weights are not those of the model.
    """
    loading = source if isinstance(source, Loading) else Loading(source, **options)
    loading.check()
    adapter = loading.adapter
    model = _loaded(loading) if adapter is None else with_adapter(loading, adapter, _loaded)
    if adapter is not None and loading.adapter_reading == "merged":
        _round(model, DTYPES[loading.dtype])
    model.train(False)
    return model


def _loaded(loading: Loading) -> Any:
    """A model in its dtype, where it does not stay quantised."""
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM  # typed in part only
    name, wanted = loading.name_or_path, DTYPES[loading.dtype]
    quantized = loading.is_quantized
    undoing = quantized_options(loading.quantization, wanted) if quantized else loading.weight_options()
    # the checkpoint's own values, which half precision may round
    exactly = wanted if wanted.itemsize >= 4 or quantized else torch.float32 if undoing else "auto"
    options = {} if loading.attn_implementation is None else {"attn_implementation": loading.attn_implementation}
    with reading("model", name):
        model, notes = factory.from_pretrained(
            name,
            dtype=exactly,
            revision=loading.revision,
            trust_remote_code=loading.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names and sizes
            **undoing,
            **options,
        )
    check_loaded(name, model, notes)
    if undoing and not quantized:  # saving would undo what loading did: weights quantised again, in a config without it
        model._weight_conversions = None
    if not quantized:
        _round(model, wanted)
    return model


def _round(model: Any, dtype: torch.dtype) -> None:
    """Casts what a checkpoint holds; tables that a model makes for itself stay as from_pretrained leaves them.

    Rounded frequencies of a rotary embedding, for example, turn the positions of a long sequence by up to 0.4%.
    """
    if all(parameter.dtype == dtype for parameter in model.parameters()):
        return
    original = model_fingerprint(model)  # of the checkpoint's own values
    saved = model.state_dict()
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    model.to(dtype)
    for name, buffer in model.named_buffers():
        if name in computed:
            buffer.data = computed[name]
    rounded_from(model, original)


def fresh_causal_lm(config_file: str, *, dtype: str = "float32") -> "PreTrainedModel":
    """A causal LM with fresh weights from a model config (JSON) or a directory that holds one.

    Raises:
        ValueError: no such file.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(config_file)
    if not path.exists():
        raise ValueError(f"no model config at {config_file!r}; accepted: a transformers config.json")
    factory: Any = AutoModelForCausalLM  # untyped in transformers
    model: PreTrainedModel
    with reading("config", config_file):
        model = factory.from_config(AutoConfig.from_pretrained(str(path)), dtype=parse_dtype(dtype))
    return model
