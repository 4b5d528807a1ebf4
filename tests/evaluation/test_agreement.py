"""Agreement of judges: textbook values, the libraries' values, invariances, and intervals that cover."""

import time

import krippendorff
import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from gradsteer.evaluation.agreement import alphas, group_agreement, kappas, pair_agreement
from gradsteer.evaluation.bootstrap import PromptBootstrap
from gradsteer.evaluation.statistics import expanded


def over(prompts, draws=1000):
    return PromptBootstrap.draw(np.asarray(prompts), draws=draws, seed=0)


def alone(count):
    return over(np.arange(count))


def from_cells(both, first, second, neither):
    one = [True] * (both + first) + [False] * (second + neither)
    two = [True] * both + [False] * first + [True] * second + [False] * neither
    return one, two


def test_kappa_of_a_textbook_table():
    found = pair_agreement(*from_cells(20, 5, 10, 15), alone(50))  # po = .7, pe = .5
    assert found.kappa == pytest.approx(0.4)
    assert found.agreement == pytest.approx(0.7)
    cells = (found.num_both_true, found.num_only_first, found.num_only_second, found.num_both_false)
    assert cells == (20, 5, 10, 15)
    assert found.num_left_out == 0
    assert found.reason is None
    # the large-sample standard error of Fleiss, Cohen and Everitt 1969
    error = cohens_kappa([[20, 5], [10, 15]]).std_kappa
    assert found.ci_low == pytest.approx(0.4 - 1.96 * error, abs=0.05)
    assert found.ci_high == pytest.approx(0.4 + 1.96 * error, abs=0.05)


def test_alpha_of_krippendorffs_own_example():
    first = [bool(value) for value in (0, 1, 0, 0, 0, 0, 0, 0, 1, 0)]
    second = [bool(value) for value in (1, 1, 1, 0, 0, 1, 0, 0, 0, 0)]
    assert group_agreement([first, second], alone(10)).alpha == pytest.approx(0.095, abs=5e-4)


def test_kappas_of_many_tables_are_the_librarys():
    tables = np.random.default_rng(0).integers(0, 30, (200, 4)).astype(float)
    wanted = [cohens_kappa(table.reshape(2, 2), return_results=False) for table in tables]
    np.testing.assert_allclose(kappas(tables), wanted, atol=1e-12)
    assert np.isnan(kappas(np.array([[7.0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]]))).all()


def test_alphas_of_many_resamples_are_the_librarys():
    generator = np.random.default_rng(0)
    for _ in range(50):
        counts = generator.integers(0, 4, (20, 2)).astype(float)
        counts[0] = (2, 1)
        of, paired = counts.sum(axis=1), counts.sum(axis=1) >= 2
        mixed = np.where(paired, counts.prod(axis=1) / np.maximum(of - 1, 1), 0.0)
        parts = np.array([[*counts[paired].sum(axis=0), mixed.sum()]])
        wanted = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
        assert alphas(parts)[0] == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(alphas(np.array([[9.0, 0, 0], [0, 4, 0]]))).all()


def test_what_a_judge_leaves_unscored_counts_nowhere():
    first, second = from_cells(20, 5, 10, 15)
    whole = pair_agreement(first, second, alone(50))
    more = pair_agreement([*first, None, True, None], [*second, True, None, None], alone(53))
    assert more.num_left_out == 3
    assert (more.kappa, more.agreement, more.num_both_true) == (whole.kappa, whole.agreement, whole.num_both_true)
    table = [[*first, None, True], [*second, True, None]]
    found = group_agreement([*table, [None] * 52], alone(52))
    assert (found.num_judges, found.num_responses, found.num_left_out) == (3, 50, 2)
    assert found.alpha == pytest.approx(group_agreement([first, second], alone(50)).alpha)


def test_missing_verdicts_enter_alpha_as_the_library_has_them():
    generator = np.random.default_rng(3)
    numbers = generator.integers(0, 2, (4, 60)).astype(float)
    numbers[generator.random(numbers.shape) < 0.4] = np.nan
    verdicts = [[None if np.isnan(value) else bool(value) for value in row] for row in numbers]
    wanted = krippendorff.alpha(reliability_data=numbers, level_of_measurement="nominal")
    found = group_agreement(verdicts, alone(60))
    assert found.alpha == pytest.approx(wanted)
    assert found.ci_low < wanted < found.ci_high
    assert found.num_left_out == int(((~np.isnan(numbers)).sum(axis=0) < 2).sum()) > 0


