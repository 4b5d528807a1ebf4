"""What a model needs on paper, from its config alone: for plans on machines that do not have it, or its weights.

Nothing here is measured; `gradsteer.models.memory` measures.
"""

from dataclasses import dataclass
from typing import Any

MFU = 0.35  # assumed share of a device's peak that large matrix products reach in a model


@dataclass(frozen=True)
class Card:
    """A device, by its data sheet.

    Attributes:
        name: of it.
        gib: memory.
        tera: FLOP/s by dtype, in 1e12, dense.
        bandwidth: bytes a second that it reads from its memory.
    """

    name: str
    gib: int
    tera: dict[str, float]
    bandwidth: float

    def seconds(self, flops: float, dtype: str, read: float = 0.0) -> float:
        """How long work takes.

        Args:
            flops: of it.
            dtype: it is done in.
            read: bytes of weights that have to be read for it, again and again while tokens are sampled.
        """
        return max(flops / (MFU * self.tera[dtype] * 1e12), read / self.bandwidth)


# the research note's; float32 without TF32, which torch leaves off
A100 = Card("A100 40 GB", 40, {"float32": 19.5, "bfloat16": 312.0, "float16": 312.0}, 1.555e12)


def activation_bytes(config: Any, element: int, *, checkpointing: bool) -> float:
    """Bytes a token that autograd saves in transformers' Llama, without the logits.

    With E bytes a number, hidden size h, q = heads * head size, f = intermediate size, L layers:

        a norm (in float32, result in the compute dtype)   4 h + 2 E h + 4
        attention: query, key and value repeated for all heads, output twice, and a float32 a head   5 E q + 4 heads
        gated MLP: gate, its activation, up, their product   4 E f
        a block = 2 norms + attention + MLP
        once: last norm 4 h + E h + 4, rotary cosine and sine 2 E (head size), the token's id 8

    With checkpointing: L inputs of E h, what comes once but the rotary part, and one block's share of all the above.

    Args:
        config: a model's; of another architecture than Llama's it is a guess.
        element: E.
        checkpointing: whether blocks are computed again in the backward pass.
    """
    text = config.get_text_config()
    h, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
    f = getattr(text, "intermediate_size", None) or 4 * h
    head_size = getattr(text, "head_dim", None) or h // heads
    block = 2 * (4 * h + 2 * element * h + 4) + 5 * element * heads * head_size + 4 * heads + 4 * element * f
    last = 4 * h + element * h + 4 + 8
    plain = layers * block + last + 2 * element * head_size
    return float(layers * element * h + last + plain / layers if checkpointing else plain)
