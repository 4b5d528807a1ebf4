"""Reading the base model beside the anchor, and the weight diff between the two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from gradsteer.models.checkpoints import CheckpointWeights
from gradsteer.models.loading import load_causal_lm
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
    half = pl_module.dtype_name in ("bfloat16", "float16")
    trust = pl_module.loading.trust_remote_code  # remote code may rename parameters when it loads them
    weights: Any = None if trust else CheckpointWeights.try_open(base)
    if weights is None:  # the revision is the anchor's, not the base's
        weights = named_weights(load_causal_lm(base, trust_remote_code=trust))
    # rounded minus exact weights would be partly rounding noise, so read the anchor's own file if possible
    own_file = half and not trust and pl_module.loading.gguf_file is None
    exact = CheckpointWeights.try_open(pl_module.model_name_or_path) if own_file else None
    diff = WeightDiff.streamed(named_weights(pl_module.model) if exact is None else exact, weights)
    path = output_dir / "vectors" / f"{DELTA}.safetensors"
    if trainer.is_global_zero:
        diff.save(path)
        rank_zero_info(f"weight diff Delta = anchor - base: norm {diff.norm():.4g} -> {path}")
    trainer.strategy.barrier()
    return weights, diff, path
