"""An adapter's own tensors as the parameters: the chain rule, exact steps, what they do to the weights, refusals."""

import copy

import numpy as np
import pytest
import torch
from adapters import ATTENTION, IDS, adapted
from tiny_models import ragged_examples, tiny_llama

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import collate
from gradsteer.forecast.derivatives import log_prob_derivatives
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.models.adapter_space import all_weights, pairs
from gradsteer.models.loading import load_causal_lm
from gradsteer.models.memory import plan_memory
from gradsteer.models.packing import Pack
from gradsteer.models.parameter_selection import kind_of, select_parameters
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.controls import random_like
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import apply_transforms

LAYER = "model.layers.0.self_attn.v_proj"
A, B = f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.default.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("space")
    tiny_llama(dtype=torch.float32).save_pretrained(directory / "base")
    adapted(directory / "base", directory / "adapter", target_modules=[*ATTENTION, "embed_tokens"])
    return directory


def model_of(place, reading="adapter", dtype="float64"):
    return load_causal_lm(str(place / "adapter"), adapter_reading=reading, dtype=dtype)


def gradient(model, **options):
    pile = PileGradient(model, **options)
    for start in (0, 4):
        pile.add(collate(ragged_examples(8)[start : start + 4], 0))
    return pile.average()


def direction(model, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(
        {name: scale * torch.randn(p.shape, generator=generator).to(p) for name, p in model.named_parameters()}
    )


def products(model):
    """The weights that the adapter's matrices make up, by name, as peft gives them."""
    modules = {name: model.get_submodule(name.rsplit(".", 1)[0]) for name in (pair.weight for pair in pairs(model))}
    with torch.no_grad():
        return {name: module.get_delta_weight("default").clone() for name, module in modules.items()}


def test_gradients_obey_the_chain_rule(place):
    space, merged = model_of(place), model_of(place, "merged")
    ours, dense = gradient(space), gradient(merged)
    assert set(ours) == {name for pair in pairs(space) for name in (pair.a, pair.b)}
    for pair in pairs(space):
        own = dense[pair.weight]  # (out, in)
        own = own.mT if "embedding" in pair.a else own  # peft's A reads ids: it makes the transpose of the weight
        a, b = (space.get_parameter(name).detach() for name in (pair.a, pair.b))
        torch.testing.assert_close(ours[pair.b], pair.scaling * own @ a.mT, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours[pair.a], pair.scaling * b.mT @ own, rtol=1e-10, atol=1e-12)


def test_packs_give_what_rows_give_and_only_what_is_chosen_is_summed(place):
    model = model_of(place)
    names = select_parameters(dict(model.named_parameters()), ["kind:attention", "!layer:1"])
    assert {kind_of(name) for name in names} == {"attention"}
    assert len(names) == 4
    pile = PileGradient(model, parameters=names)
    pile.add(Pack.of(ragged_examples(8), torch.device("cpu")))
    chosen, everything = pile.average(), gradient(model)
    assert set(chosen) == set(names)
    for name in names:
        torch.testing.assert_close(chosen[name], everything[name], rtol=1e-9, atol=1e-12)


def test_a_step_is_exactly_the_adapter_with_moved_matrices(place):
    model, alpha = model_of(place), 0.3
    vector, before = direction(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    product = products(model)
    with steered(model, vector, alpha):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, torch.add(before[name], vector[name], alpha=alpha))
        moved = products(model)
        logits = model(IDS).logits
    for pair in pairs(model):
        (a, da), (b, db) = ((before[name], vector[name]) for name in (pair.a, pair.b))
        change = pair.scaling * (alpha * (db @ a + b @ da) + alpha**2 * db @ da)
        change = change.mT if "embedding" in pair.a else change
        torch.testing.assert_close(moved[pair.weight] - product[pair.weight], change, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    merged = model_of(place, "merged")
    with torch.no_grad():
        for name, weight in moved.items():
            merged.get_parameter(name).add_(weight - product[name])
    torch.testing.assert_close(merged(IDS).logits, logits, rtol=1e-9, atol=1e-9)


def by_hand(model, vector, alpha, before=None):
    """The step's sums over weights, formed whole."""
    start = products(model) if before is None else before
    found = dict.fromkeys(("along", "error", "meant"), 0.0)
    with steered(model, vector, alpha, allow_other_model=True):
        moved = products(model)
    zero = torch.zeros(1, dtype=torch.float64)
    for pair in pairs(model):
        a, b = (model.get_parameter(name).detach() for name in (pair.a, pair.b))
        da, db = (vector.tensors.get(name, zero) * torch.ones_like(x) for name, x in ((pair.a, a), (pair.b, b)))
        meant = pair.scaling * alpha * (db @ a + b @ da)
        meant = meant.mT if "embedding" in pair.a else meant
        applied = moved[pair.weight] - start[pair.weight]
        found["along"] += float((applied * meant).sum())
        found["error"] += float((applied - meant).square().sum())
        found["meant"] += float(meant.square().sum())
    return found["along"] / found["meant"], (found["error"] / found["meant"]) ** 0.5


@pytest.mark.parametrize("alpha", [0.3, -0.02])
@pytest.mark.parametrize("names", [None, [B], [A]])
def test_a_step_is_measured_on_the_weights_beside_its_first_order(place, alpha, names):
    model = model_of(place)
    whole = direction(model)
    vector = whole if names is None else SteeringVector({name: whole[name] for name in names})
    retained, error = by_hand(model, vector, alpha)
    with steered(model, vector, alpha) as step:
        assert step.retained_fraction == pytest.approx(retained, rel=1e-9)
        assert step.step_error == pytest.approx(error, rel=1e-6, abs=1e-12)
        expected = alpha * vector.norm() / SteeringVector(all_parameters(model, vector, alpha)).norm()
        assert step.relative_norm == pytest.approx(expected, rel=1e-9)
        assert step.changed_fraction == 1.0
        assert f"{LAYER}.weight" in step.by_tensor
    if names is None:
        assert 0.01 * abs(alpha) < error  # the second order is linear in alpha
    else:
        assert error < 1e-12  # one of two matrices moves: nothing is of second order


def all_parameters(model, vector, alpha):
    """The parameters without the step, from within it."""
    return {
        name: p.detach() - alpha * vector[name] if name in vector else p.detach()
        for name, p in model.named_parameters()
    }


def test_second_order_grows_with_alpha_and_is_measured_though_it_is_small(place):
    model = model_of(place)
    vector, errors = direction(model), []
    for alpha in (1e-6, 1e-3):
        with steered(model, vector, alpha) as step:
            errors.append(step.step_error)
    assert errors[1] / errors[0] == pytest.approx(1000, rel=1e-3)


def test_an_adapter_in_float32_takes_a_step_that_its_base_in_half_precision_would_lose(place):
    model = model_of(place, dtype="bfloat16")
    vector = direction(model)
    with steered(model, vector, 1e-4) as step:
        assert step.retained_fraction == pytest.approx(1, abs=1e-3)
    with (
        pytest.raises(ValueError, match="rounding is 'stochastic', but the weights that the vector covers are"),
        steered(model, vector, 1e-6, rounding="stochastic"),
    ):
        pass


def test_derivatives_beside_a_base_in_bfloat16_are_those_of_float32(tmp_path):
    """The adapter takes the steps in float32, unrounded; they are large enough for passes that are rounded."""
    tiny_llama(initializer_range=0.2, dtype=torch.float32).save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter", target_modules="all-linear")
    model = model_of(tmp_path, dtype="bfloat16")
    twin, examples = copy.deepcopy(model).float(), ragged_examples(24)
    pile = PileGradient(twin, reduction="sum")
    pile.add(collate(examples[:12], 0))
    vector, scorer = SteeringVector(pile.average()), ResponseScorer(model, examples)
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    score, moved = scorer.log_probs, []

    def spying(**options):
        moved.append({name: p.detach() - own[name] for name, p in model.named_parameters()})
        return score(**options)

    scorer.log_probs = spying

    def regression(**options):
        found, _ = log_prob_derivatives(model, scorer, vector, **options)
        return float(found @ exact / (exact @ exact)), np.corrcoef(found, exact)[0, 1]

    exact, _ = log_prob_derivatives(twin, ResponseScorer(twin, examples), vector)
    slope, correlation = regression()
    assert slope == pytest.approx(1, abs=0.03)
    assert correlation > 0.99
    taken = [float((moved[-1][name] * each).sum() / each.square().sum()) for name, each in vector.items()]
    assert taken == pytest.approx([taken[0]] * len(taken), rel=1e-3)  # of every tensor the same share
    assert regression(changes=(0.002, 0.03, 0.01))[1] < 0.9  # as where passes are in float32, too


def test_what_looks_at_a_weights_own_matrix_is_refused_by_name(place):
    vector = direction(model_of(place))
    for spec in ({"low_rank": {"rank": 1}}, {"diff_subspaces": {"rank": 1}}, {"diff_projection": {}}):
        with pytest.raises(ValueError, match="looks at a weight's matrix, and this vector is of the two matrices"):
            apply_transforms(vector, None, [spec])
    kept = apply_transforms(vector, None, [{"only": {"parameters": ["layer:1"]}}, "norm_matched"])
    assert kept.norm() == pytest.approx(vector.norm())
    assert all(".layers.1." in name for name in kept)
    control = random_like(vector, seed=0)
    assert control.norm() == pytest.approx(vector.norm())


def test_a_vector_of_the_other_space_says_so(place):
    space, merged = model_of(place), model_of(place, "merged")
    with pytest.raises(ValueError, match=r"lives in an adapter's space .*, the model in whole weights"):
        direction(space).check_fits(merged)
    with pytest.raises(ValueError, match=r"lives in whole weights .*, the model in an adapter's space"):
        direction(merged).check_fits(space)


def test_the_plan_counts_the_frozen_base_and_sums_of_the_adapter_alone(place):
    model = model_of(place, dtype="bfloat16")
    plan = plan_memory(
        model, parameters=[name for name, _ in model.named_parameters()], token_budget=64, labelled_tokens=64,
        head_chunk=None, activation_bytes_per_token=1.0,
    )  # fmt: skip
    own = sum(parameter.numel() for parameter in model.parameters())
    assert plan.buffers == 4 * own
    assert plan.weights == 4 * own + 2 * sum(p.numel() for p in load_causal_lm(str(place / "base")).parameters())
    assert plan.weights == sum(w.numel() * w.element_size() for w in all_weights(model).values())
