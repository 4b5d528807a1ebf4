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


def adapted(model: Any, rank: int, cards: tuple[int, ...] = (24, 80)) -> list[list[str]]:
    """Rows of the adapter's table: a 4-bit base with a LoRA on all linear layers, by card and tokens at once."""
    quantised = sum(p.numel() for name, p in model.named_parameters() if name.endswith("proj.weight"))
    rest = sum(p.numel() for p in model.parameters()) - quantised
    largest = max(p.numel() for name, p in model.named_parameters() if name.endswith("proj.weight"))
    own = sum(rank * sum(p.shape) for name, p in model.named_parameters() if name.endswith("proj.weight"))
    rows = []
    for gib in cards:
        for tokens in (TOKENS, 2048, 512):
            parts = {
                # 4 bits and a scale of float32 for 64 of them; the embedding and the head stay in bfloat16
                "base": round(quantised * (0.5 + 4 / 64)) + 2 * rest,
                "adapter": 4 * own,
                "sums": 4 * own,
                "one weight in full": 2 * largest,
                "activations": round(tokens * adapter_activation_bytes(model.config, rank)),
                "logits": 3 * 4 * model.config.vocab_size * max(64, HEAD_ENTRIES // model.config.vocab_size),
            }
            total = sum(parts.values())
            fits = "yes" if total <= USABLE * gib * 2**30 else "no"
            rows.append([f"{gib} GB", str(tokens), *(size(part) for part in parts.values()), size(total), fits])
    return rows


def adapter_activation_bytes(config: Any, rank: int) -> float:
    """Bytes a token with checkpointing, as `activation_bytes`, and in the block at hand what the adapters add.

    peft turns each linear layer's input into float32 for its matrix A, and keeps A's output: of 7 layers a block, 5 h,
    1 q and 1 f inputs of 4 bytes and 7 ranks.
    """
    heads = config.num_attention_heads * config.head_dim
    extra = 4 * (5 * config.hidden_size + heads + config.intermediate_size + 7 * rank)
    return activation_bytes(config, 2, checkpointing=True) + extra


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

    header = ["card", "tokens at once", "base", "adapter", "sums", "one weight in full", "activations", "logits"]
    for name in ("8B", "70B"):
        title = f"{name} in an adapter's space: a 4-bit base, rank 16 on all linear layers, checkpointing on, one card"
        table(title, [*header, "total", "fits"], adapted(models[name], 16))

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
