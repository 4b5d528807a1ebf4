"""The model judge against a server that does not behave, with the real client; nobody waits for real seconds."""

import email.utils
import json
import logging
import signal
import threading
import time

import pytest
from judging import KEY, YES, environment_fixture, exchanges, judging_fixture, play_fixture, script, waits_fixture  # noqa: F401
from server import error, half, hang_up, raw, says, slow, waiting_for

from gradsteer.judges import Exchange, Verdicts
from gradsteer.judges.failures import JudgeStopped, retry_after

GOOD = Verdicts({"bridge": True, "recipe": False}, {})
LIMITED = error(429, "slow down", {"Retry-After": "7"}, type="requests", code="rate_limit_exceeded")


@pytest.mark.parametrize(
    "bad",
    [
        error(500, "oops"), error(502, "oops"), error(503, "oops"), error(408, "oops"), error(409, "oops"), LIMITED,
        half(), half(""), hang_up, raw('{"choices": [{"mess'), raw("<html>busy</html>", kind="text/html"), raw(""),
        raw("[]"), raw("{}"), raw('{"choices": [7]}'), raw('{"error": {"message": "overloaded"}}'),
        raw("[" * 100_000), raw(b"\xff\xfe{}"), raw("{}", status=500, kind="text/plain"),
    ],
)  # fmt: skip
def test_a_passing_failure_is_tried_again(play, judging, waits, bad):
    server = play(bad, bad, YES)
    assert judging(server).judge(exchanges(1)) == [GOOD]
    assert len(server.requests) == 3
    assert len([seconds for seconds in waits if seconds > 0.2]) >= 2
    assert server.requests[0].raw == server.requests[2].raw


def test_a_good_answer_counts_whatever_its_content_type(play, judging):
    body = json.dumps({"choices": [{"message": {"content": '{"bridge": true, "recipe": false}'}}]})
    server = play(raw(body, kind="text/plain"))
    assert judging(server, max_retries=0).judge(exchanges(1)) == [GOOD]


def test_a_slow_reply_times_out_and_is_tried_again(play, judging, waits):
    def dribble(handler, request):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(1000):  # each byte comes in time, the whole does not
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    never = threading.Event()
    server = play(waiting_for(never, YES), dribble, YES)
    judge = judging(server, timeout=0.3)
    began = time.monotonic()
    assert judge.judge(exchanges(1)) == [GOOD]
    assert time.monotonic() - began < 20  # each of the two would have taken a minute
    never.set()
    assert len(server.requests) == 3
    one = judging(play(YES))
    one.judge(exchanges(1))
    # what timed out may be charged for: it counts as sent, though not as answered
    assert judge.usage().num_requests == 1
    assert judge.usage().prompt_tokens == pytest.approx(3 * one.usage().prompt_tokens, rel=0.2)


def test_retry_after_is_honoured_by_the_clock(play, judging):
    server = play(error(429, "slow down", {"Retry-After": "0.4"}), YES)
    assert judging(server).judge(exchanges(1)) == [GOOD]
    first, second = (request.time for request in server.requests)
    assert 0.4 <= second - first < 2.0


def test_one_request_told_to_wait_keeps_the_others_back(play, judging):
    server = play(error(429, "slow down", {"Retry-After-Ms": "400"}), YES)
    judging(server, concurrency=1).judge(exchanges(1))
    held = play(error(429, "slow down", {"Retry-After-Ms": "400"}), slow(0.1, YES))
    assert judging(held, concurrency=2).judge(exchanges(6)) == [GOOD] * 6
    began = held.requests[0].time
    early = [request for request in held.requests[1:] if request.time - began < 0.35]
    assert len(early) <= 1  # only what was already under way


def test_retry_after_has_three_forms():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "0.5"}) == 0.5
    assert retry_after({"retry-after": "7", "retry-after-ms": "250"}) == 0.25
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert retry_after({"retry-after": in_a_minute}) == pytest.approx(60, abs=2)
    assert retry_after({"retry-after": email.utils.formatdate(0, usegmt=True)}) == 0
    assert retry_after({"retry-after": "86400"}) == 86400
    assert retry_after({"retry-after": "-3"}) == 0
    for nonsense in ("", "soon", "nan", "inf", "Mon, 99 Foo 2025"):
        assert retry_after({"retry-after": nonsense}) is None
    assert retry_after({}) is None


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}, {"Retry-After": "soon"}])
def test_without_word_from_the_server_waits_double(play, judging, waits, headers):
    judging(play(*[error(500, "oops", headers)] * 5, YES)).judge(exchanges(1))
    assert len(waits) == 5
    assert [0.25 * 2**number <= seconds <= 0.5 * 2**number for number, seconds in enumerate(waits)] == [True] * 5


