"""Importance weights against exact rates: every response of a tiny model is listed, and its probability is summed."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit
from test_scoring import PROMPTS, RESPONSES, direction_of, exact_log_probs, small_llama

from gradsteer.evaluation.bootstrap import PromptBootstrap
from gradsteer.evaluation.importance_sampling import (
    LinearForm,
    divergence,
    effective_sample_size,
    hangs_on_one,
    mean_difference,
    normalised_weights,
    size_of_error,
    weighted_rate,
)
from gradsteer.evaluation.statistics import design_effect, wilson
from gradsteer.steering.weight_steering import steered

# the behavior: token 2 is said
SHOWS = np.array([2 in response for response in RESPONSES])


def exact(alpha: float, prompt, temperature: float = 1.0, *, seed: int = 7) -> np.ndarray:
    """(responses,) probabilities under the steered weights."""
    model = small_llama()
    with steered(model, direction_of(model, seed=seed), alpha):
        return np.exp(exact_log_probs(model, prompt, temperature))


def one_prompt(number: int) -> PromptBootstrap:
    return PromptBootstrap.draw(np.arange(number), draws=100, seed=0)


# --- the weights -----------------------------------------------------------------------------------------------------


def test_equal_weights_count_fully_and_a_single_one_as_one():
    assert effective_sample_size(np.full(37, 0.2)) == pytest.approx(37)
    assert effective_sample_size(np.array([0.0, 5.0, 0.0])) == 1
    assert effective_sample_size(np.array([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    assert effective_sample_size(np.array([1e-200, 1e-200, 0.0])) == pytest.approx(2)


@pytest.mark.parametrize("shift", [-1000.0, 0.0, 1000.0])
def test_large_ratios_do_not_overflow(shift):
    ratios = np.array([0.0, math.log(3), -math.inf, -1000.0]) + shift
    np.testing.assert_allclose(normalised_weights(ratios), [0.25, 0.75, 0, 0], atol=1e-15)
    np.testing.assert_array_equal(normalised_weights(np.array([1000.0, -1000.0])), [1, 0])


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([-math.inf, -math.inf], "no response is possible under these weights"),
        ([0.0, math.nan], "a log ratio is NaN or infinite"),
        ([0.0, math.inf], "a log ratio is NaN or infinite"),
    ],
)
def test_ratios_that_say_nothing_are_refused(ratios, message):
    with pytest.raises(ValueError, match=message):
        normalised_weights(np.array(ratios))


def test_the_divergence_is_the_exact_one():
    """Responses in exact proportion to p: the plug-in estimate is then the sum itself."""
    counts = np.array([1, 2, 5, 12])
    p, q = counts / counts.sum(), np.array([0.4, 0.3, 0.2, 0.1])
    ratios = np.repeat(np.log(q / p), counts)
    expected = float((q * np.log(q / p)).sum())
    assert divergence(normalised_weights(ratios)) == pytest.approx(expected, rel=1e-12)
    assert divergence(normalised_weights(np.zeros(49))) == 0
    without = normalised_weights(np.array([0.0, 0.0, -math.inf, -math.inf]))
    assert divergence(without) == pytest.approx(math.log(2))  # 0 log 0 is 0


# --- rates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("alpha", [0.1, -0.5])
def test_with_all_responses_the_rate_is_the_exact_one(alpha, temperature):
    before = [exact(0.0, prompt, temperature) for prompt in PROMPTS]
    after = [exact(alpha, prompt, temperature) for prompt in PROMPTS]
    p, q = np.concatenate(before), np.concatenate(after)
    masses = p * normalised_weights(np.log(q) - np.log(p))  # each response as often as it is said
    rate, low, high = weighted_rate(masses, np.tile(SHOWS, len(PROMPTS)).astype(float), one_prompt(len(p)))
    expected = np.mean([each[SHOWS].sum() for each in after])
    assert rate == pytest.approx(expected, abs=1e-6)
    assert abs(expected - np.mean([each[SHOWS].sum() for each in before])) > 0.02
    assert low < rate < high


def test_a_large_sample_comes_close():
    p, q = exact(0.0, PROMPTS[0]), exact(0.05, PROMPTS[0])
    drawn = np.random.default_rng(0).choice(len(p), size=40_000, p=p / p.sum())
    weights = normalised_weights((np.log(q) - np.log(p))[drawn])
    size = effective_sample_size(weights)
    assert size == pytest.approx(40_000 / (q**2 / p).sum(), rel=0.2)
    rate = (weights * SHOWS[drawn]).sum()
    truth = q[SHOWS].sum()
    assert abs(truth - p[SHOWS].sum()) > 0.02
    assert abs(rate - truth) < 4 * math.sqrt(truth * (1 - truth) / size)


@pytest.mark.parametrize(("value", "away"), [(0.0, 1), (1.0, 0)])
def test_rates_of_0_and_1_have_intervals(value, away):
    prompts = np.repeat(np.arange(20), 3)
    bootstrap = PromptBootstrap.draw(prompts, draws=200, seed=0)
    weights = np.random.default_rng(0).exponential(size=60)
    rate, low, high = weighted_rate(weights, np.full(60, value), bootstrap)
    assert rate == value
    other = (low, high)[away]
    assert 0.02 < abs(other - value) < 0.4
    assert (low, high)[1 - away] == value


def test_few_responses_that_carry_the_weight_count_as_few():
    prompts = np.repeat(np.arange(50), 2)
    weights = np.full(100, 1e-3)
    weights[[3, 40, 71]] = 1.0
    _, low, high = weighted_rate(weights, np.zeros(100), PromptBootstrap.draw(prompts, draws=100, seed=0))
    size = weights.sum() ** 2 / (weights**2).sum()
    assert 3 < size < 4
    assert (low, high) == (0, pytest.approx(wilson(0.0, size / 2)[1]))  # two replies to a prompt: the design effect
    assert high > 0.5


def test_the_interval_is_the_wider_of_bootstrap_and_wilson():
    generator = np.random.default_rng(1)
    prompts = np.repeat(np.arange(30), 4)
    bootstrap = PromptBootstrap.draw(prompts, draws=400, seed=0)
    verdicts = (generator.random(120) < 0.3).astype(float)
    weights = generator.exponential(size=120) ** 2
    rate, low, high = weighted_rate(weights, verdicts, bootstrap)
    assert rate == pytest.approx((weights * verdicts).sum() / weights.sum())
    size = weights.sum() ** 2 / (weights**2).sum()
    deff = design_effect((verdicts == 1).tolist(), [str(p) for p in prompts])
    by_wilson = wilson(rate, size / deff)
    by_prompt = np.array(
        [[weights[prompts == p] @ verdicts[prompts == p], weights[prompts == p].sum()] for p in range(30)]
    )
    draws = np.einsum("dp,pk->dk", bootstrap.counts, by_prompt)
    by_bootstrap = np.percentile(draws[:, 0] / draws[:, 1], [2.5, 97.5])
    assert low == pytest.approx(min(by_wilson[0], by_bootstrap[0]))
    assert high == pytest.approx(max(by_wilson[1], by_bootstrap[1]))


def test_a_rate_hangs_on_one_response_that_has_a_third_of_a_sum():
    assert hangs_on_one(np.array([1.0, 1.0, 1.01]))
    assert not hangs_on_one(np.ones(3))
    weights = np.array([5.0, 5, 5, 5, 0.1, 0.1, 0.3, 0.1])
    shows = np.array([0.0, 0, 0, 0, 1, 1, 1, 1])
    assert not hangs_on_one(weights)
    assert hangs_on_one(weights, shows)  # of what shows the behavior one has half
    assert hangs_on_one(weights, 1 - shows)  # and so of a common one
    shows[6], weights[7] = np.nan, 0.11  # the three that are left have a third each, and a little
    assert hangs_on_one(weights, shows)
    weights[7] = 0.1
    assert not hangs_on_one(weights, shows)
    assert not hangs_on_one(np.ones(9), np.zeros(9))


def test_the_size_of_the_error_is_the_number_of_responses_where_all_weigh_alike():
    """1/k + 1/(n - k), the variance of log-odds, but for K / (K - 1) and Student's quantile."""
    values = np.repeat([1.0, 0.0], [20, 80])
    plain = size_of_error(np.ones(100), values, np.arange(100))
    freedom = (1 / 20 + 1 / 80) ** 2 / (20 / 20**4 + 80 / 80**4) - 1
    student = stdtrit(freedom, 0.975) / 1.959964
    assert plain == pytest.approx(100 * 99 / 100 / student**2, rel=1e-5)
    # weights of one class only scale its sum: as many responses, a rarer behavior known as well in its log-odds
    weights = np.where(values == 1, 1e-3, 1.0)
    rare = size_of_error(weights, values, np.arange(100))
    rate = 0.02 / 80.02
    assert rare * rate * (1 - rate) == pytest.approx(plain * 0.2 * 0.8)
    # replies that are one prompt's count as one
    assert size_of_error(np.ones(100), values, np.arange(100) // 5) < plain / 4


def test_a_rare_rate_of_many_small_weights_is_known_better_than_its_effective_sample_size_says():
    prompts, values = np.arange(400), np.repeat([1.0, 0.0], [200, 200])
    weights = np.concatenate([np.full(200, 1e-4), np.random.default_rng(0).exponential(size=200) ** 3])
    bootstrap = PromptBootstrap.draw(prompts, draws=200, seed=0)
    rate, low, high = weighted_rate(weights, values, bootstrap)
    assert rate < 1e-4
    assert rate / 3 < low < rate < high < 3 * rate
    assert wilson(rate, effective_sample_size(weights))[1] > 200 * rate  # what it was before
    weights[0] = 1.0  # it hangs on one of those that show it: nothing is known better
    _, _, high = weighted_rate(weights, values, bootstrap)
    assert high > wilson(0.0, effective_sample_size(weights))[1]


def test_unscored_responses_count_neither_way():
    verdicts = np.array([1.0, 0.0, np.nan, 0.0])
    rate, low, high = weighted_rate(np.array([1.0, 2.0, 50.0, 1.0]), verdicts, one_prompt(4))
    assert rate == 0.25
    assert 0 <= low < rate < high <= 1
    assert weighted_rate(np.ones(4), np.full(4, np.nan), one_prompt(4)) is None
    assert weighted_rate(np.array([0.0, 0.0, 1.0, 0.0]), verdicts, one_prompt(4)) is None  # no weight
    tiny = weighted_rate(np.array([1e-220, 3e-220, 1.0, 0.0]), verdicts, one_prompt(4))
    assert tiny is not None
    assert tiny[0] == pytest.approx(0.25)
    assert np.isfinite(tiny).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "temperature", "alpha"),
    [
        (2, 1.0, 0.1),
        (2, 0.6, 0.05),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 1.0, -0.1), (1, 1.0, 0.05), (4, 1.0, 0.1))),
    ],
)
def test_intervals_cover_the_exact_rate(token, temperature, alpha):
    """Samples of prompts and of their replies, from exact distributions that differ by prompt; 95% intervals."""
    shows = np.array([token in response for response in RESPONSES])
    population = [[a, b] for a in range(1, 5) for b in range(1, 5)]
    p, q = (np.array([exact(each, prompt, temperature) for prompt in population]) for each in (0.0, alpha))
    ratios = np.log(q) - np.log(p)
    p /= p.sum(axis=1, keepdims=True)
    truth = q[:, shows].sum(axis=1).mean()
    by_prompt = p[:, shows].sum(axis=1)
    assert by_prompt.max() - by_prompt.min() > 0.1  # replies to a prompt are alike
    generator = np.random.default_rng(0)
    covered, sizes, repetitions, prompts, replies = [], [], 300, 40, 10
    cumulative = p.cumsum(axis=1)
    numbers = np.repeat(np.arange(prompts), replies)
    bootstrap = PromptBootstrap.draw(numbers, draws=200, seed=1)
    for _ in range(repetitions):
        chosen = np.repeat(generator.integers(len(population), size=prompts), replies)
        drawn = (cumulative[chosen] < generator.random(len(chosen))[:, None]).sum(axis=1).clip(max=len(RESPONSES) - 1)
        weights = normalised_weights(ratios[chosen, drawn])
        sizes.append(effective_sample_size(weights))
        rate, low, high = weighted_rate(weights, shows[drawn].astype(float), bootstrap)
        assert np.isfinite([rate, low, high]).all()
        covered.append(low <= truth <= high)
    assert np.median(sizes) > 200
    assert 0.92 <= np.mean(covered) <= 1


