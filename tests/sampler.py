"""Tiny models of several architectures, and ragged draws from them, for the tests of the sampler."""

import numpy as np
import pytest
import torch
from tokenizers_zoo import chatml_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from gradsteer.data.batching import plan_batches
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch

VOCABULARY = 40

PAD = 0

STOPS = [2, 3]

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    # wide enough that the next token depends on the prompt and its positions
    "initializer_range": 0.6,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}

CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.6,
        bos_token_id=1,
        eos_token_id=None,
    ),  # fmt: skip
    "qwen2": lambda: Qwen2Config(**SIZES),
    "gemma": lambda: GemmaConfig(**SIZES, head_dim=8),
    # prompts longer than the window, so that the cache forgets
    "mistral-window": lambda: MistralConfig(**SIZES, sliding_window=5),
    "gemma3-window": lambda: Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
    # convolutions in place of attention in one layer
    "lfm2": lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"], conv_L_cache=3),
}


def build(name, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def ragged_draws(num_prompts=7, samples=3, seed=0):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(4, VOCABULARY, int(rng.integers(2, 14))).tolist() for _ in range(num_prompts)]
    return [Draw(prompt, sample, seed) for prompt in prompts for sample in range(samples)]


def sample(model, draws, *, stops=STOPS, pad=PAD, max_new_tokens=12, temperature=1.0, top_p=1.0, **options):
    config = SamplingConfig(max_new_tokens, temperature, top_p)
    return sample_batch(model, draws, config, stop_token_ids=stops, pad_token_id=pad, **options)


def in_batches(model, draws, size, **options):
    found = {}
    for batch in plan_batches([len(draw.prompt_token_ids) for draw in draws], size):
        found |= dict(zip(batch, sample(model, [draws[i] for i in batch], **options), strict=True))
    return [found[index] for index in range(len(draws))]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A directory with a tiny Llama of 128 positions and a tokenizer with a chat template."""
    directory = str(tmp_path_factory.mktemp("tiny"))
    save_checkpoint(directory)
    return directory


def save_checkpoint(directory, **changes):
    tokenizer = chatml_tokenizer()
    tokenizer.save_pretrained(directory)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "eos_token_id": tokenizer.eos_token_id}
    model = build("llama", dtype=torch.float32, **sizes, **changes)
    model.save_pretrained(directory)
    return model
