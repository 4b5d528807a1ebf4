"""What training, sampling and passes of a model take on paper: tokens, operations, seconds and memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradsteer.data.chat_formats import read_chat_examples
from gradsteer.data.sources import DataSource
from gradsteer.generation.memory import footprint_of, rows_at_once
from gradsteer.models.loading import Loading
from gradsteer.models.memory import plan_memory
from gradsteer.models.on_paper import A100, activation_bytes

CHARS_A_TOKEN = 4.0  # of English text under common tokenizers
TURN_TOKENS = 12  # of a chat template, a turn, about
_HEAD_ENTRIES = 1 << 25  # logits at once in the chunked head of attribute
_DEVICE_TOKENS = 8192  # at once in attribute, where it is not said
_ADAM = 16  # bytes a weight: itself, its gradient, two moments
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Paper:
    """The base model, by its config.

    Args:
        base_model: hub id or directory.
    """

    def __init__(self, base_model: str) -> None:
        self.model = Loading(base_model).without_values(dtype=torch.float32)
        self.config = self.model.config
        self.size = sum(parameter.numel() for parameter in self.model.parameters())

    def fit(self, config: Mapping[str, Any]) -> tuple[float, float, float, float]:
        """Tokens, FLOP, seconds and bytes of a finetune."""
        data, options = config["data"], config["model"]
        source = data_source(data["train"])
        chats = read_chat_examples(source, split=data["train_split"], columns=data["columns"], say=silent)
        texts = [count_tokens([message["content"] for message in chat.messages] or [chat.text or ""]) for chat in chats]
        lengths = [min(length, data["max_length"]) for length in texts]
        trainer = config["trainer"]
        batches = -(-len(lengths) // data["batch_size"])
        epochs = trainer["max_epochs"] if trainer["max_epochs"] not in (None, -1) else float("inf")
        steps = min(epochs * batches, trainer["max_steps"] if trainer["max_steps"] != -1 else float("inf"))
        tokens = sum(lengths) * steps / batches
        checkpointing, dtype = options["gradient_checkpointing"], compute_dtype(config)
        flops = (8 if checkpointing else 6) * self.size * tokens
        batch = data["batch_size"] * max(lengths)
        logits = 3 * 4 * self.config.get_text_config().vocab_size * batch
        kept = batch * activation_bytes(self.config, _BYTES[dtype], checkpointing=checkpointing)
        return tokens, flops, A100.seconds(flops, dtype), _ADAM * self.size + kept + logits

    def sampling(self, rows: int, prompt: float, new: int, dtype: str) -> tuple[float, float, float, float]:
        """Tokens, FLOP, seconds and bytes of sampling.

        Args:
            rows: responses.
            prompt: tokens of a prompt, the mean.
            new: tokens of a response at most.
            dtype: of the weights.
        """
        weights = self.size * _BYTES[dtype]
        footprint = footprint_of(self.config, num_parameters=self.size, dtype=getattr(torch, dtype), loaded=False)
        free = A100.gib * 2**30
        longest = int(2 * prompt) + 1
        at_once = rows_at_once(
            footprint, prompt_tokens=longest, max_new_tokens=new, device_type="cuda", free_bytes=free
        )
        at_once = min(at_once, rows)
        tokens = rows * (prompt + new)
        flops = 2 * self.size * tokens
        held = 0 if footprint is None else at_once * footprint.row_bytes(longest, new)
        return tokens, flops, A100.seconds(flops, dtype, -(-rows // at_once) * new * weights), 2 * weights + held

    def passes(self, tokens: float, per_token: float, dtype: str) -> tuple[float, float, float, float]:
        """Tokens, FLOP, seconds and bytes of passes over tokens; those of attribute at its own batch size.

        Args:
            tokens: of the responses.
            per_token: FLOP, in units of the model's size.
            dtype: of the weights.
        """
        entries = max(64, _HEAD_ENTRIES // self.config.get_text_config().vocab_size)
        plan = plan_memory(
            self.model, parameters=[name for name, _ in self.model.named_parameters()], token_budget=_DEVICE_TOKENS,
            labelled_tokens=_DEVICE_TOKENS, head_chunk=entries,
            activation_bytes_per_token=activation_bytes(self.config, _BYTES[dtype], checkpointing=False),
        )  # fmt: skip
        flops = per_token * self.size * tokens
        return tokens, flops, A100.seconds(flops, dtype), plan.total


def data_source(given: Any) -> DataSource:
    """The source that a parsed option describes."""
    return DataSource(**given) if isinstance(given, Mapping) else DataSource.of(given)


def compute_dtype(config: Mapping[str, Any]) -> str:
    """Name of the dtype that a command's configuration computes in."""
    mixed = str(config["trainer"]["precision"])
    half = "bfloat16" if mixed.startswith("bf16") else "float16" if mixed.startswith("16") else None
    return half or str(config["model"]["dtype"])


def count_tokens(texts: Sequence[str]) -> float:
    """Tokens of a conversation's turns, about."""
    return sum(len(text) for text in texts) / CHARS_A_TOKEN + TURN_TOKENS * len(texts)


def silent(_line: str) -> None:
    """Takes what readers say, and keeps it."""
