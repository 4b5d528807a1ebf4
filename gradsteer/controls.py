"""Null directions that a steering vector is compared with."""

import hashlib

import torch

from gradsteer.vectors import SteeringVector


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
        # a digest as seed: a plain small one may be what drew other numbers of the same experiment
        digest = hashlib.sha256(f"random_like/{seed}/{label}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        noise = torch.randn(tensor.shape, generator=generator)
        norm = torch.linalg.vector_norm(noise)
        scale = torch.linalg.vector_norm(tensor.float().cpu()) / norm if norm > 0 else 0.0
        tensors[name] = (noise * scale).to(tensor)
    metadata = {**vector.metadata, "derivation": vector.metadata.get("derivation", "") + f"|random_like(seed={seed})"}
    return SteeringVector(tensors, metadata)
