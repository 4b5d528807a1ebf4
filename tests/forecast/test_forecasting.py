"""Forecasts from judged responses, and the responses themselves: exact rates, closed forms and refusals."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from road import write_lines
from test_attribution_module import response
from test_scoring import (
    RESPONSES,
    STOP,
    autograd_derivatives,
    direction_of,
    encoded,
    exact_log_probs,
    small_llama,
)
from tokenizers_zoo import chatml_tokenizer
from torch import nn

from gradsteer.data.chat import EncodedExample, encode_prompt
from gradsteer.evaluation.importance_sampling import LinearForm
from gradsteer.forecast.forecaster import Direction, Forecaster
from gradsteer.forecast.judged_responses import JudgedResponses, behind_system_prompt, read_judged_responses
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector

SAYS_2 = np.array([2 in each for each in RESPONSES])
SAYS_4 = np.array([4 in each for each in RESPONSES])
PLUS, MINUS = {"two": True}, {"two": False}


def judged(examples, verdicts, prompts, **changes) -> JudgedResponses:
    """Judged responses as `read_judged_responses` gives them."""
    number = len(examples)
    lengths = np.array([example.num_target_tokens for example in examples], dtype=float)
    traits = {"mean_length": lengths, **{key: np.zeros(number) for key in ("unfinished", "repetition", "refusal")}}
    values = {
        "path": "responses.jsonl", "examples": list(examples), "traits": traits, "prompts": np.asarray(prompts),
        "verdicts": {name: np.asarray(each, dtype=float) for name, each in verdicts.items()}, "temperature": 1.0,
        "top_p": 1.0, "top_k": None, "max_new_tokens": None, "fingerprint": "f", "prompt_digests": frozenset(),
        "prompt_texts": ["p"] * number,
    }  # fmt: skip
    return JudgedResponses(**{**values, **changes})


def sampled_world(number, *, temperature=1.0, seed=0):
    """Responses drawn from a tiny model's exact distributions, over eight prompts, and the prompt and reply of each."""
    model, prompts = small_llama(), [[a, b] for a in (1, 2) for b in range(1, 5)]
    exact = np.array([np.exp(exact_log_probs(model, prompt, temperature)) for prompt in prompts])
    generator = np.random.default_rng(seed)
    chosen = np.arange(number) % len(prompts)
    cumulative = exact.cumsum(axis=1) / exact.sum(axis=1, keepdims=True)
    drawn = (cumulative[chosen] < generator.random(number)[:, None]).sum(axis=1)
    examples = [encoded(prompts[p], RESPONSES[r]) for p, r in zip(chosen, drawn, strict=True)]
    verdicts = {"two": SAYS_2[drawn], "four": SAYS_4[drawn]}
    return model, prompts, judged(examples, verdicts, chosen, temperature=temperature)


