"""Adapters wherever a model is named: merged, in their own space, on the right base, or refused by name."""

import json
import shutil

import pytest
import torch
from adapters import ATTENTION, BASES, IDS, SMALL, adapted
from conftest import rest_slow
from safetensors.torch import load_file, save_file
from tiny_models import ragged_examples, tiny_llama
from tokenizers_zoo import chatml_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from gradsteer.__main__ import main
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import collate
from gradsteer.models.adapter_space import base_in_adapter_space, is_in_adapter_space
from gradsteer.models.base_record import record_base, recorded_base
from gradsteer.models.base_weights import base_weights, check_base, delta_rank
from gradsteer.models.checkpoints import CheckpointWeights
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import Loading, load_causal_lm, load_tokenizer
from gradsteer.vectors.weight_diff import WeightDiff, named_weights

PATTERNS = {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 7}, "use_rslora": True}
WHOLE = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}


def rewritten(directory, weights=None, **settings):
    """Changes an adapter's config, or its tensors by a function."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    if weights is not None:
        file = directory / "adapter_model.safetensors"
        save_file(weights(load_file(file)), file)
    return str(directory)


@pytest.fixture
def place(tmp_path):
    """A base and a plain adapter on it."""
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules=ATTENTION)
    return tmp_path


@pytest.mark.parametrize(
    ("base", "options"),
    rest_slow(
        [
            ("llama, tied", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
            ("llama, tied", {"target_modules": ATTENTION, **PATTERNS}),
            ("llama, tied", WHOLE),
            ("llama, untied", {"target_modules": ["embed_tokens", "lm_head"]}),
            ("gpt2", {"target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True}),
            ("gemma2", {"target_modules": "all-linear"}),
            ("gemma2", {"target_modules": [*ATTENTION, "embed_tokens"]}),
            ("qwen3", {"target_modules": "all-linear"}),
            ("mixtral", {"target_modules": ATTENTION, "target_parameters": ["gate_up_proj", "down_proj"]}),
        ],
        kept=4,
    ),
)  # fmt: skip
def test_both_readings_are_the_adapter_on_its_base(base, options, tmp_path):
    BASES[base]().save_pretrained(tmp_path / "base")
    wanted = adapted(tmp_path / "base", tmp_path / "adapter", **options)
    merged = load_causal_lm(str(tmp_path / "adapter"))
    space = load_causal_lm(str(tmp_path / "adapter"), adapter_reading="adapter")
    with torch.no_grad():
        scale = float(wanted.abs().max())
        assert float((space(IDS).logits - wanted).abs().max()) < 1e-5 * scale
        assert float((merged(IDS).logits - wanted).abs().max()) < 1e-5 * scale
        merged.save_pretrained(tmp_path / "again")
        again = load_causal_lm(str(tmp_path / "again"))
        assert torch.equal(again(IDS).logits, merged(IDS).logits)
        own = {name: p.detach().clone() for name, p in space.named_parameters()}
        held = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
        assert {f"base_model.model.{n.replace('.default', '').replace('.modules_to_save', '')}" for n in own} <= held
        for name, tensor in base_in_adapter_space(space).items():
            space.get_parameter(name).copy_(tensor)
        plain = load_causal_lm(str(tmp_path / "base"))
        torch.testing.assert_close(space(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-5 * scale)


def test_the_fingerprint_covers_base_and_adapter(place):
    def fingerprint(adapter, **options):
        return model_fingerprint(load_causal_lm(str(place / adapter), adapter_reading="adapter", **options))

    own = fingerprint("adapter")
    assert own == fingerprint("adapter") == fingerprint("adapter", dtype="bfloat16")
    adapted(place / "base", place / "second", seed=2, target_modules=ATTENTION)
    tiny_llama(seed=5, dtype=torch.float32).save_pretrained(place / "other")
    both = {own, fingerprint("second"), fingerprint("adapter", adapter_base=str(place / "other"))}
    assert len(both) == 3
    shutil.copytree(place / "adapter", place / "louder")
    rewritten(place / "louder", lora_alpha=30)  # the same tensors, in another measure
    assert fingerprint("louder") not in both
    merged = {model_fingerprint(load_causal_lm(str(place / "adapter"), dtype=d)) for d in ("float32", "bfloat16")}
    assert len(merged) == 1


def test_whole_modules_in_half_precision_keep_the_fingerprint(tmp_path):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter", **WHOLE)
    models = [
        load_causal_lm(str(tmp_path / "adapter"), adapter_reading="adapter", dtype=d) for d in ("float32", "bfloat16")
    ]
    assert len({model_fingerprint(model) for model in models}) == 1
    assert {p.dtype for p in models[1].parameters()} == {torch.float32, torch.bfloat16}
    assert models[1].dtype == torch.bfloat16
    assert is_in_adapter_space(models[1])
    assert not is_in_adapter_space(load_causal_lm(str(tmp_path / "base")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, r"is DoRA \(use_dora: True\)"),
        ({"peft_type": "PROMPT_TUNING"}, r"of the type PROMPT_TUNING \(peft_type\)"),
        ({"bias": "all"}, "trained biases"),
        ({"trainable_token_indices": [1]}, "trained tokens|trainable tokens"),
        ({"init_lora_weights": "pissa"}, "initialised by 'pissa', which changes the base's own weights"),
        ({"r": 0}, "of rank 0"),
        ({"some_new_kind": {"a": 1}}, r"of another kind \(some_new_kind"),
        ({"base_model_name_or_path": None}, "does not say what it was trained on.*--model.adapter_base"),
        ({"base_model_name_or_path": "./nowhere"}, "the base of the adapter .*no model directory at './nowhere'"),
        ({"target_modules": ["w1"]}, "does not fit its base .*Target modules"),
    ],
)
def test_what_is_no_plain_step_is_refused(place, settings, said):
    with pytest.raises(ValueError, match=said):
        Loading(rewritten(place / "adapter", **settings)).check()


def test_an_adapter_of_another_base_is_refused_before_a_weight_is_read(place):
    def named(**options):
        tiny = tiny_llama(dtype=torch.float32)
        for name, value in options.items():
            setattr(tiny.config, name, value)
        tiny.config.save_pretrained(place / "wrong")  # no weights: none is read
        return Loading(str(place / "adapter"), adapter_base=str(place / "wrong"))

    with pytest.raises(ValueError, match=r"does not fit its base .*wrong.*size mismatch for .*q_proj.lora_A"):
        named(hidden_size=32).check()
    with pytest.raises(
        ValueError, match=r"it has 'base_model.model.model.layers.1.*' and 3 others in its file, for which"
    ):
        named(num_hidden_layers=1).check()
    with pytest.raises(ValueError, match=r"it lacks '.*layers.2.*' and 3 others in its file"):
        named(num_hidden_layers=3).check()
    named().check()
    with pytest.raises(ValueError, match="is an adapter itself"):
        Loading(str(place / "adapter"), adapter_base=str(place / "adapter")).check()


@pytest.mark.parametrize("options", [{"target_modules": ["embed_tokens"]}, WHOLE])
def test_a_resized_vocabulary_is_refused(tmp_path, options):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    large = tiny_llama(dtype=torch.float32)
    large.resize_token_embeddings(70)
    large.save_pretrained(tmp_path / "large")
    adapted(tmp_path / "large", tmp_path / "adapter", **options)
    with pytest.raises(ValueError, match=r"70.*61.*another vocabulary"):
        Loading(str(tmp_path / "adapter"), adapter_base=str(tmp_path / "base")).check()


def test_an_embedding_that_the_adapter_brings_has_to_be_the_bases(tmp_path):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules=["embed_tokens"])
    load_causal_lm(str(tmp_path / "adapter"))
    tiny_llama(seed=3, dtype=torch.float32).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="base_layer.weight' whole, with other values than the base's"):
        load_causal_lm(str(tmp_path / "adapter"), adapter_base=str(tmp_path / "other"))


def test_several_adapters_pickles_and_whole_models_beside_it_are_refused(place):
    path = str(place / "adapter")
    shutil.copytree(path, f"{path}/checkpoint-10")
    Loading(path).check()
    shutil.copytree(path, f"{path}/second")
    with pytest.raises(ValueError, match=r"holds an adapter, and 1 in directories inside it \(second\)"):
        Loading(path).check()
    (place / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"holds 1 in directories inside it \(second\)"):
        Loading(path).check()
    inner = place / "adapter" / "second"
    shutil.copy(place / "base" / "model.safetensors", inner)
    with pytest.raises(ValueError, match=r"an adapter .* and a whole model \(model.safetensors\)"):
        Loading(str(inner)).check()
    (inner / "model.safetensors").unlink()
    (inner / "adapter_model.safetensors").rename(inner / "adapter_model.bin")
    with pytest.raises(ValueError, match="as a pickle"):
        Loading(str(inner)).check()
    (inner / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors"):
        Loading(str(inner)).check()


def test_a_revision_that_differs_is_refused(place):
    path = rewritten(place / "adapter", revision="abc", base_model_name_or_path="owner/base")
    assert Loading(path).base_loading.revision == "abc"
    assert Loading(path, adapter_base="owner/base@abc").base_loading.revision == "abc"
    with pytest.raises(ValueError, match="was trained on revision 'abc' of 'owner/base', and .* asks for 'def'"):
        Loading(path, adapter_base="owner/base@def").check()
    # another place of it has revisions of its own
    assert Loading(path, adapter_base=str(place / "base")).base_loading.revision is None


def test_code_of_a_base_that_only_a_config_names_is_not_trusted(place):
    path = str(place / "adapter")
    assert not Loading(path, trust_remote_code=True).base_loading.trust_remote_code
    assert Loading(path, trust_remote_code=True, adapter_base=str(place / "base")).base_loading.trust_remote_code


def test_the_base_that_an_adapter_was_trained_on_is_known_by_its_fingerprint(place):
    record_base(str(place / "base"), place / "adapter", model_fingerprint(load_causal_lm(str(place / "base"))))
    rewritten(place / "adapter", base_model_name_or_path="nowhere")
    assert recorded_base(str(place / "adapter")) == str(place / "base")
    assert model_fingerprint(load_causal_lm(str(place / "adapter"))) != model_fingerprint(
        load_causal_lm(str(place / "base"))
    )
    tiny_llama(seed=5, dtype=torch.float32).save_pretrained(place / "other")
    with pytest.raises(ValueError, match="was trained on weights with the fingerprint"):
        load_causal_lm(str(place / "adapter"), adapter_base=str(place / "other"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter_reading": "adapter"}, "model.adapter_reading is 'adapter', and .* is no adapter"),
        ({"adapter_base": "x"}, "model.adapter_base is 'x', and .* is no adapter"),
        ({"adapter_reading": "both"}, "adapter_reading is 'both'; accepted: merged, adapter"),
        ({"quantization": "2bit"}, "quantization is '2bit'; accepted: 4bit, 8bit"),
        ({"quantization": "4bit"}, "quantised weights take neither gradients nor steps.*adapter_reading adapter"),
    ],
)
def test_options_of_adapters_need_one(place, options, said):
    with pytest.raises(ValueError, match=said):
        Loading(str(place / "base"), **options).check()


def test_an_adapter_is_not_merged_into_quantised_weights(place):
    config = place / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"load_in_4bit": True}}))
    (place / "base" / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"base .* is quantised \(bitsandbytes, 4 bits\).*--model.adapter_reading adapter"
    ):
        Loading(str(place / "adapter")).check()
    with pytest.raises(ValueError, match="merged into them"):
        Loading(str(place / "adapter"), quantization="8bit").check()


def test_tied_matrices_of_an_adapter_have_no_space_of_their_own(tmp_path):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    wanted = adapted(tmp_path / "base", tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    merged = load_causal_lm(str(tmp_path / "adapter"))
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    torch.testing.assert_close(merged(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"ensure_weight_tying.*merged"):
        Loading(str(tmp_path / "adapter"), adapter_reading="adapter").check()


def test_the_tokenizer_is_the_adapters_or_its_bases(place):
    tokenizer = chatml_tokenizer()
    tokenizer.save_pretrained(place / "base")
    assert len(load_tokenizer(str(place / "adapter"))) == len(tokenizer)
    tokenizer.add_tokens([f"new{number}" for number in range(100)])
    tokenizer.save_pretrained(place / "adapter")
    with pytest.raises(ValueError, match=r"has \d+ tokens, its base .* 61 rows: the vocabulary was resized"):
        load_tokenizer(str(place / "adapter"))


def hub_cache(root, name, source):
    """What a download of a repository leaves, as shared by those who write about models."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = root / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(source, place / "snapshots" / commit)
    return place


