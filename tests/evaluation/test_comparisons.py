"""Paired differences of rates: exact tests against their oracles, the interval, and simulations of level and power."""

import itertools
import json
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import rest_slow
from scipy.stats import binomtest, permutation_test
from statsmodels.stats.multitest import multipletests

from gradsteer.data.response_rows import cluster_of, prompt_digest
from gradsteer.evaluation.comparisons import Comparison, compare, holm
from gradsteer.evaluation.realised_shift import realised_shift
from gradsteer.evaluation.sign_flips import paired_or_dealt, sign_flip
from gradsteer.evaluation.specificity import Selectivity, Shift, Specificity, measure_specificity

_SLOW = pytest.mark.slow


def rows_of(counts, samples, **extra):
    """One row a reply: the first counts[k] of prompt k's replies show the behavior."""
    return [
        {"id": f"prompt {k}", "sample": s, "verdicts": {"bridge": bool(s < count)}, **extra}
        for k, count in enumerate(counts)
        for s in range(samples)
    ]


def exact_sign_flip(differences):
    """Two-sided p-value over all flips of whole numbers: the distribution of the sum, by convolution."""
    distribution = np.ones(1)
    for value in np.abs(differences).astype(int):
        kernel = np.zeros(2 * value + 1)
        kernel[0] += 0.5
        kernel[-1] += 0.5
        distribution = np.convolve(distribution, kernel)
    sums = np.arange(len(distribution)) - np.abs(differences).sum()
    return min(1.0, 2 * distribution[sums >= abs(differences.sum())].sum())


