"""Perplexity and divergence from the anchor on some text, against float64 by hand."""

import math

import pytest
import torch
from tiny_models import ragged_examples, tiny_llama
from torchmetrics.text import Perplexity

from gradsteer.data.chat import EncodedExample
from gradsteer.evaluation.text_divergence import TextDivergence


def by_hand(model, anchor, examples, every=1):
    losses, divergences = [], []
    with torch.no_grad():
        for example in sorted(examples, key=lambda each: -len(each.input_ids)):
            ids, labels = torch.tensor([example.input_ids]), torch.tensor(example.labels)
            ours, theirs = (m(input_ids=ids).logits[0].double().log_softmax(-1) for m in (model, anchor))
            for position in range(1, ids.shape[1]):
                if labels[position] != -100:
                    losses.append(-ours[position - 1, labels[position]])
                    divergences.append(float((ours.exp() * (ours - theirs))[position - 1].sum()))
    chosen = divergences[::every]
    return math.exp(sum(losses) / len(losses)), sum(chosen) / len(chosen), len(divergences)


def test_perplexity_is_that_of_torchmetrics():
    model, examples = tiny_llama(seed=3), ragged_examples(7)
    metric = Perplexity(ignore_index=-100).set_dtype(torch.float64)
    with torch.no_grad():
        for example in examples:
            logits = model(input_ids=torch.tensor([example.input_ids])).logits
            metric.update(logits[:, :-1], torch.tensor([example.labels])[:, 1:])
    assert TextDivergence(examples, 0).measure(model)["perplexity"] == pytest.approx(float(metric.compute()), rel=1e-9)


def test_perplexity_and_divergence_are_those_of_plain_float64():
    examples, anchor, other = ragged_examples(37), tiny_llama(), tiny_llama(seed=1)
    text = TextDivergence(examples, 0)
    assert text.measure(other)["kl_to_anchor"] is None  # nothing to compare with yet
    text.remember(anchor)
    perplexity, divergence, _ = by_hand(other, anchor, examples)
    found = text.measure(other)
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-9)
    assert found["kl_to_anchor"] == pytest.approx(divergence, rel=1e-9)
    assert text.measure(anchor)["kl_to_anchor"] == pytest.approx(0.0, abs=1e-6)


def test_the_direction_is_from_the_weights_to_the_anchor():
    examples, anchor, other = ragged_examples(5), tiny_llama(), tiny_llama(seed=1)
    for model in (anchor, other):
        with torch.no_grad():
            model.lm_head.weight.mul_(20)  # far apart: the two directions differ
    text = TextDivergence(examples, 0)
    text.remember(anchor)
    forward, backward = by_hand(other, anchor, examples)[1], by_hand(anchor, other, examples)[1]
    assert abs(forward / backward - 1) > 0.01
    assert text.measure(other)["kl_to_anchor"] == pytest.approx(forward, rel=1e-5)


def test_of_much_text_evenly_spaced_tokens_are_kept():
    examples, anchor, other = ragged_examples(37), tiny_llama(), tiny_llama(seed=1)
    whole, part = TextDivergence(examples, 0), TextDivergence(examples, 0, max_entries=61 * 40)
    for text in (whole, part):
        text.remember(anchor)
    _, divergence, number = by_hand(other, anchor, examples, every=math.ceil(by_hand(other, anchor, examples)[2] / 40))
    assert number > 80
    assert part.measure(other)["kl_to_anchor"] == pytest.approx(divergence, rel=1e-5)
    assert part.measure(other)["perplexity"] == whole.measure(other)["perplexity"]  # takes all tokens


def test_a_token_too_unlikely_for_a_probability_leaves_a_perplexity():
    """The reason not to take torchmetrics' in float32, which takes the logarithm of a probability."""
    model = tiny_llama(dtype=torch.float32)
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([[3]])).last_hidden_state[0, -1]
        model.lm_head.weight[5] -= 200 * hidden / hidden.square().sum()
        logits = model(input_ids=torch.tensor([[3]])).logits
    expected = -logits[0, -1].double().log_softmax(-1)[5]
    assert 150 < expected < 250
    metric = Perplexity(ignore_index=-100)
    metric.update(logits, torch.tensor([[5]]))
    assert metric.compute() == math.inf
    found = TextDivergence([EncodedExample([3, 5], [-100, 5])], 0).measure(model)["perplexity"]
    assert math.log(found) == pytest.approx(float(expected), rel=1e-5)


def test_values_that_are_not_finite_are_none():
    example = EncodedExample([3, 4, 5], [-100, 4, 5])
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
        worst = int(model(input_ids=torch.tensor([[3]])).logits[0, -1].argmin())
    text = TextDivergence([EncodedExample([3, worst], [-100, worst]), example], 0)
    assert text.measure(model)["perplexity"] is None


def test_a_half_precisions_anchor_does_not_diverge_from_itself():
    text, anchor = TextDivergence(ragged_examples(9), 0), tiny_llama(dtype=torch.bfloat16)
    text.remember(anchor)
    assert text.measure(anchor)["kl_to_anchor"] < 1e-7
    assert float(text.divergences(anchor).abs().max()) < 1e-6


def test_what_a_divergence_is_not_taken_on():
    with pytest.raises(ValueError, match="there is no text to take a divergence on"):
        TextDivergence([], 0)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"the temperature is {temperature}; accepted: more than 0"):
            TextDivergence(ragged_examples(1), 0, temperature=temperature)