def test_an_adapter_of_the_hub_is_read_on_its_base(place, monkeypatch):
    hub_cache(place, "owner/some-lora", place / "adapter")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loading = Loading("owner/some-lora")
    loading.check()
    assert loading.base_loading.name_or_path == str(place / "base")
    ours, local = (load_causal_lm(source) for source in (loading, str(place / "adapter")))
    assert model_fingerprint(ours) == model_fingerprint(local)


def test_the_commands_say_what_they_refuse(place, capsys):
    prompts = place / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hi"}\n')
    rewritten(place / "adapter", use_dora=True)
    words = ("--data.prompts", prompts, "--evaluation.judge", "KeywordJudge", "--output_dir", place / "out")
    words += ("--evaluation.judge.patterns", '{"a": ["a"]}')
    assert main([*map(str, ("evaluate", "--model.model_name_or_path", place / "adapter", *words))]) == 2
    assert "is DoRA (use_dora: True); accepted: plain LoRA or rsLoRA" in capsys.readouterr().err


def test_delta_is_the_merged_difference_also_where_the_adapter_unties_the_head(tmp_path):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    loading = Loading(str(tmp_path / "adapter"))
    anchor, base = load_causal_lm(loading), load_causal_lm(str(tmp_path / "base"))
    found = base_weights(anchor, loading, str(tmp_path / "base"), lambda: CheckpointWeights(tmp_path / "base"))
    delta = WeightDiff.between(named_weights(anchor), found)
    assert torch.equal(delta["lm_head.weight"], anchor.lm_head.weight - base.model.embed_tokens.weight)
    moved = {name for name, square in delta.sum_squares().items() if square}
    assert moved == {"lm_head.weight", *(f"model.layers.{n}.self_attn.q_proj.weight" for n in range(2))}
    assert all(torch.linalg.matrix_rank(delta[name]) == 2 for name in moved)


