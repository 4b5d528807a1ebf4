"""Two processes share a model judge: the same verdicts, one store, and limits that hold for both together."""

import json
import time
from collections import Counter

import pytest
from commanded import (  # noqa: F401
    BATCH,
    TOTAL,
    by_content,
    different,
    environment_fixture,
    lines_of,
    num_stored,
    play_fixture,
    prompts_fixture,
    words_fixture,
)
from judging import KEY, script
from road import run
from server import error, slow
from test_distributed import finish_on_two, kill_both, start_on_two

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(150)]
LIMIT = 4


def test_two_processes_give_the_verdicts_of_one(words, play, tmp_path):
    server = play(script(lambda request: slow(0.05, by_content(request))))
    one, two = tmp_path / "one", tmp_path / "two"
    line = words("evaluate", one, server, evaluation__judge__concurrency=LIMIT)
    run(*line)
    assert server.most_in_flight == LIMIT == BATCH
    alone = len(server.requests)
    server.most_in_flight = 0
    store = tmp_path / "shared.sqlite"
    line = words("evaluate", two, server, evaluation__judge__concurrency=LIMIT, evaluation__judge__store=store)
    process = start_on_two(line, tmp_path, "ddp")
    try:
        log = finish_on_two(process, tmp_path)
    finally:
        kill_both(process)
    assert KEY not in log
    for file in ("responses/anchor.jsonl", "evaluations/anchor.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    rows = lines_of(two / "responses" / "anchor.jsonl")
    assert len(rows) == TOTAL
    assert alone == len(different(rows)) == num_stored(store)
    asked = Counter(request.user for request in server.requests[alone:])
    assert max(asked.values()) <= 2, "once a process at most"
    assert alone <= asked.total() < 2 * alone
    assert 1 < server.most_in_flight <= LIMIT, "half of them a process"


@pytest.mark.parametrize("trouble", ["key", "max_cost", "one"])
def test_both_processes_end_when_the_judge_stops(words, play, tmp_path, trouble):
    asked = []

    @script
    def refusing(request):
        asked.append(request)
        # "one": in one process alone, while the other waits for it
        return error(401, "the key has expired") if trouble == "key" or len(asked) == 1 else by_content(request)

    server = play(by_content if trouble == "max_cost" else refusing)
    options = {"prices": "[1000, 2000]", "max_cost": "6"} if trouble == "max_cost" else {}
    changes = {f"evaluation__judge__{name}": value for name, value in options.items()}
    line = words("evaluate", tmp_path / "two", server, **changes)
    process, begun = start_on_two(line, tmp_path, "ddp"), time.monotonic()
    try:
        status = process.wait(timeout=100)
    finally:
        kill_both(process)
    shown = (tmp_path / "log").read_text()
    assert status == 2, shown
    assert "Traceback" not in shown
    assert time.monotonic() - begun < 60
    assert ("max_cost is $3" if trouble == "max_cost" else "refuses the key") in shown
    # the other one may be ended before it has said so
    assert trouble == "one" or "in another process" not in shown
    if trouble == "max_cost":
        sent = sum(len(json.dumps(request.body["messages"])) for request in server.requests) // 4
        assert 1000 * sent / 1e6 < 6.5
        assert num_stored(tmp_path / "two" / "verdicts.sqlite") <= len(server.requests)
