import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from gradsteer.__main__ import main as command_line
from gradsteer.cli.run_file import read_run
from gradsteer.cli.runner import _digests, main, run_stages, stage_state, time_table
from gradsteer.cli.stage_process import StageProcess


@pytest.fixture
def run_file(tmp_path):
    """A run of two corpora (quick stages of a real command) and a fit that makes the base."""
    (tmp_path / "corpus.yaml").write_text("num_samples: 40\n")
    (tmp_path / "base.yaml").write_text(yaml.dump({"name": "base", "model": {"config": "c.json"}}))
    (tmp_path / "anchor.yaml").write_text(yaml.dump({"model": {"model_name_or_path": "{output_dir}/base"}}))
    (tmp_path / "steer.yaml").write_text(
        yaml.dump({"model": {"model_name_or_path": "{output_dir}/anchor"}, "steering": {"base": "{output_dir}/base"}})
    )
    stages = [
        {"name": "corpus", "command": "corpus", "config": "corpus.yaml"},
        {"name": "base", "command": "fit", "config": "base.yaml"},
        {"name": "anchor", "command": "fit", "config": "anchor.yaml"},
        {"name": "steering", "command": "steer", "config": "steer.yaml"},
    ]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.dump({"experiment": "small", "base_model": "{output_dir}/base", "stages": stages}))
    return path


def test_every_stage_gets_the_runs_directory_and_experiment(run_file):
    run = read_run(run_file, extra=["--trainer.accelerator", "cpu"])
    stages = run.stages
    assert str(run.directory) == "lightning_logs/small"
    assert [stage.command for stage in stages] == ["corpus", "fit", "fit", "steer"]
    words = stages[3].words(overwrite=False)
    assert words[0] == "steer"
    assert words[words.index("--output_dir") + 1] == "lightning_logs/small"
    assert words[words.index("--experiment") + 1] == "small"
    assert words[-2:] == ["--trainer.accelerator", "cpu"]
    assert "--trainer.accelerator" not in stages[0].words(overwrite=False)  # no Trainer command


def test_another_base_model_goes_to_every_stage_that_starts_from_the_base(run_file):
    stages = read_run(run_file, base_model="some/model").stages
    assert "the base model is some/model" in stages[1].unneeded
    assert stages[2].overrides[-2:] == ("--model.model_name_or_path", "some/model")
    assert stages[3].overrides[-2:] == ("--steering.base", "some/model")
    assert "some/model" not in stages[0].overrides


def test_another_judge_goes_to_every_stage_that_judges(run_file, tmp_path):
    file = tmp_path / "judge.yaml"
    file.write_text("evaluation: {judge: {class_path: KeywordJudge, init_args: {patterns: {a: [b]}}}}")
    plain, stages = read_run(run_file).stages, read_run(run_file, judge=file).stages
    named = run_file.with_name("named.yaml")
    named.write_text(run_file.read_text() + f"judge: {file.name}\n")
    assert read_run(named).stages == stages
    assert stages[3].overrides == (*plain[3].overrides, "--config", str(file))
    assert [stage.overrides for stage in stages[:3]] == [stage.overrides for stage in plain[:3]]
    digests = [_digests(Path(), plain[3]), _digests(Path(), stages[3])]
    file.write_text("evaluation: {judge: {class_path: KeywordJudge, init_args: {patterns: {a: [c]}}}}")
    digests.append(_digests(Path(), read_run(run_file, judge=file).stages[3]))
    assert len({tuple(each.values()) for each in digests}) == 3  # another judge makes another stage
    with pytest.raises(FileNotFoundError, match="no such file: 'no.yaml' .the judge's config"):
        read_run(run_file, judge=Path("no.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": None}, "has `experiment: NAME`"),
        ({"stages": []}, "a list of `stages`"),
        ({"stages": [{"name": "a"}]}, r"stage 1 is .*accepted: \{name, command, config\}"),
        ({"stages": [{"name": "a", "command": "tune", "config": "c"}]}, "command 'tune'; accepted: corpus, fit"),
        ({"stages": [{"name": "a", "command": "fit", "config": "no.yaml"}]}, r"no such file: .*no.yaml"),
        ({"environment": [1]}, "accepted: a mapping of names to values"),
        (
            {"stages": [{"name": "a", "command": "corpus", "config": "corpus.yaml", "environment": 1}]},
            "stage 1: environment is 1; accepted: a mapping",
        ),
        ({"colour": 1}, "unknown key 'colour'; accepted: experiment"),
    ],
)
def test_a_bad_run_file_is_refused_before_anything_runs(run_file, change, message):
    run_file.write_text(yaml.dump({**yaml.safe_load(run_file.read_text()), **change}))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_run(run_file)