# --- the linear form -------------------------------------------------------------------------------------------------


def test_the_linear_form_by_hand():
    derivatives = np.array([1.0, 3.0, -1.0, 0.0, 9.0])
    verdicts = {"a": np.array([1, 1, 0, 0, np.nan]), "b": np.array([0, 0, 1, 0, 1.0])}
    form = LinearForm.of(derivatives, verdicts)
    assert form.members.shape == (3, 2)
    # classes: a alone (2, g = 2), b alone (1, g = -1), neither (1, g = 0); the last is unscored
    for alpha in (0.0, 0.4, -1.0):
        masses = [2 * math.exp(-2 * alpha), math.exp(alpha), 1.0]
        rates = form.rates(alpha)
        assert rates["a"] == pytest.approx(masses[0] / sum(masses))
        assert rates["b"] == pytest.approx(masses[1] / sum(masses))
    assert form.rates(400.0) == pytest.approx({"a": 0, "b": 1})  # without overflow
    assert form.rates(-400.0) == pytest.approx({"a": 1, "b": 0})


def test_its_slope_at_0_is_the_importance_weighted_rates():
    """Both are the exact derivative of the rate, where derivatives are the exact ones."""
    p = exact(0.0, PROMPTS[0])
    step = 1e-3
    ends = [exact(alpha, PROMPTS[0]) for alpha in (step, -step)]
    derivatives = -(np.log(ends[0]) - np.log(ends[1])) / (2 * step)
    counts = np.round(p * 50_000).astype(int)
    form = LinearForm.of(np.repeat(derivatives, counts), {"says 2": np.repeat(SHOWS, counts).astype(float)})
    slope = (form.rates(step)["says 2"] - form.rates(-step)["says 2"]) / (2 * step)
    truth = (ends[0][SHOWS].sum() - ends[1][SHOWS].sum()) / (2 * step)
    assert abs(truth) > 0.05
    assert slope == pytest.approx(truth, rel=1e-2)


