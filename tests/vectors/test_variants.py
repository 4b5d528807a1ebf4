"""The transforms of a steering vector: each does what its formula says in float64, and none is a no-op."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_llama

from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import TRANSFORMS, apply_transforms, needs_diff, parse_transform
from gradsteer.vectors.weight_diff import WeightDiff


def made(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: parameter.shape for name, parameter in tiny_llama().named_parameters()}
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["model.norm.weight"][3] = 0.0
    return kind(tensors)


@pytest.fixture(scope="module")
def vector():
    return made(0, SteeringVector)


@pytest.fixture(scope="module")
def diff():
    return made(1, WeightDiff)


def flat(vector):
    return np.concatenate([tensor.numpy().ravel() for tensor in vector.values()])


def applied(vector, diff, spec):
    return apply_transforms(vector, diff, [spec])


def same(found, expected):
    np.testing.assert_allclose(flat(found), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", ["tail_median", "tail_mean"])
def test_diff_weighting_by_the_active_tail(vector, diff, scale):
    v, d = flat(vector), np.abs(flat(diff))
    tail = d[d >= np.percentile(d, 90)]
    divisor = np.median(tail) if scale == "tail_median" else tail.mean()
    found = applied(vector, diff, {"diff_weighting": {"percentile": 90, "scale": scale}})
    # the median by order statistics of all entries may lie between two entries of the tail
    np.testing.assert_allclose(flat(found), d / divisor * v, rtol=1e-3 if scale == "tail_median" else 1e-7)


def test_diff_weighting_keeps_the_norm_where_asked(vector, diff):
    kept = applied(vector, diff, {"diff_weighting": {"keep_norm": True}})
    free = applied(vector, diff, "diff_weighting")
    assert kept.norm() == pytest.approx(vector.norm(), rel=1e-9)
    assert kept.cosine(free) == pytest.approx(1, rel=1e-9)
    assert free.norm() < 0.9 * vector.norm()


@pytest.mark.parametrize("of", ["vector", "diff"])
@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_sign_restricted(vector, diff, of, sign):
    v, d = flat(vector), flat(diff)
    looked_at = v if of == "vector" else d
    kept = looked_at > 0 if sign == "positive" else looked_at < 0
    same(applied(vector, diff, {"sign_restricted": {"of": of, "sign": sign}}), np.where(kept, v, 0))


@pytest.mark.parametrize("agree", [True, False])
def test_sign_agreement(vector, diff, agree):
    v, d = flat(vector), flat(diff)
    kept = np.sign(-v) == np.sign(d) if agree else np.sign(v) == np.sign(d)
    same(applied(vector, diff, {"sign_agreement": {"agree": agree}}), np.where(kept & (v != 0), v, 0))


def test_top_k_over_all_parameters(vector, diff):
    v = flat(vector)
    found = flat(applied(vector, diff, {"top_k": {"percent": 5}}))
    kept = found != 0
    assert kept.sum() == pytest.approx(0.05 * v.size, abs=2)
    assert np.abs(v[kept]).min() >= np.abs(v[~kept]).max()
    np.testing.assert_array_equal(found[kept], v[kept])


def test_top_k_of_every_tensor(vector, diff):
    found = applied(vector, diff, {"top_k": {"percent": 25, "per": "tensor"}})
    for name, tensor in found.items():
        assert int((tensor != 0).sum()) == pytest.approx(0.25 * tensor.numel(), abs=1.5)
        smallest = tensor[tensor != 0].abs().min()
        assert not bool((vector[name][tensor == 0].abs() > smallest).any())


def test_only_some_parameters(vector, diff):
    found = applied(vector, diff, {"only": {"parameters": ["layer:1", "!kind:mlp"]}})
    assert list(found) == [name for name in vector if ".layers.1." in name and ".mlp." not in name]
    assert all(found[name] is vector[name] for name in found)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_is_the_truncated_svd(vector, diff, rank):
    found = applied(vector, diff, {"low_rank": {"rank": rank}})
    for name, tensor in vector.items():
        if tensor.ndim == 1:
            assert torch.equal(found[name], tensor)
            continue
        u, s, w = np.linalg.svd(tensor.numpy(), full_matrices=False)
        np.testing.assert_allclose(found[name].numpy(), (u[:, :rank] * s[:rank]) @ w[:rank], atol=1e-9)
    dropped = applied(vector, diff, {"low_rank": {"rank": rank, "vectors": "drop"}})
    assert all(bool((tensor == 0).all()) for tensor in dropped.values() if tensor.ndim == 1)


def test_a_stack_of_matrices_is_reduced_one_by_one():
    stack = torch.randn(4, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = applied(SteeringVector({"experts": stack}), None, {"low_rank": {"rank": 2}})["experts"]
    for one, reduced in zip(stack, found, strict=True):
        u, s, w = np.linalg.svd(one.numpy(), full_matrices=False)
        np.testing.assert_allclose(reduced.numpy(), (u[:, :2] * s[:2]) @ w[:2], atol=1e-9)


def test_full_rank_changes_nothing(vector, diff):
    for name in ("low_rank", "diff_subspaces"):
        spec = {name: {"rank": 1000}}
        square = {key: tensor for key, tensor in vector.items() if tensor.ndim == 1 or len(set(tensor.shape)) == 1}
        v = SteeringVector(square)
        same(applied(v, WeightDiff({key: diff[key] for key in square}), spec), flat(v))


@pytest.mark.parametrize("rank", [1, 4])
def test_diff_subspaces_projects_on_both_sides(vector, diff, rank):
    found = applied(vector, diff, {"diff_subspaces": {"rank": rank}})
    for name, tensor in vector.items():
        if tensor.ndim == 2:
            u, _, w = np.linalg.svd(diff[name].numpy(), full_matrices=False)
            u, w = u[:, :rank], w[:rank]
            np.testing.assert_allclose(found[name].numpy(), u @ u.T @ tensor.numpy() @ w.T @ w, atol=1e-9)


def test_a_diff_of_less_rank_has_no_further_directions():
    generator = torch.Generator().manual_seed(0)
    for shape in ((8, 5), (5, 8)):
        column, row = (torch.randn(size, 1, generator=generator, dtype=torch.float64) for size in shape)
        v, d = SteeringVector({"w": torch.ones(shape, dtype=torch.float64)}), WeightDiff({"w": column @ row.T})
        one, four = (applied(v, d, {"diff_subspaces": {"rank": rank}})["w"] for rank in (1, 4))
        torch.testing.assert_close(one, four)
    still = applied(v, WeightDiff({"w": torch.zeros(shape, dtype=torch.float64)}), {"diff_subspaces": {"rank": 2}})
    assert still.norm() == 0


def test_diff_projection(vector, diff):
    v, d = flat(vector), flat(diff)
    same(applied(vector, diff, "diff_projection"), (v @ d) / (d @ d) * d)
    per_tensor = applied(vector, diff, {"diff_projection": {"per": "tensor"}})
    for name, tensor in per_tensor.items():
        a, b = vector[name].numpy().ravel(), diff[name].numpy().ravel()
        np.testing.assert_allclose(tensor.numpy().ravel(), (a @ b) / (b @ b) * b, rtol=1e-9)
    assert per_tensor.cosine(applied(vector, diff, "diff_projection")) < 1


def test_orthogonal_to_another_vector(vector, diff, tmp_path):
    other = made(2, SteeringVector) + vector
    path = other.save(tmp_path / "other.safetensors")
    loaded = SteeringVector.load(path)
    u, v = flat({name: loaded[name].double() for name in vector}), flat(vector)
    found = applied(vector, diff, {"orthogonal_to": {"vector_file": str(path)}})
    np.testing.assert_allclose(flat(found), v - (v @ u) / (u @ u) * u, rtol=1e-6, atol=1e-9)
    assert abs(found.cosine(other)) < 1e-6
    assert found.cosine(vector) < 0.9
    assert parse_transform({"orthogonal_to": {"vector_file": str(path)}})[0] == "orthogonal_to(vector_file=other)"


def test_norms_are_matched_whole_and_by_tensor(vector, diff):
    reduced = [{"low_rank": {"rank": 1}}]
    whole = apply_transforms(vector, diff, [*reduced, "norm_matched"])
    assert whole.norm() == pytest.approx(vector.norm(), rel=1e-9)
    by_tensor = apply_transforms(vector, diff, [*reduced, {"norm_matched": {"per": "tensor"}}])
    for name, square in by_tensor.sum_squares().items():
        assert square == pytest.approx(vector.sum_squares()[name], rel=1e-9)
    free = apply_transforms(vector, diff, reduced)
    assert free.norm() < 0.8 * vector.norm()
    for name, tensor in by_tensor.items():  # each tensor keeps its direction
        cosine = torch.nn.functional.cosine_similarity(tensor.flatten(), free[name].flatten(), dim=0)
        assert float(cosine) == pytest.approx(1, rel=1e-9)


SPECS = [
    "diff_weighting", "sign_restricted", {"sign_restricted": {"of": "diff"}}, "sign_agreement",
    {"top_k": {"percent": 1}}, {"only": {"parameters": ["layer:0"]}}, {"low_rank": {"rank": 2}},
    {"diff_subspaces": {"rank": 2}}, "diff_projection",
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_transform_changes_the_vector_notes_itself_and_says_what_it_needs(vector, diff, spec):
    found = applied(vector, diff, spec)
    assert list(found) != list(vector) or found.cosine(vector) < 0.99
    name = spec if isinstance(spec, str) else next(iter(spec))
    assert name in found.metadata["derivation"]
    assert name in parse_transform(spec)[0]
    if needs_diff(spec):
        with pytest.raises(ValueError, match=f"{name}.* needs the weight diff: give the base model"):
            applied(vector, None, spec)
    else:
        applied(vector, None, spec)


def test_transforms_compose_in_order(vector, diff):
    one = apply_transforms(vector, diff, [{"top_k": {"percent": 10}}, {"low_rank": {"rank": 1}}])
    other = apply_transforms(vector, diff, [{"low_rank": {"rank": 1}}, {"top_k": {"percent": 10}}])
    assert one.cosine(other) < 0.999
    assert one.metadata["derivation"].index("top_k") < one.metadata["derivation"].index("low_rank")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"top_k": {"percent": 0}}, "percent is 0; accepted: above 0, at most 100"),
        ({"top_k": {"percent": 5, "per": "layer"}}, "per is 'layer'; accepted: whole, tensor"),
        ({"low_rank": {"rank": 0}}, "rank is 0; accepted: at least 1"),
        ({"low_rank": {"rank": 1, "vectors": "no"}}, "vectors is 'no'; accepted: keep, drop"),
        ({"low_rank": {}}, "needs 'rank'"),
        ({"sign_restricted": {"sign": "up"}}, "accepted: of vector or diff, sign positive or negative"),
        ({"diff_weighting": {"scale": "mean"}}, "scale is 'mean'; accepted: percentile, tail_median, tail_mean"),
        ({"only": {"parameters": "layer:0"}}, "accepted: a list of rules"),
        ({"only": {"parameters": ["layer:9"]}}, "no parameter meets 'layer:9'"),
        ({"norm_matched": {"per": "row"}}, "per is 'row'; accepted: whole, tensor"),
        ({"norm_matched": {"original": 1}}, "has no argument 'original'"),
        ({"diff_projection": {"per": "row"}}, "per is 'row'; accepted: whole, tensor"),
    ],
)
def test_bad_arguments_are_refused(vector, diff, spec, said):
    with pytest.raises(ValueError, match=said):
        applied(vector, diff, spec)


def test_every_transform_is_tested_here():
    tested = {spec if isinstance(spec, str) else next(iter(spec)) for spec in SPECS}
    assert set(TRANSFORMS) - tested == {"preconditioned", "orthogonal_to", "norm_matched"}
