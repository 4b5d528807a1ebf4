"""The model judge where a few texts get odd answers, and where a server limits the rate: neither ends a run."""

import asyncio
import gzip
import json
import time

import pytest
from judging import KEY, YES, environment_fixture, exchanges, judging_fixture, play_fixture, script, waits_fixture  # noqa: F401
from server import endless, error, half, hang_up, raw, slow

from gradsteer.judges import Verdicts
from gradsteer.judges.completions import Completions
from gradsteer.judges.failures import JudgeStopped
from gradsteer.judges.request_settings import RequestSettings
from gradsteer.judges.spending import Spending

GOOD = Verdicts({"bridge": True, "recipe": False}, {})
FIREWALL = raw("<html>Request blocked</html>", status=403, kind="text/html; charset=utf-8")


def hates(answer, *replies):
    return script(lambda request: answer if request.reply in replies else YES)


@pytest.mark.parametrize("odd", [error(400, "something odd"), error(500, "oops"), slow(1.2, YES), hang_up, FIREWALL])
def test_one_odd_response_is_unscored_in_every_run(play, judging, waits, tmp_path, odd):
    server = play(hates(odd, "answer 1"))
    for _ in range(2):
        judge = judging(server, store=str(tmp_path / "verdicts.sqlite"), max_retries=0, timeout=0.8)
        found = judge.judge(exchanges(3))
        assert (found[0], found[2]) == (GOOD, GOOD)
        assert found[1].unscored
        # alone, too, though not one of those it is asked with is in the store
        other = judging(server, store=str(tmp_path / "verdicts.sqlite"), max_retries=0, timeout=0.8)
        assert other.judge(exchanges(2)[1:])[0].unscored


@pytest.mark.parametrize("odd", [error(400, "something odd"), error(500, "oops"), FIREWALL])
def test_odd_responses_alone_in_the_first_call_do_not_stop_a_run(play, judging, waits, odd):
    judge = judging(play(hates(odd, "answer 0", "answer 1")), max_retries=0)
    assert all(each.unscored for each in judge.judge(exchanges(2)))
    assert judge.judge(exchanges(4))[2:] == [GOOD, GOOD]


def test_many_odd_responses_before_the_first_answer_do_not_stop_a_run(play, judging):
    odd = [f"answer {number}" for number in range(12)]
    found = judging(play(hates(error(400, "something odd"), *odd)), concurrency=1).judge(exchanges(20))
    assert found[12:] == [GOOD] * 8
    assert all(each.unscored for each in found[:12])


def test_a_firewall_that_lets_nothing_through_stops_the_run(play, judging):
    with pytest.raises(JudgeStopped, match="HTTP 403.*Request blocked"):
        judging(play(FIREWALL)).judge(exchanges(100))


def test_a_refusal_of_the_key_is_about_one_text_where_the_key_was_good(play, judging):
    server = play(YES, error(403, "not allowed"), YES)
    found = judging(server, concurrency=1).judge(exchanges(3))
    assert [bool(each.unscored) for each in found] == [False, True, False]
    assert found[1].unscored["bridge"] == "HTTP 403: not allowed"
    stops = play(YES, error(401, "expired"), YES)
    with pytest.raises(JudgeStopped, match="refuses the key"):
        judging(stops, concurrency=1).judge(exchanges(3))


