"""Responses of several steps as one pool: forecasts against exact rates, and what does not belong together."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_forecasting import MINUS, PLUS, SAYS_2, judged
from test_scoring import RESPONSES, direction_of, encoded, exact_log_probs, small_llama

from gradsteer.forecast.forecast_file import conditions_said
from gradsteer.forecast.forecaster import Forecaster
from gradsteer.forecast.judged_responses import ResponseSource
from gradsteer.forecast.pooled_responses import pooled
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.steering.sampled_step import SampledStep
from gradsteer.steering.weight_steering import steered

PROMPTS = [[a, b] for a in (1, 2) for b in range(1, 5)]
ALPHAS = (-0.1, 0.0, 0.05)


@functools.cache
def exact(alpha):
    """(prompts, responses) probabilities."""
    model = small_llama()
    with steered(model, direction_of(model), alpha):
        return np.array([np.exp(exact_log_probs(model, prompt)) for prompt in PROMPTS])


def part(alpha, number, prompts=range(8), path=None, **changes):
    """Responses drawn at a step from the exact distributions, to some of the prompts."""
    generator, probabilities = np.random.default_rng(round(1000 * alpha) % 997), exact(alpha)
    chosen = np.resize(np.array(list(prompts)), number)
    cumulative = probabilities.cumsum(axis=1) / probabilities.sum(axis=1, keepdims=True)
    drawn = (cumulative[chosen] < generator.random(number)[:, None]).sum(axis=1)
    step = SampledStep("d", alpha, (), "f") if alpha else None
    path = path or f"{alpha}.jsonl"
    plain = {
        "path": path, "sources": (ResponseSource(path, step, number),), "judge": "j",
        "prompt_texts": [f"prompt {p}" for p in chosen],
    }  # fmt: skip
    examples = [encoded(PROMPTS[p], RESPONSES[r]) for p, r in zip(chosen, drawn, strict=True)]
    return judged(examples, {"two": SAYS_2[drawn]}, np.unique(chosen, return_inverse=True)[1], **(plain | changes))


def forecaster_of(responses, model):
    """A forecaster whose responses are weighed from their sources, as a command does it."""
    scorer = ResponseScorer(model, responses.examples)
    forecaster, scores = Forecaster(responses, scorer, draws=200), {}
    for alpha in {source.alpha for source in responses.sources}:
        with steered(model, direction_of(model), alpha):
            scores[alpha] = scorer.log_probs()
    forecaster.pool(np.stack([scores[source.alpha] for source in responses.sources], axis=1))
    return forecaster


def test_the_divergence_from_a_pool_is_the_exact_one():
    model = small_llama()
    forecaster = forecaster_of(pooled([part(alpha, 1000) for alpha in ALPHAS]), model)
    assert forecaster.forecast(forecaster.anchor_scores).kl_per_token == pytest.approx(0, abs=1e-12)
    lengths = np.array([len(each) for each in RESPONSES])
    for alpha in (0.02, -0.1):
        with steered(model, direction_of(model), alpha):
            found = forecaster.forecast(forecaster.score()).kl_per_token
        p, q = exact(0.0), exact(alpha)
        assert found == pytest.approx((q * np.log(q / p)).sum() / (q * lengths).sum(), rel=0.25)


def share(probabilities):
    return probabilities[:, SAYS_2].sum() / probabilities.sum()


def test_the_pooled_forecast_is_the_exact_rate_on_and_off_the_anchor():
    model = small_llama()
    responses = pooled([part(alpha, 1000) for alpha in ALPHAS])
    forecaster = forecaster_of(responses, model)
    direction = forecaster.along(model, direction_of(model))
    for alpha in (-0.15, 0.0, 0.1):
        with steered(model, direction_of(model), alpha):
            scores = forecaster.score()
        found = forecaster.forecast(scores, direction=direction, alpha=alpha, plus=PLUS, minus=MINUS)
        rate, truth = found.rates["two"], share(exact(alpha))
        error = math.sqrt(truth * (1 - truth) / found.effective_sample_size)
        assert rate.rate == pytest.approx(truth, abs=4 * error)
        assert rate.ci_low <= truth <= rate.ci_high
        assert found.best_source["effective_sample_size"] < found.effective_sample_size <= 3000
        assert found.best_source["num_responses"] == 1000
    assert found.best_source["alpha"] == 0.05  # the source that is nearest to the last target
    assert found.best_source["responses"] == "0.05.jsonl"
    odds = [math.log(share(exact(alpha)) / (1 - share(exact(alpha)))) for alpha in (-1e-3, 0.0, 1e-3)]
    assert forecaster.anchor_rate("two") == pytest.approx(share(exact(0.0)), abs=0.03)
    assert found.log_odds_shift == pytest.approx(math.log(1 / (1 / share(exact(0.1)) - 1)) - odds[1], abs=0.25)
    slope, error = forecaster.slope(direction, PLUS, MINUS)
    assert -slope == pytest.approx((odds[2] - odds[0]) / 2e-3, abs=4 * error)
    assert direction.linear.rates(0.0)["two"] == pytest.approx(forecaster.anchor_rate("two"))
    at_anchor = forecaster.forecast(forecaster.anchor_scores, direction=direction)
    assert at_anchor.kl_per_token == 0
    lengths = np.array([len(each) for each in RESPONSES])
    divergence = (exact(0.1) * np.log(exact(0.1) / exact(0.0))).sum() / (exact(0.1) * lengths).sum()
    assert found.kl_per_token == pytest.approx(divergence, rel=0.2)


def test_one_step_alone_is_weighed_from_itself():
    """Sampled where the behavior is common, weighed back to the anchor."""
    model, responses = small_llama(), part(0.1, 2400)
    assert responses.is_steered
    found = forecaster_of(responses, model)
    at_anchor = found.forecast(found.anchor_scores)
    truth = share(exact(0.0))
    assert abs(truth - share(exact(0.1))) > 0.02
    assert at_anchor.rates["two"].rate == pytest.approx(truth, abs=0.03)
    assert at_anchor.best_source is None


def test_a_prompt_that_one_file_lacks_is_weighed_from_the_others():
    model = small_llama()
    parts = [part(0.0, 2400), part(-0.1, 800, prompts=[0, 1])]
    responses = pooled(parts)
    assert responses.num_prompts == 8
    np.testing.assert_array_equal(responses.prompts[:8], range(8))
    np.testing.assert_array_equal(responses.source_counts[[0, 2]], [[300, 400], [300, 0]])
    forecaster = forecaster_of(responses, model)
    counts = np.bincount(responses.prompts)
    truth = np.average(exact(0.0)[:, SAYS_2].sum(axis=1), weights=counts)
    found = forecaster.forecast(forecaster.anchor_scores).rates["two"].rate
    assert found == pytest.approx(truth, abs=0.035)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": None}, r"'other' does not say which weights .* accepted: the anchor's responses, and those"),
        ({"fingerprint": "g"}, r"'other' is of anchor 'g', '0.0.jsonl' of 'f'"),
        ({"temperature": 0.6}, r"'other' is of temperature 0.6, '0.0.jsonl' of 1.0"),
        ({"judge": "k"}, r"'other' is of judge 'k'"),
        ({"verdicts": {"three": np.zeros(8)}}, r"'other' has verdicts on three, '0.0.jsonl' on two"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pooled([part(0.0, 8), replace(part(-0.3, 8, path="other"), **changes)])


def test_several_vectors_and_nuclei_are_refused():
    other = replace(part(0.15, 8), sources=(ResponseSource("o", SampledStep("e", 0.15, (), "f"), 8),), path="o")
    with pytest.raises(
        ValueError, match=r"'o' was sampled along another vector, or with other transforms or rounding, than '-0.3"
    ):
        pooled([part(0.0, 8), part(-0.3, 8), other])
    with pytest.raises(ValueError, match=r"top_p 0.9: .*pooled at top_p 1 only"):
        pooled([part(alpha, 8, top_p=0.9) for alpha in (0.0, -0.3)])


@pytest.mark.parametrize(
    "value", [{"vector": "d"}, "d", {"vector": "d", "alpha": "1", "transforms": [], "anchor": "f"}]
)
def test_a_step_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"file:3: step is .*accepted: \{vector: DIGEST, alpha: NUMBER"):
        SampledStep.read("file:3", value)


@pytest.mark.parametrize("rounding", [5, "up", "stochastic", "stochastic x"])
def test_a_rounding_that_is_none_is_refused(rounding):
    value = SampledStep("d", -0.24, (), "f").to_dict() | {"rounding": rounding}
    with pytest.raises(ValueError, match=r"^file:3: rounding of a step is .*; accepted: nearest, stochastic and its"):
        SampledStep.read("file:3", value)


@pytest.mark.parametrize("rounding", [None, "nearest", "stochastic 12"])
def test_a_step_comes_back_from_its_row(rounding):
    step = SampledStep("d", -0.24, ("norm_matched", {"low_rank": {"rank": 2}}), "f", rounding)
    again = SampledStep.read("x", json.loads(json.dumps(step.to_dict())))
    assert again == step
    assert again.is_along(replace(step, alpha=1.0))
    assert not again.is_along(replace(step, transforms=()))


def test_the_conditions_that_responses_are_of_are_named_as_they_are():
    assert conditions_said([None]) == "the anchor"
    assert conditions_said([-0.24]) == "the step -0.24 along its vector"
    assert conditions_said([None, 0.4]) == "the anchor and of the step +0.4 along its vector"
