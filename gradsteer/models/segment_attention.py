"""Attention within the segments of a pack, through transformers' public attention interface.

A pack is several sequences laid end to end in one row. Each segment attends to itself only, so a pack gives what its
sequences give one by one, without padding. A segment may leave out a beginning that it shares with one before it: it
attends to that beginning there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

NAME = "gradsteer_segments"
# windows of the masks that a model asks for, and those that its attention is told of, while someone looks
_WINDOWS: ContextVar[tuple[set[int], set[int]] | None] = ContextVar("windows", default=None)
# what models pass to their attention function; anything else would be ignored in silence
_KNOWN = {"sliding_window", "softcap", "position_ids", "use_cache", "is_causal", "output_attentions", "cache_position"}


@dataclass(frozen=True)
class _Segments:
    lengths: tuple[int, ...]
    shared: tuple[int, ...]
    masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)  # of all layers


_SEGMENTS: ContextVar[_Segments] = ContextVar("segments")


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
def segments(lengths: Sequence[int], shared: Sequence[int] = ()) -> Iterator[None]:
    """Says what the segments of the pack are that runs in the block, forward and backward.

    Args:
        lengths: tokens of each.
        shared: tokens that each leaves out as it shares them with the last segment before it that is whole; 0 where it
            is whole itself. By default all are.
    """
    token = _SEGMENTS.set(_Segments(tuple(lengths), tuple(shared) or (0,) * len(lengths)))
    try:
        yield
    finally:
        _SEGMENTS.reset(token)


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
    said = _SEGMENTS.get()
    outputs, whole = [], (key, value)
    queries, keys, values = (tensor.split(list(said.lengths), dim=2) for tensor in (query, key, value))
    for shared, q, k, v in zip(said.shared, queries, keys, values, strict=True):
        if not shared:
            whole = k, v
        elif q.shape[2]:
            k, v = (torch.cat([one[:, :, :shared], own], dim=2) for one, own in zip(whole, (k, v), strict=True))
        else:
            continue
        outputs.append(_segment(q, k, v, dropout, scaling, window, softcap, said.masks).transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    masks: dict[tuple[int, int, int], Tensor],
) -> Tensor:
    """The queries are those of the last keys."""
    length, before = key.shape[2], key.shape[2] - query.shape[2]
    window = length if window is None else min(window, length)
    if softcap is None and window == length and not before:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=True
        )
    allowed = masks.get((length, before, window))
    if allowed is None:
        position = torch.arange(length, device=query.device)
        distance = position[before:, None] - position
        allowed = (distance >= 0) & (distance < window)
        if before:  # every layer asks for it, and other replies to the prompt may be as long
            masks[length, before, window] = allowed
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, dropout_p=dropout, scale=scaling
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1, dtype=torch.float32)
    return nn.functional.dropout(weights.to(query.dtype), dropout) @ value
