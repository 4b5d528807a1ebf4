import pytest
import torch
from tiny_models import ragged_examples, tiny_llama

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import collate
from gradsteer.models.fingerprints import model_fingerprint, weights_digest
from gradsteer.models.losses import example_losses
from gradsteer.steering.weight_steering import reweighted, steered
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.weight_diff import named_weights


def digest(model):
    return weights_digest(dict(model.named_parameters()))


def raw_bytes(model):
    return [parameter.detach().clone().view(torch.uint8) for parameter in model.parameters()]


def direction(model, seed=1, scale=1.0, **metadata):
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(
        {name: scale * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}, metadata
    )


def pile_loss(model, examples):
    sums, counts = example_losses(model, collate(examples, 0))
    return float((sums / counts).mean().detach())


def test_positive_alpha_raises_the_plus_piles_loss_and_lowers_the_minus_piles():
    """The sign convention: positive steering reduces the behavior."""
    model = tiny_llama()
    plus, minus = ragged_examples(6, seed=1), ragged_examples(6, seed=2)
    gradients = []
    for examples in (plus, minus):
        pile = PileGradient(model)
        pile.add(collate(examples, 0))
        gradients.append(pile.average())
    vector = SteeringVector({name: gradients[0][name] - gradients[1][name] for name in gradients[0]})
    contrast = pile_loss(model, plus) - pile_loss(model, minus)
    for alpha, sign in ((1e-3, 1), (-1e-3, -1)):
        with steered(model, vector, alpha):
            moved = pile_loss(model, plus) - pile_loss(model, minus)
        assert (moved - contrast) * sign > 0
        # to first order the contrast moves by alpha * ||V||^2
        assert moved - contrast == pytest.approx(alpha * vector.norm() ** 2, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_moved_once_and_restored_byte_for_byte(dtype, tied):
    model = tiny_llama(dtype=dtype, tied=tied)
    before, originals, vector = digest(model), raw_bytes(model), direction(model)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with steered(model, vector, 0.1):
        assert digest(model) != before
        for name, parameter in model.named_parameters():
            expected = (start[name].double() + 0.1 * vector[name].double()).to(dtype)
            torch.testing.assert_close(parameter.detach(), expected)
    assert digest(model) == before
    assert all(torch.equal(a, b) for a, b in zip(raw_bytes(model), originals, strict=True))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_are_restored_when_the_block_raises(llama, error):
    before = digest(llama)
    with pytest.raises(error), steered(llama, direction(llama), 0.1):
        raise error
    assert digest(llama) == before


def test_nested_steps_add_up_and_leaving_recomputes_from_the_originals():
    model = tiny_llama(dtype=torch.float32)
    before, first, second = digest(model), direction(model, 1), direction(model, 2)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with steered(model, first, 0.1):
        alone = digest(model)
        with steered(model, second, -0.2):
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.detach(), start[name] + 0.1 * first[name] - 0.2 * second[name])
        assert digest(model) == alone
    assert digest(model) == before


def test_steering_by_alpha_and_back_by_addition_would_not_restore():
    """Why the originals are kept: theta + aV - aV is not theta."""
    model = tiny_llama(dtype=torch.float32)
    vector, changed, total = direction(model), 0, 0
    for name, parameter in model.named_parameters():
        there_and_back = parameter.detach() + 0.1 * vector[name] - 0.1 * vector[name]
        changed += int((there_and_back != parameter.detach()).sum())
        total += parameter.numel()
    assert changed / total > 0.01


def test_reweighted_gives_other_weights_and_the_own_back():
    model, base = tiny_llama(seed=0, dtype=torch.float32), tiny_llama(seed=5, dtype=torch.float32)
    before = digest(model)
    with reweighted(model, dict(base.named_parameters())):
        assert digest(model) == digest(base)
        with steered(model, direction(model), 0.1):
            assert digest(model) != digest(base)
        assert digest(model) == digest(base)
    assert digest(model) == before