def enumerated(differences, resamples=np.inf):
    """scipy's p-value: over all flips, or over random ones."""
    return permutation_test(
        (differences, np.zeros(len(differences))), lambda x, y, axis: (x - y).sum(axis=axis), vectorized=True,
        permutation_type="samples", n_resamples=resamples, batch=10_000, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip


def looping(rows, which):
    """The rows with those degenerate for which `which` holds."""
    return [{**row, "degenerate": which(row)} for row in rows]


# tests


@pytest.mark.parametrize(("lost", "gained"), [(5, 0), (9, 2), (3, 3), (0, 1), (0, 0), (14, 5)])
def test_one_reply_a_prompt_is_mcnemars_exact_test(lost, gained):
    before = [1] * lost + [0] * gained + [1] * 7 + [0] * 30
    after = [0] * lost + [1] * gained + [1] * 7 + [0] * 30
    found = compare(rows_of(before, 1), rows_of(after, 1), "bridge")
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert found.test == "mcnemar"
    assert found.p == pytest.approx(expected)
    assert found.difference == pytest.approx((gained - lost) / len(before))
    assert (found.num_pairs, found.num_differing) == (len(before), lost + gained)
    # the sign-flip test is the same test
    assert sign_flip(np.array(after) - np.array(before)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num", [3, 10, 60])
def test_several_replies_are_the_sign_flip_test(num):
    rng = np.random.default_rng(num)
    before, after = rng.binomial(4, 0.5, num), rng.binomial(4, 0.35, num)
    found = compare(rows_of(before, 4), rows_of(after, 4), "bridge")
    assert found.test == "sign_flip"
    assert found.difference == pytest.approx((after - before).mean() / 4)
    assert found.p == pytest.approx(exact_sign_flip(after - before), rel=1e-9)


def test_scipy_with_pairs_that_do_not_differ_says_the_same():
    rng = np.random.default_rng(3)
    one, other = rng.binomial(3, 0.2, 11).astype(float), rng.binomial(3, 0.5, 11).astype(float)
    expected = permutation_test(
        (one, other), lambda x, y: x.mean() - y.mean(), permutation_type="samples", n_resamples=np.inf
    )
    assert (one == other).any()
    assert sign_flip(other - one) == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize("num", [2, 5, 12])
@pytest.mark.parametrize("seed", range(4))
def test_fractions_are_scipys_enumeration(num, seed):
    rng = np.random.default_rng(seed)
    numerators, below = rng.integers(-9, 10, num).astype(float), rng.integers(1, 17, num).astype(float)
    expected = enumerated(numerators / below)
    assert sign_flip(numerators, below) == pytest.approx(expected, rel=1e-9)
    # a common factor and the signs of all are nothing to it
    assert sign_flip(-7 * numerators, 3 * below) == sign_flip(numerators, below)


def test_a_hundred_prompts_are_scipys_sampling():
    rng = np.random.default_rng(14)
    before, after = rng.binomial(8, 0.3, 100), rng.binomial(8, 0.27, 100)
    found, sampled = sign_flip(after - before), enumerated(after - before, 99_999)
    assert 0.005 < found < 0.5
    assert sampled == pytest.approx(found, abs=5 * math.sqrt(found * (1 - found) / 1e5))
    assert sign_flip(after - before) == pytest.approx(exact_sign_flip(after - before), rel=1e-9)


def test_more_replies_on_one_side_are_dealt_in_all_ways():
    """Against all ways to choose which of a prompt's replies are those after, one prompt at a time."""
    before, after = rows_of([3, 1, 2], 4), [row for row in rows_of([0, 1, 0], 4) if row["sample"] < 2]
    found = compare(before, after, "bridge")
    assert found.test == "sign_flip, cmh"
    sums = [0]
    for prompt in range(3):
        replies = [row["verdicts"]["bridge"] for row in (*before, *after) if row["id"] == f"prompt {prompt}"]
        sums = [total + sum(chosen) for total in sums for chosen in itertools.combinations(replies, 2)]
    observed = sum(row["verdicts"]["bridge"] for row in after)
    tails = [np.mean(np.array(sums) <= observed), np.mean(np.array(sums) >= observed)]
    sizes = np.array([[4, 4, 4], [2, 2, 2]], dtype=float)
    positives = np.array([[3, 1, 2], [0, 1, 0]], dtype=float)
    assert paired_or_dealt(positives, sizes) == pytest.approx(min(1, 2 * min(tails)))
    assert paired_or_dealt(positives[::-1], sizes[::-1]) == pytest.approx(paired_or_dealt(positives, sizes))
    assert found.p == max(
        paired_or_dealt(positives, sizes), sign_flip(found_numerators(positives, sizes), sizes.sum(axis=0))
    )


def found_numerators(positives, sizes):
    return positives[1] * sizes[0] - positives[0] * sizes[1]


def test_with_equal_sides_replies_are_flipped_and_with_some_unequal_ones_these_alone_are_dealt():
    rng = np.random.default_rng(18)
    before, after = rng.binomial(3, 0.4, (2, 6)).astype(float)
    equal = np.full((2, 6), 3.0)
    flips = sign_flip(after - before)
    assert paired_or_dealt(np.stack([before, after]), equal) == pytest.approx(flips)
    # the first prompt lost a reply after: all ways to deal its five, with all flips of the others
    unequal, positives = equal.copy(), np.stack([before, after])
    unequal[1, 0], positives[1, 0] = 2, min(after[0], 2)
    replies = [1] * int(positives[:, 0].sum()) + [0] * int(5 - positives[:, 0].sum())
    dealt = [sum(chosen) for chosen in itertools.combinations(replies, 2)]
    flipped = [sum(signs) for signs in itertools.product(*((d / 2, -d / 2) for d in after[1:] - before[1:]))]
    sums = np.array([one + other for one in dealt for other in flipped])
    observed = positives[1, 0] + (after[1:] - before[1:]).sum() / 2
    expected = min(1, 2 * min(np.mean(sums <= observed), np.mean(sums >= observed)))
    assert paired_or_dealt(positives, unequal) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("correlation", [0, 0.5])
def test_a_lost_reply_does_not_undo_the_pairing(correlation, shared):
    """Three replies of 800 have no verdict: what is found hardly changes."""
    rng = np.random.default_rng(19)
    ratios = []
    for before, after in zip(*simulated(rng, 20, 100, 8, (0.3, 0.2), correlation, shared), strict=True):
        whole = compare(rows_of(before, 8), rows_of(after, 8), "bridge", draws=100)
        lost = {f"prompt {number}" for number in rng.choice(100, 3, replace=False)}
        rows = looping(rows_of(before, 8), lambda row, lost=lost: row["id"] in lost and row["sample"] == 7)
        ratios.append(compare(rows, rows_of(after, 8), "bridge", draws=100).p / whole.p)
    assert np.median(ratios) < 3


@pytest.mark.parametrize(
    ("lost", "own_rates", "tables"),
    [
        (0.3, True, 100),
        *(pytest.param(*each, 300, marks=_SLOW) for each in ((0.3, True), (0.3, False), (0.02, True), (0.02, False))),
    ],
)
def test_no_difference_is_found_too_often_where_replies_got_lost(lost, own_rates, tables):
    """Whether each condition has prompts' rates of its own, or both have the same."""
    rng = np.random.default_rng(20)
    found = 0
    for _ in range(tables):
        rates = rng.beta(0.5, 1.5, (2 if own_rates else 1, 40, 1))
        replies = rng.random((2, 40, 8)) < rates
        kept = rng.random((2, 40, 8)) >= lost
        sizes, positives = kept.sum(axis=2).astype(float), (replies & kept).sum(axis=2).astype(float)
        p = sign_flip(found_numerators(positives, sizes), sizes.sum(axis=0))
        found += max(p, paired_or_dealt(positives, sizes)) <= 0.05
    assert found <= 0.065 * tables


@pytest.mark.parametrize(
    ("prompts", "kept", "rate"),
    [(30, 2, 0.05), *(pytest.param(*each, marks=_SLOW) for each in ((30, 1, 0.05), (100, 1, 0.02)))],
)
def test_no_difference_is_found_too_often_where_a_side_lost_most_of_its_replies(prompts, kept, rate):
    rng = np.random.default_rng(16)
    found = flips = 0
    for _ in range(200):
        positives = np.stack([rng.binomial(8, rate, prompts), rng.binomial(kept, rate, prompts)]).astype(float)
        sizes = np.stack([np.full(prompts, 8.0), np.full(prompts, float(kept))])
        p = sign_flip(found_numerators(positives, sizes), sizes.sum(axis=0))
        flips += p <= 0.05
        found += max(p, paired_or_dealt(positives, sizes)) <= 0.05
    assert found <= 13
    assert flips > found


def test_the_p_value_has_no_floor():
    for samples in (1, 3):  # with one reply and with several
        found = compare(rows_of([samples] * 60, samples), rows_of([0] * 60, samples), "bridge")
        assert found.p == 2.0**-59
    table = holm([found] + [compare(rows_of([1] * 9, 2), rows_of([1] * 9, 2), "bridge")] * 400)
    assert table[0].p_holm == pytest.approx(401 * 2.0**-59)
    assert 0 < sign_flip(np.ones(1200)) < 1e-300  # 2^-1199 is no float


def test_what_is_too_fine_to_enumerate_is_sampled():
    rng = np.random.default_rng(15)
    numerators, below = rng.integers(-7, 9, 40).astype(float), rng.integers(9, 17, 40).astype(float)
    exact, sampled = sign_flip(numerators, below, cells=10**8), sign_flip(numerators, below, cells=1)
    assert 0.05 < exact < 0.5
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 1e4))
    order = rng.permutation(40)
    assert sign_flip(-numerators[order], below[order], cells=1) == sampled
    # at its floor more are drawn, and the one observed is among them
    assert sign_flip(np.arange(1, 41), cells=0) == 1 / 1_000_001
    with pytest.raises(ValueError, match=r"a difference is 0\.5; accepted: whole numbers"):
        sign_flip(np.array([1.0, 0.5]))