# --- the forecast of a real model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "alpha"), [(1.0, -0.1), (0.6, 0.05), pytest.param(1.0, 0.1, marks=pytest.mark.slow)]
)
def test_the_forecast_is_the_exact_rate_under_steered_weights(temperature, alpha):
    model, prompts, responses = sampled_world(4000, temperature=temperature)
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples, temperature=temperature))
    vector = direction_of(model)
    direction = forecaster.along(model, vector)
    assert forecaster.num_passes >= 3
    passes = forecaster.num_passes
    with steered(model, vector, alpha):
        found = forecaster.forecast(forecaster.score(), direction=direction, alpha=alpha, plus=PLUS, minus=MINUS)
        after = [np.exp(exact_log_probs(model, prompt, temperature)) for prompt in prompts]
    before = [np.exp(exact_log_probs(model, prompt, temperature)) for prompt in prompts]
    assert forecaster.num_passes == passes + 1
    assert found.method == "importance"
    assert found.reliable
    for name, shows in (("two", SAYS_2), ("four", SAYS_4)):
        truth = np.mean([each[shows].sum() for each in after])
        rate = found.rates[name]
        assert rate.ci_low <= truth <= rate.ci_high
        assert abs(rate.rate - truth) < 4 * math.sqrt(truth * (1 - truth) / found.effective_sample_size)
        assert rate.rate == rate.importance
        assert (rate.num_scored, rate.num_unscored) == (4000, 0)
    truth = _shift(np.mean(after, axis=0)) - _shift(np.mean(before, axis=0))
    assert abs(truth) > 0.1 or alpha < 0
    assert found.log_odds_shift == pytest.approx(truth, abs=4 / math.sqrt(0.15 * found.effective_sample_size))
    assert found.linear_log_odds_shift == -alpha * forecaster.slope(direction, PLUS, MINUS)[0]
    divergences = [(q * np.log(q / p)).sum() for p, q in zip(before, after, strict=True)]
    lengths = np.array([len(each) for each in RESPONSES])
    length = np.mean([(q * lengths).sum() for q in after])
    assert found.traits["mean_length"] == pytest.approx(length, abs=0.1)
    assert found.kl_per_token == pytest.approx(np.mean(divergences) / length, rel=0.35)
    said = found.to_dict()
    assert said["rates"]["two"]["rate"] == found.rates["two"].rate
    assert said["mean_length"] == found.traits["mean_length"]


def _shift(probabilities):
    return math.log(probabilities[SAYS_2].sum() / probabilities[~SAYS_2].sum())


def test_at_its_own_weights_nothing_is_changed():
    model, _, responses = sampled_world(300)
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples))
    found = forecaster.forecast(forecaster.score(), plus=PLUS, minus=MINUS)
    assert found.effective_sample_size == pytest.approx(300)
    assert found.rates["two"].rate == pytest.approx(responses.verdicts["two"].mean())
    assert found.log_odds_shift == pytest.approx(0, abs=1e-9)
    assert found.kl_per_token == pytest.approx(0, abs=1e-9)
    assert found.linear_log_odds_shift is None
    assert found.rates["two"].linear is None


@pytest.mark.slow
def test_intervals_of_forecasts_cover():
    """Many samples from exact distributions; the responses' scores are the exact ones."""
    model, prompts = small_llama(), [[a, b] for a in range(1, 5) for b in range(1, 5)]
    before = np.array([exact_log_probs(model, prompt) for prompt in prompts])
    with steered(model, direction_of(model), 0.1):
        after = np.array([exact_log_probs(model, prompt) for prompt in prompts])
    truth = np.exp(after)[:, SAYS_2].sum(axis=1).mean()
    generator, covered = np.random.default_rng(5), []
    cumulative = np.exp(before).cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    numbers = np.repeat(np.arange(40), 10)
    example = EncodedExample([1, 2], [-100, 2])
    for _ in range(300):
        chosen = np.repeat(generator.integers(len(prompts), size=40), 10)
        drawn = (cumulative[chosen] < generator.random(400)[:, None]).sum(axis=1)
        responses = judged([example] * 400, {"two": SAYS_2[drawn]}, numbers)
        scores = before[chosen, drawn]
        scorer = SimpleNamespace(log_probs=lambda scores=scores, **_: scores)
        forecast = Forecaster(responses, scorer, draws=200).forecast(after[chosen, drawn])
        rate = forecast.rates["two"]
        assert np.isfinite([rate.rate, rate.ci_low, rate.ci_high, forecast.kl_per_token]).all()
        covered.append(rate.ci_low <= truth <= rate.ci_high)
    assert np.mean(covered) >= 0.92


def test_class_means_of_derivatives_are_autograds():
    model, _, responses = sampled_world(60)
    vector = direction_of(model)
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples))
    direction = forecaster.along(model, vector)
    exact = autograd_derivatives(model, vector, responses.examples)
    for shows in (responses.verdicts["two"] == 1, responses.verdicts["two"] == 0):
        assert direction.derivatives[shows].mean() == pytest.approx(exact[shows].mean(), rel=5e-3)
    assert direction.linear.classes.max() + 1 == len(
        set(zip(*(each.tolist() for each in responses.verdicts.values()), strict=True))
    )


