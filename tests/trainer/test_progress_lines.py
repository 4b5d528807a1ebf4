"""What a log file shows of a run's progress."""

import io
import json
from contextlib import contextmanager

import pytest
from road import PATTERNS
from transformers import AutoModelForCausalLM

from gradsteer.__main__ import main
from gradsteer.generation.decoding import SamplingConfig, sample_batch
from gradsteer.generation.sampling import Draw
from gradsteer.trainer.callbacks.progress import StageProgressBar, StageProgressLines, stage_progress


@pytest.fixture
def shown(monkeypatch):
    """Every progress that a command shows: its title, unit and total, how far it came, its notes, and how it ended."""
    seen = []

    @contextmanager
    def progress(title, total=None, *, unit="step", shown=True):
        entry = {"title": title, "unit": unit, "total": total, "done": 0, "notes": [], "ended": False}
        seen.append(entry)

        def tick(n=1, note=""):
            entry["done"] += n
            entry["notes"].append(note)

        yield tick
        entry["ended"] = True

    for module in ("callbacks", "modules"):
        name = {"callbacks": "progress", "modules": "generation"}[module]
        monkeypatch.setattr(f"gradsteer.trainer.{module}.{name}.progress", progress)
    return seen


def command(*words):
    return main([*map(str, words), "--trainer.accelerator", "cpu", "--trainer.logger", "false"])


def test_a_finetune_counts_steps_and_says_loss_and_tokens(inputs, tmp_path, shown, capfd):
    words = ["fit", "--output_dir", tmp_path, "--model.config", inputs / "config.json", "--data.batch_size", 4]
    words += ["--model.tokenizer", inputs / "tokenizer", "--data.train", inputs / "chat.jsonl"]
    words += ["--data.validation", inputs / "chat.jsonl", "--trainer.max_epochs", 2]
    assert command(*words) == 0
    training, *validations = shown
    assert [training[key] for key in ("title", "unit", "total", "done", "ended")] == ["training", "step", 6, 6, True]
    assert "epoch 2, train/loss" in training["notes"][-1]
    assert training["notes"][-1].endswith(" tokens/s")
    assert [(each["title"], each["total"], each["done"]) for each in validations] == [("validation", 3, 3)] * 2
    assert "\r" not in "".join(capfd.readouterr())


def test_sampling_counts_conditions_and_the_tokens_of_each_batch(experiment, inputs, tmp_path, shown, capfd):
    words = ["evaluate", "--output_dir", tmp_path, "--model.model_name_or_path", experiment / "anchor"]
    words += ["--data.prompts", inputs / "prompts.jsonl", "--model.num_samples", 2, "--model.max_new_tokens", 12]
    words += ["--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", PATTERNS]
    assert command(*words) == 0
    sampling, batch = shown[:2]
    assert [sampling[key] for key in ("title", "unit", "total", "done")] == ["sampling", "condition", 1, 1]
    assert sampling["notes"][0] == "anchor"
    assert sampling["notes"][-1].startswith("anchor, ")
    assert sampling["notes"][-1].endswith(" tokens/s")
    assert [batch[key] for key in ("title", "unit", "total")] == ["10 responses", "token", 12]
    assert 0 < batch["done"] <= 12
    assert "\r" not in "".join(capfd.readouterr())


def test_piles_are_counted_by_batches(experiment, tmp_path, shown):
    piles = {
        name: {"responses": str(experiment / "responses" / "first.jsonl"), "where": {"a": value}}
        for name, value in {"with": True, "without": False}.items()
    }
    words = ["attribute", "--output_dir", tmp_path, "--model.model_name_or_path", experiment / "anchor"]
    assert command(*words, "--data.piles", json.dumps(piles), "--vectors.a", "[with, without]") == 0
    gradients = shown[0]
    assert [gradients[key] for key in ("title", "unit", "ended")] == ["gradients", "batch", True]
    assert gradients["done"] == gradients["total"]


def test_a_command_that_fails_ends_without_a_word(experiment, inputs, tmp_path, shown, monkeypatch):
    def failing(*_, **__):
        raise ValueError("no")

    monkeypatch.setattr("gradsteer.trainer.modules.generation.sample_batch", failing)
    words = ["evaluate", "--output_dir", tmp_path, "--model.model_name_or_path", experiment / "anchor"]
    words += ["--data.prompts", inputs / "prompts.jsonl", "--evaluation.judge", "KeywordJudge"]
    assert command(*words, "--evaluation.judge.patterns", PATTERNS) == 2
    assert not any(each["ended"] for each in shown)


def test_no_bar_means_no_lines(inputs, tmp_path, shown, experiment):
    words = ["evaluate", "--output_dir", tmp_path, "--model.model_name_or_path", experiment / "anchor"]
    words += ["--data.prompts", inputs / "prompts.jsonl", "--evaluation.judge", "KeywordJudge"]
    words += ["--evaluation.judge.patterns", PATTERNS, "--trainer.enable_progress_bar", "false"]
    assert command(*words) == 0
    assert "sampling" not in [each["title"] for each in shown]


def test_a_terminal_gets_bars_and_a_file_lines(monkeypatch):
    assert isinstance(stage_progress(), StageProgressLines)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    assert isinstance(stage_progress(), StageProgressBar)


def test_every_token_of_a_batch_is_told(experiment):
    model, steps = AutoModelForCausalLM.from_pretrained(experiment / "anchor"), []
    how = SamplingConfig(max_new_tokens=5)
    sample_batch(model, [Draw((3, 4), 0, 0)], how, stop_token_ids=[], pad_token_id=0, on_step=lambda: steps.append(1))
    assert len(steps) == 5