def test_another_key_that_is_refused_stops_a_later_run_too(play, judging, tmp_path):
    store, server = str(tmp_path / "verdicts.sqlite"), play(YES)
    judging(server, store=store).judge(exchanges(1))
    server.script = lambda request: error(403, "not allowed")
    with pytest.raises(JudgeStopped, match="8 responses in a row.*HTTP 403: not allowed"):
        judging(server, store=store, concurrency=1).judge(exchanges(100))
    assert len(server.requests) == 9


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("bad \ud83d", r"HTTP 400: bad \ud83d"),
        ("\x1b[2J\x1b]0;gone\x07red\r\nline", r"HTTP 400: \x1b[2J\x1b]0;gone\x07red\r\nline"),
        ("it's “bad”", r"HTTP 400: it's \u201cbad\u201d"),
        (f"{KEY} \u2026", r"HTTP 400: <key> \u2026"),
    ],
)
def test_a_servers_words_are_shown_in_printable_ascii(play, judging, tmp_path, message, expected):
    server = play(hates(error(400, message), "answer 0"))
    found, _ = judging(server, store=str(tmp_path / "verdicts.sqlite"), concurrency=1).judge(exchanges(2))
    assert found.unscored["bridge"] == expected
    with pytest.raises(JudgeStopped) as stopped:
        judging(play(error(401, message))).judge(exchanges(1))
    assert str(stopped.value).isascii()
    assert str(stopped.value).isprintable()


@pytest.mark.parametrize("odd", [["a"], {"a": 1}, 7, True])
def test_an_error_of_any_form_is_read(play, judging, odd):
    refused = error(400, "bad", code=odd, type=odd, param=odd)
    found = judging(play(hates(refused, "answer 0")), concurrency=1).judge(exchanges(2))
    assert found[0].unscored["bridge"] == "HTTP 400: bad"
    assert found[1] == GOOD


def test_an_answer_of_any_length_is_not_read(play, judging, waits):
    long = raw(b'{"choices": [{"message": {"content": "' + b"x" * 2_000_000 + b'"}}]}')
    judge = judging(play(long, YES), max_retries=1)
    assert judge.judge(exchanges(1)) == [GOOD]
    found = judging(play(hates(long, "answer 0")), max_retries=0, concurrency=1).judge(exchanges(2))
    assert "an answer of more than 1048576 bytes" in found[0].unscored["bridge"]
    # nor one that does not say how long it is, or is packed
    packed = raw(gzip.compress(b" " * 2_000_000 + b"{}" * 40_000), headers={"Content-Encoding": "gzip"})
    for odd in (endless(), raw(b"x" * 2_000_000, status=500), packed):
        server = play(odd, YES)
        assert judging(server, max_retries=1).judge(exchanges(1)) == [GOOD]
        assert server.requests[0].headers["accept-encoding"] == "identity"
    found = judging(play(hates(endless(), "answer 0")), max_retries=0, concurrency=1).judge(exchanges(2))
    assert "an answer of more than 1048576 bytes" in found[0].unscored["bridge"]


def test_an_error_that_is_called_a_success_is_passed_on(play, judging, waits):
    for said in ({"message": "insufficient credits"}, "insufficient credits"):
        odd = raw(json.dumps({"error": said}))
        found = judging(play(hates(odd, "answer 0")), max_retries=0, concurrency=1).judge(exchanges(2))
        assert "an error: insufficient credits" in found[0].unscored["bridge"]
        assert found[1] == GOOD


def test_numbers_beyond_all_measure_do_not_stop_a_run(play, judging, waits):
    late = error(503, "busy", {"Retry-After": "Fri, 31 Dec 99999999999999999999 23:59:59 GMT"})
    assert judging(play(late, YES)).judge(exchanges(1)) == [GOOD]
    answer = json.dumps({
        "choices": [{"finish_reason": "stop", "message": {"content": '{"bridge": true, "recipe": false}'}}],
        "usage": {"prompt_tokens": int("1" + "0" * 400), "completion_tokens": 5},
    })  # fmt: skip
    judge = judging(play(raw(answer)), prices=[1.0, 1.0], max_cost=1.0)
    assert judge.judge(exchanges(1)) == [GOOD]
    assert 0 < judge.usage().dollars < 0.01


