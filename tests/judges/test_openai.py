"""The model judge against a server that behaves: verdicts, the store, concurrency, money, and every argument."""

import json
import threading
import time

import pytest
from judging import (  # noqa: F401
    KEY,
    RUBRICS,
    YES,
    environment_fixture,
    exchanges,
    judging_fixture,
    play_fixture,
    script,
    waits_fixture,
)  # fmt: skip
from server import error, says, slow, verdicts

from gradsteer.judges import Cost, Exchange, Verdicts
from gradsteer.judges.failures import JudgeStopped
from gradsteer.judges.openai import OpenAIJudge
from gradsteer.judges.prices import AS_OF, token_prices
from gradsteer.judges.rubrics import BUILT_IN
from gradsteer.judges.spending import Spending


def test_one_request_brings_the_verdicts_of_all_behaviors(play, judging):
    server = play(verdicts(bridge=True, recipe=False, polite=True))
    judge = judging(server, {"polite": "The reply thanks the user.", **RUBRICS})
    assert judge.behaviors == ("polite", "bridge", "recipe")
    assert judge.waits
    assert judge.judge(exchanges(1)) == [Verdicts({"polite": True, "bridge": True, "recipe": False}, {})]
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert "The reply thanks the user." in request.system
    assert BUILT_IN["bridge"] in request.system
    assert request.reply == "answer 0"
    form = request.body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["required"] == ["bridge", "polite", "recipe"]


def test_verdicts_keep_the_order_of_the_exchanges_though_replies_come_out_of_order(play, judging):
    @script
    def odd_ones_are_slow(request):
        number = int(request.reply.split()[1])
        return slow(0.03 * (number % 3), verdicts(bridge=number % 2 == 0, recipe=False))

    judge = judging(play(odd_ones_are_slow), concurrency=5)
    found = judge.judge(exchanges(12))
    assert [each.values["bridge"] for each in found] == [number % 2 == 0 for number in range(12)]


def test_equal_exchanges_are_asked_about_once_and_a_second_judge_asks_nothing(play, judging, tmp_path):
    server = play(YES)
    store = str(tmp_path / "verdicts.sqlite")
    first = judging(server, store=store)
    both = exchanges(2)
    expected = first.judge([*both, *both])
    first.close()
    assert len(server.requests) == 2
    second = judging(server, store=store, concurrency=1, timeout=5, max_retries=0, prices=[1, 1], max_cost=0)
    assert second.judge([*both, *both]) == expected
    assert len(server.requests) == 2
    assert second.usage().num_stored == 4
    assert second.usage().num_requests == 0
    assert KEY.encode() not in (tmp_path / "verdicts.sqlite").read_bytes()


