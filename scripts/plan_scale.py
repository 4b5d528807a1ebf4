"""Prints the tables of docs/scale.md: what attribution needs on paper, for Llama shapes. Nothing here is measured.

    python scripts/plan_scale.py

The memory comes from gradsteer.models.memory.plan_memory on models without values (torch's meta device); the
activations from gradsteer.models.on_paper, which tests/models/test_memory.py compares with what autograd saves.
"""

from typing import Any

import torch

from gradsteer.models.memory import MemoryPlan, plan_memory, size
from gradsteer.models.on_paper import MFU, activation_bytes

TOKENS = 8192  # at once on a device: the default of --data.token_budget on a GPU
HEAD_ENTRIES = 1 << 25  # logits at once in the chunked head, as gradsteer.trainer.modules.attribution has it
USABLE = 0.9  # of a card's memory; the rest: CUDA's context, communication buffers, fragments
CARDS = {"A100-40G": (40, 312), "A100-80G": (80, 312), "H100-80G": (80, 989)}  # GiB, dense bfloat16 TFLOP/s
PARTS = ("weights", "gathered", "buffers", "gradients", "activations", "logits")
LLAMA_3 = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}
SHAPES: dict[str, dict[str, Any]] = {
    "1B": dict(num_hidden_layers=16, hidden_size=2048, intermediate_size=8192, num_attention_heads=32, tied=True),
    "8B": dict(num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, tied=False),
    "70B": dict(num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64, tied=False),
}


def build(shape: dict[str, Any]) -> Any:
    """A Llama of a shape, in bfloat16, without values."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    rest = {name: value for name, value in shape.items() if name != "tied"}
    config = LlamaConfig(**LLAMA_3, **rest, tie_word_embeddings=shape["tied"])
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def plan(model: Any, *, shards: int, checkpointing: bool, tokens: int = TOKENS) -> MemoryPlan:
    return plan_memory(
        model,
        parameters=[name for name, _ in model.named_parameters()],
        token_budget=tokens,
        labelled_tokens=tokens,
        head_chunk=max(64, HEAD_ENTRIES // model.config.vocab_size),
        activation_bytes_per_token=activation_bytes(model.config, 2, checkpointing=checkpointing),
        shards=shards,
    )


def least(model: Any, gib: int, *, checkpointing: bool, tokens: int = TOKENS) -> int | None:
    """The least power of two of cards on which the plan fits; one card needs no FSDP."""
    for exponent in range(11):
        shards = 2**exponent
        if plan(model, shards=shards, checkpointing=checkpointing, tokens=tokens).total <= USABLE * gib * 2**30:
            return shards
    return None


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print(f"{title}\n")
    for row in [header, ["-" * width for width in widths], *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def main() -> None:
    models = {name: build(shape) for name, shape in SHAPES.items()}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}

    rows = []
    for name, model in models.items():
        n = counts[name]
        per_token = [activation_bytes(model.config, 2, checkpointing=on) for on in (False, True)]
        rows.append(
            [
                name,
                f"{n / 1e9:.2f}e9",
                size(2 * n),
                size(4 * n),
                *(f"{b / 1024:.0f} KiB" for b in per_token),
                size(12 * n),
            ]
        )
    header = ["model", "N", "weights", "sums = a pile on disk", "a token", "checkpointed", "contrasting two"]
    table(
        "Sizes: weights in bfloat16, sums in float32, activations a token, CPU memory to contrast two piles",
        header,
        rows,
    )

    rows = []
    header = ["model", "cards", "checkpointing", *PARTS, "total"]
    choices = {"1B": (1,), "8B": (1, 2, 4, 8, 16), "70B": (8, 16, 32, 64)}
    for name, model in models.items():
        for shards in choices[name]:
            for on in (False, True):
                p = plan(model, shards=shards, checkpointing=on)
                cells = [size(getattr(p, part)) if getattr(p, part) else "-" for part in (*PARTS, "total")]
                rows.append([name, str(shards), "on" if on else "off", *cells])
    table(
        f"Memory of each card, {TOKENS} tokens at once (1: whole weights, also DDP on any number; else FSDP2)",
        header,
        rows,
    )

    rows = []
    for name, model in models.items():
        for on in (False, True):
            for tokens in (TOKENS, 2048):
                found = [least(model, gib, checkpointing=on, tokens=tokens) for gib, _ in CARDS.values()]
                rows.append([name, "on" if on else "off", str(tokens), *(str(n or "none") for n in found)])
    title = f"Cards at least (powers of two; 1 means no FSDP2; {USABLE:.0%} of the memory counted as usable)"
    table(title, ["model", "checkpointing", "tokens at once", *CARDS], rows)

    rows = []
    for name in models:
        for on in (False, True):
            flops = (8 if on else 6) * counts[name] * 1e6
            hours = [flops / (MFU * tera * 1e12) / 3600 for _, tera in CARDS.values()]
            rows.append([name, "on" if on else "off", f"{flops:.1e}", *(f"{h:.2f}" for h in hours)])
    title = f"Card-hours for a million tokens (6 N FLOP a token, 8 N with checkpointing; {MFU:.0%} of the peak assumed)"
    table(title, ["model", "checkpointing", "FLOP", *CARDS], rows)


if __name__ == "__main__":
    main()