@pytest.mark.parametrize(
    ("first", "second", "kappa", "said"),
    [
        ([True] * 4, [True] * 4, None, "all verdicts are true: there is nothing that judges could disagree on"),
        ([False] * 4, [False] * 4, None, "all verdicts are false"),
        ([True] * 4, [True, False, True, False], 0.0, "the first judge's verdicts are all true: kappa is 0"),
        ([True, False, True, False], [False] * 4, 0.0, "the second judge's verdicts are all false: kappa is 0"),
        ([True] * 4, [False] * 4, 0.0, "first judge's verdicts are all true and the second judge's"),
        ([None] * 4, [True] * 4, None, "there is no response on which both have a verdict"),
    ],
)
def test_what_has_no_kappa_says_why(first, second, kappa, said):
    found = pair_agreement(first, second, alone(4))
    assert found.kappa == kappa
    assert (found.ci_low, found.ci_high) == (None, None)
    assert said in found.reason
    assert all(value == value for value in found.to_dict().values()), "NaN"


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([[True, True], [True, True]], "all verdicts are true"),
        ([[False, None], [False, None]], "all verdicts are false"),
        ([[True, None], [None, False]], "there is no response on which two judges have a verdict"),
    ],
)
def test_what_has_no_alpha_says_why(verdicts, said):
    found = group_agreement(verdicts, alone(2))
    assert (found.alpha, found.ci_low, found.ci_high) == (None, None, None)
    assert said in found.reason


def test_judges_who_never_disagreed_still_have_an_interval():
    few, many = (from_cells(count // 2, 0, 0, count // 2) for count in (20, 2000))
    small, large = pair_agreement(*few, alone(20)), pair_agreement(*many, alone(2000))
    assert small.kappa == large.kappa == small.ci_high == 1
    assert 0.5 < small.ci_low < 0.9 < large.ci_low < 1  # of 20, Wilson's 0.839, twice as far from 1
    assert small.ci_low == pytest.approx(1 - 2 * (1 - small.agreement_ci_low))
    assert group_agreement(few, alone(20)).ci_low == pytest.approx(small.ci_low, abs=0.02)
    # replies to one prompt are one observation
    assert pair_agreement(*few, over([0] * 20)).ci_low < 0
    assert pair_agreement(*from_cells(1, 0, 0, 19), over([0] * 20)).ci_low == -1


def test_the_order_of_judges_and_responses_and_the_sense_decide_nothing():
    generator = np.random.default_rng(0)
    first = (generator.random(60) < 0.4).tolist()
    second = [value if generator.random() < 0.8 else not value for value in first]
    prompts = np.repeat(np.arange(20), 3)
    whole = pair_agreement(first, second, over(prompts))
    swapped = pair_agreement(second, first, over(prompts))
    assert (swapped.kappa, swapped.ci_low, swapped.ci_high) == (whole.kappa, whole.ci_low, whole.ci_high)
    assert (swapped.num_only_first, swapped.num_only_second) == (whole.num_only_second, whole.num_only_first)
    negated = pair_agreement([not value for value in first], [not value for value in second], over(prompts))
    assert negated.kappa == pytest.approx(whole.kappa)
    assert negated.ci_low == pytest.approx(whole.ci_low)
    order = generator.permutation(60)
    shuffled = pair_agreement([first[i] for i in order], [second[i] for i in order], over(prompts[order]))
    assert shuffled.ci_low == pytest.approx(whole.ci_low)
    both = group_agreement([first, second], over(prompts)), group_agreement([second, first], over(prompts))
    assert both[0] == both[1]


def test_copies_of_replies_to_the_same_prompts_add_nothing():
    first, second = from_cells(20, 5, 10, 15)
    once = pair_agreement(first, second, alone(50))
    again = pair_agreement(first * 4, second * 4, over(np.tile(np.arange(50), 4)))
    assert again.kappa == pytest.approx(once.kappa)
    assert (again.ci_low, again.ci_high) == (pytest.approx(once.ci_low), pytest.approx(once.ci_high))
    apart = pair_agreement(first * 4, second * 4, alone(200))
    assert apart.ci_high - apart.ci_low < 0.6 * (once.ci_high - once.ci_low)


@pytest.mark.slow
def test_intervals_are_of_prompts_drawn_again():
    first, second = from_cells(20, 5, 10, 15)
    bootstrap = over(np.arange(50) % 10)
    draws = []
    for counts in bootstrap.counts:
        times = counts[bootstrap.prompts].astype(int)
        one, two = np.repeat(first, times), np.repeat(second, times)
        draws.append(
            cohens_kappa([[(one & two).sum(), (one & ~two).sum()], [(~one & two).sum(), (~one & ~two).sum()]]).kappa
        )
    found, half = pair_agreement(first, second, bootstrap), 50 * expanded(10)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.percentile(draws, [50 - half, 50 + half])))