def test_five_prompts_against_none_are_no_finding():
    # a bootstrap draws none of the five in (95 / 100) ** 100 = 0.6% of the draws: twice that is its p-value
    found = compare(rows_of([1] * 5 + [0] * 95, 1), rows_of([0] * 100, 1), "bridge")
    assert found.p == pytest.approx(0.0625)
    assert found.few


def test_the_order_of_rows_decides_nothing_and_swapping_conditions_only_the_sign():
    rng = np.random.default_rng(5)
    before, after = rows_of(rng.binomial(3, 0.3, 40), 3), rows_of(rng.binomial(3, 0.2, 40), 3)
    found = compare(before, after, "bridge")
    shuffled = [random.Random(1).sample(rows, len(rows)) for rows in (before, after)]
    assert compare(*shuffled, "bridge") == found
    swapped = compare(after, before, "bridge")
    assert (swapped.difference, swapped.p) == (-found.difference, found.p)
    assert (swapped.ci_low, swapped.ci_high) == pytest.approx((-found.ci_high, -found.ci_low), abs=1e-12)


def test_the_interval_is_the_bootstraps_where_counts_are_not_small():
    rng = np.random.default_rng(6)
    before, after = rng.binomial(8, 0.4, 100), rng.binomial(8, 0.2, 100)
    found = compare(rows_of(before, 8), rows_of(after, 8), "bridge")
    changes = (after - before) / 8
    draws = changes[np.random.default_rng(7).integers(0, 100, (20000, 100))].mean(axis=1)
    assert not found.few
    assert (found.ci_low, found.ci_high) == pytest.approx(np.percentile(draws, [2.3, 97.7]), abs=0.003)
    wider = compare(rows_of(before, 8), rows_of(after, 8), "bridge", draws=100, seed=1)
    assert (wider.ci_low, wider.ci_high) != (found.ci_low, found.ci_high)


