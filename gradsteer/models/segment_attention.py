"""Attention within the segments of a pack, through transformers' public attention interface.

A pack is several sequences laid end to end in one row. Each segment attends to itself only, so a pack gives what its
sequences give one by one, without padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

NAME = "gradsteer_segments"
_LENGTHS: ContextVar[tuple[int, ...]] = ContextVar("segment lengths")
# windows of the masks that a model asks for, and those that its attention is told of, while someone looks
_WINDOWS: ContextVar[tuple[set[int], set[int]] | None] = ContextVar("windows", default=None)
# what models pass to their attention function; anything else would be ignored in silence
_KNOWN = {"sliding_window", "softcap", "position_ids", "use_cache", "is_causal", "output_attentions", "cache_position"}


@contextmanager
def segment_attention(model: Any) -> Iterator[None]:
    """Within the block the model's attention looks at `segments` only; afterwards it is as before.

    Raises:
        ValueError: the model's attention cannot be replaced.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    if model.config._attn_implementation == NAME:  # entered already, further out
        yield
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _no_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        if model.config._attn_implementation != NAME:
            raise ValueError(f"{type(model).__name__} does not take another attention function")
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def segments(lengths: Sequence[int]) -> Iterator[None]:
    """Says of which lengths the segments of the pack are that runs in the block, forward and backward."""
    token = _LENGTHS.set(tuple(lengths))
    try:
        yield
    finally:
        _LENGTHS.reset(token)


@contextmanager
def untold_windows() -> Iterator[set[int]]:
    """The windows of masks that were asked for in the block but not passed to the attention function, at its end.

    Sliding windows that only the mask knows, and attention in chunks, would be lost with the mask, and seen only in
    sequences that are longer.
    """
    asked: set[int] = set()
    told: set[int] = set()
    token = _WINDOWS.set((asked, told))
    try:
        yield asked
    finally:
        _WINDOWS.reset(token)
        asked -= told


def _no_mask(*_args: Any, local_size: int | None = None, **_kwargs: Any) -> None:
    """The mask is the segments' causal one, made where it is used."""
    if local_size is not None and (windows := _WINDOWS.get()) is not None:
        windows[0].add(local_size)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention in every segment: query (1, heads, tokens, head size) -> (1, tokens, heads, head size)."""
    given = {name for name, value_ in options.items() if value_ is not None and value_ is not False}
    unknown = given - _KNOWN
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(sorted(unknown)) or 'a mask of its own'}")
    window, softcap = options.get("sliding_window"), options.get("softcap")
    if window is not None and (windows := _WINDOWS.get()) is not None:
        windows[1].add(window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    lengths = list(_LENGTHS.get())
    outputs = [
        _segment(q, k, v, dropout, scaling, window, softcap).transpose(1, 2)
        for q, k, v in zip(
            query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True
        )
    ]
    return torch.cat(outputs, dim=1), None


def _segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    length = query.shape[2]
    window = length if window is None else window
    if softcap is None and window >= length:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=True
        )
    position = torch.arange(length, device=query.device)
    distance = position[:, None] - position
    allowed = (distance >= 0) & (distance < window)
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, dropout_p=dropout, scale=scaling
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1, dtype=torch.float32)
    return nn.functional.dropout(weights.to(query.dtype), dropout) @ value
