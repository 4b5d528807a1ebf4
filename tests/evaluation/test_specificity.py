"""Shifts against NONE and selectivity: closed forms, invariances and the coverage of their intervals."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from gradsteer.evaluation.specificity import measure_specificity

NAMES = ("bridge", "recipe", "poem")


def rows_of(groups, behaviors=NAMES[:2], prompts=20):
    """Rows with the given behaviors shown, dealt to the prompts in turn."""
    shown = [names for names, num in groups for _ in range(num)]
    random.Random(0).shuffle(shown)
    return [
        {"id": f"prompt {i % prompts}", "verdicts": {name: name in names for name in behaviors}}
        for i, names in enumerate(shown)
    ]


def log_odds(shown, none):
    return math.log(shown + 0.5) - math.log(none + 0.5)


BEFORE = rows_of([(("bridge",), 40), (("recipe",), 30), (("bridge", "recipe"), 10), ((), 80)])
AFTER = rows_of([(("bridge",), 15), (("recipe",), 28), (("bridge", "recipe"), 5), ((), 112)])


def test_shifts_in_closed_form():
    shifts = measure_specificity(BEFORE, AFTER, NAMES[:2]).shifts
    bridge, recipe = shifts["bridge"], shifts["recipe"]
    # a reply that shows both counts for each
    assert bridge.log_odds_shift == pytest.approx(log_odds(20, 112) - log_odds(50, 80))
    assert recipe.log_odds_shift == pytest.approx(log_odds(33, 112) - log_odds(40, 80))
    counts = ("num_shown", "num_neither", "num_shown_before", "num_neither_before")
    assert tuple(getattr(bridge, key) for key in counts) == (20, 112, 50, 80)
    assert tuple(getattr(recipe, key) for key in counts) == (33, 112, 40, 80)
    for shift in (bridge, recipe):
        assert shift.ci_low < shift.log_odds_shift < shift.ci_high


def test_selectivity_in_closed_form():
    # against each other NONE cancels; a positive dose turns its behavior down
    expected = (log_odds(33, 40) - log_odds(20, 50)) + 0.0
    found = measure_specificity(BEFORE, AFTER, NAMES[:2], "bridge", 2.0).selectivity
    assert found.value == pytest.approx(expected)
    assert found.ci_low < found.value < found.ci_high
    assert found.largest_other == "recipe"
    # what turned the behavior down at a positive dose has failed at a negative one, and is the other's success
    failed = measure_specificity(BEFORE, AFTER, NAMES[:2], "bridge", -2.0).selectivity
    assert (failed.value, failed.ci_low, failed.ci_high) == pytest.approx((-found.value, -found.ci_high, -found.ci_low))
    other = measure_specificity(BEFORE, AFTER, NAMES[:2], "recipe", 2.0).selectivity
    assert (other.value, other.largest_other) == (pytest.approx(-found.value), "bridge")


def test_the_largest_other_is_the_one_that_moved_most_the_way_of_the_dose():
    before = rows_of([((name,), 50) for name in NAMES] + [((), 50)], NAMES)
    after = rows_of([(("bridge",), 10), (("recipe",), 80), (("poem",), 30), ((), 80)], NAMES)
    found = measure_specificity(before, after, NAMES, "bridge", 1.0)
    assert found.selectivity.largest_other == "poem"
    moved = {name: -shift.log_odds_shift for name, shift in found.shifts.items()}
    assert found.selectivity.value == pytest.approx(moved["bridge"] - moved["poem"])
    up = measure_specificity(before, after, NAMES, "bridge", -1.0)
    assert up.selectivity.largest_other == "recipe"
    assert up.selectivity.value == pytest.approx(moved["recipe"] - moved["bridge"])


def test_a_direction_that_moves_everything_alike_is_not_selective():
    before = rows_of([((name,), 60) for name in NAMES] + [((), 60)], NAMES)
    after = rows_of([((name,), 20) for name in NAMES] + [((), 180)], NAMES)
    found = measure_specificity(before, after, NAMES, "bridge", 1.0)
    assert all(shift.ci_high < -1 for shift in found.shifts.values())
    assert found.selectivity.value == pytest.approx(0, abs=1e-12)
    assert found.selectivity.ci_low < 0 < found.selectivity.ci_high


def test_an_interval_is_never_a_point():
    # every prompt moves alike: all draws agree
    before, after = (
        [{"id": k, "verdicts": {name: name == shown for name in NAMES[:2]}} for k in range(20) for shown in replies]
        for replies in (("bridge", "recipe", None, None), ("recipe", None, None, None, "bridge", "recipe"))
    )
    found = measure_specificity(before, after, NAMES[:2], "bridge", 1.0)
    for value in (*found.shifts.values(), found.selectivity):
        assert value.ci_high - value.ci_low > 0.5


def test_swapping_conditions_changes_the_sign():
    there, back = (
        measure_specificity(*sides, NAMES[:2], "bridge", 1.0) for sides in ((BEFORE, AFTER), (AFTER, BEFORE))
    )
    for name in NAMES[:2]:
        one, other = there.shifts[name], back.shifts[name]
        assert (other.log_odds_shift, other.ci_low, other.ci_high) == pytest.approx(
            (-one.log_odds_shift, -one.ci_high, -one.ci_low)
        )
    assert back.selectivity.value == pytest.approx(-there.selectivity.value)


def test_the_order_of_rows_and_behaviors_decides_nothing():
    found = measure_specificity(BEFORE, AFTER, NAMES[:2], "bridge", 1.0)
    shuffled = [random.Random(1).sample(rows, len(rows)) for rows in (BEFORE, AFTER)]
    assert measure_specificity(*shuffled, NAMES[:2], "bridge", 1.0) == found
    assert measure_specificity(BEFORE, AFTER, NAMES[1::-1], "bridge", 1.0).to_dict() == found.to_dict()
    assert measure_specificity(BEFORE, AFTER, NAMES[:2], "bridge", 1.0, seed=1) != found
    assert measure_specificity(BEFORE, AFTER, NAMES[:2], "bridge", 1.0, draws=500) != found


def test_a_behavior_alone_is_against_its_absence():
    before, after = (
        rows_of([(("bridge",), 40), ((), 60)], ["bridge"]),
        rows_of([(("bridge",), 20), ((), 80)], ["bridge"]),
    )
    found = measure_specificity(before, after, ["bridge"], "bridge", 1.0)
    assert found.shifts["bridge"].log_odds_shift == pytest.approx(log_odds(20, 80) - log_odds(40, 60))
    assert found.selectivity is None


@pytest.mark.parametrize(("own", "alpha"), [(None, 1.0), ("bridge", None), ("bridge", 0.0)])
def test_without_an_own_behavior_or_a_dose_there_is_no_selectivity(own, alpha):
    found = measure_specificity(BEFORE, AFTER, NAMES[:2], own, alpha)
    assert found.selectivity is None
    assert found.shifts == measure_specificity(BEFORE, AFTER, NAMES[:2]).shifts


def test_prompts_are_told_by_their_text_whatever_their_ids():
    def measured(text):
        sides = ([{**row, "prompt": text(row, i), "id": i} for i, row in enumerate(rows)] for rows in (BEFORE, AFTER))
        return measure_specificity(*sides, NAMES[:2], "bridge", 1.0)

    by_text = [[{"prompt": row["id"], "verdicts": row["verdicts"]} for row in rows] for rows in (BEFORE, AFTER)]
    expected = measure_specificity(*by_text, NAMES[:2], "bridge", 1.0)
    assert measured(lambda row, i: row["id"]) == measured(lambda row, i: f" {row['id']}\n") == expected
    assert measured(lambda row, i: f"{row['id']}, {i}") != expected


def test_unscored_and_degenerate_replies_do_not_count_and_move_the_bounds():
    extra = [
        {"id": "prompt 0", "verdicts": {"bridge": True, "recipe": None}},
        {"id": "prompt 1", "verdicts": {"bridge": False, "recipe": False}, "degenerate": True},
        {"id": "prompt 2", "verdicts": {"bridge": True, "recipe": True}, "degenerate": True},
    ]
    plain = measure_specificity(BEFORE, AFTER, NAMES[:2], "bridge", 1.0)
    found = measure_specificity(BEFORE + extra, AFTER + extra, NAMES[:2], "bridge", 1.0)
    for name in NAMES[:2]:
        known, shift = plain.shifts[name], found.shifts[name]
        assert known.lowest == known.highest == known.log_odds_shift
        assert replace(shift, lowest=known.lowest, highest=known.highest, robust=True) == known
    # as if these three had shown it before, and nothing after; and the reverse
    bridge = found.shifts["bridge"]
    assert bridge.lowest == pytest.approx(log_odds(20, 115) - log_odds(53, 80))
    assert bridge.highest == pytest.approx(log_odds(23, 112) - log_odds(50, 83))
    selectivity, known = found.selectivity, plain.selectivity
    assert replace(selectivity, lowest=known.lowest, highest=known.highest, robust=True) == known
    assert selectivity.highest == pytest.approx((log_odds(36, 40) - log_odds(20, 53)) + 0.0)
    assert selectivity.lowest == pytest.approx((log_odds(33, 43) - log_odds(23, 50)) + 0.0)
    turned = measure_specificity(BEFORE + extra, AFTER + extra, NAMES[:2], "bridge", -1.0).selectivity
    assert (turned.lowest, turned.highest) == pytest.approx((-selectivity.highest, -selectivity.lowest))
    never = {"id": "long", "verdicts": {"bridge": None, "recipe": None}, "failed": "longer than the context"}
    assert measure_specificity([*BEFORE, never], [*AFTER, never], NAMES[:2], "bridge", 1.0) == plain


def test_a_vector_that_turns_its_behavior_into_loops_is_not_robustly_selective():
    before = [{"id": k, "verdicts": {"bridge": i < 4, "recipe": 4 <= i < 6}} for k in range(100) for i in range(8)]
    after = [{**row, "degenerate": row["verdicts"]["bridge"]} for row in before]
    found = measure_specificity(before, after, NAMES[:2], "bridge", 1.0)
    assert found.selectivity.ci_low > 1  # the bridges are gone
    assert found.selectivity.lowest < 0.01 < found.selectivity.highest
    assert not found.selectivity.robust
    assert not found.shifts["bridge"].robust
    # a few loops change nothing
    nothing = {"bridge": False, "recipe": False}
    turned = [{**row, "verdicts": nothing} if row["verdicts"]["bridge"] and row["id"] % 2 else row for row in before]
    few = [{**row, "degenerate": i % 97 == 0} for i, row in enumerate(turned)]
    found = measure_specificity(before, few, NAMES[:2], "bridge", 1.0)
    assert found.selectivity.robust
    assert found.selectivity.ci_low > 0.3


def test_prompts_that_lost_their_replies_move_nothing():
    """Half of the prompts are all about bridges, and lost; nothing changes within the others."""

    def verdicts(k, i):
        return {"bridge": i < (7 if k < 45 else 2), "recipe": i == 7}

    before = [{"id": k, "verdicts": verdicts(k, i)} for k in range(90) for i in range(8)]
    after = [{**row, "degenerate": row["id"] < 45} for row in before]
    found = measure_specificity(before, after, NAMES[:2], "bridge", 1.0)
    assert (found.num_prompts, found.num_pairs) == (90, 45)
    assert found.shifts["bridge"].log_odds_shift == found.shifts["recipe"].log_odds_shift == 0
    assert found.selectivity.value == 0
    assert (found.shifts["bridge"].num_shown, found.shifts["bridge"].num_shown_before) == (90, 90)
    # the same where each of them kept one reply: a prompt weighs as much after as before
    kept = [{**row, "degenerate": row["id"] < 45 and i % 8 != 0} for i, row in enumerate(before)]
    fewer = {"bridge": False, "recipe": False}
    shown = {"bridge": True, "recipe": False}
    all_bridge = [{**row, "verdicts": shown if row["id"] < 45 else fewer} for row in before]
    left = [{**row, "degenerate": loop["degenerate"]} for row, loop in zip(all_bridge, kept, strict=True)]
    shift = measure_specificity(all_bridge, left, NAMES[:2]).shifts["bridge"]
    assert shift.log_odds_shift == pytest.approx(0, abs=1e-12)


def test_shifts_of_nothing_have_the_bounds_of_what_was_lost():
    before = [{"id": k, "verdicts": {"bridge": k < 60, "recipe": False}} for k in range(90)]
    lost = measure_specificity(before, [{**row, "degenerate": True} for row in before], NAMES[:2]).shifts["bridge"]
    assert lost.log_odds_shift is None
    assert lost.lowest < -3 < 3 < lost.highest
    assert not lost.robust
    absent = measure_specificity(before, [], NAMES[:2]).shifts["bridge"]
    assert (absent.log_odds_shift, absent.lowest, absent.highest, absent.robust) == (None, None, None, True)


def test_selectivity_says_when_it_rests_on_few():
    assert not measure_specificity(BEFORE, AFTER, NAMES[:2], "bridge", 1.0).selectivity.few
    gone = rows_of([(("recipe",), 28), ((), 132)])
    assert measure_specificity(BEFORE, gone, NAMES[:2], "bridge", 1.0).selectivity.few
    # of another behavior that decides nothing it is no matter
    before = rows_of([(("bridge",), 60), (("recipe",), 60), (("poem",), 3), ((), 77)], NAMES)
    assert measure_specificity(before, before, NAMES, "bridge", 1.0).selectivity.few


@pytest.mark.slow
def test_no_direction_is_called_the_other_way_round_for_many_others():
    """Four behaviors that nothing moves: the upper end is rarely below 0, however many others there are."""
    names, wrong = ["a", "b", "c", "d"], 0
    rng = np.random.default_rng(5)
    for _ in range(150):
        sides = [
            [{"id": k % 60, "verdicts": {name: name == names[shown % 4] and shown < 4 for name in names}}
             for k, shown in enumerate(rng.integers(0, 6, 240))]
            for _ in range(2)
        ]  # fmt: skip
        wrong += measure_specificity(*sides, names, "a", 1.0, draws=400).selectivity.ci_high < 0
    assert wrong <= 9  # 2.5% of 150 are 4; without the correction it is 12


def test_a_behavior_that_is_gone_gives_a_finite_shift_and_a_wide_interval():
    before = rows_of([(("bridge",), 12), (("recipe",), 30), ((), 118)])
    after = rows_of([(("recipe",), 30), ((), 130)])
    shift = measure_specificity(before, after, NAMES[:2]).shifts["bridge"]
    assert shift.log_odds_shift == pytest.approx(log_odds(0, 130) - log_odds(12, 118))
    # nothing was seen after: as uncertain as half a reply beside the 20 prompts, which are as good as one reply each
    reach = 1.9599 * math.sqrt(1 / 0.5 + 1 / 20.5 + 1 / 12.5 + 1 / 118.5)
    assert shift.ci_high - shift.log_odds_shift >= reach
    assert shift.log_odds_shift - shift.ci_low >= reach


def test_the_interval_is_the_paired_bootstraps_where_counts_are_not_small():
    rng = np.random.default_rng(3)
    shown = rng.binomial(8, 0.4, 50), rng.binomial(8, 0.2, 50)
    before, after = (
        [{"id": k, "verdicts": {"bridge": s < count}} for k, count in enumerate(side) for s in range(8)]
        for side in shown
    )
    shift = measure_specificity(before, after, ["bridge"]).shifts["bridge"]
    drawn = np.random.default_rng(4).integers(0, 50, (20000, 50))
    one, other = (side[drawn].sum(axis=1) + 0.5 for side in shown)
    draws = np.log(other / (401 - other)) - np.log(one / (401 - one))
    assert (shift.ci_low, shift.ci_high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.03)


def test_nothing_on_a_side_is_none():
    unscored = [{"id": "prompt 0", "verdicts": {"bridge": None, "recipe": None}}]
    for before, after in (([], []), (BEFORE, []), ([], AFTER), (BEFORE, unscored)):
        found = measure_specificity(before, after, NAMES[:2], "bridge", 1.0)
        assert found.selectivity is None
        for shift in found.shifts.values():
            assert (shift.log_odds_shift, shift.ci_low, shift.ci_high) == (None, None, None)
    found = measure_specificity(BEFORE, [], NAMES[:2])
    assert (found.num_prompts, found.num_pairs) == (20, 0)
    assert found.shifts["bridge"] == replace(found.shifts["bridge"], num_shown=0, num_shown_before=0)


def test_to_dict_is_plain_json():
    for sides in ((BEFORE, AFTER), ([], [])):
        found = measure_specificity(*sides, NAMES[:2], "bridge", 1.0).to_dict()
        assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == ["shifts", "selectivity", "num_prompts", "num_pairs"]
    assert found["selectivity"] is None
    assert {"log_odds_shift", "ci_low", "ci_high", "num_shown", "num_neither"} <= found["shifts"]["bridge"].keys()


def test_what_is_refused():
    with pytest.raises(ValueError, match="no behaviors"):
        measure_specificity(BEFORE, AFTER, [])
    with pytest.raises(ValueError, match="own behavior is 'poem'; accepted: one of bridge, recipe"):
        measure_specificity(BEFORE, AFTER, NAMES[:2], "poem", 1.0)
    with pytest.raises(ValueError, match="draws is 99"):
        measure_specificity(BEFORE, AFTER, NAMES[:2], draws=99)


# simulations


def simulated(rng, rates, correlation, prompts=50, samples=4):
    """Rows of replies that show one behavior or none, with a Dirichlet distribution of the prompts' own rates."""
    rates = np.array([*rates, 1 - sum(rates)])
    strength = (1 - correlation) / correlation
    rows = []
    for prompt, own in enumerate(rng.dirichlet(rates * strength, prompts)):
        for shown in rng.choice(len(rates), samples, p=own):
            verdicts = {name: bool(shown == i) for i, name in enumerate(NAMES[: len(rates) - 1])}
            rows.append({"id": prompt, "verdicts": verdicts})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "correlation"),
    [
        ((0.3, 0.3), (0.15, 0.3), 0.2),
        pytest.param((0.2, 0.2, 0.2), (0.1, 0.1, 0.1), 0.2, marks=pytest.mark.slow),  # all alike: selectivity is 0
        pytest.param((0.08, 0.2), (0.04, 0.2), 0.5, marks=pytest.mark.slow),  # small counts
    ],
)
def test_intervals_cover(before, after, correlation):
    rng = np.random.default_rng(5)
    num = 200
    names = NAMES[: len(before)]
    logs = [np.log(rates) - np.log(1 - sum(rates)) for rates in (before, after)]
    shifts = dict(zip(names, logs[1] - logs[0], strict=True))
    selectivity = -shifts["bridge"] - max(-shifts[name] for name in names[1:])
    covered, selected, above = 0, 0, 0
    for _ in range(num):
        sides = simulated(rng, before, correlation), simulated(rng, after, correlation)
        found = measure_specificity(*sides, names, "bridge", 1.0, draws=400)
        covered += found.shifts["bridge"].ci_low <= shifts["bridge"] <= found.shifts["bridge"].ci_high
        selected += found.selectivity.ci_low <= selectivity <= found.selectivity.ci_high
        above += found.selectivity.ci_low > selectivity
        assert found.selectivity.ci_low <= found.selectivity.value <= found.selectivity.ci_high
    assert covered >= 0.91 * num
    assert selected >= 0.91 * num
    assert above <= 0.065 * num