@pytest.mark.parametrize(
    "broken", [slow(0.3, YES), half(), hang_up, raw("busy"), raw("{}"), error(504, "gateway timeout")]
)
def test_what_may_have_been_worked_on_counts_in_full_against_max_cost(play, judging, waits, broken):
    server = play(broken)
    options = {"prices": [1.0, 1.0], "concurrency": 1, "timeout": 0.1}
    with pytest.raises(JudgeStopped, match="8 responses"):
        judging(server, max_retries=0, **options).judge(exchanges(20))
    judge = judging(server, max_cost=0.006, **options)
    before = len(server.requests)
    with pytest.raises(JudgeStopped, match="max_cost is"):
        judge.judge(exchanges(20))
    assert 1 <= len(server.requests) - before <= 3
    assert 0.001 < judge.usage().dollars <= 0.006
    assert judge.usage().num_requests == 0


@pytest.mark.parametrize("refused", [error(503, "busy"), error(429, "slow down")])
def test_what_was_declined_or_never_sent_costs_nothing(play, judging, waits, refused):
    judge = judging(play(refused, YES), prices=[1.0, 1.0], max_cost=0.006)
    other = judging(play(YES), prices=[1.0, 1.0])
    assert judge.judge(exchanges(1)) == other.judge(exchanges(1)) == [GOOD]
    assert judge.usage() == other.usage()
    server = play(YES)
    server.close()
    absent = judging(server, prices=[1.0, 1.0], max_retries=2)
    with pytest.raises(JudgeStopped, match="gave no verdict"):
        absent.judge(exchanges(3))
    assert absent.usage().dollars == 0


def test_what_is_broken_off_counts_in_full(play, judging):
    judge = judging(play(slow(0.3, YES)), prices=[1.0, 1.0], concurrency=1)
    ended = judge.ask(exchanges(3))
    next(ended)
    time.sleep(0.1)
    alone = judge.usage().dollars
    ended.close()
    assert judge.usage().dollars > 2 * alone
    assert judge._spending.reserved == pytest.approx(0)


def test_unsure_costs_are_spent():
    spending = Spending((1.0, 2.0), limit=10.0)
    assert spending.reserve(6.0)
    spending.settle(6.0, sent=1_000_000, unsure=True)
    assert spending.spent == spending.cost().dollars == 6.0
    assert not spending.reserve(4.5)


def test_a_limit_on_the_rate_uses_up_no_retries(play, judging, waits):
    server = play(*[error(429, "slow down", {"Retry-After": "20"})] * 9, YES)
    assert judging(server, max_retries=2).judge(exchanges(1)) == [GOOD]
    assert len([seconds for seconds in waits if 19 < seconds < 23]) == 9


def test_a_limit_on_the_rate_that_does_not_pass_ends(play, judging, waits):
    server = play(error(429, "slow down", {"Retry-After": "100"}))
    (found,) = judging(server, max_retries=2).judge(exchanges(1))
    assert "1800 s waited at its word; the last: HTTP 429: slow down" in found.unscored["bridge"]
    assert len(server.requests) == 19


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_is_too_long_is_named_at_once(play, judging, waits, status):
    server = play(error(status, "slow down", {"Retry-After": "3600"}))
    with pytest.raises(JudgeStopped, match=f"HTTP {status}: slow down; it asks to be left alone for 3600 s.*stored"):
        judging(server, concurrency=2).judge(exchanges(30))
    assert len(server.requests) <= 2
    assert not waits


def test_a_request_that_waits_hears_of_a_later_time():
    async def play_it():
        server = Completions(
            RequestSettings("m"), "http://localhost:1", None, "X", "text", {}, 1, 1, 0, Spending(None, None)
        )
        loop = asyncio.get_running_loop()
        began = loop.time()
        server._quiet_until = began + 0.1
        waiting = asyncio.create_task(server._leave_alone())
        await asyncio.sleep(0.02)
        server._quiet_until = began + 0.3
        await waiting
        await server.close()
        return loop.time() - began

    assert 0.3 <= asyncio.run(play_it()) < 1.0
