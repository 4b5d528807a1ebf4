"""What a run measures: the model's shape, the responses, and where the workers find both. Imports nothing heavy."""

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

IGNORE_INDEX = -100
# logits at a time in gradsteer's chunked head, as the attribute command has it
HEAD_ENTRIES = 1 << 25
# for a process whose memory is measured: blocks above 64 KiB go back to the system when they are freed, so that its
# resident memory is what is in use; too slow for a process whose speed is measured
EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Shape:
    """A causal LM's shape and how much of it a run does by default.

    Attributes:
        config: keywords of LlamaConfig.
        budgets: tokens in a pack to try; the last is the default of the attribute command on that device.
        dense: (batch, tokens) to try for the dense floor.
        responses: sequences in a round.
        head: keywords of LlamaConfig for the study of the head's memory.
    """

    config: dict[str, Any]
    budgets: tuple[int, ...]
    dense: tuple[tuple[int, int], ...]
    responses: int
    head: dict[str, Any]


def _llama(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: tuple[int, int], **options: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **options,
    }


# a body so small that the head is all the memory
_HEAD = _llama(128_256, 64, 128, 1, (2, 1), tie_word_embeddings=True)
_CPU_DENSE = ((4, 64), (8, 64), (4, 128), (8, 128), (2, 256), (4, 256), (1, 512), (2, 512))
SHAPES = {
    "tiny": Shape(_llama(512, 64, 128, 2, (2, 1)), (256, 512, 1024), _CPU_DENSE, 32, _HEAD),
    # 29.4 million parameters, 21.0 of them in matrix products
    "small": Shape(_llama(16_384, 512, 1536, 4, (8, 4)), (256, 512, 1024), _CPU_DENSE, 32, _HEAD),
    "1b": Shape(  # Llama-3.2-1B
        _llama(128_256, 2048, 8192, 16, (32, 8), head_dim=64, tie_word_embeddings=True),
        (4096, 16_384, 8192),
        ((8, 256), (16, 256), (32, 256), (4, 512), (8, 512), (16, 512), (4, 1024), (8, 1024)),
        256,
        {**_HEAD, "hidden_size": 256, "intermediate_size": 256},
    ),
}


@dataclass(frozen=True)
class Sequence:
    """A prompt and a response as token ids; labels are -100 on the prompt and at position 0."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Setting:
    """What every worker is told, written once as JSON.

    Attributes:
        shape: a name in `SHAPES`.
        dtype: float32 or bfloat16, of the weights.
        device: cpu or cuda.
        threads: of torch.
        clock: wall or cpu; what is compared.
        directory: holds the model and the responses, and is gone after the run.
        seed: of weights and responses.
    """

    shape: str
    dtype: str
    device: str
    threads: int
    clock: str
    directory: str
    seed: int = 0

    @property
    def model(self) -> Path:
        """The model's directory, in the format of save_pretrained."""
        return Path(self.directory) / "model"

    @property
    def responses(self) -> Path:
        """The responses of all rounds, one a line."""
        return Path(self.directory) / "responses.jsonl"

    def save(self) -> Path:
        """Writes it for the workers."""
        path = Path(self.directory) / "setting.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads it back."""
        return cls(**json.loads(Path(path).read_text()))

    def rounds(self) -> list[list[Sequence]]:
        """The responses of every round."""
        found: dict[int, list[Sequence]] = {}
        for line in self.responses.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["round"], []).append(Sequence(row["input_ids"], row["labels"]))
        return [found[number] for number in sorted(found)]


def write_responses(setting: Setting, rounds: int, responses: int) -> dict[str, int]:
    """Draws random token ids: prompts of 4 to 24 tokens, responses of 20 to 300, log-uniform (a long tail).

    Every round has the same lengths in another order and with other ids, so that rounds are alike in work.

    Returns:
        tokens, labelled tokens and the longest sequence of a round.
    """
    generator = random.Random(setting.seed)
    vocabulary = SHAPES[setting.shape].config["vocab_size"]
    # evenly spaced quantiles: a handful of sequences has the distribution's mean and its longest one
    steps = [(index + 0.5) / responses for index in range(responses)]
    lengths = [round(math.exp(math.log(20) + step * math.log(300 / 20))) for step in steps]
    prompts = [generator.randint(4, 24) for _ in lengths]
    with setting.responses.open("w") as file:
        for number in range(rounds):
            pairs = list(zip(prompts, lengths, strict=True))
            generator.shuffle(pairs)
            for prompt, length in pairs:
                ids = [generator.randrange(3, vocabulary) for _ in range(prompt + length)]
                row = {"round": number, "input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]}
                file.write(json.dumps(row) + "\n")
    longest = max(prompt + length for prompt, length in zip(prompts, lengths, strict=True))
    return {"tokens": sum(prompts) + sum(lengths), "labelled": sum(lengths), "longest": longest}
