"""The process that serves a run's stages: results as of separate commands, and an end in order."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
import yaml

from gradsteer.cli.stage_process import StageProcess, _launches


@pytest.fixture
def process():
    with closing(StageProcess()) as shared:
        yield shared


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(process, *words, **environment):
    return process.run([*map(str, words)], {}, {**ENVIRONMENT, **environment})


@pytest.mark.parametrize(
    ("words", "options", "environment", "own"),
    [
        ([], {}, {}, False),
        (["--trainer.accelerator", "gpu"], {"max_epochs": 3}, {}, False),
        (["--trainer.devices=2"], {}, {}, True),
        (["--trainer.strategy", "ddp"], {}, {}, True),
        (["--trainer.num_nodes", "2"], {}, {}, True),
        ([], {"strategy": "ddp"}, {}, True),
        (["--config", "a.yaml", "--config", "configs/strategy/ddp.yaml"], {}, {}, True),
        (["--trainer", "trainer.yaml"], {}, {}, True),
        ([], {}, {"PL_TRAINER_DEVICES": "2"}, True),
    ],
)
def test_what_may_start_other_processes_has_one_of_its_own(words, options, environment, own):
    assert _launches(words, options, environment) is own


def test_commands_share_a_process_as_long_as_its_environment_stays(process, tmp_path):
    for index, (environment, same) in enumerate([({}, None), ({"OMP_NUM_THREADS": "2"}, True), ({"A": "1"}, False)]):
        before = process._process
        assert run(process, "corpus", "--num_samples", 40, "--output_dir", tmp_path / str(index), **environment) == 0
        assert same is None or (process._process is before) is same


def test_a_failure_gives_its_status_and_its_message(process, tmp_path, capfd):
    assert run(process, "corpus", "--num_samples", 0, "--output_dir", tmp_path) == 2
    assert "num_samples" in capfd.readouterr().err
    assert run(process, "fit", "--no_such_option", 1) != 0


def test_a_killed_process_is_reported_as_one(process, tmp_path):
    assert run(process, "corpus", "--num_samples", 40, "--output_dir", tmp_path / "a") == 0
    process._process.kill()
    assert run(process, "corpus", "--num_samples", 40, "--output_dir", tmp_path / "b") == -signal.SIGKILL


@pytest.fixture
def fits(inputs, tmp_path):
    """A run of two finetunes, the second of them from the first."""
    (tmp_path / "base.yaml").write_text(yaml.dump({
        "name": "base",
        "model": {"config": str(inputs / "config.json"), "tokenizer": str(inputs / "tokenizer")},
        "data": {"train": str(inputs / "chat.jsonl")},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }))  # fmt: skip
    (tmp_path / "anchor.yaml").write_text(yaml.dump({
        "model": {"model_name_or_path": "{input_dir}/base", "optimizer": {
            "class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}},
        "data": {"train": str(inputs / "chat.jsonl")},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }))  # fmt: skip
    stages = [{"name": name, "command": "fit", "config": f"{name}.yaml"} for name in ("base", "anchor")]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.dump({"experiment": "fits", "environment": {"OMP_NUM_THREADS": 1}, "stages": stages}))
    return path


@pytest.mark.slow
def test_results_are_those_of_separate_commands(fits, tmp_path):
    program = [sys.executable, "-m", "gradsteer"]
    together, apart = tmp_path / "together", tmp_path / "apart"
    words = ["run", "--config", str(fits), "--output_dir", str(together)]
    assert subprocess.run([*program, *words], env=ENVIRONMENT, check=False).returncode == 0
    shutil.copytree(together / "base", apart / "base")  # the first of a process: what differs can only come after it
    words = ["fit", "--config", str(fits.parent / "anchor.yaml"), "--output_dir", str(apart), "--experiment", "fits"]
    assert subprocess.run([*program, *words], env=ENVIRONMENT, check=False).returncode == 0
    files = [file.name for file in (apart / "anchor").iterdir() if file.suffix in (".safetensors", ".json")]
    assert "model.safetensors" in files
    for file in files:
        left, right = ((where / "anchor" / file).read_bytes() for where in (together, apart))
        assert left.replace(str(together).encode(), str(apart).encode()) == right, file
    records = [json.loads((where / "stages" / "fit-anchor.json").read_text()) for where in (together, apart)]
    assert records[0]["config_digest"] == records[1]["config_digest"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_end_ends_its_stage_in_order(fits, tmp_path, number, status):
    values = yaml.safe_load((fits.parent / "anchor.yaml").read_text())
    values["trainer"]["max_epochs"] = 100_000
    (fits.parent / "anchor.yaml").write_text(yaml.dump(values))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "gradsteer", "run", "--config", str(fits), "--output_dir", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    record, deadline = out / "stages" / "fit-anchor.json", time.monotonic() + 90
    while not record.is_file():  # which is written as its first batch begins
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    begun = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    shown, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert process.returncode == status
    assert "Traceback" not in shown
    assert "[2/2] anchor (fit): interrupted; the same command goes on with this stage" in shown
    assert (out / "base" / "model.safetensors").is_file()
