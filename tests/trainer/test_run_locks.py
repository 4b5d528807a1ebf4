"""One command at a time: the locks of steer's conditions and of its report."""

import json

import pytest
from filelock import FileLock, Timeout
from judged import message_of, rows_of, steer_words
from road import run, write_lines

import gradsteer.cli.lightning_cli
from gradsteer.cli.stages import Stage


@pytest.mark.parametrize(
    ("file", "said"), [("@report", "the report"), ("anchor", "condition 'anchor'"), ("another", None)]
)
def test_two_steers_of_one_directory_collide(judged, tmp_path, capsys, file, said):
    locks = tmp_path / "responses" / ".locks"
    locks.mkdir(parents=True)
    words = steer_words(judged, tmp_path)
    with FileLock(locks / f"{file}.lock"):
        if said is None:
            run(*words)
        else:
            assert f"another command is at work on {said} in" in message_of(words, capsys)
            assert not (tmp_path / "results.json").exists()


def test_an_evaluation_beside_a_steer_takes_no_lock_of_the_report(judged, tmp_path):
    locks = tmp_path / "responses" / ".locks"
    locks.mkdir(parents=True)
    patterns = json.dumps({"a": ["a"]})
    with FileLock(locks / "@report.lock"):
        run(
            "evaluate", "--model.model_name_or_path", judged.anchor, "--output_dir", tmp_path, "--trainer.logger",
            "false", "--name", "results", "--data.prompts", judged.prompts, "--data.max_prompts", 2,
            "--model.max_new_tokens", 2, "--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", patterns,
        )  # fmt: skip
    assert rows_of(tmp_path / "evaluations" / "results.json")


def evaluate_words(judged, out, **more):
    words = [
        "evaluate", "--model.model_name_or_path", judged.anchor, "--output_dir", out, "--trainer.logger", "false",
        "--data.prompts", judged.prompts, "--data.max_prompts", 2, "--model.max_new_tokens", 2, "--evaluation.judge",
        "KeywordJudge", "--evaluation.judge.patterns", json.dumps({"a": ["a"]}),
        *(word for name, value in more.items() for word in (f"--{name.replace('__', '.')}", value)),
    ]  # fmt: skip
    return [str(word) for word in words]


def test_what_another_command_finished_before_the_locks_were_taken_is_not_replaced(
    judged, tmp_path, monkeypatch, capsys
):
    run(*evaluate_words(judged, tmp_path))
    responses = (tmp_path / "responses" / "anchor.jsonl").read_bytes()
    looks, check = [], gradsteer.cli.lightning_cli.check_stage

    def late(*args, **options):  # at the first look the other had not finished yet
        looks.append(args)
        if len(looks) > 1:
            check(*args, **options)

    monkeypatch.setattr(gradsteer.cli.lightning_cli, "check_stage", late)
    message = message_of(evaluate_words(judged, tmp_path, model__sampling_seed=5), capsys)
    assert "sampling_seed" in message
    assert "(now 5, then 0)" in message
    assert (tmp_path / "responses" / "anchor.jsonl").read_bytes() == responses
    # the same command finds that all is done
    looks.clear()
    run(*evaluate_words(judged, tmp_path))
    assert len(looks) == 2
    assert (tmp_path / "responses" / "anchor.jsonl").read_bytes() == responses


def test_locks_are_held_until_the_command_is_noted_as_finished(judged, tmp_path, monkeypatch):
    noted, write = [], Stage.write

    def watched(self, config, *, finished, inputs=None):
        if finished:
            with pytest.raises(Timeout):
                FileLock(tmp_path / "responses" / ".locks" / "anchor.lock", timeout=0).acquire()
            noted.append(self.key)
        write(self, config, finished=finished, inputs=inputs)

    monkeypatch.setattr(Stage, "write", watched)
    run(*evaluate_words(judged, tmp_path))
    assert noted == ["evaluate-anchor"]
    with FileLock(tmp_path / "responses" / ".locks" / "anchor.lock", timeout=0):
        pass


@pytest.mark.parametrize("command", ["fit", "attribute"])
def test_two_fits_or_attributes_of_one_directory_collide(judged, tmp_path, capsys, command):
    chats = write_lines(
        tmp_path / "chats.jsonl",
        [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]}] * 4,
    )
    out = tmp_path / "out"
    words = [command, "--model.model_name_or_path", judged.anchor, "--output_dir", out, "--trainer.logger", "false"]
    words += {
        "fit": ["--data.train", chats, "--trainer.max_epochs", 1],
        "attribute": ["--data.piles.x", chats],
    }[command]
    words = list(map(str, words))
    key = {"fit": "fit-anchor", "attribute": "attribute"}[command]
    lock = out / "stages" / ".locks" / f"{key}.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert f"another command is at work on {key!r} in" in message_of(words, capsys)
        assert not (out / "stages" / f"{key}.json").exists()
    run(*words)
    assert (out / "stages" / f"{key}.json").exists()


def test_a_vector_that_a_killed_attribute_left_half_written_stops_nobody(judged, tmp_path):
    words = ["attribute", "--model.model_name_or_path", judged.anchor, "--output_dir", tmp_path]
    responses = judged.directory / "responses" / "piles.jsonl"
    for name, value in (("with", True), ("without", False)):
        words += [f"--data.piles.{name}", json.dumps({"responses": str(responses), "where": {"a": value}})]
    words += ["--vectors.v", "[with, without]", "--trainer.logger", "false"]
    left = [
        tmp_path / folder / ".v.0123456789ab.tmp.safetensors" for folder in ("vectors", "gradients", "gradients/halves")
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    run(*words)
    assert not any(path.exists() for path in left)
    assert (tmp_path / "vectors" / "v.safetensors").is_file()
