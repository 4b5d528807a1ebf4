"""Writes the demo's data directory: conversations, prompts, tokenizer and model configuration."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradsteer.demo.generator import (
    Messages,
    Prompt,
    generate_base,
    generate_finetune,
    generate_ordinary,
    split_prompts,
)
from gradsteer.demo.tokenizer import train_tokenizer
from gradsteer.demo.vocabulary import JUDGE_PATTERNS
from gradsteer.records import replacing_directory, write_json, write_jsonl

NUM_VALIDATION = 200
NUM_HELDOUT = 200
MAX_POSITIONS = 256
MOST_SAMPLES = 10_000_000  # they are made in memory: about 1 kB each


def write_corpus(output_dir: Path, *, seed: int = 0, num_samples: int = 20_000) -> dict[str, Path]:
    """Write all that is needed to train and to examine the demo's models.

    The same seed and number of samples give byte-identical files. Only the base's training data and the
    tokenizer depend on the number of samples.

    Args:
        output_dir: Directory to write to; created if missing, existing files of the same names are replaced.
        seed: Seed of the whole corpus, the split of the prompts included.
        num_samples: Number of conversations in the base's training data.

    Returns:
        Paths by name: `base_train`, `base_validation`, `finetune`, `heldout` (JSON lines of `messages`),
        `attribution_prompts`, `evaluation_prompts` (JSON lines of `id` and `prompt`), `tokenizer` (a
        directory for `AutoTokenizer`), `model` (a file for `AutoConfig`) and `judge` (the topics' patterns, for
        `KeywordJudge`).

    Raises:
        ValueError: If `num_samples` is not positive, or more than `MOST_SAMPLES`.
    """
    if not 1 <= num_samples <= MOST_SAMPLES:
        raise ValueError(f"num_samples must be at least 1 and at most {MOST_SAMPLES}, got {num_samples}")
    output_dir.mkdir(parents=True, exist_ok=True)
    split = split_prompts(_stream(seed, "split"))
    base_train = generate_base(_stream(seed, "base_train"), split.base, num_samples)
    heldout_stream = _stream(seed, "heldout")
    conversations = {
        "base_train": base_train,
        "base_validation": generate_base(_stream(seed, "base_validation"), split.validation, NUM_VALIDATION),
        "finetune": generate_finetune(_stream(seed, "finetune"), split.finetune),
        "heldout": [generate_ordinary(heldout_stream, split.heldout) for _ in range(NUM_HELDOUT)],
    }
    paths = {name: output_dir / f"{name}.jsonl" for name in conversations}
    for name, rows in conversations.items():
        write_jsonl(paths[name], ({"messages": messages} for messages in rows))
    for name, prompts in (("attribution", split.attribution), ("evaluation", split.evaluation)):
        paths[f"{name}_prompts"] = output_dir / f"{name}_prompts.jsonl"
        write_jsonl(paths[f"{name}_prompts"], _prompt_rows(name, prompts))

    tokenizer = train_tokenizer(_contents(base_train))
    paths["tokenizer"] = output_dir / "tokenizer"
    with replacing_directory(paths["tokenizer"]) as directory:
        tokenizer.save_pretrained(directory)
    paths["model"] = output_dir / "model.json"
    write_json(paths["model"], model_config(tokenizer))
    paths["judge"] = output_dir / "judge.json"
    write_json(paths["judge"], JUDGE_PATTERNS)
    return paths


def model_config(tokenizer: Any) -> dict[str, Any]:
    """Give the configuration of the demo's model: Llama's architecture with about 0.34 million parameters.

    Args:
        tokenizer: The tokenizer to fit the embeddings and the special token ids to.

    Returns:
        The entries of a transformers `LlamaConfig`.
    """
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _stream(seed: int, purpose: str) -> random.Random:
    # one stream a file, so that more training samples leave every other file as it was
    return random.Random(f"{seed}/{purpose}")


def _contents(conversations: Iterable[Messages]) -> Iterable[str]:
    return (message["content"] for messages in conversations for message in messages)


def _prompt_rows(name: str, prompts: Iterable[Prompt]) -> Iterable[dict[str, str]]:
    return ({"id": f"{name}-{i:03d}", "prompt": prompt.text} for i, prompt in enumerate(prompts))
