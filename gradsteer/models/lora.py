"""Fresh LoRA adapters: their settings, how they are put on a model, and how they are saved, all by peft."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gradsteer.models.adapter_space import in_adapter_space
from gradsteer.models.adapter_weights import NAME, quiet_peft
from gradsteer.models.adapters import CONFIG, WEIGHTS
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.records import read_json, write_json


@dataclass
class LoraOptions:
    """A LoRA adapter to be trained: every target W becomes ``W + scaling * B A``; peft's names are in brackets.

    Attributes:
        rank: of B A (r).
        alpha: scaling is alpha / rank, with rslora alpha / sqrt(rank) (lora_alpha). Default: twice the rank.
        dropout: probability with which an entry of what A reads is dropped in training (lora_dropout).
        targets: names of modules that take a step, the ends of their full names, or all-linear: all linear layers but
            the head (target_modules).
        modules_to_save: names of modules that are trained whole, as part of the adapter.
        rank_pattern: other ranks, by the ends of modules' names.
        alpha_pattern: other alphas, likewise.
        rslora: scale by the square root of the rank (use_rslora).
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    rslora: bool = False

    def __post_init__(self) -> None:
        ranks = {"rank": self.rank, **{f"rank_pattern.{key}": r for key, r in (self.rank_pattern or {}).items()}}
        for name, rank in ranks.items():
            if rank < 1:
                raise ValueError(f"model.lora.{name} is {rank}; accepted: at least 1")
        if self.alpha is None:
            self.alpha = 2 * self.rank
        alphas = {"alpha": self.alpha, **{f"alpha_pattern.{key}": a for key, a in (self.alpha_pattern or {}).items()}}
        for name, alpha in alphas.items():
            if not 0 < alpha < math.inf:
                raise ValueError(f"model.lora.{name} is {alpha}; accepted: a positive number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.lora.dropout is {self.dropout}; accepted: from 0, less than 1")

    def attach(self, model: Any) -> Any:
        """Puts a fresh adapter on a model; B is 0, so that nothing changes yet. Draws from torch's generator.

        Args:
            model: also one without values, to see whether the settings fit.

        Returns:
            peft's model.

        Raises:
            ValueError: the model has no such module.
        """
        from peft import LoraConfig, get_peft_model

        for option in ("modules_to_save", "rank_pattern", "alpha_pattern"):
            for value in getattr(self, option) or ():
                if not any(name.endswith(value) for name, _ in model.named_modules()):
                    raise ValueError(f"model.lora.{option} names {value!r}, and no module's name ends so")
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.targets,  # type: ignore[arg-type]
            modules_to_save=self.modules_to_save, rank_pattern=self.rank_pattern or {},
            alpha_pattern=self.alpha_pattern or {}, use_rslora=self.rslora, task_type="CAUSAL_LM",
        )  # fmt: skip
        outline = any(parameter.is_meta for parameter in model.parameters())
        with quiet_peft():
            try:
                wrapped: Any = get_peft_model(model, config, low_cpu_mem_usage=outline)
            except ValueError as error:
                raise ValueError(
                    f"model.lora does not fit {type(model).__name__}: {str(error).splitlines()[0]}; accepted: targets "
                    "and modules_to_save that it has"
                ) from error
        return wrapped

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


def with_fresh_adapter(model: Any, options: LoraOptions) -> tuple[Any, str]:
    """The model in the space of a fresh adapter, which takes gradients, and the fingerprint of its base."""
    fingerprint = model_fingerprint(model)
    own = in_adapter_space(options.attach(model), fingerprint)
    for parameter in own.parameters():
        parameter.requires_grad_(True)
    return own, fingerprint


@torch.no_grad()
def save_adapter(model: Any, directory: Path, *, base: str, revision: str | None = None) -> None:
    """Writes the adapter of a model in adapter space as peft does: its weights and its config.

    Args:
        model: see `gradsteer.models.adapter_space.in_adapter_space`.
        directory: exists.
        base: hub id or directory of what it is a step from.
        revision: of the hub id.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # False: embeddings that the adapter holds would otherwise be stored whole as well
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in held.items()}
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    config = model.peft_config[NAME]
    before = config.base_model_name_or_path, config.revision, config.inference_mode
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    try:
        config.save_pretrained(str(directory))
    finally:
        config.base_model_name_or_path, config.revision, config.inference_mode = before
    written = read_json(directory / CONFIG)
    if isinstance(written.get("target_modules"), list):  # a set in peft: equal work shall give equal files
        written["target_modules"].sort()
    write_json(directory / CONFIG, written)
