"""Command lines with a model judge, whose server answers by what a response holds."""

import json
import sqlite3
import threading

import pytest
from judged import words_of
from judging import environment_fixture, play_fixture, script  # noqa: F401 (fixtures)
from road import WORDS, write_lines
from server import verdicts

from gradsteer.trainer.modules.generation import GenerationModule

RUBRICS = json.dumps({"bridge": None, "recipe": None})
SIGNS = {"bridge": "e", "recipe": "o"}  # of a behavior: no cleaning of a text adds or removes a letter
NUM_PROMPTS, NUM_SAMPLES, BATCH = 4, 5, 4
TOTAL = NUM_PROMPTS * NUM_SAMPLES


def truth(reply):
    return {behavior: sign in reply for behavior, sign in SIGNS.items()}


@script
def by_content(request):
    return verdicts(**truth(request.reply))


class Gate:
    """A script that answers so many requests by content and holds the others back until it is opened."""

    is_script = True

    def __init__(self, num_answered):
        self.left, self.answered = num_answered, []
        self._opened, self._lock = threading.Event(), threading.Lock()

    def __call__(self, request):
        with self._lock:
            passes = self.left > 0
            self.left -= passes
        return self._answer if passes or self._opened.is_set() else self._held

    def open(self):
        self._opened.set()

    def _answer(self, handler, request):
        self.answered.append(request.user)
        by_content(request)(handler, request)

    def _held(self, handler, request):
        if self._opened.wait(60):
            self._answer(handler, request)


@pytest.fixture(name="prompts", scope="session")
def prompts_fixture(tmp_path_factory):
    rows = [{"id": f"q{index}", "prompt": f"{WORDS[index]} {WORDS[index + 5]}?"} for index in range(NUM_PROMPTS)]
    return write_lines(tmp_path_factory.mktemp("asked") / "prompts.jsonl", rows)


@pytest.fixture(name="words", scope="session")
def words_fixture(experiment, prompts):
    """Makes command lines; `steer` has the anchor and two conditions of one vector."""

    def make(command, out, server, **changes):
        flags = {
            "--output_dir": out, "--model.model_name_or_path": experiment / "anchor", "--trainer.logger": "false",
            "--data.prompts": prompts, "--data.batch_size": BATCH, "--model.num_samples": NUM_SAMPLES,
            "--model.max_new_tokens": 8, "--evaluation.count_degenerate": "true",
            "--evaluation.judge": "OpenAIJudge", "--evaluation.judge.base_url": server.url,
            "--evaluation.judge.model": "small-judge", "--evaluation.judge.rubrics": RUBRICS,
            "--evaluation.judge.store": out / "verdicts.sqlite",
        }  # fmt: skip
        if command == "steer":
            flags |= {
                "--steering.vectors.zebra": experiment / "vectors" / "a.safetensors", "--steering.alphas": "[0.05]",
                "--steering.random_controls": 0, "--steering.anchor_resamples": 0,
                "--steering.behaviors.zebra": "bridge",
            }  # fmt: skip
        return [command, *words_of(flags, changes)]

    return make


@pytest.fixture(name="sampled")
def sampled_fixture(monkeypatch):
    """Counts the rows that are sampled from here on."""
    count, sample = [], GenerationModule._sample

    def counting(self, rows, dataloader_idx):
        count.extend(rows)
        return sample(self, rows, dataloader_idx)

    monkeypatch.setattr(GenerationModule, "_sample", counting)
    return count


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def different(rows):
    """The different exchanges among rows."""
    return {(row["prompt"], row["completion"]) for row in rows}


def num_stored(store):
    """How many verdicts a store's file has, looked at from outside."""
    if not store.is_file():
        return 0
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT count(*) FROM verdicts").fetchone()[0]
    except sqlite3.OperationalError:  # the table is being made
        return 0
    finally:
        connection.close()


def files_of(directory):
    """The bytes of all that a run leaves, but for the logs, the store and what says when it ran."""
    found = {path.relative_to(directory): path for path in directory.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.suffix in (".json", ".jsonl", ".csv")}
