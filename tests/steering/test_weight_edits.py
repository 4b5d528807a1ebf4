import signal
from contextlib import nullcontext, suppress

import pytest
import torch
from conftest import rest_slow
from test_memory import peak_of_allocations
from test_steering import digest, direction, raw_bytes
from tiny_models import tiny_llama

from gradsteer.models import fingerprints
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.steering import weight_edits as edits
from gradsteer.steering.step_measurement import PIECE
from gradsteer.steering.weight_steering import holding, reweighted, steered
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.weight_diff import named_weights


def test_contexts_left_in_another_order():
    model = tiny_llama(dtype=torch.float32)
    before, first, second = digest(model), direction(model, 1), direction(model, 2)
    with steered(model, second, 0.2):
        alone = digest(model)
    outer, inner = steered(model, first, 0.1), steered(model, second, 0.2)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert digest(model) == alone, "only the inner one is left"
    inner.__exit__(None, None, None)
    assert digest(model) == before


# --- interrupts ------------------------------------------------------------------------------------------------------


_SLOW = pytest.mark.slow


class Interrupting:
    """A function that is interrupted at one of its calls, before or after doing its work."""

    def __init__(self, function, at, after):
        self.function, self.at, self.after, self.calls = function, at, after, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.at and not self.after:
            raise KeyboardInterrupt
        result = self.function(*args, **options)
        if self.calls == self.at:
            raise KeyboardInterrupt
        return result


STEPS = [
    "_opened", "_keep", "_recompute", "_write", "settle", "weight_versions", "model_fingerprint", "_leave",
    "_put_back", "restored", "_forget", "_let_go",
]  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_an_interrupt_at_any_step_puts_the_weights_back(monkeypatch, name, after):
    interrupt(monkeypatch, name, held=True, at=1, after=after)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_interrupts_anywhere(monkeypatch, name, held, at, after):
    interrupt(monkeypatch, name, held, at, after)


def interrupt(monkeypatch, name, held, at, after):
    model = tiny_llama(dtype=torch.float32)
    fingerprint, originals = model_fingerprint(model), raw_bytes(model)
    first, second = direction(model, 1, model_fingerprint=fingerprint), direction(model, 2)
    monkeypatch.setattr(edits, name, Interrupting(getattr(edits, name), at, after))

    def work():
        with holding(model) if held else nullcontext(), steered(model, first, 0.1), steered(model, second, 0.1):
            pass

    with suppress(KeyboardInterrupt):
        work()
    assert model not in edits._ACTIVE
    assert all(torch.equal(a, b) for a, b in zip(raw_bytes(model), originals, strict=True))
    monkeypatch.undo()
    assert model_fingerprint(model) == digest(model) == fingerprint
    with torch.no_grad():
        model.model.norm.weight += 1  # a note of an earlier state would be found out here
    with steered(model, second, 0.1):
        assert digest(model) != fingerprint
    assert model_fingerprint(model) == digest(model) != fingerprint


def test_two_signals_of_ctrl_c(monkeypatch):
    """The second one while the weights are put back."""
    model = tiny_llama(dtype=torch.float32)
    before, seen = digest(model), []

    def put_back(*given, real=edits._put_back):
        real(*given) if seen else (seen.append(1), signal.raise_signal(signal.SIGINT))

    monkeypatch.setattr(edits, "_put_back", put_back)
    with pytest.raises(KeyboardInterrupt), steered(model, direction(model), 0.1):
        signal.raise_signal(signal.SIGINT)
    assert seen
    assert digest(model) == before
    assert model not in edits._ACTIVE


def test_an_interrupt_between_steps_of_a_nest_leaves_the_outer_one(monkeypatch):
    model = tiny_llama(dtype=torch.float32)
    before, vector = digest(model), direction(model)
    with steered(model, vector, 0.1):
        alone = digest(model)
        for name in ("_keep", "_recompute"):
            monkeypatch.setattr(edits, name, Interrupting(getattr(edits, name), 1, after=True))
            with pytest.raises(KeyboardInterrupt):
                steered(model, direction(model, 2), 0.1).__enter__()
            monkeypatch.undo()
            assert digest(model) == alone
    assert digest(model) == before


def test_a_lost_parameter_is_told_after_the_others_were_restored():
    model = tiny_llama(dtype=torch.float32, tied=False)
    before = {name: weight.clone() for name, weight in named_weights(model).items()}
    with (
        pytest.raises(RuntimeError, match="lost its parameter 'lm_head.weight'"),
        steered(model, direction(model), 0.1),
    ):
        del model.lm_head.weight
    assert model not in edits._ACTIVE
    now = named_weights(model)
    assert before.keys() - now.keys() == {"lm_head.weight"}
    assert all(torch.equal(weight, before[name]) for name, weight in now.items())


# --- holding ---------------------------------------------------------------------------------------------------------


