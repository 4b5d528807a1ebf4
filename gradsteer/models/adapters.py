"""LoRA adapters as peft saves them: what they are steps from, and which are refused, before any weight is read."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradsteer.models.fingerprints import weights_digest
from gradsteer.records import read_json, text_digest

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_LONGEST = 80
# what an adapter may set and still be a plain step: scaling * B A, or whole modules of its own
_PLAIN = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "lora_dropout"),
    *("target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "ensure_weight_tying", "init_lora_weights", "inference_mode", "task_type", "peft_type"),
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "runtime_config"),
    # read while training, or only with a setting that is refused
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "megatron_core"),
}
_SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
_INITS = (True, False, "gaussian", "eva", "orthogonal")  # others change the base's weights
_NAMES = {
    "use_dora": "DoRA",
    "trainable_token_indices": "trainable tokens",
    "bias": "trained biases",
    "lora_bias": "trained biases",
    "layer_replication": "replicated layers",
}
_MERGE = "merge it with peft's merge_and_unload and give the merged model, saved without adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter's files.

    Attributes:
        name: hub id or directory, as the user gave it.
        revision: of the hub id.
        directory: where its files lie on this machine.
        settings: its adapter_config.json.
    """

    name: str
    revision: str | None
    directory: Path
    settings: Mapping[str, Any]

    @property
    def said_base(self) -> str | None:
        """The base as its config has it, a hub id or a directory; None where it does not say."""
        said = self.settings.get("base_model_name_or_path")
        return said if isinstance(said, str) and said else None

    @property
    def said_revision(self) -> str | None:
        """The revision of its base as its config has it."""
        said = self.settings.get("revision")
        return said if isinstance(said, str) and said else None

    @property
    def rank(self) -> int:
        """The largest rank of its matrices."""
        return max([int(self.settings["r"]), *map(int, (self.settings.get("rank_pattern") or {}).values())])

    @cached_property
    def file(self) -> Path:
        """Its weights, a safetensors file.

        Raises:
            ValueError: there are none, or only pickled ones, which could run code.
        """
        found = _beside(self.name, WEIGHTS, self.revision)
        if found is not None:
            return found
        if _beside(self.name, _PICKLED, self.revision) is not None:
            raise ValueError(
                f"the adapter {self.name!r} has its weights as a pickle ({_PICKLED}), which could run code; accepted: "
                f"{WEIGHTS}, as peft's save_pretrained writes it"
            )
        raise ValueError(f"the adapter {self.name!r} has no {WEIGHTS} beside its {CONFIG}; accepted: both")

    @cached_property
    def fingerprint(self) -> str:
        """Digest of its tensors and of what scales them, from its files alone; its base has no part in it."""
        scales = {key: self.settings.get(key) or None for key in _SCALES}
        return text_digest(f"{json.dumps(scales, sort_keys=True)} {weights_digest(self.tensors())}")[:32]

    def shown(self) -> dict[str, Any]:
        """What step it is, as plain values; ``scaling`` is of ``B A`` where no pattern says otherwise.

        Of ``targets`` the ends of their names are told: fit and others write every module of every layer.
        """
        rank, alpha = int(self.settings["r"]), self.settings.get("lora_alpha", 8)  # peft's own default
        scaling = alpha / (rank**0.5 if self.settings.get("use_rslora") else rank)
        targets = self.settings.get("target_modules")
        more = ("rank_pattern", "alpha_pattern", "target_parameters", "modules_to_save")
        return {
            "rank": rank, "alpha": alpha, "scaling": scaling,
            "targets": sorted({t.rsplit(".", 1)[-1] for t in targets}) if isinstance(targets, list) else targets,
            **{key: self.settings[key] for key in more if self.settings.get(key)},
        }  # fmt: skip

    def config(self) -> "LoraConfig":
        """The same for peft, without dropout: what is read here is not trained.

        Raises:
            ValueError: peft does not take its settings.
        """
        from peft import LoraConfig

        known = {key: value for key, value in self.settings.items() if key in _PLAIN - {"peft_type", "runtime_config"}}
        try:
            return LoraConfig(**{**known, "lora_dropout": 0.0, "inference_mode": False, "init_lora_weights": False})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{CONFIG} of the adapter {self.name!r} is not peft's: {error}") from error

    def shapes(self) -> dict[str, Tensor]:
        """Its tensors without values (on the meta device), by their names in the file.

        Raises:
            ValueError: the file is not readable.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.file), framework="pt") as opened:
                names = list(opened.keys())
                return {n: torch.empty(opened.get_slice(n).get_shape(), device="meta") for n in names}
        except SafetensorError as error:
            raise ValueError(f"{str(self.file)!r} is not a readable safetensors file: {error}") from error

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by their names in the file."""
        from safetensors.torch import load_file

        return load_file(str(self.file))