def test_a_run_without_a_base_model_cannot_be_given_another(run_file):
    values = yaml.safe_load(run_file.read_text())
    del values["base_model"]
    run_file.write_text(yaml.dump(values))
    with pytest.raises(ValueError, match="no base_model that --model.model_name_or_path could replace"):
        read_run(run_file, base_model="some/model")


@pytest.fixture
def here(monkeypatch):
    """Stages run in this process (test_stage_process.py has those of one of their own)."""
    monkeypatch.setattr(StageProcess, "run", lambda self, words, options, environment: command_line(words))


@pytest.fixture
def corpus_run(tmp_path, run_file):
    values = yaml.safe_load(run_file.read_text())
    values["stages"] = values["stages"][:1]
    run_file.write_text(yaml.dump(values))
    return run_file, str(tmp_path / "out")


def test_a_stage_is_skipped_when_done(corpus_run, capfd):
    path, out = corpus_run
    assert main(["--config", str(path), "--output_dir", out]) == 0
    first = capfd.readouterr().out
    assert "[1/1] corpus (corpus): finished in" in first
    assert re.search(r"^corpus +\d+ s +100%$", first, re.MULTILINE)
    assert main(["--config", str(path), "--output_dir", out]) == 0
    assert "[1/1] corpus (corpus): done already, skipped" in capfd.readouterr().out
    assert main(["--config", str(path), "--output_dir", out, "--dry_run", "true"]) == 0
    assert "done" in capfd.readouterr().out


def test_the_environment_reaches_the_stages_but_yields_to_the_users(corpus_run, monkeypatch):
    path, out = corpus_run
    values = yaml.safe_load(path.read_text())
    values["environment"] = {"PYTHONPATH": "/nowhere", "A": 1, "B": 1}
    values["stages"][0]["environment"] = {"B": 2}
    path.write_text(yaml.dump(values))
    seen = []
    monkeypatch.setenv("A", "2")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(StageProcess, "run", lambda self, words, options, environment: seen.append(environment) or 0)
    run_stages(read_run(path, output_dir=out))
    assert [seen[0][name] for name in ("PYTHONPATH", "A", "B")] == ["/nowhere", "2", "2"]


def test_a_run_goes_on_from_another_runs_directory(run_file):
    values = yaml.safe_load(run_file.read_text())
    run_file.write_text(yaml.dump({**values, "input_dir": "logs/first"}))
    corpus, base, *_ = read_run(run_file).stages
    assert base.overrides[-2:] == ("--input_dir", "logs/first")
    assert "--input_dir" not in corpus.overrides  # no Trainer command: it reads nothing of a run
    assert read_run(run_file, input_dir="logs/second").stages[1].overrides[-2:] == ("--input_dir", "logs/second")


def test_the_time_is_told_by_stage():
    assert time_table({"corpus": 4.4, "base": 75.6}).splitlines() == [
        "corpus         4 s     6%",
        "base          76 s    94%",
        "together      80 s   100%",
    ]


def test_a_changed_config_is_refused_unless_told_to_overwrite(corpus_run, here, capfd):
    path, out = corpus_run
    assert main(["--config", str(path), "--output_dir", out]) == 0
    path.with_name("corpus.yaml").write_text("num_samples: 30\n")
    with pytest.raises(ValueError, match="holds a stage 'corpus' of another configuration"):
        main(["--config", str(path), "--output_dir", out])
    assert main(["--config", str(path), "--output_dir", out, "--overwrite", "true"]) == 0
    capfd.readouterr()


def test_a_lost_output_or_a_cut_off_stage_runs_again(corpus_run, here):
    path, out = corpus_run
    run = read_run(path, output_dir=out)
    directory, stages = run.directory, run.stages
    assert run_stages(run) == 0
    assert stage_state(directory, stages[0]) == "done"
    (directory / "corpus" / "model.json").unlink()
    assert stage_state(directory, stages[0]) == "new"
    record = directory / "stages" / "corpus.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "finished": False}))
    assert run_stages(run) == 0
    assert stage_state(directory, stages[0]) == "done"


def test_a_failing_stage_gives_its_status_and_stops_the_run(corpus_run, here, capfd):
    path, out = corpus_run
    path.with_name("corpus.yaml").write_text("num_samples: 0\n")
    assert main(["--config", str(path), "--output_dir", out]) == 2
    said = capfd.readouterr()
    assert "failed with status 2; the same command goes on with this stage" in said.out
    assert "num_samples" in said.err


