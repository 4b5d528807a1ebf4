"""Tiny models and batches that the tests share; built from configs, never downloaded."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from gradsteer.data.chat import EncodedExample

VOCABULARY = 61


def tiny_llama(*, seed: int = 0, tied: bool = True, dtype: torch.dtype = torch.float64, **options):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **options,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def ragged_examples(count: int, *, seed: int = 0, longest: int = 20) -> list[EncodedExample]:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(4, longest, (1,), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        prompt = int(torch.randint(1, length - 1, (1,), generator=generator))
        examples.append(EncodedExample(ids, [-100] * prompt + ids[prompt:]))
    return examples