def test_a_storm_on_everyone_passes(play, judging, waits):
    tries = {}

    @script
    def storm(request):
        tries[request.reply] = tries.get(request.reply, 0) + 1
        return LIMITED if tries[request.reply] <= 4 else YES

    assert judging(play(storm), concurrency=8).judge(exchanges(24)) == [GOOD] * 24
    assert set(tries.values()) == {5}
    assert len([seconds for seconds in waits if 6.5 < seconds < 7.8]) >= 24 * 4


def test_used_up_retries_leave_one_unscored_and_it_is_asked_about_again(play, judging, waits, tmp_path):
    down = True

    @script
    def hates_one(request):
        return error(500, "oops") if down and "answer 1" in request.reply else YES

    server = play(hates_one)
    store = str(tmp_path / "verdicts.sqlite")
    found = judging(server, max_retries=2, store=store, concurrency=1).judge(exchanges(3))
    assert (found[0], found[2]) == (GOOD, GOOD)
    assert found[1].values == {"bridge": None, "recipe": None}
    assert found[1].unscored["bridge"] == "no answer in 3 tries; the last: HTTP 500: oops"
    assert len(server.requests) == 5
    down = False
    assert judging(server, store=store).judge(exchanges(3)) == [GOOD] * 3
    assert len(server.requests) == 6


def test_a_server_that_is_gone_for_good_stops_the_run_and_keeps_what_there_is(play, judging, waits, tmp_path):
    server = play(*[YES] * 5, error(503, "gone"))
    judge = judging(server, max_retries=1, concurrency=1, store=str(tmp_path / "verdicts.sqlite"))
    with pytest.raises(JudgeStopped, match="8 responses in a row.*HTTP 503: gone.*stored.*same command"):
        judge.judge(exchanges(100))
    assert len(server.requests) == 5 + 8 * 2
    assert len(judge.store) == 5


def test_a_server_that_was_never_there_stops_the_run_at_once(play, judging, waits):
    server = play(YES)
    server.close()
    with pytest.raises(JudgeStopped, match="3 responses in a row.*(refused|failed)"):
        judging(server, max_retries=1).judge(exchanges(3))


@pytest.mark.parametrize(
    ("status", "echo"),
    [
        (401, f"Incorrect API key provided: {KEY}. Find it at ..."),
        (401, f"Incorrect API key provided: {KEY[:8]}{'*' * 20}{KEY[-4:]}."),
        (401, f"Incorrect API key provided: {KEY[:5]}...{KEY[-4:]} (ending in {KEY[-4:]})"),
        (403, json.dumps({"headers": {"Authorization": f"Bearer {KEY}"}})),
    ],
)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_a_refused_key_stops_at_once_and_is_shown_nowhere(play, judging, caplog, monkeypatch, status, echo, level):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(level)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(level, logger=name)
    server = play(error(status, echo, {"X-Echo": KEY, "X-Short": KEY[-12:]}))
    judge = judging(server, api_key_env="JUDGE_KEY", concurrency=3)
    with pytest.raises(JudgeStopped, match="JUDGE_KEY") as refused:
        judge.judge(exchanges(50))
    assert 1 <= len(server.requests) <= 3
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    if level == logging.DEBUG:
        assert "receive_response_headers" in caplog.text
    shown = f"{refused.value} {refused.value!r} {refused.value.__cause__!r} {refused.value.__context__!r} {judge!r}"
    for text in (shown, caplog.text, repr(vars(judge)), repr(judge._running)):
        for part in (KEY, KEY[:8], KEY[-4:], KEY[10:20]):
            assert part not in text


def test_the_key_is_scrubbed_from_what_is_kept_of_a_reply(play, judging):
    refusing = play(says(f"I was told {KEY}"), says(None, refusal=f"{KEY} no"), error(400, f"bad: {KEY}"), YES)
    found = judging(refusing, concurrency=1).judge(exchanges(3))
    assert not any(KEY[:12] in reason for each in found for reason in each.unscored.values())
    assert sum("<key>" in each.unscored.get("bridge", "") for each in found) >= 1


@pytest.mark.parametrize(
    "answer",
    [
        error(404, "The model `m` does not exist", code="model_not_found"),
        error(429, "You exceeded your current quota", type="insufficient_quota", code="insufficient_quota"),
        error(402, "Payment required"),
        error(405, "Method not allowed"),
        error(400, "Unsupported value", param="reasoning_effort", code="unsupported_value"),
    ],
)
def test_what_stops_everything_stops_at_once(play, judging, waits, answer):
    server = play(answer)
    with pytest.raises(JudgeStopped, match="cannot be asked for 'm' .*HTTP 4.*stored"):
        judging(server, model="m", concurrency=4, reasoning_effort="low").judge(exchanges(50))
    assert len(server.requests) <= 4
    assert not waits


