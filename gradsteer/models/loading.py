"""Loading models and tokenizers from a hub id or a local directory."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradsteer.data.chat import ensure_chat_template
from gradsteer.data.prompt_check import complete_template
from gradsteer.models.fingerprints import model_fingerprint, rounded_from

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


def check_model_path(name_or_path: str) -> None:
    """Refuses a local path that is not a model directory, before anything heavy starts.

    Raises:
        ValueError: the value looks like a path and is not a directory with a ``config.json``.
    """
    path = Path(name_or_path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{name_or_path!r} is a directory without a config.json; accepted: {_ACCEPTED}")
        return
    looks_local = path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1
    beside_others = "/" in name_or_path and path.parent.is_dir()
    if looks_local or beside_others or path.exists() or not name_or_path:
        raise ValueError(f"no model directory at {name_or_path!r}; accepted: {_ACCEPTED}")


_ACCEPTED = "a directory that save_pretrained wrote, or a hub id such as meta-llama/Llama-3.2-1B-Instruct"


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, ready for chats and batches.

    Where it has no padding token, the end-of-sequence token pads; where it has no chat template (a base model's), a
    plain one is set, with a warning; a BOS token or an assistant's header that its template leaves out is added to it.

    Raises:
        ValueError: no such directory, or the tokenizer has neither a padding nor an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    path = Path(name_or_path)
    if not path.is_dir():
        check_model_path(name_or_path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code
        )
    except OSError as error:
        raise ValueError(_not_to_be_had("tokenizer", name_or_path, error)) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer of {name_or_path!r} has neither a padding nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    ensure_chat_template(tokenizer)
    complete_template(tokenizer)
    return tokenizer


def load_causal_lm(
    name_or_path: str,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> "PreTrainedModel":
    """A causal LM in eval mode, on the CPU, in the given dtype (recent checkpoints are bfloat16 unless told).

    Raises:
        ValueError: no such directory, or an unknown dtype.
    """
    from transformers import AutoModelForCausalLM

    check_model_path(name_or_path)
    wanted = parse_dtype(dtype)
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype="auto" if wanted.itemsize < 4 else wanted,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **options,
        )
    except OSError as error:
        raise ValueError(_not_to_be_had("model", name_or_path, error)) from error
    if any(parameter.dtype != wanted for parameter in model.parameters()):
        original = model_fingerprint(model)  # of the checkpoint's own values
        model.to(wanted)  # type: ignore[arg-type]
        rounded_from(model, original)
    model.train(False)
    return model


def checkpoint_activations(model: Any) -> None:
    """Turns gradient checkpointing on; it takes effect in train mode only.

    Raises:
        ValueError: the architecture has none.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"{type(model).__name__} has no gradient checkpointing")
    options = {"use_reentrant": False}  # the reentrant kind gives no gradients where the first block's input needs none
    if hasattr(model, "activation_checkpointing_enable"):  # its name in later releases of transformers 5
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def train_without_dropout(model: Any) -> None:
    """Puts a model in train mode, which gradient checkpointing asks for, if no dropout is active there.

    Raises:
        ValueError: dropout is active in train mode: the gradient would be random.
    """
    active = [name for name, module in model.named_modules() if _dropout(module) > 0]
    if active:
        raise ValueError(
            f"--model.gradient_checkpointing needs train mode, and {type(model).__name__} has dropout there "
            f"(such as {active[0]!r}): the gradient would be random; set the dropouts of its config to 0"
        )
    model.train()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is back in its own mode, which may differ between them."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _dropout(module: torch.nn.Module) -> float:
    """The probability with which a module of a transformer drops something in train mode."""
    if isinstance(module, torch.nn.Dropout):
        return module.p
    found = getattr(module, "attention_dropout", 0.0)  # attention reads it from an attribute of its own
    return float(found) if isinstance(found, int | float) else 0.0


def record_base(base: str, anchor: Path) -> None:
    """Notes in a model's directory what it was finetuned from; `recorded_base` reads it."""
    path = Path(base)
    recorded = os.path.relpath(path, anchor) if path.is_dir() else base
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


def _not_to_be_had(what: str, name: str, error: OSError) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"no {what} {name!r}, neither as a directory here nor from the hub; accepted: {_ACCEPTED} ({first})"


def fresh_causal_lm(config_file: str, *, dtype: str = "float32") -> "PreTrainedModel":
    """A causal LM with fresh weights from a model config (JSON) or a directory that holds one.

    Raises:
        ValueError: no such file.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(config_file)
    if not path.exists():
        raise ValueError(f"no model config at {config_file!r}; accepted: a transformers config.json")
    config = AutoConfig.from_pretrained(str(path))
    factory: Any = AutoModelForCausalLM  # untyped in transformers
    model: PreTrainedModel = factory.from_config(config, dtype=parse_dtype(dtype))
    return model
