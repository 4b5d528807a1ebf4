"""What a command will need on disk and of memory, said before its long work; too little is refused by both numbers."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.models.loading import DTYPES, Loading, fresh_causal_lm
from gradsteer.models.memory import available_bytes, size
from gradsteer.models.sources import read_config
from gradsteer.trainer.session import data_of, is_trial, sampled_rows, session_of

_SUMMED = 4  # bytes a number, of gradients, vectors and moments
_ADAM = 8  # of the two moments that Adam keeps
_TOKEN, _ROW = 12, 1024  # bytes of a sampled token, as id and as text; of a response's other keys
_WORTH_SAYING = 2**30


class RoomCheck(L.Callback):
    """Compares what a command will write and load with what there is.

    The model counts by its files, or by its config. Other work on the machine is not known.

    Args:
        command: which command it is.
        options: its configuration.
        directory: where its artifacts go.
    """

    def __init__(self, command: str, options: Mapping[str, Any], directory: Path) -> None:
        self.command, self.options, self.directory = command, options, directory

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Says what is needed where it is much, and refuses what does not fit.

        Raises:
            ValueError: the disk or the device has too little; names both numbers.
        """
        if is_trial(trainer):
            return
        model = _model_bytes(pl_module)
        numbers = _trained(pl_module)
        own = model if numbers is None else _SUMMED * numbers  # an adapter's tensors are in float32
        numbers = model // DTYPES[pl_module.dtype_name].itemsize if numbers is None else numbers
        written = {name: part for name, part in self._written(trainer, pl_module, own, numbers).items() if part}
        loaded = {"the model": model}
        if self.command == "fit":
            keeps = "Adam" in str(self.options["model"]["optimizer"])
            loaded |= {"its gradients": own, "the optimizer's moments": _ADAM * numbers * keeps}
        there = next(each for each in (self.directory.absolute(), *self.directory.absolute().parents) if each.exists())
        free, device = shutil.disk_usage(there).free, trainer.strategy.root_device
        memory = available_bytes(device, held=0)
        split = trainer.world_size if isinstance(trainer.strategy, ModelParallelStrategy) else 1
        for parts, have, where, hint in (
            (written, free, f"the disk of {str(self.directory)!r}", "another --output_dir, or delete something"),
            (
                loaded,
                None if memory is None else memory * split,
                str(device),
                "--model.dtype bfloat16, or a larger one",
            ),
        ):
            total = sum(parts.values())
            text = f"{_listed(parts)} need {size(total)}"
            if have is not None and total > have:
                raise ValueError(f"too little room: {text}, and {where} has {size(have)} free; accepted: {hint}")
            if total >= _WORTH_SAYING:
                rank_zero_info(f"room: {text} of {'an unknown size' if have is None else size(have)} on {where}")

    def _written(self, trainer: L.Trainer, pl_module: Any, model: int, numbers: int) -> dict[str, int]:
        """Bytes of what the command will write, by name."""
        session = session_of(trainer)
        if self.command == "fit":
            moment = _SUMMED * numbers * bool(self.options["saving"]["second_moment"])
            return {"the model": model, "its checkpoint": model + _ADAM * numbers, "the second moment": moment}
        if self.command == "attribute":
            piles = len(self.options["data"]["piles"]) + len(data_of(trainer).parts)
            vectors = len(self.options.get("vectors") or {}) * (1 + int(self.options["data"]["permutations"]))
            return {"gradients": _SUMMED * numbers * piles, "vectors": _SUMMED * numbers * vectors}
        diff = _SUMMED * numbers * ((self.options.get("steering") or {}).get("base") is not None)
        responses = 0
        if session.judging is not None:
            rows = sampled_rows(trainer)
            tokens = sum(len(row["prompt_token_ids"]) for row in rows) + len(rows) * pl_module.sampling.max_new_tokens
            responses = 2 * max(1, len(session.conditions)) * (_TOKEN * tokens + _ROW * len(rows))
        return {"the weight diff": diff, "responses": responses}


def _model_bytes(pl_module: Any) -> int:
    """Bytes of a module's weights in the dtype that it loads them in, before they are loaded."""
    loading: Loading = pl_module.loading.base_loading or pl_module.loading
    wanted = DTYPES[pl_module.dtype_name].itemsize
    bits = {None: 8 * wanted, "4bit": 4, "8bit": 8}[loading.quantization]
    files = list(Path(loading.name_or_path).glob("*.safetensors"))
    config = read_config(loading.name_or_path, loading.revision) or {}
    saved = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))
    if getattr(pl_module, "fresh_config", None) is None and loading.gguf_file is None and files and saved is not None:
        return sum(file.stat().st_size for file in files) * bits // (8 * saved.itemsize)
    if getattr(pl_module, "fresh_config", None) is not None:
        import torch

        with torch.device("meta"):
            model: Any = fresh_causal_lm(pl_module.fresh_config)
    else:
        model = loading.without_values()
    numbers: int = sum(parameter.numel() for parameter in model.parameters())
    return numbers * bits // 8


def _trained(pl_module: Any) -> int | None:
    """Numbers that take gradients where they are an adapter's; None where they are the whole model's."""
    loading: Loading = pl_module.loading
    if loading.adapter is not None and loading.adapter_reading == "adapter":
        return sum(tensor.numel() for tensor in loading.adapter.shapes().values())
    found: int | None = getattr(pl_module, "num_trained", None)
    return found


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size(part)}" for name, part in parts.items())
