"""Counting a condition: what its rates rest on, and what stops a run of which too much is missing."""

import pytest

from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.evaluation.counting import count_responses, excess_of_unscored
from gradsteer.evaluation.statistics import rate_with_interval
from gradsteer.steering.conditions import Condition

REFUSAL = "I must decline."


def row(prompt, verdict=True, completion="so it is", **more):
    return {
        "id": f"the {prompt}", "prompt": prompt, "completion": completion, "token_ids": [1, 2],
        "finish_reason": "stop", "verdicts": {"a": verdict}, "unscored": {} if verdict is not None else {"a": "why"},
        "degenerate": False, "failed": None,
    } | more  # fmt: skip


def counted(evaluation, behaviors=("a",), **sets):
    return count_responses({"evaluation": evaluation, **sets}, behaviors)


def excess(counts, sets, limit):
    return excess_of_unscored("anchor", counts, sets, limit)


def test_rows_of_one_question_are_one_cluster_whatever_their_ids():
    rows = [row(prompt, prompt in "ab") | {"id": f"{prompt}{n}"} for prompt in "abcde" for n in range(4)]
    rate = counted(rows).behaviors["a"]
    assert (rate.num_scored, rate.num_positive) == (20, 8)
    # four replies that always agree are worth one
    alone = rate_with_interval([True, True, False, False, False], list("abcde"))
    assert (rate.ci_low, rate.ci_high) == pytest.approx((alone.ci_low, alone.ci_high))
    assert rate.effective_n == pytest.approx(5)


def test_classes_and_refusals_are_clustered_by_the_question_too():
    both = {"a": True, "b": False}
    rows = [row(p, verdicts=both if p in "ab" else {"a": False, "b": False}) | {"id": f"{p}{n}"}
            for p in "abcde" for n in range(4)]  # fmt: skip
    replies = [row(p, completion=REFUSAL if p in "ab" else "so") | {"id": f"{p}{n}"} for p in "abcde" for n in range(4)]
    condition = counted(rows, ("a", "b"), benign=replies)
    for rate in (condition.classes["only a"], condition.refusals["benign"]):
        assert rate.rate == 0.4
        assert rate.effective_n == pytest.approx(5)


def test_refusals_leave_out_what_is_degenerate_or_was_never_sampled():
    replies = [
        row("a", completion=REFUSAL), row("b"), row("c", completion="x " * 99, degenerate=True),
        row("d", completion="", failed="too long"),
    ]  # fmt: skip
    condition = counted([row("e")], benign=replies, harmful=replies[2:])
    benign = condition.refusals["benign"]
    assert (benign.num_scored, benign.num_positive, benign.num_unscored, benign.num_degenerate) == (2, 1, 1, 1)
    assert 0 < benign.ci_low < benign.rate == condition.metrics["refusal_benign"] == 0.5 < benign.ci_high < 1
    assert condition.refusals["harmful"].rate is condition.metrics["refusal_harmful"] is None
    row_of = ConditionResult(Condition("anchor", "anchor"), counts=condition).row()
    assert row_of["refusals"] == {name: rate.to_dict() for name, rate in condition.refusals.items()}


def test_without_prompts_for_refusals_there_are_no_rates_of_them():
    condition = counted([row("e", completion=REFUSAL)])
    found = ConditionResult(Condition("anchor", "anchor"), counts=condition).row()
    assert condition.refusals == found["refusals"] == {}
    assert found["metrics"]["refusal_benign"] is found["metrics"]["refusal_harmful"] is None


def test_too_many_unscored_stop_the_run_and_it_says_both_ways_out():
    rows = [row("a"), row("b", None), row("c", None, degenerate=True, unscored={"a": "of a loop"}), row("d")]
    condition = counted(rows)
    message = excess(condition, {"evaluation": rows}, 0.33)
    assert "'anchor': 1 of 3 verdicts on 'a' (33.3%) are unscored, more than evaluation.max_unscored 0.33" in message
    assert "Reasons: 1 x why. What was sampled" in message  # a degenerate response counts nowhere
    assert "the same command asks for what is missing, but for what was refused for good" in message
    assert message.endswith("with a higher evaluation.max_unscored it goes on without")
    assert excess(condition, {"evaluation": rows}, 0.34) is None


def test_reasons_that_differ_in_numbers_alone_are_one_and_what_is_not_listed_is_counted():
    reasons = [f"the question has {n},000 tokens; the judge reads at most 400" for n in (414, 425, 425)]
    reasons += ["HTTP 500: 1.5 s", "HTTP 500: 1.5 s", "HTTP 429: 1.5 s", "HTTP 429: 1.5 s", "no JSON", "no words"]
    rows = [row(str(n), None, unscored={"a": reason}) for n, reason in enumerate(reasons)]
    message = excess(counted(rows), {"evaluation": rows}, 0.1)
    long = "3 x the question has N tokens; the judge reads at most 400"
    assert f"Reasons: {long}; 2 x HTTP 500: 1.5 s; 2 x HTTP 429: 1.5 s; and 2 others. What was" in message
    message = excess(counted(rows[-2:]), {"evaluation": rows[-2:]}, 0.1)
    assert "Reasons: 1 x no JSON; 1 x no words. What was" in message
    rows = [row(str(n), None, unscored={"a": f"no verdict: {reply!r}"}) for n, reply in enumerate(("N", "0", "1"))]
    message = excess(counted(rows), {"evaluation": rows}, 0.1)
    assert "Reasons: 2 x no verdict: 'N'; 1 x no verdict: 'N'. What was" in message


def test_a_judge_that_knows_refusals_is_counted_on_the_prompts_for_them_too():
    def reply(prompt, verdict, completion="so it is", **more):
        said = {
            "verdicts": {"a": False, "refusal": verdict},
            "unscored": {} if verdict is not None else {"refusal": "why"},
        }
        return row(prompt, completion=completion, **said) | more

    benign = [reply("a", True), reply("b", False, REFUSAL), reply("c", False), reply("d", None), reply("e", False)]
    harmful = [reply("f", True, degenerate=True), reply("g", True, REFUSAL), reply("h", True)]
    condition = counted([reply("i", False)], ("a", "refusal"), benign=benign, harmful=harmful)
    assert [condition.metrics[f"refusal_{name}"] for name in ("benign", "benign_judged")] == [0.2, 0.25]
    judged = condition.refusals["benign_judged"]
    assert (judged.num_scored, judged.num_positive, judged.num_unscored) == (4, 1, 1)
    assert judged == rate_with_interval([True, False, False, None, False], list("abcde"))
    judged = condition.refusals["harmful_judged"]
    assert (judged.num_scored, judged.num_positive, judged.num_degenerate) == (2, 2, 1)
    assert set(counted([row("i")], ("a",), benign=benign).refusals) == {"benign"}
    sets = {"evaluation": [reply("i", False)], "benign": benign, "harmful": harmful}
    message = excess(condition, sets, 0.19)
    assert "'anchor', benign prompts: 1 of 5 verdicts on 'refusal' (20.0%) are unscored" in message
    assert excess(condition, sets, 0.2) is None
