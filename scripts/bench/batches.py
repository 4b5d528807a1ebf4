"""Padded batches of sequences, for contenders whose Python has no gradsteer."""

from collections.abc import Sequence as Row

import torch
from torch import Tensor

from bench.setting import IGNORE_INDEX, Sequence


def padded(batch: Row[Sequence], device: str) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, padded on the right to the longest."""
    width = max(len(row.input_ids) for row in batch)

    def filled(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (width - len(values))

    tensors = {
        "input_ids": [filled(row.input_ids, 0) for row in batch],
        "attention_mask": [filled([1] * len(row.input_ids), 0) for row in batch],
        "labels": [filled(row.labels, IGNORE_INDEX) for row in batch],
    }
    return {key: torch.tensor(value, device=device) for key, value in tensors.items()}


def batches_of(rows: Row[Sequence], size: int, *, by_length: bool = False) -> list[list[Sequence]]:
    """Batches of so many sequences, in their order or longest first."""
    rows = sorted(rows, key=lambda row: -len(row.input_ids)) if by_length else list(rows)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
