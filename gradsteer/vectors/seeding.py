"""Random numbers that depend on what they are for."""

import hashlib

import torch


def generator_for(*words: str | int) -> torch.Generator:
    """A CPU generator for a purpose, such as ``("mask", seed, parameter name)``: the same on every machine."""
    # a digest as seed: a plain small one may be what drew other numbers of the same experiment
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
