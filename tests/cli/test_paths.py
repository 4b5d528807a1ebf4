"""One path however it is written: ``~``, and what a finished stage was called with."""

import os

import pytest
import yaml
from road import PATTERNS, QUIET

from gradsteer.__main__ import main
from gradsteer.cli.paths import expanded


@pytest.mark.parametrize(
    ("key", "is_path"),
    [
        ("output_dir", True),
        ("saving.output_dir", True),
        ("model.model_name_or_path", True),
        ("steering.vectors.a", True),
        ("steering.base", True),
        ("data.piles.good", True),
        ("data.piles.good.responses", True),
        ("evaluation.judge.init_args.store", True),
        ("evaluation.judge.init_args.patterns", True),
        ("trainer.logger.init_args.save_dir", True),
        ("data.system_prompt", False),
        ("report.note", False),
        ("evaluation.judge.init_args.patterns.a", False),
        ("evaluation.judge.class_path", False),
    ],
)
def test_home_is_expanded_where_a_path_is_meant(key, is_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert expanded(key, "~/x") == ("/home/somebody/x" if is_path else "~/x")
    assert expanded(key, "a~/x") == "a~/x"


def test_results_and_events_go_to_one_home_and_the_stage_is_done_by_any_name(
    experiment, inputs, tmp_path, monkeypatch, capsys
):
    home, here = tmp_path / "home", tmp_path / "here"
    for place in (home, here):
        place.mkdir()
    (home / "model").symlink_to(experiment / "anchor")
    (home / "prompts.jsonl").write_bytes((inputs / "prompts.jsonl").read_bytes())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    config = {
        "output_dir": "~/out",
        "model": {"model_name_or_path": "~/model", "max_new_tokens": 1},
        "data": {"prompts": "~/prompts.jsonl", "max_prompts": 1},
        "evaluation": {"judge": {"class_path": "KeywordJudge", "init_args": {"patterns": yaml.safe_load(PATTERNS)}}},
    }
    (here / "config.yaml").write_text(yaml.dump(config))
    words = ["evaluate", "--config", "config.yaml", "--name", "n", *QUIET]
    assert main(words) == 0
    assert os.listdir(here) == ["config.yaml"]
    assert (home / "out" / "responses" / "n.jsonl").is_file()
    assert list((home / "out" / "evaluate").glob("version_0/events.*"))
    said = capsys.readouterr().out
    respelled = ["--model.model_name_or_path", f"{experiment}/anchor/", "--data.prompts", f"{home}/./prompts.jsonl"]
    assert main([*words, *respelled, "--output_dir", f"{home}/out/"]) == 0
    assert "is done already" in capsys.readouterr().out.removeprefix(said)


def test_the_other_commands_find_their_home_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["corpus", "--num_samples", "20", "--output_dir=~/out"]) == 0
    assert (tmp_path / "out" / "corpus" / "model.json").is_file()
    capsys.readouterr()
    assert main(["inspect", "~/none.safetensors"]) == 2
    assert f"{tmp_path}/none.safetensors" in capsys.readouterr().err
    assert (
        main(
            ["judge", "--responses", "~/none.jsonl", "--judges.words", "KeywordJudge"]
            + ["--judges.words.patterns", "~/none.json"]
        )
        == 2
    )
    (tmp_path / "run.yaml").write_text("experiment: e\nstages:\n- {name: c, command: corpus, config: ~/c.yaml}\n")
    (tmp_path / "c.yaml").write_text("num_samples: 20\n")
    assert main(["run", "--config=~/run.yaml", "--output_dir=~/out", "--dry_run", "true"]) == 0
    assert f"{tmp_path}/out" in capsys.readouterr().out
