"""Signals of schedulers: they end any phase within seconds, with a status that says so, and a job is put back."""

import signal
import subprocess
import sys
import time

import pytest

from gradsteer.__main__ import main

NUMBERS = {"SIGTERM": 143, "SIGUSR1": 138}


def told(monkeypatch, name):
    def tell(module):
        signal.raise_signal(getattr(signal, name))

    with monkeypatch.context() as patched:
        patched.setattr("gradsteer.__main__.importlib.import_module", tell)
        return main(["steer"])


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_signal_ends_a_command_as_ctrl_c_does(name, monkeypatch, capsys):
    before = signal.getsignal(getattr(signal, name))
    assert told(monkeypatch, name) == NUMBERS[name]
    assert capsys.readouterr().err == f"gradsteer steer: ended by {name}; the same command goes on with what was kept\n"
    assert signal.getsignal(getattr(signal, name)) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(("fails", "said"), [(False, "is in the queue again"), (True, "could not be put back")])
def test_a_job_that_slurm_warns_is_put_back_into_the_queue(fails, said, monkeypatch, capsys, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit {int(fails)}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert told(monkeypatch, "SIGTERM") == 143  # which ends it for good
    assert not (tmp_path / "asked").exists()
    assert told(monkeypatch, "SIGUSR1") == 138
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    told(monkeypatch, "SIGUSR1")
    assert (tmp_path / "asked").read_text() == "requeue 7\nrequeue 8_3\n"
    shown = capsys.readouterr().err
    assert f"job 7 {said}" in shown
    assert f"job 8_3 {said}" in shown


def test_without_scontrol_it_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert told(monkeypatch, "SIGUSR1") == 138
    assert "job 7 could not be put back into Slurm's queue" in capsys.readouterr().err


STUCK = "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)"  # a library's own loop, which hears of no signal
DEAF = "exec('while True:\\n    try: time.sleep(60)\\n    except KeyboardInterrupt: pass')"


@pytest.mark.parametrize("work", [STUCK, DEAF])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_does_not_hear_or_does_not_end_is_ended(work, name):
    code = (
        "import hashlib, time; from gradsteer.cli import termination; termination._STUCK = termination._LONGEST = 0.1\n"
        f"with termination.signals_as_interrupt():\n    print('begun', flush=True)\n    {work}"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)  # until it is in the midst of its work
    begun = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert process.returncode == NUMBERS[name]
    assert f"ended by {name} in the midst of its work" in said
