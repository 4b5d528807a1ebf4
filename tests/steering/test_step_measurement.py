import math

import pytest
import torch
from test_steering import digest, direction
from tiny_models import tiny_llama

from gradsteer.steering import step_measurement as applied
from gradsteer.steering.step_measurement import TensorStep, pieces
from gradsteer.steering.weight_steering import reweighted, steered
from gradsteer.vectors.parameter_vectors import SteeringVector

FRACTIONS = ("retained_fraction", "step_error", "changed_fraction")


def copies(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def oracle(before, after, vector, alpha, start=None):
    """(retained_fraction, step_error, changed_fraction) from whole tensors in float64, all together and by tensor."""
    start = before if start is None else start
    flat = {
        name: ((after[name].double() - start[name].double()).flatten(), alpha * vector[name].double().flatten(),
               (after[name] != before[name]).flatten().double())
        for name in vector
    }  # fmt: skip

    def figures(names):
        moved, intended, changed = (torch.cat([flat[name][i] for name in names]) for i in range(3))
        square = intended.square().sum()
        return [
            float(moved @ intended / square),
            float((moved - intended).norm() / square.sqrt()),
            float(changed.mean()),
        ]

    return figures(list(vector)), {name: figures([name]) for name in vector}


def figures_of(step):
    return [getattr(step, key) for key in FRACTIONS]


@pytest.mark.parametrize("size", [1 << 20, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_against_whole_tensors_in_float64(dtype, size, monkeypatch):
    monkeypatch.setattr(pieces, "__kwdefaults__", {"size": size})
    model = tiny_llama(dtype=dtype)
    before, vector = copies(model), direction(model)
    few = SteeringVector({name: vector[name] for name in list(vector)[::3]})
    for used, alpha in ((vector, 1e-3), (few, -1e-4)):
        with steered(model, used, alpha) as step:
            whole, by_tensor = oracle(before, copies(model), used, alpha)
            assert figures_of(step) == pytest.approx(whole, rel=1e-9, abs=1e-13)
            assert step.by_tensor.keys() == by_tensor.keys()
            for name, found in step.by_tensor.items():
                assert figures_of(found) == pytest.approx(by_tensor[name], rel=1e-9, abs=1e-13)
            theta = math.sqrt(sum(float(weight.double().square().sum()) for weight in before.values()))
            assert step.relative_norm == pytest.approx(alpha * used.norm() / theta)


def test_measured_once_and_only_when_asked(monkeypatch):
    measured = []
    monkeypatch.setattr(applied, "_measure", lambda *given, real=applied._measure: measured.append(1) or real(*given))
    model = tiny_llama(dtype=torch.float32)
    with steered(model, direction(model), 0.1) as step:
        assert not measured
        first = figures_of(step), step.relative_norm, step.by_tensor
        assert measured == [1]
    assert (figures_of(step), step.relative_norm, step.by_tensor) == first, "known after the block"
    assert measured == [1]


@pytest.mark.parametrize("key", [*FRACTIONS, "relative_norm", "by_tensor"])
def test_asked_first_after_the_block(key):
    model = tiny_llama(dtype=torch.float32)
    with steered(model, direction(model), 0.1) as step:
        pass
    with pytest.raises(RuntimeError, match="not measured before its block ended"):
        getattr(step, key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_within_others_and_around_others(dtype):
    model, base = tiny_llama(dtype=dtype), tiny_llama(seed=5, dtype=torch.float32)
    own = copies(model)
    first, second = direction(model, 1), direction(model, 2)
    with steered(model, first, 1e-3) as outer:
        after_first = copies(model)
        with steered(model, second, -1e-3) as inner:
            start = {name: own[name].double() + 1e-3 * first[name].double() for name in own}
            whole, _ = oracle(after_first, copies(model), second, -1e-3, start)
            assert figures_of(inner) == pytest.approx(whole, rel=1e-6, abs=1e-9)
            # asked for the first time while another step is active: still that of the outer step alone
            whole, _ = oracle(own, after_first, first, 1e-3)
            assert figures_of(outer) == pytest.approx(whole, rel=1e-9, abs=1e-13)
    with steered(model, first, 1e-3), reweighted(model, copies(base)):
        based = copies(model)
        with steered(model, second, 1e-2) as inner:
            whole, _ = oracle(based, copies(model), second, 1e-2, copies(base))
            assert figures_of(inner) == pytest.approx(whole, rel=1e-6, abs=1e-9)


def test_zero_steps():
    model = tiny_llama(dtype=torch.float32)
    vector, before = direction(model), digest(model)
    name = next(iter(vector))
    still = SteeringVector({**vector, name: torch.zeros_like(vector[name])})
    infinite = SteeringVector({**vector, name: torch.full_like(vector[name], float("inf"))})
    for used, alpha in ((vector, 0.0), (vector * 0.0, 1.0), (infinite, 0.0), (SteeringVector({}), 1.0)):
        with steered(model, used, alpha) as step:
            assert digest(model) == before
            assert figures_of(step) == [None, None, None]
            assert step.relative_norm == 0
            assert step.by_tensor == dict.fromkeys(used, TensorStep(None, None, None))
    with steered(model, still, 0.1) as step:
        assert step.by_tensor[name] == TensorStep(None, None, None)
        assert step.retained_fraction == pytest.approx(1, abs=1e-4)
        entries = sum(tensor.numel() for tensor in vector.values())
        assert step.changed_fraction == pytest.approx(1 - vector[name].numel() / entries, abs=1e-3)


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_pieces_are_the_entries_in_row_major_order(size):
    tensor = torch.arange(24).view(2, 3, 4)
    strided = torch.arange(24).view(4, 3, 2).permute(2, 1, 0)
    for given in ((tensor, tensor * 2), (tensor, strided), (strided.contiguous(), strided)):
        found = list(pieces(*given, size=size))
        assert all(part.numel() <= size for parts in found for part in parts)
        for tensor_, *parts in zip(given, *found, strict=True):
            assert torch.equal(torch.cat([part.reshape(-1) for part in parts]), tensor_.reshape(-1))
    parts = next(iter(pieces(strided, size=size)))
    parts[0].fill_(-1)
    assert (strided == -1).any(), "views, to be written to"
