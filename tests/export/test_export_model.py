"""The steered model as a directory: weights, precision, card."""

import json

import pytest
import torch
import yaml
from anchors import anchor, edited, export, probe
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradsteer.export.cards import card
from gradsteer.export.inputs import Steering
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import load_causal_lm
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import apply_transforms
from gradsteer.vectors.weight_diff import WeightDiff, named_weights


def load(to):
    return AutoModelForCausalLM.from_pretrained(to, dtype="auto").eval()


@pytest.mark.parametrize("kind", ["llama tied", "llama", "gpt2", "gemma", "mixtral"])
def test_it_is_the_steered_model(kind, tmp_path):
    path, file = anchor(tmp_path, kind)
    report = export(tmp_path / "to", path, file, "model")
    model, wanted = load(tmp_path / "to"), edited(path, SteeringVector.load(file), -0.3)
    torch.testing.assert_close(probe(model), probe(wanted), rtol=0, atol=1e-6)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert report["retained_fraction"] == pytest.approx(1, abs=1e-4)
    theta = torch.cat([p.flatten() for p in load_causal_lm(str(path)).parameters()]).norm()
    assert report["relative_norm"] == pytest.approx(
        -0.3 * SteeringVector.load(file).norm() / float(theta.detach()), rel=1e-4
    )
    tokenizer, before = (AutoTokenizer.from_pretrained(where) for where in (tmp_path / "to", path))
    assert tokenizer.chat_template == before.chat_template
    assert tokenizer("hello there") == before("hello there")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_and_what_it_keeps(dtype, tmp_path, capsys):
    path, file = anchor(tmp_path, scale=0.002)
    name = str(dtype).removeprefix("torch.")
    report = export(tmp_path / "to", path, file, "model", "--dtype", name, alpha=0.05)
    model, vector = load(tmp_path / "to"), SteeringVector.load(file)
    theta = named_weights(load_causal_lm(str(path)))
    along = error = squares = changed = 0.0
    for parameter, weight in named_weights(model).items():
        assert weight.dtype == dtype
        assert torch.equal(weight, torch.add(theta[parameter], vector[parameter], alpha=0.05).to(dtype))
        intended = 0.05 * vector[parameter].double()
        applied = weight.double() - theta[parameter].to(dtype).double()
        along += float((applied * intended).sum())
        error += float((applied - intended).square().sum())
        squares += float(intended.square().sum())
        changed += int((applied != 0).sum())
    assert report["retained_fraction"] == pytest.approx(along / squares)
    assert report["step_error"] == pytest.approx((error / squares) ** 0.5)
    assert report["changed_fraction"] == pytest.approx(changed / vector.numel())
    assert report["changed_fraction"] < 0.99
    text = (tmp_path / "to" / "README.md").read_text()
    assert f"retained fraction  {along / squares:.6f}:" in text
    assert f"in {name}: retained fraction {along / squares:.4f}" in capsys.readouterr().out


def test_bfloat16_loses_a_part_of_a_small_step_and_says_so(tmp_path, capsys):
    path, file = anchor(tmp_path, scale=1e-4)
    with torch.no_grad():  # weights of a size at which bfloat16 is coarse beside the step
        model = load_causal_lm(str(path))
        for parameter in model.parameters():
            parameter.copy_(torch.ones_like(parameter))
    model.save_pretrained(path)
    vector = SteeringVector.load(file)
    vector.metadata["model_fingerprint"] = model_fingerprint(model)
    vector.save(file)
    report = export(tmp_path / "to", path, file, "model", "--dtype", "bfloat16", alpha=1)
    assert report["retained_fraction"] < 0.1
    assert "warning: bfloat16 keeps 0 % of this step; --format adapter" in capsys.readouterr().out
    assert "retained fraction  0.0" in (tmp_path / "to" / "README.md").read_text()


def test_from_a_rounded_anchor_it_is_what_steer_ran_in_that_dtype(tmp_path, capsys):
    path, file = anchor(tmp_path, scale=0.002)
    half, words = load_causal_lm(str(path), dtype="bfloat16"), ("--dtype", "bfloat16")
    report = export(tmp_path / "to", path, file, "model", *words, "--rounded_anchor", "true", alpha=0.05)
    export(tmp_path / "once", path, file, "model", *words, alpha=0.05)
    with steered(half, SteeringVector.load(file), 0.05) as step:
        wanted = {name: weight.clone() for name, weight in named_weights(half).items()}
        for key in ("retained_fraction", "step_error", "changed_fraction", "relative_norm"):
            assert report[key] == pytest.approx(getattr(step, key))
    found, once = (named_weights(load(tmp_path / name)) for name in ("to", "once"))
    assert all(torch.equal(weight, wanted[name]) for name, weight in found.items())
    assert not all(torch.equal(weight, wanted[name]) for name, weight in once.items())
    assert "Q(Q(theta) + alpha V) - Q(theta)" in (tmp_path / "to" / "README.md").read_text()


