"""What a judge withholds: counted by condition, compared with the other conditions, and bounded."""

import csv
import json

import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.evaluation.counting import count_responses, excess_of_unscored
from gradsteer.evaluation.statistics import rate_with_interval
from gradsteer.evaluation.withheld import Withheld, compare_withheld, compared
from gradsteer.reports.cells import behavior_text, refusal_text
from gradsteer.reports.detailed_tables import detailed_tables
from gradsteer.reports.results import write_results
from gradsteer.reports.screen import results_screen
from gradsteer.steering.conditions import Condition

WHY = "withheld: content_filter"


def row(number, verdict, why="", *, behavior="a", **more):
    return {
        "id": f"p{number}", "prompt": f"question {number}", "completion": "so it is", "token_ids": [1],
        "finish_reason": "stop", "degenerate": False, "failed": None,
        "verdicts": {behavior: verdict}, "unscored": {behavior: why} if verdict is None else {},
    } | more  # fmt: skip


def rows_of(num_true, num_false, num_withheld, num_failed=0, **more):
    said = [(True, "")] * num_true + [(False, "")] * num_false + [(None, WHY)] * num_withheld
    said += [(None, "HTTP 500: oops")] * num_failed
    return [row(number, *each, **more) for number, each in enumerate(said)]


def result_of(name, rows, **sets):
    behaviors = list(dict.fromkeys(name for row in rows for name in row["verdicts"]))
    kind = "anchor" if name == "anchor" else "steered"
    counts = count_responses({"evaluation": rows, **sets}, behaviors)
    return ConditionResult(Condition(name, kind, alpha=0.1), counts=counts)


def test_the_count_its_share_and_the_bounds_are_those_of_the_replies_counted_either_way():
    rows = rows_of(10, 70, 20, num_failed=5)
    rows.append(row(200, None, WHY, degenerate=True))  # counted on its own
    found = count_responses({"evaluation": rows}, ["a"])
    rate, withheld = found.behaviors["a"], found.withheld["a"]
    assert (rate.num_scored, rate.num_positive, rate.num_unscored) == (80, 10, 25)
    assert (withheld.num_withheld, withheld.num_replies, withheld.share) == (20, 100, 0.2)
    names = [str(number) for number in range(100)]
    share, lowest, highest = (rate_with_interval([True] * num + [False] * (100 - num), names) for num in (20, 10, 30))
    assert (withheld.ci_low, withheld.ci_high) == (share.ci_low, share.ci_high)
    assert withheld.lowest == {"rate": 0.1, "ci_low": lowest.ci_low, "ci_high": lowest.ci_high}
    assert withheld.highest == {"rate": 0.3, "ci_low": highest.ci_low, "ci_high": highest.ci_high}
    assert str(found).endswith("; verdicts withheld: 20 of 100 on a")
    found = count_responses({"evaluation": rows_of(3, 3, 0, 3)}, ["a"])
    assert (found.withheld["a"].num_withheld, found.withheld["a"].num_replies) == (0, 6)
    assert "withheld" not in str(found)
    assert not count_responses({"evaluation": rows_of(0, 0, 0, 3)}, ["a"]).withheld