def read_adapter(name: str, revision: str | None = None) -> Adapter | None:
    """The adapter in a directory or hub repository; None where it holds a model.

    Raises:
        ValueError: it is no plain LoRA, there are several in one directory, or it lies beside a whole model's weights.
    """
    found = _beside(name, CONFIG, revision)
    if found is None:
        inside = _inside(name)
        if inside and not (Path(name) / "config.json").is_file():
            raise ValueError(
                f"{name!r} holds {_several(inside)}; accepted: one of them, {str(Path(name) / inside[0])!r}"
            )
        return None
    adapter = Adapter(name, revision, found.parent, read_json(found))
    inside = _inside(name)
    if inside:
        raise ValueError(
            f"{name!r} holds an adapter, and {_several(inside)}: which one is meant cannot be told; accepted: "
            "a directory with one adapter"
        )
    whole = sorted(
        file.name for pattern in ("model*.safetensors", "pytorch_model*.bin") for file in Path(name).glob(pattern)
    )
    if whole:
        raise ValueError(
            f"{name!r} holds an adapter ({CONFIG}) and a whole model ({whole[0]}): which one is meant cannot be told; "
            "accepted: either alone in a directory"
        )
    _check_plain(adapter)
    return adapter


def refuse_adapter(name: str, revision: str | None = None) -> None:
    """Refuses a directory or hub id that holds an adapter, where a whole model is needed.

    Raises:
        ValueError: names the base that the adapter is for, and the way out.
    """
    found = _beside(name, CONFIG, revision)
    if found is None:
        return
    settings = read_json(found)
    base = f"{settings.get('peft_type') or 'adapter'} on {settings.get('base_model_name_or_path')!r}"[:_LONGEST]
    raise ValueError(f"{name!r} holds an adapter ({CONFIG}: {base}), not a model; accepted: {_MERGE}")


def tokenizer_beside(name: str, revision: str | None = None) -> bool:
    """Whether an adapter's directory or repository has a tokenizer, as most have."""
    return any(_beside(name, file, revision) for file in ("tokenizer_config.json", "tokenizer.json"))


def _beside(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a directory or hub repository on this machine; None where there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if file == CONFIG:
            found = find_adapter_config_file(name, revision=revision)
        else:
            found = cached_file(name, file, revision=revision)
    except OSError:  # whoever loads the model says why it cannot be had
        found = None
    return None if found is None else Path(found)


def _inside(name: str) -> list[str]:
    """Directories inside one that hold adapters, as peft saves all but the first of several; no checkpoints."""
    found = sorted(file.parent.name for file in Path(name).glob(f"*/{CONFIG}"))
    return [each for each in found if not each.startswith("checkpoint-")]


def _several(names: list[str]) -> str:
    return f"{len(names)} in directories inside it ({', '.join(name[:_LONGEST] for name in names[:5])})"


def _check_plain(adapter: Adapter) -> None:
    """Refuses what is no plain LoRA.

    Raises:
        ValueError: names what it is.
    """
    settings = adapter.settings
    kind = str(settings.get("peft_type"))
    what: str | None = None
    if kind != "LORA":
        what = f"of the type {kind[:_LONGEST]} (peft_type)"
    elif not isinstance(settings.get("r"), int) or isinstance(settings["r"], bool) or settings["r"] < 1:
        what = f"of rank {settings.get('r')!r:.80} (r), where a number of at least 1 is meant"
    elif settings.get("init_lora_weights", True) not in _INITS:
        what = f"initialised by {settings['init_lora_weights']!r:.80}, which changes the base's own weights"
    else:
        for key, value in settings.items():
            if key not in _PLAIN and value not in (None, False, "none", [], {}):
                what = f"{_NAMES.get(key, 'of another kind')} ({key}: {value!r:.80})"
                break
    if what is not None:
        raise ValueError(
            f"the adapter {adapter.name!r} is {what}; accepted: plain LoRA or rsLoRA, with or without rank_pattern, "
            f"alpha_pattern and modules_to_save; or {_MERGE}"
        )


def vocabulary_note(key: str) -> str:
    """What a tensor that does not fit tells, by its name in the adapter's file."""
    if re.search(r"(embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings)\.", key):
        return " (another vocabulary: it was resized in the finetune, or the base is another model)"
    return ""