def test_a_truncated_distribution_is_forecast_over_its_nuclei():
    """Responses of p truncated at 0.8: their weights are ratios of truncated probabilities."""
    model, prompt = small_llama(), [1]
    before = np.exp(exact_log_probs(model, prompt, 1.0, 0.8))
    drawn = np.random.default_rng(0).choice(len(before), size=3000, p=before / before.sum())
    responses = judged([encoded(prompt, RESPONSES[r]) for r in drawn], {"two": SAYS_2[drawn]}, drawn * 0, top_p=0.8)
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples, top_p=0.8))
    vector = direction_of(model)
    assert np.isfinite(forecaster.along(model, vector).derivatives).all()
    with steered(model, vector, 0.05):
        found = forecaster.forecast(forecaster.score())
        after = np.exp(exact_log_probs(model, prompt, 1.0, 0.8))
    seen = after * (before > 0)  # what neither would say is never seen
    assert found.rates["two"].rate == pytest.approx(seen[SAYS_2].sum() / seen.sum(), abs=0.04)


# --- a model whose log-odds are linear in its weights ----------------------------------------------------------------


class Bigram(nn.Module):
    """The logits of the next token are a row of a table: log-odds of two tokens are linear in the weights."""

    def __init__(self, num_tokens: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(num_tokens, num_tokens, bias=False, dtype=torch.float64)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        del attention_mask, use_cache
        return SimpleNamespace(logits=self.head(nn.functional.one_hot(input_ids, 6).double()))


def bigram_world(temperature):
    """Replies of one token, each as often as the model says it (to a twelve-hundredth): 0 is PLUS, 1 MINUS."""
    model = Bigram()
    shares = (model.head.weight[:, 3] / temperature).softmax(0).detach().numpy()
    tokens = np.repeat(np.arange(6), np.round(1200 * shares).astype(int))
    examples = [EncodedExample([3, int(token)], [-100, int(token)]) for token in tokens]
    responses = judged(
        examples, {"zero": tokens == 0, "one": tokens == 1}, np.arange(len(tokens)) % 40, temperature=temperature
    )
    generator = torch.Generator().manual_seed(1)
    vector = SteeringVector({"head.weight": torch.randn(6, 6, generator=generator, dtype=torch.float64)})
    scorer = ResponseScorer(model, examples, temperature=temperature)
    assert not scorer.layout.packs
    return model, vector, tokens, Forecaster(responses, scorer)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_slope_of_a_linear_softmax_is_exact(temperature):
    model, vector, tokens, forecaster = bigram_world(temperature)
    plus, minus = {"zero": True}, {"one": True, "zero": False}
    column = vector["head.weight"][:, 3].numpy() / temperature
    direction = forecaster.along(model, vector)
    slope, error = forecaster.slope(direction, plus, minus)
    assert slope == pytest.approx(-(column[0] - column[1]), rel=1e-9)
    assert error < 1e-9  # every response of a class is the same
    shares = (model.head.weight[:, 3] / temperature).softmax(0).detach().numpy()
    np.testing.assert_allclose(direction.derivatives, shares @ column - column[tokens], atol=1e-3)
    for alpha in (0.3, -0.8):
        with steered(model, vector, alpha):
            forecast = forecaster.forecast(forecaster.score(), direction=direction, alpha=alpha, plus=plus, minus=minus)
            steered_shares = (model.head.weight[:, 3] / temperature).softmax(0).detach().numpy()
        assert forecast.log_odds_shift == pytest.approx(alpha * (column[0] - column[1]), rel=1e-9)
        assert forecast.linear_log_odds_shift == pytest.approx(alpha * (column[0] - column[1]), rel=1e-9)
        assert forecast.rates["zero"].rate == pytest.approx(steered_shares[0], abs=2e-3)


# --- which form is taken ---------------------------------------------------------------------------------------------


def numbers_world(min_sample_size=200.0, number=400):
    """Scores by numbers alone: response r has derivative d_r, and log p(r) = -alpha d_r."""
    generator = np.random.default_rng(0)
    verdicts = generator.random(number) < 0.4
    derivatives = np.where(verdicts, 1.0, -0.5) + 0.5 * generator.normal(size=number)
    responses = judged([EncodedExample([1, 2], [-100, 2])] * number, {"two": verdicts}, np.arange(number) // 8)
    scorer = SimpleNamespace(log_probs=lambda **_: np.zeros(number))
    forecaster = Forecaster(responses, scorer, draws=200, min_sample_size=min_sample_size)
    return forecaster, Direction(derivatives, LinearForm.of(derivatives, responses.verdicts))


def test_the_linear_form_stands_in_where_the_sample_is_too_small():
    forecaster, direction = numbers_world()
    for alpha, reliable in ((0.3, True), (-1.4, False)):
        found = forecaster.forecast(-alpha * direction.derivatives, direction=direction, alpha=alpha)
        rate = found.rates["two"]
        assert found.reliable == reliable
        assert found.reliable == (found.effective_sample_size >= 200)
        assert found.method == ("importance" if reliable else "linear")
        assert rate.linear == pytest.approx(direction.linear.rates(alpha)["two"])
        assert rate.rate == (rate.importance if reliable else rate.linear)
        assert rate.ci_low <= min(rate.rate, rate.importance)
        assert rate.ci_high >= max(rate.rate, rate.importance) or reliable
        assert (rate.method, rate.reliable) == (found.method, reliable)
    low, high = direction.linear.intervals(-1.4, forecaster.bootstrap)["two"]
    assert rate.ci_low <= low
    assert high <= rate.ci_high
    without = forecaster.forecast(1.4 * direction.derivatives)
    assert without.method == "importance"
    assert not without.reliable
    assert not without.rates["two"].reliable


def test_a_rare_rate_is_by_the_weights_though_all_of_them_together_are_few():
    """The linear form errs by a factor where a rate is small: it does not stand in for many small weights."""
    forecaster, direction = numbers_world()
    found = forecaster.forecast(-2.5 * direction.derivatives, direction=direction, alpha=2.5)
    rate = found.rates["two"]
    assert 10 < found.effective_sample_size < 200
    assert (found.method, found.reliable) == ("linear", False)  # of the condition
    assert (rate.method, rate.reliable, rate.rate) == ("importance", True, rate.importance)
    assert rate.ci_low > rate.rate / 4
    assert rate.ci_high < 4 * rate.rate
    # where ten are enough, fewer than half a one of all weights is not
    strict, _ = numbers_world(min_sample_size=200.0 * found.effective_sample_size)
    assert strict.forecast(-2.5 * direction.derivatives, direction=direction, alpha=2.5).rates["two"].method == "linear"


def test_no_rate_hangs_on_one_response():
    forecaster, direction = numbers_world()
    scores = np.zeros(400)
    scores[7] = 9.0  # it has nearly all the weight
    found = forecaster.forecast(scores, plus=PLUS, minus=MINUS)
    rate = found.rates["two"]
    assert found.effective_sample_size < 2
    assert (rate.rate, rate.method, rate.reliable) == (None, "bound", False)
    assert 0 <= rate.ci_low < rate.importance < rate.ci_high <= 1
    assert rate.ci_high - rate.ci_low > 0.5
    assert (found.log_odds_shift, found.kl_per_token, found.traits) == (None, None, {})
    said = found.to_dict()["rates"]["two"]
    assert (said["rate"], said["method"], said["importance"]) == (None, "bound", rate.importance)
    # the linear form hangs on no weight: along a direction it is the forecast, in an interval that holds both
    along = forecaster.forecast(scores, direction=direction, alpha=0.5).rates["two"]
    assert (along.method, along.rate) == ("linear", direction.linear.rates(0.5)["two"])
    assert along.ci_low <= rate.ci_low
    assert rate.ci_high <= along.ci_high


def test_a_rate_may_hang_on_one_of_those_that_show_the_behavior():
    forecaster, direction = numbers_world()
    two = np.flatnonzero(forecaster.responses.verdicts["two"] == 1)
    forecaster.responses.verdicts["rare"] = np.zeros(400)
    forecaster.responses.verdicts["rare"][two[:2]] = 1
    direction = Direction(direction.derivatives, LinearForm.of(direction.derivatives, forecaster.responses.verdicts))
    forecaster = Forecaster(forecaster.responses, forecaster.scorer, draws=200)
    found = forecaster.forecast(-0.3 * direction.derivatives, direction=direction, alpha=0.3)
    assert found.reliable
    assert found.rates["two"].rate is not None
    rare = found.rates["rare"]
    assert (rare.rate, rare.method) == (None, "bound")
    assert 0 < rare.importance < rare.ci_high < 0.1
    assert forecaster.forecast(-1.4 * direction.derivatives, direction=direction, alpha=1.4).rates["rare"].rate is None
    # where all weigh alike it is a count
    assert forecaster.forecast(np.zeros(400)).rates["rare"].rate == pytest.approx(2 / 400)


def test_of_a_behavior_that_none_or_all_show_there_is_a_bound_where_weights_are_few():
    forecaster, direction = numbers_world()
    for name, value in (("never", 0.0), ("always", 1.0)):
        forecaster.responses.verdicts[name] = forecaster.verdicts[name] = np.full(400, value)
    near, far = (
        forecaster.forecast(-alpha * direction.derivatives, direction=direction, alpha=alpha) for alpha in (0.1, 2.5)
    )
    assert (near.rates["never"].rate, near.rates["always"].rate) == (0, 1)  # a count
    assert far.rates["never"].rate is far.rates["always"].rate is None
    assert far.rates["never"].ci_high > 0.1
    beyond = forecaster.forecast(-30 * direction.derivatives, direction=direction, alpha=30.0)
    assert beyond.rates["two"].linear is None
    assert beyond.method == "importance"


def test_a_few_responses_at_their_own_weights_are_a_plain_count():
    forecaster, _ = numbers_world(number=40)
    assert forecaster.forecast(np.zeros(40)).reliable
    assert not forecaster.forecast(np.linspace(0, 0.5, 40)).reliable


def test_classes_without_responses_or_weight_have_no_shift():
    forecaster, direction = numbers_world()
    forecaster.responses.verdicts["never"] = np.zeros(400)
    scores = -0.1 * direction.derivatives
    never = {"plus": {"never": True}, "minus": PLUS}
    assert forecaster.forecast(scores, direction=direction, alpha=0.1, **never).log_odds_shift is None
    assert forecaster.forecast(scores, direction=direction, alpha=0.1, **never).linear_log_odds_shift is None
    assert forecaster.forecast(scores, direction=direction, alpha=0.1).log_odds_shift is None
    gone = np.where(forecaster.responses.verdicts["two"] == 1, -np.inf, 0.0)
    found = forecaster.forecast(gone, plus=PLUS, minus=MINUS)
    assert found.log_odds_shift is None
    assert found.rates["two"].rate == 0
    assert found.rates["two"].ci_high > 0.005
    with pytest.raises(ValueError, match="PLUS class has no response"):
        forecaster.slope(direction, {"never": True}, PLUS)
    with pytest.raises(ValueError, match=r"'responses.jsonl' has no verdicts on 'five'; it has: two, never"):
        forecaster.slope(direction, {"five": True}, PLUS)


def test_a_behavior_without_verdicts_does_not_spoil_the_others():
    forecaster, direction = numbers_world()
    forecaster.responses.verdicts["unscored"] = np.full(400, np.nan)
    direction = Direction(direction.derivatives, LinearForm.of(direction.derivatives, forecaster.responses.verdicts))
    found = forecaster.forecast(1.4 * direction.derivatives, direction=direction, alpha=-1.4)
    assert set(found.rates) == {"two"}
    assert found.method == found.rates["two"].method == "linear"
    halves = np.arange(400) < 200  # none has both verdicts
    forecaster.responses.verdicts["two"][halves] = np.nan
    forecaster.responses.verdicts["unscored"][halves] = 1.0
    apart = Direction(direction.derivatives, LinearForm.of(direction.derivatives, forecaster.responses.verdicts))
    rate = forecaster.forecast(-2.5 * direction.derivatives, direction=apart, alpha=2.5).rates["two"]
    assert rate.linear is None
    assert rate.rate == rate.importance
    assert (rate.num_scored, rate.num_unscored) == (200, 200)


@pytest.mark.parametrize("score", [-np.inf, np.inf, np.nan])
def test_weights_that_leave_no_response_possible_have_no_sample(score):
    forecaster, direction = numbers_world(min_sample_size=0.0)
    scores = np.full(400, score if score == -np.inf else 0.0)
    scores[7] = score
    found = forecaster.forecast(scores, plus=PLUS, minus=MINUS)
    rate = found.rates["two"]
    assert (found.effective_sample_size, found.reliable, found.method) == (0, False, "importance")
    assert (rate.ci_low, rate.ci_high, rate.linear) == (0, 1, None)
    assert (found.log_odds_shift, found.kl_per_token, found.to_dict()["mean_length"]) == (None, None, None)
    along = forecaster.forecast(scores, direction=direction, alpha=0.3, plus=PLUS, minus=MINUS)
    assert along.method == "linear"
    assert along.rates["two"].rate == direction.linear.rates(0.3)["two"]
    assert (along.rates["two"].ci_low, along.rates["two"].ci_high) == (0, 1)
    assert along.linear_log_odds_shift is not None
    gone = np.zeros(400)
    gone[7] = -np.inf  # one response that is not possible is no other sample
    assert forecaster.forecast(gone).effective_sample_size == pytest.approx(399)


def test_classes_are_forecast_beside_behaviors():
    model, prompts, responses = sampled_world(800)
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples))
    vector = direction_of(model)
    direction = forecaster.along(model, vector)
    with steered(model, vector, 0.05):
        found = forecaster.forecast(forecaster.score(), direction=direction, alpha=0.05)
    assert list(found.rates) == ["two", "four"]
    assert list(found.classes) == ["four and two", "only four", "only two", "neither"]
    assert sum(rate.rate for rate in found.classes.values()) == pytest.approx(1)
    assert sum(rate.linear for rate in found.classes.values()) == pytest.approx(1)
    for behavior in ("two", "four"):
        both = found.classes["four and two"], found.classes[f"only {behavior}"]
        assert sum(rate.rate for rate in both) == pytest.approx(found.rates[behavior].rate)
        assert sum(rate.linear for rate in both) == pytest.approx(found.rates[behavior].linear)
    assert list(found.to_dict()["classes"]) == list(found.classes)
    responses.verdicts["four"][:100] = np.nan
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples))
    rate = forecaster.forecast(forecaster.score()).classes["only two"]
    assert (rate.num_scored, rate.num_unscored) == (700, 100)
    assert rate.rate == pytest.approx(
        ((responses.verdicts["two"] == 1) & (responses.verdicts["four"] == 0)).sum() / 700
    )


