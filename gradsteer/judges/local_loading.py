"""A judge's model on this machine: where it comes from, what tells it from others, and how it is loaded."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from gradsteer.models.adapters import refuse_adapter
from gradsteer.models.loaded_weights import check_loaded
from gradsteer.models.loading import check_model_path, load_tokenizer, parse_dtype

_DEVICES = ("auto", "cpu", "cuda", "mps")
# what decides a model's answers: weights, configuration, tokenizer, chat template, code
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
_NO_LIMIT = 10**9  # tokenizers that know no limit give 10**30


def check_source(name: str, device: str, dtype: str) -> None:
    """Refuses early what cannot be loaded.

    Raises:
        ValueError: If there is no such directory, or the device or the dtype is unknown.
    """
    if Path(name).is_dir():
        refuse_adapter(name)
    check_model_path(name)
    if device.split(":")[0] not in _DEVICES:
        raise ValueError(f"device is {device!r}; accepted: {', '.join(_DEVICES)}, or one of several, such as cuda:1")
    if dtype != "auto":
        parse_dtype(dtype)


def check_weights(name: str) -> None:
    """Refuses a directory without weights that can be read.

    Raises:
        ValueError: If it has no safetensors file.
    """
    if Path(name).is_dir() and not any(Path(name).glob("*.safetensors")):
        raise ValueError(
            f"the judge's model {name!r} has no *.safetensors file; accepted: a directory with its weights as "
            "safetensors"
        )


def directory_labels(name: str) -> dict[int, str] | None:
    """The labels that a directory's configuration names, by index; None where it does not say or is on the hub."""
    file = Path(name) / "config.json"
    if not file.is_file():
        return None
    labels = json.loads(file.read_text(encoding="utf-8")).get("id2label")
    return {int(index): str(label) for index, label in labels.items()} if labels else None


def source_digest(name: str, revision: str | None) -> str:
    """Digest of the files of a directory, wherever it lies, or the commit that a hub id stands for at present.

    Raises:
        ValueError: If the hub has no such model, or does not say which commit it is.
    """
    if Path(name).is_dir():
        return _directory_digest(Path(name))
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(name, "config.json", revision=revision)
    except OSError as error:
        raise ValueError(f"no judge's model {name!r}, neither as a directory here nor from the hub: {error}") from error
    commit = Path(file or "").parent.name  # the hub's client keeps each commit in a directory of its name
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise ValueError(f"the hub does not say which commit of {name!r} this is; download it and name its directory")
    return commit


def load(
    kind: str, name: str, *, revision: str | None, trust_remote_code: bool, device: str, dtype: str
) -> tuple[Any, Any]:
    """A model in eval mode on its device, and its tokenizer. Weights are read from safetensors, never from pickles.

    Args:
        kind: ``classifier`` or ``causal``.
        name: Directory or hub id.
        revision: Of a hub id.
        trust_remote_code: Whether code that comes with the model may run.
        device: ``auto``: CUDA where there is one, else MPS, else the CPU.
        dtype: ``auto``: as the checkpoint has them.

    Raises:
        ValueError: If the model cannot be had, is an adapter, or does not have the weights of its kind.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    factory: Any = AutoModelForSequenceClassification if kind == "classifier" else AutoModelForCausalLM
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    # a model that is loaded may draw numbers, which the caller's sampling must not notice
    refuse_adapter(name, revision)
    with torch.random.fork_rng(devices=[]):
        try:
            # a classifier reads plain text and needs no chat template, which load_tokenizer sees to
            tokenizer: Any = (
                AutoTokenizer.from_pretrained(name, **options)
                if kind == "classifier"
                else load_tokenizer(name, **options)
            )
            model, notes = factory.from_pretrained(
                name,
                dtype="auto" if dtype == "auto" else parse_dtype(dtype),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, with their names and sizes
                **options,
            )
        except OSError as error:
            raise ValueError(
                f"no judge's model {name!r} with its weights as safetensors, neither as a directory here nor from "
                f"the hub: {error}"
            ) from error
    check_loaded(name, model, notes, causal=kind == "causal")
    return model.eval().to(torch.device(_device() if device == "auto" else device)), tokenizer


def most_tokens(model: Any, tokenizer: Any) -> int:
    """How many tokens the model reads at once, by its configuration and its tokenizer's."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _NO_LIMIT
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding token's
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)
    return min(int(positions), int(min(tokenizer.model_max_length, _NO_LIMIT)))


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _directory_digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _FILES for file in directory.glob(pattern) if file.is_file()}):
        with file.open("rb") as opened:
            digest.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()
