"""What `inspect` says of a file."""

import json
import shutil

import pytest
import torch
from adapters import adapted
from safetensors.torch import load_file
from tiny_models import tiny_llama

from gradsteer.__main__ import main
from gradsteer.models.adapter_loading import space_metadata
from gradsteer.models.loading import Loading, load_causal_lm
from gradsteer.vectors.parameter_vectors import ParameterVector, SteeringVector
from gradsteer.vectors.weight_diff import named_weights


@pytest.fixture
def vector():
    metadata = {
        "plus": "bridge", "minus": "neither", "num_examples": "7", "prompt_digests": '["a", "b"]',
        "split_half_cosine_by_layer": '{"0": 0.25}', "model": "[red]not markup[/red]", "model_fingerprint": "abc",
    }  # fmt: skip
    return SteeringVector(named_weights(tiny_llama()), metadata)


def test_a_vector_is_described(vector, tmp_path, capsys):
    path = vector.save(tmp_path / "v.safetensors")
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"vector over {len(vector)} parameters" in said
    for text in ("bridge", "neither", "abc", "[red]not markup[/red]", "embedding", "attention", "+0.25", "█"):
        assert text in said
    assert "prompt_digests" not in said
    assert "num_prompts            2" in said


def test_the_numbers_are_the_vectors(vector, tmp_path, capsys):
    paths = [vector.save(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    assert main(["inspect", *map(str, paths), "--json", "true"]) == 0
    found, again = map(json.loads, capsys.readouterr().out.splitlines())
    assert found == again
    loaded = ParameterVector.load(paths[0])
    assert found["norm"] == pytest.approx(loaded.norm())
    assert found["num_entries"] == vector.numel()
    assert sum(norm**2 for norm in found["norm_by_layer"].values()) == pytest.approx(loaded.norm() ** 2)
    assert sum(norm**2 for norm in found["norm_by_kind"].values()) == pytest.approx(loaded.norm() ** 2)
    assert found["norm_by_layer"]["1"] == pytest.approx(loaded.layer_sum_squares()["1"] ** 0.5)
    assert set(found["norm_by_kind"]) == {"embedding", "attention", "mlp", "norm"}


def test_an_adapter_is_described_from_its_files_alone(tmp_path, capsys):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    targets = ["v_proj", "layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules=targets, rank_pattern={"v_proj": 3})
    shutil.rmtree(tmp_path / "base")
    assert main(["inspect", str(tmp_path / "adapter")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in (
        "LoRA adapter over 8 parameters", f"base {tmp_path / 'base'}", "rank 2", "alpha 3", "scaling 1.5",
        'targets ["q_proj", "v_proj"]', 'rank_pattern {"v_proj": 3}', "attention", "adapter_fingerprint",
    ):  # fmt: skip
        assert text in said
    assert main(["inspect", "--json", "true", str(tmp_path / "adapter")]) == 0
    found = json.loads(capsys.readouterr().out)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert found["norm"] == pytest.approx(sum(float(t.square().sum()) for t in tensors.values()) ** 0.5)
    assert set(found["norm_by_layer"]) == {"0", "1"}


def test_a_vector_in_an_adapters_space_names_the_adapter(tmp_path, capsys):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"], use_rslora=True)
    loading = Loading(str(tmp_path / "adapter"), "bfloat16", adapter_reading="adapter", quantization="4bit")
    tensors = dict(load_causal_lm(str(tmp_path / "adapter"), adapter_reading="adapter").named_parameters())
    path = SteeringVector(tensors, {"plus": "a", **space_metadata(loading)}).save(tmp_path / "v.safetensors")
    assert main(["inspect", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f'adapter {{"base": "{tmp_path / "base"}", "rank": 2, "alpha": 3, "scaling": 2.12' in said
    assert '"targets": ["q_proj"]' in said
    assert "quantization 4bit" in said
    assert "attention" in said
    assert space_metadata(Loading(str(tmp_path / "adapter"))) == {}


def test_a_directory_without_an_adapter_is_refused(tmp_path, capsys):
    tiny_llama(dtype=torch.float32).save_pretrained(tmp_path / "base")
    assert main(["inspect", str(tmp_path / "base")]) == 2
    assert "holds no LoRA adapter" in capsys.readouterr().err


def test_what_is_no_such_file_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 2
    assert "no parameters file at" in capsys.readouterr().err
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert main(["inspect", str(tmp_path / "text.safetensors")]) == 2
    assert "is not a readable safetensors file" in capsys.readouterr().err
