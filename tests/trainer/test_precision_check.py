"""Which steps in half precision are compared with float32, on which text, and what is refused; no command is run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import ragged_examples, tiny_llama

from gradsteer.forecast.step_precision import first_tokens, float32_twin
from gradsteer.generation.decoding import SamplingConfig
from gradsteer.steering.condition_plan import Controls, plan_conditions
from gradsteer.steering.condition_weights import ConditionWeights
from gradsteer.steering.doses import DoseOptions
from gradsteer.trainer import precision_check
from gradsteer.trainer.precision_check import check_precision
from gradsteer.trainer.step_checks import check_steps
from gradsteer.vectors.controls import random_like
from gradsteer.vectors.parameter_vectors import SteeringVector

HELDOUT = ragged_examples(40)


def world(alphas=(0.3, 0.4), *, seed=0, **session):
    """A tiny model in bfloat16 a random direction of its weights' size, a plan, and what the Trainer holds."""
    model = tiny_llama(dtype=torch.bfloat16, initializer_range=0.3)
    vector = random_like(SteeringVector({n: p.detach().float() for n, p in model.named_parameters()}), seed=seed)
    weights = ConditionWeights(model, {"a": vector})
    doses = DoseOptions(list(alphas), None, None, None, None, "mean", False, 0).plan(["a"])
    plan = plan_conditions(
        {"a": None}, doses, [[]], Controls(1, 0, 0, None, 0, both_signs=False), has_base=False, on_base=False
    )
    module = SimpleNamespace(
        model=model, tokenizer=SimpleNamespace(pad_token_id=0), dtype_name="bfloat16",
        sampling=SamplingConfig(max_new_tokens=8, temperature=0.7), longest_prompt=None,
        loading=SimpleNamespace(base_loading=None),
    )  # fmt: skip
    held = {"forecasting": None, "judging": SimpleNamespace(heldout_examples=HELDOUT), **session}
    trainer = SimpleNamespace(is_global_zero=True, progress_bar_callback=None)
    return model, plan, weights, module, trainer, SimpleNamespace(**held)


def checked(monkeypatch, alphas=(0.3, 0.4), *, allow=False, **session):
    model, plan, weights, module, trainer, held = world(alphas, **session)
    monkeypatch.setattr(precision_check, "session_of", lambda _: held)
    taken = check_steps(plan, weights, half=True, min_retained=0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = check_precision(trainer, module, taken, weights, allow=allow)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    return rows


def test_the_largest_and_the_smallest_step_of_the_vectors_are_compared(monkeypatch):
    rows = checked(monkeypatch, (0.4, 0.3, 0.35))
    assert [row["condition"] for row in rows] == ["a alpha=+0.4", "a alpha=+0.3"]  # not the random direction
    for row in rows:
        assert row["text"] == "examples of evaluation.heldout"
        assert row["num_responses"] == 32
        assert 0.95 <= row["slope"] <= 1.05
        assert row["retained_fraction"] == pytest.approx(1, abs=0.01)
    assert abs(rows[0]["relative_norm"]) > abs(rows[1]["relative_norm"])


@torch.no_grad()
def scores_by_hand(model, examples):
    found = []
    for example in examples:
        steps = (model(input_ids=torch.tensor([example.input_ids])).logits[0].float() / 0.7).log_softmax(-1)
        found += [float(steps[t - 1, label]) for t, label in enumerate(example.labels) if t and label != -100]
    return np.array(found)


def test_the_slope_is_that_of_weights_moved_by_hand(monkeypatch):
    [row] = checked(monkeypatch, (0.3,))
    model, _, weights, *_ = world()
    examples = first_tokens([HELDOUT[index * 40 // 32] for index in range(32)], 64)
    changes = []
    for each in (model, float32_twin(model)):
        before = scores_by_hand(each, examples)
        for name, parameter in each.named_parameters():
            parameter.data = (parameter.float() + 0.3 * weights.vectors["a"][name]).to(parameter.dtype)
        changes.append(scores_by_hand(each, examples) - before)
    own, exact = changes
    assert row["slope"] == pytest.approx(float(own @ exact / (exact @ exact)), abs=0.01)
    assert row["num_tokens"] == len(own)


@pytest.mark.filterwarnings("ignore:condition .* the weights take")
def test_a_step_that_the_model_does_not_follow_is_refused_or_warned_of(monkeypatch):
    said = r"condition 'a alpha=\+0.0001' in bfloat16: log p a token changes by .* on examples of evaluation.heldout"
    with pytest.raises(ValueError, match=said + r".*Give --model.dtype float32"):
        checked(monkeypatch, (0.3, 1e-4))
    with pytest.warns(UserWarning, match=said):
        rows = checked(monkeypatch, (0.3, 1e-4), allow=True)
    assert len(rows) == 2


def test_the_forecasts_responses_come_first_and_own_replies_last(monkeypatch):
    responses = SimpleNamespace(examples=ragged_examples(5))
    forecasting = SimpleNamespace(responses=responses, file="r.jsonl", sampling=lambda module: (0.6, 1.0))
    [row] = checked(monkeypatch, (0.4,), forecasting=forecasting)
    assert (row["text"], row["num_responses"]) == ("responses of r.jsonl", 5)

    rows = [
        {
            "prompt_token_ids": [1, 5 + number],
            "draw": sample,
            "seed": 0,
            "sample": sample,
            "position": 2 * number + sample,
        }
        for number in range(3)
        for sample in range(2)
    ]
    monkeypatch.setattr(precision_check, "sampled_rows", lambda _: rows)
    drawn = []
    monkeypatch.setattr(precision_check, "stop_token_ids", lambda model, tokenizer: [])
    monkeypatch.setattr(precision_check, "num_known_ids", lambda tokenizer: 61)
    sample = precision_check.sample_batch
    monkeypatch.setattr(precision_check, "sample_batch", lambda *a, **k: drawn.extend(a[1]) or sample(*a, **k))
    [row] = checked(monkeypatch, (0.4,), judging=SimpleNamespace(heldout_examples=[]))
    assert (row["text"], row["num_responses"], row["num_tokens"]) == ("the anchor's first replies", 6, 48)
    assert [draw.prompt_token_ids[1] for draw in drawn] == [5, 6, 7, 5, 6, 7]  # every prompt once, then again


def test_split_weights_are_not_compared_and_it_is_said(monkeypatch):
    monkeypatch.setattr(precision_check, "is_split_model", lambda model: True)
    with pytest.warns(UserWarning, match="the weights are split over processes"):
        assert checked(monkeypatch) == []
