"""Rates corrected for a judge's error: closed forms, coverage, and when they are refused."""

import numpy as np
import pytest

from gradsteer.evaluation.judge_error import JudgeError, corrected_rate
from gradsteer.evaluation.statistics import rate_with_interval, wilson


def error(found, positives, passed, negatives):
    return JudgeError(positives, found, negatives, passed, 0, float(positives), float(negatives))


def test_the_formula():
    # 1000 responses, 30% of them true: .3 * .8 + .7 * .1 = .31 are judged true
    found = corrected_rate(1000, 310, 1000.0, error(80, 100, 90, 100))
    assert found["rate"] == pytest.approx(0.3)
    assert found["ci_low"] < 0.3 < found["ci_high"]
    assert found["reason"] is None


def test_the_interval_of_lang_and_reiczigel():
    z = 1.959963984540054
    p, se, sp = (25 + z**2 / 2) / (100 + z**2), 41 / 52, 46 / 52
    r, v1, v0 = (p + sp - 1) / (se + sp - 1), se * (1 - se) / 52, sp * (1 - sp) / 52
    middle = r + 2 * z**2 * (r * v1 - (1 - r) * v0)
    reach = z * (p * (1 - p) / (100 + z**2) + r**2 * v1 + (1 - r) ** 2 * v0) ** 0.5 / (se + sp - 1)
    found = corrected_rate(200, 50, 100.0, error(40, 50, 45, 50))
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((middle - reach, middle + reach))


def test_a_perfect_judge_on_a_large_set_changes_nothing():
    raw = rate_with_interval([True] * 30 + [False] * 70, [str(i) for i in range(100)])
    found = corrected_rate(100, 30, 100.0, error(10**7, 10**7, 10**7, 10**7))
    assert found["rate"] == pytest.approx(raw.rate)
    assert found["ci_low"] == pytest.approx(raw.ci_low, abs=2e-3)
    assert found["ci_high"] == pytest.approx(raw.ci_high, abs=2e-3)


def test_the_labelled_sets_own_error_is_carried():
    widths = [
        (lambda found: found["ci_high"] - found["ci_low"])(corrected_rate(10**6, 310_000, 1e6, labels))
        for labels in (error(8, 10, 9, 10), error(80, 100, 90, 100), error(8000, 10_000, 9000, 10_000))
    ]
    assert widths[0] > 2 * widths[1] > 10 * widths[2]
    # to first order: r^2 se(1-se)/n1 + (1-r)^2 sp(1-sp)/n0 over (se+sp-1)^2, and almost nothing from the rate itself
    first_order = 2 * 1.96 * np.sqrt(0.09 * 0.16 / 10_000 + 0.49 * 0.09 / 10_000) / 0.7
    assert widths[2] == pytest.approx(first_order, rel=0.03)


def test_a_smaller_effective_size_widens_the_interval_alone():
    wide, narrow = (corrected_rate(400, 120, size, error(800, 1000, 900, 1000)) for size in (50.0, 400.0))
    assert wide["rate"] == narrow["rate"]
    assert wide["ci_low"] < narrow["ci_low"] < narrow["ci_high"] < wide["ci_high"]


def test_confidence_widens_the_interval():
    wide, narrow = (corrected_rate(400, 120, 400.0, error(80, 100, 90, 100), c) for c in (0.99, 0.8))
    assert wide["ci_low"] < narrow["ci_low"] < narrow["ci_high"] < wide["ci_high"]


@pytest.mark.parametrize(
    ("num_positive", "labels", "rate"),
    [(0, (40, 50, 45, 50), 0.0), (2, (40, 50, 45, 50), 0.0), (100, (40, 50, 45, 50), 1.0), (0, (50, 50, 50, 50), 0.0)],
)
def test_a_clamped_rate_still_has_an_interval(num_positive, labels, rate):
    found = corrected_rate(100, num_positive, 100.0, error(*labels))
    assert found["rate"] == rate
    assert 0 <= found["ci_low"] <= rate <= found["ci_high"] <= 1
    assert found["ci_high"] - found["ci_low"] > 0.01


def test_the_interval_holds_the_rate_of_the_smallest_set_too():
    found = corrected_rate(1, 0, 1.0, error(1, 1, 50, 50))
    assert found["rate"] == found["ci_low"] == 0  # the formula's lower end is 0.086


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ((0, 0, 50, 50), "no response that is labelled true has a verdict"),
        ((50, 50, 0, 0), "no response that is labelled false has a verdict"),
        ((50, 100, 55, 100), "sensitivity 0.500 + specificity 0.550 - 1 = 0.050 is less than 0.1"),
        ((10, 100, 20, 100), "= -0.700 is less than 0.1"),
    ],
)
def test_what_cannot_be_corrected_is_refused(labels, said):
    found = corrected_rate(100, 30, 100.0, error(*labels))
    assert (found["rate"], found["ci_low"], found["ci_high"]) == (None, None, None)
    assert said in found["reason"]
    assert error(*labels).to_dict()["reason"] == found["reason"]


