"""What `inspect` says of a file."""

import json

import pytest
from tiny_models import tiny_llama

from gradsteer.__main__ import main
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


def test_what_is_no_such_file_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 2
    assert "no parameters file at" in capsys.readouterr().err
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert main(["inspect", str(tmp_path / "text.safetensors")]) == 2
    assert "is not a readable safetensors file" in capsys.readouterr().err
