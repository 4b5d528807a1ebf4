"""Tiny bases of several architectures and LoRA adapters on them, as peft saves them."""

import warnings

import torch
from peft import LoraConfig, get_peft_model
from tiny_models import VOCABULARY, tiny_llama
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, MixtralConfig, Qwen3Config

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ATTENTION = ["q_proj", "v_proj"]
IDS = torch.arange(3, 13)[None]


def other(config, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


BASES = {
    "llama, tied": lambda: tiny_llama(dtype=torch.float32),
    "llama, untied": lambda: tiny_llama(tied=False, dtype=torch.float32),
    "gpt2": lambda: other(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
    "gemma2": lambda: other(Gemma2Config(**SMALL, query_pre_attn_scalar=8, sliding_window=32)),
    "qwen3": lambda: other(Qwen3Config(**SMALL)),
    "mixtral": lambda: other(MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2)),
}


def adapted(base, directory, *, seed=1, **options):
    """Puts a random adapter on a base that is saved there, and saves it; returns its logits by plain peft."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 2, "lora_alpha": 3, "init_lora_weights": False, "task_type": "CAUSAL_LM", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**options)).eval()
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapped.save_pretrained(directory)
    with torch.no_grad():
        return wrapped(input_ids=IDS).logits