@pytest.mark.parametrize(
    ("both", "lost", "gained", "neither"), [(3, 5, 0, 92), (20, 2, 1, 17), (0, 0, 0, 30), (0, 7, 0, 3)]
)
def test_small_counts_have_at_least_newcombes_interval(both, lost, gained, neither):
    num = both + lost + gained + neither
    before, after = (
        [1] * both + [1] * lost + [0] * (gained + neither),
        [1] * both + [0] * lost + [1] * gained + [0] * neither,
    )
    found = compare(rows_of(before, 1), rows_of(after, 1), "bridge")
    # method 10, from the 2 x 2 table
    (one, low1, high1), (two, low2, high2) = (
        (count / num, *binomtest(count, num).proportion_ci(method="wilson")) for count in (both + lost, both + gained)
    )
    scale = math.sqrt((both + lost) * (gained + neither) * (both + gained) * (lost + neither))
    phi = max(both * neither - lost * gained - num / 2, 0) / scale if scale else 0
    low = two - one - math.sqrt((two - low2) ** 2 - 2 * phi * (two - low2) * (high1 - one) + (high1 - one) ** 2)
    high = two - one + math.sqrt((high2 - two) ** 2 - 2 * phi * (high2 - two) * (one - low1) + (one - low1) ** 2)
    assert found.few
    assert found.ci_low <= low + 1e-12
    assert found.ci_high >= high - 1e-12
    if not lost + gained:  # all draws of the bootstrap are 0
        assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    ("before", "after"),
    [([0] * 9, [0] * 9), ([4] * 9, [4] * 9), ([2] * 40, [2] * 40), ([2] * 40, [3] * 40), ([0], [4])],
)
def test_the_interval_is_never_a_point(before, after):
    found = compare(rows_of(before, 4), rows_of(after, 4), "bridge")
    assert -1 <= found.ci_low <= found.difference <= found.ci_high <= 1
    assert found.ci_high - found.ci_low > 0.02
    assert 0 < found.p <= 1


def test_unscored_and_degenerate_replies_weigh_less_and_lost_prompts_nothing():
    rows = lambda *sides: [  # noqa: E731
        {"id": prompt, "verdicts": {"bridge": verdict}} for prompt, verdicts in sides for verdict in verdicts
    ]
    before = rows(("a", [True, True]), ("b", [True, False]), ("lost", [True, True]))
    after = rows(("a", [True, None]), ("b", [False, False]), ("lost", [None, None]), ("new", [True]))
    after.append({"id": "lost", "verdicts": {"bridge": False}, "degenerate": True})
    found = compare(before, after, "bridge")
    assert (found.num_prompts, found.num_pairs, found.num_differing) == (4, 2, 1)
    # weights 2 * 1 / 3 and 2 * 2 / 4; differences 0 and -1/2
    assert found.difference == pytest.approx(-0.5 / (2 / 3 + 1))
    paired = [rows_ for rows_ in after if rows_["id"] in ("a", "b")]
    # the loop is counted on its own, and moves the bounds alone
    alone = compare(before[:4], paired, "bridge")
    changed = {"num_prompts": 2, "num_degenerate": 0, "num_unscored": 1}
    changed |= {key: getattr(alone, key) for key in ("lowest", "highest", "p_lowest", "p_highest")}
    assert (found.num_unscored_before, found.num_unscored) == (0, 3)
    assert alone.to_dict() == found.to_dict() | changed
    assert found.lowest < alone.lowest < alone.difference < alone.highest