def test_a_partial_vector_moves_only_its_parameters(llama):
    name = "model.norm.weight"
    vector = SteeringVector({name: torch.ones(16)})
    others = {key: value.detach().clone() for key, value in llama.named_parameters() if key != name}
    with steered(llama, vector, 1.0):
        torch.testing.assert_close(llama.model.norm.weight.detach(), torch.full((16,), 2.0, dtype=torch.float64))
        assert all(torch.equal(dict(llama.named_parameters())[key], value) for key, value in others.items())


def test_the_applied_step_is_measured_against_the_intended_one():
    exact = tiny_llama(dtype=torch.float64)
    with steered(exact, direction(exact), 0.01) as step:
        assert step.retained_fraction == pytest.approx(1, abs=1e-12)
        assert step.step_error == pytest.approx(0, abs=1e-12)
        theta = sum(float(p.detach().square().sum()) for p in tiny_llama().parameters()) ** 0.5
        assert step.relative_norm == pytest.approx(0.01 * direction(exact).norm() / theta)
    half = tiny_llama(dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.fill_(1.0)
    lost = SteeringVector({name: torch.ones(p.shape) for name, p in half.named_parameters()})
    with steered(half, lost, 1e-5) as step:  # far below half a unit in the last place of 1.0: nothing arrives
        assert step.retained_fraction == 0
        assert step.step_error == pytest.approx(1)
    with steered(half, lost, -(2.0**-8)) as step:  # representable just below 1.0: all of it arrives
        assert step.retained_fraction == 1
        assert step.relative_norm < 0
    with steered(half, lost * 0.0, 1.0) as step:
        assert step.retained_fraction is None


def test_a_vector_of_another_model_is_refused_unless_asked_for(llama):
    fitting = direction(llama, model_fingerprint=model_fingerprint(llama))
    foreign = direction(llama, model_fingerprint="0" * 32)
    with steered(llama, fitting, 0.1), steered(llama, foreign, 0.1):  # checked at the outermost entry only
        pass
    with pytest.raises(ValueError, match=f"fingerprint {'0' * 32}, the model at hand has {model_fingerprint(llama)}"):
        steered(llama, foreign, 0.1).__enter__()
    with steered(llama, foreign, 0.1, allow_other_model=True):
        pass
    with steered(llama, fitting, 0.1):  # the fingerprint is known again after a restore
        pass


def test_the_fingerprint_follows_the_weights(llama):
    before = model_fingerprint(llama)
    with torch.no_grad():
        llama.model.norm.weight[0] += 1
    assert model_fingerprint(llama) != before
    assert model_fingerprint(tiny_llama(dtype=torch.bfloat16)) == model_fingerprint(
        tiny_llama(dtype=torch.bfloat16).float()
    )


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_not_finite_is_refused(llama, alpha):
    with pytest.raises(ValueError, match="accepted: a finite number"):
        steered(llama, direction(llama), alpha).__enter__()


def test_a_step_of_fewer_parameters_outlives_one_of_more():
    model = tiny_llama(dtype=torch.float32)
    before = {name: weight.clone() for name, weight in named_weights(model).items()}
    vector = SteeringVector({name: torch.ones_like(weight) for name, weight in before.items()})
    few = SteeringVector({name: vector[name] for name in list(vector)[:2]})
    with steered(model, few, 0.5):
        with steered(model, vector, 0.25):
            pass
        for name, weight in named_weights(model).items():
            assert torch.equal(weight, before[name] + 0.5 if name in few else before[name])
    assert all(torch.equal(weight, before[name]) for name, weight in named_weights(model).items())


def test_a_step_of_nothing_leaves_every_bit():
    """0 * V would turn -0.0 into 0.0, and an infinite entry into NaN."""
    model = tiny_llama(dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(-0.0)
    originals = raw_bytes(model)
    infinite = SteeringVector({"model.norm.weight": torch.full((16,), float("inf"))})
    for vector in (infinite, direction(model), SteeringVector({})):
        with steered(model, vector, 0.0):
            assert all(torch.equal(a, b) for a, b in zip(raw_bytes(model), originals, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float64])
def test_a_vector_of_another_precision(dtype, kept):
    model = tiny_llama(dtype=dtype)
    vector = direction(model).map(lambda _, tensor: tensor.to(kept).requires_grad_(), "")
    exact = vector.map(lambda _, tensor: tensor.detach().float(), "")
    for alpha in (0.1, -0.2):
        with steered(model, vector, alpha):
            found = digest(model)
        with steered(model, exact, alpha):
            assert digest(model) == found


def test_weights_and_vectors_whose_memory_is_not_in_row_major_order():
    class Turned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4).t().bfloat16())

    model, before = Turned(), torch.arange(12.0).view(3, 4).t()
    vector = SteeringVector({"weight": torch.tensor([2.0]).expand(4, 3)})
    with steered(model, vector, 0.5) as step:
        assert torch.equal(model.weight.detach().float(), before + 1)
        assert step.retained_fraction == 1
    assert torch.equal(model.weight.detach().float(), before)


