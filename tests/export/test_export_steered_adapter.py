"""A dose of a vector in adapter space as one adapter, by plain peft: exact, of the same rank, on the same base."""

import json
import subprocess
import sys
import warnings

import peft
import pytest
import torch
from adapters import ATTENTION, BASES, IDS, adapted
from conftest import rest_slow
from tokenizers_zoo import chatml_tokenizer
from transformers import AutoModelForCausalLM

from gradsteer.__main__ import main
from gradsteer.export.steered_adapter import vllm_limits
from gradsteer.models.adapter_loading import space_metadata
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import Loading, load_causal_lm
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector

ALPHA = -0.3
PLAIN = """
import sys, torch
sys.modules["gradsteer"] = None  # blocked from import
from peft import PeftModel
from transformers import AutoModelForCausalLM
for path in sys.argv[1:]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path + "/base"), path + "/to").eval()
    torch.save(model(input_ids=torch.arange(3, 13)[None]).logits.detach(), path + "/logits.pt")
"""


def place_of(directory, kind="llama, tied", **options):
    """A base, an adapter and a random vector in its space; the logits of the step."""
    BASES[kind]().save_pretrained(directory / "base")
    chatml_tokenizer().save_pretrained(directory / "base")
    adapted(directory / "base", directory / "adapter", **{"target_modules": ATTENTION, **options})
    model = load_causal_lm(str(directory / "adapter"), adapter_reading="adapter")
    torch.manual_seed(0)
    tensors = {name: 0.1 * torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    vector = SteeringVector(tensors, {"model_fingerprint": model_fingerprint(model), "plus": "a", "minus": "b"})
    vector.save(directory / "v.safetensors")
    with steered(model, vector, ALPHA), torch.no_grad():
        return model(IDS).logits


def export(directory, *more):
    words = ["--model", directory / "adapter", "--vector", directory / "v.safetensors", f"--alpha={ALPHA}"]
    words += ["--adapter_reading", "adapter", "--format", "adapter", "--to", directory / "to", *more]
    return main(["export", *map(str, words)])


CASES = [
    ("llama, tied", {"rank_pattern": {"v_proj": 3}, "use_rslora": True}),
    ("gpt2", {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True}),
    ("gemma2", {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}),
    ("qwen3", {"target_modules": "all-linear"}),
    ("mixtral", {"target_parameters": ["gate_up_proj"]}),
]


@pytest.mark.parametrize(("kind", "options"), rest_slow(CASES))
def test_plain_peft_takes_it_as_it_is(kind, options, tmp_path, capsys):
    wanted = place_of(tmp_path, kind, **options)
    assert export(tmp_path) == 0
    assert "exact" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        found = peft.PeftModel.from_pretrained(base, tmp_path / "to").eval()(input_ids=IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    before, after = (json.loads((tmp_path / d / "adapter_config.json").read_text()) for d in ("adapter", "to"))
    for key in ("r", "lora_alpha", "rank_pattern", "target_modules", "modules_to_save", "base_model_name_or_path"):
        assert (
            sorted(after[key] or []) == sorted(before[key] or [])
            if isinstance(after[key], list)
            else (after[key] == before[key])
        )
    report = json.loads((tmp_path / "to" / "gradsteer-export.json").read_text())
    assert report["step_error"] > 0
    assert "second order in alpha" in (tmp_path / "to" / "README.md").read_text()


@pytest.mark.slow
def test_it_loads_where_gradsteer_is_blocked(tmp_path):
    wanted = {}
    for number, (kind, options) in enumerate(CASES):
        here = tmp_path / str(number)
        wanted[here] = place_of(here, kind, **options)
        assert export(here) == 0
    subprocess.run([sys.executable, "-W", "ignore", "-c", PLAIN, *map(str, wanted)], check=True)
    for here, logits in wanted.items():
        found = torch.load(here / "logits.pt")
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-6 * float(logits.abs().max()))


@pytest.mark.parametrize(("kind", "options"), rest_slow([CASES[2], *CASES[:2], *CASES[3:]]))
def test_of_a_base_in_4_bit_the_adapters_files_are_enough(kind, options, tmp_path, monkeypatch):
    """Neither a weight of the base nor the package that quantised it: the header is as attribute writes it there."""
    wanted = place_of(tmp_path, kind, **options)
    loading = Loading(str(tmp_path / "adapter"), "bfloat16", adapter_reading="adapter", quantization="4bit")
    vector = SteeringVector.load(tmp_path / "v.safetensors")
    vector.metadata |= {"model_fingerprint": "of quantised weights", **space_metadata(loading)}
    vector.save(tmp_path / "v.safetensors")
    hidden, config = tmp_path / "model.safetensors", tmp_path / "base" / "config.json"
    (tmp_path / "base" / "model.safetensors").rename(hidden)
    plain = config.read_text()
    config.write_text(json.dumps({**json.loads(plain), "quantization_config": {"load_in_4bit": True}}))
    monkeypatch.setattr("gradsteer.models.adapter_loading._need_bitsandbytes", lambda: pytest.fail("not needed"))
    assert export(tmp_path) == 0
    hidden.rename(tmp_path / "base" / "model.safetensors")
    config.write_text(plain)
    found = load_causal_lm(str(tmp_path / "to"), adapter_reading="adapter", adapter_base=str(tmp_path / "base"))
    torch.testing.assert_close(found(IDS).logits, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    assert json.loads((tmp_path / "to" / "gradsteer-export.json").read_text())["step_error"] > 0


def test_a_vector_of_another_adapter_is_refused_from_the_files(tmp_path, capsys):
    place_of(tmp_path)
    loading = Loading(str(tmp_path / "adapter"), adapter_reading="adapter")
    vector = SteeringVector.load(tmp_path / "v.safetensors")
    SteeringVector(vector.tensors, space_metadata(loading)).save(tmp_path / "v.safetensors")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 30}))
    assert export(tmp_path) == 2
    assert "was made on an adapter with the fingerprint" in capsys.readouterr().err
    assert export(tmp_path, "--allow_other_model", "true") == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rank", "4"], "--rank is 4, which has no effect with --adapter_reading adapter"),
        (["--format", "model"], "--format is 'model', and --adapter_reading adapter"),
        (["--transforms", "[{low_rank: {rank: 1}}]"], "looks at a weight's matrix"),
    ],
)
def test_what_makes_no_sense_is_refused(more, said, tmp_path, capsys):
    place_of(tmp_path)
    assert export(tmp_path, *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_a_step_from_a_merged_adapter_has_no_base_to_name(tmp_path, capsys):
    place_of(tmp_path)
    assert export(tmp_path, "--adapter_reading", "merged") == 2
    assert "is an adapter read as merged: the step would be one from weights that no" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_vllms_limits_are_named():
    plain = peft.LoraConfig(r=8, target_modules=["q_proj"])
    assert vllm_limits(plain, 8) == []
    wide = peft.LoraConfig(
        r=32, target_modules=["embed_tokens"], modules_to_save=["lm_head"], alpha_pattern={"x": 2},
        target_parameters=["up"],
    )  # fmt: skip
    said = " ".join(vllm_limits(wide, 32))
    for text in ("--max-lora-rank", "modules_to_save (lm_head)", "embeddings", "alpha_pattern", "target_parameters"):
        assert text in said