def test_requests_run_at_once_and_no_more_than_the_limit(play, judging):
    server = play(slow(0.05, YES))
    judging(server, concurrency=4).judge(exchanges(16))
    assert server.most_in_flight == 4
    server.most_in_flight = 0
    shared = judging(server, concurrency=5)
    shared.share(2)
    callers = [threading.Thread(target=shared.judge, args=(exchanges(6)[part::2],)) for part in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert server.most_in_flight == 2  # also over two callers


def test_share_leaves_each_process_one_request_and_its_part_of_the_money(judging):
    judge = judging(concurrency=3, max_cost=1.0)
    judge.share(8)
    assert judge.concurrency == 1
    assert judge._spending.limit == 1 / 8


def test_answers_come_one_by_one_and_whoever_stops_early_stops_the_requests(play, judging):
    server = play(slow(0.1, YES))
    judge = judging(server, concurrency=2)
    answers = judge.ask(exchanges(100))
    assert next(answers).verdicts.values == {"bridge": True, "recipe": False}
    answers.close()
    time.sleep(0.3)
    assert len(server.requests) <= 4


def test_nothing_is_sent_but_the_exchange(play, judging):
    """Blind: the whole of two requests, for what is judged under another condition, differs in the texts alone."""
    server = play(YES)
    judging(server, seed=3).judge([Exchange("PROMPT", "one"), Exchange("PROMPT", "two")])
    first, second = sorted(server.requests, key=lambda request: request.reply)
    assert set(first.body) == {"model", "temperature", "seed", "max_tokens", "response_format", "messages"}
    assert [message["role"] for message in first.body["messages"]] == ["system", "user"]
    assert first.system == second.system
    rest = first.user.replace("PROMPT", "").replace("one", "", 1)
    for word in ("alpha", "steer", "anchor", "condition", "experiment", "vector", "jsonl", "gradsteer"):
        assert word not in (first.system + rest).lower()
    own = {name for name in first.headers if not name.startswith("x-stainless")}
    assert own <= {
        "host", "accept", "accept-encoding", "connection", "content-type", "content-length", "authorization",
        "user-agent", "idempotency-key",
    }  # fmt: skip


@pytest.mark.parametrize("usage", [True, False])
def test_the_estimate_is_close_to_what_the_server_counts(play, judging, usage):
    asked = [Exchange("What is a bridge? " * 9, f"{number:03} It is a way across. " * 12) for number in range(6)]
    judge = judging(play(says('{"bridge": true, "recipe": false}', usage=usage)), prices=[1.0, 3.0])
    before = judge.estimate(6, len(asked[0].prompt), len(asked[0].response))
    judge.judge(asked)
    after = judge.usage()
    assert (before.num_requests, before.num_stored, after.num_requests) == (6, 0, 6)
    assert before.prompt_tokens == pytest.approx(after.prompt_tokens, rel=0.05)
    assert before.completion_tokens == pytest.approx(after.completion_tokens, rel=0.5 if usage else 5)
    assert after.dollars == pytest.approx((after.prompt_tokens + 3 * after.completion_tokens) / 1e6)
    assert before.dollars == pytest.approx(after.dollars, rel=0.1)


def test_an_estimate_needs_no_key_and_no_server(judging, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    judge = judging()
    assert judge.estimate(1000, 100, 500).dollars == pytest.approx(0.15 * 0.65, rel=0.3)
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        judge.check()
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        judge.judge(exchanges(1))
    assert judge.judge([]) == []


def test_a_server_of_ones_own_needs_no_key(play, judging, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server = play(YES)
    assert judging(server).judge(exchanges(1))[0].values["bridge"] is True
    assert server.requests[0].headers["authorization"] == "Bearer none"


def test_max_cost_stops_before_the_request_that_could_pass_it(play, judging, tmp_path):
    server = play(slow(0.01, YES))
    judge = judging(server, store=str(tmp_path / "verdicts.sqlite"), max_cost=0.06, prices=[1.0, 1.0], concurrency=16)
    with pytest.raises(JudgeStopped, match=r"max_cost is \$0.06, .* is spent.*stored") as stopped:
        judge.judge(exchanges(500))
    spent = judge.usage().dollars
    worst = float(str(stopped.value).split("may take $")[1].split(".")[1].split()[0]) / 1e6
    assert spent <= 0.06 < spent + worst  # neither too late nor too early
    judged = len(server.requests)
    assert 10 < judged < 500
    assert len(judge.store) == judged  # every verdict paid for was kept


def test_what_was_begun_ends_where_max_cost_stops_the_rest(play, judging):
    server = play(error(429, "slow down", {"Retry-After": "0.2"}), YES)
    judge = judging(server, max_cost=0.006, prices=[1.0, 1.0], concurrency=2)
    with pytest.raises(JudgeStopped, match="max_cost"):
        judge.judge([Exchange("p", "short"), Exchange("p", "long" * 4000), *exchanges(50)])
    assert [request.reply for request in server.requests] == ["short", "short"]
    assert len(judge.store) == 1


def test_what_is_set_aside_counts_until_it_is_settled():
    spending = Spending((1.0, 2.0), limit=10.0)
    assert spending.reserve(6.0)
    assert not spending.reserve(4.5)
    assert spending.reserve(4.0)
    spending.settle(6.0, sent=1_000_000, received=500_000, answered=True)
    assert spending.spent == 2.0
    assert not spending.reserve(4.5)
    assert spending.reserve(4.0)
    assert spending.cost() == Cost(1, 0, 1_000_000, 500_000, 2.0)


@pytest.mark.parametrize(
    ("model", "prices", "expected"),
    [
        ("gpt-5-mini", None, (0.25, 2.0)),
        ("gpt-5-mini-2025-08-07", None, (0.25, 2.0)),
        ("openai/o3", None, (2.0, 8.0)),
        ("o3", [7.0, 9.0], (7.0, 9.0)),
        ("llama", [7.0, 9.0], (7.0, 9.0)),
        ("gpt-5.5-pro", None, None),  # never the price of a name that it begins with
    ],
)
def test_prices_are_looked_up_by_name_or_given(model, prices, expected):
    assert token_prices(model, prices) == expected


def test_the_help_says_of_when_the_prices_are():
    assert f"OpenAI's list prices as of {AS_OF} by model name" in " ".join(OpenAIJudge.__doc__.split())


def test_max_cost_needs_a_price(judging):
    with pytest.raises(ValueError, match="what 'llama' costs at http://127.0.0.1:1/v1 is not known"):
        judging(base_url="http://127.0.0.1:1/v1", model="llama", max_cost=1.0)
    with pytest.raises(ValueError, match=f"'gpt-99' costs.*as of {AS_OF}: gpt-4o-mini"):
        judging(model="gpt-99", max_cost=1.0)
    assert judging(model="gpt-99").usage().dollars is None
    assert judging(model="gpt-4.1-mini-2025-04-14", max_cost=1.0).usage().dollars == 0
    for url in ("https://api.openai.com/v1", "http://127.0.0.1:1/v1"):
        assert judging(base_url=url, max_cost=1.0).usage().dollars == 0


@pytest.mark.parametrize("url", [None, "https://api.openai.com/v1", "https://eu.api.openai.com/v1"])
def test_openais_own_address_is_known_however_it_is_given(judging, url):
    judge = judging(base_url=url)
    _, server = judge._open()  # no request is made
    assert server.settings.options(7)["max_completion_tokens"] == 7
    assert "max_tokens" not in server.settings.options(7)
    judge.close()


def test_max_cost_holds_at_a_gateway_under_a_known_models_name(play, judging):
    server = play(YES)
    judge = judging(server, max_cost=0.001, concurrency=1)
    with pytest.raises(JudgeStopped, match="max_cost"):
        judge.judge(exchanges(1000))
    assert 0 < judge.usage().dollars <= 0.001


@pytest.mark.parametrize(("status", "field"), [(400, "response_format"), (404, None), (422, None)])
def test_auto_takes_the_form_of_answer_that_the_server_knows(play, judging, status, field):
    known = []

    @script
    def knows_little(request):
        form = request.body.get("response_format", {}).get("type", "text")
        known.append(form)
        return YES if form == "text" else error(status, f"response_format {form} is not supported", param=field)

    judge = judging(play(knows_little), concurrency=1)
    with pytest.warns(UserWarning, match="does not answer in the form json_object .*asked for text") as warned:
        found = judge.judge(exchanges(3))
    assert len(warned) == 1
    assert all(each.values["bridge"] for each in found)
    assert known == ["json_schema", "json_object", "text", "text", "text"]  # for the whole run


def test_one_odd_exchange_does_not_downgrade_the_others(play, judging):
    @script
    def hates_one(request):
        return error(400, "json_schema: bad text") if "answer 1" in request.reply else YES

    server = play(hates_one)
    found = judging(server, concurrency=1).judge(exchanges(3))
    assert [each.values["bridge"] for each in found] == [True, None, True]
    assert "HTTP 400" in found[1].unscored["bridge"]
    assert server.requests[-1].body["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("form", ["json_schema", "json_object", "text"])
def test_a_form_that_is_asked_for_is_the_only_one(play, judging, form):
    server = play(YES)
    judging(server, structured=form).judge(exchanges(1))
    assert server.requests[0].body.get("response_format", {"type": "text"})["type"] == form
    refusing = play(error(400, "response_format is not supported"))
    if form != "text":
        with pytest.raises(JudgeStopped, match="response_format is not supported"):
            judging(refusing, structured=form).judge(exchanges(1))
        assert {request.body["response_format"]["type"] for request in refusing.requests} == {form}


def test_false_on_a_response_that_lost_its_middle_is_no_verdict(play, judging):
    server = play(YES)
    long, short = Exchange("p", "r" * 60), Exchange("p", "r" * 50)
    found = judging(server, max_chars=50).judge([long, short])
    assert [each.values for each in found] == [{"bridge": True, "recipe": None}, {"bridge": True, "recipe": False}]
    assert "50" in found[0].unscored["recipe"]
    assert judging(server, max_chars=60).judge([long])[0].values == found[1].values


def test_arguments_reach_the_request(play, judging, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "other-key-for-tests")
    server = play(YES)
    options = {"model": "m", "max_tokens": 7, "temperature": 0.5, "seed": 3, "api_key_env": "OTHER_KEY"}
    judging(server, max_chars=10, **options).judge([Exchange("p", "abcdefghijklmnopqrstuvwxyz")])
    (request,) = server.requests
    assert {name: request.body[name] for name in ("model", "max_tokens", "temperature", "seed")} == {
        "model": "m", "max_tokens": 7, "temperature": 0.5, "seed": 3,
    }  # fmt: skip
    assert request.headers["authorization"] == "Bearer other-key-for-tests"
    assert request.reply == "abcde\n[16 characters left out]\nvwxyz"
    judging(server).judge(exchanges(1))
    assert "seed" not in server.requests[1].body


def test_the_fingerprint_holds_what_decides_and_nothing_else(judging, monkeypatch):
    same = judging(base_url="http://host:1/v1").fingerprint()
    for option in ({"concurrency": 2}, {"timeout": 1.0}, {"max_retries": 1}, {"prices": [1, 2], "max_cost": 3.0}):
        assert judging(base_url="http://HOST:1/v1/", **option).fingerprint() == same
    assert judging(base_url="http://host:1/v1", rubrics=dict(reversed(RUBRICS.items()))).fingerprint() == same
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    assert judging(base_url="http://host:1/v1", api_key_env="OPENAI_API_KEY").fingerprint() == same
    others = [
        {"base_url": None}, {"base_url": "http://host:2/v1"}, {"model": "m"}, {"temperature": 0.1}, {"seed": 0},
        {"max_tokens": 9}, {"max_chars": 9}, {"structured": "text"}, {"rubrics": {"bridge": None}},
        {"rubrics": {"bridge": "A bridge.", "recipe": None}},
    ]  # fmt: skip
    found = {judging(**{"base_url": "http://host:1/v1", **option}).fingerprint() for option in others}
    assert len(found | {same}) == len(others) + 1


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"base_url": "http://user:hunter2@host/v1"}, "user name, a password"),
        ({"base_url": "http://host/v1?key=hunter2"}, "a query"),
        ({"base_url": "localhost:8000"}, "localhost:8000.*accepted"),
        ({"structured": "xml"}, "structured is 'xml'"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"max_chars": 1}, "max_chars is 1"),
        ({"max_cost": -1}, "max_cost is -1"),
        ({"model": " "}, "model is ' '"),
        ({"api_key_env": ""}, "api_key_env is ''"),
        ({"prices": [1]}, r"prices are \[1\]"),
        ({"prices": [1, -2]}, r"prices are \[1, -2\]"),
        ({"prices": [1, float("inf")]}, r"prices are \[1, inf\]"),
    ],
)
def test_arguments_out_of_range_are_refused(judging, option, match):
    with pytest.raises(ValueError, match=match) as refused:
        judging(**option)
    assert "hunter2" not in str(refused.value)


def test_rubrics_come_from_a_file_too(play, judging, tmp_path):
    path = tmp_path / "rubrics.json"
    path.write_text(json.dumps({"polite": "Says thanks."}))
    server = play(verdicts(polite=False))
    assert judging(server, str(path)).judge(exchanges(1)) == [Verdicts({"polite": False}, {})]
    assert "Says thanks." in server.requests[0].system
