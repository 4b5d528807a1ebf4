"""Which layer a parameter belongs to, read off its name."""

import re
from collections.abc import Iterable, Mapping

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|decoder_layers)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte|wpe|embeddings?|embed_positions)\.")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.")


def layer_of(name: str) -> str:
    """The layer of a parameter: ``"embedding"``, ``"0"``, ``"1"``, ..., ``"head"`` or ``"other"``.

    >>> layer_of("model.layers.3.mlp.up_proj.weight")
    '3'
    """
    block = _BLOCK.search(name)
    if block:
        return block.group(1)
    if _EMBEDDING.search(name):
        return "embedding"
    return "head" if _HEAD.search(name) else "other"


def layer_order(labels: Iterable[str]) -> list[str]:
    """Distinct layer labels from the input to the output: embedding, blocks by number, other, head."""
    rank = {"embedding": -1, "other": 10**9, "head": 10**9 + 1}
    return sorted(set(labels), key=lambda label: rank[label] if label in rank else int(label))


def sum_squares_by_layer(sum_squares: Mapping[str, float]) -> dict[str, float]:
    """Adds per-parameter sums of squares up by layer, in `layer_order`.

    Args:
        sum_squares: parameter name -> sum of its squared entries.
    """
    labels = {name: layer_of(name) for name in sum_squares}
    totals = dict.fromkeys(layer_order(labels.values()), 0.0)
    for name, value in sum_squares.items():
        totals[labels[name]] += value
    return totals
