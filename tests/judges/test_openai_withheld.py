"""Answers that are withheld for what the judged text says: unscored at once and for good, under that name."""

import json

import pytest
from judging import YES, environment_fixture, exchanges, judging_fixture, play_fixture, script, waits_fixture  # noqa: F401
from server import error, raw, says

from gradsteer.judges import Verdicts

GOOD = Verdicts({"bridge": True, "recipe": False}, {})


def answered(**fields):
    return raw(json.dumps({"usage": {"prompt_tokens": 40, "completion_tokens": 0}, **fields}))


def choice(**fields):
    return answered(choices=[{"index": 0, **fields}])


WITHHELD = {
    "choices: []": (answered(choices=[]), "no choices"),
    "choices: null": (answered(choices=None), "no choices"),
    "Gemini's prompt": (answered(choices=[], promptFeedback={"blockReason": "OTHER"}), "no choices ('OTHER')"),
    "message: null": (choice(message=None, finish_reason="stop"), "an answer of null"),
    "no message": (choice(finish_reason=None), "an answer of null"),
    "content: null": (says(None), "an answer of null"),
    "content_filter": (says("", finish="content_filter"), "content_filter"),
    "half a reply": (says('{"bridge": true, "rec', finish="content_filter"), "content_filter"),
    "SAFETY": (choice(message=None, finish_reason="SAFETY"), "safety"),
    "Gemini's enum": (says("", finish="FinishReason.PROHIBITED_CONTENT"), "prohibited_content"),
    "a gateway's": (choice(message={"content": ""}, native_finish_reason="RECITATION"), "recitation"),
    "Anthropic's": (says("I'd rather not.", finish="refusal"), "refusal"),
    "a refusal": (says(None, refusal="I will not"), "the judge refused: 'I will not'"),
    "a refusal in words": (says("I'm sorry, but I can't assist with that."), "the judge refused: "),
    "OpenAI's code": (error(400, "no", code="content_policy_violation"), "HTTP 400: no"),
    "OpenAI's o-series": (error(400, "Invalid prompt: it was flagged", code="invalid_prompt"), "HTTP 400: Invalid"),
    "Azure's": (error(400, "It was filtered", code="content_filter", param="prompt"), "HTTP 400: It was filtered"),
    "DeepSeek's": (error(400, "Content Exists Risk", type="invalid_request_error"), "HTTP 400: Content Exists Risk"),
    "Qwen's": (error(400, "Input data may contain inappropriate content.", code="odd"), "HTTP 400: Input data"),
    "OpenRouter's": (error(403, "Your input was flagged", code=403), "HTTP 403: Your input was flagged"),
    "a success": (answered(error={"message": "no", "code": "content_filter"}), "an error: 'no'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHHELD)
def test_what_is_withheld_is_unscored_at_once_and_for_good(play, judging, waits, tmp_path, name):
    answer, why = WITHHELD[name]
    store = str(tmp_path / "verdicts.sqlite")
    server = play(answer)
    (found,) = judging(server, store=store).judge(exchanges(1))
    assert found.values == {"bridge": None, "recipe": None}
    assert all(reason.startswith(f"withheld: {why}") for reason in found.unscored.values())
    server.script = play(YES).script
    assert judging(server, store=store).judge(exchanges(1)) == [found]
    assert len(server.requests) == 1
    assert not waits


def test_any_number_of_withheld_replies_in_a_row_stops_no_run(play, judging, waits):
    """Of a server that answers for nothing but one text in 200, not even the first of which it answers for."""
    answers = [answer for answer, _ in WITHHELD.values()]
    numbers = iter(range(1000))
    server = play(
        script(lambda request: YES if request.reply == "answer 99" else answers[next(numbers) % len(answers)])
    )
    found = judging(server, concurrency=4).judge(exchanges(200))
    assert found[99] == GOOD
    assert sum(each.unscored.get("bridge", "").startswith("withheld") for each in found) == 199
    assert len(server.requests) == 200
    assert not waits


def test_all_withheld_is_no_reason_to_stop_either(play, judging):
    server = play(answered(choices=[]))
    judge = judging(server, prices=[1.0, 1.0])
    assert all(each.unscored for each in judge.judge(exchanges(50)))
    assert (judge.usage().num_requests, judge.usage().prompt_tokens) == (50, 50 * 40)  # paid for as the server counts


@pytest.mark.parametrize(
    ("answer", "num_requests"),
    [
        (says("The reply shows no such thing."), 2),
        (says("It says: I'm sorry, but I can't assist with that. Bridge: no."), 2),  # an answer, if not in JSON
        (says("", finish="stop"), 2),
        (says(None, finish="error"), 2),
        (choice(message=None, error={"code": 502, "message": "provider returned an error"}), 2),
        (says(None, tool_calls=[{"type": "function"}]), 2),
        (raw("{}"), 2),
        (raw('{"error": {"message": "overloaded"}, "choices": []}'), 2),
        (error(400, "something odd"), 1),
        (error(422, json.dumps([{"msg": "odd", "input": "x" * 300 + "flagged"}])), 1),  # repeats the judged text
    ],
)
def test_what_fails_otherwise_is_not_withheld_and_asked_for_again(play, judging, waits, answer, num_requests):
    server = play(YES, answer)
    judge = judging(server, concurrency=1, max_retries=1)
    found = judge.judge(exchanges(2))[1]
    assert not found.unscored["bridge"].startswith("withheld")
    assert len(server.requests) == 1 + num_requests
    judge.judge(exchanges(2))
    assert len(server.requests) == 1 + 2 * num_requests
