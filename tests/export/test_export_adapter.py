"""The adapter against the dense edit, on real models and with the real peft."""

import json
import warnings

import peft
import pytest
import torch
from anchors import CONFIGS, NOT_HELD, anchor, edited, export, held_names, probe, truncated
from conftest import rest_slow

from gradsteer.models.loading import load_causal_lm
from gradsteer.vectors.parameter_vectors import SteeringVector


def load(path, to):
    with warnings.catch_warnings():
        # peft 0.21 asks for a name that transformers 5.23 has renamed, and turns one flag for a model of both kinds
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated|fan_in_fan_out is set to")
        return peft.PeftModel.from_pretrained(load_causal_lm(str(path)), to).eval()


@pytest.mark.parametrize("alpha", rest_slow([-0.3, 0.7]))
@pytest.mark.parametrize("kind", NOT_HELD)
def test_at_full_rank_it_is_the_dense_edit_of_what_it_holds(kind, alpha, tmp_path):
    path, file = anchor(tmp_path, kind)
    report = export(tmp_path / "to", path, file, "adapter", "--rank", "full", alpha=alpha)
    vector, held = SteeringVector.load(file), held_names(kind, path)
    assert {row["name"] for row in report["matrices"]} == held
    dense = probe(edited(path, {name: vector[name] for name in held}, alpha))
    model = load(path, tmp_path / "to")
    assert float((probe(model) - dense).abs().max()) <= 1e-5
    assert float((probe(load_causal_lm(str(path))) - dense).abs().max()) > 1e-2
    scalings = [module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")]
    assert len(scalings) == len(held)
    assert scalings == pytest.approx([alpha] * len(held), rel=1e-15)
    assert report["kept_share"] == pytest.approx(sum(vector.sum_squares()[n] for n in held) / vector.norm() ** 2)


@pytest.mark.parametrize("kind", ["llama tied", "gpt2", "gemma"])
@pytest.mark.parametrize("rank", rest_slow([3, 1, 12]))
def test_at_a_rank_it_is_the_truncated_edit(kind, rank, tmp_path):
    path, file = anchor(tmp_path, kind)
    report = export(tmp_path / "to", path, file, "adapter", "--rank", rank)
    vector = SteeringVector.load(file)
    edit = {name: truncated(vector[name], rank) for name in held_names(kind, path)}
    assert float((probe(load(path, tmp_path / "to")) - probe(edited(path, edit, -0.3))).abs().max()) <= 1e-5
    kept = sum(float(matrix.double().square().sum()) for matrix in edit.values())
    assert report["kept_share"] == pytest.approx(kept / vector.norm() ** 2, rel=1e-5)
    residual = {row["name"]: row["residual_energy"] for row in report["matrices"]}
    for name, matrix in edit.items():
        assert residual[name] == pytest.approx(float((vector[name] - matrix).double().square().sum()), rel=1e-4)


def test_a_merged_adapter_is_the_edit_too(tmp_path):
    for kind in ("llama", "gpt2"):
        path, file = anchor(tmp_path / kind, kind)
        export(tmp_path / kind / "to", path, file, "adapter", "--rank", "full")
        vector = SteeringVector.load(file)
        dense = probe(edited(path, {name: vector[name] for name in held_names(kind, path)}, -0.3))
        assert float((probe(load(path, tmp_path / kind / "to").merge_and_unload()) - dense).abs().max()) <= 1e-5


def test_matrices_of_smaller_full_rank_have_their_own(tmp_path):
    path, file = anchor(tmp_path)
    export(tmp_path / "to", path, file, "adapter", "--rank", 12)
    config = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert config["r"] == 12
    assert config["rank_pattern"] == {f"model.layers.{i}.self_attn.{n}_proj": 8 for i in range(2) for n in "kv"}
    assert set(config["alpha_pattern"].values()) == {-0.3 * 8}
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == str(path)


def test_the_table_and_what_is_not_held_are_said(tmp_path, capsys):
    path, file = anchor(tmp_path)
    report = export(tmp_path / "to", path, file, "adapter", "--rank", 3, "--ranks", "[2, 5, 400]")
    assert [row["rank"] for row in report["table"]] == [2, 3, 5, 16]
    assert [row["is_full"] for row in report["table"]] == [False, False, False, True]
    shares = [row["share_of_held"] for row in report["table"]]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert set(report["not_held"]) == {"tied matrices", "norms and other vectors"}
    assert report["not_held"]["tied matrices"]["parameters"] == ["model.embed_tokens.weight"]
    lost = sum(row["energy"] for row in report["not_held"].values())
    assert lost + report["held_energy"] == pytest.approx(report["energy"])
    said = capsys.readouterr().out
    assert "not held: tied matrices: " in said
    assert "3 <- written" in said
    assert "16 (full)" in said


def test_a_module_of_which_the_vector_has_nothing_is_left_out(tmp_path):
    path, file = anchor(tmp_path)
    only = '[{only: {parameters: ["*.mlp.*"]}}]'
    report = export(tmp_path / "to", path, file, "adapter", "--transforms", only)
    config = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 6
    assert all(".mlp." in name for name in config["target_modules"])
    assert report["not_held"] == {}
    edit = {name: tensor for name, tensor in SteeringVector.load(file).items() if ".mlp." in name}
    assert float((probe(load(path, tmp_path / "to")) - probe(edited(path, edit, -0.3))).abs().max()) <= 1e-5


def test_embeddings_with_a_forward_of_their_own_are_not_held(tmp_path):
    path, file = anchor(tmp_path, "opt")
    report = export(tmp_path / "to", path, file, "adapter")
    assert report["not_held"]["matrices of other modules"]["parameters"] == ["model.decoder.embed_positions.weight"]
    assert report["not_held"]["biases"]["num_tensors"] > 0


def test_experts_in_one_tensor_are_not_held(tmp_path):
    assert "mixtral" in CONFIGS
    path, file = anchor(tmp_path, "mixtral")
    report = export(tmp_path / "to", path, file, "adapter", "--rank", "full")
    assert all("experts" in n or "gate" in n for n in report["not_held"]["matrices of other modules"]["parameters"])
    vector, held = SteeringVector.load(file), [row["name"] for row in report["matrices"]]
    dense = probe(edited(path, {name: vector[name] for name in held}, -0.3))
    assert float((probe(load(path, tmp_path / "to")) - dense).abs().max()) <= 1e-5


def test_an_adapter_that_is_not_the_edit_is_refused(tmp_path, monkeypatch, capsys):
    from gradsteer.export import adapter

    path, file = anchor(tmp_path)
    monkeypatch.setattr(adapter, "_fill", lambda *_: None)  # as of a module that never calls its matrix
    export(tmp_path / "to", path, file, "adapter", status=2)
    assert "does not use its matrices as an adapter supposes" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_equal_work_gives_equal_files(tmp_path):
    path, file = anchor(tmp_path)
    for name in ("one", "two"):
        torch.manual_seed(len(name))
        export(tmp_path / name, path, file, "adapter")
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "gradsteer-export.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
