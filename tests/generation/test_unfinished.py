"""Batches on the way: whole or not there, and never those of another plan."""

import errno
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gradsteer.generation.unfinished import UnfinishedCondition
from gradsteer.records import write_jsonl

PLAN = {"batch_size": 4, "digest": "abc", "temperature": 0.6, "weights": None}
ROWS = [
    {"position": 0, "completion": "a\u2028b", "token_ids": [1]},
    {"position": 1, "completion": "", "token_ids": [2]},
]


def work(path):
    return UnfinishedCondition(path, "bridge_alpha=+0.1")


def test_batches_come_back_as_they_were_given(tmp_path):
    assert work(tmp_path).plan() is None
    assert work(tmp_path).begin(PLAN) is False
    assert work(tmp_path).read(3, []) is None
    work(tmp_path).write(3, ROWS)
    assert work(tmp_path).begin(PLAN) is True
    assert work(tmp_path).read(3, []) == ROWS
    assert work(tmp_path).plan()["batch_size"] == 4


def test_a_plan_that_differs_is_refused_by_what_differs(tmp_path):
    work(tmp_path).begin(PLAN)
    with pytest.raises(ValueError, match=r"differs in temperature \(now 0\.7, then 0\.6\).*--overwrite true"):
        work(tmp_path).begin({**PLAN, "temperature": 0.7})
    with pytest.raises(ValueError, match=r"differs in weights \(now digest \w{12}, then null\)"):
        work(tmp_path).begin({**PLAN, "weights": {"recipe": "x" * 100}})
    with pytest.raises(ValueError, match=r'differs in the prompts or their seeds \(now "abd", then "abc"\)'):
        work(tmp_path).begin({**PLAN, "digest": "abd"})
    with pytest.raises(ValueError, match="differs in dtype"):
        work(tmp_path).begin({**PLAN, "dtype": "float32"})


def test_what_is_cleared_is_gone_and_conditions_do_not_see_each_other(tmp_path):
    other = UnfinishedCondition(tmp_path, "anchor")
    for each in (work(tmp_path), other):
        each.begin(PLAN)
        each.write(0, ROWS)
    work(tmp_path).clear()
    assert work(tmp_path).plan() is None
    assert work(tmp_path).read(0, []) is None
    assert other.read(0, []) == ROWS
    other.clear()
    assert not (tmp_path / ".unfinished").exists()
    other.clear()  # nothing is there: nothing to say


def test_temporary_files_of_a_condition_whose_name_goes_on_are_left_alone(tmp_path):
    own, others = (tmp_path / f".{name}.0123456789ab.tmp.jsonl" for name in ("bridge", "bridge.v2"))
    for path in (own, others):
        path.touch()
    UnfinishedCondition(tmp_path, "bridge").clear()
    assert (own.exists(), others.exists()) == (False, True)
    UnfinishedCondition(tmp_path, "bridge.v2").clear()
    assert not others.exists()


def test_temporary_files_of_refusals_are_removed(tmp_path):
    (tmp_path / "refusals").mkdir()
    files = [
        tmp_path / "refusals" / f".{name}.0123456789ab.tmp.jsonl"
        for name in ("bridge.benign", "bridge.harmful", "bridge", "bridge.v2.benign")
    ]
    for path in files:
        path.touch()
    UnfinishedCondition(tmp_path, "bridge").clear()
    assert [path.exists() for path in files] == [False, False, True, True]


def test_two_commands_at_two_conditions_do_not_take_the_directory_from_each_other(tmp_path):
    """Each begins and clears over and over, so that one makes what the other is about to remove."""
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(begin_and_clear, UnfinishedCondition(tmp_path, name)) for name in "abcd"]:
            done.result()
    assert not (tmp_path / ".unfinished").exists()


def begin_and_clear(condition):
    for _ in range(150):
        condition.begin(PLAN)
        assert condition.plan() == PLAN
        condition.clear()


def test_a_directory_that_another_command_removed_or_filled_is_no_error(tmp_path, monkeypatch):
    mkdir, rmdir = Path.mkdir, Path.rmdir
    condition = work(tmp_path)
    above = condition.directory.parent
    removed = []

    def make(path, *args, **options):
        if path == condition.directory and above.is_dir() and not removed:
            removed.append(path)
            rmdir(above)
        mkdir(path, *args, **options)

    def remove(path):
        (above / "another").mkdir()
        rmdir(path)

    monkeypatch.setattr(Path, "mkdir", make)
    above.mkdir(parents=True)
    condition.begin(PLAN)
    assert removed
    assert condition.plan() == PLAN
    monkeypatch.setattr(Path, "rmdir", remove)
    condition.clear()
    assert [path.name for path in above.iterdir()] == ["another"]


def test_what_was_measured_is_kept_for_its_text(tmp_path):
    work(tmp_path).begin(PLAN)
    assert work(tmp_path).measured("text") is None
    work(tmp_path).keep_measured("text", {"perplexity": 1.2345678901234567, "kl_to_anchor": None})
    assert work(tmp_path).measured("text") == {"perplexity": 1.2345678901234567, "kl_to_anchor": None}
    assert work(tmp_path).measured("another text") is None
    (work(tmp_path).directory / "plan.json").unlink()
    work(tmp_path).begin(PLAN)  # nobody knows of which plan that was
    assert work(tmp_path).measured("text") is None