def test_intervals_of_a_group_are_as_wide():
    """By the share that a few prompts need: those on which two judges have a verdict."""
    first, second = from_cells(20, 5, 10, 15)
    verdicts = [[*first, True, True], [*second, None, None]]
    bootstrap = over([*(np.arange(50) % 10), 10, 11])
    trues = np.sum([first, second], axis=0, dtype=float)
    parts = np.stack([trues, 2 - trues, trues * (2 - trues)], axis=1)
    drawn = alphas(bootstrap.sums(np.concatenate([parts, np.zeros((2, 3))])))
    found, half = group_agreement(verdicts, bootstrap), 50 * expanded(10)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.percentile(drawn, [50 - half, 50 + half])))


def test_confidence_widens_the_intervals():
    first, second = from_cells(20, 5, 10, 15)
    for agree in (
        lambda c: pair_agreement(first, second, alone(50), c),
        lambda c: group_agreement([first, second], alone(50), c),
    ):
        wide, narrow = agree(0.99), agree(0.8)
        assert wide.ci_low < narrow.ci_low < narrow.ci_high < wide.ci_high


def test_intervals_cover_the_true_kappa():
    """Replies to a prompt that are alike; judges who err apart. 150 samples: one in 20 misses, 0.018 is the error."""
    generator = np.random.default_rng(0)
    prompts, wrong = np.repeat(np.arange(100), 4), 0.1

    def sample(count):
        base = np.repeat(generator.random(count) < 0.3, 4)
        truth = np.where(np.repeat(generator.random(count) < 0.5, 4), base, generator.random(4 * count) < 0.3)
        return [truth ^ (generator.random(4 * count) < wrong) for _ in range(3)]

    rate = 0.3 * (1 - wrong) + 0.7 * wrong
    agree, chance = (1 - wrong) ** 2 + wrong**2, rate**2 + (1 - rate) ** 2
    kappa, bootstrap = (agree - chance) / (1 - chance), over(prompts)
    hits = np.zeros(2)
    for _ in range(150):
        verdicts = [found.tolist() for found in sample(100)]
        pair, group = pair_agreement(*verdicts[:2], bootstrap), group_agreement(verdicts, bootstrap)
        hits += [found.ci_low <= kappa <= found.ci_high for found in (pair, group)]
    assert (hits / 150 > 0.9).all(), hits / 150
    assert (hits / 150 < 0.995).all(), hits / 150


def test_thousands_of_responses_take_no_time():
    generator = np.random.default_rng(0)
    verdicts = [(generator.random(8000) < 0.3).tolist() for _ in range(4)]
    pair_agreement(verdicts[0][:4], verdicts[1][:4], alone(4))  # what is imported on the first call
    started = time.perf_counter()
    bootstrap = over(np.repeat(np.arange(2000), 4))
    for first in range(4):
        for second in range(first):
            pair_agreement(verdicts[first], verdicts[second], bootstrap)
    group_agreement(verdicts, bootstrap)
    assert time.perf_counter() - started < 2


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 verdicts of a judge and 4 responses"):
        pair_agreement([True] * 4, [True] * 3, alone(4))
    with pytest.raises(ValueError, match="verdicts of 1 judges; agreement needs at least 2"):
        group_agreement([[True] * 4], alone(4))
