"""Rates and their intervals, against scipy, closed forms and a small simulation."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t
from statsmodels.stats.proportion import proportion_confint

from gradsteer.evaluation.statistics import Rate, design_effect, expanded, rate_with_interval
from gradsteer.evaluation.statistics import wilson as wilson_of_rate


def prompts(num, samples):
    return [f"prompt {index}" for index in range(num) for _ in range(samples)]


def wilson(num_positive, num, confidence=0.95):
    interval = binomtest(num_positive, num).proportion_ci(confidence, method="wilson")
    return interval.low, interval.high


@pytest.mark.parametrize(("num_positive", "num"), [(0, 30), (1, 30), (14, 100), (29, 30), (30, 30), (1, 1)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_one_reply_a_prompt_is_scipys_wilson_interval(num_positive, num, confidence):
    verdicts = [index < num_positive for index in range(num)]
    rate = rate_with_interval(verdicts, prompts(num, 1), confidence)
    assert rate.rate == num_positive / num
    assert (rate.ci_low, rate.ci_high) == pytest.approx(wilson(num_positive, num, confidence), abs=1e-12)


@pytest.mark.parametrize(("rate", "size"), [(0.0, 7.3), (0.013, 411.9), (0.5, 0.8), (1.0, 12.25)])
def test_an_effective_size_need_not_be_whole(rate, size):
    expected = proportion_confint(rate * size, size, method="wilson")
    assert wilson_of_rate(rate, size) == pytest.approx(expected, abs=1e-12)


def test_replies_that_always_agree_count_as_their_prompts():
    verdicts = [index < 12 for index in range(40) for _ in range(8)]
    assert design_effect(verdicts, prompts(40, 8)) == pytest.approx(8)
    rate = rate_with_interval(verdicts, prompts(40, 8))
    assert (rate.num_positive, rate.rate) == (96, 0.3)
    assert (rate.ci_low, rate.ci_high) == pytest.approx(wilson(12, 40), abs=1e-12)


def test_replies_that_disagree_within_a_prompt_earn_no_credit():
    verdicts = [
        True,
        False,
    ] * 20  # between prompts there is no variance at all: the estimate would be negative
    assert design_effect(verdicts, prompts(20, 2)) == 1
    rate = rate_with_interval(verdicts, prompts(20, 2))
    assert (rate.ci_low, rate.ci_high) == pytest.approx(wilson(20, 40), abs=1e-12)


def test_design_effect_by_hand():
    # prompts 11, 10, 00, thrice -> MSB = 3/8, MSW = 1/6, rho = (3/8 - 1/6) / (3/8 + 1/6) = 5/13, deff = 1 + rho
    assert design_effect([1, 1, 1, 0, 0, 0] * 3, list("aabbccddeeffgghhii")) == pytest.approx(18 / 13)
    # the order of the replies decides nothing
    assert design_effect([1, 0, 1, 0, 1, 0] * 3, list("acabbcdfdeefgighhi")) == pytest.approx(18 / 13)


def test_few_prompts_with_an_exception_cannot_show_their_correlation_either():
    def spread(num, value):
        return [value if reply else value ^ (index < num) for index in range(100) for reply in range(8)]

    for value in (True, False):
        found = [design_effect(spread(num, value), prompts(100, 8)) for num in range(8)]
        assert found == pytest.approx([8, 8, 6.6, 5.2, 3.8, 2.4, 1, 1])
    # several in one prompt are no more prompts
    both = [index < 2 and reply < 4 for index in range(100) for reply in range(8)]
    assert design_effect(both, prompts(100, 8)) == pytest.approx(6.6)
    wide, wider = (rate_with_interval(spread(num, False), prompts(100, 8)) for num in (1, 2))
    assert wider.ci_high > 0.7 * wide.ci_high


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("exceptions", [0, 1])
def test_verdicts_that_cannot_show_their_correlation_count_as_their_prompts(value, exceptions):
    verdicts = [value] * 80
    verdicts[0] ^= bool(exceptions)
    assert design_effect(verdicts, prompts(10, 8)) == 8
    if not exceptions:
        rate = rate_with_interval(verdicts, prompts(10, 8))
        expected = wilson(10, 10) if value else wilson(0, 10)
        assert (rate.ci_low, rate.ci_high) == pytest.approx(expected, abs=1e-12)


def test_one_prompt_is_one_observation():
    assert design_effect([True, False, True, False], ["a"] * 4) == 4


def test_the_interval_is_never_degenerate_and_holds_the_rate():
    rng = np.random.default_rng(0)
    for _ in range(300):
        num = int(rng.integers(1, 30))
        clusters = [str(value) for value in rng.integers(0, int(rng.integers(1, 12)), num)]
        verdicts = list(rng.random(num) < rng.choice([0, 0.05, 0.5, 1]))
        assert 1 <= design_effect(verdicts, clusters) <= num
        rate = rate_with_interval(verdicts, clusters)
        assert 0 <= rate.ci_low <= rate.rate <= rate.ci_high <= 1
        assert rate.ci_high - rate.ci_low > 0.05


def test_unscored_count_neither_way():
    scored = rate_with_interval([True, False], ["a", "b"])
    with_unscored = rate_with_interval([True, None, False, None], ["a", "a", "b", "c"])
    assert with_unscored == replace(scored, num_unscored=2)


def test_nothing_scored_is_none():
    assert rate_with_interval([], []) == Rate(0, 0, 0, None, None, None)
    assert not rate_with_interval([], []).few
    assert rate_with_interval([None, None], ["a", "b"]) == Rate(0, 2, 0, None, None, None)


def test_to_dict_is_plain_json():
    verdicts = list(np.array([True, False]))
    assert json.loads(json.dumps(rate_with_interval(verdicts, ["a", "b"]).to_dict())).keys() == {
        "num_scored",
        "num_unscored",
        "num_positive",
        "rate",
        "ci_low",
        "ci_high",
        "num_degenerate",
        "effective_n",
    }


def test_degenerate_responses_are_carried_and_count_neither_way():
    plain = rate_with_interval([True, False], ["a", "b"])
    assert rate_with_interval([True, False], ["a", "b"], num_degenerate=3) == replace(plain, num_degenerate=3)
    assert rate_with_interval([], [], num_degenerate=3) == Rate(0, 0, 0, None, None, None, num_degenerate=3)


@pytest.mark.parametrize(("num_positive", "few"), [(0, True), (4, True), (5, False), (95, False), (96, True)])
def test_fewer_than_five_of_either_outcome_are_few(num_positive, few):
    found = rate_with_interval([index < num_positive for index in range(100)], prompts(100, 1))
    assert found.effective_n == 100
    assert found.few is few


def test_few_counts_at_the_effective_size():
    # eight replies that always agree are one: 32 positives of 4 prompts are few, 40 of 5 are not
    for num, few in ((4, True), (5, False)):
        found = rate_with_interval([index < num for index in range(40) for _ in range(8)], prompts(40, 8))
        assert found.effective_n == pytest.approx(40)
        assert found.few is few
    assert not Rate(100, 0, 10, 0.1, 0.05, 0.2).few  # a rate from elsewhere, whose effective size is not known
    assert Rate(100, 0, 4, 0.04, 0.01, 0.1).few


def test_the_expanded_share_is_hesterbergs():
    for num, confidence in ((30, 0.95), (100, 0.95), (5, 0.8)):
        quantile = np.sqrt(num / (num - 1)) * t.ppf(1 - (1 - confidence) / 2, num - 1)
        assert expanded(num, confidence) == pytest.approx(1 - 2 * norm.sf(quantile), abs=1e-12)
    assert (expanded(100), expanded(30)) == (pytest.approx(0.9539, abs=5e-5), pytest.approx(0.9625, abs=5e-5))
    assert expanded(10**6) == pytest.approx(0.95, abs=1e-5)
    assert expanded(1) == 1


def test_what_is_refused():
    with pytest.raises(ValueError, match="confidence is 95"):
        rate_with_interval([True], ["a"], 95)
    with pytest.raises(ValueError, match="1 verdicts and 2 clusters"):
        rate_with_interval([True], ["a", "b"])
    with pytest.raises(ValueError, match="0 values"):
        design_effect([], [])


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_coverage_over_correlated_replies(rate):
    # rates of the prompts from a beta distribution, intraclass correlation 0.4: the plain interval covers 70%
    rng = np.random.default_rng(1)
    clusters = prompts(100, 8)
    covered = plain = 0
    for _ in range(200):
        of_prompt = rng.beta(rate * 1.5, (1 - rate) * 1.5, 100)
        verdicts = list(rng.random(800) < np.repeat(of_prompt, 8))
        found = rate_with_interval(verdicts, clusters)
        covered += found.ci_low <= rate <= found.ci_high
        low, high = wilson(sum(verdicts), 800)
        plain += low <= rate <= high
    assert covered >= 184  # 92%; 95% less two standard errors
    assert plain < 170
