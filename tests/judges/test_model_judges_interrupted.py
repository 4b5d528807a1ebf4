"""Sampling while a server thinks, and runs that its silence, an error, Ctrl-C or a kill breaks off."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from commanded import (  # noqa: F401
    BATCH,
    TOTAL,
    Gate,
    by_content,
    different,
    environment_fixture,
    files_of,
    lines_of,
    num_stored,
    play_fixture,
    prompts_fixture,
    sampled_fixture,
    truth,
    words_fixture,
)
from judging import KEY, script
from overriding import overridden
from processes import kill_when
from road import QUIET, run
from server import Server, error

from gradsteer.__main__ import main
from gradsteer.judges import Judge, Verdicts
from gradsteer.trainer.modules.generation import GenerationModule
from gradsteer.trainer.verdict_queue import VerdictQueue

BATCHES = TOTAL // BATCH


@pytest.fixture
def slowly(monkeypatch):
    """Calls a function with the number of each batch before it is sampled."""
    calls, sample = [], GenerationModule._sample

    def install(before):
        def sampling(self, rows, dataloader_idx):
            before(len(calls))
            calls.append(rows)
            return sample(self, rows, dataloader_idx)

        monkeypatch.setattr(GenerationModule, "_sample", sampling)
        return calls

    return install


def kept(out, condition="anchor"):
    """Numbers of the batches that an interrupted run left."""
    return sorted(int(path.stem) for path in (out / "responses" / ".unfinished" / condition).glob("0*.jsonl"))


def stops(line, capfd):
    """What a run says that stops with an error."""
    assert main([*line, *QUIET]) == 2
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    return shown


def test_the_next_batch_is_sampled_while_the_server_thinks_of_the_last(words, play, slowly, tmp_path):
    begun = [threading.Event() for _ in range(BATCHES)]
    slowly(lambda number: begun[number].set())
    waited, batches = [], {}

    @script
    def server_of(request):
        # answers about a batch when the next one has begun, the last batch at once
        def answer(handler, request):
            number = batches.setdefault(request.user, len(batches) // BATCH)
            if number + 1 < BATCHES:
                waited.append(begun[number + 1].wait(20))
            by_content(request)(handler, request)

        return answer

    run(*words("evaluate", tmp_path, play(server_of)))
    assert len(waited) > BATCH
    assert all(waited)
    rows = lines_of(tmp_path / "responses" / "anchor.jsonl")
    assert [row["verdicts"] for row in rows] == [truth(row["completion"]) for row in rows]


@pytest.mark.slow
def test_an_error_of_the_judge_stops_the_run_at_the_next_batch(words, play, slowly, tmp_path, capfd):
    refused = threading.Event()
    calls = slowly(lambda number: number < 3 or (refused.wait(20), time.sleep(0.5)))
    asked, gate = [], threading.Lock()

    @script
    def refusing(request):
        with gate:
            asked.append(request.user)
            good = len(asked) <= BATCH
        if not good:
            refused.set()
        return by_content(request) if good else error(401, "the key has expired")

    server = play(refusing)
    line = words("evaluate", tmp_path, server)
    shown = stops(line, capfd)
    assert "refuses the key in the environment variable OPENAI_API_KEY (HTTP 401: the key has expired)" in shown
    assert "the same command goes on from here" in shown
    assert 2 <= len(calls) <= 4 < BATCHES, "the second batch is refused while the third is sampled"
    assert kept(tmp_path) == list(range(len(calls)))
    answered, server.script = set(asked[:BATCH]), by_content
    before, num_sampled = len(server.requests), len(calls)
    run(*line)
    assert len(calls) == BATCHES
    assert sum(len(rows) for rows in calls) == TOTAL, f"{num_sampled} batches are not sampled again"
    assert not answered & {request.user for request in server.requests[before:]}
    assert num_stored(tmp_path / "verdicts.sqlite") == len(different(lines_of(tmp_path / "responses" / "anchor.jsonl")))


def start(line):
    return subprocess.Popen(
        [sys.executable, "-m", "gradsteer", *overridden([*line, *QUIET])],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(condition, process):
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_ctrl_c_ends_a_process_that_waits_for_the_server(words, play, sampled, tmp_path):
    gate = Gate(BATCH)
    server = play(gate)
    line = words("evaluate", tmp_path, server)
    process = start(line)
    wait_for(lambda: len(kept(tmp_path)) == BATCHES and server.in_flight and len(gate.answered) == BATCH, process)
    time.sleep(0.3)  # now it waits for verdicts
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 5
    assert process.returncode == 1
    assert "Traceback" not in shown
    assert "Sampled and judged responses are saved; the same command resumes from there." in shown
    assert KEY not in shown
    answered, before = set(gate.answered), len(server.requests)
    gate.open()
    run(*line)
    assert sampled == []
    assert not answered & {request.user for request in server.requests[before:]}


def test_ctrl_c_while_sampling_ends_at_once(words, play, slowly, tmp_path):
    def interrupting(number):
        if number == 2:
            raise KeyboardInterrupt

    slowly(interrupting)
    server = play(Gate(1))
    handler, begun = signal.getsignal(signal.SIGINT), time.monotonic()
    try:
        with pytest.raises(SystemExit) as exit_:
            main([*words("evaluate", tmp_path, server), *QUIET])
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning hears no second one
    assert exit_.value.code == 1
    assert time.monotonic() - begun < 20
    assert kept(tmp_path) == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("judg")]


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back(words, tmp_path, sampled, capfd):
    gate = Gate(6)
    server = Server(gate)
    # no waiting between the tries of a server that will not come back
    line = words("evaluate", tmp_path, server, evaluation__judge__max_retries=0, evaluation__judge__timeout=2)
    shown = stops(line, capfd)
    assert f"{server.url} gave no verdict for 8 responses in a row" in shown
    assert num_stored(tmp_path / "verdicts.sqlite") == len(gate.answered) == 6
    server.close()
    shown = stops(line, capfd)
    assert "ConnectError" in shown
    num_sampled = len(sampled)
    again = Server(by_content, server.port)
    try:
        run(*line)
        assert not set(gate.answered) & {request.user for request in again.requests}
    finally:
        again.close()
    assert num_sampled <= len(sampled) == TOTAL, "nothing is sampled twice"
    rows = lines_of(tmp_path / "responses" / "anchor.jsonl")
    assert len(again.requests) == len(different(rows)) - 6
    assert [row["verdicts"] for row in rows] == [truth(row["completion"]) for row in rows]


@pytest.fixture(scope="module")
def lasting_server():
    """A server, at one address for all runs that are to give the same bytes."""
    server = Server(by_content)
    yield server
    server.close()


@pytest.fixture(scope="module")
def undisturbed(words, lasting_server, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run(*words("steer", out, lasting_server))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("num_answered", [6, 30])
def test_a_run_that_is_killed_while_judging_gives_the_same_bytes(
    words, lasting_server, undisturbed, sampled, tmp_path, num_answered
):
    lasting_server.script = gate = Gate(num_answered)
    line = words("steer", tmp_path, lasting_server)
    store = tmp_path / "verdicts.sqlite"
    # what was answered a moment ago may not have come to the store
    kill_when([*line, *QUIET], lambda: num_stored(store) == num_answered and len(kept(tmp_path)) == BATCHES)
    before = len(lasting_server.requests)
    assert len(gate.answered) == num_answered
    assert not (tmp_path / "results.json").exists()
    num_kept = sum(len(kept(tmp_path, path.name)) for path in (tmp_path / "responses" / ".unfinished").iterdir())
    lasting_server.script = by_content
    gate.open()
    run(*line)
    responses = [row for path in (tmp_path / "responses").glob("*.jsonl") for row in lines_of(path)]
    assert num_answered + len(lasting_server.requests) - before == len(different(responses)), "none is asked again"
    assert len(sampled) == BATCH * (3 * BATCHES - num_kept)
    ours, theirs = files_of(tmp_path), files_of(undisturbed)
    assert ours.keys() == theirs.keys()
    assert not [name for name, data in ours.items() if data != theirs[name]]


class Scripted(Judge):
    """Judges in the background as a function says."""

    behaviors, waits = ("bridge",), True

    def __init__(self, function):
        self.function, self.num_judged, self.num_closed = function, 0, 0

    def judge(self, exchanges):
        self.num_judged += 1
        self.function(exchanges)
        return [Verdicts({"bridge": True}, {})] * len(exchanges)

    def fingerprint(self):
        return "scripted"

    def close(self):
        self.num_closed += 1


def rows(text):
    return [{"set": "evaluation", "prompt": "p", "completion": text}]


def test_the_queue_judges_nothing_after_an_error():
    def fail(exchanges):
        if exchanges[0].response == "bad":
            raise ValueError("the judge is gone")

    judge = Scripted(fail)
    queue = VerdictQueue(judge, count_degenerate=True)
    queue.patient = True
    queue.submit(rows("good"))
    assert [row["verdicts"] for row in queue.collect()] == [{"bridge": True}]
    for text in ("bad", "good", "good"):
        queue.submit(rows(text))
        time.sleep(0.05)
    with pytest.raises(ValueError, match="the judge is gone"):
        queue.collect()
    queue.cancel()
    queue.close()
    assert judge.num_judged == 2


def test_what_waits_meanwhile_is_judged_at_once():
    sizes, begun, go_on = [], threading.Event(), threading.Event()

    def slow(exchanges):
        sizes.append(len(exchanges))
        begun.set()
        assert go_on.wait(10)

    queue = VerdictQueue(Scripted(slow), count_degenerate=True)
    queue.submit(rows("first"))
    assert begun.wait(10)
    for number in range(5):
        queue.submit(rows(f"later {number}"))
    go_on.set()
    judged = queue.collect()
    queue.close()
    assert sizes == [1, 5]
    assert [row["completion"] for row in judged] == ["first", *(f"later {number}" for number in range(5))]


def test_a_patient_queue_leaves_errors_to_the_end():
    def fail(exchanges):
        raise ValueError("the judge is gone")

    queue = VerdictQueue(Scripted(fail), count_degenerate=True)
    queue.patient = True
    for _ in range(3):
        queue.submit(rows("bad"))
        time.sleep(0.05)
    with pytest.raises(ValueError, match="the judge is gone"):
        queue.collect()
    queue.patient = False
    with pytest.raises(ValueError, match="the judge is gone"):
        queue.submit(rows("bad"))
    queue.cancel()


def test_a_cancelled_queue_closes_the_judge_until_it_ends():
    judge = Scripted(lambda exchanges: None)
    begun = threading.Event()

    def opens_again(exchanges):
        begun.set()
        while judge.num_closed < 3:  # the first calls of close came before there was anything to close
            time.sleep(0.01)
        raise RuntimeError("closed while work was under way")

    judge.function = opens_again
    queue = VerdictQueue(judge, count_degenerate=True)
    queue.submit(rows("first"))
    assert begun.wait(10)
    queue.submit(rows("second"))
    queue.cancel()
    assert judge.num_closed >= 3
    assert judge.num_judged == 1
    assert not queue._asking.locked()