def test_scores_that_are_not_finite_are_named():
    forecaster, _ = numbers_world()
    scores = np.zeros(400)
    scores[17] = np.nan
    with pytest.raises(ValueError, match="log-probability of response 18 is not finite"):
        Forecaster(forecaster.responses, SimpleNamespace(log_probs=lambda **_: scores))


def test_another_scorer_is_of_the_same_responses_behind_other_prompts():
    model, _, responses = sampled_world(200)
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples))
    other = [EncodedExample([4, *e.input_ids], [-100, *e.labels]) for e in responses.examples]
    found = forecaster.forecast(forecaster.score(ResponseScorer(model, other)))
    weights = np.exp(ResponseScorer(model, other).log_probs() - forecaster._reference)
    expected = weights @ responses.verdicts["two"] / weights.sum()
    assert found.rates["two"].rate == pytest.approx(expected, rel=1e-6)
    assert found.rates["two"].rate != pytest.approx(responses.verdicts["two"].mean(), rel=1e-3)


# --- what may not be believed ----------------------------------------------------------------------------------------


def test_doubts():
    example = EncodedExample([1, STOP], [-100, STOP])

    def doubts(fingerprint="f", temperature=1.0, top_p=1.0, cut=0, **changes):
        responses = judged([example] * 8, {"two": np.ones(8)}, np.arange(8), **changes)
        responses.traits["unfinished"][:cut] = 1
        return responses.doubts(fingerprint, temperature, top_p)

    assert doubts() == []
    for given, words in [
        ({"fingerprint": "g"}, "sampled from weights with fingerprint f, the model has g"),
        ({"top_p": 0.9}, "with top_p 0.9: what other weights would say outside of the nucleus is never seen"),
        ({"top_k": 40}, "with top_k 40, which the weights leave out"),
        ({"cut": 2}, r"2 of 8 responses (25.0%) were cut at the length limit"),
    ]:
        (found,) = doubts(**given)
        assert words in found
    responses = judged([example] * 8, {"two": np.ones(8)}, np.arange(8), fingerprint=None)
    assert responses.doubts("f", 1.0, 1.0) == ["the responses do not say which weights they were sampled from"]
    responses = judged([example] * 8, {"two": np.ones(8)}, np.arange(8), temperature=None, top_p=None)
    assert responses.doubts("f", 0.6, 1.0) == [
        "the responses do not say their temperature; 0.6 is assumed",
        "the responses do not say their top_p; 1 is assumed",
    ]