def test_intervals_of_the_linear_form_resample_prompts():
    generator = np.random.default_rng(0)
    prompts = np.repeat(np.arange(50), 4)
    verdicts = (generator.random(200) < 0.3).astype(float)
    derivatives = generator.normal(size=200) + verdicts
    bootstrap = PromptBootstrap.draw(prompts, draws=400, seed=0)
    form = LinearForm.of(derivatives, {"a": verdicts})
    low, high = form.intervals(0.5, bootstrap)["a"]
    draws = []
    for counts in bootstrap.counts:
        rows = np.repeat(np.arange(200), counts[prompts].astype(int))
        draws.append(LinearForm.of(derivatives[rows], {"a": verdicts[rows]}).rates(0.5)["a"])
    assert (low, high) == pytest.approx(np.percentile(draws, [2.5, 97.5]))
    assert low < form.rates(0.5)["a"] < high


def test_verdicts_that_are_wanting():
    nan = np.nan
    numbers = np.array([0, 0, 1, 1])
    bootstrap = PromptBootstrap.draw(numbers, draws=200, seed=0)
    derivatives = np.array([1.0, -1.0, 0.0, 2.0])
    # a whole prompt without verdicts: a draw of it alone has no rate, and is left out
    form = LinearForm.of(derivatives, {"a": np.array([1.0, 0.0, nan, nan])})
    low, high = form.intervals(0.0, bootstrap)["a"]
    assert (low, high) == (0.5, 0.5)
    # a behavior without any verdict does not take the others' away
    form = LinearForm.of(derivatives, {"a": np.array([1.0, 0.0, 0.0, 0.0]), "b": np.full(4, nan)})
    assert form.rates(0.0) == {"a": 0.25}
    # none with all verdicts
    form = LinearForm.of(derivatives, {"a": np.array([1.0, nan, 0.0, nan]), "b": np.array([nan, 0.0, nan, 1.0])})
    assert form.rates(0.0) == {}
    assert form.intervals(0.0, bootstrap) == {}
    assert LinearForm.of(derivatives, {"a": np.full(4, nan)}).rates(1.0) == {}


