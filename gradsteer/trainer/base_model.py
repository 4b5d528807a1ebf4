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
    """The base's weights, read tensor by tensor where its files allow, and the weight diff, written to vectors/.

    Args:
        trainer: whose first process writes.
        pl_module: holds the anchor.
        base: a hub id or a directory.
        output_dir: the experiment's directory.

    Returns:
        The base's weights by name, the diff, and the diff's file.
    """
    half = pl_module.dtype_name in ("bfloat16", "float16")
    trust = pl_module.loading["trust_remote_code"]  # code of its own may name parameters otherwise
    weights: Any = None if trust else CheckpointWeights.try_open(base)
    if weights is None:  # the revision is the anchor's, not the base's
        weights = named_weights(load_causal_lm(base, trust_remote_code=trust))
    # rounded weights less exact ones would be rounding noise in part: the anchor's own file, where it can be read
    exact = None if trust or not half else CheckpointWeights.try_open(pl_module.model_name_or_path)
    diff = WeightDiff.streamed(named_weights(pl_module.model) if exact is None else exact, weights)
    path = output_dir / "vectors" / f"{DELTA}.safetensors"
    if trainer.is_global_zero:
        diff.save(path)
        rank_zero_info(f"weight diff Delta = anchor - base: norm {diff.norm():.4g} -> {path}")
    trainer.strategy.barrier()
    return weights, diff, path
