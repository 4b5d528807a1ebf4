"""How work is cut into batches: the same on every run, and shared out over ranks without repeats."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Groups sequences of like length, so that little of a batch is padding.

    Args:
        lengths: tokens of each sequence.
        batch_size: the most sequences in a batch, at least 1.

    Returns:
        The indices into `lengths`, each once. Longest first, so that a batch too large for memory fails soon; equal
        lengths in their given order, so that a prompt's samples stay together.

    Raises:
        ValueError: the batch size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; accepted: at least 1")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def share_of_rank(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """Every world-size-th item from the rank's own on: nothing is repeated, some ranks may have one fewer."""
    return list(items[rank::world_size])