def test_a_mistake_in_a_later_stage_is_found_before_the_first_runs(run_file, tmp_path, capfd):
    values = yaml.safe_load(run_file.read_text())
    values["stages"] = [values["stages"][0], {"name": "more", "command": "corpus", "config": "more.yaml"}]
    run_file.write_text(yaml.dump(values))
    path, out = tmp_path / "more.yaml", tmp_path / "out"
    path.write_text("num_sample: 30\n")
    assert main(["--config", str(run_file), "--output_dir", str(out)]) == 2
    said = capfd.readouterr()
    assert "num_sample" in said.err
    assert f"the options of stage 'more' ({path}) are not accepted: nothing was run" in said.out
    assert not out.exists()


def test_the_options_of_a_trainer_command_are_parsed_alone(tmp_path, capsys):
    words = ["fit", "--output_dir", str(tmp_path / "out"), "--data.train", "none", "--model.config", "none"]
    assert command_line([*words, "--trainer.max_epochs", "1"], parse_only=True) == 0
    with pytest.raises(SystemExit) as end:
        command_line([*words, "--trainer.max_epochz", "1"], parse_only=True)
    assert end.value.code == 2
    assert "max_epochz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        (
            "fit",
            {"--data.train": "no/such.jsonl"},
            "--data.train is 'no/such.jsonl': no such file; accepted: a",
        ),
        ("fit", {"--data.train": '{"question": "a"}'}, "--data.train: {file}:1: unknown shape; found: question"),
        ("validate", {"--data.validation": ""}, "--data.validation: {file}: empty; expected rows of"),
        ("fit", {"--data.train": '{"q": "a", "a": "b"}', "--data.columns": "{prompt: q}"}, "no value in completion"),
    ],
)
def test_the_files_of_a_later_stage_and_their_columns_are_looked_at(command, options, said, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    for key, value in options.items():
        if key.startswith("--data.") and not value.endswith(".jsonl") and key != "--data.columns":
            file.write_text(f"{value}\n")
            options = {**options, key: str(file)}
    words = [command, "--model.model_name_or_path", "m", *(word for pair in options.items() for word in pair)]
    assert command_line(words, parse_only=True) == 2
    assert said.replace("{file}", str(file)) in capsys.readouterr().err


def test_what_an_earlier_stage_leaves_need_not_be_there_yet(tmp_path):
    out, columns = tmp_path / "out", ["--data.columns", "{prompt: q, completion: a}"]
    named = tmp_path / "rows.jsonl"
    named.write_text('{"q": "a", "a": "b"}\n')
    for file in ("{output_dir}/corpus/x.jsonl", "{input_dir}/x.jsonl", f"{out}/x.jsonl", str(named), "owner/set"):
        words = ["fit", "--model.model_name_or_path", "m", "--output_dir", str(out), "--data.train", file, *columns]
        assert command_line(words, parse_only=True) == 0


def test_a_stage_that_was_run_by_hand_with_other_options_is_not_called_done(corpus_run, here, capfd):
    path, out = corpus_run
    assert main(["--config", str(path), "--output_dir", out]) == 0
    words = ["corpus", "--num_samples", "30", "--output_dir", out, "--overwrite", "true"]
    assert command_line(words) == 0
    with pytest.raises(ValueError, match="holds a stage 'corpus' of another configuration"):
        main(["--config", str(path), "--output_dir", out])
    capfd.readouterr()


def test_a_finished_run_may_be_moved_and_its_comments_edited(corpus_run, here, tmp_path, capfd):
    path, out = corpus_run
    assert main(["--config", str(path), "--output_dir", out]) == 0
    moved = shutil.move(out, tmp_path / "moved")
    path.with_name("corpus.yaml").write_text("# a comment\nnum_samples: 40\n")
    capfd.readouterr()
    assert main(["--config", str(path), "--output_dir", str(moved)]) == 0
    assert "done already, skipped" in capfd.readouterr().out


def test_a_failed_stage_may_be_corrected_without_overwriting(corpus_run, here):
    path, out = corpus_run
    path.with_name("corpus.yaml").write_text("num_samples: 0\n")
    assert main(["--config", str(path), "--output_dir", out]) == 2
    path.with_name("corpus.yaml").write_text("num_samples: 30\n")
    assert main(["--config", str(path), "--output_dir", out]) == 0
