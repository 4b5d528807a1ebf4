import numpy as np
import pytest
import torch
from tiny_models import tiny_llama

from gradsteer.vectors.controls import random_like, random_signs
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import apply_transforms, diff_weighting, parse_transform
from gradsteer.vectors.weight_diff import WeightDiff


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: parameter.shape for name, parameter in tiny_llama().named_parameters()}
    make = lambda: {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}  # noqa: E731
    return SteeringVector(make()), WeightDiff(make())


def test_diff_weighting_is_the_formula_in_float64():
    vector, diff = pair()
    magnitudes = np.concatenate([diff[name].abs().double().numpy().ravel() for name in diff])
    scale = np.percentile(magnitudes, 97)
    weighted = diff_weighting(vector, diff)
    for name in vector:
        expected = (diff[name].abs().double() / scale * vector[name].double()).float()
        torch.testing.assert_close(weighted[name], expected)
    assert weighted.cosine(vector) < 0.99  # not a no-op


def test_the_percentile_argument_is_no_no_op():
    vector, diff = pair()
    low = apply_transforms(vector, diff, [{"diff_weighting": {"percentile": 50}}])
    assert low.norm() > 2 * apply_transforms(vector, diff, ["diff_weighting"]).norm()


def test_diff_weighting_refuses_a_missing_or_empty_diff():
    vector, diff = pair()
    with pytest.raises(ValueError, match="--steering.base"):
        diff_weighting(vector, None)
    with pytest.raises(ValueError, match="97th percentile of .* is 0"):
        diff_weighting(vector, diff * 0.0)


def test_unknown_transforms_and_arguments_are_named():
    with pytest.raises(
        ValueError,
        match=r"unknown transform .diff_wieghting. \(did you mean .diff_weighting.\?\); accepted: diff_projection, ",
    ):
        parse_transform("diff_wieghting")
    with pytest.raises(ValueError, match="no argument 'percent'; accepted: percentile"):
        parse_transform({"diff_weighting": {"percent": 3}})
    with pytest.raises(ValueError, match="accepted: a name, or one name"):
        parse_transform({"a": {}, "b": {}})
    assert parse_transform({"diff_weighting": {"percentile": 95}})[0] == "diff_weighting(percentile=95)"


def test_random_control_has_the_norm_of_every_tensor_and_no_direction_of_it():
    vector, _ = pair()
    control = random_like(vector, seed=0)
    for name in vector:
        assert float(control[name].norm()) == pytest.approx(float(vector[name].norm()), rel=1e-5)
    assert abs(control.cosine(vector)) < 0.1
    assert abs(control.cosine(random_like(vector, seed=1))) < 0.1
    assert random_like(vector, seed=0).cosine(control) == pytest.approx(1)
    assert abs(control.cosine(random_like(vector, seed=0, label="recipe"))) < 0.1


def test_random_signs_keep_every_magnitude():
    vector, _ = pair()
    control = random_signs(vector, seed=0)
    assert all(torch.equal(control[name].abs(), vector[name].abs()) for name in vector)
    assert abs(control.cosine(vector)) < 0.1
    assert abs(control.cosine(random_signs(vector, seed=1))) < 0.1
    assert random_signs(vector, seed=0).cosine(control) == pytest.approx(1)
    assert abs(control.cosine(random_signs(vector, seed=0, label="recipe"))) < 0.1
    assert "random_signs(seed=0)" in control.metadata["derivation"]