@pytest.mark.parametrize(
    ("answer", "lasting"),
    [
        (error(400, "maximum context length is 8192 tokens", code="context_length_exceeded"), True),
        (error(400, "This model's maximum context length is 4096 tokens"), True),
        (error(413, "request entity too large"), True),
        (error(400, "something odd"), False),
    ],
)
def test_a_request_refused_for_its_text_is_unscored_with_the_reason(play, judging, answer, lasting):
    @script
    def hates_one(request):
        return answer if "answer 1" in request.reply else YES

    server = play(hates_one)
    judge = judging(server, concurrency=1)
    found = judge.judge(exchanges(3))
    assert (found[0], found[2]) == (GOOD, GOOD)
    assert found[1].unscored["recipe"].startswith("HTTP 4")
    judge.judge(exchanges(3))
    assert len(server.requests) == 3 + (not lasting)


def test_requests_that_are_all_refused_stop_the_run(play, judging):
    server = play(error(400, "unknown field max_tokens"))
    with pytest.raises(JudgeStopped, match="unknown field"):
        judging(server).judge(exchanges(100))
    assert len(server.requests) < 50


def test_an_unreadable_reply_is_asked_for_once_more(play, judging):
    server = play(says("I would rather not say."), YES)
    assert judging(server).judge(exchanges(1)) == [GOOD]
    stubborn = play(says("No."))
    judge = judging(stubborn)
    (found,) = judge.judge(exchanges(1))
    assert found.unscored["bridge"] == "the judge's reply holds no verdicts: 'No.'"
    assert len(stubborn.requests) == 2
    assert judge.judge(exchanges(1)) == [found]  # not stored: asked again, as often
    assert len(stubborn.requests) == 4


MAYBE = '{"bridge": true, "recipe": "perhaps"}'


@pytest.mark.parametrize(
    ("answer", "num_requests", "lasting"),
    [
        (says("No."), 2, False),
        (says('{"bridge": true, "recipe": fal'), 2, False),
        (says('{"bridge": true, "recipe": false} {"bridge": false, "recipe": false}'), 2, False),
        (says('{"bridge": true}'), 2, False),
        (says('{"bridge": true, "recipe": false}', finish="length"), 2, False),  # once with more room
        (says(MAYBE), 1, True),  # the judge has answered: that is what it says
    ],
)
@pytest.mark.filterwarnings("ignore:an answer of .* was cut")
def test_only_what_was_decided_for_good_is_not_asked_for_in_the_next_run(
    play, judging, tmp_path, answer, num_requests, lasting
):
    store = str(tmp_path / "verdicts.sqlite")
    server = play(answer)
    first = judging(server, store=store)
    (before,) = first.judge(exchanges(1))
    assert before.unscored
    assert len(server.requests) == num_requests
    assert len(first.store) == lasting
    first.close()
    better = play(YES)
    server.script = better.script  # the same server, on a better day
    (after,) = judging(server, store=store).judge(exchanges(1))
    assert after == (before if lasting else GOOD)
    assert len(server.requests) == num_requests + (not lasting)


def test_ctrl_c_stops_the_requests_and_the_judge_goes_on_afterwards(play, judging):
    answers = threading.Event()
    server = play(waiting_for(answers, YES))
    judge = judging(server, concurrency=2)
    list(judge.ask([]))  # the client is loaded
    main = threading.main_thread()

    def interrupt():
        while len(server.requests) < 2:
            time.sleep(0.01)
        signal.pthread_kill(main.ident, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        judge.judge(exchanges(50))  # not even what was under way is waited for: nothing is answered yet
    interrupter.join()
    answers.set()
    assert len(server.requests) == 2
    assert judge.judge([Exchange("a", "b")]) == [GOOD]
    judge.close()
    judge.close()
    assert judge.judge([Exchange("a", "c")]) == [GOOD]
    assert [thread for thread in threading.enumerate() if thread.name == "judging"]
    judge.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "judging"]


def test_closing_ends_what_another_thread_is_waiting_for(play, judging):
    judge = judging(play(slow(2.0, YES)))
    raised = []

    def wait():
        try:
            judge.judge(exchanges(3))
        except RuntimeError as error:
            raised.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not judge._running:
        time.sleep(0.01)
    time.sleep(0.1)
    judge.close()
    waiting.join(timeout=30)
    assert raised == ["closed while work was under way"]
