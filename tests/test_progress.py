import io
import re
import subprocess
import sys
import threading
import time

import pytest

from gradsteer.progress import _Task, duration, progress, working


class Terminal(io.StringIO):
    def isatty(self):
        return True


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_short_work_writes_nothing_to_a_log():
    log = io.StringIO()
    with progress("responses", 3, stream=log) as tick:
        for _ in range(3):
            tick()
    assert log.getvalue() == ""


def test_a_line_comes_by_time_also_where_no_step_ends():
    log = io.StringIO()
    with progress("responses under the base", 7, unit="condition", stream=log, first=0.001, every=0.001) as tick:
        tick(3, "1,234 tokens/s")
        until(lambda: "still at 3/7" in log.getvalue())
    lines = log.getvalue().splitlines()
    assert "responses under the base: 3/7 conditions, 0 s, about 0 s left, 1,234 tokens/s" in lines
    assert "responses under the base: still at 3/7 conditions, 0 s, 1,234 tokens/s" in lines
    assert lines[-1] == "responses under the base: 3/7 conditions, done in 0 s"
    assert "progress" not in [thread.name for thread in threading.enumerate()]


def test_one_line_tells_of_work_inside_other_work():
    log = io.StringIO()
    with progress("steer", 16, unit="condition", stream=log, first=0.05, every=60) as outer:
        outer()
        with working("statistics", stream=log, first=0, every=0):
            until(lambda: log.getvalue())
    [line] = log.getvalue().splitlines()[:-1]
    assert re.fullmatch(r"steer: 1/16 conditions, \d s, about \d+ s left \| statistics: \d s", line)


def test_what_is_left_is_told_from_the_share_that_is_done():
    task = _Task("bridge", 44, "batch")
    task.done = 11
    assert task.text(task.start + 60) == "bridge: 11/44 batches, 60 s, about 3 min left"
    task.done = 44
    assert task.text(task.start + 240) == "bridge: 44/44 batches, 4 min"
    assert [duration(seconds) for seconds in (0.4, 119, 120, 9000)] == ["0 s", "119 s", "2 min", "2.5 h"]


def test_ticks_from_many_threads_are_all_counted():
    log = io.StringIO()
    with progress("judging", 4000, unit="response", stream=log, first=0.001, every=0.001) as tick:
        threads = [threading.Thread(target=lambda: [tick() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: log.getvalue())
    assert log.getvalue().splitlines()[-1].startswith("judging: 4,000/4,000 responses, done")


def test_work_that_fails_leaves_no_last_line_and_no_thread():
    log = io.StringIO()
    with pytest.raises(ValueError, match="bad"), working("reading", stream=log, first=0.001, every=60):  # noqa: PT012
        until(lambda: log.getvalue())
        raise ValueError("bad")
    assert log.getvalue().splitlines() == ["reading: 0 s"]
    assert "progress" not in [thread.name for thread in threading.enumerate()]


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr("gradsteer.progress._REDRAW", 0.01)
    terminal = Terminal()
    with progress("responses", 3, unit="condition", stream=terminal) as tick:
        tick(2, "half")
        until(lambda: "2/3" in terminal.getvalue())
    with working("statistics", stream=terminal):
        until(lambda: "statistics [" in terminal.getvalue())


def test_nothing_is_written_where_nothing_is_to_be_shown():
    terminal = Terminal()
    with progress("responses", 3, stream=terminal, shown=False) as tick:
        tick(note="x")
    assert terminal.getvalue() == ""


def test_it_imports_neither_torch_nor_lightning():
    code = "import sys, gradsteer.progress; assert not {'torch', 'lightning', 'tqdm'} & set(sys.modules), sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
