"""Tiny anchors on disk with a vector of theirs, and the plain computation that an export is held against."""

import contextlib
import json

import torch
from tokenizers_zoo import chatml_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from gradsteer.__main__ import main
from gradsteer.data.chat import tokenizer_digest
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import load_causal_lm
from gradsteer.vectors.parameter_vectors import SteeringVector

_LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama tied": {**_LLAMA, "tie_word_embeddings": True},
    "llama": {**_LLAMA, "tie_word_embeddings": False},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt2 untied": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "tie_word_embeddings": False,
    },
    "gemma": {**_LLAMA, "model_type": "gemma3_text", "head_dim": 8, "tie_word_embeddings": False},
    "mixtral": {
        **_LLAMA, "model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1,
        "tie_word_embeddings": False,
    },
    "opt": {
        "model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    },
}  # fmt: skip
# at the tail of a name: matrices that an adapter cannot hold, beside all that is no matrix
NOT_HELD = {
    "llama tied": ("embed_tokens.weight",),
    "llama": (),
    "gpt2": ("wte.weight",),
    "gpt2 untied": (),
    "gemma": (),
    "opt": ("embed_tokens.weight", "embed_positions.weight"),
}


def anchor(directory, kind="llama tied", *, seed=0, scale=0.05):
    """Writes an anchor and a random vector of it; says where they are."""
    tokenizer = chatml_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**{**CONFIGS[kind], **ids})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    path = directory / f"anchor{seed}"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    model = load_causal_lm(str(path))
    tensors = {name: scale * torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    metadata = {"plus": "a", "minus": "b", "model_fingerprint": model_fingerprint(model), "prompt_digests": '["x"]'}
    vector = SteeringVector(tensors, metadata).save(directory / f"v{seed}.safetensors")
    return path, vector


def export(to, path, vector, form, *words, alpha=-0.3, status=0):
    """Runs the command; gives the report."""
    line = ["export", "--model", path, "--vector", vector, "--alpha", alpha, "--format", form, "--to", to, *words]
    assert main([str(word) for word in line]) == status
    return json.loads((to / "gradsteer-export.json").read_text()) if status == 0 else None


def refusal(capsys, *arguments, **options):
    """What a refused command says."""
    with contextlib.suppress(SystemExit):  # jsonargparse's own errors
        export(*arguments, **options, status=2)
    return capsys.readouterr().err


def held_names(kind, path):
    model = load_causal_lm(str(path))
    parameters = dict(model.named_parameters()).items()
    return {name for name, p in parameters if p.ndim == 2 and not name.endswith(NOT_HELD[kind] or ("no such",))}


def truncated(matrix, rank):
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).float()


@torch.no_grad()
def edited(path, edit, alpha):
    """The anchor with ``alpha * edit`` added in its weights, by hand."""
    model = load_causal_lm(str(path))
    for name, parameter in model.named_parameters():
        if name in edit:
            parameter += alpha * edit[name]
    return model


def probe(model):
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    with torch.no_grad():
        return model(input_ids=torch.randint(0, vocabulary, (3, 11), generator=generator)).logits


def write_responses(path, count=10, temperature=None):
    """Judged responses: token ids at random, every third one with the behavior "a"."""
    tokenizer = chatml_tokenizer()
    generator = torch.Generator().manual_seed(3)
    with path.open("w") as file:
        for index in range(count):
            ids = torch.randint(3, len(tokenizer), (4 + index % 5 + 4,), generator=generator).tolist()
            row = {
                "id": f"p{index}", "prompt": f"q{index}", "prompt_token_ids": ids[:4], "token_ids": ids[4:],
                "finish_reason": "length", "tokenizer": tokenizer_digest(tokenizer),
                "verdicts": {"a": index % 3 == 0, "other": index % 2 == 0},
            }  # fmt: skip
            if temperature is not None:
                row["temperature"] = temperature
            file.write(json.dumps(row) + "\n")
    return path