# --- stochastic rounding ---------------------------------------------------------------------------------------------


def test_a_step_below_the_precision_arrives_by_stochastic_rounding():
    model = tiny_llama(dtype=torch.bfloat16)
    vector, originals, alpha = direction(model), raw_bytes(model), 1e-5
    # numbers large enough that the step is far below half a unit in the last place
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    originals = raw_bytes(model)
    with steered(model, vector, alpha) as step:
        assert step.retained_fraction == step.changed_fraction == 0
    retained = []
    for seed in range(40):
        with steered(model, vector, alpha, rounding="stochastic", seed=seed) as step:
            retained.append(step.retained_fraction)
            assert 0 < step.changed_fraction < 0.01
            assert all(of.retained_fraction is not None for of in step.by_tensor.values())
        assert all(torch.equal(a, b) for a, b in zip(raw_bytes(model), originals, strict=True))
    mean, spread = torch.tensor(retained).mean(), torch.tensor(retained).std() / len(retained) ** 0.5
    assert float((mean - 1).abs() / spread) < 4
    assert float(spread) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_depends_on_seed_and_name_only(dtype):
    model = tiny_llama(dtype=dtype)
    before, vector, second = digest(model), direction(model), direction(model, 2)
    name = "model.layers.0.mlp.up_proj.weight"
    few = SteeringVector({name: vector[name]})
    with steered(model, vector, 1e-3, rounding="stochastic", seed=1):
        alone, weight = digest(model), named_weights(model)[name].clone()
        with steered(model, second, 0.1):
            pass
        assert digest(model) == alone, "the same again where a nested edit was left"
        with steered(model, second, 0.1, rounding="stochastic", seed=2):
            pass
        assert digest(model) == alone
    with steered(model, few, 1e-3, rounding="stochastic", seed=1):
        assert torch.equal(named_weights(model)[name], weight)
    with steered(model, vector, 1e-3, rounding="stochastic", seed=2):
        assert digest(model) != alone
    with steered(model, vector, 1e-3):
        assert digest(model) != alone
    assert digest(model) == before


def test_stochastic_rounding_is_refused_where_it_cannot_take_effect(llama):
    for dtype in (torch.float32, torch.float64):
        model = tiny_llama(dtype=dtype)
        with pytest.raises(ValueError, match=f"covers are {dtype}; accepted: weights in torch.bfloat16, torch.float16"):
            steered(model, direction(model), 0.1, rounding="stochastic").__enter__()
    with pytest.raises(ValueError, match="rounding is 'up'; accepted: nearest, stochastic"):
        steered(llama, direction(llama), 0.1, rounding="up").__enter__()
    mixed = tiny_llama(dtype=torch.bfloat16)
    mixed.model.norm.float()
    with steered(mixed, direction(mixed), 1e-3, rounding="stochastic"):
        expected = 1 + 1e-3 * direction(mixed)["model.norm.weight"]
        torch.testing.assert_close(mixed.model.norm.weight.detach(), expected)
