"""What `doctor` says of a machine, and what it does not say."""

import pytest
import torch

from gradsteer.__main__ import main
from gradsteer.cli import doctor
from gradsteer.models import threads


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_SIZE", 64)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return dict(doctor.report(tmp_path / "new", seconds=0.001))


def test_it_says_what_is_there_and_what_is_not(report, monkeypatch):
    assert report["versions"]["torch"] == torch.__version__
    assert report["optional packages"]["flash_attn"].startswith("not installed (--model.attn_implementation")
    assert report["threads"] | {"threads": "1", "advice": "none"} == report["threads"]
    speeds = report["speed, products of 64 x 64 matrices"]
    assert all(f"cpu {name}" in speeds for name in ("float32", "bfloat16", "float16", "float64"))
    assert speeds["cpu float32"].endswith("GFLOP/s")
    assert report["room"]["output directory"].endswith("free")
    assert report["devices"]["cpu"].endswith("free")


def test_of_keys_it_says_only_whether_they_are_set(report):
    assert report["keys"]["OPENAI_API_KEY"] == "set"
    assert report["keys"]["HF_TOKEN"] == "not set"
    assert "sk-secret" not in str(report)


def test_a_speed_is_of_the_products_that_were_made(monkeypatch):
    clock = iter([0.0, 0.0, 0.5, 2.0])  # two products in two seconds
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(doctor, "_SIZE", 10)
    assert doctor._flops(torch.device("cpu"), torch.float32, 1.0) == 2 * 10**3 * 2 / 2.0


def test_the_command_prints_it_for_a_directory(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_SIZE", 16)
    assert main(["doctor", "--output_dir", str(tmp_path), "--seconds", "0.001"]) == 0
    shown = capsys.readouterr().out
    assert f"output directory       {tmp_path}: " in shown
    assert "keys:\n" in shown


def test_threads_that_help_nothing_are_told_and_none_is_changed(monkeypatch):
    speeds = {1: 136.0, 2: 31.0}
    monkeypatch.setattr(threads, "steps_per_second", lambda count: speeds[count])
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 2)
    said = threads.advice_on_threads()
    assert "2 threads make 31 small products a second here and one thread 136" in said
    assert said.endswith("OMP_NUM_THREADS=1 would be faster")
    speeds[2] = 100.0  # within noise of a busy machine
    assert threads.advice_on_threads() is None
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 1)
    assert threads.advice_on_threads() is None


def test_a_measurement_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    assert threads.steps_per_second(before + 1, seconds=0.001) > 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1.5), ("max 100000", None)])
def test_a_containers_quota_counts(text, cores, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(4)))
    assert threads.free_cores() == (cores or 4.0)
