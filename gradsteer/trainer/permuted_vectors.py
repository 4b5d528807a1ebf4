"""Writing a vector's null vectors: the contrasts of its piles with permuted labels."""

from collections.abc import Callable

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.attribution.gradient_store import Assembly
from gradsteer.attribution.permutations import sides_of_permutations
from gradsteer.attribution.pile_partition import Wanted
from gradsteer.trainer.tensorboard import log_metrics
from gradsteer.vectors.parameter_vectors import SteeringVector


def write_permuted(
    trainer: L.Trainer,
    assembly: Assembly,
    name: str,
    vector: SteeringVector,
    contrast: Callable[[tuple[Wanted, Wanted]], SteeringVector],
) -> None:
    """Writes ``vectors/permuted/NAME-0.safetensors`` and so on; does nothing without permutations.

    Args:
        trainer: its loggers receive the null vectors' norms and their cosines with the vector.
        assembly: the store of sums, all written by now.
        name: the vector's name.
        vector: the vector from the real piles, for comparison.
        contrast: makes a vector from two sums, the way the real one was made.
    """
    folder = assembly.output_dir / "vectors" / "permuted"
    norms, cosines = [], []
    for index, sides in sides_of_permutations(assembly.sums, name).items():
        null = contrast(sides)
        null.save(folder / f"{name}-{index}.safetensors")
        norms.append(null.norm())
        cosines.append(null.cosine(vector))
        measured = {f"vector/{name}/permuted_norm": norms[-1], f"vector/{name}/permuted_cosine": cosines[-1]}
        log_metrics(trainer, measured, step=index)
    if norms:
        rank_zero_info(
            f"vector {name} with permuted labels, {len(norms)} times: norm {min(norms):.4g} to {max(norms):.4g}, "
            f"cosine with {name} {min(cosines):+.2f} to {max(cosines):+.2f} -> {folder}"
        )