def test_equally_many_scored_replies_give_the_plain_difference():
    rng = np.random.default_rng(8)
    before, after = [], []
    for k in range(30):
        for _ in range(int(rng.integers(1, 6))):
            for rows in (before, after):
                rows.append({"id": k, "verdicts": {"bridge": bool(rng.random() < 0.4)}})
    share = [np.mean([row["verdicts"]["bridge"] for row in rows]) for rows in (before, after)]
    assert compare(before, after, "bridge").difference == pytest.approx(share[1] - share[0])


def test_nothing_to_compare_is_none():
    scored, unscored = rows_of([1, 0], 2), [{"id": "prompt 0", "verdicts": {"bridge": None}}]
    for before, after, prompts in (([], [], 0), (scored, [], 2), (scored, unscored, 2), (unscored, unscored, 0)):
        found = compare(before, after, "bridge")
        assert (found.num_prompts, found.num_pairs, found.num_differing) == (prompts, 0, 0)
        assert found.p is found.ci_low is found.ci_high is found.test is None
        assert found.difference is None
    with pytest.raises(ValueError, match="draws is 10"):
        compare(scored, scored, "bridge", draws=10)


def test_holm_corrects_over_the_table_and_skips_what_has_no_p():
    values = [0.01, None, 0.04, 0.03]
    table = [Comparison(f"behavior {i}", 1, 1, 1, p=value) for i, value in enumerate(values)]
    assert [row.p_holm for row in holm(table)] == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert [row.behavior for row in holm(table)] == [row.behavior for row in table]
    # the whole table: whatever was looked at counts, also where nothing differs
    same = Comparison("same", 9, 9, 0, p=1.0)
    plain = multipletests([0.01, 0.04, 0.03, 1.0, 1.0], method="holm")[1]
    assert [row.p_holm for row in holm([*table, same, same]) if row.p is not None] == pytest.approx(list(plain))
    assert holm([same])[0].p_holm == 1.0
    # unless replies without a verdict may differ
    open_ended = replace(same, difference=0.0, lowest=-0.9, highest=0.0, p_lowest=0.02, p_highest=1.0)
    assert not holm([open_ended])[0].robust
    assert holm([open_ended, same, replace(same, num_differing=2, p=0.9)])[0].robust
    assert holm([]) == []
    assert holm([table[1]]) == [table[1]]


def test_robust_is_of_what_is_quoted_the_corrected_p():
    """Of one comparison alone every way to count is significant; beside thirty others one of them is not."""
    found = Comparison(
        "bridge", 60, 60, 30, difference=-0.3, p=0.001, lowest=-0.4, highest=-0.2, p_lowest=1e-4, p_highest=0.006
    )
    others = [Comparison("recipe", 60, 60, 1, difference=0.0, p=1.0, lowest=0.0, highest=0.0)] * 30
    assert holm([found])[0].robust
    corrected = holm([found, *others])[0]
    assert corrected.p_holm == pytest.approx(0.031)
    assert not corrected.robust
    assert holm([replace(found, p_highest=0.0016), *others])[0].robust
    assert holm([*others, found])[-1] == corrected