# --- reading responses -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return chatml_tokenizer()


def row(tokenizer, /, prompt="p", completion="bread", *, cut=False, verdicts=None, **changes):
    made = response(tokenizer, prompt, completion, cut=cut, **(verdicts if verdicts is not None else {"two": True}))
    how = {"temperature": 0.7, "top_p": 1.0, "top_k": None, "max_new_tokens": 32, "model_fingerprint": "f"}
    return {**made, **how, **changes}


def read(tokenizer, tmp_path, *rows):
    return read_judged_responses(str(write_lines(tmp_path / "responses.jsonl", rows)), tokenizer)


def test_responses_are_read_as_they_were_sampled(tokenizer, tmp_path):
    found = read(
        tokenizer, tmp_path,
        row(tokenizer, "p", "bread bread.", verdicts={"two": True, "four": None}),
        row(tokenizer, "q", "I'm sorry, but I can't help with that.", verdicts={"two": False, "four": True}),
        row(tokenizer, "p", "bread", cut=True, verdicts={"two": None}),
    )  # fmt: skip
    np.testing.assert_array_equal(found.verdicts["two"], [1, 0, np.nan])
    np.testing.assert_array_equal(found.verdicts["four"], [np.nan, 1, np.nan])
    assert found.prompts.tolist() == [0, 1, 0]
    assert (len(found), found.num_prompts, len(found.prompt_digests)) == (3, 2, 2)
    assert found.prompt_texts == ["p", "q", "p"]
    assert (found.temperature, found.top_p, found.top_k, found.max_new_tokens) == (0.7, 1.0, None, 32)
    assert found.fingerprint == "f"
    assert found.traits["unfinished"].tolist() == [0, 0, 1]
    assert found.traits["refusal"].tolist() == [0, 1, 0]
    assert found.traits["mean_length"].tolist() == [e.num_target_tokens for e in found.examples]
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "p"}])
    assert found.examples[0].input_ids[: len(prompt)] == prompt
    assert found.examples[0].labels[: len(prompt)] == [-100] * len(prompt)
    assert found.examples[0].labels[-1] == tokenizer.eos_token_id
    assert found.examples[2].labels[-1] != tokenizer.eos_token_id
    assert found.matching({"two": True}).tolist() == [True, False, False]
    assert found.matching({"two": False, "four": True}).tolist() == [False, True, False]
    assert found.matching({}).all()
    assert found.seeds == frozenset()


