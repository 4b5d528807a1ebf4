"""What export refuses, and what it leaves behind: nothing."""

import os
from dataclasses import replace

import pytest
import torch
from anchors import anchor, export, refusal, write_responses
from processes import kill_when

from gradsteer.export import command, inputs
from gradsteer.vectors.parameter_vectors import SteeringVector


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    return (directory, *anchor(directory))


@pytest.mark.parametrize(
    ("form", "words", "said"),
    [
        ("adapter", ["--rounding", "nearest"], "--rounding is 'nearest', which --format adapter does not read"),
        ("adapter", ["--seed", "1"], "--seed is 1, which --format adapter does not read"),
        ("model", ["--rounding", "stochastic"], "--dtype float32; accepted: --dtype bfloat16 or float16"),
        ("model", ["--seed", "1"], "--seed is 1, which only --rounding stochastic reads"),
        ("model", ["--rank", "4"], "--rank is 4, which --format model does not read"),
        ("model", ["--ranks", "[4]"], "--ranks is [4], which --format model does not read"),
        ("model", ["--min_energy", "0"], "--min_energy is 0.0, which --format model does not read"),
        ("model", ["--responses", "r.jsonl"], "--responses is 'r.jsonl', which --format model does not read"),
        ("model", ["--behavior", "a"], "--behavior is 'a', which --format model does not read"),
        ("model", ["--rounded_anchor", "true"], "--rounded_anchor is true, and --dtype float32; accepted"),
        ("adapter", ["--dtype", "float32"], "--dtype is 'float32', which --format adapter does not read"),
        ("model", ["--dtype", "float64"], "accepted: float32, bfloat16, float16"),
        ("gguf", [], "accepted: model, adapter"),
        ("adapter", ["--rank", "0"], "--rank is 0; accepted: at least 1, or full"),
        ("adapter", ["--rank", "most"], "a whole number, or full"),
        ("adapter", ["--ranks", "[4, -1]"], "--ranks holds -1; accepted: numbers of at least 1"),
        ("adapter", ["--min_energy", "1.5"], "--min_energy is 1.5; accepted: from 0 to 1"),
        ("adapter", ["--behavior", "a"], "--behavior is 'a', which needs --responses FILE"),
        ("adapter", ["--responses", "none.jsonl"], "no such file: none.jsonl"),
        (
            "model",
            ["--transforms", "[diff_wait]"],
            "'diff_wait' (did you mean 'diff_weighting'?); accepted: diff_projection",
        ),
        ("model", ["--transforms", "[[diff_weighting]]"], "accepted: one list of transforms"),
        ("model", ["--transforms", "[diff_weighting]"], "needs the weight diff: give the base model (--base)"),
        ("model", ["--base", "somewhere"], "--base is 'somewhere', and no transform needs the weight diff"),
        ("model", ["--transforms", "[{top_k: {percent: -1}}]"], "percent"),
        ("model", ["--model", "./nowhere"], "no model directory at './nowhere'"),
        ("model", ["--vector", "none.safetensors"], "no vector file at 'none.safetensors'"),
        ("model", ["--alpha", "0"], "--alpha is 0.0; accepted: a finite number other than 0"),
        ("model", ["--alpha", ".inf"], "--alpha is inf; accepted: a finite number other than 0"),
        ("model", ["--alpha", "1e30", "--dtype", "float16"], "is not finite in float16"),
        ("adapter", ["--min_energy", "0.9"], "at any rank the adapter keeps 0.3"),
        ("adapter", ["--min_energy", "0.3", "--rank", "1"], "at rank 1 the adapter keeps 0.0"),
        (
            "adapter",
            ["--transforms", '[{only: {parameters: ["kind:norm"]}}]'],
            "can be held by an adapter (norms and other vectors 1.0000); accepted: --format model",
        ),
        (
            "adapter",
            ["--transforms", '[{only: {parameters: ["kind:embedding"]}}]'],
            "can be held by an adapter (tied matrices 1.0000); accepted: --format model",
        ),
    ],
)
def test_bad_values_are_refused_with_the_accepted_form(made, form, words, said, tmp_path, capsys):
    _, path, file = made
    assert said in refusal(capsys, tmp_path / "to", path, file, form, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_vector_of_other_weights_needs_the_flag(tmp_path, capsys):
    path, _ = anchor(tmp_path)
    _, other = anchor(tmp_path, seed=1)
    said = refusal(capsys, tmp_path / "to", path, other, "model")
    assert "was made on a model with fingerprint" in said
    assert "--allow_other_model true" in said
    export(tmp_path / "to", path, other, "model", "--allow_other_model", "true")


def test_a_vector_that_is_or_becomes_zero_is_refused(made, tmp_path, capsys):
    _, path, file = made
    vector = SteeringVector.load(file)
    zero = vector.map(lambda _, tensor: torch.zeros_like(tensor), "").save(tmp_path / "zero.safetensors")
    assert "has the norm 0.0: there is no step to export" in refusal(capsys, tmp_path / "to", path, zero, "model")
    positive = vector.map(lambda _, tensor: tensor.abs(), "").save(tmp_path / "positive.safetensors")
    words = ("--transforms", "[{sign_restricted: {of: vector, sign: negative}}]")
    assert "after sign_restricted" in refusal(capsys, tmp_path / "to", path, positive, "adapter", *words)


def test_behaviors_are_named(made, tmp_path, capsys):
    _, path, file = made
    responses = write_responses(tmp_path / "r.jsonl")
    words = ("--responses", responses, "--behavior", "none")
    said = refusal(capsys, tmp_path / "to", path, file, "adapter", *words)
    assert f"--behavior is 'none'; --responses {responses} has verdicts on: a, other" in said
    nameless = SteeringVector.load(file)
    nameless.metadata["plus"] = "pile"
    nameless = nameless.save(tmp_path / "nameless.safetensors")
    said = refusal(capsys, tmp_path / "to", path, nameless, "adapter", "--responses", responses)
    assert "needs --behavior NAME (the vector does not say which)" in said
    hot = write_responses(tmp_path / "hot.jsonl", temperature="hot")
    said = refusal(capsys, tmp_path / "to", path, file, "adapter", "--responses", hot)
    assert f"{hot}:1: temperature is 'hot'; accepted: a positive number" in said


def test_only_an_earlier_export_is_replaced_and_only_when_told(made, tmp_path, capsys):
    _, path, file = made
    to = tmp_path / "to"
    to.mkdir()
    export(to, path, file, "model")  # an empty directory is fine
    assert "which holds an export; replace it with --overwrite true" in refusal(capsys, to, path, file, "adapter")
    export(to, path, file, "adapter", "--overwrite", "true")
    assert not (to / "model.safetensors").exists()
    assert (to / "adapter_model.safetensors").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    said = refusal(capsys, other, path, file, "model", "--overwrite", "true")
    assert "is no export of ours" in said
    assert (other / "thesis.txt").read_text() == "mine"
    said = refusal(capsys, other / "thesis.txt", path, file, "model")
    assert "a file; accepted: a new or empty directory" in said
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "to"]