def test_an_extremes_p_is_corrected_in_the_place_of_its_own(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # the oracle collects garbage in every call, which takes a second
    rng = random.Random(2)
    found_robust = set()
    for _ in range(12):
        values = [rng.choice([0.001, 0.002, 0.004, 0.01, 0.03, 0.5]) for _ in range(8)]
        extremes = [rng.choice([*values, 0.003, 0.006, 0.05]) for _ in values]
        table = [
            Comparison("bridge", 9, 9, 9, difference=-0.2, p=p, lowest=-0.3, highest=-0.1, p_lowest=p, p_highest=other)
            for p, other in zip(values, extremes, strict=True)
        ]
        for place, found in enumerate(holm(table)):
            replaced = [*values[:place], extremes[place], *values[place + 1 :]]
            at_extreme = multipletests(replaced, method="holm")[1][place]
            assert found.robust == ((found.p_holm <= 0.05) == (at_extreme <= 0.05))
            found_robust.add(found.robust)
    assert found_robust == {True, False}


def test_to_dict_is_plain_json():
    for found in (compare([], [], "bridge"), *holm([compare(rows_of([1] * 9, 1), rows_of([0] * 9, 1), "bridge")])):
        text = json.dumps(found.to_dict(), allow_nan=False)
        assert json.loads(text) == found.to_dict()


def test_a_tables_comparisons_take_seconds():
    rng = np.random.default_rng(9)
    before = rows_of(rng.binomial(8, 0.3, 100), 8)
    conditions = [rows_of(rng.binomial(8, 0.3, 100), 8) for _ in range(5)]
    compare(before, before, "bridge")  # imports
    started = time.process_time()
    holm([compare(before, after, "bridge") for after in conditions * 4])
    assert time.process_time() - started < 3


# degenerate replies


def test_a_rate_that_falls_because_replies_loop_is_not_robust():
    """Half of the replies show the behavior; after, the same replies loop."""
    before = rows_of([4] * 60, 8)
    after = looping(before, lambda row: row["verdicts"]["bridge"])
    found = compare(before, after, "bridge")
    assert (found.difference, found.p) == (-0.5, 2.0**-59)
    assert (found.num_degenerate_before, found.num_degenerate) == (0, 240)
    assert (found.lowest, found.highest) == (-0.5, 0.0)
    assert not found.robust
    swapped = compare(after, before, "bridge")
    assert (swapped.num_degenerate_before, swapped.num_degenerate) == (240, 0)
    assert (swapped.lowest, swapped.highest, swapped.robust) == (0.0, 0.5, False)


def test_a_few_loops_change_no_large_difference():
    before, after = rows_of([6] * 60, 8), looping(rows_of([1] * 60, 8), lambda row: row["sample"] == 7)
    found = compare(before, after, "bridge")
    # 1 of 7, and with the loop 1 or 2 of 8
    assert (found.difference, found.lowest, found.highest) == pytest.approx((1 / 7 - 0.75, -0.625, -0.5))
    assert found.robust


@pytest.mark.parametrize(("num", "robust"), [(0, True), (1, True), (30, False)])
def test_no_difference_is_robust_where_no_way_to_count_finds_one(num, robust):
    before, after = rows_of([2, 3] * 15, 8), rows_of([3, 2] * 15, 8)  # as many gain as lose
    loops = {f"prompt {k}" for k in range(num)}
    found = compare(before, looping(after, lambda row: row["id"] in loops and row["sample"] >= 4), "bridge")
    one, other = found.lowest, found.highest
    if num < 30:
        assert found.p > 0.05
    assert found.robust is robust
    assert one <= found.difference <= other
    assert (one == other) == (num == 0)


def test_a_difference_that_changes_its_sign_is_not_robust():
    # each way to count is significant: 1 of 3 after without the loops, 1 or 6 of 8 with them, against 4 of 8
    before = rows_of([4] * 60, 8)
    after = looping(rows_of([1] * 60, 8), lambda row: row["sample"] >= 3)
    found = compare(before, after, "bridge")
    assert (found.lowest, found.highest, found.test) == (-0.375, 0.25, "sign_flip, cmh")
    assert 1e-4 < found.p < 1e-3  # the prompts all move alike, but three replies of one each say little
    assert found.p_lowest == found.p_highest == 2.0**-59
    assert not found.robust


def test_a_condition_of_loops_alone_has_bounds_and_no_difference():
    before = rows_of([4] * 10, 8)
    found = compare(before, looping(before, lambda _: True), "bridge")
    assert (found.difference, found.p, found.num_pairs) == (None, None, 0)
    assert (found.lowest, found.highest, found.robust) == (-0.5, 0.5, False)
    few = compare(before[:24], looping(before[:24], lambda _: True), "bridge")
    assert few.robust  # three prompts cannot be significant


def test_unscored_replies_move_the_bounds_as_loops_do():
    before = rows_of([4] * 60, 8)
    after = [{**row, "verdicts": {"bridge": None}} if row["verdicts"]["bridge"] else row for row in before]
    found = compare(before, after, "bridge")
    assert (found.num_degenerate, found.num_unscored_before, found.num_unscored) == (0, 0, 240)
    loops = compare(before, looping(before, lambda row: row["verdicts"]["bridge"]), "bridge")
    changed = {"num_degenerate": 240, "num_unscored": 0}
    assert found.to_dict() | changed == loops.to_dict()
    assert not found.robust


def test_prompts_that_were_never_sampled_move_nothing():
    before = [{**row, "failed": None} for row in rows_of([4] * 10, 8)]
    never = {"id": "long", "verdicts": {"bridge": None}, "failed": "longer than the context"}
    found, alone = compare([*before, never], [*before, never], "bridge"), compare(before, before, "bridge")
    assert found == alone


def test_no_zero_is_negative():
    found = Comparison("bridge", 1, 1, 0, -0.0, -0.0, 0.0, 1.0, lowest=-0.0, highest=-0.0)
    assert "-0.0" not in json.dumps(found.to_dict())
    assert found.to_dict()["ci_low"] == 0
    specificity = Specificity({"bridge": Shift(-0.0, -0.0, 0.0, 1, 1, 1, 1)}, Selectivity(-0.0, -0.0, 0.0, "b"))
    assert "-0.0" not in json.dumps(specificity.to_dict())
    assert specificity.to_dict()["selectivity"]["largest_other"] == "b"


# prompts under several ids


def test_ids_of_one_prompt_are_one_cluster():
    """Ten prompts of ten ids each: comparison, shift and realised shift take them for ten, not for a hundred."""

    def rows(shown, text):
        return [
            {"id": f"{k}-{i}", "prompt": text(k, i), "verdicts": {"bridge": k < shown}}
            for k in range(10)
            for i in range(10)
        ]

    def measured(text, **changes):
        before, after = rows(6, text), [{**row, **changes} for row in rows(3, text)]
        shift = measure_specificity(before, after, ["bridge"]).shifts["bridge"]
        realised = realised_shift(before, after, {"bridge": True}, {"bridge": False})
        return (
            compare(before, after, "bridge"),
            (shift.ci_low, shift.ci_high),
            (realised["ci_low"], realised["ci_high"]),
        )

    def same(k, i):
        return f"Question {k}?"

    few, *wide = measured(same)
    many, *narrow = measured(lambda k, i: f"Question {k}, {i}?")
    assert (few.num_pairs, many.num_pairs) == (10, 100)
    assert (few.difference, few.p) == (pytest.approx(-0.3), 0.25)  # three prompts of three
    assert many.p < 1e-8
    wide, narrow = [(few.ci_low, few.ci_high), *wide], [(many.ci_low, many.ci_high), *narrow]
    for one, other in zip(wide, narrow, strict=True):
        assert one[1] - one[0] > 2 * (other[1] - other[0])
    assert wide[1] == pytest.approx(wide[2], rel=0.1)  # the same shift, of two functions
    assert few.ci_low < 0 < few.ci_high
    assert many.ci_high < 0
    # ids are nothing to any of them, nor are white space and a system message before the turns
    assert measured(same, id="x")[0] == few
    assert measured(lambda k, i: f"system: Be brief.\nuser: Question {k}?  ") == measured(same)


def test_a_row_without_a_text_is_told_by_its_id():
    assert cluster_of({"id": 7}) == "7"
    assert cluster_of({"id": 7, "prompt": "Why?"}) == cluster_of({"id": 8, "prompt": " Why?"}) == prompt_digest("Why?")


# simulations


def simulated(rng, num, prompts, samples, rates, correlation, shared):
    """(num, prompts) positives before and after; with shared seeds four in five replies have the same draw."""
    chance = rng.random((num, prompts, 1))
    own = [np.full((num, prompts, 1), rate) for rate in rates]
    if correlation:
        from scipy.stats import beta

        strength = (1 - correlation) / correlation
        own = [beta.ppf(chance, rate * strength, (1 - rate) * strength) for rate in rates]
    first, second = rng.random((2, num, prompts, samples))
    if shared:
        second = np.where(rng.random(second.shape) < 0.8, first, second)
    return (first < own[0]).sum(axis=2), (second < own[1]).sum(axis=2)


def found_share(prompts, samples, rates, correlation, shared, num):
    rng = np.random.default_rng(10)
    before, after = simulated(rng, num, prompts, samples, rates, correlation, shared)
    return float(np.mean([sign_flip(one) <= 0.05 for one in after - before]))


SETTINGS = [
    (rate, correlation, shared)
    for rate in (0.01, 0.05, 0.2, 0.5)
    for correlation in (0, 0.2, 0.5)
    for shared in (True, False)
]


@pytest.mark.parametrize(
    ("rate", "correlation", "shared"), [(0.05, 0.2, True), (0.05, 0.5, False), (0.2, 0.5, True), (0.5, 0, False)]
)
def test_no_difference_is_found_too_often(rate, correlation, shared):
    assert found_share(30, 8, (rate, rate), correlation, shared, 300) <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "correlation", "shared"), SETTINGS)
