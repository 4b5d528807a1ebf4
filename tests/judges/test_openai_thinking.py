"""Judges that think before they answer, behind the real client: what they refuse, and the room they need."""

import pytest
from jsonargparse import ArgumentParser
from judging import YES, environment_fixture, exchanges, judging_fixture, play_fixture, script  # noqa: F401 (fixtures)
from server import error, says

from gradsteer.judges import Judge, Verdicts
from gradsteer.judges.failures import JudgeStopped
from gradsteer.judges.request_settings import thinks

GOOD = Verdicts({"bridge": True, "recipe": False}, {})
LIMITS = ("max_tokens", "max_completion_tokens")
TEMPERATURE = (
    "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported."
)


def limit_of(request):
    return next(request.body[name] for name in LIMITS if name in request.body)


def thinking(refuses=(), needs=1000, **fields):
    """A server whose model takes no setting of `refuses`, and thinks for so many tokens before it answers."""

    @script
    def answer(request):
        for name, message in dict(refuses).items():
            if name in request.body:
                return error(400, message, **(fields if fields else {"param": name, "code": "unsupported_value"}))
        return says("", finish="length") if limit_of(request) < needs else YES

    return answer


def test_gpt_5_is_asked_without_a_temperature_and_has_room_for_its_thoughts(play, judging):
    server = play(thinking({"temperature": TEMPERATURE}))
    with pytest.warns(
        UserWarning, match=r"'gpt-5-mini' takes no temperature 0 \(HTTP 400: Unsupported.*asked without"
    ) as said:
        found = judging(server, model="gpt-5-mini", concurrency=2).judge(exchanges(9))
    assert found == [GOOD] * 9
    assert len(said) == 1
    assert len(server.requests) in (10, 11)  # nobody but those under way is refused
    assert {request.body["max_completion_tokens"] for request in server.requests} == {4200}
    assert not any("max_tokens" in request.body for request in server.requests)