def test_stochastic_rounding_is_that_of_the_steered_model(tmp_path):
    path, file = anchor(tmp_path, scale=1e-4)
    load_causal_lm(str(path), dtype="bfloat16").save_pretrained(path)
    half = load_causal_lm(str(path), dtype="bfloat16")
    vector = SteeringVector.load(file)
    vector.metadata["model_fingerprint"] = model_fingerprint(half)
    vector.save(file)
    words = ("--dtype", "bfloat16", "--rounding", "stochastic", "--seed")
    reports = [export(tmp_path / f"to{seed}", path, file, "model", *words, seed) for seed in (3, 4)]
    with steered(half, vector, -0.3, rounding="stochastic", seed=3) as step:
        wanted = {name: weight.clone() for name, weight in named_weights(half).items()}
        assert reports[0]["retained_fraction"] == pytest.approx(step.retained_fraction)
        assert reports[0]["step_error"] == pytest.approx(step.step_error)
        assert reports[0]["changed_fraction"] == pytest.approx(step.changed_fraction)
        assert reports[0]["relative_norm"] == pytest.approx(step.relative_norm)
    assert all(torch.equal(weight, wanted[name]) for name, weight in named_weights(load(tmp_path / "to3")).items())
    assert reports[1]["step_error"] != reports[0]["step_error"]
    assert "rounding           stochastic, seed 3" in (tmp_path / "to3" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["llama tied", "gpt2"])
def test_tied_weights_stay_tied(kind, tmp_path):
    path, file = anchor(tmp_path, kind)
    export(tmp_path / "to", path, file, "model", "--dtype", "bfloat16")
    model = load(tmp_path / "to")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert json.loads((tmp_path / "to" / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(tmp_path / "to" / "model.safetensors", framework="pt") as file_:
        assert "lm_head.weight" not in file_.keys()  # noqa: SIM118


def test_transforms_are_applied_with_the_base(tmp_path):
    path, file = anchor(tmp_path)
    base, _ = anchor(tmp_path, seed=1)
    words = ("--transforms", "[diff_weighting, norm_matched]", "--base", base)
    report = export(tmp_path / "to", path, file, "model", *words)
    diff = WeightDiff.between(*(named_weights(load_causal_lm(str(where))) for where in (path, base)))
    vector = apply_transforms(SteeringVector.load(file), diff, ["diff_weighting", "norm_matched"])
    torch.testing.assert_close(probe(load(tmp_path / "to")), probe(edited(path, vector, -0.3)), rtol=0, atol=1e-6)
    assert report["transforms"] == ["diff_weighting", "norm_matched"]
    assert "transforms  diff_weighting, norm_matched" in (tmp_path / "to" / "README.md").read_text()


def test_the_recorded_base_is_the_default(tmp_path):
    path, file = anchor(tmp_path)
    anchor(tmp_path, seed=1)
    (path / "gradsteer.json").write_text('{"base": "../anchor1"}')
    words = ("--transforms", "[diff_weighting]")
    one = export(tmp_path / "one", path, file, "model", *words)
    two = export(tmp_path / "two", path, file, "model", *words, "--base", tmp_path / "anchor1")
    assert one == two


def test_the_card_tells_where_it_comes_from_and_nothing_else(tmp_path):
    path, file = anchor(tmp_path)
    vector = SteeringVector.load(file)
    trap = "x`````\n# Not a heading\n---\n<b>"
    vector.metadata |= {"plus": trap, "model": "/home/somebody/secret/place/anchor", "password": "hunter2"}
    vector.metadata |= {"num_examples": "7", "plus_num_examples": "3"}
    vector.save(file)
    export(tmp_path / "to", path, file, "model")
    text = (tmp_path / "to" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["gradsteer", "steered"],
    }  # fmt: skip
    for words in ("alpha       -0.3", "vector      v0.safetensors", "model       anchor0", "num_prompts        1"):
        assert words in body
    assert "negative alpha raises" in body
    assert "hunter2" not in text
    assert "/home" not in text
    assert str(tmp_path) not in text
    assert "x````` # Not a heading --- <b>" in body  # on one line, in a block that five backticks do not end
    assert "``````text" in body


@pytest.mark.parametrize(("name", "base_model"), [("some-org/some-model", "some-org/some-model"), ("anchor", None)])
def test_only_a_hub_id_is_named_in_the_front_matter(name, base_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anchor").mkdir()
    vector = SteeringVector({"w": torch.ones(2)}, {})
    steering = Steering(name, "v.safetensors", 0.1, [], None, None, vector)
    text = card(steering, title="t", library="peft", tags=["lora"], numbers={}, usage="")
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == base_model
    assert f"model       {name}" in text
    assert "reduces its behavior" in text


def test_files_are_readable_by_all_whom_the_umask_lets(tmp_path):
    path, file = anchor(tmp_path)
    export(tmp_path / "to", path, file, "model")
    (tmp_path / "ordinary").touch()
    modes = {entry.stat().st_mode for entry in (tmp_path / "to").iterdir()}
    assert modes == {(tmp_path / "ordinary").stat().st_mode}
