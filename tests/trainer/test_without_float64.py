"""Every command on a device without float64, such as a Mac's: a stand-in, as no test has such a device."""

import json

import pytest
import torch
from road import PATTERNS
from stand_in import DEVICE, REFUSED, OnDevice, stand_in_device

from gradsteer.__main__ import main
from gradsteer.models.exact import doubled
from gradsteer.vectors.parameter_vectors import PileAverage


@pytest.fixture
def device(monkeypatch):
    with stand_in_device(monkeypatch):
        yield DEVICE


def test_the_stand_in_refuses_float64_wherever_it_would_come_from(device):
    there = torch.ones(2).to(device)
    for ask in (
        there.double,
        lambda: there.sum(dtype=torch.float64),
        lambda: torch.zeros(2, dtype=torch.float64, device=there.device),
        lambda: torch.ones(2, dtype=torch.float64).to(device),
        lambda: there.to(torch.float64),
    ):
        with pytest.raises(TypeError, match=REFUSED):
            ask()
    assert there.cpu().double().tolist() == [1.0, 1.0]


def test_a_model_that_is_moved_there_stays_there(device):
    model = torch.nn.Linear(2, 2).to(device)
    loss = model(torch.ones(1, 2).to(device)).sum()
    loss.backward()
    assert {type(each) for each in (loss, model.weight, model.weight.grad)} == {OnDevice}
    assert doubled(loss.detach()).dtype == torch.float64
    assert model.weight.device == DEVICE


def words(command, experiment, inputs, out, accelerator="mps"):
    responses = experiment / "responses" / "first.jsonl"
    piles = {name: {"responses": str(responses), "where": {"a": name == "x"}} for name in "xy"}
    sampling = ["--data.prompts", inputs / "prompts.jsonl", "--model.max_new_tokens", 3, "--evaluation.judge"]
    sampling += ["KeywordJudge", "--evaluation.judge.patterns", PATTERNS, "--evaluation.heldout", inputs / "chat.jsonl"]
    steering = ["--steering.vectors.a", experiment / "vectors" / "a.safetensors", "--steering.alphas", "[0.1]"]
    steering += ["--steering.seed_faithful", "true"]
    everything = ["--steering.base", experiment / "base", "--steering.transforms", "[[], [diff_weighting]]"]
    everything += ["--steering.relative_norms", "[0.01]", "--steering.kl_budgets", "[0.01]"]
    base = ["--model.base", experiment / "base"]
    own = {
        "fit": ["--data.train", inputs / "chat.jsonl", "--trainer.max_epochs", 1, "--data.validation"]
        + [inputs / "chat.jsonl", "--saving.second_moment", "true"],
        "validate": ["--data.validation", inputs / "chat.jsonl"],
        "evaluate": sampling,
        "attribute": ["--data.piles", json.dumps(piles), "--vectors.v", "[x, y]"],
        "forecast": [*steering, "--forecasting.responses", responses],
        "steer": [*sampling, *steering],
        "steer by every dose": [*sampling, *steering, *everything],
        "attribute on a path": ["--data.piles.x", responses, "--model.path_points", 2, *base],
        "attribute under masks": ["--data.piles.x", responses, "--model.mask_draws", 1, "--data.fisher", "x"],
    }[command]
    line = [command.partition(" ")[0], "--model.model_name_or_path", experiment / "anchor", *own, "--output_dir", out]
    line += [
        "--trainer.accelerator",
        accelerator,
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.logger",
        "false",
    ]
    return [str(word) for word in line]


SLOW = ("steer", "steer by every dose", "attribute on a path", "attribute under masks")


@pytest.mark.parametrize("command", [
    "fit", "validate", "evaluate", "attribute", "forecast",
    *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*cut at the length limit")
def test_every_command_runs_there(command, experiment, inputs, tmp_path, device):
    assert main(words(command, experiment, inputs, tmp_path)) == 0


def test_what_is_sampled_and_summed_is_what_a_cpu_gives(experiment, inputs, tmp_path, monkeypatch):
    commands = ("evaluate", "attribute")
    with stand_in_device(monkeypatch):
        assert [main(words(each, experiment, inputs, tmp_path / "there")) for each in commands] == [0, 0]
    monkeypatch.undo()
    assert [main(words(each, experiment, inputs, tmp_path / "here", "cpu")) for each in commands] == [0, 0]
    there, here = (tmp_path / place for place in ("there", "here"))
    rows = [
        [json.loads(line)["token_ids"] for line in (each / "responses" / "anchor.jsonl").read_text().splitlines()]
        for each in (there, here)
    ]
    assert rows[0] == rows[1]
    averages = [PileAverage.load(each / "gradients" / "x.safetensors") for each in (there, here)]
    assert all(torch.equal(tensor, averages[1][name]) for name, tensor in averages[0].items())


def test_weights_in_float64_are_refused_there(experiment, inputs, tmp_path, device, capsys):
    line = [*words("validate", experiment, inputs, tmp_path), "--model.dtype", "float64"]
    assert main(line) == 2
    assert "--model.dtype is float64, which mps does not have; accepted: float32" in capsys.readouterr().err
