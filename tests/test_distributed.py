"""Two processes give what one gives: attribute and evaluate through the real command line, on gloo."""

import json
import os
import signal
import subprocess
import sys

import pytest
from road import PATTERNS, run, write_lines
from test_gradients import relative_error

from gradsteer.vectors import ParameterVector

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

PILES = {"odd": 7, "single": 1, "even": 4}


@pytest.fixture(scope="module")
def commands(experiment, inputs, tmp_path_factory):
    """Command lines by name, each without its output directory."""
    directory = tmp_path_factory.mktemp("piles")
    chats = [json.loads(line) for line in (inputs / "chat.jsonl").read_text().splitlines()]
    piles = {name: str(write_lines(directory / f"{name}.jsonl", chats[:size])) for name, size in PILES.items()}
    piles["sampled"] = {"responses": str(experiment / "responses" / "first.jsonl"), "where": {"a": True}}
    anchor = ["--model.model_name_or_path", experiment / "anchor", "--trainer.logger", "false"]
    evaluate = [
        "evaluate", *anchor, "--data.prompts", inputs / "prompts.jsonl", "--model.num_samples", 3, "--evaluation.judge",
        "KeywordJudge", "--evaluation.judge.patterns", PATTERNS, "--evaluation.heldout", inputs / "chat.jsonl",
        "--model.max_new_tokens", 8,
    ]  # fmt: skip
    return {
        # every example is a pack of its own, so that an odd pile has an odd number of them
        "attribute": ["attribute", *anchor, "--data.piles", json.dumps(piles), "--vectors.v", "[odd, single]",
                      "--data.token_budget", 1],
        "evaluate": [*evaluate, "--data.batch_size", 2],
        "idle": [*evaluate, "--data.max_prompts", 1],  # one batch: the second process has nothing to sample
    }  # fmt: skip


@pytest.fixture(scope="module")
def on_two(commands, tmp_path_factory):
    """Gives the output directory of a command on two processes; two are started at once, as imports take longest."""
    started = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]

    def start(name):
        out = tmp_path_factory.mktemp(name)
        line = [*commands[name], *quiet, "--trainer.devices", 2, "--trainer.strategy", "ddp"]
        with (out / "log").open("w") as log:
            started[name] = out, subprocess.Popen(
                [sys.executable, "-m", "gradsteer", *map(str, line), "--output_dir", str(out / "two")],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def finish(name):
        if name not in started:
            start(name)
        out, process = started[name]
        status = process.wait(timeout=110)
        log = (out / "log").read_text()
        assert status == 0, log
        assert "Starting with 2 processes" in log
        return out / "two"

    start("attribute")
    start("evaluate")
    yield finish
    for _, process in started.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the second process too
            process.wait()


def test_attribute_on_two_processes_equals_one(commands, on_two, tmp_path):
    """Lightning would even the processes out by repeating examples: 80% wrong on odd piles."""
    run(*commands["attribute"], "--output_dir", tmp_path)
    two = on_two("attribute")
    files = [f"gradients/{pile}.safetensors" for pile in (*PILES, "sampled")] + ["vectors/v.safetensors"]
    assert sorted(str(path.relative_to(two)) for path in two.glob("*/*.safetensors")) == sorted(files)
    for file in files:
        ours, theirs = (ParameterVector.load(directory / file) for directory in (two, tmp_path))
        assert relative_error(ours, theirs) < 1e-6, file
        for key in ("num_examples", "num_tokens", "model_fingerprint", "prompt_digests", "reduction", "loss_mask"):
            assert ours.metadata.get(key) == theirs.metadata.get(key)
    for pile, size in PILES.items():
        assert ParameterVector.load(two / "gradients" / f"{pile}.safetensors").metadata["num_examples"] == str(size)


@pytest.mark.parametrize("name", ["evaluate", pytest.param("idle", marks=pytest.mark.slow)])
def test_evaluate_on_two_processes_writes_the_same_bytes(commands, on_two, tmp_path, name):
    run(*commands[name], "--output_dir", tmp_path)
    two = on_two(name)
    for file in ("responses/anchor.jsonl", "evaluations/anchor.json"):
        assert (two / file).read_bytes() == (tmp_path / file).read_bytes()
    assert [path.name for path in (two / "responses").iterdir()] == ["anchor.jsonl"]