def pointers(model):
    held = edits._ACTIVE[model].originals
    return {name: original.data_ptr() for name, original in held.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_copy_moves_from_condition_to_condition(dtype):
    model, base = tiny_llama(dtype=dtype), tiny_llama(seed=5, dtype=torch.float32)
    before, vectors = digest(model), [direction(model, seed) for seed in (1, 2)]
    few = SteeringVector({name: vectors[0][name] for name in list(vectors[0])[:2]})
    expected = []
    for vector in (*vectors, few):
        with steered(model, vector, 0.1):
            expected.append(digest(model))
    with holding(model):
        first = pointers(model)
        assert len(first) == len(list(model.parameters()))
        for vector, weights in zip((*vectors, few), expected, strict=True):
            with steered(model, vector, 0.1):
                assert digest(model) == weights
                with steered(model, vectors[0], -0.3):
                    assert pointers(model) == first
                assert digest(model) == weights
            assert digest(model) == model_fingerprint(model) == before
            assert pointers(model) == first
        with reweighted(model, dict(base.named_parameters())), holding(model):
            assert pointers(model) == first
        assert digest(model) == before
    assert digest(model) == before
    assert model not in edits._ACTIVE


def test_holding_some_and_holding_within_a_step():
    model = tiny_llama(dtype=torch.float32)
    before, vector = digest(model), direction(model)
    names = [name for name, _ in model.named_parameters()]
    with holding(model, names[:3]):
        assert set(pointers(model)) == set(names[:3])
        with steered(model, vector, 0.1):
            assert set(pointers(model)) == set(names)
        assert set(pointers(model)) == set(names[:3]), "what nobody holds is let go"
        with holding(model, names[2:5]):
            assert set(pointers(model)) == set(names[:5])
        assert set(pointers(model)) == set(names[:3])
    with steered(model, SteeringVector({names[0]: vector[names[0]]}), 0.1):
        with holding(model), steered(model, vector, 0.1):
            pass
        assert edits.is_edited(model)
    assert digest(model) == before
    assert model not in edits._ACTIVE
    with pytest.raises(ValueError, match="names holds 'nothing'; accepted: names of LlamaForCausalLM's parameters"):
        holding(model, ["nothing"]).__enter__()


def test_each_edit_within_holding_is_an_outermost_one(llama):
    foreign = direction(llama, model_fingerprint="0" * 32)
    with holding(llama):
        for _ in range(2):
            with pytest.raises(ValueError, match=f"the model at hand has {model_fingerprint(llama)}"):
                steered(llama, foreign, 0.1).__enter__()
            with steered(llama, direction(llama, model_fingerprint=model_fingerprint(llama)), 0.1):
                pass


def test_weights_that_are_held_are_not_to_be_written_to(llama):
    vector = direction(llama)
    few = SteeringVector({"model.norm.weight": vector["model.norm.weight"]})
    with holding(llama):
        with steered(llama, few, 0.1), torch.no_grad():
            llama.model.embed_tokens.weight[0] += 1  # not covered by the step, and so not put back
        changed = digest(llama)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="'model.embed_tokens.weight' was written to within holding"):
                steered(llama, vector, 0.1).__enter__()
    assert digest(llama) == changed
    with steered(llama, vector, 0.1):
        pass
    assert digest(llama) == changed == model_fingerprint(llama)


def test_the_weights_are_digested_once(llama, monkeypatch):
    digests = []
    real = fingerprints.weights_digest
    monkeypatch.setattr(fingerprints, "weights_digest", lambda weights: digests.append(1) or real(weights))
    vector = direction(llama, model_fingerprint=model_fingerprint(llama))
    for _ in range(3):
        with steered(llama, vector, 0.1):
            pass
        with holding(llama), steered(llama, vector, 0.1), steered(llama, vector, 0.1):
            pass
    assert digests == [1]


# --- memory ----------------------------------------------------------------------------------------------------------


class Wide(torch.nn.Module):
    def __init__(self, dtype, tensors=4, numel=3_000_000):
        super().__init__()
        for index in range(tensors):
            self.register_parameter(f"w{index}", torch.nn.Parameter(torch.ones(numel).to(dtype)))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", rest_slow([torch.bfloat16, torch.float32]))
def test_one_copy_of_what_the_vector_covers_and_no_more(dtype, rounding, tmp_path):
    if dtype == torch.float32 and rounding == "stochastic":
        pytest.skip("not for float32")
    model = Wide(dtype)
    vector = SteeringVector({name: torch.ones(p.shape) for name, p in list(model.named_parameters())[:2]})
    covered = 2 * 3_000_000 * dtype.itemsize
    model_fingerprint(model)  # digesting takes memory of its own, before anything is kept

    def cold():
        with steered(model, vector, 0.1, rounding=rounding) as step:
            step.retained_fraction  # noqa: B018

    def conditions():
        for _ in range(3):
            cold()

    working = 12 * 8 * PIECE  # some pieces in float64 at most
    assert working < 3_000_000 * 8 * 5
    assert covered <= peak_of_allocations(cold, tmp_path / "cold.json") <= covered + working
    with holding(model, list(vector)):
        assert peak_of_allocations(conditions, tmp_path / "held.json") <= working
    if rounding == "nearest" and dtype == torch.float32:

        def unmeasured():
            with steered(model, vector, 0.1):
                pass

        assert peak_of_allocations(unmeasured, tmp_path / "unmeasured.json") == covered