# --- slopes between classes ------------------------------------------------------------------------------------------


def clustered(generator, num_prompts=60, replies=5):
    prompts = np.repeat(np.arange(num_prompts), replies)
    own = generator.normal(size=num_prompts)[prompts]
    plus = generator.random(len(prompts)) < 1 / (1 + np.exp(-own))
    minus = ~plus & (generator.random(len(prompts)) < 0.7)
    derivatives = own + 0.8 * plus + generator.normal(size=len(prompts))
    return derivatives, plus, minus, prompts


def test_the_difference_of_means_and_its_error_by_hand():
    derivatives, plus, minus, prompts = clustered(np.random.default_rng(0))
    slope, error = mean_difference(derivatives, plus, minus, prompts)
    means = derivatives[plus].mean(), derivatives[minus].mean()
    assert slope == pytest.approx(means[0] - means[1])
    touched = sorted(set(prompts[plus | minus]))
    residuals = []
    for prompt in touched:
        mine = prompts == prompt
        residuals.append(
            sum(derivatives[mine & plus] - means[0]) / plus.sum()
            - sum(derivatives[mine & minus] - means[1]) / minus.sum()
        )
    number = len(touched)
    assert error == pytest.approx(math.sqrt(number / (number - 1) * sum(r**2 for r in residuals)))
    generator, draws = np.random.default_rng(1), []
    for _ in range(2000):
        rows = np.concatenate([np.arange(5) + 5 * p for p in generator.integers(60, size=60)])
        d, a, b = derivatives[rows], plus[rows], minus[rows]
        draws.append(d[a].mean() - d[b].mean())
    assert error == pytest.approx(np.std(draws), rel=0.1)


def test_its_error_covers():
    generator = np.random.default_rng(2)
    truth = mean_difference(*clustered(generator, 40_000))[0]
    hits = []
    for _ in range(400):
        slope, error = mean_difference(*clustered(generator))
        hits.append(abs(slope - truth) < 1.96 * error)
    assert 0.91 <= np.mean(hits) <= 0.98


def test_one_prompt_has_no_error_and_an_empty_class_no_slope():
    derivatives, yes, no = np.array([1.0, 3.0]), np.array([True, False]), np.array([False, True])
    slope, error = mean_difference(derivatives, yes, no, np.array([4, 4]))
    assert slope == -2
    assert math.isnan(error)
    for name, members in (("PLUS", (yes & no, no)), ("MINUS", (yes, yes & no))):
        with pytest.raises(ValueError, match=f"the {name} class has no response"):
            mean_difference(derivatives, *members, np.array([0, 1]))