def test_an_export_is_not_replaced_by_what_is_read_from_it(made, tmp_path, capsys):
    _, path, file = made
    to = tmp_path / "to"
    export(to, path, file, "model")
    words = ("--overwrite", "true", "--allow_other_model", "true")
    said = refusal(capsys, to, to, file, "model", *words)
    assert f"--model is '{to}', which lies in --to" in said


def test_trust_in_remote_code_reaches_every_load(made, tmp_path, monkeypatch):
    _, path, file = made
    asked = []

    def spy(load):
        return lambda loading: (
            asked.append(loading.trust_remote_code) or load(replace(loading, trust_remote_code=False))
        )

    monkeypatch.setattr(inputs, "load_causal_lm", spy(inputs.load_causal_lm))
    monkeypatch.setattr(inputs, "load_tokenizer", spy(inputs.load_tokenizer))
    words = ("--transforms", "[diff_weighting]", "--base", path)
    words += ("--trust_remote_code", "true")
    export(tmp_path / "one", path, file, "model", *words, status=2)  # a diff of zero has no scale
    assert asked == [True] * 3
    export(tmp_path / "two", path, file, "model")
    assert asked[3:] == [False] * 2


def test_a_config_file_holds_the_options(made, tmp_path):
    _, path, file = made
    config = tmp_path / "c.yaml"
    config.write_text("dtype: bfloat16\noverwrite: false\n")
    assert export(tmp_path / "to", path, file, "model", "--config", config)["dtype"] == "bfloat16"


def test_an_alpha_in_scientific_notation_is_read(made, tmp_path):
    _, path, file = made
    assert export(tmp_path / "to", path, file, "model", alpha="-1e-3")["alpha"] == -1e-3


@pytest.mark.parametrize("form", ["model", "adapter"])
def test_an_interrupted_export_leaves_what_was_there(made, form, tmp_path, monkeypatch):
    _, path, file = made
    to = tmp_path / "to"
    monkeypatch.setattr(command, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    export(to, path, file, form, status=130)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    export(to, path, file, form)
    before = {entry.name: entry.read_bytes() for entry in to.iterdir()}
    monkeypatch.setattr(command, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    export(to, path, file, form, "--overwrite", "true", alpha=0.1, status=130)
    assert [entry.name for entry in tmp_path.iterdir()] == ["to"]
    assert {entry.name: entry.read_bytes() for entry in to.iterdir()} == before


@pytest.mark.slow
def test_a_killed_export_leaves_no_half_of_a_directory(made, tmp_path):
    _, path, file = made
    to = tmp_path / "to"
    words = ["export", "--model", path, "--vector", file, "--alpha", 0.1, "--format", "adapter", "--to", to]
    kill_when([str(word) for word in words], lambda: any(".part" in name for name in os.listdir(tmp_path)))
    assert not to.exists()
    export(to, path, file, "adapter")
    assert (to / "adapter_model.safetensors").exists()