def finished(path, files):
    """A condition that was sampled as planned, with its responses written."""
    condition = work(path)
    condition.begin(PLAN)
    condition.keep_measured("text", {"perplexity": 2.0})
    for name, rows in files.items():
        write_jsonl(condition.responses_to(name), rows)
    condition.finish()


SAMPLED = {
    "token_ids": [1],
    "finish_reason": "stop",
    "model": "m",
    "temperature": 1.0,
    "top_p": 1.0,
    "max_new_tokens": 4,
}
ROW = {"id": "p", "sample": 0, "completion": "a", "failed": None, "verdicts": {"a": True}, **SAMPLED}


def test_finished_responses_of_the_same_plan_are_taken_again(tmp_path):
    files = {"evaluation": [ROW, {**ROW, "sample": 1, "completion": "", "failed": "long"}], "benign": [ROW]}
    finished(tmp_path, files)
    assert not (tmp_path / ".unfinished").exists()
    planned = [{"set": "evaluation", "id": "p", "sample": 1, "position": 7}, {"set": "benign", "id": "p", "sample": 0}]
    again = work(tmp_path)
    assert again.begin(PLAN) is True
    assert again.read(0, planned) == [
        {**planned[0], **SAMPLED, "completion": "", "failed": "long"}, {**planned[1], **SAMPLED, "completion": "a"}
    ]  # fmt: skip
    assert again.measured("text") == {"perplexity": 2.0}
    assert again.read(1, [*planned, {"set": "evaluation", "id": "p", "sample": 2}]) is None  # never sampled


@pytest.mark.parametrize("change", ["plan", "responses", "overwritten"])
def test_finished_responses_of_another_plan_or_changed_since_are_not_taken(tmp_path, change):
    finished(tmp_path, {"evaluation": [ROW]})
    plan = {**PLAN, "temperature": 0.7} if change == "plan" else PLAN
    if change == "responses":
        write_jsonl(tmp_path / "bridge_alpha=+0.1.jsonl", [{**ROW, "completion": "by hand"}])
    elif change == "overwritten":
        work(tmp_path).remove_responses()
    again = work(tmp_path)
    assert again.begin(plan) is False
    assert again.read(0, [{"set": "evaluation", "id": "p", "sample": 0}]) is None
    assert again.measured("text") is None


def test_a_broken_plan_says_how_to_start_afresh(tmp_path):
    work(tmp_path).begin(PLAN)
    (work(tmp_path).directory / "plan.json").write_text('{"batch_size": 4')
    with pytest.raises(ValueError, match=r"plan\.json.*delete its directory"):
        work(tmp_path).begin(PLAN)


FULL = """
import resource, sys
from pathlib import Path
from gradsteer.records import write_jsonl
from gradsteer.generation.unfinished import UnfinishedCondition
work = UnfinishedCondition(Path(sys.argv[1]), "anchor")
work.begin({"batch_size": 1})
work.write(0, [{"position": 0}])
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    work.write(1, [{"completion": "x" * 5000}])
except OSError as error:
    print(error.errno, error)
print(work.read(0, []), work.read(1, []))
"""


def test_a_disk_without_room_loses_the_batch_and_keeps_those_before(tmp_path):
    """A limit on the size of files stands for the disk: writing beyond it fails as a full disk does."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    said, rows = done.stdout.strip().splitlines()
    assert said.startswith(str(errno.EFBIG))
    assert "batch 1 could not be saved; earlier batches are kept" in said
    assert "000001.jsonl" in said
    assert rows == "[{'position': 0}] None"
    assert sorted(path.name for path in (tmp_path / ".unfinished" / "anchor").iterdir()) == [
        "000000.jsonl",
        "plan.json",
    ]
    assert json.loads((tmp_path / ".unfinished" / "anchor" / "plan.json").read_text()) == {"batch_size": 1}


def test_overwriting_takes_away_another_plans_batches_only(tmp_path):
    work(tmp_path).begin(PLAN)
    work(tmp_path).write(0, ROWS)
    assert work(tmp_path).begin(PLAN, overwrite=True) is True  # the same command again, after a kill
    assert work(tmp_path).read(0, []) == ROWS
    assert work(tmp_path).begin({**PLAN, "temperature": 0.7}, overwrite=True) is False
    assert work(tmp_path).read(0, []) is None
    assert work(tmp_path).plan()["temperature"] == 0.7


def test_a_directory_that_is_removed_while_it_is_looked_at_is_made_again_and_a_file_there_is_an_error(
    tmp_path, monkeypatch
):
    mkdir, raised = Path.mkdir, []

    def removed_meanwhile(path, *args, **options):
        if not raised:
            raised.append(path)
            raise FileExistsError(path)
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", removed_meanwhile)
    assert work(tmp_path).begin(PLAN) is False
    assert raised
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".unfinished").write_text("a file")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        work(tmp_path / "other").begin(PLAN)