@pytest.mark.parametrize(
    ("refuses", "fields"),
    [
        ({"max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
          "'max_completion_tokens' instead."}, {"param": "max_tokens", "code": "unsupported_parameter"}),
        ({"max_tokens": "m does not support 'max_tokens'; use 'max_completion_tokens'"}, {"type": "odd"}),
        ({"seed": "Unrecognized request argument supplied: seed"}, {"type": "invalid_request_error"}),
        ({"temperature": "`temperature` is deprecated for this model."}, {"type": "invalid_request_error"}),
        ({"temperature": TEMPERATURE, "seed": "seed is not supported"}, {"type": "invalid_request_error"}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:'m' takes no")
def test_what_a_model_does_not_take_is_left_out_or_named_otherwise(play, judging, refuses, fields):
    server = play(thinking(refuses, needs=0, **fields))
    judge = judging(server, model="m", seed=3, concurrency=1)
    assert judge.judge(exchanges(4)) == [GOOD] * 4
    assert len(server.requests) == 4 + len(refuses)
    left_out = set(refuses) & {"temperature", "seed"}
    assert {"temperature", "seed"} - set(server.requests[-1].body) == left_out
    assert limit_of(server.requests[-1]) == 200


def test_a_name_that_is_refused_either_way_stops_the_run(play, judging):
    server = play(thinking(dict.fromkeys(LIMITS, "out of range")))
    with pytest.raises(JudgeStopped, match="cannot be asked for 'm' with this max_tokens .*out of range"):
        judging(server, model="m", max_tokens=7, concurrency=1).judge(exchanges(9))
    assert [next(name for name in LIMITS if name in request.body) for request in server.requests] == list(LIMITS)


def test_a_text_that_is_too_long_is_no_refused_setting(play, judging):
    words = "'max_tokens' is too large: 200. This model's maximum context length is 8192 tokens; not supported"
    server = play(script(lambda request: error(400, words) if request.reply == "answer 1" else YES))
    found = judging(server, concurrency=1).judge(exchanges(3))
    assert [each == GOOD for each in found] == [True, False, True]
    assert len(server.requests) == 3
    assert {"temperature", "max_tokens"} <= set(server.requests[2].body)


@pytest.mark.filterwarnings("ignore:an answer of .* was cut")
def test_room_that_does_not_fit_behind_a_text_is_done_without(play, judging):
    """A server of 1,000 tokens, a fourth of its texts too long for it anyway."""
    too_long = error(
        400, "'max_tokens' is too large: it and the messages pass the maximum context length of 1000 tokens"
    )
    cut = iter([says("", finish="length")])

    @script
    def small(request):
        if request.reply == "answer 3" or limit_of(request) > 300:
            return too_long
        return next(cut, YES)

    server = play(small)
    found = judging(server, model="m", concurrency=1).judge(exchanges(4))
    assert [each == GOOD for each in found] == [True, True, True, False]
    assert "maximum context length" in found[3].unscored["bridge"]
    assert [limit_of(request) for request in server.requests] == [200, *[4200, 200] * 4]
    alone = judging(server, model="m", max_tokens=301, concurrency=1)
    assert all(each.unscored for each in alone.judge(exchanges(2)))
    assert len(server.requests) == 9 + 2


def test_how_long_it_thinks_is_what_was_asked_for_or_the_run_stops(play, judging):
    server = play(YES)
    judge = judging(server, model="m", reasoning_effort="minimal")
    assert judge.judge(exchanges(1)) == [GOOD]
    assert server.requests[0].body["reasoning_effort"] == "minimal"
    assert server.requests[0].body["max_tokens"] == 4200
    assert "reasoning_effort" not in str(judging(server, model="m")._open()[1].settings.options(7))
    refusing = play(thinking({"reasoning_effort": "Unsupported value: 'reasoning_effort'"}))
    with pytest.raises(JudgeStopped, match="with this reasoning_effort .*Unsupported"):
        judging(refusing, model="m", reasoning_effort="xhigh").judge(exchanges(1))
    with pytest.raises(ValueError, match="reasoning_effort is 'huge'; accepted: none, minimal, low"):
        judging(server, reasoning_effort="huge")


def test_an_answer_that_was_cut_has_more_room_from_then_on(play, judging):
    server = play(thinking(needs=1000))
    with pytest.warns(UserWarning, match="'m' was cut at 200 tokens; from here on it has 4200"):
        assert judging(server, model="m", concurrency=1).judge(exchanges(3)) == [GOOD] * 3
    assert [limit_of(request) for request in server.requests] == [200, 4200, 4200, 4200]


def test_a_limit_that_was_given_stays(play, judging):
    server = play(thinking(needs=1000))
    found = judging(server, model="gpt-5", max_tokens=200, concurrency=1).judge(exchanges(2))
    assert all("cut off at max_tokens" in each.unscored["bridge"] for each in found)
    assert [limit_of(request) for request in server.requests] == [200, 200]


def test_no_temperature_is_sent_where_none_is_asked_for(play, judging):
    server = play(YES)
    judging(server, temperature=None).judge(exchanges(1))
    assert "temperature" not in server.requests[0].body
    assert judging(server, temperature=None).fingerprint() != judging(server).fingerprint()
    assert judging(server, reasoning_effort="low").fingerprint() != judging(server).fingerprint()


def test_the_estimate_counts_thoughts_where_the_name_tells(judging):
    plain, thinker = (judging(model=name, prices=[0.0, 1.0]).estimate(1000, 100, 100) for name in ("m", "gpt-5"))
    assert thinker.completion_tokens - plain.completion_tokens == 500_000
    assert thinker.dollars - plain.dollars == pytest.approx(0.5)


@pytest.mark.parametrize(
    "name", ["gpt-5", "gpt-5-mini-2025-08-07", "o1", "o3-mini", "o4-mini", "openai/gpt-5.1", "gpt-oss-20b"]
)
def test_names_that_think(name):
    assert thinks(name)


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4.1", "gpt-5-chat-latest", "o", "ollama", "qwen3"])
def test_names_that_say_nothing_of_it(name):
    assert not thinks(name)


@pytest.mark.parametrize(
    "text",
    [
        'hm {"bridge": false, "recipe": true} is too harsh</think>{"bridge": true, "recipe": false}',
        '<think>{"bridge": false}</think>\n\n{"bridge": true, "recipe": false}',
        '<|channel|>analysis<|message|>{"bridge": false}<|end|><|start|>assistant<|channel|>final<|message|>'
        '{"bridge": true, "recipe": false}<|return|>',
    ],
)  # fmt: skip
def test_what_a_judge_thinks_is_no_verdict(play, judging, text):
    server = play(says(text))
    assert judging(server).judge(exchanges(2)) == [GOOD] * 2
    assert len(server.requests) == 2


def test_a_thought_in_a_field_of_its_own_is_not_read(play, judging):
    server = play(says(None, reasoning_content='{"bridge": false, "recipe": false}'), YES)
    assert judging(server, concurrency=1).judge(exchanges(1)) == [GOOD]
    assert len(server.requests) == 2  # a thought without an answer is worth another try


def test_the_command_line_takes_an_effort_and_no_temperature():
    parser = ArgumentParser()
    parser.add_argument("--judge", type=Judge)
    words = ["--judge", "OpenAIJudge", "--judge.rubrics", '{"bridge": null}', "--judge.reasoning_effort", "minimal"]
    words += ["--judge.temperature", "null", "--judge.max_tokens", "null", "--judge.store", "null"]
    judge = parser.instantiate_classes(parser.parse_args(words)).judge
    assert (judge.reasoning_effort, judge.temperature, judge.max_tokens) == ("minimal", None, None)