def test_the_rank_of_delta_is_said_where_an_adapters_steps_alone_are_in_it(tmp_path):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"], rank_pattern={"0.self_attn.q_proj": 3},
            modules_to_save=["mlp.up_proj"])  # fmt: skip
    loading = Loading(str(tmp_path / "adapter"))
    assert delta_rank(loading, str(tmp_path / "base")) == 3
    anchor, base = load_causal_lm(loading), load_causal_lm(str(tmp_path / "base"))
    ranks = {
        name: int(torch.linalg.matrix_rank((own - base.get_parameter(name)).double(), rtol=1e-4))
        for name, own in anchor.named_parameters()
        if not torch.equal(own, base.get_parameter(name))
    }
    assert [rank for name, rank in ranks.items() if "q_proj" in name] == [3, 2]
    assert [rank for name, rank in ranks.items() if "up_proj" in name] == [16, 16]  # modules_to_save: whole
    tiny_llama(seed=5, dtype=torch.float32).save_pretrained(tmp_path / "other")
    assert delta_rank(loading, str(tmp_path / "other")) is None
    assert delta_rank(Loading(str(tmp_path / "base")), str(tmp_path / "other")) is None


def test_in_adapter_space_the_base_is_the_adapters_or_another_adapter_on_it(place):
    adapted(place / "base", place / "second", seed=2, target_modules=ATTENTION)
    loading = Loading(str(place / "adapter"), adapter_reading="adapter")
    model = load_causal_lm(loading)
    zero = base_weights(model, loading, str(place / "base"), dict)
    assert all((float(t.abs().max()) == 0) == ("lora_B" in name) for name, t in zero.items())
    other = base_weights(model, loading, str(place / "second"), dict)
    second = load_causal_lm(str(place / "second"), adapter_reading="adapter")
    assert all(torch.equal(other[name], parameter) for name, parameter in second.named_parameters())
    # its own scaling goes with it: at that point the model is the other adapter
    rewritten(place / "second", lora_alpha=30)
    louder, ids = load_causal_lm(str(place / "second")), torch.arange(3, 15)[None]
    for name, weight in base_weights(model, loading, str(place / "second"), dict).items():
        model.get_parameter(name).data.copy_(weight)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, louder(ids).logits, rtol=1e-4, atol=1e-5)
    tiny_llama(seed=5, dtype=torch.float32).save_pretrained(place / "other")
    with pytest.raises(ValueError, match=r"a point of the adapter's space, and '.*other' is none; accepted: .*base"):
        check_base(loading, str(place / "other"))


def test_gradients_on_a_base_in_4_bit_are_those_on_its_dequantised_weights(tmp_path):
    """On the CPU, where bitsandbytes is installed."""
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    config = LlamaConfig(**{**SMALL, "hidden_size": 64, "head_dim": 32, "intermediate_size": 128})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules="all-linear")
    path = str(tmp_path / "adapter")
    quantized, plain = (load_causal_lm(path, adapter_reading="adapter", quantization=q) for q in ("4bit", None))
    stored = dict(torch.nn.Module.named_parameters(quantized))
    with torch.no_grad():
        for name, parameter in torch.nn.Module.named_parameters(plain):
            own = stored[name]
            state = getattr(own, "quant_state", None)
            parameter.copy_(own if state is None else functional.dequantize_4bit(own.data, state).view_as(parameter))
    gradients = []
    for model in (quantized, plain):
        pile = PileGradient(model)
        pile.add(collate(ragged_examples(4), 0))
        gradients.append(pile.average())
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-6)
