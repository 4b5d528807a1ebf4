"""What a command needs on disk and of memory is said before its work, and too little is refused with both numbers."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from road import PATTERNS

from gradsteer.__main__ import main
from gradsteer.trainer import room

Usage = namedtuple("Usage", "total used free")
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
BYTES = 4 * 11_200  # of the tiny model, untied as it was saved


def words(command, experiment, inputs, out):
    own = {
        "fit": ["--data.train", inputs / "chat.jsonl", "--saving.second_moment", "true"],
        "evaluate": ["--data.prompts", inputs / "prompts.jsonl", "--model.max_new_tokens", 2, "--evaluation.judge"]
        + ["KeywordJudge", "--evaluation.judge.patterns", PATTERNS],
        "attribute": ["--data.piles.x", experiment / "responses" / "first.jsonl"],
    }[command]
    line = [command, "--model.model_name_or_path", experiment / "anchor", *own, "--output_dir", out, *QUIET]
    return [str(word) for word in line]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fit", ["the model", "its checkpoint", "the second moment", "need"]),
        ("evaluate", ["responses", "need"]),
        ("attribute", ["gradients", "need"]),
    ],
)
def test_a_full_disk_is_refused_with_both_numbers_before_a_weight_is_read(
    command, said, experiment, inputs, tmp_path, monkeypatch, capsys
):
    usage = shutil.disk_usage

    def nearly_full(path):
        assert Path(path).exists()
        return Usage(*usage(path)[:2], 1024)

    monkeypatch.setattr(room.shutil, "disk_usage", nearly_full)
    monkeypatch.setattr("gradsteer.models.loading.check_loaded", lambda *_: pytest.fail("read"))
    assert main(words(command, experiment, inputs, tmp_path / "new" / "out")) == 2
    line = next(each for each in capsys.readouterr().err.splitlines() if "error" in each)
    assert "too little room: " in line
    assert "has 1.0 KiB free; accepted: another --output_dir" in line
    for words_ in said:
        assert words_ in line


@pytest.mark.parametrize(("command", "times"), [("evaluate", 1), ("fit", 4)])
def test_a_model_that_memory_does_not_hold_is_refused_with_both_numbers(
    command, times, experiment, inputs, tmp_path, monkeypatch, capsys
):
    held = room._model_bytes
    needed = []
    monkeypatch.setattr(room, "_model_bytes", lambda module: needed.append(held(module)) or needed[0])
    monkeypatch.setattr(room, "available_bytes", lambda device, held: times * needed[0] - 1)
    assert main(words(command, experiment, inputs, tmp_path)) == 2
    said = capsys.readouterr().err
    assert f"need {room.size(times * needed[0])}, and cpu has {room.size(times * needed[0] - 1)} free" in said
    assert "accepted: --model.dtype bfloat16" in said


def test_a_model_counts_by_its_files_as_by_its_config(experiment):
    from gradsteer.trainer.modules.model import ModelModule

    for dtype, itemsize in (("float32", 4), ("bfloat16", 2)):
        module = ModelModule(str(experiment / "anchor"), dtype)
        numbers = sum(parameter.numel() for parameter in module.loading.without_values().parameters())
        assert room._model_bytes(module) == pytest.approx(itemsize * numbers, rel=0.2)  # a file has a header, too


def test_much_is_said_and_little_is_not(experiment, inputs, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(room, "rank_zero_info", said.append)
    assert main(words("attribute", experiment, inputs, tmp_path / "a")) == 0
    assert said == []
    monkeypatch.setattr(room, "_WORTH_SAYING", 1)
    assert main(words("attribute", experiment, inputs, tmp_path / "b")) == 0
    assert "room: gradients " in said[0]
    assert "on the disk of" in said[0]
    assert "room: the model " in said[1]
