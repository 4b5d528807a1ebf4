"""Deterministic batching, and splitting batches over ranks without repeats."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Groups sequences of similar length, to reduce padding.

    Args:
        lengths: number of tokens in each sequence.
        batch_size: maximum sequences per batch, at least 1.

    Returns:
        Batches of indices into `lengths`, each index once. Longest first, so that a batch too large for memory fails
        early; equal lengths keep their order, so that a prompt's samples stay together.

    Raises:
        ValueError: the batch size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; accepted: at least 1")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def share_of_rank(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """The rank's items (every `world_size`-th): none is repeated, and some ranks may get one fewer."""
    return list(items[rank::world_size])