@pytest.mark.parametrize(("prompts", "samples"), [(100, 8), (30, 8), (100, 1)])
def test_no_difference_is_found_too_often_closely(prompts, samples, rate, correlation, shared):
    assert found_share(prompts, samples, (rate, rate), correlation, shared, 2000) <= 0.065


def test_prompts_that_move_either_way_are_no_difference_though_their_replies_are_many():
    rng = np.random.default_rng(13)
    by_prompt = by_reply = 0
    for _ in range(200):
        before, after = rng.random((2, 40, 8)) < rng.beta(0.5, 0.5, (2, 40, 1))  # each condition has rates of its own
        by_prompt += sign_flip(after.sum(axis=1) - before.sum(axis=1)) <= 0.05
        by_reply += sign_flip(np.ravel(after * 1 - before * 1)) <= 0.05
    assert by_prompt <= 13
    assert by_reply > 60


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("correlation", [0, 0.2, 0.5])
def test_a_shift_from_20_to_10_percent_is_found(correlation, shared):
    assert found_share(100, 8, (0.2, 0.1), correlation, shared, 100) > 0.95


@pytest.mark.slow
def test_comparisons_of_rows_hold_their_level_and_their_coverage():
    covered = found = 0
    for shared in (True, False):
        rng = np.random.default_rng(11)
        sides = simulated(rng, 100, 40, 4, (0.3, 0.2), 0.3, shared)
        null = simulated(rng, 100, 40, 4, (0.3, 0.3), 0.3, shared)
        for before, after, one, other in zip(*sides, *null, strict=True):
            shift = compare(rows_of(before, 4), rows_of(after, 4), "bridge")
            covered += shift.ci_low <= -0.1 <= shift.ci_high
            found += compare(rows_of(one, 4), rows_of(other, 4), "bridge").p <= 0.05
    assert covered >= 182  # 91%; 95% less two and a half standard errors
    assert found <= 13


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=_SLOW)])
@pytest.mark.parametrize(
    ("rate", "correlation"),
    [(0.2, 0.5), *(pytest.param(*each, marks=_SLOW) for each in ((0.05, 0.2), (0.5, 0)))],
)
def test_no_difference_is_found_too_often_with_one_reply_a_prompt(rate, correlation, shared):
    rng = np.random.default_rng(17)
    null = zip(*simulated(rng, 400, 100, 1, (rate, rate), correlation, shared), strict=True)
    found = [compare(rows_of(before, 1), rows_of(after, 1), "bridge", draws=100) for before, after in null]
    assert {each.test for each in found} == {"mcnemar"}
    assert np.mean([each.p <= 0.05 for each in found]) <= 0.065


@pytest.mark.parametrize("rates", rest_slow([[0.05, 0.01], [0.01, 0.01], [0.1, 0.0]]))
def test_the_interval_covers_at_small_counts(rates):
    rng = np.random.default_rng(12)
    covered = 0
    for before, after in zip(*simulated(rng, 200, 30, 4, rates, 0 if rates[1] == 0 else 0.3, False), strict=True):
        shift = compare(rows_of(before, 4), rows_of(after, 4), "bridge")
        covered += shift.ci_low <= rates[1] - rates[0] + 1e-12 and rates[1] - rates[0] <= shift.ci_high + 1e-12
    assert covered >= 184
