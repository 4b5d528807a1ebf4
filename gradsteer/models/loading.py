"""Loading models and tokenizers from a hub id or a local directory."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.utils import validate_repo_id  # public, not listed

from gradsteer.data.chat import ensure_chat_template
from gradsteer.data.prompt_check import complete_template
from gradsteer.models.fingerprints import model_fingerprint, rounded_from
from gradsteer.models.gguf import check_gguf, dequantized_gguf, gguf_tokenizer
from gradsteer.models.loaded_weights import check_loaded
from gradsteer.models.reading import ACCEPTED, reading
from gradsteer.models.sources import check_kind, dequantizing, read_config, refuse_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE_RECORD = "gradsteer.json"  # in an anchor's directory
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
    """

    name_or_path: str
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    gguf_file: str | None = None

    def of(self, name_or_path: str, *, trusted: bool = False) -> "Loading":
        """Another model in the same dtype and attention; revision, file and trust in code belong to this one alone."""
        trust = self.trust_remote_code and trusted
        return Loading(name_or_path, self.dtype, None, trust, self.attn_implementation)

    def check(self) -> None:
        """Refuses what can be seen without reading a weight.

        Raises:
            ValueError: an unknown dtype, no such directory, an adapter, weights that stay quantised, a model that is
                no causal LM, or attention that this machine or the model does not have.
        """
        parse_dtype(self.dtype)
        check_model_path(self.name_or_path, gguf_file=self.gguf_file)
        if self.gguf_file is not None:
            check_gguf(self.name_or_path, self.gguf_file, self.revision)
            return
        refuse_adapter(self.name_or_path, self.revision)
        config = read_config(self.name_or_path, self.revision)
        if config is not None:
            check_kind(self.name_or_path, config)
            dequantizing(self.name_or_path, config)
        if self.attn_implementation is not None:
            self._check_attention(self.attn_implementation)

    def config(self) -> Any:
        """The model's config, without its weights."""
        from transformers import AutoConfig

        with reading("config", self.name_or_path):
            return AutoConfig.from_pretrained(
                self.name_or_path, revision=self.revision, trust_remote_code=self.trust_remote_code, **self._file()
            )

    def without_values(self, **options: Any) -> Any:
        """The model on the meta device: its parts and their shapes, and no weights.

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
        asked = dequantizing(self.name_or_path, read_config(self.name_or_path, self.revision) or {})
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
    """Refuses a local path that is not a model directory, before anything heavy starts.

    Raises:
        ValueError: the value looks like a path and is not a directory with a ``config.json``, or it holds an adapter.
    """
    path = Path(name_or_path)
    if path.is_dir():
        refuse_adapter(name_or_path)
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

    loading = source if isinstance(source, Loading) else Loading(source, **options)
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
    rows = (read_config(name, loading.revision) or {}).get("vocab_size")
    if isinstance(rows, int) and tokenizer.pad_token_id >= rows > (tokenizer.eos_token_id or rows):
        tokenizer.pad_token = tokenizer.eos_token
    ensure_chat_template(tokenizer)
    complete_template(tokenizer)
    return tokenizer


def load_causal_lm(source: str | Loading, **options: Any) -> "PreTrainedModel":
    """A causal LM in eval mode, on the CPU, in the given dtype (recent checkpoints are bfloat16 unless told).

    Args:
        source: of the model.
        options: of `Loading`, where the source is a name.

    Raises:
        ValueError: see `Loading.check`, or the weights are not those of the model.
    """
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM  # typed in part only
    loading = source if isinstance(source, Loading) else Loading(source, **options)
    loading.check()
    name, wanted, undoing = loading.name_or_path, DTYPES[loading.dtype], loading.weight_options()
    # the checkpoint's own values, which half precision may round
    exactly = wanted if wanted.itemsize >= 4 else torch.float32 if undoing else "auto"
    options = {} if loading.attn_implementation is None else {"attn_implementation": loading.attn_implementation}
    model: PreTrainedModel
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
    if undoing:  # saving would undo what loading did: weights quantised again, in a config without it
        model._weight_conversions = None
    if any(parameter.dtype != wanted for parameter in model.parameters()):
        original = model_fingerprint(model)  # of the checkpoint's own values
        _round_weights(model, wanted)
        rounded_from(model, original)
    model.train(False)
    return model


def _round_weights(model: Any, dtype: torch.dtype) -> None:
    """Casts what a checkpoint holds; tables that a model makes for itself stay as from_pretrained leaves them.

    Rounded frequencies of a rotary embedding, for example, turn the positions of a long sequence by up to 0.4%.
    """
    saved = model.state_dict()
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    model.to(dtype)
    for name, buffer in model.named_buffers():
        if name in computed:
            buffer.data = computed[name]


def record_base(base: str, anchor: Path) -> None:
    """Notes in a model's directory what it was finetuned from; `recorded_base` reads it."""
    path = Path(base)
    recorded = base
    if path.is_dir():
        try:
            recorded = Path(os.path.relpath(path, anchor)).as_posix()
        except ValueError:  # on another drive of Windows, which no path leads to
            recorded = str(path.absolute())
    (anchor / BASE_RECORD).write_text(json.dumps({"base": recorded}) + "\n", encoding="utf-8")


def recorded_base(anchor: str) -> str | None:
    """What a model in a directory was finetuned from, as `fit` recorded it there; None where it does not say.

    A directory is recorded by its path from the anchor's, so that both may be moved together.
    """
    path = Path(anchor) / BASE_RECORD
    if not path.is_file():
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))["base"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{str(path)!r} is not of the form {{"base": DIR_OR_HUB_ID}}') from error
    if not isinstance(recorded, str):
        raise ValueError(f'{str(path)!r} is not of the form {{"base": DIR_OR_HUB_ID}}')
    beside = Path(os.path.normpath(Path(anchor) / recorded))
    # a path is meant from the anchor's directory, never from wherever the command runs
    return str(beside) if beside.is_dir() or recorded.startswith(".") else recorded


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
