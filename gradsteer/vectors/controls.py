"""Null directions that a steering vector is compared with."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.seeding import generator_for


def random_like(vector: SteeringVector, *, seed: int, label: str = "") -> SteeringVector:
    """A Gaussian direction with the vector's norm in every tensor.

    The same seed and label give the same direction on every machine, and in every tensor whatever other tensors there
    are.

    Args:
        vector: whose names, shapes and norms the direction takes.
        seed: another seed gives another direction.
        label: another label too; the vector's name, so that the controls of two vectors are not one direction.
    """
    tensors = {}
    for name, tensor in vector.items():
        noise = torch.randn(tensor.shape, generator=generator_for("random_like", seed, label, name))
        norm = torch.linalg.vector_norm(noise)
        scale = torch.linalg.vector_norm(tensor.float().cpu()) / norm if norm > 0 else 0.0
        tensors[name] = (noise * scale).to(tensor)
    return _control(vector, tensors, f"|random_like(seed={seed})")


def random_signs(vector: SteeringVector, *, seed: int, label: str = "") -> SteeringVector:
    """The vector's own magnitudes with random signs: as sparse and as uneven as V, without its direction.

    Args:
        vector: whose magnitudes the direction takes, entry by entry.
        seed: as for `random_like`.
        label: as for `random_like`.
    """
    tensors = {}
    for name, tensor in vector.items():
        signs = torch.rand(tensor.shape, generator=generator_for("random_signs", seed, label, name)) < 0.5
        tensors[name] = torch.where(signs.to(tensor.device), tensor, -tensor)
    return _control(vector, tensors, f"|random_signs(seed={seed})")


CONTROLS: dict[str, Callable[..., SteeringVector]] = {"random": random_like, "signs": random_signs}


def _control(vector: SteeringVector, tensors: Mapping[str, Tensor], derivation: str) -> SteeringVector:
    metadata = {**vector.metadata, "derivation": vector.metadata.get("derivation", "") + derivation}
    return SteeringVector(tensors, metadata)