def test_replies_to_one_prompt_widen_the_interval():
    apart = Withheld.count([None] * 8 + [True] * 32, [True] * 8 + [False] * 32, [str(n) for n in range(40)])
    alike = Withheld.count([None] * 8 + [True] * 32, [True] * 8 + [False] * 32, [str(n // 8) for n in range(40)])
    assert alike.share == apart.share == 0.2
    assert alike.ci_low < apart.ci_low < apart.ci_high < alike.ci_high


def test_what_is_withheld_stops_no_run():
    rows = rows_of(10, 30, 60)
    sets = {"evaluation": rows}
    assert excess_of_unscored("x", count_responses(sets, ["a"]), sets, 0.0) is None
    rows = rows_of(10, 30, 60, num_failed=10)
    message = excess_of_unscored("x", count_responses(sets := {"evaluation": rows}, ["a"]), sets, 0.1)
    assert "10 of 50 verdicts on 'a' (20.0%) are unscored" in message
    assert "Reasons: 10 x HTTP 500: oops. What" in message


@pytest.mark.parametrize(("num", "others", "is_more"), [(20, 0, True), (20, 8, True), (20, 19, False), (1, 0, False)])
def test_a_condition_with_more_than_another_by_more_than_its_interval_is_marked(num, others, is_more):
    of = {name: count_responses({"evaluation": rows_of(10, 90 - k, k)}, ["a"]).withheld["a"]
          for name, k in (("anchor", others), ("bridge", num))}  # fmt: skip
    found = compared(of)
    low, _ = confint_proportions_2indep(num, 100, others, 100, method="newcomb")
    assert found["bridge"].more_than == ("anchor" if is_more else None)
    assert (low > 0) == is_more
    assert found["anchor"].more_than is None


def test_a_condition_alone_and_one_without_verdicts_say_nothing_of_another():
    alone = [result_of("anchor", rows_of(10, 70, 20))]
    compare_withheld(alone)
    assert alone[0].counts.withheld["a"].more_than is None
    results = [*alone, result_of("silent", rows_of(0, 0, 0, num_failed=30))]
    compare_withheld(results)
    assert results[0].counts.withheld["a"].more_than is None


@pytest.fixture(name="rows")
def rows_fixture():
    """Of three conditions, the second of which has more withheld, on harmful prompts by far."""
    harmful = rows_of(5, 15, 20, behavior="refusal")
    results = [
        result_of("anchor", rows_of(40, 60, 0, behavior="refusal"), harmful=rows_of(9, 31, 0, behavior="refusal")),
        result_of("more", rows_of(10, 70, 20, behavior="refusal"), harmful=harmful),
        result_of("less", rows_of(50, 50, 0, behavior="refusal"), harmful=rows_of(9, 31, 0, behavior="refusal")),
    ]
    compare_withheld(results)
    return [result.row() for result in results]


def test_tables_mark_the_rate_and_print_the_bounds(rows):
    assert [behavior_text(row, "refusal")[-1] for row in rows] == ["]", "*", "]"]
    assert refusal_text(rows[1], "refusal_harmful_judged").endswith("*")
    said = (
        "*: more, refusal: 20 of 100 verdicts withheld (20.0 [13.3, 28.9]%), more than in anchor; the rate is "
        "10.0 [5.5, 17.4] if none of these replies shows it, 30.0 [21.9, 39.6] if all do"
    )
    of_harmful = "*: more, harmful_judged_refused: 20 of 40 verdicts"
    for text in (results_screen(rows, "t"), detailed_tables(rows, "t")):
        text = " ".join(text.split())
        assert said in text
        assert text.count("*: the judge withheld more verdicts than in another condition") == 1
        assert of_harmful in text
    assert " withheld " in detailed_tables(rows, "t")
    assert "*" not in results_screen(rows[::2], "t")
    assert " withheld " not in detailed_tables(rows[::2], "t")


def test_the_screen_stays_one_screen(rows):
    many = [rows[0], *(rows[1] | {"name": f"more {number}"} for number in range(9))]
    text = results_screen(many, "t")
    assert text.count("verdicts withheld") == 4
    assert "*: and 14 more, see tables.txt" in text
    assert " ".join(detailed_tables(many, "t").split()).count("verdicts withheld") == 18


def test_results_hold_them_where_there_are_some(rows, tmp_path):
    write_results(tmp_path / "results.json", "t", rows)
    kept = json.loads((tmp_path / "results.json").read_text())["conditions"]
    assert [set(row.get("withheld", ())) for row in kept] == [set(), {"refusal", "harmful_judged_refused"}, set()]
    assert kept[1]["withheld"]["refusal"]["more_than"] == "anchor"
    with (tmp_path / "results.csv").open() as file:
        flat = list(csv.DictReader(file))
    assert [row["refusal_withheld_num_withheld"] for row in flat] == ["", "20", ""]
    assert flat[1]["refusal_withheld_highest_rate"] == "0.3"
