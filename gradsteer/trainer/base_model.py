"""Reading the base model beside the anchor, and the weight diff between the two."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from gradsteer.models.adapter_space import is_in_adapter_space
from gradsteer.models.base_weights import base_weights, delta_rank
from gradsteer.models.checkpoints import CheckpointWeights
from gradsteer.models.loading import Loading, load_causal_lm
from gradsteer.vectors.weight_diff import DELTA, WeightDiff, named_weights


def read_base(
    trainer: L.Trainer, pl_module: Any, base: str, output_dir: Path
) -> tuple[Mapping[str, Tensor], WeightDiff, Path]:
    """Reads the base's weights (tensor by tensor if its files allow) and writes the weight diff to vectors/.

    Args:
        trainer: rank 0 of it writes the file.
        pl_module: the module that holds the anchor.
        base: a hub id or a directory.
        output_dir: the experiment's directory.

    Returns:
        The base's weights by name, the diff, and the diff's file.
    """
    loading: Loading = pl_module.loading
    trust = loading.trust_remote_code  # remote code may rename parameters when it loads them

    def load() -> Mapping[str, Tensor]:
        opened = None if trust else CheckpointWeights.try_open(base)
        # the revision is the anchor's, not the base's
        return named_weights(load_causal_lm(base, trust_remote_code=trust)) if opened is None else opened

    weights = base_weights(pl_module.model, loading, base, load)
    anchor: Mapping[str, Tensor] = named_weights(pl_module.model)
    if pl_module.dtype_name in ("bfloat16", "float16") and not is_in_adapter_space(pl_module.model):
        # rounded minus exact weights would be partly rounding noise, so read the anchor's own ones if possible
        if loading.adapter is not None:
            anchor = named_weights(load_causal_lm(replace(loading, dtype="float32")))
        elif not trust and loading.gguf_file is None:
            anchor = CheckpointWeights.try_open(loading.name_or_path) or anchor
    diff = WeightDiff.streamed(anchor, weights)
    rank = delta_rank(loading, base)
    if rank is not None:
        diff.metadata["adapter_rank"] = str(rank)
    path = output_dir / "vectors" / f"{DELTA}.safetensors"
    if trainer.is_global_zero:
        diff.save(path)
        rank_zero_info(f"weight diff Delta = anchor - base: norm {diff.norm():.4g} -> {path}")
    trainer.strategy.barrier()
    return weights, diff, path
