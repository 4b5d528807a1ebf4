import json
import math

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import VOCABULARY, tiny_llama

from gradsteer.vectors.combinations import combine
from gradsteer.vectors.metadata import num_prompts_text
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector
from gradsteer.vectors.weight_diff import WeightDiff, named_weights

SHARED = {"model_fingerprint": "f", "reduction": "example", "loss_mask": "assistant", "tokenizer_digest": "t"}


def vector(seed=0, cls=SteeringVector, **metadata):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (5, 4),
        "model.layers.0.mlp.up_proj.weight": (4, 3),
        "model.norm.weight": (4,),
    }
    return cls({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, metadata)


def test_algebra_is_elementwise():
    a, b = vector(0), vector(1)
    combined = 2 * a - b / 4 + (-a)
    for name in a:
        torch.testing.assert_close(combined[name], a[name] - b[name] / 4)
    assert isinstance(combined, SteeringVector)


def test_norms_dots_and_cosines_equal_float64_closed_forms():
    a, b = vector(0), vector(1)
    flat_a = torch.cat([a[name].flatten() for name in a]).double()
    flat_b = torch.cat([b[name].flatten() for name in a]).double()
    assert a.norm() == pytest.approx(float(flat_a.norm()), rel=1e-12)
    assert a.dot(b) == pytest.approx(float(flat_a @ flat_b), rel=1e-12)
    assert a.cosine(b) == pytest.approx(float(flat_a @ flat_b / flat_a.norm() / flat_b.norm()), rel=1e-12)
    assert list(a.layer_sum_squares()) == ["embedding", "0", "other"]
    assert math.sqrt(sum(a.layer_sum_squares().values())) == pytest.approx(a.norm())


def test_mismatched_names_and_shapes_raise_with_both_sides():
    a = vector(0)
    fewer = SteeringVector({name: a[name] for name in list(a)[:2]})
    with pytest.raises(ValueError, match=r"1 parameters only in this vector \(such as 'model.norm.weight'\)"):
        a + fewer
    other = SteeringVector({**a.tensors, "model.norm.weight": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"'model.norm.weight' has shape \(4,\) here and \(5,\) on the other side"):
        a - other


def test_a_vector_that_does_not_fit_the_model_is_refused(llama):
    with pytest.raises(
        ValueError, match=r"'model.embed_tokens.weight' has shape \(5, 4\) in the vector and \(61, 16\)"
    ):
        vector(0).check_fits(llama)
    with pytest.raises(ValueError, match="the model .* has none of that name"):
        SteeringVector({"nowhere": torch.zeros(1)}).check_fits(llama)


def test_files_round_trip_with_their_metadata(tmp_path):
    original = vector(0, plus="bridge", prompt_digests=json.dumps(["a"]))
    loaded = SteeringVector.load(original.save(tmp_path / "deep" / "v.safetensors"))
    assert loaded.metadata == original.metadata
    for name in original:
        assert torch.equal(loaded[name], original[name])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["v.safetensors"]


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no vector file at .*missing.safetensors"):
        SteeringVector.load(tmp_path / "missing.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no format version in its header; this gradsteer reads version '1'"):
        SteeringVector.load(tmp_path / "foreign.safetensors")
    save_file(
        {"a": torch.zeros(1)}, tmp_path / "future.safetensors", metadata={"format_version": "9", "kind": "vector"}
    )
    with pytest.raises(ValueError, match="format version '9'; this gradsteer reads version '1'"):
        SteeringVector.load(tmp_path / "future.safetensors")
    path = vector(0, PileAverage).save(tmp_path / "gradient.safetensors")
    with pytest.raises(ValueError, match="holds a 'gradient'; a 'vector' was asked for"):
        SteeringVector.load(path)
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        SteeringVector.load(tmp_path / "text.safetensors")


def test_contrast_is_plus_minus_minus_and_keeps_what_both_share():
    plus = vector(0, PileAverage, **SHARED, pile="bridge", num_examples="7", prompt_digests='["a", "b"]')
    minus = vector(1, PileAverage, **SHARED, pile="neither", num_examples="9", prompt_digests='["b", "c"]')
    contrast = SteeringVector.contrast(plus, minus, names=("bridge", "neither"))
    for name in plus:
        assert torch.equal(contrast[name], plus[name] - minus[name])
    assert contrast.metadata["plus"] == "bridge"
    assert contrast.metadata["minus_num_examples"] == "9"
    assert json.loads(contrast.metadata["prompt_digests"]) == ["a", "b", "c"]
    assert contrast.metadata["model_fingerprint"] == "f"


def test_a_vector_of_several_says_whose_prompts_it_knows():
    said = vector(0, PileAverage, **SHARED, prompt_digests='["b", "a"]')
    silent = vector(1, PileAverage, **SHARED)
    partly = vector(1, PileAverage, **SHARED, prompt_digests='["c"]', prompt_digests_incomplete="true")
    for plus, minus, prompts, incomplete in (
        (said, said, ["a", "b"], None),
        (said, silent, ["a", "b"], "true"),
        (silent, said, ["a", "b"], "true"),
        (silent, silent, [], "true"),
        (said, partly, ["a", "b", "c"], "true"),
    ):
        made = SteeringVector.contrast(plus, minus)
        parts = {"p": SteeringVector(plus, plus.metadata), "m": SteeringVector(minus, minus.metadata)}
        total = combine({"p": 1.0, "m": -0.5}, parts)
        for found in (made.metadata, total.metadata, (parts["p"] + parts["m"]).metadata, (plus - minus).metadata):
            if "prompt_digests" not in found:  # what never had prompts need not know of any
                assert plus is minus is silent
                continue
            assert json.loads(found["prompt_digests"]) == prompts
            assert found.get("prompt_digests_incomplete") == incomplete
            assert num_prompts_text(found) == ("at least " if incomplete else "") + str(len(prompts))
    assert num_prompts_text((silent + silent).metadata) is None
    assert "prompt_digests" not in (silent + silent).metadata


@pytest.mark.parametrize("key", sorted(SHARED))
def test_contrast_of_unlike_gradients_is_refused(key):
    plus = vector(0, PileAverage, **SHARED)
    minus = vector(1, PileAverage, **{**SHARED, key: "other"})
    with pytest.raises(ValueError, match=f"cannot be contrasted: their {key} differ"):
        SteeringVector.contrast(plus, minus)


def test_the_diff_is_computed_in_float32():
    base, anchor = tiny_llama(dtype=torch.bfloat16), tiny_llama(dtype=torch.bfloat16)
    with torch.no_grad():
        anchor.model.norm.weight.add_(2**-7)
    diff = WeightDiff.between(named_weights(anchor), named_weights(base))
    assert diff["model.norm.weight"].dtype == torch.float32
    torch.testing.assert_close(diff["model.norm.weight"], torch.full((16,), 2.0**-7))
    assert diff.norm() == pytest.approx(4 * 2**-7)
    with pytest.raises(ValueError, match="lm_head.weight"):
        WeightDiff.between(named_weights(tiny_llama(tied=False)), named_weights(base))
    grown = tiny_llama()
    grown.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    with pytest.raises(ValueError, match=f"has {VOCABULARY + 3} rows for tokens and the base {VOCABULARY} "):
        WeightDiff.between(named_weights(grown), named_weights(base))