def test_the_limit_itself_is_accepted():
    assert 0.69 + 0.41 - 1 < 0.1  # by rounding
    assert corrected_rate(100, 65, 100.0, error(69, 100, 41, 100))["reason"] is None


def test_a_set_too_small_to_say_anything_gives_all_of_it():
    # se = 1 of 1 and sp = 15 of 100: pulled towards one half, the judge is worse than chance
    found = corrected_rate(100, 95, 100.0, error(1, 1, 15, 100))
    assert found["rate"] == pytest.approx(0.1 / 0.15)
    assert (found["ci_low"], found["ci_high"]) == (0.0, 1.0)


def test_nothing_scored():
    assert corrected_rate(0, 0, 0.0, error(8, 10, 9, 10))["reason"] == "nothing is scored"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((10, 11, 10.0), "11 of 10 verdicts are true"),
        ((10, 5, 11.0), "effective size of 10 verdicts is 11.0"),
        ((10, 5, 0.0), "effective size of 10 verdicts is 0.0"),
        ((10, 5, 10.0, 1.0), "confidence is 1.0"),
    ],
)
def test_impossible_numbers_are_refused(arguments, said):
    counts, rest = arguments[:3], arguments[3:]
    with pytest.raises(ValueError, match=said):
        corrected_rate(*counts, error(8, 10, 9, 10), *rest)


def test_errors_are_counted():
    labels = [True, True, True, True, False, False, False]
    verdicts = [True, True, False, None, False, True, None]
    found = JudgeError.measure(labels, verdicts)
    assert (found.num_positive, found.num_true_positive) == (3, 2)
    assert (found.num_negative, found.num_true_negative, found.num_unscored) == (2, 1, 2)
    assert (found.sensitivity, found.specificity) == (2 / 3, 1 / 2)
    report = found.to_dict()
    assert (report["sensitivity"]["ci_low"], report["sensitivity"]["ci_high"]) == wilson(2 / 3, 3)
    assert report["specificity"]["rate"] == 1 / 2
    assert str(found) == "sensitivity 66.7% (2 of 3), specificity 50.0% (1 of 2), 2 unscored"
    only = JudgeError.measure([False], [False])
    assert only.sensitivity is None
    assert only.to_dict()["sensitivity"] == {"rate": None, "ci_low": None, "ci_high": None}
    assert "sensitivity not known" in str(only)
    with pytest.raises(ValueError, match="2 labels, 1 verdicts and 2 clusters"):
        JudgeError.measure([True, False], [True])


def test_labels_of_one_prompt_count_once():
    labels, verdicts = [True, False] * 20, [True, False] * 18 + [False, True] * 2
    clusters = [str(i // 8) for i in range(40)]
    apart, together = JudgeError.measure(labels, verdicts), JudgeError.measure(labels, verdicts, clusters)
    assert apart.positive_size == 20
    assert together.positive_size == 5  # the two that were missed are of one prompt
    assert (together.sensitivity, together.num_positive) == (apart.sensitivity, apart.num_positive)
    intervals = [corrected_rate(400, 120, 400.0, found) for found in (apart, together)]
    assert intervals[1]["ci_low"] < intervals[0]["ci_low"] < intervals[0]["ci_high"] < intervals[1]["ci_high"]


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
@pytest.mark.parametrize(("positives", "negatives"), [(50, 50), (20, 80), (200, 200)])
def test_intervals_cover_the_true_rate(rate, positives, negatives):
    """A judge with sensitivity .85 and specificity .95, measured anew in each of 2000 repetitions."""
    generator, times, num = np.random.default_rng(0), 2000, 400
    counts = generator.binomial(num, rate * 0.85 + (1 - rate) * 0.05, times)
    found, passed = generator.binomial(positives, 0.85, times), generator.binomial(negatives, 0.95, times)
    hits, narrowest = 0, 1.0
    for count, right, clear in zip(counts, found, passed, strict=True):
        labels = error(int(right), positives, int(clear), negatives)
        corrected = corrected_rate(num, int(count), float(num), labels)
        hits += corrected["ci_low"] <= rate <= corrected["ci_high"]
        narrowest = min(narrowest, corrected["ci_high"] - corrected["ci_low"])
    assert 0.92 <= hits / times <= 0.99
    assert narrowest > 0.02


def test_a_raw_interval_does_not_cover():
    """What is corrected: at a true rate of 5% this judge reports 9%, and its interval leaves the truth out."""
    low, _ = wilson(0.05 * 0.85 + 0.95 * 0.05, 2000)
    assert low > 0.05
