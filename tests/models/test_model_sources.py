"""Which checkpoints are refused by name: quantised ones, other kinds of models, weights that do not match."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from gradsteer.judges.local_loading import check_source
from gradsteer.models.adapters import refuse_adapter
from gradsteer.models.loading import Loading, load_causal_lm

SMALL = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # E2M1, by its 4 bits


@pytest.fixture
def llama_at(tmp_path):
    """Writes a tiny model, its tensors and config changed."""

    def write(change=lambda tensors: tensors, **settings):
        tiny_llama(dtype=torch.float32, tied=settings.get("tie_word_embeddings", True)).save_pretrained(tmp_path)
        return rewritten(tmp_path, change, **settings)

    return write


def rewritten(directory, change=lambda tensors: tensors, **settings):
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | settings))
    return str(directory)


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (prefixed("module."), {}, "saved from a wrapped or compiled model: take 'module.' off its names"),
        (prefixed("_orig_mod."), {"tie_word_embeddings": False}, "21 missing, .*'_orig_mod.' off"),
        (
            lambda t: {name.replace("layers.0.", "layers.0._orig_mod."): tensor for name, tensor in t.items()}, {},
            "9 missing, .* take '_orig_mod.' out of its names",
        ),
        (lambda t: {**t, "score.weight": torch.ones(1, 16)}, {}, r"1 that .* not use \(score.*reward model"),
        (lambda t: {**t, "model.embed_tokens.weight": torch.ones(64, 16)}, {}, r"\(64, 16\), the config .* \(61, 16\)"),
        (lambda t: t, {"num_hidden_layers": 3}, "9 missing, which would be random .model.layers.2.input_layernorm"),
        (lambda t: t, {"num_hidden_layers": 1}, "9 that the model does not use .model.layers.1.input_layernorm"),
        (
            lambda t: {name: tensor for name, tensor in t.items() if name != "lm_head.weight"},
            {"tie_word_embeddings": False}, r"1 missing, which would be random \(lm_head.weight\)",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_match_are_named(llama_at, change, settings, said):
    with pytest.raises(ValueError, match=said):
        load_causal_lm(llama_at(change, **settings))


def test_what_old_checkpoints_hold_besides_or_name_otherwise_is_taken(llama_at, tmp_path):
    own = tiny_llama(dtype=torch.float32)
    path = llama_at(lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert all(torch.equal(*pair) for pair in zip(load_causal_lm(path).parameters(), own.parameters(), strict=True))
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    gpt2.save_pretrained(tmp_path / "gpt2")
    bare = rewritten(  # as the first ones on the hub: without the prefix and the head, with the masks
        tmp_path / "gpt2",
        lambda t: {
            **{name.removeprefix("transformer."): tensor for name, tensor in t.items()},
            **{f"h.0.attn.{name}": torch.ones(1, 1, 16, 16) for name in ("bias", "masked_bias")},
        },
    )
    assert torch.equal(load_causal_lm(bare).transformer.wte.weight, gpt2.transformer.wte.weight)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=1, pad_token_id=0)),
            "no causal language model: its config says LlamaForSequenceClassification",
        ),
        (lambda: AutoModelForMaskedLM.from_config(BertConfig(**SMALL)), "its config says BertForMaskedLM"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=61, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            "is of the type 't5'",
        ),
    ],
)
def test_models_of_another_kind_are_refused_before_a_weight_is_read(make, said, tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=said):
        Loading(str(tmp_path)).check()


def test_an_encoder_that_does_not_say_what_it_was_trained_for(tmp_path):
    AutoModelForMaskedLM.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path)
    path = rewritten(tmp_path, architectures=None)
    with pytest.raises(ValueError, match=r"is an encoder \(bert, is_decoder false in its config\)"):
        load_causal_lm(path)
    load_causal_lm(rewritten(tmp_path, is_decoder=True))


def test_an_adapter_is_refused_where_a_whole_model_is_needed(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}')
    with pytest.raises(ValueError, match=r"LORA on 'owner/base'.*merge_and_unload"):
        refuse_adapter(str(tmp_path))
    with pytest.raises(ValueError, match=r"LORA on 'owner/base'.*merge_and_unload"):
        check_source(str(tmp_path), "cpu", "auto")  # a judge's model


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"load_in_4bit": True}, r"\(bitsandbytes, 4 bits\)"),
        ({"quant_method": "gptq", "bits": 4}, r"\(gptq, 4 bits\)"),
        ({"quant_method": "awq", "bits": 4}, r"\(awq, 4 bits\)"),
        ({"quant_method": "compressed-tensors"}, r"\(compressed-tensors\)"),
    ],
)
def test_quantised_weights_that_stay_so_are_refused_before_they_are_read(llama_at, tmp_path, said, named):
    path = llama_at(quantization_config=said)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"are quantised {named}: .* quantised as fp8 or mxfp4"):
        Loading(path).check()


def test_fp8_is_dequantised_and_saved_as_what_it_is_then(llama_at, tmp_path):
    wanted = {}

    def quantised(tensors):
        found = {}
        for name, tensor in tensors.items():
            wanted[name] = found[name] = tensor
            if "proj" in name:
                scale = torch.rand(-(-tensor.shape[0] // 8), -(-tensor.shape[1] // 8)) + 0.5
                spread = scale.repeat_interleave(8, 0).repeat_interleave(8, 1)[: tensor.shape[0], : tensor.shape[1]]
                found[name] = (tensor / spread).to(torch.float8_e4m3fn)
                found[f"{name}_scale_inv"] = scale
                wanted[name] = found[name].float() * spread
        return found

    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
    same_when_saved(load_causal_lm(llama_at(quantised, quantization_config=settings)), wanted, tmp_path / "again")


def test_mxfp4_is_dequantised_and_saved_as_what_it_is_then(tmp_path):
    config = GptOssConfig(
        vocab_size=61, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_local_experts=2, num_experts_per_tok=1,
        layer_types=["full_attention"],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    wanted = {}

    def quantised(tensors):
        found = {}
        for name, tensor in tensors.items():
            if not name.endswith(("gate_up_proj", "down_proj")):
                wanted[name] = found[name] = tensor
                continue
            experts, inputs, outputs = tensor.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(120, 128, (experts, outputs, inputs // 32), dtype=torch.uint8)
            found |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            pairs = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], -1).flatten(-2)
            wanted[name] = (pairs * 2.0 ** (scales.float() - 127)[..., None]).flatten(-2).transpose(1, 2)
        return found

    path = rewritten(tmp_path, quantised, quantization_config={"quant_method": "mxfp4"})
    same_when_saved(load_causal_lm(path), wanted, tmp_path / "again")


def same_when_saved(model, wanted, directory):
    model.save_pretrained(directory)
    assert "quantization_config" not in json.loads((directory / "config.json").read_text())
    for each in (model, load_causal_lm(str(directory))):
        assert all(torch.equal(p, wanted[name]) for name, p in each.named_parameters())


@pytest.mark.parametrize(
    ("attention", "said"), [("flash_attention_2", "FlashAttention2 doesn't seem to be installed"), ("no", '"no"')]
)
def test_attention_that_is_not_there_is_named_before_a_weight_is_read(llama_at, tmp_path, attention, said):
    path = llama_at()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"attn_implementation is '{attention}', which cannot be used here: .*{said}"):
        Loading(path, attn_implementation=attention).check()
    Loading(path, attn_implementation="eager").check()
