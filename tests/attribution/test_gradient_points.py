import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import rest_slow
from test_pile_gradient import ROUNDING, autograd_oracle, relative_error
from tiny_models import ragged_examples, tiny_llama
from torch import nn

from gradsteer.attribution.gradient_points import (
    AnchorPoint,
    RandomMasks,
    StraightPath,
    gauss_lobatto,
    gradient_at_points,
)
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import collate
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.losses import example_losses
from gradsteer.steering.weight_steering import reweighted
from gradsteer.vectors.weight_diff import named_weights


def copies(model):
    return {name: weight.clone() for name, weight in named_weights(model).items()}


def same_bits(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and torch.equal(left[name].reshape(-1).view(torch.uint8), right[name].reshape(-1).view(torch.uint8))
        for name in left
    )


def nearby(model, *, scale=0.1, seed=5):
    """Other weights of the same model, as a base would have."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: weight + scale * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator).to(weight)
        for name, weight in copies(model).items()
    }


def mean_loss(model, examples):
    sums, counts = example_losses(model, collate(examples, 0))
    return float((sums / counts).mean().detach())


def summed_loss(model, examples):
    return float(example_losses(model, collate(examples, 0))[0].detach().sum())


class Quadratic(nn.Module):
    """L(w) = 1/2 ||A w - b||^2, w the entries of a matrix and a vector; its gradient is linear and known."""

    def __init__(self, *, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.matrix = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))
        self.vector = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))
        self.a = torch.randn(7, 6, generator=generator, dtype=torch.float64)
        self.b = torch.randn(7, generator=generator, dtype=torch.float64)

    def loss(self):
        return (self.a @ torch.cat([self.matrix.flatten(), self.vector]) - self.b).square().sum() / 2

    @property
    def hessian(self):
        return self.a.T @ self.a

    def flat(self, tensors):
        return torch.cat([tensors[name].flatten() for name in ("matrix", "vector")])


NAMES = ("matrix", "vector")
ORIGIN = {
    "matrix": torch.tensor([[0.3, -1.0], [2.0, 0.5]], dtype=torch.float64),
    "vector": torch.tensor([1.5, -0.7], dtype=torch.float64),
}
_SLOW = pytest.mark.slow
COMPONENTS = {  # each entry's component, the matrix's four entries first
    "entries": [0, 1, 2, 3, 4, 5],
    "rows": [0, 0, 1, 1, 2, 3],
    "tensors": [0, 0, 0, 0, 1, 1],
}


def at_points(model, points):
    """The gradient at each point by plain autograd, with its coefficient and factors: (points, entries)."""
    rows = []
    for index in range(len(points)):
        with points.at(model, index) as factors:
            gradients = dict(zip(NAMES, torch.autograd.grad(model.loss(), [*model.parameters()]), strict=True))
            for name in gradients if factors is not None else ():
                gradients[name] = gradients[name] * factors.get(name, 1.0)
        rows.append(points.coefficient(index) * model.flat(gradients))
    return torch.stack(rows)


# --- the anchor ------------------------------------------------------------------------------------------------------


def test_the_anchor_is_the_plain_gradient(llama):
    examples = ragged_examples(5)
    batches = [collate(examples[:3], 0), collate(examples[3:], 0)]
    plain, pile = PileGradient(llama), PileGradient(llama)
    for batch in batches:
        plain.add(batch)
    assert same_bits(gradient_at_points(pile, AnchorPoint(), batches), plain.average())
    assert pile.totals == plain.totals
    assert AnchorPoint().describe() == {}


# --- the path --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_points", [2, 3, 4, 5, 9, 16, 33])
def test_the_quadrature_is_exact_up_to_its_degree_and_no_further(num_points):
    nodes, weights = gauss_lobatto(num_points)
    assert len(nodes) == len(weights) == num_points
    assert (nodes[0], nodes[-1]) == (0.0, 1.0)
    assert nodes == sorted(nodes)
    assert min(weights) > 0
    for degree in range(2 * num_points - 2):
        # odd powers about the middle vanish by symmetry: about an end they are a test
        found = math.fsum(weight * node**degree for node, weight in zip(nodes, weights, strict=True))
        assert found == pytest.approx(1 / (degree + 1), rel=1e-13), degree
    if num_points <= 5:
        degree = 2 * num_points - 2
        found = math.fsum(weight * node**degree for node, weight in zip(nodes, weights, strict=True))
        assert found != pytest.approx(1 / (degree + 1), rel=1e-6)


def test_two_and_three_points_are_the_trapezoid_and_simpsons_rule():
    assert gauss_lobatto(2) == ([0.0, 1.0], [0.5, 0.5])
    nodes, weights = gauss_lobatto(3)
    assert nodes == [0.0, 0.5, 1.0]
    assert weights == pytest.approx([1 / 6, 4 / 6, 1 / 6], rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_path_runs_from_the_base_to_the_anchor_and_the_weights_come_back(dtype):
    model = tiny_llama(dtype=dtype)
    base, before, fingerprint = nearby(model), copies(model), model_fingerprint(model)
    name = next(iter(base))
    base[name][0, 0] = -0.0
    path = StraightPath(base, 4)
    for index, t in enumerate(path.nodes):
        with path.at(model, index) as factors:
            assert factors is None
            here = copies(model)
        if t in (0.0, 1.0):
            assert same_bits(here, base if t == 0.0 else before)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for name, weight in here.items():
            exact = base[name].to(wide) + t * (before[name].to(wide) - base[name].to(wide))
            # rounded once, from float32 at least
            torch.testing.assert_close(weight, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-8)
        assert same_bits(copies(model), before)
    assert model_fingerprint(model) == fingerprint


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", ["path", "masks"])
def test_the_weights_come_back_from_an_error(llama, kind, index):
    base, before = nearby(llama), copies(llama)
    points = StraightPath(base, 3) if kind == "path" else RandomMasks(2, 0.5, 0, list(base), base)
    inside = []

    def interrupted():
        with points.at(llama, index):
            inside.append(copies(llama))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not same_bits(inside[0], before)
    assert same_bits(copies(llama), before)


def test_the_path_is_complete_for_a_quadratic_loss_with_two_points():
    """Its gradient is linear along the path: the trapezoid is exact."""
    model, path = Quadratic(), StraightPath(ORIGIN, 2)
    gradient = at_points(model, path).sum(dim=0)
    delta = model.flat(copies(model)) - model.flat(ORIGIN)
    after = float(model.loss().detach())
    with reweighted(model, ORIGIN):
        before = float(model.loss().detach())
    assert float(gradient @ delta) == pytest.approx(after - before, rel=1e-13)


def path_gap(model, base, examples, num_points, parameters=None):
    """The relative gap of completeness, and the gradient."""
    pile = PileGradient(model, parameters=parameters)
    path = StraightPath(base, num_points)
    gradient = gradient_at_points(pile, path, [collate(examples, 0)])
    after = mean_loss(model, examples)
    with reweighted(model, base):
        before = mean_loss(model, examples)
    here = named_weights(model)
    along = sum(float((gradient[name] * (here[name] - base[name])).sum()) for name in gradient)
    assert path.along(model, gradient) == pytest.approx(along, rel=1e-12)
    assert pile.totals.num_examples == len(examples)
    assert pile.totals.token_loss_sum == pytest.approx(summed_loss(model, examples))
    return abs(along / (after - before) - 1), gradient


def test_the_path_becomes_complete_as_points_are_added(llama):
    examples = ragged_examples(6)
    gaps = [path_gap(llama, nearby(llama, scale=0.3), examples, num_points)[0] for num_points in (2, 3, 5, 9)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[3] < 1e-6, gaps


def test_the_path_becomes_complete_between_unrelated_models_too(llama):
    base, examples = copies(tiny_llama(seed=1)), ragged_examples(6)
    gaps = [path_gap(llama, base, examples, num_points)[0] for num_points in (2, 5, 17)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-5, gaps


def test_all_weights_move_along_the_path_whatever_takes_gradients(llama):
    base, examples = nearby(llama, scale=0.3), ragged_examples(4)
    some = [name for name in base if "mlp" in name]
    everything, few = (path_gap(llama, base, examples, 3, parameters)[1] for parameters in (None, some))
    assert list(few) == some
    assert relative_error(few, {name: everything[name] for name in some}) < ROUNDING


def test_parameters_that_the_base_lacks_stay(llama):
    base, before = nearby(llama), copies(llama)
    name = next(name for name in base if "mlp" in name)
    with StraightPath({name: base[name]}, 2).at(llama, 0):
        moved = {key for key, weight in named_weights(llama).items() if not torch.equal(weight, before[key])}
    assert moved == {name}


@pytest.mark.parametrize("num_points", [1, 0, -3])
def test_a_path_has_two_ends(llama, num_points):
    with pytest.raises(ValueError, match=f"num_points is {num_points}; accepted: 2 or more"):
        StraightPath(copies(llama), num_points)


def test_a_base_of_another_architecture_is_refused(llama):
    before, misfits = copies(llama), [{"nowhere.weight": torch.zeros(2)}, {"lm_head.weight": torch.zeros(1)}]
    model = tiny_llama(tied=False)
    for base, index in itertools.product(misfits, (0, 1)):
        with pytest.raises(ValueError, match="does not fit the model"), StraightPath(base, 2).at(model, index):
            pass
    with pytest.raises(ValueError, match="base holds no weights"):
        StraightPath({}, 2)
    assert same_bits(copies(llama), before)


def test_what_is_said_of_a_path(llama):
    other = tiny_llama(seed=1)
    assert StraightPath(named_weights(other), 5).describe() == {
        "points": "path", "path_points": "5", "base_fingerprint": model_fingerprint(other),
    }  # fmt: skip


# --- the masks -------------------------------------------------------------------------------------------------------


def closed_form(model, origin, components, rate):
    """grad L(theta_0) + p H d + (1 - p) B d, d = theta - theta_0, B the Hessian H within the components."""
    start = torch.zeros(6, dtype=torch.float64) if origin is None else model.flat(origin)
    delta = model.flat(copies(model)) - start
    members = torch.tensor(COMPONENTS[components])
    blocks = model.hessian * (members[:, None] == members[None, :])
    return model.hessian @ start - model.a.T @ model.b + rate * model.hessian @ delta + (1 - rate) * blocks @ delta


@pytest.mark.parametrize("components", list(COMPONENTS))
@pytest.mark.parametrize("origin", [None, ORIGIN], ids=["zero", "base"])
def test_the_closed_form_of_a_quadratic_loss_is_the_mean_over_all_masks(origin, components):
    """(1/p) sum over all masks of P(m) m grad L(theta_m), and (1/p) d/dtheta of the smoothed objective itself."""
    model, rate = Quadratic(), 0.3
    members = COMPONENTS[components]
    theta = model.flat(copies(model)).requires_grad_()
    start = torch.zeros(6, dtype=torch.float64) if origin is None else model.flat(origin)
    smoothed = torch.zeros((), dtype=torch.float64)
    for kept in itertools.product((0.0, 1.0), repeat=max(members) + 1):
        mask = torch.tensor([kept[member] for member in members], dtype=torch.float64)
        probability = math.prod(rate if one else 1 - rate for one in kept)
        masked = start + mask * (theta - start)
        smoothed = smoothed + probability * (model.a @ masked - model.b).square().sum() / 2
    (gradient,) = torch.autograd.grad(smoothed, theta)
    torch.testing.assert_close(gradient / rate, closed_form(model, origin, components, rate), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("components", ["rows", *(pytest.param(each, marks=_SLOW) for each in ("entries", "tensors"))])
@pytest.mark.parametrize("origin", [ORIGIN, pytest.param(None, marks=_SLOW)], ids=["base", "zero"])
def test_the_mean_over_draws_estimates_the_closed_form(origin, components):
    model, rate, num_draws = Quadratic(), 0.6, 1500
    draws = num_draws * at_points(model, RandomMasks(num_draws, rate, 3, NAMES, origin, components))
    errors = (draws.mean(dim=0) - closed_form(model, origin, components, rate)) / (draws.std(dim=0) / num_draws**0.5)
    # six entries in six cases: the largest of 36 standard normals is under 3.6 in 99 of 100 cases; the seed is fixed
    assert float(errors.abs().max()) < 3.6
    plain = torch.cat([g.flatten() for g in torch.autograd.grad(model.loss(), [*model.parameters()])])
    other = (draws.mean(dim=0) - plain) / (draws.std(dim=0) / num_draws**0.5)
    assert float(other.abs().max()) > 10, "the plain gradient is something else"


def test_parameters_that_are_not_masked_count_as_always_kept():
    model, rate, num_draws = Quadratic(), 0.5, 1500
    draws = num_draws * at_points(model, RandomMasks(num_draws, rate, 1, ["matrix"]))
    # by enumeration: the mean over the masks that keep an entry
    theta, expected = model.flat(copies(model)), torch.zeros(6, dtype=torch.float64)
    for kept in itertools.product((0.0, 1.0), repeat=4):
        mask = torch.tensor([*kept, 1.0, 1.0], dtype=torch.float64)
        gradient = model.a.T @ (model.a @ (mask * theta) - model.b)
        expected += rate**4 * gradient * torch.where(torch.arange(6) < 4, mask / rate, 1.0)
    errors = (draws.mean(dim=0) - expected) / (draws.std(dim=0) / num_draws**0.5)
    assert float(errors.abs().max()) < 3.6


@pytest.mark.parametrize("components", list(COMPONENTS))
def test_keeping_everything_is_the_plain_gradient(llama, components):
    batches = [collate(ragged_examples(5), 0)]
    plain = gradient_at_points(PileGradient(llama), AnchorPoint(), batches)
    names = list(plain)
    once = gradient_at_points(PileGradient(llama), RandomMasks(1, 1.0, 0, names, None, components), batches)
    assert same_bits(once, plain)
    some = RandomMasks(3, 1.0, 0, names[:4], nearby(llama), components)
    assert relative_error(gradient_at_points(PileGradient(llama), some, batches), plain) < ROUNDING


@pytest.mark.parametrize("reduction", rest_slow(["example", "token", "sum"]))
@pytest.mark.parametrize("components", list(COMPONENTS))
@pytest.mark.parametrize("to_base", [False, True], ids=["zero", "base"])
def test_masked_gradients_of_a_model_equal_explicit_masks_by_autograd(llama, reduction, components, to_base):
    examples, rate, num_draws = ragged_examples(4), 0.7, 3
    names = [name for name in named_weights(llama) if "embed" not in name]
    before, base = copies(llama), nearby(llama)
    points = RandomMasks(num_draws, rate, 11, names, base if to_base else None, components)
    pile = PileGradient(llama, reduction=reduction)
    ours = gradient_at_points(pile, points, [collate(examples[:1], 0), collate(examples[1:], 0)])
    theirs = {name: torch.zeros_like(weight) for name, weight in before.items()}
    losses = []
    for index in range(num_draws):
        other, masks = tiny_llama(), {}
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                masks[name] = points.mask(index, name, parameter.shape).double() if name in names else None
                start = base[name] if to_base else torch.zeros_like(parameter)
                if masks[name] is not None:
                    parameter.copy_(start + masks[name] * (before[name] - start))
        losses.append(summed_loss(other, examples))
        for name, gradient in autograd_oracle(other, examples, reduction).items():
            kept = masks[name] / rate if masks[name] is not None else 1.0
            theirs[name] += kept * gradient / num_draws
    assert relative_error(ours, theirs) < ROUNDING
    assert same_bits(copies(llama), before)
    # counted once, at the first draw
    assert pile.totals.num_examples == 4
    assert pile.totals.token_loss_sum == pytest.approx(losses[0], rel=1e-6)


def test_masked_weights_are_the_origins_and_kept_ones_do_not_change_a_bit():
    model = tiny_llama(dtype=torch.bfloat16)
    before, base = copies(model), nearby(model)
    for origin in (None, base):
        points = RandomMasks(2, 0.5, 0, list(base), origin)
        with points.at(model, 1) as factors:
            here = copies(model)
        for name, weight in here.items():
            assert factors[name].dtype == torch.bool
            start = torch.zeros_like(weight) if origin is None else origin[name]
            assert same_bits({name: weight}, {name: torch.where(factors[name], before[name], start)})
        assert same_bits(copies(model), before)


def test_masks_depend_on_seed_draw_and_name_only(llama):
    names = list(named_weights(llama))
    forward, backward = RandomMasks(2, 0.5, 7, names), RandomMasks(9, 0.5, 7, names[::-1][:5])
    with forward.at(llama, 1) as ours, backward.at(llama, 1) as theirs:
        for name in backward.names:
            assert torch.equal(ours[name], theirs[name])
    shape = (40, 30)
    first = forward.mask(0, names[0], shape)
    assert torch.equal(first, forward.mask(0, names[0], shape))
    others = [forward.mask(1, names[0], shape), forward.mask(0, names[1], shape)]
    others.append(RandomMasks(2, 0.5, 8, names).mask(0, names[0], shape))
    for other in others:
        assert 0.4 < float((first == other).double().mean()) < 0.6


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_masks_keep_their_rate_by_entries_rows_or_tensors(rate):
    masks = {components: RandomMasks(1, rate, 0, ["w"], None, components) for components in COMPONENTS}
    for components, shape in itertools.product(masks, [(), (7,), (400, 5), (300, 2, 3)]):
        mask = masks[components].mask(0, "w", shape)
        assert mask.shape == shape
        assert mask.dtype == torch.bool
        flat = mask.reshape(shape[0], -1) if shape else mask.reshape(1, 1)
        if components == "rows":
            assert bool((flat == flat[:, :1]).all())
        if components == "tensors":
            assert bool((flat == flat[0, 0]).all())
    for components, entries in (("entries", (100, 100)), ("rows", (10000, 2))):
        kept = float(masks[components].mask(0, "w", entries).double().mean())
        assert abs(kept - rate) < 4 * (rate * (1 - rate) / 10000) ** 0.5
    whole = [bool(masks["tensors"].mask(index, "w", (2, 2))[0, 0]) for index in range(1000)]
    assert abs(sum(whole) / 1000 - rate) < 4 * (rate * (1 - rate) / 1000) ** 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_draws": 0}, "num_draws is 0; accepted: 1 or more"),
        ({"keep_rate": 0.0}, "keep_rate is 0.0; accepted: above 0 and at most 1"),
        ({"keep_rate": 1.5}, "keep_rate is 1.5; accepted: above 0 and at most 1"),
        ({"keep_rate": math.nan}, "keep_rate is nan; accepted"),
        ({"components": "columns"}, "components is 'columns'; accepted: entries, rows, tensors"),
        ({"names": []}, "names is empty"),
        ({"origin": {"matrix": torch.zeros(2, 2)}}, "origin has no weights for 1 of the names, such as 'vector'"),
    ],
)
def test_settings_of_masks_that_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        RandomMasks(**{"num_draws": 2, "keep_rate": 0.5, "seed": 0, "names": NAMES} | options)


def test_masks_that_do_not_fit_the_model_are_refused():
    model = Quadratic()
    for points, match in (
        (RandomMasks(1, 0.5, 0, ["vector", "nowhere"]), "the masks name a parameter 'nowhere'"),
        (RandomMasks(1, 0.5, 0, ["vector"], {"vector": torch.zeros(3)}), "does not fit the model: 'vector' has shape"),
    ):
        with pytest.raises(ValueError, match=match), points.at(model, 0):
            pass


def test_what_is_said_of_masks(llama):
    said = {
        "points": "masks", "mask_draws": "4", "mask_keep_rate": "0.5", "mask_components": "rows", "mask_origin": "zero",
        "mask_seed": "9",
    }  # fmt: skip
    names = list(named_weights(llama))
    assert RandomMasks(4, 0.5, 9, names, components="rows").describe() == said
    assert RandomMasks(4, 0.5, 9, names, named_weights(llama), "rows").describe() == {
        **said, "mask_origin": "base", "base_fingerprint": model_fingerprint(llama),
    }  # fmt: skip


# --- weights that are split over processes ---------------------------------------------------------------------------


def split_and_whole(rank, meeting):
    """On one of two processes: the gradients of a split model equal those of a whole one, at every kind of points."""
    import torch.distributed
    from torch.distributed.device_mesh import init_device_mesh

    from gradsteer.models.parallel import split_model

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    whole, split = (tiny_llama(dtype=torch.float32) for _ in range(2))
    base, names, batches = nearby(whole), list(named_weights(whole)), [collate(ragged_examples(4), 0)]
    split_model(split, init_device_mesh("cpu", (2,)))
    held = [parameter.to_local().clone() for parameter in split.parameters()]
    choices = [AnchorPoint(), StraightPath(base, 3)]
    for components in COMPONENTS:
        choices += [RandomMasks(2, 0.5, 3, names[:-1], origin, components) for origin in (None, base)]
    for points in choices:
        expected, pile = gradient_at_points(PileGradient(whole), points, batches), PileGradient(split)
        gradient_at_points(pile, points, batches)
        # both processes ran all of the examples, and their gradients are summed
        ours = {name: tensor / (2 * len(ragged_examples(4))) for name, tensor in pile.sums.whole()}
        assert relative_error(ours, expected) < 1e-6, points.describe()
        if isinstance(points, StraightPath):
            found = points.along(split, pile.sums.buffers) / (2 * len(ragged_examples(4)))
            assert found == pytest.approx(points.along(whole, expected), rel=1e-5)
        assert all(torch.equal(p.to_local(), h) for p, h in zip(split.parameters(), held, strict=True))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_that_hold_half_of_the_weights_each_give_the_same(tmp_path):
    # the arguments are read first: conftest clears them
    code = "import sys; rank, at = sys.argv[1:]; import test_gradient_points as t; t.split_and_whole(int(rank), at)"
    logs = [tmp_path / f"log-{rank}" for rank in range(2)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            line = [sys.executable, "-c", code, str(rank), str(tmp_path / "meeting")]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            started.append(
                subprocess.Popen(
                    line, cwd=Path(__file__).parent, env=environment, stdout=file, stderr=subprocess.STDOUT
                )
            )
    try:
        for process, log in zip(started, logs, strict=True):
            assert process.wait(timeout=100) == 0, log.read_text()
    finally:
        for process in started:
            process.kill()
            process.wait()
