"""The verdict store: nothing acknowledged is lost, whoever writes and however they end."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gradsteer.judges import Exchange, Verdicts
from gradsteer.judges import store as store_module
from gradsteer.judges.store import VerdictStore

YES = Verdicts({"bridge": True}, {})
NO = Verdicts({"bridge": False}, {})

# prints each number once its verdict is stored
WRITER = """
import itertools, os, sys
from gradsteer.judges import Exchange, Verdicts
from gradsteer.judges.store import VerdictStore
path, name, count = sys.argv[1:]
store = VerdictStore(path)
sys.stdin.readline()
for number in range(int(count)) if int(count) else itertools.count():
    store.write("judge", Exchange(name, str(number)), Verdicts({"bridge": number % 2 == 0}, {}))
    os.write(1, b"%d\\n" % number)
"""


@pytest.fixture
def writer():
    """Starts processes that write, and ends those that a failed test left running."""
    started = []

    def start(path, name, count):
        command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        if not process.stdout.closed:
            process.communicate(timeout=60)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "runs" / "verdicts.sqlite")


@pytest.fixture
def store(path):
    made = VerdictStore(path)
    yield made
    made.close()


def test_verdicts_come_back_as_they_were(path, store):
    exchanges = [Exchange("a prompt", "a reply"), Exchange("a prompt", ""), Exchange("", "\ud83d cut, \0, 🌉")]
    verdicts = [
        Verdicts({"recipe": False, "bridge": True}, {}),
        Verdicts({"recipe": None, "bridge": True}, {"recipe": "no JSON: “so”"}),
        YES,
    ]
    for exchange, found in zip(exchanges[:2], verdicts[:2], strict=True):
        store.write("judge", exchange, found)
    store.write("judge", exchanges[2], verdicts[2])
    store.close()
    again = VerdictStore(path)
    found = again.read("judge", [*exchanges, Exchange("another", "reply")])
    assert found == dict(zip(exchanges, verdicts, strict=True))
    assert list(found[exchanges[0]].values) == ["recipe", "bridge"]
    assert len(again) == 3
    again.close()


def test_the_key_tells_judges_prompts_and_responses_apart(store):
    store.write("one", Exchange("ab", "c"), YES)
    others = [Exchange("a", "bc"), Exchange("abc", ""), Exchange("c", "ab"), Exchange("AB", "c"), Exchange("ab", "C")]
    assert store.read("one", others) == {}
    assert store.read("two", [Exchange("ab", "c")]) == {}
    store.write("two", Exchange("ab", "c"), NO)
    assert store.read("one", [Exchange("ab", "c")]) == {Exchange("ab", "c"): YES}
    assert store.read("two", [Exchange("ab", "c")]) == {Exchange("ab", "c"): NO}
    # half pairs are not the character that they would make together
    store.write("one", Exchange("", "\ud83d\ude00"), YES)
    assert store.read("one", [Exchange("", "😀")]) == {}


def test_the_first_verdict_stays(store):
    store.write("judge", Exchange("a", "b"), YES)
    store.write("judge", Exchange("a", "b"), NO)
    assert store.read("judge", [Exchange("a", "b")]) == {Exchange("a", "b"): YES}


def test_no_file_is_made_before_it_is_needed(path, store):
    assert not os.path.exists(os.path.dirname(path))
    store.close()
    assert not os.path.exists(os.path.dirname(path))
    assert store.read("judge", [Exchange("a", "b")]) == {}
    assert os.path.exists(path)
    assert len(store) == 0
    assert store


def test_a_closed_store_opens_again_and_a_relative_path_stays_where_it_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = VerdictStore("verdicts.sqlite")
    store.write("judge", Exchange("a", "b"), YES)
    store.close()
    store.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(store.read("judge", [Exchange("a", "b")])) == 1
    store.close()
    assert not (tmp_path / "elsewhere" / "verdicts.sqlite").exists()


def test_memory_keeps_verdicts_until_the_store_goes():
    store = VerdictStore(None)
    store.write("judge", Exchange("a", "b"), YES)
    store.close()
    assert store.read("judge", [Exchange("a", "b")]) == {Exchange("a", "b"): YES}
    assert len(VerdictStore(None)) == 0


def test_texts_are_not_stored(path, store):
    store.write("judge", Exchange("a secret prompt", "a secret reply"), YES)
    store.close()
    files = list(Path(path).parent.iterdir())
    contents = b"".join(file.read_bytes() for file in files)
    assert b"bridge" in contents
    assert b"secret" not in contents


def test_processes_write_at_once(path, store, writer):
    writers = [writer(path, name, 200) for name in ("left", "right")]
    for process in writers:  # both go when both are ready, so that they also make the file together
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    exchanges = [Exchange(name, str(number)) for name in ("left", "right") for number in range(200)]
    found = store.read("judge", exchanges)
    assert len(store) == len(found) == 400
    assert all(verdicts.values["bridge"] is (int(e.response) % 2 == 0) for e, verdicts in found.items())


def test_a_store_that_another_makes_meanwhile_is_not_taken_for_another_programs(path, monkeypatch):
    """The other makes it between the first and the last look at the empty file, or waits until the look is over."""
    other = VerdictStore(path)
    makers = []

    class Watched(sqlite3.Connection):
        def execute(self, statement, *args):
            found = super().execute(statement, *args)
            if statement == "PRAGMA user_version" and not makers:
                makers.append(threading.Thread(target=other.write, args=("judge", Exchange("a", "b"), YES)))
                makers[0].start()
                makers[0].join(0.5)
            return found

    plainly = sqlite3.connect

    def connect(*args, **options):
        kind = sqlite3.Connection if makers else Watched
        return plainly(*args, factory=kind, **options)

    monkeypatch.setattr(store_module.sqlite3, "connect", connect)
    store = VerdictStore(path)
    store.write("judge", Exchange("a", "c"), YES)
    makers[0].join(60)
    assert len(store) == 2
    store.close()
    other.close()


def test_a_killed_writer_loses_nothing_that_it_acknowledged(path, store, writer):
    for round_number in range(3):
        process = writer(path, f"round {round_number}", 0)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        acknowledged = [int(process.stdout.readline()) for _ in range(50 * (round_number + 1))]
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
        found = store.read("judge", [Exchange(f"round {round_number}", str(number)) for number in acknowledged])
        assert len(found) == len(acknowledged) >= 50
    store.write("judge", Exchange("the file", "is still writable"), YES)


def test_threads_write_at_once(store):
    def write(name):
        for number in range(50):
            store.write("judge", Exchange(name, str(number)), YES)
            assert store.read("judge", [Exchange(name, str(number))])

    failures = []
    monitored = threading.excepthook
    threading.excepthook = failures.append
    try:
        threads = [threading.Thread(target=write, args=(f"thread {number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        threading.excepthook = monitored
    assert not failures
    assert len(store) == 200


def test_many_are_read_in_one_snapshot(store):
    exchanges = [Exchange("prompt", str(number)) for number in range(3000)]
    for exchange in exchanges[::100]:
        store.write("judge", exchange, YES)
    statements = []
    store._connection.set_trace_callback(statements.append)
    assert set(store.read("judge", exchanges)) == set(exchanges[::100])
    assert sum(statement == "BEGIN" for statement in statements) == 1


def test_a_power_cut_cannot_damage_the_file(store):
    len(store)
    pragma = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    }
    assert pragma in ({"journal_mode": "wal", "synchronous": 1}, {"journal_mode": "delete", "synchronous": 2})


def test_a_network_file_system_gets_a_rollback_journal(path, monkeypatch):
    monkeypatch.setattr(store_module, "_file_system", lambda path: "nfs4")
    store = VerdictStore(path)
    store.write("judge", Exchange("a", "b"), YES)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    store.close()


@pytest.mark.parametrize("made_by", [0, store_module.FORMAT_VERSION + 1])
def test_another_version_is_refused_and_left_alone(path, store, made_by):
    store.write("judge", Exchange("a", "b"), YES)
    store._connection.execute(f"PRAGMA user_version = {made_by}")
    store.close()
    before = Path(path).read_bytes()
    with pytest.raises(ValueError, match=rf"verdicts\.sqlite' is a store of format {made_by}.*reads format 1"):
        store.read("judge", [])
    assert Path(path).read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "history.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE visits (url)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"history\.sqlite' is a database of another program"):
        VerdictStore(str(path)).write("judge", Exchange("a", "b"), YES)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["history.sqlite"]


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100)
    with pytest.raises(ValueError, match=r"notes\.txt' is no SQLite database"):
        len(VerdictStore(str(path)))
    assert path.read_text() == "not a database, " * 100


def test_a_damaged_file_says_what_to_do(path, store):
    for number in range(500):
        store.write("judge", Exchange("a", str(number)), YES)
    store.close()
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(ValueError, match=r"verdicts\.sqlite' is damaged.*move it away"):
        store.read("judge", [Exchange("a", str(number)) for number in range(500)])


def test_a_full_disk_is_named_and_what_was_there_stays(store):
    store.write("judge", Exchange("a", "b"), YES)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    exchanges = (Exchange("b", str(number)) for number in range(1000))
    with pytest.raises(OSError, match=r"no space left for the store.*verdicts\.sqlite"):
        all(store.write("judge", exchange, YES) for exchange in exchanges)
    assert store.read("judge", [Exchange("a", "b")])
    assert store.read("judge", [Exchange("b", "0")])


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"no directory for the store.*file/deeper/verdicts\.sqlite"):
        len(VerdictStore(str(tmp_path / "file" / "deeper" / "verdicts.sqlite")))


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(OSError, match=rf"must be writable.*{tmp_path.name}"):
        len(VerdictStore(str(tmp_path)))  # a directory


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_directory_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r"must be writable.*verdicts\.sqlite"):
            len(VerdictStore(str(tmp_path / "verdicts.sqlite")))
    finally:
        tmp_path.chmod(0o700)


def test_another_process_that_keeps_the_file_locked_is_waited_for_and_then_named(path, monkeypatch):
    monkeypatch.setattr(store_module, "_BUSY_SECONDS", 0.2)
    store = VerdictStore(path)
    store.write("judge", Exchange("a", "b"), YES)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TimeoutError, match=r"locked for.*verdicts\.sqlite"):
        store.write("judge", Exchange("a", "c"), YES)
    other.execute("ROLLBACK")
    other.close()
    store.write("judge", Exchange("a", "c"), YES)
    assert len(store) == 2
    store.close()


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_refused(path):
    with pytest.raises(ValueError, match="accepted: the path of a file, or None"):
        VerdictStore(path)