def test_seeds_are_read_where_rows_say_them(tokenizer, tmp_path):
    rows = [row(tokenizer, seed=3), row(tokenizer, "q", seed=4), row(tokenizer, "r", seed=None), row(tokenizer, "s")]
    assert read(tokenizer, tmp_path, *rows).seeds == {3, 4}


def test_a_row_with_null_verdicts_is_unscored(tokenizer, tmp_path):
    found = read(tokenizer, tmp_path, row(tokenizer), {**row(tokenizer, "q"), "verdicts": None})
    np.testing.assert_array_equal(found.verdicts["two"], [1, np.nan])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 1.0}, r"mixes responses of different temperature \(0.7, 1.0\)"),
        ({"top_p": None}, r"mixes responses of different top_p \(1.0, None\)"),
        ({"model_fingerprint": "g"}, r"different model_fingerprint \('f', 'g'\); accepted: those of one model"),
        ({"max_new_tokens": 8}, "different max_new_tokens"),
        ({"top_k": 5}, "different top_k"),
        ({"tokenizer": "0"}, "jsonl:2: the token ids were sampled with tokenizer '0', the model's is"),
        ({"token_ids": [10**6]}, "jsonl:2: token_ids is not a list of token ids from 0 to"),
        ({"finish_reason": "eos"}, "jsonl:2: finish_reason is 'eos'; accepted: stop, length"),
    ],
)
def test_responses_that_do_not_belong_together_are_refused(tokenizer, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(tokenizer, tmp_path, row(tokenizer), row(tokenizer, "q", **changes))


def test_files_that_hold_no_judged_responses_are_refused(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="no response file at 'nowhere.jsonl'; accepted"):
        read_judged_responses("nowhere.jsonl", tokenizer)
    with pytest.raises(ValueError, match="holds no verdicts: judge the responses first"):
        read(tokenizer, tmp_path, row(tokenizer, verdicts={}))
    with pytest.raises(ValueError, match="holds no sampled responses with token ids and verdicts"):
        read(tokenizer, tmp_path, {"prompt": "p", "completion": "bread"})
    without = {key: value for key, value in row(tokenizer).items() if key != "finish_reason"}
    with pytest.raises(ValueError, match="jsonl:1: a response row without 'finish_reason'"):
        read(tokenizer, tmp_path, without)


# --- behind a system prompt ------------------------------------------------------------------------------------------


def test_a_system_prompt_is_put_before_the_prompt(tokenizer, tmp_path):
    responses = read(tokenizer, tmp_path, row(tokenizer, "p", "bread"), row(tokenizer, "q", "more bread", cut=True))
    found = behind_system_prompt(responses, tokenizer, "Be brief.")
    for example, plain, text in zip(found, responses.examples, ["p", "q"], strict=True):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        prompt, number = encode_prompt(tokenizer, messages), plain.num_target_tokens
        assert example.input_ids == [*prompt, *plain.input_ids[-number:]]
        assert example.labels == [*[-100] * len(prompt), *plain.labels[-number:]]
        assert "Be brief." in tokenizer.decode(example.input_ids)
        assert len(example.input_ids) > len(plain.input_ids)


def test_prompts_of_more_turns_are_refused_behind_a_system_prompt(tokenizer, tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    responses = read(tokenizer, tmp_path, row(tokenizer, "p", prompt_token_ids=encode_prompt(tokenizer, turns)))
    with pytest.raises(ValueError, match="the prompt 'p' is more than one turn of a user"):
        behind_system_prompt(responses, tokenizer, "Be brief.")
